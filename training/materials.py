"""What a drawn thing can be made of or covered with: blocks, wood, age, snow, ivy, neon light; and its silhouette.

Each takes an RGBA uint8 sprite (h, w, 4), its longer side `SPRITE` pixels, and gives one of the same size.
"""

import numpy as np
from PIL import Image, ImageFilter

NEON = [(40, 240, 255), (255, 60, 210), (120, 255, 90), (255, 150, 40), (150, 110, 255)]


def _light(sprite: np.ndarray) -> np.ndarray:
    return sprite[..., :3] @ np.array([0.3, 0.55, 0.15], np.float32) / 255


def _with(sprite: np.ndarray, colours: np.ndarray) -> np.ndarray:
    return np.concatenate([np.clip(colours, 0, 255).astype(np.uint8), sprite[..., 3:]], -1)


def lego(sprite: np.ndarray, rng: np.random.Generator, block: int = 10) -> np.ndarray:
    """Square blocks of one colour each, with a lit edge, a dark seam and a round stud."""
    h, w = (max(1, round(s / block)) for s in sprite.shape[:2])
    small = Image.fromarray(sprite, "RGBA").resize((w, h), Image.Resampling.BOX)
    cells = np.asarray(small).astype(np.float32)
    alpha = np.where(cells[..., 3:] > 100, 255.0, 0.0)
    y, x = np.mgrid[:block, :block] - (block - 1) / 2
    tile = np.ones((block, block), np.float32)
    tile[0], tile[:, 0] = 1.2, 1.2
    tile[-1], tile[:, -1] = 0.62, 0.62
    radius = np.hypot(x, y)
    tile[radius < block * 0.3] = 1.15
    tile[(radius >= block * 0.2) & (radius < block * 0.34) & (x + y > 0)] = 0.72
    grey = cells[..., :3].mean(-1, keepdims=True)
    levels = np.round(np.clip(0.92 * grey + 1.5 * (cells[..., :3] - grey), 0, 255) / 36) * 36  # toys are vivid
    colours = levels.repeat(block, 0).repeat(block, 1) * np.tile(tile, (h, w))[..., None]
    made = np.concatenate([np.clip(colours, 0, 255), alpha.repeat(block, 0).repeat(block, 1)], -1).astype(np.uint8)
    return np.asarray(Image.fromarray(made, "RGBA").resize(sprite.shape[1::-1], Image.Resampling.BILINEAR))


def wooden(sprite: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Browns by lightness, with grain along the longer side of the plank."""
    h, w = sprite.shape[:2]
    y, x = np.mgrid[:h, :w].astype(np.float32)
    phase = rng.uniform(0, 6.3, 2)
    grain = np.sin(2 * np.pi * (y + 5 * np.sin(x / 26 + phase[0]) + 2 * np.sin(x / 9 + phase[1])) / 8)
    light = np.clip(0.35 + 0.65 * _light(sprite), 0, 1) * (1 + 0.1 * grain)
    dark, pale = np.array([84, 46, 20], np.float32), np.array([222, 164, 98], np.float32)
    return _with(sprite, dark + light[..., None] ** 1.3 * (pale - dark))


def ancient(sprite: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sandstone: sepia tones, stains, cracks, and a crumbling outline."""
    h, w = sprite.shape[:2]
    noise = Image.fromarray(rng.integers(0, 256, (9, 9), dtype=np.uint8)).resize((w, h), Image.Resampling.BICUBIC)
    fine = Image.fromarray(rng.integers(0, 256, (30, 30), dtype=np.uint8)).resize((w, h), Image.Resampling.BICUBIC)
    stain, grit = np.asarray(noise) / 255.0, np.asarray(fine) / 255.0
    light = 0.3 + 0.6 * _light(sprite) * (0.75 + 0.35 * stain) * (0.85 + 0.3 * grit)
    dark, pale = np.array([70, 52, 34], np.float32), np.array([232, 208, 160], np.float32)
    colours = dark + np.clip(light, 0, 1)[..., None] * (pale - dark)
    cracks = np.abs(stain - 0.5) < 0.016
    colours[cracks] = dark
    made = _with(sprite, colours)
    inner = np.asarray(Image.fromarray(sprite[..., 3]).filter(ImageFilter.MinFilter(7)))
    made[..., 3] = np.where((inner < 128) & (grit > 0.7), 0, made[..., 3])
    return made


def snowy(sprite: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A cap of snow wherever nothing is above, and a pale cold light on the rest."""
    h, w = sprite.shape[:2]
    alpha = sprite[..., 3] > 128
    depth = np.cumsum(alpha, 0)
    x = np.arange(w)
    thick = h * (0.15 + 0.04 * np.sin(x / 5 + rng.uniform(0, 6)) + 0.03 * np.sin(x / 2.3 + rng.uniform(0, 6)))
    cap = np.clip(thick[None] - depth + 1, 0, 1) * alpha
    cold = 0.72 * sprite[..., :3] + 0.28 * np.array([214, 228, 244])
    snow = np.array([250, 252, 255]) - 40 * np.clip(depth / thick[None] - 0.55, 0, 1)[..., None]
    return _with(sprite, cap[..., None] * snow + (1 - cap[..., None]) * cold)


def ivy(sprite: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Leaves over more than half of the drawing, thicker from the ground up and along the edges."""
    h, w = sprite.shape[:2]
    leaf = np.zeros((h, w), np.float32)
    tone = np.zeros((h, w), np.float32)
    cover = np.asarray(
        Image.fromarray(rng.integers(0, 256, (5, 5), dtype=np.uint8)).resize((w, h), Image.Resampling.BICUBIC)
    )
    y, x = np.mgrid[-5:6, -5:6]
    disc = np.hypot(x, y) < 4.6
    for cy, cx in zip(rng.integers(5, max(6, h - 5), 420), rng.integers(5, max(6, w - 5), 420), strict=True):
        if cover[cy, cx] > 105 and min(cy, h - 6) >= 5 and min(cx, w - 6) >= 5:
            window = np.s_[cy - 5 : cy + 6, cx - 5 : cx + 6]
            leaf[window][disc] = 1
            tone[window][disc] = rng.uniform(0.6, 1.25)
    edge = np.where(np.hypot(x + 1, y + 1) < 3.2, 1.1, 0.8)
    green = np.array([52, 122, 48], np.float32) * (tone[..., None] * float(edge.mean()))
    return _with(sprite, leaf[..., None] * green + (1 - leaf[..., None]) * sprite[..., :3])


def silhouette(sprite: np.ndarray) -> np.ndarray:
    """The shape alone, nearly black."""
    return _with(sprite, np.full((*sprite.shape[:2], 3), 22))


def neon(canvas: Image.Image, sprite: Image.Image, corner: tuple[int, int], colour: tuple) -> Image.Image:
    """A night picture in which the outlines of the thing glow in one colour, its inner lines in a second."""
    size = canvas.width
    layer = Image.new("RGBA", canvas.size)
    layer.paste(sprite, corner)
    pixels = np.asarray(layer).astype(np.float32)
    alpha = pixels[..., 3:] / 255
    body = pixels[..., :3] * alpha
    ground = np.asarray(canvas) * np.array([0.26, 0.27, 0.42])
    dark = ground * (1 - alpha) + body * 0.28
    down, right = np.diff(body, axis=0, append=body[-1:]), np.diff(body, axis=1, append=body[:, -1:])
    inner = np.clip((np.abs(down).max(-1) + np.abs(right).max(-1) - 40) / 90, 0, 1)
    a = layer.getchannel("A")
    outer, within = (np.asarray(a.filter(f(3)), np.float32) for f in (ImageFilter.MaxFilter, ImageFilter.MinFilter))
    rim = outer - within
    lit = np.array(colour, np.float32)
    other = lit[[2, 0, 1]]
    lines = np.clip(rim / 255, 0, 1)[..., None] * lit + inner[..., None] * (1 - rim[..., None] / 255) * 0.75 * other
    glow = Image.fromarray(np.clip(lines, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(size / 32))
    return Image.fromarray(np.clip(dark + lines + 1.3 * np.asarray(glow), 0, 255).astype(np.uint8))


MATERIALS = {"lego": lego, "wooden": wooden, "ancient": ancient, "snowy": snowy, "ivy": ivy}


def in_material(sprite: np.ndarray, name: str, rng: np.random.Generator) -> np.ndarray:
    """The sprite made of or covered with `name`; neon changes the whole picture and is drawn by `neon`."""
    return MATERIALS[name](sprite, rng) if name in MATERIALS else sprite
