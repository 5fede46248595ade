"""Colour statistics against numpy and scipy."""

import numpy as np
import pytest
import scipy.linalg
import torch

from ex4lib import colour


def moments(image):
    """Mean and covariance of one image's pixels, by numpy."""
    pixels = image[0].flatten(1).numpy().astype(np.float64)
    return pixels.mean(1), np.cov(pixels, bias=True)


@pytest.fixture
def muted(picture):
    """Pictures far from black and white, so that nothing is clamped."""
    return lambda *size: 0.4 + 0.2 * picture(*size)


def test_luminance_of_the_primaries():
    image = torch.eye(3).view(1, 3, 1, 3)
    np.testing.assert_allclose(colour.luminance(image)[0, 0, 0].numpy(), [0.299, 0.587, 0.114], atol=1e-7)


def test_with_luminance_changes_luma_and_keeps_chroma(muted):
    image, other = muted(), muted()
    luma = colour.luminance(other)
    got = colour.with_luminance(image, luma)
    torch.testing.assert_close(colour.luminance(got), luma)
    torch.testing.assert_close(got - got[:, :1], image - image[:, :1])


def test_with_luminance_stays_in_range(picture):
    got = colour.with_luminance(picture(), torch.ones(1, 1, 32, 32, dtype=torch.float64))
    assert got.max() <= 1 and got.min() >= 0


def test_match_luminance(muted):
    image, reference = muted(), muted(20, 24)
    got = colour.match_luminance(image, reference)
    assert torch.equal(got[:, 0], got[:, 1]) and torch.equal(got[:, 0], got[:, 2])
    own, other = got[:, 0].numpy(), colour.luminance(reference).numpy()
    np.testing.assert_allclose([own.mean(), own.std()], [other.mean(), other.std()], rtol=1e-6)
    # a linear map of the luma: the order of the pixels is kept
    correlation = np.corrcoef(own.ravel(), colour.luminance(image).numpy().ravel())[0, 1]
    assert correlation == pytest.approx(1)


def test_match_luminance_of_flat_pictures_is_finite():
    flat, pixel = torch.full((1, 3, 4, 4), 0.3), torch.full((1, 3, 1, 1), 0.6)
    np.testing.assert_allclose(colour.match_luminance(flat, pixel).numpy(), 0.6, rtol=1e-5)
    np.testing.assert_allclose(colour.match_luminance(pixel, flat).numpy(), 0.3, rtol=1e-5)


def test_colour_moments(picture):
    image = picture(9, 13)
    mean, covariance = colour.colour_moments(image)
    expected_mean, expected_covariance = moments(image)
    np.testing.assert_allclose(mean[0], expected_mean, rtol=1e-12)
    np.testing.assert_allclose(covariance[0], expected_covariance, rtol=1e-10)


def test_match_colour_is_the_symmetric_linear_map(muted):
    image, reference = muted(), muted(24, 20)
    got = colour.match_colour(image, reference)
    (mean, covariance), (mean_ref, covariance_ref) = moments(image), moments(reference)
    np.testing.assert_allclose(moments(got)[0], mean_ref, rtol=1e-9)
    np.testing.assert_allclose(moments(got)[1], covariance_ref, rtol=1e-6)
    root = scipy.linalg.sqrtm
    transform = np.real(root(covariance_ref) @ np.linalg.inv(root(covariance)))
    pixels = image[0].flatten(1).numpy()
    expected = transform @ (pixels - mean[:, None]) + mean_ref[:, None]
    np.testing.assert_allclose(got[0].flatten(1).numpy(), expected, atol=1e-9)


def test_match_colour_to_itself_changes_nothing(muted):
    image = muted()
    torch.testing.assert_close(colour.match_colour(image, image), image)


def test_match_colour_of_a_flat_picture_is_finite(muted):
    flat = torch.full((1, 3, 8, 8), 0.2, dtype=torch.float64)
    reference = muted()
    got = colour.match_colour(flat, reference)
    np.testing.assert_allclose(got.mean((2, 3))[0], moments(reference)[0], rtol=1e-9)
    assert colour.match_colour(reference, flat).isfinite().all()
