"""Statistics of features: what describes a style because it does not depend on where things are.

Each maps features ``(B, C, H, W)``, optionally weighted by a mask ``(B or 1, 1, H, W)``, to one tensor per image, in
at least float32; those of several styles blend as weighted means. ``distance(a, b)`` compares two statistics, ``(B,)``.
"""

import dataclasses
import functools
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Statistic(Protocol):
    """What a style loss is made of."""

    def __call__(self, features: Tensor, mask: Tensor | None = None) -> Tensor: ...

    def distance(self, a: Tensor, b: Tensor) -> Tensor: ...


def at_least_float32(x: Tensor) -> Tensor:
    """Half precisions become float32; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def mean_square(a: Tensor, b: Tensor) -> Tensor:
    """``mean (a - b)²`` for each element of a batch ``(B, ...)``: ``(B,)``, summed in at least float32."""
    a, b = torch.broadcast_tensors(at_least_float32(a), at_least_float32(b))
    # Torch's own loss makes one large temporary where autograd keeps four of a difference, its square and their mean.
    return F.mse_loss(a, b, reduction="none").sum(tuple(range(1, a.ndim))) / a[0].numel()


@dataclasses.dataclass(frozen=True)
class Gram:
    """Gram matrix ``G_ij = Σ_p F_ip F_jp / (C · H · W)``, compared by ``mean_ij (G_ij - G*_ij)²``.

    Shape ``(B, C, C)``. The normalisation is the PyTorch tutorial's for a batch of one.

    Source: Gatys et al. (2016), equations 3 and 4. Differs from them in the factors (C·H·W inside, mean outside).
    """

    def __call__(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        return second_moment(features, mask) / features.shape[1]

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return mean_square(a, b)


@dataclasses.dataclass(frozen=True)
class MeanVar:
    """Mean and (biased) variance of each channel, ``(B, 2, C)``, compared by ``MSE(μ, μ*) + MSE(σ², σ²*)``.

    Source: the exercise's "MeanVar" loss; Li et al. (arXiv:1701.01036) compare deviations in place of variances.
    """

    def __call__(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        rows = _rows(at_least_float32(features))
        weights = _weights(mask, rows)
        mean = _mean(rows, weights)
        return torch.cat([mean, _mean((rows - mean).square(), weights)], 1)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().mean(2).sum(1)


@dataclasses.dataclass(frozen=True)
class BuresWasserstein:
    """Mean and second raw moment ``(B, C, 1 + C)``; the squared 2-Wasserstein distance of the Gaussians, over C.

    ``W² = ‖μ - μ*‖² + tr(Σ + Σ* - 2 (Σ*^½ Σ Σ*^½)^½)``. Raw moments are kept because they, not covariances, are those
    of a mixture when blended linearly. ``epsilon`` is added to both covariances, which makes the square roots smooth.

    Source: crowsonkb, style-transfer-pytorch, with exact eigenvalues (see `gaussian_distance`) in place of
    Newton-Schulz iterations.
    """

    epsilon: float = 1e-4

    def __call__(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        rows = _rows(at_least_float32(features))
        mean = _mean(rows, _weights(mask, rows))
        return torch.cat([mean.mT, second_moment(features, mask)], 2)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return gaussian_distance(*self._moments(a), *self._moments(b), floor=self.epsilon) / a.shape[1]

    def _moments(self, statistic: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = statistic[..., :1], statistic[..., 1:]
        identity = torch.eye(raw.shape[1], dtype=raw.dtype, device=raw.device)
        return mean[..., 0], raw - mean @ mean.mT + self.epsilon * identity


@dataclasses.dataclass(frozen=True)
class SlicedWasserstein:
    """Quantiles of the features along fixed random directions, ``(B, K, Q)``, compared by their mean square.

    ``W² ≈ mean_{k,q} (F_k⁻¹(q) - F*_k⁻¹(q))²``, at mid-quantiles q = (i + ½) / Q, so that a target serves every image
    size. The directions are drawn from ``seed`` once: L-BFGS needs an objective that stays the same function.

    Source: Heitz et al., "A Sliced Wasserstein Loss for Neural Texture Synthesis" (2021), equation 6. Differs from it
    in fixed directions and in quantiles.
    """

    projections: int = 64
    quantiles: int = 256
    seed: int = 0

    def __call__(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        positions = at_least_float32(features).flatten(2)
        directions = _directions(positions.shape[1], self.projections, self.seed, positions.dtype, positions.device)
        projected = directions @ positions  # (B, K, P)
        if mask is None:
            return self._uniform_quantiles(projected.sort(2).values)
        # What is masked out goes behind the last position, where no quantile looks.
        weights = _weights(mask, positions).mT.expand(len(projected), 1, -1)
        values, order = projected.masked_fill(weights == 0, float("inf")).sort(2)
        return self._weighted_quantiles(values, weights, order)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return mean_square(a, b)

    def _levels(self, like: Tensor) -> Tensor:
        return (torch.arange(self.quantiles, dtype=like.dtype, device=like.device) + 0.5) / self.quantiles

    def _uniform_quantiles(self, values: Tensor) -> Tensor:
        # The i-th of P sorted values is the quantile (i + 1/2) / P; between them, linear.
        count = values.shape[2]
        place = (self._levels(values) * count - 0.5).clamp(0, count - 1)
        below = place.floor().long()
        above = (below + 1).clamp_max(count - 1)
        return torch.lerp(values[..., below], values[..., above], (place - below).expand_as(values[..., below]))

    def _weighted_quantiles(self, values: Tensor, weights: Tensor, order: Tensor) -> Tensor:
        mass = weights.expand_as(order).gather(2, order)
        mass = mass / mass.sum(2, keepdim=True)
        middle = mass.cumsum(2) - mass / 2
        levels = self._levels(values).expand(*values.shape[:2], -1).contiguous()
        last = (weights > 0).sum(2, keepdim=True) - 1
        above = torch.searchsorted(middle.contiguous(), levels).clamp_min(1).minimum(last).clamp_min(0)
        below = (above - 1).clamp_min(0)
        gap = middle.gather(2, above) - middle.gather(2, below)
        share = ((levels - middle.gather(2, below)) / gap.clamp_min(1e-12)).clamp(0, 1)
        return torch.lerp(values.gather(2, below), values.gather(2, above), share)


STATISTICS: dict[str, type] = {"gram": Gram, "meanvar": MeanVar, "bures": BuresWasserstein, "sliced": SlicedWasserstein}


def gaussian_distance(
    mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor, *, floor: float = 0.0
) -> Tensor:
    """Squared 2-Wasserstein distance ``(B,)`` of Gaussians, means ``(B, C)`` and covariances ``(B, C, C)``.

    ``W² = ‖μ_a - μ_b‖² + tr(Σ_a + Σ_b - 2 (Σ_b^½ Σ_a Σ_b^½)^½)``. Both square roots are taken from eigenvalues, which
    rounding may leave below the least one of Σ_a and Σ_b, ``floor``. The gradient for the moments of a is exact.

    Source: Dowson & Landau, "The Fréchet distance between multivariate normal distributions" (1982).
    """
    values, vectors = torch.linalg.eigh(covariance_b)
    root = vectors @ (values.clamp_min(floor).sqrt()[..., None] * vectors.mT)
    overlap = torch.linalg.eigvalsh(root @ covariance_a @ root).clamp_min(floor**2).sqrt().sum(-1)
    traces = (covariance_a + covariance_b).diagonal(dim1=-2, dim2=-1).sum(-1)
    return (mean_a - mean_b).square().sum(-1) + traces - 2 * overlap


def second_moment(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """Raw second moment ``Σ_p w_p F_ip F_jp / P`` ``(B, C, C)`` in at least float32, the weights' mean being 1."""
    return _SecondMoment.apply(features, _weights(mask, features))


class _SecondMoment(torch.autograd.Function):
    """``S = Xᵀ diag(w) X / P`` with the gradient ``dX = diag(w) X (dS + dSᵀ) / P``.

    Autograd would take two products in the backward pass, one for each X. The sum is made in at least float32, the
    gradient's product in the precision of the features. The gradient is no view of another tensor, so that autograd
    adds the deeper layers' gradient to it in place.
    """

    @staticmethod
    def forward(ctx, features: Tensor, weights: Tensor | None) -> Tensor:
        ctx.save_for_backward(features, weights)
        if weights is None and features.is_cuda and features.itemsize == 2 and hasattr(torch.ops.aten.bmm, "dtype"):
            rows = _rows(features)  # tensor cores multiply half precisions and add in float32 (torch 2.8 and later)
            return torch.bmm(rows.mT, rows, out_dtype=torch.float32) / rows.shape[1]
        rows = _rows(at_least_float32(features))
        weighted = rows if weights is None else rows * weights
        return weighted.mT @ rows / rows.shape[1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        features, weights = ctx.saved_tensors
        rows = _rows(features)
        symmetric = (gradient + gradient.mT) / rows.shape[1]
        product = torch.empty_like(features, memory_format=torch.channels_last)
        torch.matmul(rows, symmetric.to(rows.dtype), out=_rows(product))
        return product if weights is None else product.mul_(weights.mT.unflatten(2, features.shape[2:])), None


def _rows(x: Tensor) -> Tensor:
    """``(B, C, H, W)`` as ``(B, P, C)``: how channels-last tensors lie in memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _weights(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """The mask as weights ``(B or 1, P, 1)`` of mean 1, in the number type of ``like``."""
    if mask is None:
        return None
    weights = _rows(mask.to(like))
    return weights / weights.mean(1, keepdim=True)


def _mean(rows: Tensor, weights: Tensor | None) -> Tensor:
    """Weighted mean over the positions of ``(B, P, C)``: ``(B, 1, C)``."""
    return (rows if weights is None else rows * weights).mean(1, keepdim=True)


@functools.lru_cache(maxsize=64)
def _directions(channels: int, count: int, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(count, channels, generator=generator, dtype=torch.float64)
    return (directions / directions.norm(dim=1, keepdim=True)).to(device, dtype)
