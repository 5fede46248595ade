"""The palette: optimal transport between colours in closed form, in whole pictures, blends and regions."""

import dataclasses

import numpy as np
import pytest
import scipy.linalg
import torch

from ex4lib import colour
from ex4lib.colour import Palette
from ex4lib.diffusion.guidance import Guidance, Situation, guide
from ex4lib.diffusion.process import Level

D = torch.float64


def samples(seed, batch=1, channels=4, size=12):
    """Clean samples with correlated channels."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(channels, channels, generator=generator, dtype=D)
    x = torch.randn(batch, channels, size, size, generator=generator, dtype=D)
    return torch.einsum("ij,bjhw->bihw", mix, x) + torch.randn(1, channels, 1, 1, generator=generator, dtype=D)


def moments(x):
    """Mean and covariance of the channels of one picture, by numpy."""
    rows = x[0].flatten(1).numpy()
    return rows.mean(1), np.cov(rows, bias=True)


def test_transport_reaches_the_moments_with_the_least_movement():
    x, y = samples(0), samples(1)
    moved = colour.transport(x, colour.colour_moments(x), colour.colour_moments(y))
    (mean, covariance), (mean_ref, covariance_ref) = moments(x), moments(y)
    for got, expected in zip(moments(moved), (mean_ref, covariance_ref), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-8)
    root = scipy.linalg.sqrtm(covariance)
    between = np.real(scipy.linalg.sqrtm(root @ covariance_ref @ root))
    # The squared 2-Wasserstein distance of the two normal distributions: Dowson & Landau (1982).
    least = ((mean - mean_ref) ** 2).sum() + np.trace(covariance + covariance_ref - 2 * between)
    assert (moved - x).square().sum(1).mean().item() == pytest.approx(least, rel=1e-6)


def test_transport_of_a_flat_picture_is_finite():
    flat, target = torch.full((1, 4, 8, 8), 0.3, dtype=D), samples(1)
    moved = colour.transport(flat, colour.colour_moments(flat), colour.colour_moments(target))
    np.testing.assert_allclose(moved.mean((2, 3)), target.mean((2, 3)), rtol=1e-9)


def test_moments_under_a_mask_are_those_of_its_pixels():
    x, mask = samples(0, size=8), torch.zeros(1, 1, 8, 8, dtype=D)
    mask[..., :3] = 1
    for got, expected in zip(colour.colour_moments(x, mask), colour.colour_moments(x[..., :3]), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.fixture
def paintings(picture):
    return [picture(40, 56), picture(70, 64).square()]


def encode(image):
    """Four channels that depend linearly on the colours, at half the size."""
    mix = torch.tensor([[1.0, 0.5, 0], [0, 1, 0.2], [0.3, 0, 1], [1, -1, 0.5]]).to(image)
    return torch.einsum("ij,bjhw->bihw", mix, 2 * torch.nn.functional.avg_pool2d(image, 2) - 1)


def test_one_painting(paintings):
    painting = paintings[0]
    square = torch.nn.functional.interpolate(painting, (64, 64), mode="bicubic", antialias=True).clamp(0, 1)
    moved = Palette.of(encode, [painting], [1.0])(samples(3, batch=2))
    for each in moved.split(1):
        for got, expected in zip(moments(each), moments(encode(square)), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_a_blend_has_the_mean_of_the_moments(paintings):
    alone = [Palette.of(encode, [painting], [1.0]).moments[0] for painting in paintings]
    (blend,) = Palette.of(encode, paintings, [0.25, 0.75]).moments
    for got, first, second in zip(blend, *alone, strict=True):
        torch.testing.assert_close(got, 0.25 * first + 0.75 * second)


def test_each_region_has_a_palette_of_its_own(paintings):
    left = torch.zeros(1, 1, 12, 12, dtype=D)
    left[..., :6] = 1
    x = samples(3)
    moved = Palette.of(encode, paintings, [0.5, 0.5], [left, 1 - left])(x)
    for part, own, painting in ((moved[..., :6], x[..., :6], paintings[0]), (moved[..., 6:], x[..., 6:], paintings[1])):
        torch.testing.assert_close(part, Palette.of(encode, [painting], [1.0])(own), rtol=1e-4, atol=1e-4)


class Scheduler:
    """As much of one as a guided step asks for."""

    def __init__(self, prediction_type):
        self.config = type("Config", (dict,), {"__getattr__": dict.__getitem__})(prediction_type=prediction_type)


def squares(clean):
    return clean.square().sum((1, 2, 3))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_guidance_moves_the_estimate_its_share_of_the_way(kind, paintings):
    palette, x = Palette.of(encode, paintings[:1], [1.0]), samples(5, batch=2)
    level, prediction = Level.preserving(0.4), samples(6, batch=2)
    situation = Situation(Scheduler(kind), level, 500, x, prediction, squares, palette=palette)
    guidance = Guidance((1e-9, 5e-10), "clean", palette=5e8, clipping="never")  # next to no gradient
    result = guide(situation, guidance)
    share = torch.tensor([0.5, 0.25], dtype=D).view(-1, 1, 1, 1)
    expected = situation.clean + share * (palette(situation.clean) - situation.clean)
    torch.testing.assert_close(result.clean, expected)
    shifted = dataclasses.replace(situation, prediction=result.prediction)
    torch.testing.assert_close(shifted.clean, expected)
    torch.testing.assert_close(result.movement, (expected - situation.clean).square().mean((1, 2, 3)).sqrt())
    torch.testing.assert_close(guide(situation, guidance, 10.0).clean, palette(situation.clean))  # at most all the way


def test_a_palette_needs_the_unit_noise():
    with pytest.raises(ValueError, match="palette multiplies a scale in the unit noise, got unit 'raw'"):
        Guidance(1.0, "clean", unit="raw", palette=0.5)
    with pytest.raises(ValueError, match="palette"):
        Guidance(1.0, "clean", palette=-1)
