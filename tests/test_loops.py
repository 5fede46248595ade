"""Stored runs of the loops on random weights: each is the library's loop, kept with every pixel, computed once."""

import diffusers
import pytest
import torch

from ex4lib.diffusion import editing
from ex4lib.diffusion.guidance import Guidance
from ex4lib.diffusion.pipelines import StyleGuidedStableDiffusionPipeline, StyleObjective
from ex4lib.diffusion.pixel import pixel_model
from ex4lib.diffusion.process import Level
from ex4lib.diffusion.sampling import finish, sample
from experiments import illusions, loops, metrics
from experiments.drawings import stack
from experiments.illusions import Hybrid
from experiments.inpainting import inpaint
from experiments.loop_scores import seam_ratio
from experiments.upsampling import upsampler
from tests.random_models import random_network, save_deepfloyd, save_pixel, save_stable_diffusion, save_upsampler

STEPS = (900, 600, 300, 0)
LEVELS = 2.5 / 255  # what JPEG and 8 bits leave of a pixel


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return pixel_model(str(save_pixel(tmp_path_factory.mktemp("pixel") / "model")))


@pytest.fixture(scope="module")
def deepfloyd(tmp_path_factory):
    return pixel_model(str(save_deepfloyd(tmp_path_factory.mktemp("deepfloyd") / "model")))


@pytest.fixture(scope="module")
def vgg():
    return random_network("vgg16", channels=(64, 128, 256, 512, 512)).float()  # the widths that LPIPS knows


@pytest.fixture
def image(picture):
    return picture(16, 16, dtype=torch.float32)


@pytest.fixture
def mask():
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    return mask


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def pictures(run):
    return stack(loops.native(run))


def test_a_drawing_is_the_stock_pipelines(deepfloyd):
    """DeepFloyd's own pipeline with the same timesteps, prompt and noise, its learned variance and thresholding too."""
    run = loops.looped(deepfloyd, loops.Prompt("a cat", 3.0), [5], steps=STEPS)
    stock = diffusers.IFPipeline(
        tokenizer=None, text_encoder=None, unet=deepfloyd.unet, scheduler=deepfloyd.scheduler, safety_checker=None,
        feature_extractor=None, watermarker=None, requires_safety_checker=False,
    )  # fmt: skip
    stock.set_progress_bar_config(disable=True)
    expected = stock(
        prompt_embeds=deepfloyd.encode(["a cat"]), negative_prompt_embeds=deepfloyd.encode([""]), timesteps=list(STEPS),
        guidance_scale=3.0, generator=seeded(5), output_type="pt",
    ).images / 2 + 0.5  # fmt: skip
    torch.testing.assert_close(pictures(run), expected.clamp(0, 1), atol=LEVELS, rtol=0)


def test_seeds_do_not_depend_on_each_other_nor_on_the_batch(model, image, mask):
    for call in ({}, {"picture": image, "start": 1}, {"picture": image, "mask": mask, "repeats": 2}):
        run = loops.looped(model, loops.Prompt("a cat"), [3, 4, 5], steps=STEPS, batch=2, **call)
        alone = loops.looped(model, loops.Prompt("a cat"), [4], steps=STEPS, **call)
        torch.testing.assert_close(pictures(run)[1:2], pictures(alone), atol=LEVELS, rtol=0)
        assert (pictures(run)[0] - pictures(run)[1]).abs().max() > 10 * LEVELS


def told_by_hand(model, prompt):
    return model.denoiser(prompt, guidance_scale=4.0)


@pytest.mark.parametrize(
    ("told", "by_hand"),
    [
        (loops.Prompt("a cat", 4.0), lambda m: told_by_hand(m, "a cat")),
        (
            loops.TwoViews(("a cat", "a dog"), ("identity", "colour negation"), 4.0),
            lambda m: illusions.Anagram(
                [told_by_hand(m, "a cat"), told_by_hand(m, "a dog")], [illusions.IDENTITY, illusions.NEGATION]
            ),
        ),
        (
            loops.TwoDistances("a cat", "a dog", 4.0, sigma=0.7),
            lambda m: Hybrid(told_by_hand(m, "a cat"), told_by_hand(m, "a dog"), sigma=0.7),
        ),
    ],
    ids=["prompt", "anagram", "hybrid"],
)
def test_a_run_is_the_loop_of_what_it_is_told(model, told, by_hand):
    generator = seeded(1)
    step, _ = finish(
        sample(by_hand(model), model.scheduler, model.noise(1, generator), steps=STEPS, generator=generator)
    )
    run = loops.looped(model, told, [1], steps=STEPS)
    torch.testing.assert_close(pictures(run), step.sample_image, atol=LEVELS, rtol=0)


def test_edits_are_the_editing_loops(model, image, mask):
    told, call = loops.Prompt("a cat"), {"picture": image, "steps": STEPS}
    denoiser, common = model.denoiser("a cat"), (model.scheduler, image)
    step, _ = finish(editing.edit(denoiser, *common, start=2, steps=STEPS, generator=seeded(1)))
    run = loops.looped(model, told, [1], start=2, **call)
    torch.testing.assert_close(pictures(run), step.sample_image, atol=LEVELS, rtol=0)
    step, _ = finish(inpaint(denoiser, *common, mask, steps=STEPS, repeats=3, generator=seeded(1)))
    run = loops.looped(model, told, [1], mask=mask, repeats=3, **call)
    torch.testing.assert_close(pictures(run), step.sample_image, atol=LEVELS, rtol=0)
    assert run.values["known_error"] == [0]
    assert run.values["seams"] == [pytest.approx(seam_ratio(step.sample_image, mask), rel=1e-4)]


def test_a_mask_of_ones_has_no_seam_and_regenerates(model, image):
    run = loops.looped(model, loops.Prompt("a cat"), [1], picture=image, mask=torch.ones(1, 1, 16, 16), steps=STEPS)
    other = loops.looped(
        model, loops.Prompt("a cat"), [1], picture=1 - image, mask=torch.ones(1, 1, 16, 16), steps=STEPS
    )
    assert run.values == {"size": 16, "seams": [None], "known_error": [0]}
    assert torch.equal(pictures(run), pictures(other)) and not torch.equal(pictures(run), image)


@pytest.mark.parametrize(
    "told",
    [loops.Prompt("a cat"), loops.TwoViews(("a cat", "a dog")), loops.TwoDistances("a cat", "a dog")],
    ids=["prompt", "anagram", "hybrid"],
)
def test_a_painting_steers_whatever_is_told(model, told, picture):
    style, network = picture(48, 48, dtype=torch.float32), random_network("vgg16").float()
    objective = StyleObjective(network, [style], (16, 16))
    runs = [
        loops.looped(model, told, [0, 1], steps=STEPS, style=style, guidance=Guidance(scale), features=network)
        for scale in (0.0, 0.5)
    ]
    before, after = (objective(pictures(run)).mean() for run in runs)
    assert after < before
    plain = loops.looped(model, told, [0, 1], steps=STEPS)
    assert plain.provenance == runs[0].provenance  # scale 0 is the run without a style


def test_latents_take_the_pixels_place(tmp_path):
    pipe = StyleGuidedStableDiffusionPipeline.from_pretrained(save_stable_diffusion(tmp_path))
    pipe.set_progress_bar_config(disable=True)
    run = loops.looped(pipe, loops.Prompt("a cat", 4.0), [2], steps=3)
    expected = pipe("a cat", guidance_scale=4.0, num_inference_steps=3, generator=seeded(2), output_type="pt").images
    torch.testing.assert_close(pictures(run), expected, atol=LEVELS, rtol=0)


def test_finished_runs_are_not_computed_again(deepfloyd, vgg, image, monkeypatch, tmp_path):
    second = upsampler(deepfloyd, str(save_upsampler(tmp_path / "second")))

    def everything():
        run = loops.looped(deepfloyd, loops.Prompt("a cat"), [0], steps=STEPS, picture=image, start=1)
        study = loops.denoised(deepfloyd, vgg, image, [500], steps=STEPS)
        return run, study, loops.upsampled(second, run, "a cat", steps=2), loops.compared(vgg, run, image)

    *first, near = everything()
    for name in ("finish", "fidelity"):
        monkeypatch.setattr(loops, name, lambda *_, **__: pytest.fail("computed again"))
    monkeypatch.setattr(type(second), "__call__", lambda *_, **__: pytest.fail("computed again"))
    *again, near_again = everything()
    assert near == near_again
    for run, other in zip(first, again, strict=True):
        assert run.values == other.values and run.pictures.keys() == other.pictures.keys()
        assert all(torch.equal(picture, other.pictures[name]) for name, picture in run.pictures.items())


def test_denoising_against_explicit_formulas(model, vgg, picture):
    """Equation 2 forwards, equation 2 solved for x0, and equation 3 by diffusers' own scheduler."""
    images, t = picture(16, 16, batch=2, dtype=torch.float32), 500
    run = loops.denoised(model, vgg, images, [100, t], steps=STEPS, prompt="a cat", seed=4)
    scheduler = diffusers.DDPMScheduler.from_config(model.scheduler.config)
    alpha, generator = scheduler.alphas_cumprod[t], seeded(4)
    x = alpha.sqrt() * (2 * images - 1) + (1 - alpha).sqrt() * torch.randn(images.shape, generator=generator)
    told = {"encoder_hidden_states": model.encode(["a cat"] * 2)}
    with torch.no_grad():
        one_step = (x - (1 - alpha).sqrt() * model.unet(x, t, **told).sample) / alpha.sqrt()
        expected = {"noisy": x, "one-step": one_step, "iterative": x}
        scheduler.set_timesteps(timesteps=[500, 300, 0])
        for step in scheduler.timesteps:
            noise = model.unet(expected["iterative"], step, **told).sample
            expected["iterative"] = scheduler.step(noise, step, expected["iterative"], generator=generator).prev_sample
    for method, sample_found in expected.items():
        shown = (sample_found / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(
            run.pictures[f"{method}-{t}"], loops.enlarged(shown[:1]), atol=LEVELS, rtol=0, msg=method
        )
        found = [metrics.psnr(*pair) for pair in zip(shown.split(1), images.split(1), strict=True)]
        assert run.values[method]["psnr"][1] == pytest.approx(found, rel=1e-3)
        assert len(run.values[method]["lpips"]) == len(run.values[method]["ssim"]) == 2


def test_the_best_blur_is_found(picture):
    """Of a picture with little noise the least kernel; of one with much noise a wide one, brightness restored."""
    images = picture(32, 32, batch=2, dtype=torch.float32)
    noise = torch.randn(images.shape, generator=seeded(0))
    found = {}
    for alpha_bar in (0.999, 0.3):
        level = Level.preserving(alpha_bar)
        found[alpha_bar] = loops._best_blur(level.diffuse(2 * images - 1, noise), level.signal, images)
    (_, little), (blurred, much) = found.values()
    assert little["sigma"] < much["sigma"] and much["kernel"] >= 9 and much["divided"]
    noisy = Level.preserving(0.3).diffuse(2 * images - 1, noise) / 2 + 0.5
    assert (blurred - images).square().mean() < 0.3 * (noisy.clamp(0, 1) - images).square().mean()


def test_the_second_stage_is_given_the_pictures_as_they_were_drawn(deepfloyd, tmp_path):
    second = upsampler(deepfloyd, str(save_upsampler(tmp_path / "second")))
    run = loops.looped(deepfloyd, loops.Prompt("a cat"), [3], steps=STEPS)
    large = loops.upsampled(second, run, "a cat", steps=2)
    expected = second(pictures(run), "a cat", steps=2, generator=seeded(3))
    torch.testing.assert_close(large.pictures["3"], expected, atol=0.25, rtol=0)  # JPEG of noise
    assert (large.pictures["3"] - expected).abs().mean() < 0.03


def test_enlarged_pictures_keep_their_pixels(generator):
    image = torch.rand(1, 3, 24, 32, generator=generator)
    large = loops.enlarged(image)
    assert large.shape == (1, 3, 192, 256)
    assert torch.equal(large[..., 4::8, 4::8], image)
    assert torch.equal(loops.enlarged(large, 100), large)


def test_course_timesteps_are_the_default(model):
    run = loops.looped(model, loops.Prompt("a cat"), [0])
    assert run.provenance["config"]["steps"] == list(range(990, -1, -30))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"start": 1}, "start and mask edit a picture, but there is none"),
        ({"mask": torch.ones(1, 1, 16, 16)}, "start and mask edit a picture, but there is none"),
        ({"guidance": Guidance(0.3)}, "guidance needs a style and the features that see it"),
    ],
)
def test_wrong_input_is_refused(call, message, model):
    with pytest.raises(ValueError, match=message):
        loops.looped(model, loops.Prompt("a cat"), [0], steps=STEPS, **call)
