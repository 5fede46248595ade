"""The looks that captions name, as filters on batches, each drawn anew: strokes, inks, paper and grain vary.

`apply` sorts a batch by name, so that every look is one call for all of its pictures.
"""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from . import marks
from .marks import grey, log_uniform, normal, uniform


def _mix(first: Tensor, second: Tensor, weight) -> Tensor:
    return first + (second - first) * weight


def _colours(number: int, base: tuple, spread: float, generator: Generator) -> Tensor:
    """Random colours (B, 3, 1, 1) around one."""
    middle = torch.tensor(base, device=generator.device).view(1, 3, 1, 1)
    shift = normal((number, 1, 1, 1), generator) * 0.6 + normal((number, 3, 1, 1), generator) * 0.5
    return (middle + spread * shift).clamp(0, 1)


def oil_painting(pictures: Tensor, generator: Generator) -> Tensor:
    """Brush strokes along the contours, coarse ones first, then fine ones (after Hertzmann 1998), with bristles."""
    number, size = len(pictures), pictures.shape[-1]
    directions = marks.flow(pictures, uniform(0.6, 1, number, generator), generator)
    scale = log_uniform(0.8, 1.25, number, generator)
    variation = uniform(0.04, 0.1, number, generator)
    canvas = marks.kuwahara(pictures, 5)
    for pitch, width, source in ((6.5, 0.55, marks.blur(pictures, 1.2)), (3.4, 0.5, pictures)):
        coat, opacity = marks.dabs(source, directions, pitch * scale, width, 1.25, variation, generator)
        # Fine strokes go where the coarse ones left something out.
        wanted = 1.0 if pitch > 4 else ((source - canvas).abs().amax(1, keepdim=True) * 6).clamp(0.15, 1)
        canvas = _mix(canvas, coat, opacity * wanted)
    bristles = marks.along(normal((number, 1, size, size), generator), directions, 9 * scale)
    bristles = bristles / bristles.std((2, 3), keepdim=True).clamp_min(1e-4)
    rich = grey(canvas) + (canvas - grey(canvas)) * uniform(1, 1.3, number, generator)
    return rich + bristles * uniform(0.02, 0.06, number, generator)


def mosaic(pictures: Tensor, generator: Generator) -> Tensor:
    """Tiles of one colour each with joints between them."""
    number = len(pictures)
    pitch = uniform(5, 7.5, number, generator)
    laid, border = marks.tiles(pictures, pitch, 0.2, uniform(0.02, 0.06, number, generator), generator)
    joint = (1.25 - border / uniform(0.15, 0.25, number, generator)).clamp(0, 1)
    light = _colours(number, (0.92, 0.9, 0.84), 0.05, generator)
    dark = _colours(number, (0.2, 0.18, 0.18), 0.06, generator)
    return _mix(laid, torch.where(uniform(0, 1, number, generator) < 0.75, light, dark), joint)


def pencil_sketch(pictures: Tensor, generator: Generator) -> Tensor:
    """Graphite on paper: outlines, and hatching where the picture is dark."""
    number, size = len(pictures), pictures.shape[-1]
    level = grey(marks.blur(pictures, 0.7))
    line = (marks.edges(pictures, 0.7) * log_uniform(2, 4, number, generator) - 0.12).clamp(0, 1)
    shade = (uniform(0.85, 1.0, number, generator) - level).clamp(0, 0.9)
    angle = math.pi / 4 + 0.5 * normal((number, 1, 1, 1), generator)
    period = uniform(3.2, 5, number, generator)
    waver = uniform(0.1, 0.5, number, generator)
    hatched = marks.hatching(shade, period, angle, waver, generator) * uniform(0.4, 0.7, number, generator)
    tone = (1 - line) * (1 - hatched) * (1 - shade * uniform(0.1, 0.45, number, generator))
    tooth = normal((number, 1, size, size), generator)
    tone = tone + tooth * (0.015 + 0.09 * tone * (1 - tone))
    paper = _colours(number, (0.97, 0.96, 0.93), 0.03, generator)
    return _mix(_colours(number, (0.2, 0.2, 0.23), 0.05, generator), paper, tone.clamp(0, 1))


def pointillism(pictures: Tensor, generator: Generator) -> Tensor:
    """Round dots of pure colour on a light canvas, two coats, many in a neighbouring hue."""
    number = len(pictures)
    directions = torch.zeros_like(pictures[:, :2])
    directions[:, 0] = 1
    strong = grey(pictures) + (pictures - grey(pictures)) * uniform(1.1, 1.6, number, generator)
    canvas = _colours(number, (0.95, 0.92, 0.86), 0.03, generator).expand_as(pictures)
    canvas = _mix(canvas, strong, uniform(0.1, 0.4, number, generator))
    pitch, variation = uniform(3.4, 5, number, generator), uniform(0.07, 0.14, number, generator)
    for _ in range(2):
        radius = uniform(0.34, 0.44, number, generator)
        coat, opacity = marks.dabs(strong, directions, pitch, radius, radius, variation, generator)
        canvas = _mix(canvas, coat, opacity)
    return canvas


def woodblock_print(pictures: Tensor, generator: Generator) -> Tensor:
    """A few flat inks on cream paper, dark contours, the grain of the wood in the flat parts."""
    number, size = len(pictures), pictures.shape[-1]
    calm = _mix(marks.kuwahara(pictures, 3), marks.kuwahara(pictures, 5), 0.5)
    levels = uniform(2.2, 3.4, number, generator)
    scaled = calm * levels
    flat = (scaled.floor() + ((scaled - scaled.floor() - 0.5) * 8 + 0.5).clamp(0, 1)) / levels
    flat = grey(flat) + (flat - grey(flat)) * uniform(0.45, 0.8, number, generator)
    paper = _colours(number, (0.95, 0.88, 0.74), 0.04, generator)
    ink = _colours(number, (0.1, 0.12, 0.2), 0.04, generator)
    _, y = marks.positions(size, pictures.device)
    waver = marks.smooth_noise(number, 1, 5, size, generator)
    flat = flat ** uniform(0.7, 1, number, generator)  # much of the paper stays bare
    wood = torch.cos(y * (2 * math.pi * marks.SIZE / size / log_uniform(4, 7, number, generator)) + 3 * waver)
    printed = ink * 1.6 + (paper - ink * 1.6) * flat * (1 + wood * uniform(0.02, 0.06, number, generator))
    key = torch.maximum(marks.edges(calm, 0.0), marks.edges(calm, 0.7))
    key = (key * log_uniform(3.5, 6, number, generator) - 0.5).clamp(0, 1)
    return _mix(printed, ink, key)


FILTERS = {
    "oil painting": oil_painting,
    "mosaic": mosaic,
    "pencil sketch": pencil_sketch,
    "pointillism": pointillism,
    "woodblock print": woodblock_print,
}


@torch.no_grad()
def apply(pictures: Tensor, names: Sequence[str], generator: Generator) -> Tensor:
    """Give every picture the look of its name.

    Args:
        pictures: (B, 3, S, S), float32 in [0, 1].
        names: B looks. What is not in `FILTERS` ("plain", "flat", ...) leaves its picture as it is, bit by bit.
        generator: source of all randomness, on the device of the pictures.

    Returns:
        The pictures, a new tensor of the same shape, type and range.
    """
    if len(names) != len(pictures):
        raise ValueError(f"names: {len(names)} names came for {len(pictures)} pictures; one for each is needed.")
    done = pictures.clone()
    for look, draw in FILTERS.items():
        rows = [row for row, name in enumerate(names) if name == look]
        if rows:
            chosen = torch.tensor(rows).to(pictures.device, non_blocking=True)
            done[chosen] = draw(pictures[chosen], generator).clamp(0, 1)
    return done
