"""Captioned scenes without end: a thing or two of emoji artwork on a drawn ground, in a look, in English.

A scene is decided by its stream and its index alone: `sample_scene("train", 7)` is the same everywhere. Some
pairs of (thing, ground), (thing, look), (thing, colour) and (thing, thing) are never trained on: streams that
train redraw a scene that holds such a pair, the stream "held-out" keeps only scenes that do. The stream "courses" has
one of the things that the courses' prompts name in every scene but for views of a ground alone.
"""

import zlib
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .artwork import SPRITE, Sprites
from .grounds import draw_ground
from .looks import PAINT
from .things import IN_COURSES, THINGS, with_article
from .words import ANYTHING, COLOURS, GROUNDS, LOOKS, OPENINGS, VIEWS

STREAMS = {"train": 1, "judge": 2, "held-out": 3, "courses": 4}
HELD_OUT_SHARE = 0.06
PLAIN_FAMILIES = {
    "noto": 0.32,
    "noto-v1": 0.14,
    "emojione": 0.12,
    "twemoji": 0.14,
    "fluent-emoji-flat": 0.12,
    "fluent-emoji": 0.16,
}
LOOK_FAMILIES = {
    "flat": {"fluent-emoji-flat": 0.6, "twemoji": 0.4},
    "glossy": {"fluent-emoji": 1.0},
    "silhouette": {"fluent-emoji-high-contrast": 1.0},
}
LOOK_SHARES = {look: {"plain": 0.5, "engraving": 0.04}.get(look, 0.0575) for look in LOOKS}
WATER = ("river", "lake", "sea", "pool")
# Where a kind may be seen besides plain and gradient; every other kind may be anywhere but in the sky.
HAUNTS = {
    "swimmer": (*WATER, *WATER),
    "boat": ("river", "frozen river", "lake", "sea", "waterfall", "night", "sea", "river"),
    "air": ("sky", "sky", "sky", "night", "desert", "snowy mountains", "sea", "forest"),
    "heavens": ("sky", "sky", "night", "snowy mountains", "desert", "sea", "forest", "grass"),
    "building": tuple(g for g in GROUNDS if g not in ("plain", "gradient", "table", "room", "sky")),
    "vehicle": (
        *(g for g in GROUNDS if g not in ("plain", "gradient", "table", "room", "sky")),
        *("road", "desert road") * 3,
    ),
    "person": tuple(g for g in GROUNDS if g not in ("plain", "gradient", "table", "sky")),
    "food": tuple(g for g in GROUNDS if g not in ("plain", "gradient", "sky")) + ("table",) * 6,
}
ANYWHERE = tuple(g for g in GROUNDS if g not in ("plain", "gradient", "sky"))
UNCOLOURED = ("person", "heavens", "face")


@dataclass(frozen=True)
class Placed:
    """One thing in the picture: which drawing, where (in shares of the picture), how large."""

    thing: str
    family: str
    drawing: int
    x: float
    size: float
    mirrored: bool
    colour: str | None = None


@dataclass(frozen=True)
class Scene:
    """All that decides a picture and its caption."""

    caption: str
    things: tuple[Placed, ...]
    ground: str
    ground_colour: str | None
    look: str
    seed: tuple[int, ...]

    @property
    def label(self) -> str:
        """The caption in plain words without synonyms: equal labels mean equal content."""
        things = " and ".join(f"{p.colour} {p.thing}" if p.colour else p.thing for p in self.things)
        return f"{things} | {self.ground} {self.ground_colour or ''} | {self.look}"


def pairs(scene: Scene) -> list[str]:
    """The combinations a scene is made of, as far as the split knows them."""
    found = [f"{p.thing}|{p.colour}" for p in scene.things if p.colour]
    for p in scene.things:
        if scene.ground not in ("plain", "gradient"):
            found.append(f"{p.thing}|{scene.ground}")
        if scene.look != "plain":
            found.append(f"{p.thing}|{scene.look}")
    if len(scene.things) == 2:
        found.append("|".join(sorted(p.thing for p in scene.things)))
    return found


def is_held_out(scene: Scene) -> bool:
    """Whether the scene holds a combination that no training stream ever shows."""
    return any(zlib.crc32(pair.encode()) % 10_000 < 10_000 * HELD_OUT_SHARE for pair in pairs(scene))


def _choose(rng: np.random.Generator, options):
    """One of a sequence, evenly, or one key of a dict of weights."""
    if isinstance(options, dict):
        weights = np.array(list(options.values()))
        return list(options)[rng.choice(len(options), p=weights / weights.sum())]
    return options[rng.integers(len(options))]


def _place(rng, sprites: Sprites, thing: str, look: str, x: float, size: float) -> Placed:
    drawn = sprites.families(thing)
    families = LOOK_FAMILIES.get(look, PLAIN_FAMILIES)
    family = _choose(rng, {f: w for f, w in families.items() if f in drawn})
    drawing = int(rng.integers(len(sprites[thing, family])))
    return Placed(thing, family, drawing, float(x), float(size), bool(rng.random() < 0.5))


def _say_thing(rng, placed: Placed) -> str:
    thing = THINGS[placed.thing]
    phrase = thing.phrases[0] if rng.random() < 0.7 else _choose(rng, thing.phrases)
    if not placed.colour:
        return phrase
    article, _, rest = phrase.partition(" ")
    if article not in ("a", "an", "the"):
        return f"{placed.colour} {phrase}"
    return f"the {placed.colour} {rest}" if article == "the" else with_article(f"{placed.colour} {rest}")


def _say_scene(rng, scene: Scene) -> str:
    if not scene.things:
        said = with_article(VIEWS[scene.ground])
    else:
        said = _choose(rng, [" and ", " and ", " next to "]).join(_say_thing(rng, p) for p in scene.things)
        phrases = GROUNDS[scene.ground].get(THINGS[scene.things[0].thing].kind, GROUNDS[scene.ground][""])
        where = _choose(rng, phrases)
        if scene.ground_colour:
            where = f"on {with_article(scene.ground_colour)} background"
        elif "{colour}" in where:
            where = ""
        said = f"{said} {where}".strip()
        if scene.look == "plain" and rng.random() < 0.02:
            return ANYTHING
    return _choose(rng, LOOKS[scene.look]).format(
        _choose(rng, OPENINGS).format(said) if scene.look == "plain" else said
    )


def _draw_scene(rng, sprites: Sprites, seed: tuple[int, ...], firsts=tuple(THINGS)) -> Scene:
    look = _choose(rng, LOOK_SHARES)
    if rng.random() < 0.03 and look not in LOOK_FAMILIES:
        scene = Scene("", (), _choose(rng, list(VIEWS)), None, look, seed)
        return replace(scene, caption=_say_scene(rng, scene))
    names = [n for n in THINGS if any(f in sprites.families(n) for f in LOOK_FAMILIES.get(look, PLAIN_FAMILIES))]
    first = _choose(rng, [n for n in names if n in firsts])
    kind = THINGS[first].kind
    if rng.random() < 0.15:
        others = [n for n in names if THINGS[n].kind == kind and n != first] if rng.random() < 0.5 else names
        second = _choose(rng, others)
        places = [(0.29, rng.uniform(0.4, 0.5)), (0.72, rng.uniform(0.4, 0.5))]
        things = tuple(_place(rng, sprites, n, look, *p) for n, p in zip((first, second), places, strict=True))
    else:
        things = (_place(rng, sprites, first, look, rng.uniform(0.42, 0.58), rng.uniform(0.58, 0.8)),)
        if rng.random() < 0.18 and kind not in UNCOLOURED and look not in ("silhouette", "pencil sketch", "engraving"):
            things = (replace(things[0], colour=_choose(rng, list(COLOURS))),)
    ground = _choose(rng, {"plain": 0.22, "gradient": 0.08, "": 0.7}) or _choose(rng, HAUNTS.get(kind, ANYWHERE))
    colour = None
    if ground == "plain" and rng.random() < 0.3 and not things[0].colour:
        colour = _choose(rng, [c for c in COLOURS if COLOURS[c]])
    scene = Scene("", things, ground, colour, look, seed)
    return replace(scene, caption=_say_scene(rng, scene))


def sample_scene(stream: str, index: int, sprites: Sprites) -> Scene:
    """The scene number `index` of a stream; the same arguments give the same scene.

    Raises:
        ValueError: an unknown stream.
    """
    if stream not in STREAMS:
        raise ValueError(f"stream must be one of {', '.join(STREAMS)}, not {stream!r}.")
    for attempt in range(1000):
        seed = (STREAMS[stream], index, attempt)
        firsts = IN_COURSES if stream == "courses" else tuple(THINGS)
        scene = _draw_scene(np.random.default_rng(seed), sprites, seed, firsts)
        if is_held_out(scene) == (stream == "held-out"):
            return scene
    raise RuntimeError(f"no {stream} scene was found in 1000 draws.")


def recolour(sprite: np.ndarray, colour: str) -> np.ndarray:
    """Give the prevailing colour of an RGBA sprite another one, keeping its light and shade.

    The prevailing colour is the fullest hue among the saturated pixels; where there is little of it (grey and
    white things), all middle and light tones are recoloured.
    """
    hsv = np.asarray(Image.fromarray(sprite[..., :3]).convert("HSV")).astype(np.float32)
    hue, saturation = hsv[..., 0] * 360 / 255, hsv[..., 1] / 255
    value = sprite[..., :3].max(-1) / 255
    opaque = sprite[..., 3] > 128
    vivid = opaque & (saturation > 0.3) & (value > 0.25)
    if vivid.sum() > 0.18 * opaque.sum():
        votes = np.bincount((hue[vivid] // 10).astype(int) % 36, saturation[vivid], 36)
        votes = votes + np.roll(votes, 1) + np.roll(votes, -1)
        distance = np.abs((hue - (votes.argmax() * 10 + 5) + 180) % 360 - 180)
        mask = np.clip((48 - distance) / 16, 0, 1) * np.clip((saturation - 0.15) / 0.15, 0, 1)
    else:
        mask = np.clip((value - 0.25) / 0.15, 0, 1)
    light = sprite[..., :3] @ np.array([0.3, 0.55, 0.15]) / 255
    chosen = (mask > 0.5) & opaque
    shade = light / max(0.05, float(np.median(light[chosen]))) if chosen.any() else light
    if colour == "rainbow":
        height = np.linspace(0, 215, len(sprite)).astype(np.uint8)[:, None].repeat(sprite.shape[1], 1)
        bands = Image.fromarray(np.stack([height, np.full_like(height, 205), np.full_like(height, 240)], -1), "HSV")
        target = np.asarray(bands.convert("RGB")).astype(np.float32)
    else:
        target = np.array(COLOURS[colour], np.float32)
    shade = np.clip(shade, 0.45, 1.5)[..., None]
    painted = np.where(shade > 1, target + (255 - target) * (shade - 1) * 0.9, target * shade)
    mask = mask[..., None]
    colours = mask * painted + (1 - mask) * sprite[..., :3]
    return np.concatenate([np.clip(colours, 0, 255).astype(np.uint8), sprite[..., 3:]], -1)


def _paste(canvas: Image.Image, placed: Placed, sprites: Sprites, ground: str, feet: float) -> None:
    size = canvas.width
    sprite = sprites[placed.thing, placed.family][placed.drawing]
    if placed.colour:
        sprite = recolour(sprite, placed.colour)
    picture = Image.fromarray(sprite)
    if placed.mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = placed.size * size / SPRITE
    picture = picture.resize([max(2, round(s * scale)) for s in picture.size], Image.Resampling.BOX)
    kind = THINGS[placed.thing].kind
    floats = kind in ("heavens", "air") or ground in ("plain", "gradient", "sky")
    bottom = (0.5 + 0.04 * (placed.x - 0.5)) * size + picture.height / 2 if floats else feet * size
    left = int(np.clip(placed.x * size - picture.width / 2, 0, max(0, size - picture.width)))
    top = int(np.clip(bottom - picture.height, 0.02 * size, size - picture.height))
    if not floats and kind not in ("swimmer", "boat"):
        shadow = Image.new("L", canvas.size)
        y, w = top + picture.height, picture.width
        ImageDraw.Draw(shadow).ellipse([left + 0.06 * w, y - 0.05 * size, left + 0.94 * w, y + 0.03 * size], fill=90)
        canvas.paste((20, 20, 30), mask=shadow.filter(ImageFilter.GaussianBlur(size / 64)))
    canvas.paste(picture, (left, top), picture)


def render(scene: Scene, sprites: Sprites, size: int = 128) -> np.ndarray:
    """Draw a scene: uint8 (size, size, 3). Painted looks are made at `size`, so their grain follows it."""
    rng = np.random.default_rng((*scene.seed, 77))
    picture, feet = draw_ground(scene.ground, rng, size, scene.ground_colour)
    if scene.look == "silhouette":  # black shapes need a bright ground behind them
        picture = (0.45 * picture + 0.55 * np.array([255, 236, 214])).astype(np.uint8)
    canvas = Image.fromarray(picture)
    for placed in scene.things:
        _paste(canvas, placed, sprites, scene.ground, feet)
    picture = np.asarray(canvas)
    return PAINT[scene.look](picture, rng) if scene.look in PAINT else picture
