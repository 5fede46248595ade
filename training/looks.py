"""Painted renditions of a picture by classical filters. Each takes and returns uint8 (S, S, 3).

The grain of every look (strokes, tiles, dots, lines) is a fixed share of the picture: about S/16, which is
coarse enough to survive an autoencoder that keeps one latent per S/16 pixels.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from scipy import ndimage
from scipy.spatial import cKDTree

from ex4lib import images


def _grey(picture: np.ndarray) -> np.ndarray:
    return picture @ np.array([0.299, 0.587, 0.114]) / 255


def _blur(picture: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(picture.astype(np.float32), (sigma, sigma, 0))


def _pixel(colour: np.ndarray) -> tuple[int, int, int]:
    return tuple(int(v) for v in np.clip(colour, 0, 255))


def oil_painting(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brush strokes along the contours, coarse ones first, fine ones where detail is (Hertzmann 1998)."""
    size = len(picture)
    unit = size / 64
    grey = ndimage.gaussian_filter(_grey(picture), 2 * unit)
    gy, gx = np.gradient(grey)
    swirl = ndimage.gaussian_filter(rng.normal(size=(size, size)), size / 12)
    angle = np.where(np.hypot(gx, gy) > 0.004 / unit, np.arctan2(gy, gx) + np.pi / 2, swirl / swirl.std() * 1.2)
    canvas = Image.fromarray(_blur(picture, 2 * unit).astype(np.uint8)).resize((2 * size, 2 * size))
    draw = ImageDraw.Draw(canvas)
    for width, length, number in ((4.0, 5, 260), (2.3, 3.6, 700), (1.3, 2.4, 1400)):
        source = _blur(picture, width * unit / 5)
        detail = np.abs(source - _blur(picture, width * unit)).sum(-1)
        spots = rng.integers(0, size, (number, 2))
        tints = rng.normal(0, 13, (number, 1)) + rng.normal(0, 4, (number, 3))
        for (y, x), tint in zip(spots, tints, strict=True):
            if width < 4 and detail[y, x] < (9 if width > 2 else 22):
                continue
            a = angle[y, x]
            dx, dy = np.cos(a) * length * unit, np.sin(a) * length * unit
            ends = [(2 * (x - dx), 2 * (y - dy)), (2 * (x + dx), 2 * (y + dy))]
            draw.line(ends, fill=_pixel(source[y, x] + tint), width=max(1, round(2 * width * unit * 0.7)))
    return np.asarray(canvas.reduce(2))


def mosaic(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Tiles (Voronoi cells of a jittered grid) of one colour each, with light grout between them."""
    size, cells = len(picture), 17
    pitch = size / cells
    grid = (np.stack(np.meshgrid(np.arange(-1, cells + 1), np.arange(-1, cells + 1), indexing="ij"), -1) + 0.5) * pitch
    centres = (grid + rng.uniform(-0.22, 0.22, grid.shape) * pitch).reshape(-1, 2)
    pixels = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1).reshape(-1, 2)
    near, which = cKDTree(centres).query(pixels, k=2)
    label = which[:, 0]
    count = np.maximum(np.bincount(label, minlength=len(centres)), 1)
    flat = picture.reshape(-1, 3)
    mean = np.stack([np.bincount(label, flat[:, c], len(centres)) / count for c in range(3)], -1)
    tiles = (mean + rng.normal(0, 9, (len(centres), 1)))[label]
    grout = np.clip((near[:, 1] - near[:, 0]) / (pitch * 0.16) - 0.25, 0, 1)[:, None]
    return (
        np.clip(grout * tiles + (1 - grout) * np.array([238, 232, 216]), 0, 255).reshape(size, size, 3).astype(np.uint8)
    )


def pencil_sketch(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Graphite on paper: the colour-dodge outline, and hatching in the dark parts."""
    size = len(picture)
    unit = size / 64
    grey = _grey(picture)
    blurred = ndimage.gaussian_filter(1 - grey, 2.2 * unit)
    line = np.clip(grey / np.maximum(1 - blurred, 0.05), 0, 1) ** 2.4
    y, x = np.mgrid[:size, :size] / unit
    waver = ndimage.gaussian_filter(rng.normal(size=(size, size)), 4 * unit) * 30
    hatch = 0.5 + 0.5 * np.cos((x + y + waver) * 2 * np.pi / 4.2)
    shade = np.clip(1.3 * (0.85 - ndimage.gaussian_filter(grey, 0.7 * unit)), 0, 1)
    tone = line * (1 - shade * (0.35 + 0.55 * hatch))
    paper = 0.97 + 0.02 * ndimage.gaussian_filter(rng.normal(size=(size, size)), unit)
    value = np.clip(tone * paper, 0.08, 1)[..., None]
    return np.clip(value * np.array([248, 246, 240]) + (1 - value) * np.array([44, 46, 54]), 0, 255).astype(np.uint8)


def pointillism(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Round dots of pure colour on a light canvas, every third one in a neighbouring hue."""
    size, cells = len(picture), 26
    pitch = size / cells
    canvas = Image.new("RGB", (2 * size, 2 * size), (240, 234, 218))
    draw = ImageDraw.Draw(canvas)
    source = _blur(picture, pitch / 5)
    mean = source.mean(-1, keepdims=True)
    source = np.clip(mean + 1.25 * (source - mean), 0, 255)
    rows, columns = np.meshgrid(np.arange(cells + 1), np.arange(cells + 1), indexing="ij")
    ys = (rows + rng.uniform(-0.2, 0.2, rows.shape)) * pitch
    xs = (columns + 0.5 * (rows % 2) + rng.uniform(-0.2, 0.2, rows.shape)) * pitch
    for y, x in zip(ys.ravel(), xs.ravel(), strict=True):
        colour = source[min(size - 1, int(y)), min(size - 1, max(0, int(x)))]
        colour = colour + rng.normal(0, 16, 3) + (rng.random() < 0.3) * rng.choice([-30, 30]) * np.array([1, 0, -1])
        r = pitch * rng.uniform(0.46, 0.58)
        draw.ellipse([2 * (x - r), 2 * (y - r), 2 * (x + r), 2 * (y + r)], fill=_pixel(colour))
    return np.asarray(canvas.reduce(2))


INKS = np.array(
    [(246, 236, 208), (232, 214, 176), (38, 60, 104), (84, 122, 160), (150, 178, 186), (196, 78, 58),
     (222, 154, 104), (226, 186, 96), (122, 138, 92), (66, 92, 74), (142, 100, 76), (44, 40, 44),
     (204, 140, 150)],
    dtype=np.float32,
)  # fmt: skip


def woodblock_print(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A few flat inks on cream paper, dark key-block contours, the grain of the wood in the flat parts."""
    size = len(picture)
    unit = size / 64
    soft = np.stack([ndimage.median_filter(picture[..., c], int(2 * unit) | 1) for c in range(3)], -1).astype(
        np.float32
    )
    distance = ((soft[:, :, None] - INKS) ** 2 * np.array([0.9, 1.2, 0.7])).sum(-1)
    ink = INKS[distance.argmin(-1)]
    tone = _blur(ink, 0.35 * unit)
    edge = np.hypot(*(ndimage.sobel(ndimage.gaussian_filter(_grey(soft), 0.4 * unit), axis) for axis in (0, 1)))
    colour_edge = np.abs(ndimage.sobel(tone, 0)).sum(-1) + np.abs(ndimage.sobel(tone, 1)).sum(-1)
    key = np.clip(edge * 1.6 - 0.25, 0, 1) + np.clip(colour_edge / 900 - 0.35, 0, 1)
    y = np.mgrid[:size, :size][0] / unit
    waver = ndimage.gaussian_filter(rng.normal(size=(size, size)), (2 * unit, 9 * unit)) * 60
    grain = 1 + 0.045 * np.sin((y + waver) * 2 * np.pi / 4)[..., None]
    key = np.clip(ndimage.gaussian_filter(key, 0.3 * unit), 0, 1)[..., None]
    return np.clip(tone * grain * (1 - key) + key * np.array([34, 36, 52]), 0, 255).astype(np.uint8)


def engraving(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two inks on salmon paper: teal waves that swell in the dark, a plum wash in the deep shadows."""
    size = len(picture)
    unit = size / 64
    grey = ndimage.gaussian_filter(_grey(picture), 0.6 * unit)
    low, high = np.percentile(grey, (2, 98))
    grey = np.clip((grey - low) / (high - low + 1e-3), 0, 1)
    y, x = np.mgrid[:size, :size] / unit
    wave = y + 1.6 * np.sin(x * 2 * np.pi / 16 + rng.uniform(0, 6)) + 1.5 * grey
    line = 0.5 + 0.5 * np.cos(wave * 2 * np.pi / 3.6)
    teal = np.clip((line - (0.12 + 0.88 * grey)) * 3.5 + 0.5, 0, 1)[..., None]
    plum = np.clip((0.3 - grey) * 4, 0, 1)[..., None] * 0.8
    paper = np.array([250, 206, 184])
    colour = paper * (1 - plum) + np.array([138, 60, 110]) * plum
    return (colour * (1 - teal) + np.array([0, 104, 112]) * teal).astype(np.uint8)


PAINT = {
    "oil painting": oil_painting,
    "mosaic": mosaic,
    "pencil sketch": pencil_sketch,
    "pointillism": pointillism,
    "woodblock print": woodblock_print,
    "engraving": engraving,
}

SHIPPED = ("mosaic", "engraving")  # one that captions name, and the one that no word reaches


def shipped_path(look: str) -> Path:
    """Where the package keeps the photograph of a coffee cup in this look."""
    return images.ASSETS / "styles" / f"look-{look}.jpg"


def in_look(look: str, photograph: str = "coffee", size: int = 256) -> Image.Image:
    """The middle square of a shipped photograph in a look."""
    square = ImageOps.fit(images.to_pil(images.load(photograph)), (size, size), Image.Resampling.LANCZOS)
    return Image.fromarray(PAINT[look](np.asarray(square), np.random.default_rng(0)))
