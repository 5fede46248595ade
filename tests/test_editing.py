"""SDEdit and inpainting on a U-Net of random weights, and the course's stepping against diffusers."""

import math

import diffusers
import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image

from ex4lib.diffusion import editing, schedulers
from ex4lib.diffusion.denoisers import Denoiser, Output, Pixels
from ex4lib.diffusion.guidance import Guidance
from ex4lib.diffusion.pipelines import StyleGuidedStableDiffusionPipeline
from ex4lib.diffusion.process import Level, strided_timesteps
from ex4lib.diffusion.sampling import begin, finish, sample
from experiments.inpainting import inpaint
from experiments.loop_scores import seam_ratio
from experiments.posterior import posterior_mean, posterior_variance
from tests.random_models import save_stable_diffusion


@pytest.fixture(scope="module")
def denoiser():
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16, block_out_channels=(16, 32), down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2, layers_per_block=1, norm_num_groups=8,
    )  # fmt: skip
    return Denoiser(unet.eval().requires_grad_(False), Pixels())


class Oracle:
    """A denoiser that knows the clean picture."""

    embeddings, guidance_scale, dtype = None, 1.0, torch.float32
    space, unet = Pixels(), torch.nn.Identity()

    def __init__(self, clean, scheduler, steps):
        timed = schedulers.timed(scheduler, steps)
        self.clean = clean
        self.levels = {int(t): level for t, level in zip(timed.timesteps, schedulers.levels(timed), strict=True)}

    def __call__(self, x, t):
        level = self.levels[int(t)]
        x = x * math.hypot(level.signal, level.noise)  # what scale_model_input divides by
        return Output((x - level.signal * self.clean) / level.noise)


def ddpm():
    return diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_courses_timesteps():
    steps = strided_timesteps()
    assert len(steps) == 34 and steps[0] == 990 and steps[-1] == 0 and steps[10] == 690
    assert [steps[i] for i in (1, 3, 5, 7, 10, 20)] == [960, 900, 840, 780, 690, 390]
    with pytest.raises(ValueError, match="first must be a positive multiple of stride, got 990 and 40"):
        strided_timesteps(40)


@pytest.mark.parametrize("variance_type", ["fixed_small", "learned_range"])
def test_equation_3_is_the_schedulers_step(variance_type, generator, monkeypatch):
    """Strides, ᾱ ratios and the learned variance, against diffusers to rounding."""
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", clip_sample=False, variance_type=variance_type
    )
    steps = strided_timesteps()
    timed = schedulers.timed(scheduler, steps)
    levels = [*schedulers.levels(timed), Level(1.0, 0.0)]
    x, output, extra, noise = torch.randn(4, 1, 3, 6, 6, generator=generator, dtype=torch.float64)
    extra = extra.tanh()
    whole = torch.cat([output, extra], 1) if variance_type == "learned_range" else output
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: noise)
    for i, t in enumerate(timed.timesteps):
        clean = levels[i].clean(x, output, "epsilon")
        variance = torch.as_tensor(posterior_variance(levels[i], levels[i + 1]), dtype=x.dtype)
        if variance_type == "learned_range":
            variance = schedulers.transition(timed, int(t), 0.0, extra).variance
        expected = posterior_mean(levels[i], levels[i + 1], clean, x) + (variance.sqrt() * noise if t > 0 else 0)
        found = timed.step(whole, t, x).prev_sample
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4)  # diffusers keeps ᾱ in float32


def test_denoising_from_a_late_start_keeps_the_picture(denoiser, picture):
    image = picture(16, 16, dtype=torch.float32)
    distances = []
    for start in (2, 10, 18):
        step, _ = finish(editing.edit(denoiser, ddpm(), image, start=start, steps=20, generator=seeded()))
        distances.append((step.sample_image - image).square().mean().item())
    assert distances == sorted(distances, reverse=True)


#: All end at a clean sample, also PNDM, which by default ends at the level of timestep 0.
SCHEDULERS = {name: schedulers.named(name, diffusers.DDPMScheduler(clip_sample=False)) for name in schedulers.SUPPORTED}
SCHEDULERS["PNDMScheduler"].register_to_config(set_alpha_to_one=True)
SCHEDULERS["PNDMScheduler"].final_alpha_cumprod = torch.tensor(1.0)


@pytest.mark.parametrize("start", [1, 2, 7, 8, 18, 19])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_sdedit_with_an_oracle_returns_the_picture_from_every_start(name, start, picture):
    """Schedulers that run a timestep twice (Heun, PNDM) must not begin in the middle of such a pair."""
    scheduler, image = SCHEDULERS[name], picture(16, 16, dtype=torch.float32)
    oracle = Oracle(2 * image - 1, scheduler, 20)
    if name == "LMSDiscreteScheduler":
        with pytest.raises(ValueError, match="LMSDiscreteScheduler cannot begin late"):
            editing.edit(oracle, scheduler, image, start=start, steps=20, generator=seeded())
        return
    step, _ = finish(editing.edit(oracle, scheduler, image, start=start, steps=20, generator=seeded()))
    atol = 0.03 if name == "DEISMultistepScheduler" else 2e-3  # DEIS ends at the level of timestep 0
    torch.testing.assert_close(step.sample_image, image, atol=atol, rtol=0)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_step_leaves_the_sample_at_the_next_level(name, picture):
    """With an oracle, x = a·x0 + b·ε with ε of deviation 1 after every step, from early and late starts."""
    scheduler, image = SCHEDULERS[name], picture(16, 16, batch=16, dtype=torch.float32)
    oracle = Oracle(2 * image - 1, scheduler, 12)
    for start in (0, 5) if name != "LMSDiscreteScheduler" else (0,):
        timed, _ = begin(scheduler, 12, start, "cpu")
        levels = schedulers.levels(timed)
        for step in editing.edit(oracle, scheduler, image, start=start, steps=12, generator=seeded()):
            if step.index + 1 < len(levels):
                level = levels[step.index + 1]
                noise = (step.sample - level.signal * oracle.clean) / level.noise
                assert noise.std() == pytest.approx(1, abs=0.05), (start, step.index)


def test_the_runge_kutta_steps_of_pndm_have_no_late_start(denoiser, picture):
    with pytest.raises(ValueError, match="PNDMScheduler begins late only without its Runge-Kutta steps"):
        editing.edit(denoiser, diffusers.PNDMScheduler(), picture(16, 16, dtype=torch.float32), start=3)


def test_inpainting_keeps_known_pixels_bit_for_bit_and_draws_the_others(denoiser, picture):
    image = picture(16, 16, dtype=torch.float32)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    loops = [inpaint(denoiser, ddpm(), image, mask, steps=6, generator=seeded(seed)) for seed in (0, 0, 1)]
    first, again, other = (finish(loop)[0].sample_image for loop in loops)
    assert torch.equal(first, again) and not torch.equal(first, other)
    outside = (mask == 0).expand_as(image)
    assert torch.equal(first[outside], image[outside])
    assert (first - image)[~outside].abs().mean() > 0.05


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_known_pixels_are_exact_in_half_precision(name, denoiser, picture):
    half = UNet2DModel.from_config(denoiser.unet.config).to(torch.bfloat16).eval().requires_grad_(False)
    image, mask = picture(16, 16, dtype=torch.float32), torch.zeros(16, 16, dtype=torch.bool)
    mask[4:12, 4:12] = True
    for step in inpaint(Denoiser(half, Pixels()), SCHEDULERS[name], image, mask, steps=4, generator=seeded()):
        for shown in (step.image, step.sample_image):
            assert shown.dtype == torch.float32
            assert torch.equal(shown[..., ~mask], image[..., ~mask]) and (shown - image)[..., mask].abs().max() > 0


def test_every_form_of_a_mask_is_the_same_mask(denoiser, picture):
    image, mask = picture(16, 16, dtype=torch.float32), torch.zeros(1, 1, 16, 16)
    mask[..., 3:9, 5:14] = 1
    byte = (255 * mask).to(torch.uint8)
    forms = [mask, mask.bool(), mask.int(), mask.double(), byte, byte.float(), mask[0, 0], mask.expand(1, 3, 16, 16),
             0.2 + 0.6 * mask, mask[0, 0].numpy().astype(bool), Image.fromarray(byte[0, 0].numpy())]  # fmt: skip
    drawn = [finish(inpaint(denoiser, ddpm(), image, form, steps=2, generator=seeded()))[0].sample for form in forms]
    assert all(torch.equal(sample, drawn[0]) for sample in drawn)
    assert seam_ratio(image, mask) == seam_ratio(image, byte) == seam_ratio(image, mask.bool())


def test_latents_know_their_sizes_and_keep_known_pixels(tmp_path, picture):
    pipe = StyleGuidedStableDiffusionPipeline.from_pretrained(save_stable_diffusion(tmp_path)).to(torch.bfloat16)
    told, mask = pipe.denoiser("a cat", guidance_scale=2.0), torch.zeros(1, 1, 32, 48)
    mask[..., 10:, 11:30] = 1
    image = picture(32, 48, dtype=torch.float32)
    step, _ = finish(inpaint(told, pipe.scheduler, image, mask, steps=2, generator=seeded()))
    known = (mask == 0).expand_as(image)
    assert torch.equal(step.sample_image[known], image[known])
    with pytest.raises(ValueError, match=r"image must have sides that are multiples of 2, got \(32, 47\)"):
        inpaint(told, pipe.scheduler, image[..., :47], mask[..., :47])


def test_a_sample_that_is_not_finite_is_noticed_at_its_step(picture):
    image, scheduler = picture(16, 16, dtype=torch.float32), ddpm()

    class Failing(Oracle):
        def __call__(self, x, t):
            output = super().__call__(x, t)
            return Output(output.prediction * float("nan")) if int(t) < 600 else output

    loop = editing.edit(Failing(2 * image - 1, scheduler, 10), scheduler, image, start=0, steps=10, generator=seeded())
    with pytest.raises(ValueError, match=r"not finite after step 5 of 10 \(timestep 500\)"):
        finish(loop)


def test_numbers_of_numpy_and_torch_are_numbers(denoiser, picture):
    image = picture(16, 16, dtype=torch.float32)
    ends = [
        finish(editing.edit(denoiser, ddpm(), image, start=start, steps=steps, eta=eta, generator=seeded()))[0].sample
        for start, steps, eta in ((5, 8, 0.5), (np.int64(5), torch.tensor(8), np.float32(0.5)))
    ]
    assert torch.equal(*ends)


def test_a_mask_of_ones_is_sampling_from_noise(denoiser, picture):
    """m = 1 regenerates: nothing of the picture is left."""
    mask = torch.ones(1, 1, 16, 16)
    drawn = [
        finish(inpaint(denoiser, ddpm(), image, mask, steps=6, generator=seeded()))[0].sample
        for image in (picture(16, 16, dtype=torch.float32), picture(16, 16, dtype=torch.float32))
    ]
    torch.testing.assert_close(drawn[0], drawn[1])


def test_repeats_make_more_steps_and_need_a_scheduler_without_memory(denoiser, picture, monkeypatch):
    image, mask = picture(16, 16, dtype=torch.float32), torch.ones(1, 1, 16, 16)
    calls = []
    original = Denoiser.__call__
    monkeypatch.setattr(Denoiser, "__call__", lambda *args: calls.append(1) or original(*args))
    steps = list(inpaint(denoiser, ddpm(), image, mask, steps=4, repeats=3, generator=seeded()))
    assert len(steps) == 4 and len(calls) == 12
    with pytest.raises(ValueError, match="repeating steps needs a scheduler without memory"):
        inpaint(denoiser, diffusers.PNDMScheduler(skip_prk_steps=True), image, mask, repeats=2)


def test_noise_between_repeats_keeps_the_level(picture):
    """With an oracle, a sample stays x = a·x0 + b·ε with unit ε however often its step is run."""
    image = picture(16, 16, batch=64, dtype=torch.float32)
    clean, scheduler = 2 * image - 1, ddpm()
    seen = []

    class Watching(Oracle):
        def __call__(self, x, t):
            output = super().__call__(x, t)
            seen.append(output.prediction.std().item())
            return output

    x = editing.noised(Watching(clean, scheduler, 10), scheduler, image, steps=10, start=3, generator=seeded())
    finish(sample(Watching(clean, scheduler, 10), scheduler, x, steps=10, start=3, repeats=4, generator=seeded(1)))
    assert all(abs(deviation - 1) < 0.05 for deviation in seen) and len(seen) == 28


def test_a_style_guides_an_edit(denoiser, picture):
    image, target = picture(16, 16, dtype=torch.float32), picture(16, 16, dtype=torch.float32)
    ends = []
    for scale in (0.0, 0.5):
        loop = editing.edit(
            denoiser, ddpm(), image, start=5, steps=20, generator=seeded(), guidance=Guidance(scale),
            objective=lambda x: (x - target).square().sum((1, 2, 3)),
        )  # fmt: skip
        ends.append((finish(loop)[0].sample_image - target).square().mean())
    assert ends[1] < ends[0]


def test_seam_ratio_sees_a_seam():
    generator = torch.Generator().manual_seed(0)
    image = 0.1 * torch.rand(1, 3, 32, 32, generator=generator)
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    assert seam_ratio(image, mask) == pytest.approx(1, abs=0.15)
    assert seam_ratio(image + 0.5 * mask, mask) > 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda d, x: editing.edit(d, ddpm(), x, start=50, steps=50),
            "start must be at most 49, got 50",
        ),
        (lambda d, x: inpaint(d, ddpm(), x, torch.ones(1, 1, 8, 8)), r"image's size \(16, 16\), got"),
        (lambda d, x: inpaint(d, ddpm(), x, torch.full((1, 1, 16, 16), float("nan"))), "mask must"),
        (lambda d, x: inpaint(d, ddpm(), x, torch.ones(3, 1, 16, 16)), r"image's size \(16, 16\), got"),
        (lambda d, x: editing.edit(d, ddpm(), x + 3, start=5), "image must lie in"),
        (lambda d, x: editing.edit(d, ddpm(), x[..., :15], start=5), "sides that are multiples of 2"),
        (lambda d, x: editing.edit(d, ddpm(), x, start=1.5), "start must be a whole number"),
        (lambda d, x: sample(d, ddpm(), x, eta=3), "eta must be a finite number from 0 to 1, got 3"),
        (lambda d, x: sample(d, ddpm(), x, eta=float("nan")), "eta must be a finite number from 0 to 1, got nan"),
        (lambda d, x: sample(d, ddpm(), x / 0), "x must be finite"),
        (lambda d, x: sample(d, ddpm(), x[0]), r"x must have shape \(B, C, H, W\)"),
        (lambda d, x: sample(d, ddpm(), x, repeats=0), "repeats must be at least 1, got 0"),
        (lambda d, x: sample(d, ddpm(), x, steps=[]), "steps must be falling timesteps, at least one"),
        (lambda d, x: sample(d, ddpm(), x, steps=[10, 20]), "steps must be falling timesteps"),
        (lambda d, x: sample(d, ddpm(), x, steps=[2000, 20]), "each of steps must be at most 999, got 2000"),
        (lambda d, x: sample(d, ddpm(), x, steps=0), "steps must be at least 1, got 0"),
        (lambda d, x: sample(d, ddpm(), x, generator=[seeded()] * 2), "generator must be one, or one for each of 1"),
        (
            lambda d, x: sample(Denoiser(d.unet, Pixels(), embeddings=torch.zeros(2, 3, 4)), ddpm(), x),
            "one picture for each of the 2 prompts",
        ),
    ],
)
def test_wrong_input_is_refused(call, message, denoiser, picture):
    with pytest.raises(ValueError, match=message):
        call(denoiser, picture(16, 16, dtype=torch.float32))
