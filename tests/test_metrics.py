"""Judges against closed forms, scikit-image, scipy and lpips."""

import sys

import lpips
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import skimage.metrics
import torch

from ex4lib import colour, images, models
from experiments import measures, metrics
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
    own = measures.perceptual_distance(changed, image, reference)
    assert own == measures.perceptual_distance(offline, image, reference) > 0


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


# --- which painting is the nearest ----------------------------------------------------------------------------------


def test_style_distances_against_explicit_loops(picture):
    network = random_network("vgg16").variant(pooling="average", padding="replicate")
    pictures, paintings = picture(140, 160, batch=3), [picture(200, 130), picture(90, 128)]
    found = metrics.style_distances(pictures, paintings, network, batch=2)
    judge = network.variant(pooling="max", padding="zeros")
    for i in range(3):
        for j, painting in enumerate(paintings):
            parts = []
            for layer in metrics.NEAREST_LAYERS:
                own, other = (
                    gram(judge(images.resize(images.crop_square(x), (128, 128)), [layer])[layer])
                    for x in (pictures[i : i + 1], painting.float().double())
                )
                parts.append(((own - other) ** 2).sum() / (np.linalg.norm(own) * np.linalg.norm(other)))
            assert found[i, j].item() == pytest.approx(np.mean(parts), rel=1e-6)


def test_style_distances_are_symmetric_and_zero_at_the_painting_itself(picture):
    network, paintings = random_network("vgg16"), [picture(128, 128) for _ in range(3)]
    found = metrics.style_distances(torch.cat(paintings), paintings, network)
    torch.testing.assert_close(found, found.T, atol=1e-9, rtol=1e-9)
    assert found.diagonal().abs().max() < 1e-9 < found[0, 1]


def test_specificity_of_known_distances():
    distances = torch.tensor([[0.1, 0.5, 0.9], [0.4, 0.3, 0.2], [0.2, 0.1, 0.3], [0.5, 0.5, 0.9]])
    found = measures.specificity(distances, [0, 1, 2, 0])
    assert found.ranks == (1, 2, 3, 2)  # the tie of the last row counts against it
    assert found.nearest == (1.0, 0.0, 0.0, 0.0) and found.share == 0.25 and found.mean_rank == 2
    assert found.confusion == ((1, 1, 0), (0, 0, 1), (0, 1, 0))


def test_specificity_by_chance(generator):
    found = measures.specificity(torch.rand(20_000, 8, generator=generator), [i % 8 for i in range(20_000)])
    assert found.share == pytest.approx(1 / 8, abs=0.01) and found.mean_rank == pytest.approx(4.5, abs=0.06)
    confusion = np.array(found.confusion)
    assert confusion.sum() == 20_000 and np.trace(confusion) == sum(found.nearest)


@pytest.mark.parametrize(
    ("distances", "intended", "sentence"),
    [
        (torch.rand(2, 3), [0], "intended must give one column from 0 to 2 for each of 2 pictures"),
        (torch.rand(2, 3), [0, 3], "intended must give one column"),
        (torch.full((2, 3), float("nan")), [0, 1], "distances must be finite"),
        (torch.rand(3), [0, 1, 2], r"of shape \(B, P\), got shape \(3,\)"),
    ],
)
def test_specificity_checks_its_input(distances, intended, sentence):
    with pytest.raises(ValueError, match=sentence):
        measures.specificity(distances, intended)


def test_crops_of_a_painting_are_nearest_to_it_by_either_judge(offline):
    """The judges know a painting again; the second shares no weights with the first."""
    paintings = [name for name in images.names() if "-" in name and not name.startswith("look-")]
    crops = [measures.corners(images.resize(images.crop_square(images.load(name)), 200)) for name in paintings]
    intended = [number for number in range(len(paintings)) for _ in range(4)]
    assert len(paintings) == 8
    for network in (offline, measures.random_network()):
        found = measures.specificity(metrics.style_distances(torch.cat(crops), paintings, network), intended)
        assert found.share >= 0.9, (network.name, found.confusion)


def test_random_networks_differ_by_seed_and_keep_activations_near_one():
    image = images.load("chelsea", 128)
    first, again, other = (measures.random_network(seed) for seed in (0, 0, 1))
    features = [network(image, ["relu4_1"])["relu4_1"] for network in (first, again, other)]
    assert torch.equal(features[0], features[1]) and not torch.equal(features[0], features[2])
    assert 0.1 < features[0].square().mean().sqrt() < 10


def test_anchors_are_distances(offline):
    painting, others = "hokusai-great-wave", ["arcimboldo-spring", "kandinsky-composition-viii"]
    unguided = images.crop_square(images.load("chelsea", 160))
    found = measures.anchors(painting, others, offline, unguided=unguided)
    alone = [metrics.style_distances(images.load(name), [painting], offline).item() for name in others]
    assert found["another painting"] == pytest.approx(np.mean(alone), rel=1e-6)
    assert found["unguided"] == pytest.approx(metrics.style_distances(unguided, [painting], offline).item())
    assert found["itself"] < 1e-9 < found["another crop"] < found["another painting"] < found["flat grey"]
    assert "unguided" not in measures.anchors(painting, others, offline)


# --- intervals ----------------------------------------------------------------------------------------------------


def test_an_interval_of_independent_values_is_scipy_s():
    values = np.random.default_rng(1).gamma(2.0, 1.0, 40)
    expected = scipy.stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=0)
    found = measures.interval(values, resamples=20_000)
    assert found.mean == pytest.approx(values.mean()) and found.count == 40 and found.clusters == {"value": 40}
    assert tuple(found)[1:] == pytest.approx(tuple(expected.confidence_interval), abs=0.02)


def test_copies_of_a_value_add_no_certainty():
    values = np.random.default_rng(2).normal(size=12)
    alone = measures.interval(values, {"seed": range(12)})
    copied = measures.interval(np.repeat(values, 5), {"seed": np.repeat(range(12), 5).tolist()})
    assert tuple(copied) == pytest.approx(tuple(alone)) and copied.clusters == {"seed": 12}
    naive = measures.interval(np.repeat(values, 5))
    assert naive.high - naive.low < 0.6 * (copied.high - copied.low)


def test_clusters_of_two_kinds_have_the_variance_of_both():
    """Of a full crossing x_ij = a_i + b_j the resampled mean has the variance var(a)/I + var(b)/J."""
    draws = np.random.default_rng(3)
    a, b = draws.normal(size=10), 2 * draws.normal(size=8)
    values = (a[:, None] + b[None]).ravel()
    kinds = {"prompt": [i for i in range(10) for _ in range(8)], "seed": list(range(8)) * 10}
    found = measures.interval(values, kinds, confidence=0.6827, resamples=20_000)
    expected = (a.var() / 10 + b.var() / 8) ** 0.5
    assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.05)


def test_intervals_check_their_input():
    with pytest.raises(ValueError, match=r"clusters\['seed'\] must hold 3 labels"):
        measures.interval([1.0, 2.0, 3.0], {"seed": [1, 2]})
    with pytest.raises(ValueError, match="values must be finite"):
        measures.interval([1.0, float("nan")])
    with pytest.raises(ValueError, match="at least one"):
        measures.interval([])


def test_a_missing_extra_is_one_sentence(monkeypatch, picture):
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(ImportError, match="needs the package scikit-image, of the extra metrics: run pip install"):
        measures.ssim(picture(), picture())


# --- colour -------------------------------------------------------------------------------------------------------


def test_colour_distance_is_scipy_s(picture):
    a, b = picture(40, 30), picture(30, 50)
    sized = [images.resize(x, 256)[0].flatten(1).numpy() for x in (a, b)]
    (mean_a, own), (mean_b, other) = ((x.mean(1), np.cov(x, bias=True)) for x in sized)
    root = scipy.linalg.sqrtm(other)
    cross = np.real(scipy.linalg.sqrtm(root @ own @ root))
    expected = ((mean_a - mean_b) ** 2).sum() + np.trace(own + other - 2 * cross)
    assert metrics.colour_distance(a, b) == pytest.approx(expected / (sized[1] ** 2).sum(0).mean(), rel=1e-6)


def test_colour_distance_of_a_shift(picture):
    image = 0.3 + 0.4 * picture(32, 32)
    assert metrics.colour_distance(image, image) == pytest.approx(0, abs=1e-6)
    shift = metrics.colour_distance(images.resize(image, 256) + 0.1, images.resize(image, 256))
    assert shift == pytest.approx(0.03 / images.resize(image, 256).square().sum(1).mean().item(), rel=1e-6)
    assert metrics.colour_distance(torch.zeros_like(image), image) == pytest.approx(1)


def test_brightness():
    assert measures.brightness(torch.full((1, 3, 4, 4), 0.25)) == pytest.approx(0.25)
    assert measures.brightness(torch.eye(3)[1].view(1, 3, 1, 1)) == pytest.approx(0.587)


# --- pixels -------------------------------------------------------------------------------------------------------


def test_psnr(picture):
    image = 0.5 * picture()
    other = image + 0.1 * picture()
    assert metrics.psnr(image + 0.1, image) == pytest.approx(20)  # -10 lg 0.01
    expected = skimage.metrics.peak_signal_noise_ratio(image.numpy(), other.numpy(), data_range=1)
    assert metrics.psnr(other, image) == pytest.approx(expected)
    assert metrics.psnr(image, image) == float("inf")


def test_ssim_is_scikit_image_s(picture):
    a, b = picture(), picture()
    x, y = (image[0].permute(1, 2, 0).numpy() for image in (a, b))
    channels = [
        skimage.metrics.structural_similarity(
            x[..., c], y[..., c], data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for c in range(3)
    ]
    assert measures.ssim(a, b) == pytest.approx(np.mean(channels))
    assert measures.ssim(a, a) == pytest.approx(1)


@pytest.mark.parametrize("metric", [metrics.psnr, measures.ssim])
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
        measures.perceptual_distance(offline, (image + level * noise).clamp(0, 1), image)
        for level in (0, 0.02, 0.06, 0.2)
    ]
    assert distances[0] == 0
    assert distances == sorted(distances) and distances[1] > 0


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lpips_is_lpips(torchvision_features, monkeypatch, generator):
    """The lpips package's own network and scaling, with the same VGG-16 weights put in."""
    folder, stacks = torchvision_features
    monkeypatch.setenv("EX4_MODELS", str(folder))
    network = models.features("vgg16", device="cpu")
    reference = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    slices = [module for part in range(1, 6) for module in getattr(reference.net, f"slice{part}")]
    assert len(slices) == 30
    for module, source in zip(slices, stacks["vgg16"], strict=False):
        module.load_state_dict(source.state_dict())
    a, b = torch.rand(2, 1, 3, 48, 48, generator=generator)
    with torch.no_grad():
        expected = reference(a, b, normalize=True).item()
    assert expected > 0.01
    assert measures.perceptual_distance(network, a, b) == pytest.approx(expected, rel=1e-4)


def test_lpips_needs_a_vgg16(small, picture):
    with pytest.raises(ValueError, match="the heads of LPIPS are for vgg16, got vgg19"):
        measures.perceptual_distance(small, picture(), picture())


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
