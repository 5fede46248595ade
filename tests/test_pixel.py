"""Text to image in pixels: one face for DeepFloyd's classes and for the embedded model's folder."""

import dataclasses

import diffusers
import pytest
import torch

from ex4lib import images, models
from ex4lib.diffusion.guidance import Guidance
from ex4lib.diffusion.pixel import pixel_model
from ex4lib.diffusion.process import strided_timesteps
from ex4lib.diffusion.sampling import finish, sample
from experiments.upsampling import upsampler
from tests.random_models import save_deepfloyd, save_pixel, save_upsampler


@pytest.fixture(scope="module", params=[save_pixel, save_deepfloyd], ids=["mini-pixel", "DeepFloyd"])
def model(request, tmp_path_factory):
    return pixel_model(str(request.param(tmp_path_factory.mktemp("pixel") / "model")))


def seeded():
    return torch.Generator().manual_seed(0)


def test_prompts_guide_and_variance_is_split(model):
    x = model.noise(2, seeded())
    told = model.denoiser(["a cat", "a dog"], guidance_scale=3.0)
    output = told(x, 500)
    assert output.prediction.shape == x.shape
    assert (output.variance is None) == (model.unet.config.out_channels == 3)
    bound = model.denoiser(["a cat", "a dog"], guidance_scale=1.0)(x, 500)
    free = model.denoiser(["", ""], guidance_scale=1.0)(x, 500)
    torch.testing.assert_close(output.prediction, free.prediction + 3 * (bound.prediction - free.prediction),
                               atol=1e-4, rtol=1e-4)  # fmt: skip
    zero = model.denoiser(["a cat", "a dog"], guidance_scale=0.0)(x, 500)
    torch.testing.assert_close(zero.prediction, free.prediction, atol=1e-5, rtol=1e-4)
    if output.variance is not None:
        torch.testing.assert_close(output.variance, bound.variance, atol=1e-5, rtol=1e-4)


def test_negative_prompts_are_one_for_all_or_one_each(model):
    x, prompts = model.noise(2, seeded()), ["a cat", "a dog"]
    listed = model.denoiser(prompts, negative_prompt=["a tree", "a car"])(x, 500).prediction
    for row, (prompt, negative) in enumerate(zip(prompts, ["a tree", "a car"], strict=True)):
        alone = model.denoiser(prompt, negative_prompt=negative)(x[row : row + 1], 500).prediction
        torch.testing.assert_close(listed[row : row + 1], alone, atol=1e-4, rtol=1e-4)
    one, same = (model.denoiser(prompts, negative_prompt=text).negative for text in ("a tree", ["a tree"] * 2))
    torch.testing.assert_close(one, same)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.denoiser([]), "prompt must be a text or a list of texts"),
        (lambda m: m.denoiser(["a", "b"], negative_prompt=["c"] * 3), "one or one per prompt, got 3 for 2"),
        (lambda m: m.denoiser("a", guidance_scale=float("nan")), "guidance_scale must be a finite number, got nan"),
        (lambda m: m.noise(0), "count must be at least 1, got 0"),
    ],
)
def test_wrong_input_is_refused(call, message, model):
    with pytest.raises(ValueError, match=message):
        call(model)


@pytest.mark.parametrize("guidance", [None, Guidance(0.3), Guidance(1.0, "mean", "raw")])
def test_the_courses_timesteps_give_a_picture(model, guidance):
    loop = sample(
        model.denoiser("a cat"), model.scheduler, model.noise(1, seeded()), steps=strided_timesteps(330),
        generator=seeded(), guidance=guidance, objective=guidance and (lambda x: x.square().mean((1, 2, 3))),
    )  # fmt: skip
    step, _ = finish(loop)
    assert step.sample_image.shape == (1, 3, model.size, model.size) and step.sample.isfinite().all()


def test_a_gated_model_says_how_to_get_access(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="DeepFloyd IF is gated; accept its licence"):
        pixel_model("DeepFloyd/IF-I-XL-v1.0")


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
    return pixel_model(str(save_deepfloyd(tmp_path_factory.mktemp("first") / "model")))


def test_the_second_stage_is_the_stock_pipeline_between_0_and_1(first_stage, tmp_path, picture):
    second = upsampler(first_stage, str(save_upsampler(tmp_path / "second")))
    image = picture(16, 16, batch=2, dtype=torch.float32)
    found = second(image, "a cat", steps=3, guidance_scale=3.0, noise_level=100, generator=seeded())
    stock = diffusers.IFSuperResolutionPipeline.from_pretrained(tmp_path / "second", watermarker=None)
    stock.set_progress_bar_config(disable=True)
    expected = stock(
        image=[images.to_pil(each) for each in image], prompt_embeds=first_stage.encode(["a cat"] * 2),
        negative_prompt_embeds=first_stage.encode(["", ""]), num_inference_steps=3, guidance_scale=3.0,
        noise_level=100, generator=seeded(), output_type="np",
    ).images  # fmt: skip
    assert found.shape == (2, 3, 32, 32)
    torch.testing.assert_close(found, torch.from_numpy(expected).permute(0, 3, 1, 2), atol=0.02, rtol=0)  # 8 bits in
    with pytest.raises(ValueError, match="image must lie in"):
        second(2 * image - 1, "a cat")
    with pytest.raises(ValueError, match="prompt must be one or one per picture, got 3 for 2"):
        second(image, ["a cat"] * 3)
    with pytest.raises(ValueError, match="noise_level must be at most 999, got 1000"):
        second(image, "a cat", noise_level=1000)


def test_the_mini_profile_has_no_second_stage(first_stage, monkeypatch):
    assert upsampler(first_stage) is None
    monkeypatch.setenv("EX4_PROFILE", "full")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"IF-II-L-v1\.0 could not be loaded"):
        upsampler(first_stage)


def test_a_models_hash_knows_its_text_encoder(model, monkeypatch):
    same = dataclasses.replace(model)
    assert same.sha256 == model.sha256
    other = dataclasses.replace(model, text_encoder=torch.nn.Linear(2, 2))
    assert other.sha256 != model.sha256 and other.sha256.split("-")[1] == model.sha256.split("-")[1]
    monkeypatch.setattr(models, "weights_sha256", lambda _: pytest.fail("hashed again"))
    assert len(model.sha256) == 33
