"""Objectives for pictures whose features do not fit into memory: the picture is seen in overlapping tiles.

Gram matrices and raw moments are means over positions. One pass without gradients finds those of the whole picture as
the mean over its tiles, weighted by their areas; a second pass carries the gradient through the network, tile by tile.
A tile holds all pixels that its positions depend on: loss and gradient are those of the whole picture up to rounding.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ex4lib import checks
from ex4lib.features import VGG
from ex4lib.losses import ContentTerm, Objective, StyleTerm, Term, TotalVariation, style_terms
from ex4lib.statistics import STATISTICS, Statistic, at_least_float32
from ex4lib.transfer import Recipe

#: Tiles begin at multiples of this, where the grids of all layers have a position.
ALIGNMENT = 32
#: Side of a tile in pixels without its overlap, by default.
TILE = 512
#: Pairs of vectors that L-BFGS keeps where pictures are tiled; each has the size of the picture.
HISTORY = 3
#: Losses whose statistics are means over positions.
LINEAR = ("gram", "bures")


@dataclasses.dataclass(frozen=True)
class TiledRecipe(Recipe):
    """A recipe that sees pictures in tiles where they are larger, for `transfer.stylize`.

    ``tile`` is the side of a tile in pixels without its overlap, a multiple of `ALIGNMENT`.
    """

    tile: int = TILE

    def __post_init__(self):
        super().__post_init__()
        checks.size(self.tile, "tile", multiple=ALIGNMENT)

    def objective(self, network: VGG, content: Tensor, styles: Sequence[Tensor], **options) -> Objective:
        if max(len(_spans(side, self.tile)) for side in content.shape[-2:]) == 1:
            return super().objective(network, content, styles, **options)
        return TiledObjective(self, network, content, styles, **options)


class TiledObjective(Objective):
    """`transfer.Recipe.objective` in tiles: images ``(B, 3, H, W)`` in [0, 1] -> losses ``(B,)``.

    Arguments:
        recipe: its style loss must be one of `LINEAR`.
        network, content, styles: the feature network, and pictures ``(B, 3, H, W)``.
        options: style_weights, regions and style_masks of `losses.style_terms`.
    """

    history = HISTORY

    def __init__(self, recipe: TiledRecipe, network: VGG, content: Tensor, styles: Sequence[Tensor], **options):
        self.tile, self.size = int(recipe.tile), tuple(content.shape[-2:])
        self.statistic: Statistic = STATISTICS[checks.choice(recipe.style_loss, "style_loss in tiles", LINEAR)]()
        self.network = network.variant(pooling=recipe.pooling, padding=recipe.padding)
        options |= {"relative": recipe.relative, "layer_weights": recipe.layer_weights, "measure": self._statistics}
        weighted = (recipe.style_layers, self.statistic, recipe.style_weight)
        parts = [*self._content(content, recipe), *style_terms(self.network, styles, *weighted, **options)]
        super().__init__(self.network, [*parts, TotalVariation(recipe.tv_weight)])
        self.parts = tuple(part for part in self.parts if part.weight)

    def terms(self, image: Tensor) -> dict[str, Tensor]:
        """Weighted loss ``(B,)`` of each term. Only their sum has the right gradient: one term carries all of it."""
        values = _Terms.apply(image, self)
        return dict(zip((part.name for part in self.parts), values, strict=True))

    def evaluate(self, image: Tensor, gradient: bool) -> tuple[list[Tensor], Tensor | None]:
        """Losses ``(B,)`` by term and, if asked for, the gradient of their sum, like ``image``."""
        if image.shape[-2:] != self.size:
            raise ValueError(f"the image must have the content's size {self.size}, got {tuple(image.shape[-2:])}")
        losses, slopes = {}, {}
        for window in self._tiles(image):
            for part, value in self._shares(window, window.crop(image), self.parts):
                losses[part.name] = losses.get(part.name, 0.0) + value
        for part in self.parts:
            if isinstance(part, StyleTerm):
                with torch.enable_grad():
                    statistic = losses[part.name].requires_grad_()
                    loss = part.weight * self.statistic.distance(statistic, part.target) / part.unit
                    (slopes[part.name],) = torch.autograd.grad(loss.sum(), statistic)
                losses[part.name] = loss.detach()
        with torch.enable_grad():
            smooth = image.detach().requires_grad_()
            variation = [part.weight * part.loss(smooth, {}) for part in self.parts if part.name == "tv"]
            total = torch.autograd.grad(variation[0].sum(), smooth)[0] if variation else torch.zeros_like(image)
        losses |= {"tv": variation[0].detach()} if variation else {}
        if gradient:
            for window in self._tiles(image):
                window.crop(total).add_(self._gradient(window, window.crop(image), slopes))
        return [losses[part.name] for part in self.parts], total if gradient else None

    def _shares(self, window: "_Window", crop: Tensor, parts: Sequence[Term]) -> Iterator[tuple[Term, Tensor]]:
        """What a tile adds to the statistic of each style term, and to the weighted loss of each content term."""
        features = self.network(crop, {layer for part in parts for layer in part.layers})
        for part in parts:
            if isinstance(part, ContentTerm):
                core = at_least_float32(window.cut(features[part.layer], part.layer, local=True))
                square = (core - window.cut(part.target, part.layer)).square()
                yield part, part.weight * square.sum((1, 2, 3)) * (1 / part.unit) / part.target[0].numel()
            elif isinstance(part, StyleTerm) and (share := window.share(part.mask, part.layer)):
                mask = None if part.mask is None else window.cut(part.mask, part.layer)
                yield part, share * self.statistic(window.cut(features[part.layer], part.layer, local=True), mask)

    def _gradient(self, window: "_Window", crop: Tensor, slopes: dict[str, Tensor]) -> Tensor:
        with torch.enable_grad():
            crop = crop.detach().clone().requires_grad_()
            surrogate = 0.0 * crop.sum()  # a tile outside of all regions may have no share in any term
            for part, value in self._shares(window, crop, self.parts):
                surrogate = surrogate + (slopes.get(part.name, 1.0) * value).sum()
            return torch.autograd.grad(surrogate, crop)[0]

    @torch.no_grad()
    def _statistics(self, image: Tensor, mask: Tensor | None, layers: list[str]) -> dict[str, Tensor]:
        """The statistics of a whole style, or of the part of it that a mask covers, by layer."""
        covered = {} if mask is None else self.network.masks(mask, layers)
        parts = [StyleTerm(layer, self.statistic, torch.empty(0), 1.0, covered.get(layer)) for layer in layers]
        statistics = dict.fromkeys(layers, 0.0)
        for window in self._tiles(image, layers):
            for part, value in self._shares(window, window.crop(image), parts):
                statistics[part.layer] = statistics[part.layer] + value
        return statistics

    @torch.no_grad()
    def _content(self, image: Tensor, recipe) -> list[ContentTerm]:
        layers = self.network.names(recipe.content_layers)
        targets: dict[str, Tensor] = {}
        for window in self._tiles(image, layers):
            features = self.network(window.crop(image), layers)
            for layer in layers:
                core = at_least_float32(window.cut(features[layer], layer, local=True))
                shape = (*core.shape[:2], *(side // window.strides[layer] for side in image.shape[-2:]))
                target = targets.setdefault(layer, core.new_empty(shape))
                window.cut(target, layer).copy_(core)
        weight, relative = recipe.content_weight, recipe.relative
        return [ContentTerm.towards(targets[layer], layer, weight, relative) for layer in layers]

    def _tiles(self, image: Tensor, layers: Iterable[str] | None = None) -> Iterator["_Window"]:
        """The tiles of a picture, row by row."""
        chain = self.network.layers[: max(map(self.network.layers.index, layers or self.layers)) + 1]
        strides, stride, reach = {}, 1, 0
        for layer in chain:
            reach += stride * layer.startswith("conv")  # pixels beyond its own that a position depends on
            stride *= 2 if layer.startswith("pool") else 1
            strides[layer] = stride
        margin = -(-reach // ALIGNMENT) * ALIGNMENT
        height, width = image.shape[-2:]
        for top, bottom in _spans(height, self.tile):
            for left, right in _spans(width, self.tile):
                yield _Window((top, left), (bottom, right), margin, (height, width), strides)


@dataclasses.dataclass(frozen=True)
class _Window:
    """A tile: the core that it stands for, and around it a margin of what the core depends on."""

    start: tuple[int, int]
    end: tuple[int, int]
    margin: int
    size: tuple[int, int]
    strides: dict[str, int]

    def crop(self, image: Tensor) -> Tensor:
        """The tile's pixels with the margin, as a view."""
        edges = zip(self.start, self.end, strict=True)
        rows, columns = (slice(max(0, start - self.margin), end + self.margin) for start, end in edges)
        return image[..., rows, columns]

    def cut(self, grid: Tensor, layer: str, *, local: bool = False) -> Tensor:
        """The core on a layer's grid: of the whole picture, or with ``local`` of this tile with its margin."""
        slices = []
        for start, end in zip(self.start, self.end, strict=True):
            offset = max(0, start - self.margin) // self.strides[layer] if local else 0
            slices.append(slice(start // self.strides[layer] - offset, end // self.strides[layer] - offset))
        return grid[..., slices[0], slices[1]]

    def share(self, mask: Tensor | None, layer: str) -> float:
        """The core's share of all positions, or of the mask."""
        if mask is not None:
            return (self.cut(mask, layer).double().sum() / mask.double().sum()).item()
        stride, sides = self.strides[layer], zip(self.start, self.end, self.size, strict=True)
        return math.prod((end // stride - start // stride) / (size // stride) for start, end, size in sides)


class _Terms(torch.autograd.Function):
    """The losses of a `TiledObjective`, stacked; the gradient is that of their sum."""

    @staticmethod
    def forward(ctx, image: Tensor, objective: TiledObjective) -> Tensor:
        losses, gradient = objective.evaluate(image.detach(), ctx.needs_input_grad[0])
        ctx.save_for_backward(gradient)
        return torch.stack([loss.to(image.dtype) for loss in losses])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope: Tensor):
        (gradient,) = ctx.saved_tensors
        if not torch.equal(slope, slope[:1].expand_as(slope)):
            raise RuntimeError("the terms of a tiled objective have no gradients of their own, only their sum has")
        return gradient * slope[0].view(-1, 1, 1, 1), None


def _spans(side: int, tile: int) -> list[tuple[int, int]]:
    """Where the cores begin and end along a side; the last one takes up to half a tile more, or less."""
    starts = [number * tile for number in range(max(1, round(side / tile)))]
    return list(zip(starts, [*starts[1:], side], strict=True))
