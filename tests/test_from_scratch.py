"""The from-scratch networks and methods against the course's diagrams, closed forms and diffusers."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from experiments.digits import methods, unet
from experiments.digits.methods import Schedule, ddpm_sample, flow_sample, guided, last
from experiments.digits.unet import UNet


def conv(before, after, kernel=3, norm=True):
    """Parameters of a convolution with bias and, mostly, a batch norm."""
    return before * after * kernel**2 + after + 2 * after * norm


def diagram(d, time=False, classes=0):
    """Parameters counted off the course's diagram, box by box."""
    block = lambda before, after: conv(before, after) + conv(after, after)  # noqa: E731
    down = lambda before, after: conv(before, after) + block(after, after)  # noqa: E731
    up = lambda before, after: conv(before, after, 4) + block(after, after)  # noqa: E731
    fc = lambda before, after: before * after + after + after * after + after  # noqa: E731
    count = block(1, d) + down(d, d) + down(d, 2 * d) + conv(2 * d, 2 * d, 7)
    count += up(4 * d, d) + up(2 * d, d) + block(2 * d, d) + conv(d, 1, 3, norm=False)
    count += (fc(1, 2 * d) + fc(1, d)) * time
    return count + ((fc(classes, 2 * d) + fc(classes, d)) if classes else 0)


@pytest.mark.parametrize("d", [4, 64, 128])
@pytest.mark.parametrize("options", [{}, {"time": True}, {"time": True, "classes": 10}])
def test_parameters_are_the_diagrams(d, options):
    net = UNet(d, **options)
    assert sum(each.numel() for each in net.parameters()) == diagram(d, **options)


def test_shapes_are_the_diagrams():
    d, net, shapes = 6, UNet(6, time=True, classes=10).eval(), {}
    for name, module in net.named_children():
        module.register_forward_hook(lambda _m, _i, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
    out = net(torch.randn(2, 1, 28, 28), torch.rand(2), torch.zeros(2, 10))
    assert out.shape == (2, 1, 28, 28)
    assert shapes == {
        "first": (d, 28, 28),
        "down1": (d, 14, 14),
        "down2": (2 * d, 7, 7),
        "flatten": (2 * d, 1, 1),
        "unflatten": (2 * d, 7, 7),
        "up1": (d, 14, 14),
        "up2": (d, 28, 28),
        "last": (1, 28, 28),
        "time1": (2 * d, 1, 1),
        "time2": (d, 1, 1),
        "class1": (2 * d, 1, 1),
        "class2": (d, 1, 1),
    }


@pytest.mark.parametrize(
    ("atom", "before", "after"),
    [
        (unet.Conv(3, 5), (3, 8, 8), (5, 8, 8)),
        (unet.DownConv(3, 5), (3, 8, 8), (5, 4, 4)),
        (unet.UpConv(3, 5), (3, 8, 8), (5, 16, 16)),
        (unet.Flatten(), (3, 7, 7), (3, 1, 1)),
        (unet.Unflatten(3), (3, 1, 1), (3, 7, 7)),
        (unet.FCBlock(1, 5), (1,), (5, 1, 1)),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else None,
)
def test_atoms(atom, before, after):
    assert atom(torch.randn(2, *before)).shape == (2, *after)


def test_conditions_enter_as_scale_and_shift():
    """u <- C1(c) u + T1(t), v <- C2(c) v + T2(t), redone from the network's own parts."""
    net = UNet(4, time=True, classes=10).eval()
    x, t, c = torch.randn(3, 1, 28, 28), torch.rand(3), torch.eye(10)[:3]
    a = net.first(x)
    b = net.down1(a)
    c7 = net.down2(b)
    u = net.class1(c) * net.unflatten(net.flatten(c7)) + net.time1(t[:, None])
    v = net.class2(c) * net.up1(torch.cat([u, c7], 1)) + net.time2(t[:, None])
    w = net.up2(torch.cat([v, b], 1))
    assert torch.equal(net(x, t, c), net.last(torch.cat([w, a], 1)))


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({}, (torch.zeros(2, 1, 32, 32),), "x must have shape"),
        ({}, (torch.zeros(2, 1, 28, 28), torch.zeros(2)), "t must be absent"),
        ({"time": True}, (torch.zeros(2, 1, 28, 28),), "t must have shape"),
        ({"time": True}, (torch.zeros(2, 1, 28, 28), torch.zeros(2, 1)), "t must have shape"),
        ({"time": True, "classes": 10}, (torch.zeros(2, 1, 28, 28), torch.zeros(2)), "c must have shape"),
    ],
)
def test_wrong_input_is_named(options, arguments, message):
    with pytest.raises(ValueError, match=message):
        UNet(4, **options)(*arguments)


def test_classes_without_time_are_refused():
    with pytest.raises(ValueError, match="classes need time"):
        UNet(4, classes=10)


# The forward process and the posterior ---------------------------------------------------------------------------


@pytest.fixture
def stock():
    return DDPMScheduler(
        num_train_timesteps=300, beta_start=1e-4, beta_end=0.02, variance_type="fixed_large", clip_sample=False
    )


def test_schedule_is_one_based_and_ends_where_it_was_computed():
    schedule = Schedule()
    assert schedule.bars[0] == 1 and schedule.betas[1] == 1e-4 and schedule.betas[300] == 0.02
    product = 1.0
    for i in range(300):
        product *= 1 - (1e-4 + i * (0.02 - 1e-4) / 299)
    assert schedule.bars[300].item() == pytest.approx(product, rel=1e-12)
    assert product == pytest.approx(0.048, abs=5e-4)
    assert Schedule(scale=1000 / 300).bars[-1] < 1e-4


def test_impossible_schedules_are_refused():
    for options in ({"steps": 0}, {"first": 0.0}, {"last": 1e-5}, {"scale": 60.0}):
        with pytest.raises(ValueError, match="a schedule needs"):
            Schedule(**options)


def test_forward_process_agrees_with_diffusers(stock):
    x, noise, t = torch.rand(4, 1, 28, 28), torch.randn(4, 1, 28, 28), torch.tensor([1, 2, 150, 300])
    ours = Schedule().diffuse(x, t, noise)
    assert torch.allclose(ours, stock.add_noise(x, noise, t - 1), atol=1e-6)
    assert torch.equal(Schedule().diffuse(x, torch.zeros(4, dtype=torch.long), noise), x)


@pytest.mark.parametrize("t", [1, 2, 17, 299, 300])
def test_posterior_agrees_with_diffusers(stock, t, generator):
    """The mean of a step of diffusers' scheduler from the same prediction; its noise is 0 at t = 1 as well."""
    x, noise = (torch.randn(2, 1, 28, 28, generator=generator) for _ in range(2))
    schedule = Schedule()
    clean = (x - (1 - schedule.bars[t]).sqrt().float() * noise) / schedule.bars[t].sqrt().float()
    step = stock.step(noise, t - 1, x, generator=torch.Generator().manual_seed(3)).prev_sample
    if t > 1:
        drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
        step = step - schedule.betas[t].sqrt().float() * drawn  # σ² = β is diffusers' "fixed_large"
    assert torch.allclose(schedule.posterior(x, clean, t), step, atol=2e-4)


def test_posterior_is_the_conditional_mean_of_two_gaussians():
    """Bayes by hand: q(x_{t-1} | x_0) times q(x_t | x_{t-1}), precision-weighted."""
    schedule, t = Schedule(), 120
    x, clean = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)
    bar, beta, alpha = schedule.bars[t - 1], schedule.betas[t], schedule.alphas[t]
    prior_precision, seen_precision = 1 / (1 - bar), alpha / beta
    mean = (prior_precision * bar.sqrt() * clean + seen_precision * x / alpha.sqrt()) / (
        prior_precision + seen_precision
    )
    assert schedule.posterior(x, clean, t).item() == pytest.approx(mean.item(), rel=1e-12)


# Sampling --------------------------------------------------------------------------------------------------------


class Oracle(nn.Module):
    """Knows the one picture there is: the exact ε (or velocity) for it, and which classes it was asked with."""

    def __init__(self, picture, schedule=None, classes=0):
        super().__init__()
        self.picture, self.schedule, self.classes, self.norm = picture, schedule, classes, nn.BatchNorm2d(1)
        self.modes = []

    def forward(self, x, t, c=None):
        self.modes.append(self.training)
        self.norm(x)
        if self.schedule is None:
            return (self.picture - x) / (1 - t.view(-1, 1, 1, 1))
        bar = self.schedule.bars[(t * self.schedule.steps).round().long()].float().view(-1, 1, 1, 1)
        return (x - bar.sqrt() * self.picture) / (1 - bar).sqrt()


@pytest.fixture
def exact(monkeypatch):
    """Float32 networks: bfloat16 has its own test."""
    monkeypatch.setattr(methods, "native_bfloat16", lambda device="cpu": False)


def test_ddpm_with_the_exact_noise_ends_at_the_picture(exact):
    schedule, picture = Schedule(), torch.rand(1, 1, 28, 28)
    start = torch.randn(3, 1, 28, 28)
    steps = list(ddpm_sample(Oracle(picture, schedule), schedule, start, generator=torch.Generator().manual_seed(0)))
    assert len(steps) == 300 and steps[0].t == 299 and steps[-1].t == 0
    assert torch.allclose(steps[-1].x, picture.expand(3, -1, -1, -1), atol=1e-4)  # no noise in the last step
    assert (steps[-2].x - picture).std() == pytest.approx(schedule.betas[2].sqrt().item(), rel=0.3)


def test_ddpm_is_algorithm_2_written_out(exact):
    """The course's loop over 0-based lists, word by word."""
    net, steps = UNet(4, time=True), 7
    schedule = Schedule(steps=steps, last=0.3)
    betas = torch.linspace(1e-4, 0.3, steps, dtype=torch.float64)
    alphas, bars = 1 - betas, (1 - betas).cumprod(0)
    x = start = torch.randn(2, 1, 28, 28)
    generator = torch.Generator().manual_seed(5)
    net.eval()
    for i in range(steps - 1, -1, -1):
        before = bars[i - 1] if i > 0 else torch.tensor(1.0, dtype=torch.float64)
        with torch.no_grad():
            noise = net(x, torch.full((2,), (i + 1) / steps))
        clean = (x - math.sqrt(1 - bars[i]) * noise) / math.sqrt(bars[i])
        x = (before.sqrt() * betas[i] / (1 - bars[i])).item() * clean + (
            alphas[i].sqrt() * (1 - before) / (1 - bars[i])
        ).item() * x
        if i > 0:
            x = x + math.sqrt(betas[i]) * torch.randn(x.shape, generator=generator)
    end = last(ddpm_sample(net, schedule, start, generator=torch.Generator().manual_seed(5)))
    assert torch.allclose(end.x, x, atol=1e-5)


def test_flow_with_the_exact_velocity_ends_at_the_picture(exact):
    picture = torch.rand(1, 1, 28, 28)
    end = last(flow_sample(Oracle(picture), torch.randn(2, 1, 28, 28), steps=9))
    assert end.t == 1 and end.total == 9
    assert torch.allclose(end.x, picture.expand(2, -1, -1, -1), atol=1e-5)


def test_sampling_is_in_eval_mode_and_leaves_the_network_as_it_was(exact):
    schedule = Schedule(steps=4)
    net = Oracle(torch.rand(1, 1, 28, 28), schedule).train()
    last(ddpm_sample(net, schedule, torch.randn(2, 1, 28, 28)))
    assert net.training and net.modes == [False] * 4
    assert net.norm.num_batches_tracked == 0


@pytest.mark.parametrize("gamma", [0.0, 1.0, 5.0])
def test_guidance_is_the_formula(exact, gamma):
    net = UNet(4, time=True, classes=10).eval()
    x, labels = torch.randn(4, 1, 28, 28), torch.tensor([3, 1, 4, 1])
    with torch.no_grad():
        t = torch.full((4,), 0.3)
        free, bound = net(x, t, torch.zeros(4, 10)), net(x, t, torch.eye(10)[labels])
    assert torch.allclose(guided(net, x, 0.3, labels, gamma), free + gamma * (bound - free), atol=1e-5)
    assert torch.allclose(guided(net, x, 0.3, None, gamma), free, atol=1e-6)  # no labels: no class, whatever γ


def test_classes_are_dropped_one_by_one(generator):
    net, labels = UNet(4, time=True, classes=10), torch.arange(10).repeat(200)
    c = methods.conditions(net, labels, 0.1, generator)
    dropped = c.sum(1) == 0
    assert 0.07 < dropped.float().mean() < 0.13
    assert torch.equal(c[~dropped].argmax(1), labels[~dropped]) and (c.sum(1) <= 1).all()


class Recorder(nn.Module):
    """Answers with zeros and remembers what it was asked."""

    time, classes = True, 0

    def forward(self, x, t=None, c=None):
        self.asked = (x, t)
        return torch.zeros_like(x)


def test_losses_are_the_formulas():
    """Of a network that answers 0 the loss is the mean square of the target; what it saw is put together again."""
    clean, labels, net = torch.rand(64, 1, 28, 28), torch.zeros(64, dtype=torch.long), Recorder()
    draw = lambda: torch.Generator().manual_seed(9)  # noqa: E731
    noise = torch.randn(clean.shape, generator=draw())
    assert methods.denoising_loss(net, clean, 0.5, draw()) == clean.square().mean()
    assert torch.allclose(net.asked[0], clean + 0.5 * noise)
    methods.denoising_loss(net, clean, None, draw())
    assert torch.equal(net.asked[0], noise)
    schedule = Schedule()
    assert methods.ddpm_loss(net, clean, labels, schedule, 0.1, draw()) == pytest.approx(noise.square().mean().item())
    x, t = net.asked
    times = (t * 300).round().long()
    assert times.min() >= 1 and times.max() <= 300 and torch.equal(x, schedule.diffuse(clean, times, noise))
    loss = methods.flow_loss(net, clean, labels, 0.1, draw())
    assert loss == pytest.approx((clean - noise).square().mean().item())
    x, t = net.asked
    assert torch.allclose(x, (1 - t.view(-1, 1, 1, 1)) * noise + t.view(-1, 1, 1, 1) * clean)


def test_times_reach_both_ends(generator):
    net, seen = Recorder(), set()
    for _ in range(40):
        methods.ddpm_loss(net, torch.zeros(64, 1, 28, 28), torch.zeros(64), Schedule(steps=9), 0.1, generator)
        seen |= set((net.asked[1] * 9).round().int().tolist())
    assert seen == set(range(1, 10))
