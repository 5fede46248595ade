"""Another colour for a drawing, its light and shade kept."""

import numpy as np
from PIL import Image

from .words import COLOURS


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
