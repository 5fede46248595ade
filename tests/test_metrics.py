"""Judges against closed forms, scikit-image, scipy and lpips."""

import lpips
import numpy as np
import pytest
import scipy.linalg
import skimage.metrics
import torch

from ex4lib import colour, images, metrics, models
from tests.random_models import random_network


def gram(feature):
    rows = feature[0].flatten(1).double().numpy()
    return rows @ rows.T / rows.shape[1]


# --- style and content --------------------------------------------------------------------------------------------


def test_style_distance_is_the_mean_relative_gram_error(offline):
    image, style = images.load("chelsea", 288), images.load("hokusai-poppies", 300)  # judged at 256
    layers = ["relu1_2", "relu2_2"]
    own, other = (offline(images.resize(x, 256), layers) for x in (image, style))
    expected = np.mean([((gram(own[x]) - gram(other[x])) ** 2).sum() / (gram(other[x]) ** 2).sum() for x in layers])
    got = metrics.style_distance(offline, image, style, layers=layers)
    assert got == pytest.approx(expected, rel=1e-3)
    assert metrics.style_distance(offline, style, style, layers=layers) == 0


def test_judges_use_the_network_as_it_was_trained(picture):
    network = random_network("vgg16")
    changed = network.variant(pooling="average", padding="replicate")
    image, style = picture(), picture()
    for judge in (metrics.style_distance, metrics.content_error):
        assert judge(changed, image, style) == judge(network, image, style) > 0


def test_lpips_uses_the_network_as_it_was_trained(offline):
    changed = offline.variant(pooling="average", padding="replicate")
    image, reference = images.load("coffee", 48), images.load("astronaut", 48)[..., :36, :]
    reference = images.resize(reference, tuple(image.shape[2:]))
    own = metrics.perceptual_distance(changed, image, reference)
    assert own == metrics.perceptual_distance(offline, image, reference) > 0


def test_held_out_layers_are_not_optimised():
    from ex4lib.transfer import DEFAULT

    assert not set(metrics.HELD_OUT) & {*DEFAULT.style_layers, *DEFAULT.content_layers}


@pytest.mark.parametrize("statistic", ["gram", "meanvar", "bures", "sliced"])
def test_style_distance_by_any_statistic(picture, statistic):
    network = random_network("vgg16")
    style, image = picture(), picture()
    own = metrics.style_distance(network, style, style, statistic=statistic)
    assert abs(own) < 1e-9 < metrics.style_distance(network, image, style, statistic=statistic)


def test_texture_distance_forgets_colour(picture):
    """A picture in other colours: the map between the colours is linear, so that matching undoes it."""
    network = random_network("vgg16")
    style = 0.35 + 0.3 * picture(64, 64)
    recoloured = 0.8 * style[:, [1, 2, 0]] + 0.05
    assert metrics.style_distance(network, recoloured, style) > 1e-3
    # The symmetric map finds the colours' covariance; the exchange of channels stays, a pure shift and scale goes.
    shifted = 0.8 * style + 0.05
    assert metrics.texture_distance(network, shifted, style) < 1e-9 < metrics.style_distance(network, shifted, style)


def test_content_error_is_the_relative_feature_error(picture):
    network = random_network("vgg16")
    image, content = picture(64, 64), picture(64, 64)
    own, other = (network(x, ["relu3_1"])["relu3_1"].numpy() for x in (image, content))
    expected = ((own - other) ** 2).sum() / (other**2).sum()
    assert metrics.content_error(network, image, content, layer="relu3_1") == pytest.approx(expected)
    assert metrics.content_error(network, content, content) == 0


def test_content_error_compares_pictures_of_different_sizes(picture):
    network, content = random_network("vgg16"), picture(64, 48)
    smaller = metrics.content_error(network, images.resize(content, 60), content)
    assert smaller < 0.5 * metrics.content_error(network, picture(64, 48), content)


# --- colour -------------------------------------------------------------------------------------------------------


def test_colour_distance_is_scipy_s(picture):
    a, b = picture(40, 30), picture(30, 50)
    sized = [images.resize(x, 256)[0].flatten(1).numpy() for x in (a, b)]
    (mean_a, own), (mean_b, other) = ((x.mean(1), np.cov(x, bias=True)) for x in sized)
    root = scipy.linalg.sqrtm(other)
    cross = np.real(scipy.linalg.sqrtm(root @ own @ root))
    expected = ((mean_a - mean_b) ** 2).sum() + np.trace(own + other - 2 * cross)
    assert metrics.colour_distance(a, b) == pytest.approx(np.sqrt(expected), rel=1e-6)


def test_colour_distance_of_a_shift(picture):
    image = 0.3 + 0.4 * picture(32, 32)
    assert metrics.colour_distance(image, image) == pytest.approx(0, abs=1e-6)
    assert metrics.colour_distance(image + 0.1, image) == pytest.approx(0.1 * np.sqrt(3), rel=1e-6)


def test_brightness():
    assert metrics.brightness(torch.full((1, 3, 4, 4), 0.25)) == pytest.approx(0.25)
    assert metrics.brightness(torch.eye(3)[1].view(1, 3, 1, 1)) == pytest.approx(0.587)


# --- pixels -------------------------------------------------------------------------------------------------------


def test_psnr(picture):
    image = 0.5 * picture()
    assert metrics.psnr(image + 0.1, image) == pytest.approx(20)  # -10 lg 0.01


def test_ssim_is_scikit_image_s(picture):
    a, b = picture(), picture()
    x, y = (image[0].permute(1, 2, 0).numpy() for image in (a, b))
    channels = [
        skimage.metrics.structural_similarity(
            x[..., c], y[..., c], data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for c in range(3)
    ]
    assert metrics.ssim(a, b) == pytest.approx(np.mean(channels))
    assert metrics.ssim(a, a) == pytest.approx(1)


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.ssim])
def test_pictures_must_be_single_and_of_one_size(picture, metric):
    for other in (picture(32, 31), picture(batch=2)):
        with pytest.raises(ValueError, match="must be single and of one size"):
            metric(picture(), other)
    with pytest.raises(ValueError, match="must be single and of one size"):
        metric(picture(batch=2), picture(batch=2))


# --- perceptual distance ------------------------------------------------------------------------------------------


def test_lpips_of_growing_noise(offline, generator):
    image = images.load("coffee", 64)
    noise = torch.randn(image.shape, generator=generator)
    distances = [
        metrics.perceptual_distance(offline, (image + level * noise).clamp(0, 1), image)
        for level in (0, 0.02, 0.06, 0.2)
    ]
    assert distances[0] == 0
    assert distances == sorted(distances) and distances[1] > 0


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lpips_is_lpips(torchvision_features, monkeypatch, generator):
    """The lpips package's own network and scaling, with the same VGG-16 weights put in."""
    folder, stacks = torchvision_features
    monkeypatch.setenv("EX4_MODELS", str(folder))
    network = models.features("vgg16", where="cpu")
    reference = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    slices = [module for part in range(1, 6) for module in getattr(reference.net, f"slice{part}")]
    assert len(slices) == 30
    for module, source in zip(slices, stacks["vgg16"], strict=False):
        module.load_state_dict(source.state_dict())
    a, b = torch.rand(2, 1, 3, 48, 48, generator=generator)
    with torch.no_grad():
        expected = reference(a, b, normalize=True).item()
    assert expected > 0.01
    assert metrics.perceptual_distance(network, a, b) == pytest.approx(expected, rel=1e-4)


def test_lpips_needs_a_vgg16(small, picture):
    with pytest.raises(ValueError, match="the heads of LPIPS are for vgg16, got vgg19"):
        metrics.perceptual_distance(small, picture(), picture())


def test_judges_check_their_pictures(picture):
    network = random_network("vgg16")
    for judge in (metrics.style_distance, metrics.content_error):
        with pytest.raises(ValueError, match="must lie in"):
            judge(network, picture() * float("nan"), picture())


def test_judging_takes_no_gradient(picture):
    network, image = random_network("vgg16"), picture().requires_grad_()
    assert isinstance(metrics.style_distance(network, image, picture()), float)
    assert isinstance(metrics.colour_distance(image, picture()), float)
    assert isinstance(metrics.psnr(image, picture()), float)
    assert colour.luminance(image).requires_grad  # the picture itself still does
