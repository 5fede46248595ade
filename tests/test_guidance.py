"""Guided steps against closed forms: Gaussians, identities between the methods, finite differences."""

import dataclasses
import itertools
import math

import diffusers
import pytest
import torch
from torch import nn

from ex4lib.diffusion import guidance, schedulers
from ex4lib.diffusion.denoisers import Denoiser, Output, Pixels
from ex4lib.diffusion.guidance import FULL, MEANINGLESS, METHODS, THROUGH, UNITS, Guidance, Situation, guide
from ex4lib.diffusion.process import Level
from ex4lib.diffusion.sampling import finish, sample

D = torch.float64


class Plain:
    """Samples are the images."""

    modules = ()

    def decode(self, clean):
        return clean

    render = decode


class GaussianWorld:
    """x0 ~ N(m, C), y = H x0 + N(0, R): the exact score, the exact log p(y | x_t), the exact posterior of x0.

    It is a denoiser and an objective at once; the objective knows the level of the last prediction.
    """

    embeddings, guidance_scale, dtype = None, 1.0, D
    space, unet = Plain(), nn.Identity()

    def __init__(self, prediction="epsilon", isotropic=False):
        self.prediction = prediction
        self.m = torch.tensor([0.5, -1.0], dtype=D)
        self.C = torch.eye(2, dtype=D) if isotropic else torch.tensor([[0.6, 0.3], [0.3, 0.4]], dtype=D)
        self.H = torch.tensor([[1.0, 0.7]], dtype=D)
        self.R = torch.tensor([[0.3]], dtype=D)
        self.y = torch.tensor([1.2], dtype=D)
        gain = self.C @ self.H.T @ torch.linalg.inv(self.H @ self.C @ self.H.T + self.R)
        self.mean = self.m + gain @ (self.y - self.H @ self.m)
        self.covariance = self.C - gain @ self.H @ self.C

    def __call__(self, x, t):
        level = self.level = self.levels[int(t)]
        a, b = level.signal, level.noise
        marginal = a**2 * self.C + b**2 * torch.eye(2, dtype=D)
        whitened = (x[:, 0, 0] - a * self.m) @ torch.linalg.inv(marginal)
        clean = self.m + a * whitened @ self.C
        noise = b * whitened
        self.uncertainty = self.C - a**2 * self.C @ torch.linalg.inv(marginal) @ self.C
        output = {"epsilon": noise, "v_prediction": a * noise - b * clean, "flow_prediction": noise - clean}
        return Output(output[self.prediction][:, None, None])

    def loss(self, clean):
        """-log p(y | x_t) up to a constant."""
        residual = self.y - clean[:, 0, 0] @ self.H.T
        precision = torch.linalg.inv(self.H @ self.uncertainty @ self.H.T + self.R)
        return 0.5 * ((residual @ precision) * residual).sum(1)

    def at(self, scheduler, steps):
        timed = schedulers.timed(scheduler, steps)
        self.levels = dict(zip(map(int, timed.timesteps.tolist()), schedulers.levels(timed), strict=True))
        return schedulers.levels(timed)[0]


def final_distribution(world, scheduler, steps, settings, eta, monkeypatch):
    """Mean and covariance of the sampler's results, exactly: every step is affine in its sample and its noise.

    One trajectory runs without noise from 0, two from the unit vectors, and two per step with a unit noise there.
    """
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    start = world.at(scheduler, steps)
    count = 3 + 2 * steps
    x = torch.zeros(count, 1, 1, 2, dtype=D)
    x[1, 0, 0, 0] = x[2, 0, 0, 1] = 1
    calls = iter(range(steps))

    def unit_noise(shape, **_):
        noise, step = torch.zeros(shape, dtype=D), next(calls)
        noise[3 + 2 * step, 0, 0, 0] = noise[4 + 2 * step, 0, 0, 1] = 1
        return noise

    for module in ("scheduling_ddpm", "scheduling_ddim"):
        monkeypatch.setattr(f"diffusers.schedulers.{module}.randn_tensor", unit_noise)
    objective = None if settings is None else world.loss
    loop = sample(world, scheduler, x, steps=steps, objective=objective, guidance=settings, eta=eta)
    ends = finish(loop)[0].sample[:, 0, 0]
    columns = (ends - ends[0])[1:]
    first, noises = columns[:2].T, columns[2:]
    a, b = start.signal, start.noise
    mean = ends[0] + first @ (a * world.mean)
    covariance = first @ (a**2 * world.covariance + b**2 * torch.eye(2, dtype=D)) @ first.T + noises.T @ noises
    return mean, covariance


VARIANTS = {
    "mean shift, DDPM": (diffusers.DDPMScheduler, "mean", "epsilon", 1.0, {}),
    "mean shift, large variance": (diffusers.DDPMScheduler, "mean", "epsilon", 1.0, {"variance_type": "fixed_large"}),
    "mean shift, DDIM": (diffusers.DDIMScheduler, "mean", "epsilon", 1.0, {}),
    "noise shift, DDPM": (diffusers.DDPMScheduler, "noise", "epsilon", 1.0, {}),
    "noise shift, DDIM, eta 0": (diffusers.DDIMScheduler, "noise", "epsilon", 0.0, {}),
    "noise shift, DDIM, eta 1": (diffusers.DDIMScheduler, "noise", "epsilon", 1.0, {}),
    "noise shift, v-prediction": (diffusers.DDIMScheduler, "noise", "v_prediction", 0.0, {}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_exact_guidance_at_scale_1_samples_the_exact_posterior(variant, monkeypatch):
    cls, method, prediction, eta, options = VARIANTS[variant]
    world = GaussianWorld(prediction)
    errors = []
    for steps in (50, 200, 1000):
        scheduler = cls(prediction_type=prediction, clip_sample=False, **options)
        settings = Guidance(scale=1.0, method=method, unit="raw")
        mean, covariance = final_distribution(world, scheduler, steps, settings, eta, monkeypatch)
        errors.append(max((mean - world.mean).abs().max().item(), (covariance - world.covariance).abs().max().item()))
    assert errors[2] < 0.006
    for coarse, fine, factor in ((errors[0], errors[1], 4), (errors[1], errors[2], 5)):
        assert coarse / fine > 0.6 * factor, errors  # about as 1 / steps


def test_exact_guidance_of_a_rectified_flow_samples_the_exact_posterior():
    """Euler steps along the shifted velocity, in float64, from σ = 0.95, below which a flow is guided.

    The first sample is of the posterior's marginal there, so that the error is that of the guided steps alone.
    """
    world, errors = GaussianWorld("flow_prediction"), []
    for steps in (50, 200, 800):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(steps)
        levels = schedulers.levels(scheduler)
        start = next(i for i, level in enumerate(levels) if schedulers.is_guidable(level, "flow_prediction"))
        a, b = levels[start].signal, levels[start].noise
        x = torch.zeros(3, 1, 1, 2, dtype=D)
        x[1, 0, 0, 0] = x[2, 0, 0, 1] = 1
        sigmas = scheduler.sigmas.double()
        for index in range(start, steps):
            t = scheduler.timesteps[index]
            world.levels = {int(t): levels[index]}
            shifted = guide(situated(world, scheduler, x, t, levels[index]), Guidance(1.0, "noise", "raw")).prediction
            x = x + (sigmas[index + 1] - sigmas[index]) * shifted
        ends = x[:, 0, 0]
        linear = (ends - ends[0])[1:].T
        mean = ends[0] + linear @ (a * world.mean)
        covariance = linear @ (a**2 * world.covariance + b**2 * torch.eye(2, dtype=D)) @ linear.T
        errors.append(max((mean - world.mean).abs().max().item(), (covariance - world.covariance).abs().max().item()))
    assert errors[2] < 0.006
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine > 0.6 * 4, errors  # about as 1 / steps


def test_without_guidance_the_gaussian_sampler_misses_the_posterior(monkeypatch):
    world = GaussianWorld()
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    mean, _ = final_distribution(world, scheduler, 50, None, 0.0, monkeypatch)
    assert (mean - world.mean).abs().max() > 0.3


def situated(model, scheduler, x, t, level, eta=0.0):
    """A `Situation` as the loops make it, of a model that is called here."""
    leaf = x.clone().requires_grad_()
    with torch.enable_grad():
        output = model(leaf, t).prediction
    return Situation(
        scheduler, level, int(t), x, output.detach(), model.loss,
        lambda cotangent: torch.autograd.grad(output, leaf, cotangent, retain_graph=True)[0], eta=eta,
    )  # fmt: skip


def situation(scheduler, steps, index, x, world, eta=0.0):
    world.at(scheduler, steps)
    timed = schedulers.timed(scheduler, steps)
    return situated(world, timed, x, timed.timesteps[index], schedulers.levels(timed)[index], eta)


@pytest.fixture
def points(generator):
    return torch.randn(3, 1, 1, 2, generator=generator, dtype=D)


@pytest.mark.parametrize("unit", ["raw", "noise"])
def test_the_clean_method_is_exact_for_unit_variance(points, unit):
    """Where Cov[x0 | x] = (1-ᾱ) I, leaving out the U-Net's Jacobian changes nothing but the reason."""
    here = situation(diffusers.DDIMScheduler(clip_sample=False), 20, 7, points, GaussianWorld(isotropic=True))
    full, clean = (guide(here, Guidance(0.5, method, unit), 1.0) for method in ("noise", "clean"))
    torch.testing.assert_close(full.prediction, clean.prediction)


def test_a_mean_shift_is_the_noise_shift_of_the_design(points):
    scheduler = diffusers.DDPMScheduler(clip_sample=False)
    here = situation(scheduler, 20, 7, points, GaussianWorld())
    mean, noise = (guide(here, Guidance(1.0, method, "raw"), 1.0) for method in ("mean", "noise"))
    step = schedulers.transition(here.scheduler, int(here.timestep), 0.0)
    now, then = schedulers.alpha_bars(here.scheduler, int(here.timestep))
    alpha, b = now / then, here.level.noise
    g = (noise.prediction - here.prediction) / b
    torch.testing.assert_close(mean.prediction - here.prediction, step.variance * alpha**0.5 * b / (1 - alpha) * g)


@pytest.mark.parametrize("method", [method for method in METHODS if (method, "noise") not in MEANINGLESS])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_scale_is_the_rms_of_the_shift_in_units_of_the_predicted_noise(method, prediction, points):
    scheduler = diffusers.DDPMScheduler(prediction_type=prediction, clip_sample=False)
    here = situation(scheduler, 20, 5, points, GaussianWorld(prediction))
    found = guide(here, Guidance((0.2, 0.0, 0.7), method), 1.0)
    before, after = (here.level.noise_of(points, each, prediction) for each in (here.prediction, found.prediction))
    ratio = (after - before).square().mean((1, 2, 3)).sqrt() / before.square().mean((1, 2, 3)).sqrt()
    expected = torch.tensor([0.2, 0.0, 0.7], dtype=D)
    if method == "both":  # two directions of half the scale each
        assert (ratio <= expected + 1e-9).all() and (ratio >= 0.3 * expected).all()
    else:
        torch.testing.assert_close(ratio, expected)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "noisy"])
def test_a_small_shift_lowers_the_loss(method, points):
    here = situation(diffusers.DDPMScheduler(clip_sample=False), 20, 12, points, GaussianWorld())
    raw = (method, "noise") in MEANINGLESS
    found = guide(here, Guidance(0.01, method, "raw" if raw else "noise"), 1.0)
    assert (here.loss(found.clean) < found.shift.loss).all()
    moved = found.clean - here.level.clean(points, here.prediction, "epsilon")
    torch.testing.assert_close(found.movement, moved.square().mean((1, 2, 3)).sqrt())


class Curved:
    """A nonlinear denoiser and loss, to differentiate."""

    embeddings, guidance_scale, dtype = None, 1.0, D
    space, unet = Plain(), nn.Identity()

    def __call__(self, x, t):
        return Output(torch.tanh(1.3 * x) + 0.2 * x.flip(-1) ** 2)

    @staticmethod
    def loss(clean):
        return (clean.sin() * clean.roll(1, -1)).square().sum((1, 2, 3))


def test_the_full_gradient_agrees_with_finite_differences(points):
    model, level = Curved(), Level.preserving(0.4)
    scheduler = schedulers.timed(diffusers.DDIMScheduler(clip_sample=False), 10)
    here = situated(model, scheduler, points, scheduler.timesteps[3], level)
    found = guide(here, Guidance(1.0, "noise", "raw"), 1.0)
    gradient = (found.prediction - here.prediction) / level.noise
    step = 1e-6
    for i in range(points[0].numel()):
        nudge = torch.zeros_like(points).flatten(1)
        nudge[:, i] = step
        nudge = nudge.view_as(points)
        up, down = (
            model.loss(level.clean(points + sign * nudge, model(points + sign * nudge, None).prediction, "epsilon"))
            for sign in (1, -1)
        )
        torch.testing.assert_close(gradient.flatten(1)[:, i], (up - down) / (2 * step), rtol=1e-5, atol=1e-7)


def test_inner_iterations_follow_the_loss_further_than_one_long_step(points):
    model, level = Curved(), Level.preserving(0.4)
    scheduler = schedulers.timed(diffusers.DDIMScheduler(clip_sample=False), 10)
    here = situated(model, scheduler, points, scheduler.timesteps[3], level)
    ends = [model.loss(guide(here, Guidance(1.0, "clean", inner=inner), 1.0).clean).sum() for inner in (1, 8)]
    assert ends[1] < ends[0]


def test_a_gradient_that_is_not_finite_is_skipped_for_its_image_only(points):
    world = GaussianWorld()
    here = situation(diffusers.DDIMScheduler(clip_sample=False), 20, 7, points, world)

    def broken(clean):
        return world.loss(clean) * torch.tensor([1.0, math.nan, 1.0], dtype=D)

    found = guide(dataclasses.replace(here, loss=broken), Guidance(0.5), 1.0)
    assert found.shift.skipped.tolist() == [False, True, False]
    moved = (found.prediction - here.prediction).abs().sum((1, 2, 3)) > 0
    assert moved.tolist() == [True, False, True]
    assert found.prediction.isfinite().all()


def test_clipping_first_leaves_the_whole_shift(points):
    scheduler = diffusers.DDIMScheduler(clip_sample=True, clip_sample_range=0.3)
    here = situation(scheduler, 20, 15, points, GaussianWorld())
    found = guide(here, Guidance(0.5, clipping="first"), 1.0)
    plain = here.level.clean(points, here.prediction, "epsilon")
    assert (plain.abs() > 0.3).any()
    torch.testing.assert_close((found.clean - plain.clamp(-0.3, 0.3)).square().mean((1, 2, 3)).sqrt(), found.movement)
    torch.testing.assert_close(here.level.clean(points, found.prediction, "epsilon"), found.clean)


def test_ramps_and_window():
    strengths = [Guidance(window=(0.2, 1.0), ramp="late").strength(i, 100) for i in range(100)]
    assert strengths == [0.0] * 20 + [1.0] * 30 + [1.5] * 50
    rising = [Guidance(window=(0.5, 1.0), ramp="rising").strength(i, 1000) for i in range(500, 1000)]
    assert rising == sorted(rising) and abs(sum(rising) / 500 - 1) < 0.01
    assert not Guidance(window=(0.4, 0.4)).is_on and not Guidance(scale=0).is_on


def test_presets_are_what_their_papers_code_does():
    assert [guidance.FREEDOM.strength(i, 100) > 0 for i in range(100)] == [30 <= i < 70 for i in range(100)]
    assert [guidance.FREEDOM.runs(i, 100) for i in range(100)] == [3 if 30 <= i < 60 else 1 for i in range(100)]
    assert [guidance.MPGD.strength(i, 100) > 0 for i in range(100)] == [30 <= i < 70 for i in range(100)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": -1.0}, "style_scale must be a finite number from 0 to 1000, got -1.0"),
        ({"scale": math.nan}, "style_scale must be a finite number"),
        ({"method": "magic"}, "method must be noise, mean"),
        ({"unit": "metre"}, "unit must be noise, raw or"),
        ({"ramp": "steep"}, "ramp must be constant"),
        ({"window": (0.8, 0.2)}, "window must be fractions"),
        ({"recurrence": 0}, "recurrence must be at least 1, got 0"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"inner": 2}, "inner iterations belong to the methods clean and both, got method 'noise'"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("unit", UNITS)
def test_no_two_combinations_of_method_and_unit_are_the_same(method, unit, points):
    """Those that are accepted shift a prediction in different ways; the others are refused."""
    if (method, unit) in MEANINGLESS:
        with pytest.raises(ValueError, match=f"method '{method}' has the unit raw.*, got '{unit}'"):
            Guidance(method=method, unit=unit)
        return
    scheduler = schedulers.timed(diffusers.DDPMScheduler(clip_sample=False), 10)
    here = situated(Curved(), scheduler, points, scheduler.timesteps[3], Level.preserving(0.4))
    here = dataclasses.replace(here, correction=0.3 * points)
    shifts = {
        pair: guide(here, Guidance(0.5, *pair)).shift.noise
        for pair in [(m, u) for m in METHODS for u in UNITS if (m, u) not in MEANINGLESS]
    }
    mine = shifts.pop((method, unit))
    assert not any(torch.allclose(mine, other, rtol=1e-6) for other in shifts.values())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("clip", [False, True])
def test_as_the_scale_goes_to_0_the_prediction_goes_to_the_networks(method, clip, points):
    scheduler = diffusers.DDPMScheduler(clip_sample=clip, clip_sample_range=0.3)
    here = situation(scheduler, 20, 15, points, GaussianWorld())
    unit = "raw" if (method, "noise") in MEANINGLESS else "noise"
    found = guide(here, Guidance(1e-9, method, unit))
    torch.testing.assert_close(found.prediction, here.prediction, atol=1e-7, rtol=0)
    torch.testing.assert_close(found.clean, schedulers.clip(scheduler, here.clean), atol=1e-6, rtol=0)


def test_every_second_step_of_the_window_is_guided():
    strengths = [Guidance(window=(0.25, 0.75), every=2).strength(i, 20) for i in range(20)]
    assert [i for i, strength in enumerate(strengths) if strength] == [5, 7, 9, 11, 13]


def test_only_methods_through_the_network_ask_for_its_gradient(points):
    here = situation(diffusers.DDPMScheduler(clip_sample=False), 20, 7, points, GaussianWorld())
    calls = []
    here = dataclasses.replace(here, pull=lambda cotangent: calls.append(1) or cotangent)
    for method in METHODS:
        calls.clear()
        guide(here, Guidance(0.5, method, "raw"))
        assert len(calls) == (method in THROUGH)


@pytest.mark.parametrize("scale", ["0.5", "5", True, {}, {0.5: 1}, [], ["a"], math.nan, object()])
def test_a_scale_that_is_no_number_is_refused_by_name(scale):
    with pytest.raises(ValueError, match="style_scale must be"):
        guidance.settings(style_scale=scale)


@pytest.mark.parametrize("given", [None, {"scale": 0.5}, 0.5, "fredom"])
def test_a_guidance_that_is_none_is_refused_by_name(given):
    with pytest.raises(ValueError, match=r"guidance must be a Guidance or one of default, .*, got "):
        guidance.settings(given, style_scale=0.5)


def test_scales_are_one_number_or_several():
    scales = [guidance.settings(style_scale=s).scale for s in (1, torch.tensor(0.5), [0.5], torch.tensor([0.5, 1.0]))]
    assert scales == [1.0, 0.5, (0.5,), (0.5, 1.0)]
    assert guidance.settings(in_pixels=True) is not guidance.settings("full", in_pixels=True)
    assert guidance.settings(in_pixels=True) == guidance.IN_PIXELS and guidance.settings() == guidance.DEFAULT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": torch.sum}, "objective has no effect without a guidance"),
        (
            {"objective": "hokusai-great-wave", "guidance": FULL},
            "guidance needs an objective, images .* got 'hokusai-great-wave'",
        ),
        ({"objective": torch.sum, "guidance": "fredom"}, "guidance must be a Guidance or one of default"),
        ({"guidance": "full"}, "guidance needs an objective"),
    ],
)
def test_the_loop_refuses_what_it_would_ignore(options, message, points):
    world, scheduler = GaussianWorld(), diffusers.DDIMScheduler(clip_sample=False)
    with pytest.raises(ValueError, match=message):
        sample(world, scheduler, points, steps=4, **options)


@pytest.mark.parametrize(("name", "same"), [("full", FULL), ("default", guidance.IN_PIXELS)])
def test_the_loop_takes_a_guidance_by_name(name, same, points):
    world, scheduler = GaussianWorld(), diffusers.DDIMScheduler(clip_sample=False)
    world.at(scheduler, 4)
    world.space = Pixels()
    found, expected = (
        finish(sample(world, scheduler, points, steps=4, objective=world.loss, guidance=given))[0].sample
        for given in (name, same)
    )
    assert torch.equal(found, expected) and not torch.equal(found, points)


@pytest.mark.parametrize("scale", ["x", math.nan, True, None])
def test_a_guidance_scale_that_is_no_number_is_refused(scale):
    with pytest.raises(ValueError, match="guidance_scale must be a finite number"):
        Denoiser(nn.Identity(), None, guidance_scale=scale)
