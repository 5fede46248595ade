"""Style and content as losses: terms, and their weighted sum, one loss per image.

An `Objective` maps images ``(B, 3, H, W)`` to losses ``(B,)``; style transfer and guided diffusion drive the same one.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ex4lib import checks
from ex4lib.features import VGG
from ex4lib.images import ImageSource, check, pictures
from ex4lib.images import mask as load_mask
from ex4lib.statistics import STATISTICS, Statistic, at_least_float32, mean_square


class Term(Protocol):
    """One named part of an objective: its weight, the feature layers it reads, and its loss ``(B,)``."""

    name: str
    weight: float
    layers: tuple[str, ...]

    def loss(self, image: Tensor, features: dict[str, Tensor]) -> Tensor: ...


@dataclasses.dataclass(frozen=True)
class ContentTerm:
    """Feature reconstruction ``mean_{c,h,w} (F - F*)²`` at one layer, divided by ``unit`` ``(1 or B,)``.

    Source: Gatys et al. (2016), equation 1. Differs from it in taking the mean, as the PyTorch tutorial does.
    """

    layer: str
    target: Tensor
    weight: float = 1.0
    unit: Tensor | float = 1.0

    @classmethod
    def towards(cls, target: Tensor, layer: str, weight: float, relative: bool) -> "ContentTerm":
        """A term whose unit is 1, or if ``relative`` the mean square of each image's target."""
        return cls(layer, target, weight, _positive(target.square().mean((1, 2, 3)), layer) if relative else 1.0)

    @property
    def name(self) -> str:
        return f"content/{self.layer}"

    @property
    def layers(self) -> tuple[str, ...]:
        return (self.layer,)

    def loss(self, image: Tensor, features: dict[str, Tensor]) -> Tensor:
        _same_size(self.target, f"the content at {self.layer}", features[self.layer], "the image")
        return mean_square(features[self.layer], self.target) * (1 / self.unit)


@dataclasses.dataclass(frozen=True)
class StyleTerm:
    """Distance between a statistic of one layer's features and its target, divided by ``unit`` ``(1 or B,)``.

    ``mask`` restricts the statistic to a region; ``suffix`` is the ending of the term's name.
    """

    layer: str
    statistic: Statistic
    target: Tensor
    weight: float = 1.0
    mask: Tensor | None = None
    suffix: str = ""
    unit: Tensor | float = 1.0

    @property
    def name(self) -> str:
        return f"style/{self.layer}{self.suffix}"

    @property
    def layers(self) -> tuple[str, ...]:
        return (self.layer,)

    def loss(self, image: Tensor, features: dict[str, Tensor]) -> Tensor:
        _same_size(self.mask, f"regions at {self.layer}", features[self.layer], "the image")
        return self.statistic.distance(self.statistic(features[self.layer], self.mask), self.target) / self.unit


@dataclasses.dataclass(frozen=True)
class TotalVariation:
    """Smoothness ``mean (x_{i+1,j} - x_{i,j})² + mean (x_{i,j+1} - x_{i,j})²``: independent of the resolution."""

    weight: float = 1.0
    name = "tv"
    layers = ()

    def loss(self, image: Tensor, features: dict[str, Tensor]) -> Tensor:
        rows = mean_square(image[..., 1:, :], image[..., :-1, :])
        return rows + mean_square(image[..., 1:], image[..., :-1])


class Objective:
    """Weighted sum of terms over one pass through the feature network.

    ``objective(image)`` maps ``(B, 3, H, W)`` in [0, 1] to ``(B,)``, never averaged over the batch;
    ``objective.terms(image)`` gives the weighted parts by name.

    Raises:
        ValueError: no term, a weight that is negative or not finite, or all weights 0.
    """

    def __init__(self, network: VGG, parts: Sequence[Term]):
        if not parts:
            raise ValueError("an objective needs at least one term")
        for part in parts:
            checks.number(part.weight, f"the weight of {part.name}", low=0)
        if not any(part.weight for part in parts):
            raise ValueError("at least one of the weights of an objective must be above 0, got 0 for all")
        names = [part.name for part in parts]
        if len(set(names)) < len(names):
            raise ValueError(f"terms must have different names, got {', '.join(sorted(names))}")
        self.network, self.parts = network, tuple(parts)
        self.layers = {layer for part in parts if part.weight for layer in part.layers}

    def __call__(self, image: Tensor) -> Tensor:
        return torch.stack(list(self.terms(image).values())).sum(0)

    def terms(self, image: Tensor) -> dict[str, Tensor]:
        """Weighted loss ``(B,)`` of each term; terms of weight 0 are left out and cost nothing.

        A loss is computed as soon as its layers are reached: its gradient then takes the memory of the deeper layers'.
        """
        losses, features = {}, {}
        stages = self.network.walk(image, self.layers) if self.layers else ()
        for layer, feature in itertools.chain([("image", image)], stages):
            features[layer] = feature
            for part in self.parts:
                if part.weight and part.name not in losses and features.keys() >= set(part.layers):
                    losses[part.name] = float(part.weight) * part.loss(image, features)
        return {part.name: losses[part.name] for part in self.parts if part.weight}


def content_terms(
    network: VGG, image: Tensor, layers: str | int | Sequence[str | int], weight: float = 1.0, *, relative: bool = False
) -> list[ContentTerm]:
    """One `ContentTerm` of this weight per layer towards ``image``'s features.

    ``relative`` divides each by the mean square of its target: the loss is then ‖F - F*‖² / ‖F*‖².
    """
    names = network.names(layers)
    weight = checks.number(weight, f"the weight of content/{names[0]}", low=0)
    with torch.no_grad():
        features = network(check(image, "content image"), names)
    return [ContentTerm.towards(at_least_float32(features[layer]), layer, weight, relative) for layer in names]


def style_terms(
    network: VGG,
    images: Tensor | Sequence[Tensor],
    layers: str | int | Sequence[str | int],
    statistic: str | Statistic = "gram",
    weight: float = 1.0,
    *,
    relative: bool = False,
    layer_weights: Sequence[float] | None = None,
    style_weights: Sequence[float] | None = None,
    regions: Sequence[ImageSource] | None = None,
    style_masks: Sequence[ImageSource | None] | None = None,
    measure: Callable[[Tensor, Tensor | None, list[str]], dict[str, Tensor]] | None = None,
) -> list[StyleTerm]:
    """Style losses towards several pictures: one `StyleTerm` per layer for their blend, or per layer and region.

    Arguments:
        images: one style ``(1, 3, H, W)`` or several; sizes may differ. A batch ``(B, 3, H, W)`` gives each image
            of an optimised batch its own style.
        layers: where the statistics are taken.
        statistic: a name of `STATISTICS` or a statistic of one's own.
        weight: of each term, times the layer's entry in ``layer_weights`` (default 1).
        relative: divide each term by its target's distance from the statistic 0; for Gram matrices the loss is then
            ‖G - G*‖² / ‖G*‖², and a weight means the same for every layer, network and painting.
        style_weights: share of each style, normalised to sum 1 (default even).
        regions: for each style a mask, as `images.mask` takes it, of the part of the image that it applies to; the
            terms' names then end in the number of the style.
        style_masks: for each style a mask of the part of it that the statistics are taken from, or None.
        measure: ``(style, mask, layers)`` -> the statistics by layer; by default from one pass of the network.
    """
    images = pictures(images, "style image")
    names = network.names(layers)
    weight = checks.number(weight, f"the weight of style/{names[0]}", low=0)
    if not hasattr(statistic, "distance"):
        statistic = STATISTICS[checks.choice(statistic, "style_loss", STATISTICS)]()
    masks = [None] * len(images) if style_masks is None else style_masks
    masks = [mask if mask is None else load_mask(mask, "style_masks") for mask in masks]
    weights = [weight * share for share in checks.weights(layer_weights, len(names), "layer_weights")]
    for argument, values in (("style_masks", masks), ("regions", regions)):
        if values is not None and len(values) != len(images):
            raise ValueError(f"{argument} must be one per style: {len(images)} styles, {len(values)} masks")
    measure = measure or functools.partial(_statistics, network, statistic)
    if regions is None:
        shares = checks.weights(style_weights, len(images), "style_weights")
        parts = [(_blend(measure, images, masks, names, shares), {}, "")]
    elif style_weights is not None:
        raise ValueError("style_weights and regions exclude each other: styles either blend or have a region each")
    else:
        parts = [
            (_blend(measure, [image], [mask], names, [1.0]), network.masks(region, names), f"/{number}")
            for number, (image, mask, region) in enumerate(zip(images, masks, regions, strict=True))
        ]
    terms = []
    for targets, covered, suffix in parts:
        for name, weight in zip(names, weights, strict=True):
            target = targets[name]
            unit = _positive(statistic.distance(torch.zeros_like(target), target), name) if relative else 1.0
            terms.append(StyleTerm(name, statistic, target, weight, covered.get(name), suffix, unit))
    return terms


def _statistics(network: VGG, statistic: Statistic, image: Tensor, mask: Tensor | None, names: list[str]) -> dict:
    covered = {} if mask is None else network.masks(mask, names)
    return {name: statistic(feature, covered.get(name)) for name, feature in network(image, names).items()}


@torch.no_grad()
def _blend(measure: Callable, images, masks, names: list[str], shares: list[float]) -> dict[str, Tensor]:
    """The weighted mean of the images' statistics, by layer."""
    targets = dict.fromkeys(names, 0.0)
    for image, mask, share in zip(images, masks, shares, strict=True):
        _same_size(mask, "style_masks", image, "their styles")
        for name, value in measure(check(image, "style image"), mask, names).items():
            targets[name] = targets[name] + share / sum(shares) * value
    return targets


def _same_size(part: Tensor | None, argument: str, whole: Tensor, owner: str) -> None:
    if part is not None and part.shape[-2:] != whole.shape[-2:]:
        got, size = (f"{grid.shape[-2]} x {grid.shape[-1]}" for grid in (part, whole))
        raise ValueError(f"{argument} must have the size of {owner}: {size}, got {got}")


def _positive(unit: Tensor, layer: str) -> Tensor:
    norm = unit.min().item()
    if not 0 < norm < float("inf"):
        raise ValueError(f"layer {layer} gives the target a norm of {norm}, by which a relative loss cannot be divided")
    return unit
