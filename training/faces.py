"""The narrow world of mini-ddpm: one face, filling the picture, on a plain or softly shaded ground."""

import re

import numpy as np
from PIL import Image

from experiments.files import cache_dir

from .artwork import FAMILIES, SPRITE, WORLD, Sprites, icons
from .pictures import write_atomically

SMILEYS = re.compile(
    r"^(angry|anguished|anxious|astonished|beaming|cold|confounded|confused|cowboy|crying|disappointed|downcast|drooling|"
    r"expressionless|exploding|face-s|face-with|fearful|flushed|frowning|grimacing|grinning|hot-face|hugging|hushed|kissing|"
    r"laughing|loudly|lying|money-mouth|nauseated|nerd|neutral|partying|pensive|persevering|pleading|pouting-face|relieved|"
    r"rolling|sad|saluting|shushing|sleeping|sleepy|slightly|smiling|smirking|sneezing|squinting|star-struck|thinking|tired|"
    r"unamused|upside|weary|winking|woozy|worried|yawning|zany|zipper)(?!.*(clouds|cat|spiral|without))"
)
ANIMALS = (
    "bear", "cat-face", "dog-face", "fox", "frog", "hamster", "koala", "lion", "monkey-face", "mouse-face", "panda",
    "pig-face", "rabbit-face", "tiger-face", "wolf",
)  # fmt: skip


def face_names() -> list[tuple[str, str]]:
    """(family, icon) of every face in the artwork, in a fixed order: smileys and round animal faces."""
    return [
        (family, name)
        for family in FAMILIES
        if family != "noto-v1"  # its smileys are no discs
        for name in sorted(icons(family))
        if name in ANIMALS or (SMILEYS.match(name) and "face" in name)
    ]


def face_pictures(size: int, variants: int = 8) -> np.ndarray:
    """uint8 (N, size, size, 3): every face `variants` times, on other grounds, a little moved; cached."""
    path = cache_dir() / "pictures" / f"world{WORLD}-faces-{size}.npy"
    if not path.exists():
        pictures, rng = [], np.random.default_rng(7)
        for drawn in Sprites.load().faces.values():
            sprite = Image.fromarray(drawn)
            for _ in range(variants):
                top, bottom = (rng.integers(120, 256, 3) for _ in range(2))
                t = np.linspace(0, 1, size)[:, None, None]
                ground = np.broadcast_to((1 - t) * top + t * (bottom if rng.random() < 0.5 else top), (size, size, 3))
                canvas = Image.fromarray(ground.astype(np.uint8))
                scale = rng.uniform(0.78, 0.92) * size / SPRITE
                face = sprite.resize([max(2, round(s * scale)) for s in sprite.size], Image.Resampling.BOX)
                x, y = ((size - s) / 2 + rng.uniform(-0.03, 0.03) * size for s in face.size)
                canvas.paste(face, (round(x), round(y)), face)
                pictures.append(np.asarray(canvas))
        stacked = np.stack(pictures)
        write_atomically(path, lambda file: np.save(file, stacked))
    return np.load(path, mmap_mode="r")
