"""The VGG extractors against torchvision's own modules."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ex4lib import features, models
from ex4lib.features import layer_names, resolve, tutorial_names
from tests.random_models import random_network
from training.texture import unit_activation_scales


@pytest.fixture
def image(generator):
    return torch.rand(1, 3, 35, 41, generator=generator)


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "count"), [("vgg16", 31), ("vgg19", 37)])
def test_positions_are_torchvision_s_indices(torchvision_features, architecture, count):
    _, stacks = torchvision_features
    kinds = {"conv": "Conv2d", "relu": "ReLU", "pool": "MaxPool2d"}
    names = layer_names(architecture)
    assert len(names) == len(stacks[architecture]) == count
    assert [kinds[name[:4]] for name in names] == [type(module).__name__ for module in stacks[architecture]]


@pytest.mark.parametrize(
    ("architecture", "given", "expected"),
    [
        ("vgg19", 0, "conv1_1"),
        ("vgg19", 22, "relu4_2"),
        ("vgg19", 21, "conv4_2"),
        ("vgg19", 36, "pool5"),
        ("vgg19", "conv_4", "conv2_2"),
        ("vgg19", "conv_5", "conv3_1"),
        ("vgg19", "relu_5", "relu3_1"),
        ("vgg19", "pool_4", "pool2"),
        ("vgg19", "pool_8", "pool3"),
        ("vgg19", "conv_10", "conv4_2"),
        ("vgg19", "conv3_4", "conv3_4"),
        ("vgg16", 22, "relu4_3"),
        ("vgg16", "conv_5", "conv3_1"),
        ("vgg16", "conv_10", "conv4_3"),
        ("vgg16", "pool_7", "pool3"),
        ("vgg16", 30, "pool5"),
    ],
)
def test_names(architecture, given, expected):
    assert resolve(given, architecture) == expected


def test_the_tutorial_counts_convolutions(torchvision_features):
    """The naming loop of the PyTorch tutorial, run over torchvision's modules."""
    _, stacks = torchvision_features
    for architecture, stack in stacks.items():
        names, i = [], 0
        for layer in stack.children():
            if isinstance(layer, torch.nn.Conv2d):
                i += 1
                names.append(f"conv_{i}")
            elif isinstance(layer, torch.nn.ReLU):
                names.append(f"relu_{i}")
            elif isinstance(layer, torch.nn.MaxPool2d):
                names.append(f"pool_{i}")
        assert list(tutorial_names(architecture)) == names
        assert list(tutorial_names(architecture).values()) == layer_names(architecture)


def test_unknown_layers_list_near_matches():
    with pytest.raises(ValueError, match=r"vgg16 has no layer 'conv3_4'; did you mean .*conv3_3"):
        resolve("conv3_4", "vgg16")
    for layer in ("relu6_1", 37, -1, "", "conv_17"):
        with pytest.raises(ValueError, match="vgg19 has no layer"):
            resolve(layer, "vgg19")


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["vgg16", "vgg19"])
def test_every_layer_equals_torchvision(torchvision_features, image, architecture, monkeypatch):
    folder, stacks = torchvision_features
    monkeypatch.setenv("EX4_MODELS", str(folder))
    network = models.features(architecture, device="cpu")
    names = layer_names(architecture)
    got = network(image, names)
    assert list(got) == names
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (image - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    for name, module in zip(names, stacks[architecture], strict=True):
        expected = module(expected)
        torch.testing.assert_close(got[name], expected, rtol=1e-3, atol=1e-4, msg=lambda text, at=name: f"{at}: {text}")


def test_a_captured_convolution_is_not_overwritten(small, picture):
    image = picture()
    alone = small(image, ["conv2_1"])["conv2_1"]
    both = small(image, ["conv2_1", "relu2_1"])
    assert alone.min() < 0
    assert torch.equal(both["conv2_1"], alone)
    assert torch.equal(both["relu2_1"], alone.clamp_min(0))
    assert torch.equal(small(image, ["conv2_1", "relu5_1"])["conv2_1"], alone)


def test_gradients_reach_the_image_through_captured_layers(small, picture):
    image = picture(4, 4).requires_grad_()

    def run(x):
        got = small(x, ["conv1_1", "relu1_1", "pool1", "conv2_1"])
        return tuple(got.values())

    assert torch.autograd.gradcheck(run, (image,), eps=1e-7, atol=1e-4, fast_mode=True)


def test_truncation(small, picture):
    calls = []
    for name, convolution in small.convolutions.items():
        convolution.register_forward_hook(lambda *_, name=name: calls.append(name))
    small(picture(), ["relu3_1", "conv1_2"])
    assert calls == ["conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1"]


def test_features_have_canonical_names_and_ignore_repetition(small, picture):
    got = small(picture(), ["conv_5", "conv3_1", 10, "relu1_1"])
    assert set(got) == {"conv3_1", "relu1_1"}


def test_weights_are_frozen(small, picture):
    image = picture().requires_grad_()
    small(image, ["relu2_1"])["relu2_1"].sum().backward()
    assert image.grad.abs().sum() > 0
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in small.parameters())
    assert not small.training


def test_the_network_keeps_its_own_weights():
    weight = [(torch.ones(2, 3 if i == 0 else 2, 3, 3), torch.zeros(2)) for i in range(13)]
    network = features.VGG("vgg16", weight, mean=[0, 0, 0], std=[1, 1, 1])
    weight[0][0].zero_()
    assert network(torch.ones(1, 3, 4, 4), ["conv1_1"])["conv1_1"].max() == 27


# --- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "minimum"), [("relu1_2", 1), ("pool1", 2), ("relu2_1", 2), ("relu4_2", 8), ("conv5_1", 16), ("pool5", 32)]
)
def test_the_smallest_size(small, layer, minimum):
    assert small.minimum_size(["relu1_1", layer]) == minimum
    got = small(torch.rand(1, 3, minimum, minimum + 1, dtype=torch.float64), [layer])[layer]
    assert got.shape[2] == 1 and got.isfinite().all()
    if minimum > 1:
        with pytest.raises(
            ValueError, match=rf"needs at least {minimum} x {minimum} pixels for layer {layer}, got {minimum + 4} x"
        ):
            small(torch.rand(1, 3, minimum + 4, minimum - 1, dtype=torch.float64), [layer])


def test_no_layers_is_an_error(small, picture):
    with pytest.raises(ValueError, match="layers must be one or more names"):
        small(picture(), [])


# --- variants -----------------------------------------------------------------------------------------------------


def test_average_pooling(picture):
    network = random_network(pooling="average")
    got = network(picture(15, 17), ["relu1_2", "pool1"])
    torch.testing.assert_close(got["pool1"], 2 * F.avg_pool2d(got["relu1_2"], 2))


def test_replicate_padding_repeats_the_border_of_the_picture(small, picture):
    image = picture(9, 11)
    got = small.variant(pooling="max", padding="replicate")(image, ["conv1_1", "conv1_2"])
    convolution = small.convolutions["conv1_1"]
    padded = torch.from_numpy(np.pad(image.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge"))
    normalised = (padded - small.mean) / small.std
    expected = F.conv2d(normalised, convolution.weight, convolution.bias)
    torch.testing.assert_close(got["conv1_1"], expected)
    deeper = small.convolutions["conv1_2"]
    torch.testing.assert_close(got["conv1_2"], F.conv2d(expected.clamp_min(0), deeper.weight, deeper.bias, padding=1))
    # a flat picture has no frame
    flat = small.variant(pooling="max", padding="replicate")(torch.full_like(image, 0.3), ["conv1_1"])["conv1_1"]
    torch.testing.assert_close(flat, flat[:, :, :1, :1].expand_as(flat))


def test_a_variant_shares_weights_and_leaves_the_original(small, picture):
    other = small.variant(pooling="average", padding="replicate")
    assert other.convolutions["conv4_1"].weight.data_ptr() == small.convolutions["conv4_1"].weight.data_ptr()
    assert (small.pooling, small.padding) == ("max", "zeros")
    got = small(picture(), ["relu1_2", "pool1"])
    torch.testing.assert_close(got["pool1"], F.max_pool2d(got["relu1_2"], 2))


@pytest.mark.parametrize("options", [{"pooling": "mean", "padding": "zeros"}, {"pooling": "max", "padding": "wrap"}])
def test_unknown_variants(small, options):
    with pytest.raises(ValueError, match="must be"):
        small.variant(**options)


def test_a_wrong_number_of_convolutions():
    with pytest.raises(ValueError, match="vgg16 has 13 convolutions, got 1"):
        features.VGG("vgg16", [(torch.ones(2, 3, 3, 3), torch.zeros(2))], mean=[0, 0, 0], std=[1, 1, 1])


# --- masks --------------------------------------------------------------------------------------------------------


def test_masks_are_covered_shares(small, generator):
    mask = (torch.rand(1, 1, 13, 16, generator=generator, dtype=torch.float64) > 0.4).double()
    guides = small.masks(mask, ["relu1_1", "relu2_1", "relu3_1"])
    assert {layer: tuple(guide.shape[2:]) for layer, guide in guides.items()} == {
        "relu1_1": (13, 16),
        "relu2_1": (6, 8),
        "relu3_1": (3, 4),
    }
    for i in range(3):
        for j in range(4):
            share = mask[0, 0, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].mean()
            assert guides["relu3_1"][0, 0, i, j].item() == pytest.approx(share.item())


def test_mask_grids_fit_the_features(small, picture):
    image = picture(37, 45)
    layers = ["relu1_1", "pool2", "relu4_1", "relu5_1"]
    guides, got = small.masks(torch.ones(1, 1, 37, 45), layers), small(image, layers)
    assert all(guides[layer].shape[2:] == got[layer].shape[2:] for layer in layers)


def test_bad_masks(small):
    one_pixel = torch.zeros(1, 1, 32, 32)
    one_pixel[..., 5, 5] = 1
    assert small.masks(one_pixel, ["relu1_2"])["relu1_2"].sum() == 1
    with pytest.raises(ValueError, match="empty at layer relu2_1"):
        small.masks(one_pixel, ["relu2_1"])
    for mask in (torch.ones(1, 5, 32, 32), -one_pixel, one_pixel * 0.5 + 1, one_pixel * float("nan")):
        with pytest.raises(ValueError, match="mask must"):
            small.masks(mask, ["relu1_1"])


# --- unit activations ---------------------------------------------------------------------------------------------


def test_rescaled_multiplies_feature_maps(picture):
    network = random_network("vgg16")
    scales = [0.5 + 0.25 * i for i in range(13)]
    convolutions = [(each.weight, each.bias) for each in network.convolutions.values()]
    scaled = features.VGG(
        "vgg16",
        features.rescaled(convolutions, scales),
        mean=models.IMAGENET_MEAN,
        std=models.IMAGENET_STD,
    ).double()
    layers = [layer for layer in network.layers if layer.startswith("relu")]
    image = picture()
    own, other = network(image, layers), scaled(image, layers)
    for layer, scale in zip(layers, scales, strict=True):
        torch.testing.assert_close(other[layer], scale * own[layer])


def test_unit_activation_scales_bring_means_to_one(picture):
    network = random_network("vgg16")
    pictures = [picture(), picture(40, 24)]
    scales = unit_activation_scales(network, pictures)
    for layer, scale in zip([name for name in network.layers if name.startswith("relu")], scales, strict=True):
        values = np.concatenate([network(image, [layer])[layer].numpy().ravel() for image in pictures])
        assert scale * values.mean() == pytest.approx(1)
