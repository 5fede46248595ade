"""Style transfer, feature inversion and texture synthesis: objectives for the loop of `optimisation`."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ex4lib import checks, colour, images
from ex4lib.features import VGG
from ex4lib.images import ImageSource
from ex4lib.losses import Objective, TotalVariation, content_terms, style_terms
from ex4lib.optimisation import EVALUATIONS, HISTORY, Result, Step, finish, optimise

#: Longer side of a stylised picture in pixels, by default.
SIZE = 256
#: Pictures by name that an optimisation can start from.
STARTS = ("content", "noise", "grey", "statistics")
#: How a photograph's colours can be kept.
COLOURS = ("no", "match", "luminance")
#: Earlier names of arguments of `stylize`, each with the present one.
RENAMED = {"style_scale": "stroke_scale", "blend": "style_weights", "masks": "regions"}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The weights and layers of a style transfer.

    ``relative`` losses are fractions of their targets' norms (see `losses.style_terms`), so that the same weights
    serve every pair of pictures; ``layer_weights`` multiply ``style_weight``, by default evenly for other layers.
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

    def __post_init__(self):
        for name in ("content_layers", "style_layers"):
            object.__setattr__(self, name, tuple(checks.names(getattr(self, name), name)))
        if self.layer_weights is Recipe.layer_weights and self.style_layers != Recipe.style_layers:
            object.__setattr__(self, "layer_weights", None)
        names = ("content_weight", "style_weight", "tv_weight")
        if not any([checks.number(getattr(self, name), name, low=0) for name in names]):
            raise ValueError(f"at least one of {', '.join(names)} must be above 0, got 0 for all")

    def objective(self, network: VGG, content: Tensor, styles: Sequence[Tensor], **options) -> Objective:
        """The objective of this recipe; ``options``: style_weights, regions, style_masks of `losses.style_terms`."""
        network = network.variant(pooling=self.pooling, padding=self.padding)
        options |= {"relative": self.relative, "layer_weights": self.layer_weights}
        content = content_terms(network, content, self.content_layers, self.content_weight, relative=self.relative)
        style = style_terms(network, styles, self.style_layers, self.style_loss, self.style_weight, **options)
        return Objective(network, [*content, *style, TotalVariation(self.tv_weight)])


DEFAULT = Recipe()

#: The PyTorch tutorial's objective; the tutorial also clamps pixels while it optimises, which `optimise` avoids.
TUTORIAL = Recipe(
    content_layers=("conv_4",), style_layers=("conv_1", "conv_2", "conv_3", "conv_4", "conv_5"), layer_weights=None,
    style_weight=1e6, tv_weight=0.0, relative=False, pooling="max", padding="zeros",
)  # fmt: skip


def stylize(
    network: VGG,
    content: ImageSource,
    style: ImageSource | Sequence[ImageSource],
    *,
    progress: bool = False,
    callback: Callable[[Step], None] | None = None,
    **settings,
) -> Result:
    """Paint ``content`` in the style of one or several pictures.

    Arguments:
        content: a picture, as `images.load` takes it.
        style: a picture, or several, which blend or (with ``regions``) have a part of the result each.
        progress, callback: show a bar; called with every `Step`.

    Settings, with the defaults of `stylize_steps`:
        recipe: layers, loss and weights.
        size: longer side of the result in pixels.
        scales: longer sides from coarse to fine, the last being ``size``; by default they double from 128, without
            those at which the shorter side would be too small for the layers.
        evaluations: forward and backward passes in all, shared out evenly over the scales.
        seconds: time after which the loop ends, likewise shared out; every scale has at least one evaluation.
        start: ``"content"``, ``"noise"``, ``"grey"``, ``"statistics"`` (noise with the style's colours), or a
            picture: then scales smaller than it are left out, and the result has no higher loss than it.
        style_weights: shares of several styles; by default even.
        regions: for each style a mask, as `images.mask` takes it, of the part of the result that it applies to.
        style_masks: for each style a mask of the part of it that is looked at, or None for all of it.
        stroke_scale: longer side of the style relative to that of the result: larger gives larger brush strokes.
        keep_colour: ``"no"``; ``"match"`` recolours the style to the photograph's mean and covariance first;
            ``"luminance"`` transfers grey values only and keeps the photograph's chroma.
        optimiser: ``"lbfgs"`` or ``"adam"``.
        generator: draws the noise; by default seed 0.

    Ctrl-C ends the loop with the best picture so far; see `Result`.

    Source: Gatys, Ecker & Bethge, "Image Style Transfer Using Convolutional Neural Networks" (2016); coarse to fine
    after Gatys et al., "Controlling Perceptual Factors in Neural Style Transfer" (2017); colour after Gatys et al.,
    "Preserving Color in Neural Artistic Style Transfer" (2016).
    """
    for name in RENAMED.keys() & settings:
        raise ValueError(f"the argument {name} is now called {RENAMED[name]}")
    return finish(stylize_steps(network, content, style, **settings), progress=progress, callback=callback)


def stylize_steps(
    network: VGG,
    content: ImageSource,
    style: ImageSource | Sequence[ImageSource],
    *,
    recipe: Recipe = DEFAULT,
    size: int = SIZE,
    scales: Sequence[int] | None = None,
    evaluations: int = EVALUATIONS,
    seconds: float | None = None,
    start: str | ImageSource = "content",
    style_weights: Sequence[float] | None = None,
    regions: Sequence[ImageSource] | None = None,
    style_masks: Sequence[ImageSource | None] | None = None,
    stroke_scale: float = 1.0,
    keep_colour: str = "no",
    optimiser: str = "lbfgs",
    generator: torch.Generator | None = None,
) -> Iterator[Step]:
    """The loop of `stylize`, a `Step` per evaluation over all scales; arguments and errors as there."""
    device = network.mean.device
    photograph = images.picture(content, "content").to(device)
    styles = [painting.to(device) for painting in images.pictures(style, "style")]
    if any(len(painting) not in (1, len(photograph)) for painting in styles):
        raise ValueError(f"each of style must be one picture, or {len(photograph)}, one for each photograph")
    stroke_scale = checks.number(stroke_scale, "stroke_scale", above=0)
    keep_colour = checks.choice(keep_colour, "keep_colour", COLOURS)
    start = _start(start, len(photograph), generator)
    least = network.minimum_size([*recipe.content_layers, *recipe.style_layers])
    scales = _scales(scales, size, photograph, start, least)
    evaluations = checks.integer(evaluations, "evaluations", low=1)
    seconds = None if seconds is None else checks.number(seconds, "seconds", low=0)
    if evaluations < len(scales):
        raise ValueError(f"evaluations must be at least one per scale ({len(scales)}), got {evaluations}")
    if keep_colour != "no":
        match = colour.match_colour if keep_colour == "match" else colour.match_luminance
        styles = [match(painting.expand(len(photograph), -1, -1, -1), photograph) for painting in styles]
    chroma = photograph if keep_colour == "luminance" else None
    target = photograph if chroma is None else colour.grey(chroma)
    start = start if chroma is None or isinstance(start, str) else colour.grey(start)
    regions = _masks(regions, "regions", len(styles), device)
    style_masks = _masks(style_masks, "style_masks", len(styles), device)

    def problem(scale: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        content = images.resize(target, scale)
        paintings = [images.resize(painting, _style_side(painting, scale * stroke_scale, least)) for painting in styles]
        options = {"style_weights": style_weights}
        options["regions"] = regions and [_fitted(mask, content) for mask in regions]
        options["style_masks"] = style_masks and list(map(_fitted, style_masks, paintings))
        return recipe.objective(network, content, paintings, **options), content

    first = problem(scales[0])  # before the first step is asked for, so that wrong arguments are noticed here
    init = starting_image(start, first[1], styles[0], generator)
    fallback = None if isinstance(start, str) else start.to(device)
    limits = {"optimiser": optimiser, "evaluations": evaluations, "seconds": seconds, "fallback": fallback}
    finished = images.scaled_size(target.shape[-2:], scales[-1])
    return _coarse_to_fine(problem, first, init, scales, finished, chroma=chroma, **limits)


def _coarse_to_fine(
    problem: Callable[[int], tuple], first: tuple, image: Tensor, scales: Sequence[int], size: tuple[int, int],
    *, chroma: Tensor | None, fallback: Tensor | None, optimiser: str, evaluations: int, seconds: float | None,
) -> Iterator[Step]:  # fmt: skip
    """Minimise ``problem(scale)`` (objective, content) scale by scale, each from the best image of the last."""
    began, done, share = time.perf_counter(), 0, evaluations // len(scales)
    for number, scale in enumerate(scales):
        objective, content = problem(scale) if number else first
        left = len(scales) - number
        steps = optimise(
            objective,
            _fitted(image, content),
            optimiser=optimiser,
            evaluations=share if left > 1 else evaluations - done,
            seconds=None if seconds is None else max(0.0, seconds - (time.perf_counter() - began)) / left,
            fallback=_fitted(fallback, content),
            history=getattr(objective, "history", HISTORY),  # tiled objectives are for pictures that fill the memory
        )
        colours = _fitted(chroma, content)
        for step in steps:
            shown = step if colours is None else _recoloured(step, colours)
            yield dataclasses.replace(shown, index=done + step.index, total=evaluations, size=size)
        image = step.best
        done += share


def invert(
    network: VGG,
    target: ImageSource,
    layer: str | int,
    *,
    progress: bool = False,
    callback: Callable[[Step], None] | None = None,
    **settings,
) -> Result:
    """An image with the features of ``target`` at one layer: ``argmin_x ‖F(x) - F(target)‖² / ‖F(target)‖²``.

    Settings, with the defaults of `invert_steps`: ``start``, ``evaluations``, ``seconds``, ``optimiser`` and
    ``generator`` as in `stylize`; ``tv_weight``, the weight of a smoothness prior.

    Source: Mahendran & Vedaldi, "Understanding Deep Image Representations by Inverting Them" (2015), equation 2,
    without its prior unless ``tv_weight`` is given.
    """
    return finish(invert_steps(network, target, layer, **settings), progress=progress, callback=callback)


def invert_steps(
    network: VGG,
    target: ImageSource,
    layer: str | int,
    *,
    tv_weight: float = 0.0,
    evaluations: int = EVALUATIONS,
    seconds: float | None = None,
    start: str | ImageSource = "noise",
    optimiser: str = "lbfgs",
    generator: torch.Generator | None = None,
) -> Iterator[Step]:
    """The loop of `invert`, a `Step` per evaluation; arguments and errors as there."""
    target = images.picture(target, "target").to(network.mean.device)
    start = _start(start, len(target), generator)
    parts = [*content_terms(network, target, [layer], relative=True), TotalVariation(tv_weight)]
    limits = {"optimiser": optimiser, "evaluations": evaluations, "seconds": seconds}
    init = starting_image(start, target, target, generator)
    return optimise(Objective(network, parts), init, fallback=None if isinstance(start, str) else init, **limits)


def synthesize(
    network: VGG,
    style: ImageSource,
    layers: str | Sequence[str | int] = DEFAULT.style_layers,
    *,
    progress: bool = False,
    callback: Callable[[Step], None] | None = None,
    **settings,
) -> Result:
    """A texture with the style statistics of ``style`` at ``layers``, each relative to its target.

    Settings, with the defaults of `synthesize_steps`: ``start``, ``evaluations``, ``seconds``, ``optimiser`` and
    ``generator`` as in `stylize`; ``size`` of the texture, a square's side or ``(H, W)``, by default the style's own;
    ``style_loss`` and ``layer_weights`` as in `losses.style_terms`; ``tv_weight``.

    Source: Gatys, Ecker & Bethge, "Texture Synthesis Using Convolutional Neural Networks" (2015).
    """
    return finish(synthesize_steps(network, style, layers, **settings), progress=progress, callback=callback)


def synthesize_steps(
    network: VGG,
    style: ImageSource,
    layers: str | Sequence[str | int] = DEFAULT.style_layers,
    *,
    style_loss: str = "gram",
    size: int | tuple[int, int] | None = None,
    layer_weights: Sequence[float] | None = None,
    tv_weight: float = 0.0,
    evaluations: int = EVALUATIONS,
    seconds: float | None = None,
    start: str | ImageSource = "noise",
    optimiser: str = "lbfgs",
    generator: torch.Generator | None = None,
) -> Iterator[Step]:
    """The loop of `synthesize`, a `Step` per evaluation; arguments and errors as there."""
    style = images.picture(style, "style").to(network.mean.device)
    start = _start(start, len(style), generator)
    grid, least = tuple(style.shape[-2:]) if size is None else checks.grid(size), network.minimum_size(layers)
    if min(grid) < least:
        raise ValueError(f"size must be at least {least} x {least} pixels for these layers, got {grid[0]} x {grid[1]}")
    terms = style_terms(network, style, layers, style_loss, relative=True, layer_weights=layer_weights)
    objective = Objective(network, [*terms, TotalVariation(tv_weight)])
    limits = {"optimiser": optimiser, "evaluations": evaluations, "seconds": seconds}
    init = starting_image(start, images.resize(style, grid), style, generator)
    return optimise(objective, init, fallback=None if isinstance(start, str) else init, **limits)


def starting_image(
    start: str | Tensor, content: Tensor, style: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """The image a loop begins with, of ``content``'s size; noise is drawn from ``generator`` (default seed 0)."""
    start = _start(start, len(content), generator)
    if isinstance(start, Tensor):
        return _fitted(start.to(content), content)
    if start == "content":
        return content.clone()
    if start == "grey":
        return torch.full_like(content, 0.5)
    generator = generator or torch.Generator().manual_seed(0)
    noise = torch.randn(content.shape, generator=generator, device=generator.device).to(content)
    noise = (0.5 + 0.2 * noise).clamp(0, 1)
    return noise if start == "noise" else colour.match_colour(noise, style)


def _start(start: str | ImageSource, count: int, generator: torch.Generator | None) -> str | Tensor:
    """What ``count`` images begin with: a name of `STARTS`, or as many pictures."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(f"generator must be a torch.Generator or None, got {checks.describe(generator)}")
    if isinstance(start, str) and start in STARTS:
        return start
    try:
        picture = images.picture(start, "start")
    except FileNotFoundError as error:
        raise ValueError(f"start must be {', '.join(STARTS)} or a picture, got {checks.describe(start)}") from error
    if len(picture) not in (1, count):
        raise ValueError(f"start must be one picture or {count}, one for each result, got {len(picture)}")
    return picture.expand(count, -1, -1, -1)


def _scales(scales: Sequence[int] | None, size: int, content: Tensor, start: str | Tensor, least: int) -> list[int]:
    """The longer sides from coarse to fine, without those that are too small for the layers or below the start."""
    size = checks.size(size)
    if scales is None:
        scales = [size]
        while scales[0] >= 256 and min(images.scaled_size(content.shape[-2:], scales[0] // 2)) >= least:
            scales.insert(0, scales[0] // 2)
    if not isinstance(scales, (list, tuple, range)):
        raise ValueError(f"scales must be a list of lengths in pixels, got {checks.describe(scales)}")
    scales = [checks.size(scale, "each of scales") for scale in scales]
    if not scales or scales != sorted(scales) or scales[-1] != size:
        raise ValueError(f"scales must rise to size {size}, got {scales}")
    if isinstance(start, Tensor):
        scales = [scale for scale in scales if scale >= max(start.shape[-2:])] or [size]
    height, width = images.scaled_size(content.shape[-2:], scales[0])
    if min(height, width) < least:
        content = f"size {scales[0]} makes the content {height} x {width} pixels"
        least = f"at least {least} x {least} pixels: use a larger size"
        raise ValueError(f"{content}, and the deepest layer needs {least}")
    return scales


def _style_side(style: Tensor, side: float, least: int) -> int:
    """The longer side that a style is resized to: at least so much that its shorter side has ``least`` pixels."""
    height, width = style.shape[-2:]
    return max(round(side), math.ceil(least * max(height, width) / min(height, width)))


def _masks(masks: Sequence[ImageSource | None] | None, argument: str, count: int, device: torch.device) -> list | None:
    if masks is None:
        return None
    if not isinstance(masks, (list, tuple)):
        raise ValueError(f"{argument} must be a list, one mask for each style, got {checks.describe(masks)}")
    if len(masks) != count:
        raise ValueError(f"{argument} must be one per style: {count} styles, {len(masks)} masks")
    return [mask if mask is None else images.mask(mask, argument).to(device) for mask in masks]


def _fitted(image: Tensor | None, like: Tensor) -> Tensor | None:
    return image if image is None else images.resize(image, tuple(like.shape[-2:]))


def _recoloured(step: Step, chroma: Tensor) -> Step:
    """The same step with its images' luminance in the colours of ``chroma``."""

    def recoloured(picture: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return lambda: colour.with_luminance(chroma, colour.luminance(picture()))

    return dataclasses.replace(step, _image=recoloured(step._image), _best=recoloured(step._best))
