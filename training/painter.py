"""Styles without names: every picture is painted in its own way, from not at all to heavily.

A style is a draw from a continuous family: which palette, how soft, how flat, which strokes, lines, hatching, dots,
tiles and grain, each with a strength of its own. Nothing of it comes from a painting. Every part works on a random
share of the batch, whose size follows from the size of the batch alone, so that nothing waits for the device.
"""

import math

import torch
from torch import Generator, Tensor

from . import marks
from .marks import grey, log_uniform, normal, uniform


def draw_heaviness(number: int, generator: Generator) -> Tensor:
    """Heaviness (B,) in [0, 1]: a quarter 0, 45 % light to medium, a quarter strong, 5 % heavy."""
    which = uniform(0, 1, (number,), generator)
    level = uniform(0, 1, (number,), generator)
    light, strong, heavy = 0.15 + 0.35 * level, 0.5 + 0.3 * level, 0.8 + 0.2 * level
    painted = torch.where(which < 0.7, light, torch.where(which < 0.95, strong, heavy))
    return torch.where(which < 0.25, torch.zeros_like(painted), painted)


def _mix(first: Tensor, second: Tensor, weight) -> Tensor:
    return first + (second - first) * weight


def palette(pictures: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Another tone curve, saturation, hue, and colours of what is darkest and lightest."""
    number = len(pictures)
    amount = (0.35 + strength).clamp(0, 1)
    tone = pictures.mean((1, 2, 3), keepdim=True).clamp(0.05, 0.95)
    goal = uniform(0.04, 0.92, number, generator)
    aim = _mix(tone, goal, (0.6 + strength).clamp(0, 1) * uniform(0.3, 1, number, generator) ** 0.5)
    gamma = (aim.log() / tone.log()).clamp(0.35, 3.2)
    toned = pictures.clamp_min(1e-3) ** gamma
    luminance = grey(toned)
    chroma = toned - luminance
    # Mostly a small turn of the hue, so that a red car stays red; any hue for a few.
    turn = normal((number, 1, 1, 1), generator) * 0.2 * amount
    free = uniform(0, 1, number, generator) < 0.08
    turn = torch.where(free, uniform(-math.pi, math.pi, number, generator) * amount, turn)
    rolled = chroma.roll(1, 1) - chroma.roll(2, 1)
    chroma = chroma * turn.cos() + rolled * (turn.sin() / math.sqrt(3))
    saturation = log_uniform(0.15, 2.4, number, generator) ** amount
    contrast = log_uniform(0.75, 1.8, number, generator) ** amount
    middle = luminance.mean((2, 3), keepdim=True)
    recoloured = middle + (luminance - middle) * contrast + chroma * saturation
    warmth = normal((number, 1, 1, 1), generator)
    axis = torch.tensor([1.0, 0.25, -1.25], device=pictures.device).view(1, 3, 1, 1) * warmth
    white = 1.05 - uniform(0, 0.25, number, generator) + 0.08 * axis + 0.03 * normal((number, 3, 1, 1), generator)
    black = uniform(-0.07, 0.14, number, generator) - 0.03 * axis + 0.05 * normal((number, 3, 1, 1), generator)
    return _mix(recoloured, black + (white - black) * recoloured, amount).clamp(0, 1)


def inks(pictures: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """A gradient map: four inks from dark to light in place of the luminance, some of the old colours kept."""
    number = len(pictures)
    shades = torch.tensor([0.08, 0.36, 0.66, 0.93], device=pictures.device).view(1, 4, 1, 1, 1)
    hues = normal((number, 4, 3, 1, 1), generator) * 0.16
    hues = hues - hues.mean(2, keepdim=True) + normal((number, 1, 3, 1, 1), generator) * 0.06
    colours = (shades + hues + normal((number, 4, 1, 1, 1), generator) * 0.06).clamp(0, 1)
    level = grey(pictures)
    low, high = level.amin((2, 3), keepdim=True), level.amax((2, 3), keepdim=True)
    level = (level - low) / (high - low).clamp_min(0.2) * 3
    mapped = sum(colours[:, k] * (1 - (level - k).abs()).clamp_min(0) for k in range(4))
    chroma = (pictures - grey(pictures)) * uniform(0, 0.8, number, generator)
    weight = (0.3 + strength).clamp(0, 1) * uniform(0.4, 1, number, generator)
    return _mix(pictures, mapped + chroma, weight).clamp(0, 1)


def soften(pictures: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Blurred, everywhere or in places."""
    number, size = len(pictures), pictures.shape[-1]
    amount = uniform(0, 1, number, generator) * (0.3 + strength).clamp(0, 1)
    near, far = marks.blur(pictures, 0.9), marks.blur(pictures, 2.0)
    soft = _mix(_mix(pictures, near, (2 * amount).clamp(0, 1)), far, (2 * amount - 1).clamp(0, 1))
    places = (0.5 + 1.5 * marks.smooth_noise(number, 1, 5, size, generator)).clamp(0, 1)
    return _mix(pictures, soft, torch.maximum(places, uniform(-1, 1, number, generator).sign()))


def flatten(pictures: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Areas of one colour with clean borders: a Kuwahara filter and fewer steps of the colours."""
    number = len(pictures)
    calm = _mix(pictures, marks.kuwahara(pictures, 5), (0.3 + 1.2 * strength).clamp(0, 1))
    levels = log_uniform(2.5, 9, number, generator) + 4 * (1 - strength)
    scaled = calm * levels + uniform(-0.3, 0.3, number, generator)
    stepped = (scaled.floor() + ((scaled - scaled.floor() - 0.5) * 6 + 0.5).clamp(0, 1)) / levels
    return _mix(calm, stepped.clamp(0, 1), uniform(-0.5, 1, number, generator).clamp(0, 1))


def strokes(pictures: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Bristle strokes: the picture smeared along the flow, its edges frayed, its colours streaked."""
    number, size = len(pictures), pictures.shape[-1]
    directions = marks.flow(pictures, uniform(0, 1, number, generator), generator)
    width = log_uniform(1.6, 7, number, generator)
    length = width * log_uniform(2, 6, number, generator)
    streaks = marks.band_noise(number, 3, size, width * 1.4, generator)
    streaks = marks.along(streaks, directions, length)
    streaks = streaks / streaks.std((2, 3), keepdim=True).clamp_min(1e-4)
    streaks = torch.tanh(streaks * uniform(0.7, 2, number, generator))
    fray = streaks[:, :2] * width * (0.15 + 0.6 * strength) * uniform(0, 1, number, generator) * (size / marks.SIZE)
    x, y = marks.positions(size, pictures.device)
    frayed = marks.sample(pictures, x + fray[:, :1], y + fray[:, 1:])
    smeared = marks.along(frayed, directions, length * uniform(0, 0.6, number, generator), 2)
    places = (0.6 + 0.7 * marks.smooth_noise(number, 1, 4, size, generator)).clamp(0, 1)
    contrast = (0.02 + 0.22 * strength * uniform(0, 1, number, generator) ** 1.3) * _mix(places, 1, 0.4)
    tint = uniform(0.4, 1.2, number, generator) + 0.8 * normal((number, 3, 1, 1), generator)
    colourful = uniform(-0.4, 0.8, number, generator).clamp_min(0)
    # Pale colours have less room for streaks; what is half bright has most.
    room = 0.5 + 2 * (smeared * (1 - smeared)).clamp_min(0)
    return (smeared + contrast * room * (streaks[:, 2:] * tint + streaks * colourful)).clamp(0, 1)


def dabs(pictures: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Coats of separate dabs, from round and fine to long and wide, along contours or a flow."""
    number = len(pictures)
    directions = marks.flow(pictures, uniform(0.2, 1, number, generator), generator)
    pitch = log_uniform(2.6, 4.5, number, generator) * (1 + 0.9 * strength * uniform(0, 1, number, generator))
    long = log_uniform(1, 2.6, number, generator)
    variation = (0.01 + 0.13 * strength * uniform(0, 1, number, generator)).expand(-1, 1, 1, 1)
    wide = uniform(0.4, 0.62, number, generator)
    coat, opacity = marks.dabs(pictures, directions, pitch, wide, (wide * long).clamp(max=1.25), variation, generator)
    ground = _mix(marks.blur(pictures, 1.5), uniform(0, 1, (number, 3, 1, 1), generator), 0.35 * strength)
    return _mix(ground, coat, opacity * uniform(0.75, 1, number, generator)).clamp(0, 1)


def tiles(pictures: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Tiles of one colour with joints between them."""
    number = len(pictures)
    pitch = log_uniform(3, 5.5, number, generator) * (1 + 0.4 * strength)
    laid, border = marks.tiles(pictures, pitch, 0.25, 0.08 * strength, generator)
    joint = (1 - border / uniform(0.12, 0.3, number, generator)).clamp(0, 1) * uniform(0, 0.9, number, generator)
    laid = _mix(laid, uniform(0, 1, (number, 3, 1, 1), generator), joint)
    return _mix(pictures, laid, (0.4 + strength).clamp(0, 1)).clamp(0, 1)


def outlines(pictures: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Contours in ink, dark more often than light, thin or wide, firm or faint."""
    number = len(pictures)
    wide = _mix(marks.edges(pictures, 0), marks.edges(pictures, 1.0) * 1.6, uniform(0, 1, number, generator))
    line = (wide * log_uniform(1.5, 6, number, generator) - uniform(0.15, 0.5, number, generator)).clamp(0, 1)
    ink = uniform(0, 0.3, number, generator) + 0.08 * normal((number, 3, 1, 1), generator)
    ink = torch.where(uniform(0, 1, number, generator) < 0.12, 1 - ink, ink)
    return _mix(pictures, ink.clamp(0, 1), line * (0.35 + strength).clamp(0, 1) * uniform(0.4, 1, number, generator))


def hatch(pictures: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Parallel lines in the shade, sometimes a second set across."""
    number = len(pictures)
    shade = (1.05 - grey(pictures)).clamp(0, 1) * uniform(0.5, 0.95, number, generator)
    angle, waver = uniform(0, math.pi, number, generator), uniform(0, 0.4, number, generator)
    period = log_uniform(2.6, 6, number, generator)
    lines = marks.hatching(shade, period, angle, waver, generator)
    across = marks.hatching(shade - 0.25, period, angle + uniform(0.9, 1.6, number, generator), waver, generator)
    lines = torch.maximum(lines, across * (uniform(0, 1, number, generator) < 0.4))
    ink = uniform(0, 0.3, number, generator) + 0.1 * normal((number, 3, 1, 1), generator)
    lighter = _mix(pictures, 1, 0.35 * strength)  # the paper that shows between the lines
    return _mix(lighter, ink.clamp(0, 1), lines * (0.15 + 0.7 * strength) * uniform(0.3, 1, number, generator))


def detail(pictures: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Small irregular spots of light and dark in places, as leaves, crowds and flowers make."""
    number, size = len(pictures), pictures.shape[-1]
    period = log_uniform(3, 18, number, generator)
    spots = marks.band_noise(number, 3, size, period, generator, slope=0.7)
    spots = _mix(spots.mean(1, keepdim=True) * 1.7, spots, uniform(0, 0.7, number, generator))
    spots = torch.tanh(spots * uniform(0.5, 2, number, generator))
    share = uniform(-0.6, 0.8, number, generator)
    places = (marks.smooth_noise(number, 1, 6, size, generator) * 1.2 + share).clamp(0, 1)
    room = 0.4 + 2.4 * (pictures * (1 - pictures)).clamp_min(0)
    return (pictures + spots * places * room * (0.03 + 0.4 * strength * uniform(0, 1, number, generator))).clamp(0, 1)


def grain(pictures: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Paper, dust or canvas: fine noise and a weave."""
    number, size = len(pictures), pictures.shape[-1]
    noise = normal((number, 1, size, size), generator)
    noise = _mix(noise, marks.box(noise, 3) * 2.5, uniform(0, 1, number, generator))
    noise = noise + normal((number, 3, size, size), generator) * uniform(-0.3, 0.6, number, generator).clamp_min(0)
    x, y = (p * (marks.SIZE / size) for p in marks.positions(size, pictures.device))
    period = 2 * math.pi / log_uniform(2.4, 5, number, generator)
    weave = (x * period).cos() * (y * period).cos() * 1.4
    texture = _mix(noise, weave, uniform(-0.6, 0.8, number, generator).clamp_min(0))
    return (pictures + texture * (0.01 + 0.09 * strength * uniform(0, 1, number, generator) ** 1.5)).clamp(0, 1)


def screen(pictures: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Printed dots on a turned grid, larger where the picture is darker."""
    number, size = len(pictures), pictures.shape[-1]
    x, y = (p * (marks.SIZE / size) for p in marks.positions(size, pictures.device))
    angle = uniform(0, math.pi / 2, number, generator)
    period = 2 * math.pi / log_uniform(3, 6, number, generator)
    across, down = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    dots = ((across * period).cos() + (down * period).cos()) / 2
    light = (dots + 2 * grey(pictures) - 1) * uniform(0.1, 0.35, number, generator)
    return (pictures + light * (0.25 + strength) - 0.02).clamp(0, 1)


#: What is done, in this order, and to which share of the pictures.
PARTS = (
    (soften, 0.3),
    (flatten, 0.3),
    (inks, 0.2),
    (palette, 0.75),
    (detail, 0.3),
    (dabs, 0.22),
    (tiles, 0.05),
    (strokes, 0.5),
    (outlines, 0.35),
    (hatch, 0.14),
    (screen, 0.05),
    (grain, 0.5),
)


def _on_some(part, share: float, pictures: Tensor, heaviness: Tensor, generator: Generator) -> Tensor:
    """Apply a part to about `share` of the pictures: a fixed number of them is tried, and chance decides the rest."""
    tried = math.ceil(share * len(pictures))
    rows = torch.randperm(len(pictures), generator=generator, device=generator.device)[:tried]
    on = uniform(0, 1, tried, generator) < share * len(pictures) / tried
    before = pictures[rows]
    # Parts differ in strength within one picture: some heavy ones are heavy in one part only.
    strength = (heaviness[rows] * uniform(0.5, 1.2, tried, generator)).clamp(0, 1)
    after = part(before, strength, generator)
    return pictures.index_copy(0, rows, torch.where(on & (heaviness[rows] > 0), after, before))


@torch.no_grad()
def paint(pictures: Tensor, generator: Generator, heaviness: Tensor | None = None) -> Tensor:
    """Paint every picture in a style of its own.

    Args:
        pictures: (B, 3, S, S), float32 in [0, 1].
        generator: source of all randomness, on the device of the pictures.
        heaviness: (B,) in [0, 1]; 0 leaves a picture as it is, bit by bit. Default: `draw_heaviness`.

    Returns:
        The painted pictures, a new tensor of the same shape, type and range.
    """
    drawn = draw_heaviness(len(pictures), generator)
    heaviness = (drawn if heaviness is None else heaviness.to(drawn)).view(-1, 1, 1, 1)
    painted = pictures
    for part, share in PARTS:
        painted = _on_some(part, share, painted, heaviness, generator)
    return torch.where(heaviness > 0, painted, pictures)
