"""Captioned scenes without end: a thing or two of emoji artwork, alone or on a drawn ground, in English.

A scene is decided by its stream and its index alone: `sample_scene("train", 7)` is the same everywhere. Some
pairs of (thing, ground), (thing, look), (thing, colour), (thing, material) and (thing, thing) are never trained on:
streams that train redraw a scene that holds such a pair, the stream "held-out" keeps only scenes that do.
Things that the courses' prompts name are drawn twice as often as others.
"""

import zlib
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .artwork import SPRITE, Sprites
from .grounds import draw_ground
from .materials import NEON, in_material, neon, silhouette
from .recolouring import recolour
from .things import IN_COURSES, THINGS
from .words import COLOURS, GROUNDS, VIEWS, caption

STREAMS = {"train": 1, "judge": 2, "held-out": 3}
HELD_OUT_SHARE = 0.06
ASKED = ("cat|table", "boat|golden")  # what the courses' prompts ask for is trained on
PLAIN_FAMILIES = {
    "noto": 0.3,
    "noto-v1": 0.14,
    "emojione": 0.12,
    "twemoji": 0.16,
    "fluent-emoji-flat": 0.14,
    "fluent-emoji": 0.14,
}
LOOK_FAMILIES = {
    "flat": {"fluent-emoji-flat": 0.6, "twemoji": 0.4},
    "glossy": {"fluent-emoji": 1.0},
}
LOOK_SHARES = {"plain": 0.86, "flat": 0.05, "glossy": 0.05, "silhouette": 0.04}
BARE = ("plain", "gradient")  # no ground to speak of: the thing alone
WATER = ("river", "lake", "sea", "pool")
OUTDOORS = tuple(g for g in GROUNDS if g not in (*BARE, "table", "room", "sky"))
# Where a kind may be seen besides plain and gradient; every other kind may be anywhere but in the sky.
HAUNTS = {
    "swimmer": WATER,
    "boat": ("river", "frozen river", "lake", "sea", "waterfall", "night", "sea", "river"),
    "air": ("sky", "sky", "sky", "night", "desert", "snowy mountains", "sea", "forest"),
    "heavens": ("sky", "sky", "night", "snowy mountains", "desert", "sea", "forest", "grass"),
    "building": OUTDOORS,
    "vehicle": (*OUTDOORS, *("road", "desert road") * 3),
    "person": (*OUTDOORS, "room", "room"),
    "food": (*OUTDOORS, "room", *("table",) * 7),
}
ANYWHERE = tuple(g for g in GROUNDS if g not in (*BARE, "sky"))
UNCOLOURED = ("person", "heavens", "face")
# Which materials a kind may be made of or covered with.
MADE_OF = {
    "animal": ("wooden", "lego", "neon"),
    "food": ("lego", "neon"),
    "vehicle": ("neon", "neon", "lego", "wooden", "snowy", "ancient"),
    "boat": ("wooden", "lego", "ancient", "neon"),
    "air": ("neon", "lego", "wooden"),
    "building": (*("ancient", "ivy") * 3, *("snowy", "lego") * 2, "wooden", "neon"),
    "plant": ("snowy", "neon"),
    "object": ("wooden", "neon", "lego"),
}  # fmt: skip
MADE_SHARE = 0.14
BUILT_SHARE = 0.4  # of buildings, which alone are overgrown and ruined
SHAPELESS = ("food", "person", "face", "heavens")  # no outline that tells them


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
    made: str | None = None
    y: float = 0.5

    @property
    def label(self) -> str:
        """The thing in plain words without synonyms."""
        return " ".join(word for word in (self.colour, self.made, self.thing) if word)


@dataclass(frozen=True)
class Scene:
    """All that decides a picture and what can be said of it."""

    things: tuple[Placed, ...]
    ground: str
    ground_colour: str | None
    look: str
    seed: tuple[int, ...]

    @property
    def label(self) -> str:
        """The scene in plain words without synonyms: equal labels mean equal content."""
        things = " and ".join(p.label for p in self.things)
        return f"{things} | {self.ground} {self.ground_colour or ''} | {self.look}"

    @property
    def record(self) -> dict:
        """What `words.caption` and training read of a scene, in plain JSON."""
        return {
            "label": self.label,
            "things": [p.thing for p in self.things],
            "colours": [p.colour for p in self.things],
            "made": [p.made for p in self.things],
            "ground": self.ground,
            "ground_colour": self.ground_colour,
            "look": self.look,
        }

    @property
    def caption(self) -> str:
        """One way to say the scene, always the same."""
        return caption(self.record, np.random.default_rng((*self.seed, 78)))


def pairs(scene: Scene) -> list[str]:
    """The combinations a scene is made of, as far as the split knows them."""
    found = [f"{p.thing}|{other}" for p in scene.things for other in (p.colour, p.made) if other]
    for p in scene.things:
        if scene.ground not in BARE:
            found.append(f"{p.thing}|{scene.ground}")
        if scene.look != "plain":
            found.append(f"{p.thing}|{scene.look}")
    if len(scene.things) == 2:
        found.append("|".join(sorted(p.thing for p in scene.things)))
    return found


def pair_is_held_out(thing: str, other: str) -> bool:
    """Whether training never shows `thing` with this ground, colour, material or look (painted ones too)."""
    pair = f"{thing}|{other}"
    return pair not in ASKED and zlib.crc32(pair.encode()) % 10_000 < 10_000 * HELD_OUT_SHARE


def is_held_out(scene: Scene) -> bool:
    """Whether the scene holds a combination that no training stream ever shows."""
    return any(pair_is_held_out(*pair.split("|")) for pair in pairs(scene))


def _choose(rng: np.random.Generator, options):
    """One of a sequence, evenly, or one key of a dict of weights."""
    if isinstance(options, dict):
        sums = np.cumsum(list(options.values()))
        return list(options)[int(np.searchsorted(sums, rng.random() * sums[-1], side="right"))]
    return options[rng.integers(len(options))]


def _place(rng, sprites: Sprites, thing: str, look: str, x: float, size: float) -> Placed:
    drawn = sprites.families(thing)
    families = LOOK_FAMILIES.get(look, PLAIN_FAMILIES)
    family = _choose(rng, {f: w for f, w in families.items() if f in drawn})
    drawing = int(rng.integers(len(sprites[thing, family])))
    mirrored = bool(rng.random() < 0.5)
    return Placed(thing, family, drawing, float(x), float(size), mirrored, y=float(rng.uniform(0.42, 0.58)))


def _alter(rng, placed: Placed, look: str) -> Placed:
    """Give a single thing a colour or a material, now and then."""
    kind = THINGS[placed.thing].kind
    if look != "plain":
        return placed
    if rng.random() < (BUILT_SHARE if kind == "building" else MADE_SHARE) and kind in MADE_OF:
        return replace(placed, made=_choose(rng, MADE_OF[kind]))
    if rng.random() < 0.16 and kind not in UNCOLOURED:
        return replace(placed, colour=_choose(rng, list(COLOURS)))
    return placed


def _draw_scene(rng, sprites: Sprites, seed: tuple[int, ...]) -> Scene:
    look = _choose(rng, LOOK_SHARES)
    if rng.random() < 0.04 and look == "plain":
        return Scene((), _choose(rng, list(VIEWS)), None, look, seed)
    families = LOOK_FAMILIES.get(look, PLAIN_FAMILIES)
    names = {n: 1 + (n in IN_COURSES) for n in THINGS if any(f in sprites.families(n) for f in families)}
    if look == "silhouette":
        names = {n: weight for n, weight in names.items() if THINGS[n].kind not in SHAPELESS}
    first = _choose(rng, names)
    kind = THINGS[first].kind
    bare = rng.random() < 0.42
    if rng.random() < 0.12:
        others = {n: 1 for n in names if THINGS[n].kind == kind and n != first} if rng.random() < 0.5 else names
        places = [(0.27, rng.uniform(0.45, 0.52)), (0.74, rng.uniform(0.42, 0.5))]
        both = (first, _choose(rng, others))
        things = tuple(_place(rng, sprites, n, look, *p) for n, p in zip(both, places, strict=True))
    else:
        size = rng.uniform(0.62, 0.88) if bare else rng.uniform(0.55, 0.8)
        things = (_alter(rng, _place(rng, sprites, first, look, rng.uniform(0.36, 0.64), size), look),)
    if not bare:
        return Scene(things, _choose(rng, HAUNTS.get(kind, ANYWHERE)), None, look, seed)
    ground, colour = _choose(rng, {"plain": 0.65, "gradient": 0.35}), None
    if ground == "plain" and rng.random() < 0.25 and not things[0].colour:
        colour = _choose(rng, [c for c in COLOURS if COLOURS[c]])
    return Scene(things, ground, colour, look, seed)


def sample_scene(stream: str, index: int, sprites: Sprites) -> Scene:
    """The scene number `index` of a stream; the same arguments give the same scene.

    Raises:
        ValueError: an unknown stream.
    """
    if stream not in STREAMS:
        raise ValueError(f"stream must be one of {', '.join(STREAMS)}, not {stream!r}.")
    for attempt in range(1000):
        seed = (STREAMS[stream], index, attempt)
        scene = _draw_scene(np.random.default_rng(seed), sprites, seed)
        if is_held_out(scene) == (stream == "held-out"):
            return scene
    raise RuntimeError(f"no {stream} scene was found in 1000 draws.")


def _altered(placed: Placed, sprites: Sprites, look: str, rng) -> Image.Image:
    """The drawing of a thing at full size, in its colour, material and look."""
    sprite = sprites[placed.thing, placed.family][placed.drawing]
    if placed.colour:
        sprite = recolour(sprite, placed.colour)
    if placed.made:
        sprite = in_material(sprite, placed.made, rng)
    if look == "silhouette":
        sprite = silhouette(sprite)
    picture = Image.fromarray(sprite)
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if placed.mirrored else picture


def _paste(canvas: Image.Image, placed: Placed, sprites: Sprites, scene: Scene, feet: float, rng) -> Image.Image:
    """Put a thing on the canvas, wholly inside it, with its shadow."""
    size = canvas.width
    picture = _altered(placed, sprites, scene.look, rng)
    kind = THINGS[placed.thing].kind
    floats = kind in ("heavens", "air") or scene.ground in (*BARE, "sky")
    feet = min(0.97, feet + 0.3 * (placed.y - 0.5))
    scale = placed.size * size / SPRITE
    room = (0.96 if floats else feet - 0.02) * size
    scale = min(scale, room / picture.height)
    picture = picture.resize([max(2, round(s * scale)) for s in picture.size], Image.Resampling.BOX)
    bottom = placed.y * size + picture.height / 2 if floats else feet * size
    left = round(float(np.clip(placed.x * size - picture.width / 2, 0.01 * size, 0.99 * size - picture.width)))
    top = round(float(np.clip(bottom - picture.height, 0.02 * size, 0.98 * size - picture.height)))
    if not floats and kind not in ("swimmer", "boat"):
        h, w = max(4, round(0.16 * size)), picture.width
        shadow = Image.new("L", (w, h))
        ImageDraw.Draw(shadow).ellipse([0.08 * w, 0.2 * h, 0.92 * w, 0.7 * h], fill=90)
        shadow = shadow.filter(ImageFilter.BoxBlur(size / 64))
        canvas.paste((20, 20, 30), (left, top + picture.height - round(0.5 * h)), shadow)
    if placed.made == "neon":
        return neon(canvas, picture, (left, top), NEON[int(rng.integers(len(NEON)))])
    canvas.paste(picture, (left, top), picture)
    return canvas


def render(scene: Scene, sprites: Sprites, size: int = 128) -> np.ndarray:
    """Draw a scene: uint8 (size, size, 3)."""
    rng = np.random.default_rng((*scene.seed, 77))
    picture, feet = draw_ground(scene.ground, rng, size, scene.ground_colour)
    if scene.look == "silhouette":  # black shapes need a bright ground behind them
        picture = (0.45 * picture + 0.55 * np.array([255, 236, 214])).astype(np.uint8)
    canvas = Image.fromarray(picture)
    for placed in scene.things:
        canvas = _paste(canvas, placed, sprites, scene, feet, rng)
    return np.asarray(canvas)
