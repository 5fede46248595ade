"""Gradients of score distillation against their formulas, coefficients against closed forms, signs against a wish."""

import itertools

import diffusers
import peft
import pytest
import torch
from diffusers import UNet2DConditionModel

from ex4lib.diffusion.denoisers import Denoiser, Output, Pixels
from ex4lib.diffusion.pipelines import StyleGuidedStableDiffusionPipeline
from ex4lib.diffusion.process import Level
from ex4lib.optimisation import PATIENCE
from experiments.assignment import distil_prompt, split_options
from experiments.canvases import CoordinateNetwork
from experiments.distillation import loop
from experiments.distillation.loop import Canvas, distil
from experiments.distillation.rules import DDS, PDS, SDS, VSD, Adapter, literal_coefficient, tweedie_coefficients
from experiments.posterior import posterior_mean
from tests.random_models import save_stable_diffusion

D = torch.float64
SCHEDULERS = {
    prediction: diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction, clip_sample=False
    )
    for prediction in ("epsilon", "v_prediction")
}
SCHEDULER = SCHEDULERS["epsilon"]


class Wish:
    """A denoiser that believes in one clean sample."""

    space = Pixels()

    def __init__(self, clean, scheduler=SCHEDULER):
        self.clean, self.scheduler = clean, scheduler

    def __call__(self, x, t):
        level = Level.preserving(float(self.scheduler.alphas_cumprod[int(t)]))
        noise = (x - level.signal * self.clean) / level.noise
        if self.scheduler.config.prediction_type == "v_prediction":
            noise = level.signal * noise - level.noise * self.clean
        return Output(noise)


class Odd:
    """A denoiser that is nothing in particular, but smooth."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x, t):
        return Output(torch.sin(self.factor * x) + 0.1 * x)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def samples():
    return torch.randn(2, 2, 3, 4, 4, generator=seeded(5), dtype=D)


@pytest.mark.parametrize("prediction", SCHEDULERS)
@pytest.mark.parametrize("weight", ["constant", "variance"])
def test_sds_is_its_formula(prediction, weight, samples):
    """With a wish w: ε̂ - z = √ᾱ (x0 - w) / √(1-ᾱ), whatever is predicted."""
    scheduler, (clean, wish) = SCHEDULERS[prediction], samples
    rule = SDS(Wish(wish, scheduler), scheduler, weight)
    for t in (20, 500, 980):
        a = scheduler.alphas_cumprod[t].double()
        expected = (1.0 if weight == "constant" else 1 - a) * (a / (1 - a)).sqrt() * (clean - wish)
        torch.testing.assert_close(rule.gradient(clean, t, seeded()), expected, rtol=1e-5, atol=1e-5)


def test_the_update_is_the_rules_gradient_and_takes_none_through_the_unet(samples):
    clean, _ = samples
    canvas = Canvas(clean)
    weights = torch.nn.Parameter(torch.ones((), dtype=D))

    class Weighted:
        def __call__(self, x, t):
            return Output(weights * torch.tanh(x))

    rule = SDS(Weighted(), SCHEDULER)
    next(distil(rule, canvas, Pixels(), steps=1, warm_up=0, generator=seeded()))
    generator = seeded()
    t = int(torch.randint(20, 981, (), generator=generator))
    torch.testing.assert_close(canvas.sample.grad, rule.gradient(clean, t, generator))
    assert weights.grad is None


@pytest.mark.parametrize("stride", [1, 2])
def test_pds_in_the_tweedie_form_is_psi_and_chi(stride, samples):
    clean, source = samples
    target_net, source_net = Odd(1.3), Odd(0.7)
    rule = PDS(target_net, source_net, source, SCHEDULER, "tweedie", stride)
    for t in (21, 101, 501, 979):
        now = Level.preserving(float(SCHEDULER.alphas_cumprod[t]))
        z = torch.randn(clean.shape, generator=seeded(), dtype=D)
        difference = target_net(now.diffuse(clean, z), t).prediction - source_net(now.diffuse(source, z), t).prediction
        psi, chi = tweedie_coefficients(SCHEDULER, t, stride)
        expected = psi * (clean - source) + chi * difference
        torch.testing.assert_close(rule.gradient(clean, t, seeded()), expected, rtol=1e-6, atol=1e-8)


def test_psi_vanishes_with_consistent_timesteps_and_is_the_published_codes_with_stride_2():
    assert all(abs(tweedie_coefficients(SCHEDULER, t)[0]) < 1e-9 for t in range(20, 981, 40))
    found = [tweedie_coefficients(SCHEDULER, t, 2) for t in (21, 51, 101, 201, 501, 979)]
    assert [psi for psi, _ in found] == pytest.approx([1.61, 0.65, 0.31, 0.14, 0.03, 0.004], rel=0.12)
    assert [chi for _, chi in found] == pytest.approx([0.23, 0.15, 0.12, 0.09, 0.08, 0.11], rel=0.12)
    assert all(chi > 0 for _, chi in found)


def test_the_posterior_mean_behind_it_is_the_process_s(samples):
    clean, noise = samples
    now, then = (Level.preserving(float(SCHEDULER.alphas_cumprod[t])) for t in (300, 299))
    x = now.diffuse(clean, noise)
    alpha = now.alpha_bar / then.alpha_bar
    by_hand = (then.signal * (1 - alpha) * clean + alpha**0.5 * (1 - then.alpha_bar) * x) / (1 - now.alpha_bar)
    torch.testing.assert_close(posterior_mean(now, then, clean, x), by_hand)


def test_pds_in_the_literal_form_is_c_times_the_difference_of_the_noises(samples):
    clean, source = samples
    target_net, source_net = Odd(1.3), Odd(0.7)
    rule = PDS(target_net, source_net, source, SCHEDULER, "literal")
    for t in (20, 400, 979):
        now = Level.preserving(float(SCHEDULER.alphas_cumprod[t]))
        z = torch.randn(clean.shape, generator=seeded(), dtype=D)
        difference = target_net(now.diffuse(clean, z), t).prediction - source_net(now.diffuse(source, z), t).prediction
        c = literal_coefficient(SCHEDULER, t)
        torch.testing.assert_close(rule.gradient(clean, t, seeded()), c * difference, rtol=1e-5, atol=1e-7)
    assert 4 < literal_coefficient(SCHEDULER, 979) < literal_coefficient(SCHEDULER, 400) < 30


RULES = {
    "sds": lambda wish, source: SDS(Wish(wish), SCHEDULER),
    "dds": lambda wish, source: DDS(Wish(wish), Wish(source), source, SCHEDULER),
    "pds": lambda wish, source: PDS(Wish(wish), Wish(source), source, SCHEDULER),
    "pds, stride 2": lambda wish, source: PDS(Wish(wish), Wish(source), source, SCHEDULER, stride=2),
    "pds, literal": lambda wish, source: PDS(Wish(wish), Wish(source), source, SCHEDULER, "literal"),
}


@pytest.mark.parametrize("name", RULES)
def test_every_rule_goes_towards_the_wish(name, samples):
    source, wish = samples
    canvas = Canvas(source)
    distances = [
        (step.clean - wish).square().mean().item()
        for step in distil(RULES[name](wish, source), canvas, Pixels(), steps=60, warm_up=5, generator=seeded())
    ]
    assert distances[-1] < (0.3 if "stride" in name else 0.1) * distances[0]  # ψ > 0 holds on to the source


@pytest.mark.parametrize("name", [name for name in RULES if name != "sds"])
def test_an_edit_to_what_is_there_already_is_none(name, samples):
    source, wish = samples
    rule = RULES[name](wish, source)
    rule.source_denoiser = rule.denoiser
    assert rule.gradient(source, 300, seeded()).abs().max() < 1e-9


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(16, 32), layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12, attention_head_dim=2,
    ).eval()  # fmt: skip


def test_vsd_starts_at_zero_learns_and_leaves_the_unet_as_it_was(unet):
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    told, free, clean = (torch.randn(1, *shape, generator=seeded()) for shape in ((5, 12), (5, 12), (3, 8, 8)))
    plain = VSD(Denoiser(unet, Pixels(), embeddings=told), SCHEDULER)
    assert plain.gradient(clean, 400, seeded()).abs().max() == 0  # an untrained adapter at γ = 1
    for _ in range(5):
        later = plain.gradient(clean, 400, seeded(1))
    assert later.abs().max() > 0
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    guided = VSD(Denoiser(unet, Pixels(), embeddings=told, negative=free, guidance_scale=7.5), SCHEDULER)
    x = Level.preserving(float(SCHEDULER.alphas_cumprod[400])).diffuse(
        clean, torch.randn(clean.shape, generator=seeded())
    )
    output = guided.denoiser(x, 400)
    first = guided.gradient(clean, 400, seeded())
    weight = 1 - float(SCHEDULER.alphas_cumprod[400])
    torch.testing.assert_close(first, weight * 6.5 * output.correction, rtol=1e-3, atol=1e-5)  # γ - 1 of it


def test_a_network_of_coordinates_is_a_canvas_too(samples):
    wish = torch.zeros(1, 3, 8, 8)
    wish[..., 4:] = 1
    canvas = CoordinateNetwork((3, 8, 8))
    steps = list(distil(SDS(Wish(wish), SCHEDULER), canvas, Pixels(), steps=150, learning_rate=0.01, warm_up=5,
                        generator=seeded()))  # fmt: skip
    assert steps[-1].image.shape == (1, 3, 8, 8)
    assert (steps[-1].clean - wish).square().mean() < 0.1 * (steps[0].clean - wish).square().mean()


def test_an_objective_joins_in(samples):
    wish = torch.zeros(1, 3, 8, 8)
    darker = {}
    for weight in (0.0, 300.0):
        loop = distil(SDS(Wish(wish), SCHEDULER), Canvas(wish), Pixels(), steps=40, warm_up=2, generator=seeded(),
                      objective=lambda image: image.square().mean((1, 2, 3)), objective_weight=weight)  # fmt: skip
        darker[weight] = list(loop)[-1].image.mean()
    assert darker[300.0] < darker[0.0] - 0.1


def test_the_same_seed_gives_the_same_picture(samples):
    clean, wish = samples
    ends = [
        list(distil(SDS(Wish(wish), SCHEDULER), Canvas(clean), Pixels(), steps=5, generator=seeded(seed)))[-1].clean
        for seed in (0, 0, 1)
    ]
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_wrong_input_is_refused(samples):
    clean, wish = samples
    rule = SDS(Wish(wish), SCHEDULER)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        distil(rule, Canvas(clean), Pixels(), steps=0)
    with pytest.raises(ValueError, match="t_range must be fractions"):
        distil(rule, Canvas(clean), Pixels(), t_range=(0.9, 0.1))
    with pytest.raises(ValueError, match="form must be tweedie or literal"):
        PDS(Wish(wish), Wish(wish), clean, SCHEDULER, "other")


@pytest.mark.parametrize("loss", ["sds", "dds"])
def test_a_half_precision_pipeline_is_distilled_into_float32(loss, tmp_path):
    """Steps of a thousandth of a latent are below bfloat16's resolution at 1."""
    pipe = StyleGuidedStableDiffusionPipeline.from_pretrained(save_stable_diffusion(tmp_path)).to(torch.bfloat16)
    edit = {"source": torch.rand(1, 3, 32, 32), "source_prompt": "a dog"} if loss == "dds" else {}
    steps = list(distil_prompt(pipe, "a cat", loss=loss, steps=3, learning_rate=1e-3, **edit))
    clean = [step.clean for step in steps]
    assert clean[0].dtype == torch.float32 and (clean[2] != clean[1]).float().mean() > 0.9


@pytest.mark.parametrize("loss", ["sds", "vsd"])
def test_the_learning_rate_is_the_pictures_and_the_adapter_has_its_own(loss, tmp_path):
    pipe = StyleGuidedStableDiffusionPipeline.from_pretrained(save_stable_diffusion(tmp_path))
    still = list(distil_prompt(pipe, "a cat", loss=loss, steps=2, learning_rate=0.0))
    assert torch.equal(still[0].clean, still[1].clean)
    assert split_options("vsd", {"adapter_learning_rate": 0.1, "rank": 2, "learning_rate": 0.2}) == (
        {"adapter_learning_rate": 0.1, "rank": 2},
        {"learning_rate": 0.2},
    )


@pytest.mark.parametrize("form", ["tweedie", "literal"])
@pytest.mark.parametrize("stride", [1, 2])
def test_pds_is_finite_at_its_first_timestep_and_refuses_those_before(form, stride, samples):
    clean, source = samples
    rule = PDS(Odd(1.3), Odd(0.7), source, SCHEDULER, form, stride)
    assert rule.timesteps == range(stride, 1000)
    for t in (stride, 999):
        assert rule.gradient(clean, t, seeded()).isfinite().all()
    for t in range(stride):
        with pytest.raises(ValueError, match=f"timestep must be from {stride} to 999"):
            rule.gradient(clean, t, seeded())
    with pytest.raises(ValueError, match="timestep must be from 1 to 999"):
        literal_coefficient(SCHEDULER, 0)


def test_the_range_of_t_is_limited_where_a_rule_divides_by_zero(samples):
    clean, source = samples
    rule = PDS(Wish(clean), Wish(source), source, SCHEDULER, stride=2)
    with pytest.warns(RuntimeWarning, match="limited to timesteps 2 to 9, at which PDS is finite"):
        loop = distil(rule, Canvas(clean), Pixels(), steps=60, t_range=(0, 0.009), generator=seeded())
    seen = [step.timestep for step in loop]
    assert set(seen) == set(range(2, 10))
    with pytest.raises(ValueError, match="t_range must hold a timestep from 2 to 999"):
        distil(rule, Canvas(clean), Pixels(), t_range=(0, 0.001))
    unlimited = distil(SDS(Wish(clean), SCHEDULER), Canvas(clean), Pixels(), steps=40, t_range=(0, 0.002))
    assert {step.timestep for step in unlimited} == {0, 1, 2}


class Failing:
    """A rule whose gradient is not finite at some updates."""

    scheduler = SCHEDULER

    def __init__(self, failing, value=float("nan")):
        self.failing, self.value, self.calls = failing, value, 0

    def gradient(self, clean, timestep, generator):
        self.calls += 1
        return torch.full_like(clean, self.value if self.calls - 1 in self.failing else 1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_an_update_that_is_not_finite_is_taken_back(value):
    loop = distil(Failing({3, 4}, value), Canvas(torch.zeros(1, 3, 4, 4)), Pixels(), steps=8, warm_up=0)
    with pytest.warns(RuntimeWarning, match="update [45]: 1 of 1 not finite and taken back"):
        steps = list(loop)
    assert [bool(step.note) for step in steps] == [False] * 3 + [True] * 2 + [False] * 3
    assert torch.equal(steps[3].clean, steps[2].clean) and torch.equal(steps[4].clean, steps[2].clean)
    assert all(step.clean.isfinite().all() for step in steps)
    moved = [(after.clean - before.clean).abs().mean() for before, after in itertools.pairwise(steps)]
    assert 0 < moved[4] < 0.5 * moved[1]  # a quarter of the learning rate


def test_too_many_failures_end_the_loop_and_a_failing_start_is_an_error():
    canvas = Canvas(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="not finite at the first update"):
        next(distil(Failing({0}), canvas, Pixels(), steps=5))
    assert torch.equal(canvas.sample, torch.zeros(1, 3, 4, 4))
    with pytest.warns(RuntimeWarning):
        steps = list(distil(Failing(range(2, 100)), canvas, Pixels(), steps=50))
    assert len(steps) == 2 + PATIENCE and canvas.sample.isfinite().all()


def test_failures_are_also_found_when_they_are_read_late(monkeypatch):
    """As on an accelerator: read at every tenth update, but never in the picture."""
    monkeypatch.setattr(loop, "is_due", lambda device, index, total: (index + 1) % 10 == 0)
    with pytest.warns(RuntimeWarning, match="update 10: 2 of 10 not finite"):
        steps = list(distil(Failing({3, 4}), Canvas(torch.zeros(1, 3, 4, 4)), Pixels(), steps=20))
    assert [step.index for step in steps if step.note] == [9] and len(steps) == 20
    assert torch.equal(steps[4].clean, steps[2].clean) and all(step.clean.isfinite().all() for step in steps)


def conditions():
    return (torch.randn(1, *shape, generator=seeded()) for shape in ((5, 12), (3, 8, 8)))


def test_the_adapter_is_the_one_of_peft(unet):
    told, clean = conditions()
    adapter, count = Adapter(unet, rank=3), 0
    for pair in (adapter.down, adapter.up):
        for weight in pair:
            weight.data = torch.randn(weight.shape, generator=seeded(count))
            count += 1
    with adapter.applied():
        ours = unet(clean, 400, told).sample
    plain = unet(clean, 400, told).sample
    assert (ours - plain).abs().max() > 1e-3
    layers = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(peft.LoraConfig(r=3, lora_alpha=3, target_modules=layers), "theirs")
    wrapped = [part for part in unet.modules() if hasattr(part, "lora_A") and "theirs" in part.lora_A]
    for part, down, up in zip(wrapped, adapter.down, adapter.up, strict=True):
        part.lora_A["theirs"].weight.data, part.lora_B["theirs"].weight.data = down.data, up.data
    torch.testing.assert_close(unet(clean, 400, told).sample, ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("ending", ["argument", "never started", "exception", "closed", "end"])
def test_vsd_leaves_a_users_adapter_as_it_was(unet, enabled, ending):
    told, clean = conditions()
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "particles")
    if not enabled:
        unet.disable_adapters()

    def state():
        hooks = {name: len(part._forward_hooks) for name, part in unet.named_modules()}
        flags = {name: parameter.requires_grad for name, parameter in unet.named_parameters()}
        return hooks, flags, {name: value.clone() for name, value in unet.state_dict().items()}

    (hooks, flags, weights), output = state(), unet(clean, 400, told).sample
    denoiser = Denoiser(unet, Pixels(), embeddings=told)
    if ending == "argument":
        with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
            VSD(denoiser, SCHEDULER, rank=0)
    else:
        broken = ending == "exception"
        objective = (lambda image: image.no_such_attribute) if broken else None
        loop = distil(VSD(denoiser, SCHEDULER), Canvas(clean), Pixels(), steps=3, objective=objective)
        if broken:
            with pytest.raises(AttributeError):
                next(loop)
        elif ending == "closed":
            next(loop)
            loop.close()
        elif ending == "end":
            assert len(list(loop)) == 3
    after = state()
    assert after[:2] == (hooks, flags) and after[2].keys() == weights.keys()
    assert all(torch.equal(after[2][name], value) for name, value in weights.items())
    assert torch.equal(unet(clean, 400, told).sample, output)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_adapter_learns_in_float32_on_a_half_precision_network(unet, dtype):
    told, clean = conditions()
    rule = VSD(Denoiser(unet.to(dtype), Pixels(), embeddings=told.to(dtype)), SCHEDULER)
    before = [parameter.clone() for parameter in rule.adapter.parameters()]
    for t in (300, 500, 700):
        assert rule.gradient(clean, t, seeded(t)).isfinite().all()
    for parameter, old in zip(rule.adapter.parameters(), before, strict=True):
        assert parameter.dtype == torch.float32 and parameter.isfinite().all()
        assert (parameter != old).float().mean() > 0.9


def test_a_network_without_attention_has_nothing_to_adapt():
    network = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8,), down_block_types=("DownBlock2D",), norm_num_groups=4,
        up_block_types=("UpBlock2D",), layers_per_block=1, add_attention=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="an adapter needs attention layers, but UNet2DModel has none"):
        VSD(Denoiser(network, Pixels()), SCHEDULER)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number, got nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be a finite number"),
        ({"objective_weight": float("nan")}, "objective_weight must be a finite number"),
        ({"weight": "none"}, "weight must be constant or variance"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"loss": "dds", "source": torch.rand(2, 3, 32, 32), "source_prompt": "a dog"}, "one for each source, got 1"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_computed(options, message, tmp_path):
    pipe = StyleGuidedStableDiffusionPipeline.from_pretrained(save_stable_diffusion(tmp_path))
    with pytest.raises(ValueError, match=message):
        distil_prompt(pipe, "a cat", **options)


def test_a_list_of_prompts_is_a_batch(tmp_path):
    pipe = StyleGuidedStableDiffusionPipeline.from_pretrained(save_stable_diffusion(tmp_path))
    (step,) = distil_prompt(pipe, ["a cat", "a dog"], steps=1)
    assert step.image.shape == (2, 3, 32, 32)


@pytest.mark.parametrize("loss", ["sds", "dds", "pds"])
def test_an_update_reads_nothing_from_the_device(loss, samples, monkeypatch):
    """Tensors on "meta" have no values: reading one, or mixing it with another device's, is an error."""
    plain = torch.optim.AdamW  # the fused one has no kernel for "meta"
    monkeypatch.setattr(torch.optim, "AdamW", lambda parameters, fused, **options: plain(parameters, **options))
    clean, source = samples
    net, other = Odd(1.3), Odd(0.7)
    rule = {"sds": lambda: SDS(net, SCHEDULER), "dds": lambda: DDS(net, other, source, SCHEDULER),
            "pds": lambda: PDS(net, other, source, SCHEDULER)}[loss]()  # fmt: skip
    loop = distil(rule, Canvas(clean).to("meta"), Pixels(), steps=30, generator=seeded(),
                  objective=lambda image: image.square().mean((1, 2, 3)))  # fmt: skip
    steps = [next(loop) for _ in range(3)]
    assert all(step.clean.device.type == step.image.device.type == "meta" for step in steps)
    with pytest.raises(RuntimeError):
        _ = steps[0].gradient_rms
