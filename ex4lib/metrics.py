"""Judging pictures with numbers that were not optimised."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence

import lpips
import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn

from ex4lib import colour, images
from ex4lib.features import VGG
from ex4lib.statistics import STATISTICS, Statistic, at_least_float32

#: Layers no recipe of ours optimises.
HELD_OUT = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
JUDGED_SIZE = 256


@torch.no_grad()
def style_distance(
    network: VGG,
    image: Tensor,
    style: Tensor,
    *,
    layers: Sequence[str] = HELD_OUT,
    statistic: str | Statistic = "gram",
) -> float:
    """Mean over layers of ``d(S, S*) / d(0, S*)``; for Gram matrices ``‖G - G*‖² / ‖G*‖²``.

    Both pictures are judged at a longer side of 256 px, or the image's own where that is less (an enlarged picture
    would be judged by its blur), in the network as it was trained (max pooling, zero padding). 0 is the style itself;
    nothing bounds it above.
    """
    network = network.variant(pooling="max", padding="zeros")
    statistic = STATISTICS[statistic]() if isinstance(statistic, str) else statistic
    own, other = (
        {layer: statistic(feature) for layer, feature in network(_judged(picture, network, image), layers).items()}
        for picture in (image, style)
    )
    distances = [
        statistic.distance(own[layer], other[layer]) / statistic.distance(torch.zeros_like(other[layer]), other[layer])
        for layer in other
    ]
    return torch.stack(distances).mean().item()


@torch.no_grad()
def colour_distance(image: Tensor, style: Tensor) -> float:
    """2-Wasserstein distance of the pixels' colours taken as Gaussians, in units of the image's range.

    ``W² = ‖μ - μ*‖² + tr(Σ + Σ* - 2 (Σ*^½ Σ Σ*^½)^½)``; 0.1 is a shift of every pixel by a tenth of the range.
    """
    (mean, covariance), (mean_style, covariance_style) = (
        colour.colour_moments(images.resize(x, JUDGED_SIZE)) for x in (image, style)
    )
    eigenvalues = torch.linalg.eigvals(covariance @ covariance_style).real.clamp_min(0)
    traces = (covariance + covariance_style).diagonal(dim1=1, dim2=2).sum(1)
    squared = (mean - mean_style).square().sum(1) + traces - 2 * eigenvalues.sqrt().sum(1)
    return squared.clamp_min(0).sqrt().mean().item()


def texture_distance(network: VGG, image: Tensor, style: Tensor, *, layers: Sequence[str] = HELD_OUT) -> float:
    """`style_distance` after the image's colours were matched to the style's: what is left is texture."""
    return style_distance(network, colour.match_colour(image, style), style, layers=layers)


@torch.no_grad()
def content_error(network: VGG, image: Tensor, content: Tensor, *, layer: str = "relu4_2") -> float:
    """Normalised feature error ``‖F - F*‖² / ‖F*‖²`` at one layer; 1 is what an image without features scores."""
    network = network.variant(pooling="max", padding="zeros")
    layer = network.resolve(layer)
    content = _judged(content, network, image)
    image = images.resize(images.check(image, "image").to(content), tuple(content.shape[-2:]))
    own, other = (at_least_float32(network(picture, [layer])[layer]) for picture in (image, content))
    return ((own - other).square().sum() / other.square().sum()).item()


def kernel_distance(features: Tensor, reference: Tensor) -> float:
    """KID, the squared maximum mean discrepancy of two sets of features ``(N, D)`` with the kernel ``(x·y/D + 1)³``.

    Unbiased, so that two sets of the same distribution give 0 on average and may give a little less. Source:
    Bińkowski et al., "Demystifying MMD GANs" (2018), equation 4. The features are a judge's, not Inception's: numbers
    of other papers do not compare.

    Raises:
        ValueError: fewer than two pictures on a side.
    """
    if min(len(features), len(reference)) < 2:
        raise ValueError(
            f"a kernel distance needs at least two pictures on each side, got {len(features)} and {len(reference)}"
        )
    x, y = features.double(), reference.double()
    own = []
    for each in (x, y):
        kernel = (each @ each.T / each.shape[1] + 1) ** 3
        own.append((kernel.sum() - kernel.trace()) / (len(each) * (len(each) - 1)))
    return (own[0] + own[1] - 2 * ((x @ y.T / x.shape[1] + 1) ** 3).mean()).item()


def psnr(image: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB (scikit-image), range 1."""
    return float(peak_signal_noise_ratio(*_arrays(image, reference), data_range=1.0))


def ssim(image: Tensor, reference: Tensor) -> float:
    """Structural similarity (scikit-image; Gaussian window, as Wang et al. 2004), range 1."""
    own, other = _arrays(image, reference)
    return float(
        structural_similarity(
            own,
            other,
            data_range=1.0,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


@torch.no_grad()
def perceptual_distance(network: VGG, image: Tensor, reference: Tensor) -> float:
    """LPIPS with the lpips package's VGG-16 heads on ``network``; on the offline VGG-16 it is called LPIPS-HED.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (2018), equation 1.

    Raises:
        ValueError: the network is no VGG-16, for which the heads were trained.
    """
    if network.architecture != "vgg16":
        raise ValueError(f"the heads of LPIPS are for vgg16, got {network.name}")
    heads = _lpips_heads().to(network.mean.device)
    heads.net = _Taps(network.variant(pooling="max", padding="zeros"))
    try:
        return heads(image.to(network.mean), reference.to(network.mean)).mean().item()
    finally:
        heads.net = nn.Identity()


@functools.lru_cache(maxsize=1)
def _lpips_heads() -> lpips.LPIPS:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lpips calls torchvision the old way
        heads = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).requires_grad_(False).eval()
    heads.scaling_layer = nn.Identity()  # normalisation lives in our network
    return heads


class _Taps(nn.Module):
    """Our network under the interface of lpips."""

    def __init__(self, network: VGG):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> list[Tensor]:
        layers = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
        features = self.network(image, layers)
        return [at_least_float32(features[layer]) for layer in layers]


def brightness(image: Tensor) -> float:
    """Mean luma in [0, 1]."""
    return colour.luminance(image).mean().item()


def _judged(picture: Tensor, network: VGG, image: Tensor) -> Tensor:
    """``picture`` at the size at which ``image`` is judged."""
    picture = images.check(picture, "image").to(network.mean)
    return images.resize(picture, min(JUDGED_SIZE, max(image.shape[-2:])))


def _arrays(image: Tensor, reference: Tensor) -> tuple[np.ndarray, np.ndarray]:
    if image.shape != reference.shape or len(image) != 1:
        raise ValueError(
            f"the two pictures must be single and of one size, got {tuple(image.shape)} and {tuple(reference.shape)}"
        )
    own, other = (x[0].detach().clamp(0, 1).permute(1, 2, 0).cpu().double().numpy() for x in (image, reference))
    return own, other
