"""How good drawn digits are: a small classifier, and FID, KID and nearest neighbours in terms of it.

The numbers compare pictures of this chapter with each other; an Inception network's FID means something else.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import torch
from torch import Tensor, nn

from ex4lib.statistics import gaussian_distance
from experiments.measures import kernel_distance

from .digits import Digits
from .methods import evaluating
from .unet import SIZE, Conv


class Classifier(nn.Module):
    """``(B, 1, 28, 28) -> (B, 10)``: convolutions, ``width`` features, a linear layer."""

    def __init__(self, width: int = 32, classes: int = 10):
        super().__init__()
        self.body = nn.Sequential(
            *(Conv(1, width), nn.MaxPool2d(2), Conv(width, 2 * width), nn.MaxPool2d(2), Conv(2 * width, 2 * width)),
            *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32 * width, width), nn.GELU()),
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@torch.no_grad()
def features(classifier: Classifier, pictures: Tensor, batch: int = 500) -> tuple[Tensor, Tensor]:
    """Features ``(N, width)`` and probabilities ``(N, 10)`` in float64 of pictures, clamped to [0, 1]."""
    found, said = [], []
    with evaluating(classifier):
        for part in pictures.clamp(0, 1).split(batch):
            inner = classifier.body(part)
            found.append(inner.double())
            said.append(classifier.head(inner).softmax(1).double())
    return torch.cat(found), torch.cat(said)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """FID of features ``(N, F)``: ``|μ_a - μ_b|² + tr(Σ_a + Σ_b - 2 (Σ_a Σ_b)^½)``; biased upward for few pictures.

    Source: Heusel et al. (2017), equation 6.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a Fréchet distance needs at least two pictures on each side, got {len(a)} and {len(b)}")
    (mean_a, covariance_a), (mean_b, covariance_b) = ((x.double().mean(0), torch.cov(x.double().T)) for x in (a, b))
    return gaussian_distance(mean_a, covariance_a, mean_b, covariance_b).clamp_min(0).item()


def nearest(pictures: Tensor, pool: Tensor) -> tuple[Tensor, Tensor]:
    """Euclidean distance ``(N,)`` of each picture to its nearest in the pool, and that one's place."""
    parts = [torch.cdist(part.flatten(1), pool.flatten(1)).min(1) for part in pictures.split(200)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


@dataclasses.dataclass(frozen=True)
class Judge:
    """A classifier with real pictures to compare with.

    ``test`` holds pictures ``(N, 1, 28, 28)`` and labels that no training saw, ``pool`` what the networks learnt from;
    pictures that are drawn anew at each use stand there in several drawings.
    """

    classifier: Classifier
    test: tuple[Tensor, Tensor]
    pool: tuple[Tensor, Tensor]

    @classmethod
    def build(cls, classifier: Classifier, train: Digits, test: Digits) -> Judge:
        """From the two splits: all of MNIST; of digits that are drawn anew, 4 and 7 drawings of each."""
        return cls(classifier, several(test, 4 * len(test), seed=101), several(train, 7 * len(train), seed=102))

    def to(self, device: torch.device) -> Judge:
        """On another device."""
        test, pool = (tuple(each.to(device) for each in pair) for pair in (self.test, self.pool))
        return Judge(self.classifier.to(device), test, pool)

    @functools.cached_property
    def scale(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each feature over the test pictures."""
        found, _ = features(self.classifier, self.test[0])
        return found.mean(0), found.std(0).clamp(min=1e-6)

    @functools.cached_property
    def real(self) -> Tensor:
        """Features of the test pictures, as `standard` makes them."""
        return self.standard(features(self.classifier, self.test[0])[0])

    def standard(self, found: Tensor) -> Tensor:
        """Features in units of `scale`, then of length √F: one strange picture cannot outweigh all others."""
        return nn.functional.normalize((found - self.scale[0]) / self.scale[1]) * math.sqrt(found.shape[1])

    @functools.cached_property
    def known(self) -> Tensor:
        """Distances of (up to 2,000) test pictures to their nearest training pictures."""
        return nearest(self.test[0][:2000], self.pool[0])[0]

    def accuracy(self) -> float:
        """Of the classifier, on the test pictures."""
        return _accuracy(features(self.classifier, self.test[0])[1], self.test[1])

    def scores(self, pictures: Tensor, labels: Tensor | None = None) -> dict:
        """Everything that is measured of drawn pictures; ``accuracy`` only with the labels that were asked for.

        ``fid`` and ``kid``: of features in units of their deviation over the test pictures and of equal length.
        ``confidence``: mean of the highest probability. ``mass``: mean brightness. ``distance``: median distance to
        the nearest training picture, in units of the same median for test pictures (1 is like a new real digit).
        ``copies``: share of pictures nearer to the training set than 1 % of the test pictures are.
        """
        pictures = pictures.clamp(0, 1)
        found, said = features(self.classifier, pictures)
        found = self.standard(found)
        own, known = nearest(pictures, self.pool[0])[0], self.known
        values = {
            "fid": frechet_distance(found, self.real),
            "kid": kernel_distance(found, self.real),
            "confidence": said.max(1).values.mean().item(),
            "mass": pictures.mean().item(),
            "mass_error": (pictures.mean((1, 2, 3)).std() / math.sqrt(len(pictures))).item(),
            "distance": (own.median() / known.median()).item(),
            "copies": (own < known.quantile(0.01)).double().mean().item(),
            "count": len(pictures),
        }
        return values if labels is None else values | {"accuracy": _accuracy(said, labels)}

    def floor(self, count: int) -> dict:
        """The same scores of ``count`` real training pictures, of equal classes: what drawing cannot be asked to beat.

        Their ``distance`` and ``copies`` mean nothing and are left out.
        """
        places = torch.cat([(self.pool[1] == label).nonzero()[: count // 10, 0] for label in range(10)])
        values = self.scores(self.pool[0][places], self.pool[1][places])
        return {key: value for key, value in values.items() if key not in ("distance", "copies")}


def several(data: Digits, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """``count`` pictures of a split with labels; of a split that is drawn anew, as many rounds as that takes."""
    order = data.order(0, seed, count if data.drawn else min(count, len(data)))
    return data.take(order, torch.Generator().manual_seed(seed))


def sheet(pictures: Tensor, columns: int) -> Tensor:
    """Digits ``(N, 1, 28, 28)`` side by side, as one picture ``(1, 3, rows · 28, columns · 28)``."""
    count = len(pictures)
    if count % columns:
        raise ValueError(f"{count} pictures do not fill rows of {columns}")
    rows = pictures.clamp(0, 1).view(count // columns, columns, SIZE, SIZE)
    flat = rows.permute(0, 2, 1, 3).reshape(1, 1, count // columns * SIZE, columns * SIZE)
    return flat.expand(1, 3, -1, -1).contiguous()


def cut(picture: Tensor) -> Tensor:
    """`sheet` undone: ``(N, 1, 28, 28)``."""
    rows, columns = (side // SIZE for side in picture.shape[-2:])
    grid = picture[0, 0].view(rows, SIZE, columns, SIZE)
    return grid.permute(0, 2, 1, 3).reshape(rows * columns, 1, SIZE, SIZE).contiguous()


def _accuracy(said: Tensor, labels: Tensor) -> float:
    return (said.argmax(1) == labels).double().mean().item()
