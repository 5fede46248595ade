"""Numbers that judge pictures: distances to a style, to a photograph and to a reference picture."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ex4lib import checks, colour, images, video
from ex4lib.features import VGG
from ex4lib.images import ImageSource
from ex4lib.statistics import STATISTICS, Statistic, at_least_float32, gaussian_distance, second_moment

#: Layers that no recipe of this library optimises.
HELD_OUT = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
JUDGED_SIZE = 256
#: Layers and size of the pictures for `style_distances`.
NEAREST_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")
NEAREST_SIZE = 128


@torch.no_grad()
def style_distances(
    pictures: Tensor,
    paintings: Sequence[ImageSource] | Mapping[str, Tensor],
    network: VGG,
    *,
    layers: Sequence[str] = NEAREST_LAYERS,
    batch: int = 32,
) -> Tensor:
    """Symmetric Gram distances ``(B, P)`` of every picture to every painting, in float64 on the CPU.

    ``d(a, b) = mean_l ‖G_l(a) - G_l(b)‖² / (‖G_l(a)‖ · ‖G_l(b)‖)`` for Gram matrices ``G_l`` at layer l, of the middle
    squares at 128 px, in the network as it was trained (max pooling, zero padding). 0 is the same style; the division
    by both norms keeps any single painting from being everybody's nearest. Nothing bounds the distance above.

    Arguments:
        pictures: ``(B, 3, H, W)`` in [0, 1].
        paintings: what `images.load` takes, one picture each; or their `painting_grams`, to compute those once.
        network: the judge; not the variant that guidance optimised.
        batch: pictures in one forward pass.
    """
    network = network.variant(pooling="max", padding="zeros")
    pictures = images.check(pictures, "pictures")
    targets = paintings if isinstance(paintings, Mapping) else painting_grams(paintings, network, layers)
    rows = []
    for part in pictures.split(batch):
        vectors = _gram_vectors(middle_square(part), network, targets)
        rows.append(torch.stack([_relative_distance(vectors[layer], targets[layer]) for layer in targets]).mean(0))
    return torch.cat(rows).cpu()


@torch.no_grad()
def painting_grams(
    paintings: Sequence[ImageSource], network: VGG, layers: Sequence[str] = NEAREST_LAYERS
) -> dict[str, Tensor]:
    """Flattened Gram matrices ``(P, C²)`` of the middle squares at 128 px, by layer, for `style_distances`."""
    network = network.variant(pooling="max", padding="zeros")
    squares = torch.cat([middle_square(images.load(painting)) for painting in paintings])
    return _gram_vectors(squares, network, layers)


def middle_square(picture: Tensor) -> Tensor:
    return images.resize(images.crop_square(picture), (NEAREST_SIZE, NEAREST_SIZE))


def _gram_vectors(pictures: Tensor, network: VGG, layers: Iterable[str]) -> dict[str, Tensor]:
    """Flattened Gram matrices ``(B, C²)`` by layer, in float64."""
    features = network(pictures.to(network.mean), layers)
    return {layer: second_moment(feature).flatten(1).double() for layer, feature in features.items()}


def _relative_distance(a: Tensor, b: Tensor) -> Tensor:
    """``‖a_i - b_j‖² / (‖a_i‖ ‖b_j‖)`` for rows of ``a`` and ``b``."""
    norm_a, norm_b = a.norm(dim=1)[:, None], b.norm(dim=1)[None]
    return (norm_a / norm_b + norm_b / norm_a - 2 * (a @ b.T) / (norm_a * norm_b)).clamp_min(0)


def style_distance(
    network: VGG,
    image: ImageSource,
    style: ImageSource,
    *,
    layers: Sequence[str] = HELD_OUT,
    statistic: str | Statistic = "gram",
) -> float:
    """Mean of `statistic_distances` over the pictures of ``image``."""
    return statistic_distances(network, image, style, layers=layers, statistic=statistic).mean().item()


@torch.no_grad()
def statistic_distances(
    network: VGG,
    image: Tensor,
    style: Tensor,
    *,
    layers: Sequence[str] = HELD_OUT,
    statistic: str | Statistic = "gram",
) -> Tensor:
    """Mean over layers of ``d(S, S*) / d(0, S*)`` for each picture, ``(B,)``; for Gram matrices ``‖G - G*‖² / ‖G*‖²``.

    Both pictures are judged at a longer side of 256 px, or the image's own where that is less (an enlarged picture
    would be judged by its blur), in the network as it was trained (max pooling, zero padding). 0 is the style itself;
    nothing bounds it above.
    """
    network = network.variant(pooling="max", padding="zeros")
    image, style = _pictures(image, style)
    if not hasattr(statistic, "distance"):
        statistic = STATISTICS[checks.choice(statistic, "statistic", STATISTICS)]()
    own, other = (
        {layer: statistic(feature) for layer, feature in network(_judged(picture, network, image), layers).items()}
        for picture in (image, style)
    )
    distances = [
        statistic.distance(own[layer], other[layer]) / statistic.distance(torch.zeros_like(other[layer]), other[layer])
        for layer in other
    ]
    return torch.stack(distances).mean(0)


@torch.no_grad()
def colour_distance(image: ImageSource, style: ImageSource) -> float:
    """Squared 2-Wasserstein distance of the pixels' colours taken as Gaussians, relative to that of a black picture.

    ``W² / (‖μ*‖² + tr Σ*)`` with ``W² = ‖μ - μ*‖² + tr(Σ + Σ* - 2 (Σ*^½ Σ Σ*^½)^½)``. Squared and relative as
    `texture_distance` is, so that the two compare: 0 is the style itself, and a picture of zeros scores 1.
    """
    own, other = (colour.colour_moments(images.resize(x, JUDGED_SIZE)) for x in _pictures(image, style))
    squared = gaussian_distance(*own, *other)
    black = other[0].square().sum(1) + other[1].diagonal(dim1=1, dim2=2).sum(1)
    return (squared.clamp_min(0) / black).mean().item()


def texture_distance(
    network: VGG, image: ImageSource, style: ImageSource, *, layers: Sequence[str] = HELD_OUT
) -> float:
    """`style_distance` after the image's colours were matched to the style's: what is left is texture.

    Squared and relative to a picture without features, as `colour_distance` is to a black one.
    """
    return style_distance(network, colour.match_colour(image, style), style, layers=layers)


@torch.no_grad()
def content_error(network: VGG, image: ImageSource, content: ImageSource, *, layer: str = "relu4_2") -> float:
    """Normalised feature error ``‖F - F*‖² / ‖F*‖²`` at one layer; 1 is what an image without features scores."""
    network = network.variant(pooling="max", padding="zeros")
    (layer,) = network.names(layer)
    image, content = _pictures(image, content, "content")
    content = _judged(content, network, image)
    image = images.resize(image.to(content), tuple(content.shape[-2:]))
    own, other = (at_least_float32(network(picture, [layer])[layer]) for picture in (image, content))
    return ((own - other).square().sum() / other.square().sum()).item()


def psnr(image: ImageSource, reference: ImageSource) -> float:
    """Peak signal-to-noise ratio ``-10 log10 mean (x - y)²`` in dB, for pictures of range 1."""
    own, other = single_pair(image, reference)
    with np.errstate(divide="ignore"):
        return float(-10 * np.log10(np.square(own - other).mean()))


def flicker(results: Iterable[Tensor], frames: Iterable[Tensor]) -> float:
    """The mean of ``(x_t - warp(x_{t-1}, w_t))²`` over consistent pixels of a video, with the flow w of ``frames``.

    ``results`` are the painted ``frames``, pictures ``(1, 3, H, W)`` of one size; 0 if there are fewer than two.
    Source: the short-term temporal loss of Ruder et al., "Artistic style transfer for videos" (2016).
    """
    total = count = 0.0
    for (before, earlier), (result, later) in itertools.pairwise(zip(results, frames, strict=True)):
        flow, mask = video.motion(earlier, later)
        total += (mask * (result - video.warp(before, flow)).square().mean(1, keepdim=True)).sum().item()
        count += mask.sum().item()
    return total / max(count, 1.0)


def _pictures(image: ImageSource, other: ImageSource, argument: str = "style") -> tuple[Tensor, Tensor]:
    """Both pictures, on the first one's device."""
    image = images.picture(image, "image")
    return image, images.picture(other, argument).to(image.device)


def _judged(picture: Tensor, network: VGG, image: Tensor) -> Tensor:
    """``picture`` at the size at which ``image`` is judged."""
    return images.resize(picture.to(network.mean), min(JUDGED_SIZE, max(image.shape[-2:])))


def single_pair(image: ImageSource, reference: ImageSource) -> tuple[np.ndarray, np.ndarray]:
    """Two single pictures of one size as float64 arrays ``(H, W, 3)``."""
    image, reference = _pictures(image, reference, "reference")
    if image.shape != reference.shape or len(image) != 1:
        raise ValueError(
            f"the two pictures must be single and of one size, got {tuple(image.shape)} and {tuple(reference.shape)}"
        )
    own, other = (x[0].detach().clamp(0, 1).permute(1, 2, 0).cpu().double().numpy() for x in (image, reference))
    return own, other
