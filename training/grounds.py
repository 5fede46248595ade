"""Drawn grounds: where the things of a scene stand. Each is a few polygons with random colours and places.

Every ground is a function (rng, horizon, colour) -> PIL picture of `UNIT` pixels; `horizon` in pixels.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from .brushes import (
    GREENS,
    SKIES,
    UNIT,
    WATERS,
    clouds,
    forest_on,
    hill,
    land,
    pick,
    ramp,
    river_band,
    road_on,
    shade,
)
from .words import COLOURS, GROUNDS


def plain(rng, horizon, colour: str | None):
    base = COLOURS.get(colour or "") or pick(rng, [(250, 250, 250), (236, 236, 236), (250, 240, 220), (215, 232, 245)])
    return ramp(base, base)


def gradient(rng, horizon, colour):
    a, b = rng.integers(110, 256, 3), rng.integers(110, 256, 3)
    return ramp(tuple(a), tuple(b)).rotate(int(rng.integers(4)) * 90)


def grass(rng, horizon, colour):
    picture, draw = land(rng, pick(rng, SKIES), pick(rng, GREENS), horizon)
    for _ in range(26):
        x, y = rng.uniform(0, UNIT), rng.uniform(horizon + 20, UNIT)
        draw.line([(x - 5, y - 9), (x, y), (x + 5, y - 9)], fill=pick(rng, [(70, 140, 60)]), width=3)
    clouds(rng, draw, horizon - 60, int(rng.integers(3)))
    return picture


def flowers(rng, horizon, colour):
    picture, draw = land(rng, pick(rng, SKIES), pick(rng, GREENS), horizon)
    petals = [(235, 70, 90), (250, 200, 60), (240, 130, 190), (250, 250, 250), (150, 90, 200)]
    for y in np.sort(rng.uniform(horizon + 6, UNIT, 44)):
        x, r, c = rng.uniform(0, UNIT), 3 + 6 * (y - horizon) / (UNIT - horizon), pick(rng, petals)
        for dx, dy in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            draw.ellipse([x + dx * r - r, y + dy * r - r, x + dx * r + r, y + dy * r + r], fill=c)
        draw.ellipse([x - r * 0.7, y - r * 0.7, x + r * 0.7, y + r * 0.7], fill=(250, 220, 80))
    return picture


def desert(rng, horizon, colour):
    sand = pick(rng, [(228, 190, 124), (236, 204, 146), (214, 168, 104)])
    picture, draw = land(rng, pick(rng, SKIES[:3] + SKIES[4:5]), sand, horizon, 26)
    draw.polygon(hill(rng, horizon + 44, 24), fill=shade(sand, 0.9))
    draw.polygon(hill(rng, horizon + 82, 18), fill=shade(sand, 0.98))
    x, h = rng.uniform(10, UNIT - 10), rng.uniform(36, 54)
    for a, b, c, d in ((0, -h, 0, 0), (-13, -h * 0.7, -13, -h * 0.4), (13, -h * 0.8, 13, -h * 0.5)):
        draw.line([(x + a, horizon + 8 + b), (x + c, horizon + 8 + d)], fill=(84, 140, 74), width=9)
    for y, s in ((0.4, -13), (0.5, 13)):
        draw.line([(x, horizon + 8 - h * y), (x + s, horizon + 8 - h * y)], fill=(84, 140, 74), width=8)
    return picture


def snow(rng, horizon, colour):
    picture, draw = land(rng, pick(rng, [(168, 190, 215), (188, 208, 228), (150, 176, 210)]), (236, 242, 250), horizon)
    for _ in range(38):
        x, y, r = rng.uniform(0, UNIT), rng.uniform(0, UNIT), rng.uniform(2, 4.5)
        draw.ellipse([x - r, y - r, x + r, y + r], fill=(255, 255, 255))
    return picture


def night(rng, horizon, colour):
    sky = pick(rng, [(20, 26, 64), (16, 20, 48), (34, 30, 84)], 5)
    earth = pick(rng, [(30, 52, 50), (36, 40, 66), (28, 44, 38)], 5)
    picture, draw = land(rng, sky, earth, horizon)
    for _ in range(26):
        x, y, r = rng.uniform(0, UNIT), rng.uniform(0, horizon - 15), rng.uniform(1.2, 3)
        draw.ellipse([x - r, y - r, x + r, y + r], fill=(250, 245, 210))
    x, y, r = rng.uniform(25, UNIT - 25), rng.uniform(24, 55), rng.uniform(12, 18)
    draw.ellipse([x - r, y - r, x + r, y + r], fill=(250, 240, 190))
    draw.ellipse([x - r * 0.4, y - r * 1.1, x + r * 1.4, y + r * 0.8], fill=shade(sky, 1.05))
    return picture


def road(rng, horizon, colour):
    return road_on(rng, pick(rng, GREENS), horizon)


def desert_road(rng, horizon, colour):
    return road_on(rng, pick(rng, [(228, 190, 124), (236, 204, 146), (214, 168, 104)]), horizon)


def river(rng, horizon, colour):
    picture, draw = land(rng, pick(rng, SKIES), pick(rng, GREENS), horizon)
    river_band(rng, draw, horizon, pick(rng, WATERS), (190, 222, 244))
    return picture


def frozen_river(rng, horizon, colour):
    picture, draw = land(rng, pick(rng, SKIES[3:4] + SKIES[5:]), (238, 243, 250), horizon)
    river_band(rng, draw, horizon, pick(rng, [(178, 216, 238), (196, 226, 242)], 5), (250, 253, 255))
    return picture


def lake(rng, horizon, colour):
    picture, draw = land(rng, pick(rng, SKIES), pick(rng, GREENS), horizon)
    water, x = pick(rng, WATERS), rng.uniform(60, UNIT - 60)
    draw.ellipse([x - 135, horizon + 34, x + 135, horizon + 116], fill=shade(water, 0.85))
    draw.ellipse([x - 128, horizon + 38, x + 128, horizon + 112], fill=water)
    draw.ellipse([x - 70, horizon + 54, x + 10, horizon + 62], fill=shade(water, 1.25))
    return picture


def sea(rng, horizon, colour):
    water = pick(rng, WATERS)
    picture = ramp(pick(rng, SKIES), (235, 244, 250))
    draw = ImageDraw.Draw(picture)
    draw.rectangle([0, horizon, UNIT, UNIT], fill=water)
    for k in range(4):
        x = np.linspace(0, UNIT, 33)
        y = horizon + 18 + k * 24 + 4 * np.sin(x / 11 + rng.uniform(0, 6))
        draw.line(list(zip(x, y, strict=True)), fill=shade(water, 1.2), width=5)
    draw.polygon(hill(rng, UNIT - 18, 12), fill=(238, 214, 160))
    clouds(rng, draw, horizon - 50, int(rng.integers(3)))
    return picture


def waterfall(rng, horizon, colour):
    rock = pick(rng, [(120, 112, 104), (104, 108, 112), (128, 106, 84)])
    picture, draw = land(rng, pick(rng, SKIES), pick(rng, GREENS), horizon)
    x, w, top = rng.choice([62, UNIT - 62]) + rng.uniform(-14, 14), rng.uniform(26, 36), rng.uniform(14, 40)
    draw.polygon(
        [
            (x - 92, horizon + 18),
            (x - 66, top + 14),
            (x - 40, top),
            (x + 44, top),
            (x + 72, top + 20),
            (x + 94, horizon + 18),
        ],
        fill=rock,
    )
    draw.rectangle([x - 62, top - 7, x + 66, top + 9], fill=pick(rng, GREENS))
    draw.ellipse([x - 90, horizon + 2, x + 90, horizon + 66], fill=pick(rng, WATERS))
    draw.rectangle([x - w, top - 4, x + w, horizon + 26], fill=(150, 205, 240))
    for dx in np.linspace(-w + 5, w - 5, 5):
        draw.line([(x + dx, top + rng.uniform(0, 30)), (x + dx, horizon + 18)], fill=(236, 248, 255), width=5)
    for dx in np.linspace(-w - 6, w + 6, 6):
        draw.ellipse([x + dx - 11, horizon + 14, x + dx + 11, horizon + 34], fill=(246, 252, 255))
    return picture


def pool(rng, horizon, colour):
    picture, draw = land(rng, pick(rng, SKIES), pick(rng, GREENS), horizon - 6, 4)
    top, bottom = horizon + 34, horizon + 106
    draw.rectangle([0, horizon + 14, UNIT, UNIT], fill=pick(rng, [(232, 222, 202), (222, 210, 190)], 5))
    draw.polygon([(30, top), (UNIT - 30, top), (UNIT - 4, bottom), (4, bottom)], fill=(248, 248, 246))
    draw.polygon([(40, top + 7), (UNIT - 40, top + 7), (UNIT - 19, bottom - 8), (19, bottom - 8)], fill=(72, 200, 226))
    for _ in range(7):
        x, y = rng.uniform(46, UNIT - 90), rng.uniform(top + 16, bottom - 16)
        draw.arc([x, y - 5, x + 34, y + 5], 0, 180, fill=(190, 240, 250), width=4)
    return picture


def forest(rng, horizon, colour):
    return forest_on(
        rng, horizon, pick(rng, SKIES), pick(rng, GREENS), pick(rng, [(42, 112, 62), (56, 126, 58)]), False
    )


def snowy_forest(rng, horizon, colour):
    return forest_on(rng, horizon, pick(rng, SKIES[3:4] + SKIES[5:]), (240, 244, 250), (58, 112, 92), True)


def snowy_mountains(rng, horizon, colour):
    picture, draw = land(rng, pick(rng, SKIES), (240, 244, 250), horizon)
    for x, h in sorted(zip(rng.uniform(0, UNIT, 4), rng.uniform(80, 135, 4), strict=True), key=lambda p: -p[1]):
        rock, foot = pick(rng, [(112, 122, 146), (98, 108, 130), (128, 130, 146)], 6), horizon + 12
        draw.polygon([(x, foot - h), (x - h * 0.75, foot), (x + h * 0.75, foot)], fill=rock)
        c = 0.42 * h
        teeth = [
            (x + c * 0.75 * k, foot - h + c * (1 if i % 2 == 0 else 0.72)) for i, k in enumerate((1, 0.5, 0, -0.5, -1))
        ]
        draw.polygon([(x, foot - h), *teeth], fill=(250, 252, 255))
    draw.polygon(hill(rng, horizon + 14, 10), fill=(240, 244, 250))
    return picture


def table(rng, horizon, colour):
    wall = pick(rng, [(236, 224, 204), (206, 222, 226), (228, 206, 206), (214, 220, 198)])
    wood = pick(rng, [(168, 112, 66), (190, 136, 84), (140, 90, 54)])
    picture = ramp(wall, shade(wall, 0.92))
    draw = ImageDraw.Draw(picture)
    top, front = horizon + 30, horizon + 74
    draw.polygon([(26, top), (UNIT - 26, top), (UNIT, front), (0, front)], fill=shade(wood, 1.15))
    draw.rectangle([0, front, UNIT, front + 15], fill=shade(wood, 0.8))
    for x in (16, UNIT - 40):
        draw.rectangle([x, front + 15, x + 24, UNIT], fill=shade(wood, 0.65))
    return picture


def room(rng, horizon, colour):
    wall = pick(rng, [(240, 214, 170), (190, 214, 220), (224, 190, 190), (196, 206, 170), (210, 200, 226)])
    floor = pick(rng, [(160, 112, 74), (184, 140, 96), (130, 96, 76)])
    picture = ramp(wall, shade(wall, 0.95))
    draw = ImageDraw.Draw(picture)
    y = horizon + 26
    draw.rectangle([0, y, UNIT, UNIT], fill=floor)
    for x in np.linspace(-120, UNIT + 120, 9):
        draw.line([(UNIT / 2 + (x - UNIT / 2) * 0.6, y), (x, UNIT)], fill=shade(floor, 0.85), width=3)
    draw.rectangle([0, y - 9, UNIT, y], fill=(250, 248, 240))
    x = rng.choice([20, UNIT - 96]) + rng.uniform(-8, 8)
    draw.rectangle([x, 24, x + 76, 104], fill=(250, 248, 240))
    draw.rectangle([x + 7, 31, x + 69, 97], fill=(160, 212, 245))
    draw.rectangle([x + 35, 31, x + 41, 97], fill=(250, 248, 240))
    draw.rectangle([x + 7, 61, x + 69, 67], fill=(250, 248, 240))
    return picture


def sky(rng, horizon, colour):
    blue = pick(rng, SKIES[:3])
    picture = ramp(shade(blue, 0.9), shade(blue, 1.2))
    clouds(rng, ImageDraw.Draw(picture), UNIT - 20, int(rng.integers(4, 8)))
    return picture


DRAW: dict[str, Callable] = {name: globals()[name.replace(" ", "_")] for name in GROUNDS}


def draw_ground(name: str, rng: np.random.Generator, size: int, colour: str | None = None) -> tuple[np.ndarray, float]:
    """Draw the ground `name`.

    Returns:
        The picture, uint8 (size, size, 3), and the height things stand at, in [0, 1] from the top.
    """
    horizon = rng.uniform(0.5, 0.6) * UNIT
    picture = DRAW[name](rng, horizon, colour)
    if name not in ("plain", "gradient"):  # a little grain of light, so that no two skies are alike
        light = Image.fromarray(rng.integers(118, 138, (4, 4), dtype=np.uint8)).resize(
            (UNIT, UNIT), Image.Resampling.BICUBIC
        )
        picture = ImageChops.overlay(picture, Image.merge("RGB", [light] * 3))
    feet = {"plain": 0.92, "gradient": 0.92, "sky": 0.88, "table": horizon / UNIT + 0.22}.get(
        name, horizon / UNIT + 0.31
    )
    if name == "waterfall":
        picture = picture.filter(ImageFilter.SMOOTH)
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX)), feet
