"""Files, URLs and PIL pictures <-> image tensors: float32 ``(B, 3, H, W)`` in [0, 1], sRGB.

The only room that knows file formats, EXIF rotation, transparency, colour profiles and URLs.
"""

from __future__ import annotations

import difflib
import http.client
import io
import os
import tempfile
import urllib.request
import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

ImageSource: TypeAlias = "str | os.PathLike | Image.Image | Tensor"

ASSETS = Path(__file__).parent / "assets"
MAX_PIXELS = 100_000_000
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def names() -> list[str]:
    """Names of the pictures that ship with the package (``assets/README.md`` lists works and sources)."""
    return sorted(path.stem for path in ASSETS.glob("*/*.jpg"))


def load(source: ImageSource, size: int | None = None) -> Tensor:
    """Read a picture as a float32 tensor ``(1, 3, H, W)`` in [0, 1], sRGB, upright.

    Arguments:
        source: a shipped picture's name, a path, an http(s) URL, a PIL image, or an image tensor.
        size: length of the longer side in pixels; None keeps the picture's own size.

    Colour profiles are converted to sRGB, transparency is laid on white, 16 bits are scaled to [0, 1],
    grey and CMYK become RGB, EXIF rotation is applied, of an animation the first frame is taken.

    Raises:
        ValueError: the file is no picture, is damaged, or has more than ``MAX_PIXELS`` pixels.
        FileNotFoundError: there is no such file and no shipped picture of that name.
    """
    if isinstance(source, Tensor):
        image = check(source, "source")
    elif isinstance(source, Image.Image):
        image = from_pil(source)
    elif isinstance(source, (str, os.PathLike)):
        image = _read(os.fspath(source))
    else:
        raise ValueError(f"source must be a name, path, URL, PIL image or tensor, got {type(source).__name__}")
    return image if size is None else resize(image, size)


def save(image: Tensor, path: str | os.PathLike, *, metadata: dict[str, str] | None = None) -> Path:
    """Write one picture, 8 bits per channel, marked as sRGB; ``metadata`` goes into a PNG's text fields.

    The file appears whole or not at all: it is written beside its place and then renamed.

    Raises:
        ValueError: not one picture ``(1, 3, H, W)``, or a file ending that no writable format has.
    """
    path = Path(path)
    format_name = Image.registered_extensions().get(path.suffix.lower())
    if format_name not in Image.SAVE:
        raise ValueError(f"path must end in a picture format such as .png or .jpg, got {path.name!r}")
    options: dict = {"icc_profile": _SRGB.tobytes()}
    if path.suffix.lower() == ".png":
        options["pnginfo"] = png_text(metadata or {})
    elif path.suffix.lower() in (".jpg", ".jpeg"):
        options |= {"quality": 95, "subsampling": 0}
    buffer = io.BytesIO()
    to_pil(image).save(buffer, format=format_name, **options)
    return write_bytes(path, buffer.getvalue())


def write_bytes(path: str | os.PathLike, content: bytes) -> Path:
    """Write a file atomically (beside its place, then renamed), making its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes private files
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def png_text(metadata: dict[str, str]) -> PngImagePlugin.PngInfo:
    """PNG text fields from a dictionary of strings."""
    info = PngImagePlugin.PngInfo()
    for key, value in metadata.items():
        info.add_itxt(key, value)
    return info


def to_pil(image: Tensor) -> Image.Image:
    """One image tensor, ``(1, 3, H, W)`` or ``(3, H, W)``, as an 8-bit RGB picture (rounded, clamped)."""
    image = image[None] if image.ndim == 3 else image
    if check(image, "image").shape[0] != 1:
        raise ValueError(f"image must hold one picture, got a batch of {image.shape[0]}")
    levels = (image[0].detach().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())


def from_pil(picture: Image.Image) -> Tensor:
    """A PIL picture of any mode as float32 ``(1, 3, H, W)`` in [0, 1]; see `load` for what is converted."""
    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(
            f"the picture has {picture.width} x {picture.height} pixels; at most {MAX_PIXELS:,} are accepted"
        )
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        return _from_deep_grey(picture)
    if picture.mode in ("P", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    alpha = picture.getchannel("A") if "A" in picture.getbands() else None
    picture = _to_srgb(picture)
    if alpha is not None:
        picture = Image.composite(picture, Image.new("RGB", picture.size, "white"), alpha)
    levels = torch.from_numpy(np.array(picture, dtype=np.uint8))
    return levels.permute(2, 0, 1)[None].to(torch.float32).div(255).contiguous()


def resize(image: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Resample with an antialiased bicubic filter: to a longer side of ``size``, or to ``(H, W)``."""
    height, width = image.shape[-2:]
    if (size if isinstance(size, int) else min(size)) < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    if isinstance(size, int):
        factor = size / max(height, width)
        size = (max(1, round(height * factor)), max(1, round(width * factor)))
    if tuple(size) == (height, width):
        return image
    return F.interpolate(image, size, mode="bicubic", antialias=True).clamp(0, 1)


def crop_square(image: Tensor) -> Tensor:
    """The central square."""
    height, width = image.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[..., top : top + side, left : left + side].contiguous()


def check(image: Tensor, argument: str) -> Tensor:
    """Return ``image`` if it keeps the image contract, else say in one sentence what is wrong.

    Raises:
        ValueError: not floating point ``(B, 3, H, W)``, or with values that are not finite or leave [0, 1].
    """
    if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
        raise ValueError(f"{argument} must have shape (B, 3, H, W), got {tuple(image.shape)}")
    if not image.is_floating_point():
        raise ValueError(f"{argument} must be floating point in [0, 1], got {image.dtype}")
    low, high = (value.item() for value in torch.aminmax(image.detach()))
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN fails every comparison
        raise ValueError(f"{argument} must lie in [0, 1] and be finite, got values from {low:.4g} to {high:.4g}")
    return image


def _read(source: str) -> Tensor:
    if source.startswith(("http://", "https://")):
        content: io.BytesIO | Path = _download(source)
    elif Path(source).is_file():
        content = Path(source)
    elif source in names():
        content = next(ASSETS.glob(f"*/{source}.jpg"))
    else:
        near = difflib.get_close_matches(source, names(), n=3, cutoff=0.4) or names()
        raise FileNotFoundError(
            f"there is no file {source!r} and no shipped picture of that name; did you mean {', '.join(near)}?"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # from_pil has its own limit
            with Image.open(content) as picture:
                return from_pil(picture)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError(f"{source!r} cannot be read as a picture: {error}") from error


def _download(url: str) -> io.BytesIO:
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "ex4lib"})
        with urllib.request.urlopen(request, timeout=30) as response:
            return io.BytesIO(response.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ValueError(f"{url!r} cannot be fetched: {error}") from error


def _to_srgb(picture: Image.Image) -> Image.Image:
    profile = picture.info.get("icc_profile")
    base = {"LA": "L", "La": "L", "RGBa": "RGBA", "1": "L"}.get(picture.mode, picture.mode)
    picture = picture.convert({"RGBA": "RGB"}.get(base, base))
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return ImageCms.profileToProfile(picture, source, _SRGB, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # a damaged profile, or one for another colour mode: read the numbers as sRGB
    return picture.convert("RGB")


def _from_deep_grey(picture: Image.Image) -> Tensor:
    """16-bit, 32-bit and floating-point grey pictures."""
    values = np.array(picture).astype(np.float64)
    if picture.mode != "F":
        values /= 65535
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"a {picture.mode!r} picture must hold 16-bit levels or floats in [0, 1], got {values.min():.4g} to "
            f"{values.max():.4g}"
        )
    grey = torch.from_numpy(values).to(torch.float32)
    return grey.expand(1, 3, *grey.shape).contiguous()
