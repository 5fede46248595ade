"""Measures that only the experiments use: the nearest painting, other judges, perceptual distances and intervals.

Packages that only some of them need (lpips, scikit-image) are imported when those are called; they come with
``pip install "ex4lib[metrics]"``.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ex4lib import colour, images
from ex4lib.features import BLOCKS, VGG
from ex4lib.files import optional
from ex4lib.images import ImageSource
from ex4lib.statistics import at_least_float32
from experiments.metrics import NEAREST_LAYERS, middle_square, single_pair, style_distances


@dataclasses.dataclass(frozen=True)
class Specificity:
    """How often the nearest painting is the intended one.

    Attributes:
        nearest: ``(B,)``, whether the intended painting is the nearest, 1.0 or 0.0.
        ranks: ``(B,)``, the rank of the intended painting, 1 for the nearest.
        confusion: ``(P, P)``, counts of pictures by intended painting (row) and nearest painting (column).
    """

    nearest: tuple[float, ...]
    ranks: tuple[int, ...]
    confusion: tuple[tuple[int, ...], ...]

    @property
    def share(self) -> float:
        """Share of pictures whose nearest painting is the intended one; by chance 1 / P."""
        return sum(self.nearest) / len(self.nearest)

    @property
    def mean_rank(self) -> float:
        """Mean rank of the intended painting; by chance (P + 1) / 2."""
        return sum(self.ranks) / len(self.ranks)


def specificity(distances: Tensor, intended: Sequence[int] | Tensor) -> Specificity:
    """Compare distances ``(B, P)``, such as `style_distances` gives, with the painting that each picture should follow.

    A tie counts against the picture: the rank is 1 + the number of other paintings at most as far as the intended one.

    Arguments:
        intended: ``(B,)`` column of the intended painting of each picture.

    Raises:
        ValueError: no picture, a distance that is not finite, or not one column in [0, P) for each picture.
    """
    intended = torch.as_tensor(intended).flatten().long().cpu()
    distances = torch.as_tensor(distances).double().cpu()
    if distances.ndim != 2 or 0 in distances.shape or not distances.isfinite().all():
        raise ValueError(f"distances must be finite and of shape (B, P), got shape {tuple(distances.shape)}")
    count, paintings = distances.shape
    if len(intended) != count or not ((intended >= 0) & (intended < paintings)).all():
        raise ValueError(
            f"intended must give one column from 0 to {paintings - 1} for each of {count} pictures, got "
            f"{intended.tolist()}"
        )
    own = distances.gather(1, intended[:, None])
    ranks = (distances <= own).sum(1)
    confusion = torch.zeros(paintings, paintings, dtype=torch.long)
    others = distances.scatter(1, intended[:, None], torch.where(ranks[:, None] > 1, float("inf"), own))
    confusion.index_put_((intended, others.argmin(1)), torch.ones(count, dtype=torch.long), accumulate=True)
    return Specificity(
        nearest=tuple((ranks == 1).double().tolist()),
        ranks=tuple(ranks.tolist()),
        confusion=tuple(map(tuple, confusion.tolist())),
    )


def anchors(
    painting: ImageSource,
    others: Sequence[ImageSource],
    network: VGG,
    *,
    unguided: Tensor | None = None,
    layers: Sequence[str] = NEAREST_LAYERS,
) -> dict[str, float]:
    """Style distances to ``painting`` that give a number its meaning, by `style_distances`.

    Returned are ``"flat grey"``; ``"unguided"``, the mean over pictures ``(B, 3, H, W)`` without guidance if they are
    given; ``"another painting"``, the mean over ``others``; ``"another crop"``, the mean over the four corners of the
    painting's middle square, three quarters of its side each, enlarged to the same size; and ``"itself"``, which is 0.
    """

    def mean(pictures: Tensor) -> float:
        return style_distances(pictures, [painting], network, layers=layers).mean().item()

    square = images.crop_square(images.load(painting))
    found = {"flat grey": mean(torch.full_like(square, 0.5))}
    if unguided is not None:
        found["unguided"] = mean(unguided)
    if others:
        found["another painting"] = mean(torch.cat([middle_square(images.load(other)) for other in others]))
    return found | {"another crop": mean(corners(square)), "itself": mean(square)}


def corners(square: Tensor) -> Tensor:
    """The four corners of a square picture ``(1, 3, S, S)``, three quarters of its side each: ``(4, 3, R, R)``."""
    side = max(1, square.shape[-1] * 3 // 4)
    return torch.cat(
        [square[..., y, x] for y in (slice(side), slice(-side, None)) for x in (slice(side), slice(-side, None))]
    )


def random_network(seed: int = 0) -> VGG:
    """A VGG-16 with random weights: a second judge that shares no weights with any network that was optimised.

    Weights are normal with variance 2 / (9 · C_in) (He et al., 2015), biases are 0. Gram matrices of such networks are
    enough to synthesise textures: Ustyuzhaninov et al., "Texture Synthesis Using Shallow Convolutional Networks with
    Random Filters" (2016); He, Wang & Hopcroft, "A Powerful Generative Model Using Random Weights" (2016).
    """
    generator = torch.Generator().manual_seed(seed)
    convolutions, before = [], 3
    for depth, width in zip(BLOCKS["vgg16"], (64, 128, 256, 512, 512), strict=True):
        for _ in range(depth):
            weight = torch.randn(width, before, 3, 3, generator=generator) * (2 / (9 * before)) ** 0.5
            convolutions.append((weight, torch.zeros(width)))
            before = width
    return VGG("vgg16", convolutions, mean=(0.5,) * 3, std=(0.25,) * 3, name=f"vgg16-random-{seed}")


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
    within = []
    for sample in (x, y):
        kernel = (sample @ sample.T / sample.shape[1] + 1) ** 3
        within.append((kernel.sum() - kernel.trace()) / (len(sample) * (len(sample) - 1)))
    return (within[0] + within[1] - 2 * ((x @ y.T / x.shape[1] + 1) ** 3).mean()).item()


def ssim(image: ImageSource, reference: ImageSource) -> float:
    """Structural similarity (scikit-image; Gaussian window, as Wang et al. 2004), range 1."""
    own, other = single_pair(image, reference)
    return float(
        optional("skimage.metrics", "metrics", "scikit-image").structural_similarity(
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
def perceptual_distance(network: VGG, image: ImageSource, reference: ImageSource) -> float:
    """LPIPS with the lpips package's VGG-16 heads on ``network``; on the offline VGG-16 it is called LPIPS-HED.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (2018), equation 1.

    Raises:
        ValueError: the network is no VGG-16, for which the heads were trained.
    """
    if network.architecture != "vgg16":
        raise ValueError(f"the heads of LPIPS are for vgg16, got {network.name}")
    heads = _lpips_heads().to(network.mean.device)
    heads.net = _Taps(network.variant(pooling="max", padding="zeros"))
    image, reference = images.picture(image, "image"), images.picture(reference, "reference")
    if image.shape != reference.shape:
        raise ValueError(f"the pictures must have one size, got {tuple(image.shape)} and {tuple(reference.shape)}")
    try:
        return heads(image.to(network.mean), reference.to(network.mean)).mean().item()
    finally:
        heads.net = nn.Identity()


@functools.lru_cache(maxsize=1)
def _lpips_heads() -> nn.Module:
    lpips = optional("lpips", "metrics")
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


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean with the ends of its confidence interval; ``count`` values in ``clusters`` clusters of each kind."""

    mean: float
    low: float
    high: float
    count: int
    clusters: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __iter__(self):
        return iter((self.mean, self.low, self.high))


def interval(
    values: Sequence[float],
    clusters: Mapping[str, Sequence[Hashable]] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Interval:
    """Mean and percentile bootstrap interval, resampling whole clusters of every kind at once.

    Values that share a prompt, a painting or a seed are not independent. For each kind of cluster as many clusters as
    there are are drawn with replacement; a value counts as often as the product of its clusters' draws says, and the
    mean is weighted by these counts. For paired comparisons, give differences as the values.

    Source: Owen, "The pigeonhole bootstrap" (2007). With one value per cluster and one kind it is the ordinary
    bootstrap.

    Arguments:
        values: ``N`` numbers.
        clusters: labels ``N`` by kind, such as ``{"prompt": ..., "painting": ..., "seed": ...}``; None: each value is
            its own cluster.

    Raises:
        ValueError: no value, one that is not finite, labels of another length, or a confidence outside (0, 1).
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"values must be finite numbers, at least one, got shape {values.shape}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    clusters = {"value": range(len(values))} if clusters is None else clusters
    for kind, labels in clusters.items():
        if len(labels) != len(values):
            raise ValueError(f"clusters[{kind!r}] must hold {len(values)} labels, one per value, got {len(labels)}")
    weights = cluster_weights(clusters, resamples=resamples, seed=seed)
    low, high = np.quantile(weights @ values, [(1 - confidence) / 2, (1 + confidence) / 2])
    counts = {kind: len(set(labels)) for kind, labels in clusters.items()}
    return Interval(float(values.mean()), float(low), float(high), len(values), counts)


def cluster_weights(clusters: Mapping[str, Sequence[Hashable]], *, resamples: int = 4000, seed: int = 0) -> np.ndarray:
    """Weights ``(R, N)`` of N values in R resamples of `interval`, each row with the sum 1.

    With them, statistics other than a mean are resampled. Resamples that draw no value at all are left out.
    """
    random, weights = np.random.default_rng(seed), np.ones((resamples, 1))
    for labels in clusters.values():
        known = {label: number for number, label in enumerate(dict.fromkeys(labels))}
        draws = random.multinomial(len(known), [1 / len(known)] * len(known), size=resamples)
        weights = weights * draws[:, [known[label] for label in labels]]
    weights = weights[weights.sum(1) > 0]
    return weights / weights.sum(1, keepdims=True)


def brightness(image: ImageSource) -> float:
    """Mean luma in [0, 1]."""
    return colour.luminance(images.picture(image, "image")).mean().item()
