"""Text to image in pixels: one face for DeepFloyd's classes and for the embedded model's folder."""

import pytest
import torch

from ex4lib.diffusion.guidance import Guidance
from ex4lib.diffusion.pixel import pixel_model
from ex4lib.diffusion.process import strided_timesteps
from ex4lib.diffusion.sampling import finish, sample
from tests.random_models import save_deepfloyd, save_pixel


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


@pytest.mark.parametrize("guidance", [None, Guidance(0.3), Guidance(1.0, "mean", "raw")])
def test_the_courses_timesteps_give_a_picture(model, guidance):
    loop = sample(
        model.denoiser("a cat"), model.scheduler, model.noise(1, seeded()), steps=strided_timesteps(330),
        generator=seeded(), objective=lambda x: x.square().mean((1, 2, 3)), guidance=guidance,
    )  # fmt: skip
    step, _ = finish(loop)
    assert step.sample_image.shape == (1, 3, model.size, model.size) and step.sample.isfinite().all()


def test_a_gated_model_says_how_to_get_access(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="DeepFloyd IF is gated; accept its licence"):
        pixel_model("DeepFloyd/IF-I-XL-v1.0")
