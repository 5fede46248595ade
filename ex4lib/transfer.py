"""The recipes of the exercise's first part: style transfer, feature inversion, texture synthesis.

Each builds objectives, one per scale, for the loop in `optimisation`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ex4lib import colour, images
from ex4lib.features import VGG, check_mask
from ex4lib.losses import Objective, TotalVariation, content_terms, style_terms
from ex4lib.optimisation import Result, Step, finish, optimise


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The weights and layers of a style transfer.

    ``relative`` losses are fractions of their targets' norms (see `losses.style_terms`), so that the same weights
    serve every pair of pictures; ``layer_weights`` multiply ``style_weight``.
    """

    content_layers: tuple[str, ...] = ("relu4_2",)
    style_layers: tuple[str, ...] = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
    layer_weights: tuple[float, ...] | None = (1.6, 1.0, 0.8, 0.4, 0.2)
    style_loss: str = "gram"
    content_weight: float = 1.0
    style_weight: float = 1.0
    tv_weight: float = 16.0
    relative: bool = True
    pooling: str = "average"
    padding: str = "replicate"

    def objective(
        self,
        network: VGG,
        content: Tensor,
        styles: Sequence[Tensor],
        *,
        blend: Sequence[float] | None = None,
        masks: Sequence[Tensor] | None = None,
    ) -> Objective:
        """The objective of this recipe; with ``masks`` each style has its own region, else the styles blend."""
        network = network.variant(pooling=self.pooling, padding=self.padding)
        options = {"relative": self.relative, "layer_weights": self.layer_weights}
        parts = list(content_terms(network, content, self.content_layers, self.content_weight, relative=self.relative))
        arguments = (self.style_layers, self.style_loss, self.style_weight)
        if masks is None:
            parts += style_terms(network, styles, *arguments, blend=blend, **options)
        else:
            if blend is not None:
                raise ValueError("blend and masks exclude each other: styles either mix or have a region each")
            if len(masks) != len(styles):
                raise ValueError(f"masks must be one per style: {len(styles)} styles, {len(masks)} masks")
            for number, (style, mask) in enumerate(zip(styles, masks, strict=True)):
                parts += style_terms(network, style, *arguments, mask=mask, region=f"/{number}", **options)
        return Objective(network, [*parts, TotalVariation(self.tv_weight)])


DEFAULT = Recipe()

#: The PyTorch tutorial's objective. Differs from the tutorial in the optimisation only: it clamps pixels in the
#: closure, which `optimise` avoids.
TUTORIAL = Recipe(
    content_layers=("conv_4",),
    style_layers=("conv_1", "conv_2", "conv_3", "conv_4", "conv_5"),
    layer_weights=None,
    style_weight=1e6,
    tv_weight=0.0,
    relative=False,
    pooling="max",
    padding="zeros",
)


def stylize(
    network: VGG,
    content: Tensor,
    style: Tensor | Sequence[Tensor],
    *,
    recipe: Recipe = DEFAULT,
    size: int = 256,
    scales: Sequence[int] | None = None,
    evaluations: int = 300,
    start: str | Tensor = "content",
    blend: Sequence[float] | None = None,
    masks: Sequence[Tensor] | None = None,
    style_scale: float = 1.0,
    keep_colour: str = "no",
    optimiser: str = "lbfgs",
    generator: torch.Generator | None = None,
    progress: bool = False,
    callback: Callable[[Step], None] | None = None,
) -> Result:
    """Paint ``content`` in the style of one or several pictures.

    Arguments:
        content: ``(1, 3, H, W)``.
        style: a picture or several, blended by ``blend`` or each in its region of ``masks``.
        recipe: layers, loss and weights.
        size: longer side of the result in pixels.
        scales: longer sides from coarse to fine, the last being ``size``; default doubles from 128.
        evaluations: in all, shared out evenly over the scales.
        start: ``"content"``, ``"noise"``, ``"grey"``, ``"statistics"`` (noise with the style's colours) or a picture.
        style_scale: longer side of the style relative to ``size``: larger gives larger brush strokes.
        keep_colour: ``"no"``; ``"match"`` recolours the style to the photograph's mean and covariance first;
            ``"luminance"`` transfers grey values only and keeps the photograph's chroma.

    Source: Gatys, Ecker & Bethge, "Image Style Transfer Using Convolutional Neural Networks" (2016); coarse to fine
    after Gatys et al., "Controlling Perceptual Factors in Neural Style Transfer" (2017); colour after Gatys et al.,
    "Preserving Color in Neural Artistic Style Transfer" (2016).

    Raises:
        ValueError: any argument outside what is named here, before the first evaluation.
    """
    steps = stylize_steps(
        network,
        content,
        style,
        recipe=recipe,
        size=size,
        scales=scales,
        evaluations=evaluations,
        start=start,
        blend=blend,
        masks=masks,
        style_scale=style_scale,
        keep_colour=keep_colour,
        optimiser=optimiser,
        generator=generator,
    )
    return finish(steps, progress=progress, callback=callback)


def stylize_steps(
    network: VGG,
    content: Tensor,
    style: Tensor | Sequence[Tensor],
    *,
    recipe: Recipe,
    size: int,
    scales: Sequence[int] | None,
    evaluations: int,
    start: str | Tensor,
    blend: Sequence[float] | None,
    masks: Sequence[Tensor] | None,
    style_scale: float,
    keep_colour: str,
    optimiser: str,
    generator: torch.Generator | None,
) -> Iterator[Step]:
    """The loop of `stylize`, a `Step` per evaluation over all scales."""
    where = network.mean.device
    content = images.check(content, "content").to(where)
    styles = [images.check(each, "style").to(where) for each in ([style] if isinstance(style, Tensor) else style)]
    if not styles:
        raise ValueError("at least one style is needed")
    masks = None if masks is None else [check_mask(mask).to(where) for mask in masks]
    scales = list(scales or _doubling(size))
    if scales != sorted(scales) or scales[-1] != size or scales[0] < 1:
        raise ValueError(f"scales must rise to size {size}, got {scales}")
    if evaluations < len(scales):
        raise ValueError(f"evaluations must be at least one per scale ({len(scales)}), got {evaluations}")
    if not style_scale > 0:
        raise ValueError(f"style_scale must be positive, got {style_scale}")
    if keep_colour not in ("no", "match", "luminance"):
        raise ValueError(f"keep_colour must be no, match or luminance, got {keep_colour!r}")
    picture, finished = content, content
    if keep_colour == "match":
        styles = [colour.match_colour(each, content) for each in styles]
    elif keep_colour == "luminance":
        styles = [colour.match_luminance(each, content) for each in styles]
        picture = colour.luminance(content).expand(-1, 3, -1, -1).contiguous()
    shares = [evaluations // len(scales)] * len(scales)
    shares[-1] += evaluations - sum(shares)
    done = 0
    for number, (scale, share) in enumerate(zip(scales, shares, strict=True)):
        target = images.resize(picture, scale)
        grid = tuple(target.shape[-2:])
        objective = recipe.objective(
            network,
            target,
            [images.resize(each, round(scale * style_scale)) for each in styles],
            blend=blend,
            masks=None if masks is None else [images.resize(mask, grid) for mask in masks],
        )
        init = images.resize(finished, grid) if number else starting_image(start, target, styles[0], generator)
        for step in optimise(objective, init, optimiser=optimiser, evaluations=share):
            yield dataclasses.replace(
                step,
                index=done + step.index,
                total=evaluations,
                _decode=_with_chroma(step._decode, target, content) if keep_colour == "luminance" else step._decode,
            )
        finished = step.best
        done += share


def invert(
    network: VGG,
    target: Tensor,
    layer: str | int,
    *,
    start: str | Tensor = "noise",
    tv_weight: float = 0.0,
    evaluations: int = 300,
    optimiser: str = "lbfgs",
    generator: torch.Generator | None = None,
    progress: bool = False,
    callback: Callable[[Step], None] | None = None,
) -> Result:
    """An image with the features of ``target`` at one layer: ``argmin_x ‖F(x) - F(target)‖² / ‖F(target)‖²``.

    Source: Mahendran & Vedaldi, "Understanding Deep Image Representations by Inverting Them" (2015), equation 2.
    Differs from it in having no prior unless ``tv_weight`` is given.
    """
    target = images.check(target, "target").to(network.mean.device)
    parts = [*content_terms(network, target, [layer], relative=True), TotalVariation(tv_weight)]
    init = starting_image(start, target, target, generator)
    steps = optimise(Objective(network, parts), init, optimiser=optimiser, evaluations=evaluations)
    return finish(steps, progress=progress, callback=callback)


def synthesize(
    network: VGG,
    style: Tensor,
    layers: Sequence[str | int],
    *,
    style_loss: str = "gram",
    size: int | tuple[int, int] | None = None,
    layer_weights: Sequence[float] | None = None,
    start: str | Tensor = "noise",
    tv_weight: float = 0.0,
    evaluations: int = 300,
    optimiser: str = "lbfgs",
    generator: torch.Generator | None = None,
    progress: bool = False,
    callback: Callable[[Step], None] | None = None,
) -> Result:
    """A texture with the style statistics of ``style`` at ``layers``, each relative to its target.

    Arguments:
        size: of the texture, a square's side or ``(H, W)``; default the style's own.

    Source: Gatys, Ecker & Bethge, "Texture Synthesis Using Convolutional Neural Networks" (2015).
    """
    style = images.check(style, "style").to(network.mean.device)
    grid = (size, size) if isinstance(size, int) else size or tuple(style.shape[-2:])
    parts = [
        *style_terms(network, style, layers, style_loss, relative=True, layer_weights=layer_weights),
        TotalVariation(tv_weight),
    ]
    init = starting_image(start, images.resize(style, grid), style, generator)
    steps = optimise(Objective(network, parts), init, optimiser=optimiser, evaluations=evaluations)
    return finish(steps, progress=progress, callback=callback)


def starting_image(
    start: str | Tensor, content: Tensor, style: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """The image a loop begins with, of ``content``'s size; noise is drawn from ``generator`` (default seed 0)."""
    generator = generator or torch.Generator().manual_seed(0)
    if isinstance(start, Tensor):
        return images.resize(images.check(start, "start").to(content), tuple(content.shape[-2:]))
    if start == "content":
        return content.clone()
    if start == "grey":
        return torch.full_like(content, 0.5)
    if start in ("noise", "statistics"):
        noise = torch.randn(content.shape, generator=generator, device=generator.device).to(content)
        noise = (0.5 + 0.2 * noise).clamp(0, 1)
        return noise if start == "noise" else colour.match_colour(noise, style)
    raise ValueError(f"start must be content, noise, grey, statistics or a picture, got {start!r}")


def _with_chroma(decode: Callable[[Tensor], Tensor], target: Tensor, content: Tensor) -> Callable[[Tensor], Tensor]:
    chroma = images.resize(content, tuple(target.shape[-2:]))
    return lambda point: colour.with_luminance(chroma, colour.luminance(decode(point)))


def _doubling(size: int) -> list[int]:
    scales = [size]
    while scales[0] >= 256:
        scales.insert(0, scales[0] // 2)
    return scales
