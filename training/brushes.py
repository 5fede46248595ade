"""What the grounds are drawn with: colours, ramps, hills, clouds, trees, water, roads."""

import numpy as np
from PIL import Image, ImageDraw

UNIT = 256  # grounds are drawn at this size and reduced: cheap antialiasing

Colour = tuple[int, int, int]
SKIES = [(150, 205, 245), (178, 222, 250), (120, 185, 240), (205, 228, 240), (250, 214, 180), (190, 200, 225)]
GREENS = [(104, 178, 80), (124, 190, 88), (86, 158, 78), (142, 196, 96)]
WATERS = [(66, 140, 205), (84, 164, 216), (52, 122, 186), (90, 180, 205)]


def pick(rng: np.random.Generator, colours: list[Colour], spread: float = 10) -> Colour:
    """One of `colours`, moved a little."""
    c = np.asarray(colours[rng.integers(len(colours))]) + rng.normal(0, spread, 3)
    return tuple(int(v) for v in np.clip(c, 0, 255))


def shade(colour: Colour, factor: float) -> Colour:
    return tuple(int(min(255, c * factor)) for c in colour)


def ramp(top: Colour, bottom: Colour) -> Image.Image:
    """A vertical gradient."""
    t = np.linspace(0, 1, UNIT)[:, None, None]
    ramp = (1 - t) * np.asarray(top) + t * np.asarray(bottom)
    return Image.fromarray(np.broadcast_to(ramp, (UNIT, UNIT, 3)).astype(np.uint8))


def hill(rng: np.random.Generator, y: float, height: float) -> list[tuple[float, float]]:
    """The outline of a rolling land whose crest lies near `y`."""
    x = np.linspace(0, 1, 17)
    line = y - height * np.sin(x * rng.uniform(2, 7) + rng.uniform(0, 6.3)) / 2
    return [(0, UNIT), *zip(x * UNIT, line, strict=True), (UNIT, UNIT)]


def land(rng, sky: Colour, earth: Colour, horizon: float, roll: float = 10) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A sky that pales towards the horizon over a land that darkens towards us."""
    picture = ramp(sky, shade(sky, 1.12))
    mask = Image.new("L", (UNIT, UNIT))
    ImageDraw.Draw(mask).polygon(hill(rng, horizon, roll), fill=255)
    picture.paste(ramp(shade(earth, 1.15), shade(earth, 0.85)), mask=mask)
    return picture, ImageDraw.Draw(picture)


def clouds(rng, draw: ImageDraw.ImageDraw, below: float, number: int, colour: Colour = (255, 255, 255)) -> None:
    for _ in range(number):
        x, y, r = rng.uniform(0, UNIT), rng.uniform(15, below), rng.uniform(10, 20)
        for dx, dy, k in ((-1.2, 0.2, 0.7), (0, 0, 1), (1.2, 0.2, 0.75)):
            draw.ellipse([x + dx * r - k * r, y + dy * r - k * r, x + dx * r + k * r, y + dy * r + k * r], fill=colour)


def pines(rng, draw, horizon: float, number: int, green: Colour, snowy: bool) -> None:
    for x in np.sort(rng.uniform(-10, UNIT + 10, number)):
        h, base = rng.uniform(80, 135), horizon + rng.uniform(0, 26)
        w, tone = h * 0.24, shade(green, rng.uniform(0.7, 1.15))
        draw.rectangle([x - 4, base - 8, x + 4, base + 8], fill=(96, 66, 44))
        for k in range(3):
            top, bottom = base - h + k * h * 0.24, base - h + (k + 1.9) * h * 0.29
            half = w * (0.55 + 0.22 * k)
            draw.polygon([(x, top), (x - half, bottom), (x + half, bottom)], fill=tone)
            if snowy:
                cap = top + (bottom - top) * 0.45
                draw.polygon([(x, top), (x - half * 0.45, cap), (x + half * 0.45, cap)], fill=(244, 248, 252))


def river_band(rng, draw, horizon: float, water: Colour, lines: Colour) -> None:
    """A band of water across the land in front, its far bank curved."""
    x = np.linspace(0, UNIT, 17)
    bank = horizon + 38 + 9 * np.sin(x / rng.uniform(25, 45) + rng.uniform(0, 6))
    near = bank + rng.uniform(50, 66)
    draw.polygon([*zip(x, bank, strict=True), *zip(x[::-1], near[::-1], strict=True)], fill=water)
    for _ in range(9):
        a, y = rng.uniform(0, UNIT), horizon + rng.uniform(56, 86)
        draw.line([(a, y), (a + rng.uniform(14, 40), y + rng.uniform(-3, 3))], fill=lines, width=4)


def road_on(rng, earth: Colour, horizon: float) -> Image.Image:
    """A road with a dashed middle line across `earth`."""
    picture, draw = land(rng, pick(rng, SKIES), earth, horizon - 10)
    top, bottom = horizon + 22, min(UNIT, horizon + 104)
    draw.rectangle([0, top, UNIT, bottom], fill=pick(rng, [(92, 94, 100), (112, 112, 116)], 6))
    for y in (top, bottom - 4):
        draw.rectangle([0, y, UNIT, y + 4], fill=(226, 226, 220))
    start, middle = rng.uniform(-40, 0), (top + bottom) / 2
    for x in np.arange(start, UNIT, 56):
        draw.rectangle([x, middle - 3, x + 30, middle + 3], fill=(250, 226, 120))
    return picture


def forest_on(rng, horizon: float, sky: Colour, earth: Colour, green: Colour, snowy: bool) -> Image.Image:
    """A row of pines on `earth`."""
    picture, draw = land(rng, sky, earth, horizon)
    pines(rng, draw, horizon, 15, shade(green, 0.85), snowy)
    return picture
