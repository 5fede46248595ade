"""Files, URLs, PIL pictures and arrays <-> image tensors: float32 ``(B, 3, H, W)`` in [0, 1], sRGB.

The only module that knows file formats, EXIF rotation, transparency, colour profiles and URLs.
"""

import contextlib
import difflib
import io
import json
import os
import re
import struct
import sys
import threading
import time
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from ex4lib import checks
from ex4lib.files import write_bytes

ImageSource: TypeAlias = str | os.PathLike | Image.Image | np.ndarray | Tensor

ASSETS = Path(__file__).parent / "assets"
MAX_PIXELS = 100_000_000
#: Above so many pixels a picture that is wanted smaller is reduced before it becomes floats.
LARGE = 4_000_000
#: Limits of a download, in bytes and in seconds from its start to its end.
MAX_DOWNLOAD, MAX_SECONDS = 64 * 2**20, 60
#: Formats that are only pixels. PostScript, for example, is a program, which Pillow would run.
RASTER_FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG"),
    *("PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP"),
)
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
#: sRGB as if it was made on 1 January 2000 (ICC.1:2022, 7.2.8), so that equal pictures are equal files.
_UNDATED = _SRGB.tobytes()[:24] + struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + _SRGB.tobytes()[36:]
_SCREEN = threading.RLock()
_DESCRIPTION = 0x010E  # EXIF's ImageDescription


def names() -> list[str]:
    """Names of the pictures that ship with the package (``assets/README.md`` lists works and sources)."""
    return sorted(path.stem for path in ASSETS.glob("*/*.jpg"))


def load(source: ImageSource, size: int | None = None) -> Tensor:
    """Read a picture as a float32 tensor ``(1, 3, H, W)`` in [0, 1], sRGB, upright.

    Arguments:
        source: a shipped picture's name, a path (``~`` is the home folder), a URL (``http``, ``https``, ``file``), a
            PIL picture, an array ``(H, W)``, ``(H, W, C)`` or ``(B, H, W, 3)``, or an image tensor.
        size: length of the longer side in pixels; None keeps the picture's own size.

    Colour profiles are converted to sRGB, transparency is laid on white, 16 bits are scaled to [0, 1], grey, LAB and
    CMYK become RGB, EXIF rotation is applied, of an animation the first frame is taken.

    Raises:
        ValueError: the file is not a raster picture, is damaged, or has more than ``MAX_PIXELS`` pixels.
        FileNotFoundError: there is no such file and no shipped picture of that name.
    """
    return picture(source, "source", size)


def picture(source: ImageSource, argument: str = "picture", size: int | None = None) -> Tensor:
    """The gate for pictures: `load`, with errors that name the argument. A tensor keeps its float precision."""
    size = None if size is None else checks.size(size)
    if isinstance(source, Tensor):
        image = check(source, argument)
        image = image.float() if image.element_size() < 4 else image  # 16 bits round by half a level of 8
    elif isinstance(source, np.ndarray):
        levels = _shares(_channels_first(source, argument), argument, whole=0)
        if levels.shape[1] == 4:
            levels = levels[:, :3] * levels[:, 3:] + 1 - levels[:, 3:]  # on white
        image = check(levels.expand(-1, 3, -1, -1).contiguous(), argument)
    elif isinstance(source, Image.Image):
        try:
            image = from_pil(source, size)
        except (OSError, SyntaxError) as error:  # a file that is decoded only now
            raise ValueError(f"{argument} cannot be decoded: {error}") from error
    elif isinstance(source, (str, os.PathLike)) and isinstance(os.fspath(source), str):
        image = _read(os.fspath(source), lambda opened: from_pil(opened, size, draft=True))
    else:
        accepted = "a name, path, URL, PIL picture, array or tensor"
        raise ValueError(f"{argument} must be {accepted}, got {checks.describe(source)}")
    return image if size is None else resize(image, size)


def pictures(source: ImageSource | list | tuple, argument: str = "pictures") -> list[Tensor]:
    """One or several pictures, each ``(B, 3, H, W)``: a list or tuple is taken apart, anything else is one picture."""
    found = list(source) if isinstance(source, (list, tuple)) else [source]
    if not found:
        raise ValueError(f"{argument} must be one or more pictures, got none")
    return [picture(element, argument) for element in found]


def mask(source: ImageSource, argument: str = "mask", grid: tuple[int, int] | None = None) -> Tensor:
    """The gate for masks: anything `load` takes, of any number type and 1 to 4 channels, as ``(B, 1, H, W)``.

    Booleans are 0 and 1; integers above 1 are levels of 8 or 16 bits, also as whole floats up to 255; colours are
    averaged; what is transparent is outside. The result is float32 in [0, 1]; ``grid`` ``(H, W)`` resamples it.

    Raises:
        ValueError: not a mask, or values that are negative, not finite, or neither shares nor levels.
    """
    if not isinstance(source, (Tensor, np.ndarray)):
        image = picture(source, argument).mean(1, keepdim=True)
        opacity = alpha(source)
        levels = image if opacity is None else image * opacity
    else:
        levels = _shares(_channels_first(source, argument).detach(), argument, whole=255)
        levels = levels[:, :3].mean(1, keepdim=True) * (levels[:, 3:] if levels.shape[1] == 4 else 1)
    return levels if grid is None else resize(levels, grid)


def alpha(source: ImageSource, size: int | None = None) -> Tensor | None:
    """The opacity ``(1, 1, H, W)`` in [0, 1] of a file, URL or PIL picture; None where nothing is transparent."""
    if isinstance(source, Image.Image):
        opacity = _opacity(_upright(source))
    elif isinstance(source, (str, os.PathLike)) and isinstance(os.fspath(source), str):
        opacity = _read(os.fspath(source), lambda opened: _opacity(_upright(opened)))
    else:
        picture(source, "source")
        opacity = None
    if opacity is None or opacity.getextrema() == (255, 255):
        return None
    levels = torch.from_numpy(np.array(opacity))[None, None].float().div_(255)
    return levels if size is None else resize(levels, size)


def save(
    image: Tensor,
    path: str | os.PathLike,
    *,
    metadata: dict[str, str] | None = None,
    alpha: Tensor | None = None,
    quality: int = 95,
) -> Path:
    """Write one picture, 8 bits per channel, marked as sRGB. The file appears whole or not at all.

    Arguments:
        metadata: texts that `metadata` reads back: a PNG's text fields, the EXIF description of other formats.
        alpha: opacity ``(1, 1, H, W)`` in [0, 1]; JPEG and BMP have none, so it is refused there.
        quality: 1 to 100, of JPEG, WebP and AVIF.

    Raises:
        ValueError: not one picture ``(1, 3, H, W)``, or a file ending that no writable format has.
        OSError: the file cannot be written.
    """
    path = Path(path).expanduser()
    format_name = Image.registered_extensions().get(path.suffix.lower())
    if format_name not in Image.SAVE or format_name not in RASTER_FORMATS:
        raise ValueError(f"path must end in a picture format such as .png or .jpg, got {path.name!r}")
    options: dict = {"icc_profile": _UNDATED}
    if format_name == "PNG":
        options["pnginfo"] = png_text(metadata or {})
    elif metadata:
        options["exif"] = Image.Exif()
        options["exif"][_DESCRIPTION] = json.dumps(metadata)
    if format_name in ("JPEG", "WEBP", "AVIF"):
        options["quality"] = checks.integer(quality, "quality", low=1, high=100)
    if format_name == "JPEG":
        options["subsampling"] = 0
    pil = to_pil(image)
    if alpha is not None:
        if format_name not in ("PNG", "WEBP", "TIFF", "AVIF"):
            raise ValueError(f"transparency needs a .png, .webp or .tif file, got {path.name!r}")
        levels = (mask(alpha, "alpha", tuple(image.shape[-2:]))[0, 0] * 255).round().to(torch.uint8)
        pil.putalpha(Image.fromarray(levels.cpu().numpy()))
    buffer = io.BytesIO()
    try:
        pil.save(buffer, format=format_name, **options)
    except Exception as error:  # an encoder's limits: a WebP has at most 16,383 pixels on a side
        raise ValueError(f"{str(path)!r} cannot be written as {format_name}: {error}") from error
    return write_bytes(path, buffer.getvalue())


def metadata(path: str | os.PathLike) -> dict[str, str]:
    """The texts that `save` wrote into a picture file; empty where there are none or the file is damaged."""
    try:
        with Image.open(path, formats=_formats()) as opened:
            if opened.format == "PNG":
                opened.load()
                return dict(opened.text)
            return dict(json.loads(opened.getexif().get(_DESCRIPTION, "{}")))
    except Exception:  # any decoder's error: nothing is known of this file
        return {}


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


def from_pil(source: Image.Image, size: int | None = None, *, draft: bool = False) -> Tensor:
    """A PIL picture of any mode as float32 ``(1, 3, H, W)`` in [0, 1]; see `load` for what is converted.

    With ``size``, the length of the longer side, a very large picture is first averaged in blocks to save memory;
    ``draft`` lets the JPEG decoder itself halve it, which changes ``source``.

    Raises:
        ValueError: too many pixels, or pixels that cannot be decoded.
    """
    pixels = source.width * source.height
    if not 0 < pixels <= MAX_PIXELS:
        raise ValueError(f"the picture has {source.width} x {source.height} pixels; 1 to {MAX_PIXELS:,} are accepted")
    shape = None if size is None else scaled_size((source.height, source.width), size)
    large = size is not None and pixels > LARGE
    if large and draft:
        source.draft(None, (2 * size, 2 * size))
    upright = _upright(source)
    if shape is not None and (upright.height > upright.width) != (shape[0] > shape[1]):
        shape = shape[::-1]  # it was turned by 90 degrees
    if upright.mode.startswith("I") or upright.mode == "F":
        image = _from_deep_grey(upright)
    else:
        opacity = _opacity(upright)
        upright = _to_srgb(upright.convert("RGBA") if upright.mode in ("P", "PA") else upright)
        factor = max(upright.size) // (2 * size) if large else 1
        if factor > 1:
            upright = upright.reduce(factor)
            opacity = None if opacity is None else opacity.reduce(factor)
        if opacity is not None:
            upright = Image.composite(upright, Image.new("RGB", upright.size, "white"), opacity)
        levels = torch.from_numpy(np.array(upright, dtype=np.uint8))
        image = levels.permute(2, 0, 1)[None].contiguous().to(torch.float32).div_(255)
    image = image if shape is None else resize(image, shape)
    return image.expand(-1, 3, -1, -1).contiguous()


def scaled_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Height and width ``(H, W)`` of a picture of this size when its longer side has ``side`` pixels."""
    height, width = (max(1, round(length * (side / max(size)))) for length in size)
    return height, width


def resize(image: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Resample with an antialiased bicubic filter: to a longer side of ``size``, or to ``(H, W)``."""
    present = tuple(image.shape[-2:])
    target = checks.grid(size) if isinstance(size, (tuple, list)) else scaled_size(present, checks.size(size))
    if target == present:
        return image
    precise = image if image.element_size() >= 4 else image.float()  # torch resamples no 16 bits on a CPU
    return F.interpolate(precise, target, mode="bicubic", antialias=True).clamp(0, 1).to(image.dtype)


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
    if not isinstance(image, Tensor):
        raise ValueError(f"{argument} must be a tensor of shape (B, 3, H, W), got {checks.describe(image)}")
    if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
        raise ValueError(f"{argument} must have shape (B, 3, H, W), got {tuple(image.shape)}")
    if not image.is_floating_point():
        raise ValueError(f"{argument} must be floating point in [0, 1], got {image.dtype}")
    low, high = (value.item() for value in torch.aminmax(image.detach()))
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN fails every comparison
        raise ValueError(f"{argument} must lie in [0, 1] and be finite, got values from {low:.4g} to {high:.4g}")
    return image


def _read(source: str, convert: Callable[[Image.Image], Any]) -> Any:
    """Open a name, path or URL and convert it while it is open; every decoder's error becomes one sentence."""
    content = _content(source)
    try:
        with _quiet(content[:4] in (b"II*\0", b"MM\0*")), Image.open(io.BytesIO(content), formats=_formats()) as opened:
            return convert(opened)
    except Exception as error:  # decoders raise whatever they like
        reason = "it is not a raster picture, or damaged" if isinstance(error, UnidentifiedImageError) else error
        if re.match(rb"....ftyp(heic|heix|hevc|mif1|msf1)", content[:12], re.DOTALL):
            reason = "HEIC is read by the package pillow-heif: pip install pillow-heif"
        raise ValueError(f"{source!r} cannot be read as a picture: {reason}") from error


def _content(source: str) -> bytes:
    """The bytes of a file, a URL or a shipped picture."""
    scheme = source.strip().partition("://")[0].lower() if "://" in source else ""
    if scheme in ("http", "https"):
        return _download(source)
    if scheme and scheme != "file":
        raise ValueError(f"{source!r} cannot be fetched: a URL must begin with http, https or file")
    name = urllib.request.url2pathname(urllib.parse.urlsplit(source).path) if scheme else source
    path = next(ASSETS.glob(f"*/{name}.jpg")) if name in names() else None
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # too long, no such user, a zero byte
        if (file := Path(name).expanduser()).is_file():
            path = file
    if path is None:
        near = ", ".join(difflib.get_close_matches(name[:100], names(), n=3, cutoff=0.4) or names())
        missing = f"there is no file {checks.describe(source)} and no shipped picture of that name"
        raise FileNotFoundError(f"{missing}; did you mean {near}?")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{source!r} cannot be read as a picture: {error.strerror}") from error


class _Redirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, file, code, message, headers, url):
        if urllib.parse.urlsplit(url).scheme.lower() not in ("http", "https"):
            raise OSError(f"it leads to {url[:60]!r}, which is neither http nor https")
        return super().redirect_request(request, file, code, message, headers, url)


def _download(url: str) -> bytes:
    """A body of at most `MAX_DOWNLOAD` bytes within `MAX_SECONDS`, counted from the start."""
    end, outcome = time.monotonic() + MAX_SECONDS, []

    def fetch() -> None:
        try:
            request = urllib.request.Request(_ascii(url), headers={"User-Agent": "ex4lib"})
            with urllib.request.build_opener(_Redirect).open(request, timeout=30) as response:
                if int(response.headers.get("Content-Length") or 0) > MAX_DOWNLOAD:
                    raise OSError(f"it has more than {MAX_DOWNLOAD >> 20} MB")
                content = bytearray()
                while part := response.read1(1 << 16):
                    content += part
                    if len(content) > MAX_DOWNLOAD:
                        raise OSError(f"it has more than {MAX_DOWNLOAD >> 20} MB")
                    if time.monotonic() > end:
                        return
                if response.length:
                    raise OSError(f"it ends {response.length} bytes too early")
                outcome.append(bytes(content))
        except Exception as error:  # of the address, the network, the server or its protocol
            outcome.append(error)

    # A thread, since a server that drips its headers cannot be timed from inside urllib.
    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    thread.join(MAX_SECONDS)
    result = outcome[0] if outcome else OSError(f"it took more than {MAX_SECONDS} s")
    if isinstance(result, Exception):
        raise ValueError(f"{url!r} cannot be fetched: {result}") from result
    return result


def _ascii(url: str) -> str:
    """A URL as servers take it: blanks and accents escaped, what is escaped already left alone."""
    parts = urllib.parse.urlsplit(url.strip())
    host = parts.netloc.encode("idna").decode() if not parts.netloc.isascii() else parts.netloc
    path, query = (urllib.parse.quote(text, safe="/%:@!$&'()*+,;=~?-._") for text in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme.lower(), host, path, query, ""))


def _formats() -> list[str]:
    Image.init()
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return [name for name in RASTER_FORMATS if name in Image.OPEN]


@contextlib.contextmanager
def _quiet(tiff: bool) -> Iterator[None]:
    """No Python warnings; for a TIFF also none of the lines that libtiff writes to the screen by itself."""
    with _SCREEN, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `from_pil` has its own limits
        if not tiff:
            yield
            return
        sys.stderr.flush()
        screen = os.dup(2)
        try:
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), 2)
                yield
        finally:
            os.dup2(screen, 2)
            os.close(screen)


def _upright(source: Image.Image) -> Image.Image:
    source.load()
    try:
        return ImageOps.exif_transpose(source)
    except Exception:  # a damaged EXIF block: the pixels are as they are
        return source


def _opacity(source: Image.Image) -> Image.Image | None:
    if source.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in source.info:
        return source.convert("RGBA").getchannel("A")
    return None


def _to_srgb(source: Image.Image) -> Image.Image:
    profile = source.info.get("icc_profile")
    if source.mode == "LAB":
        return ImageCms.profileToProfile(source, _LAB, _SRGB, outputMode="RGB")
    base = {"LA": "L", "La": "L", "RGBA": "RGB", "RGBa": "RGB", "1": "L"}.get(source.mode, source.mode)
    source = source.convert("RGBA").convert("RGB") if source.mode == "RGBa" else source.convert(base)
    if profile:
        # A profile that is damaged, or for another colour mode: the numbers are read as sRGB.
        with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError):
            origin = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return ImageCms.profileToProfile(source, origin, _SRGB, outputMode="RGB")
    return source.convert("RGB")


def _from_deep_grey(source: Image.Image) -> Tensor:
    """16-bit, 32-bit and floating-point grey pictures ``(1, 1, H, W)``."""
    values = np.array(source)
    values = values.astype(np.float32 if source.mode in ("F", "I;16", "I;16B", "I;16L") else np.float64)
    if source.mode != "F":
        values /= 65535
    if not (values.min() >= 0 and values.max() <= 1):
        found = f"{values.min():.4g} to {values.max():.4g}"
        raise ValueError(f"a {source.mode!r} picture must hold 16-bit levels or floats in [0, 1], got {found}")
    return torch.from_numpy(values).to(torch.float32)[None, None]


def _numbers(array: np.ndarray, argument: str) -> Tensor:
    """An array of numbers as a tensor; torch has neither all unsigned integers nor other byte orders."""
    if array.dtype.kind not in "buif":
        raise ValueError(f"{argument} must hold numbers, got {checks.describe(array)}")
    kind = {"b": "bool", "f": "float64" if array.dtype.itemsize > 4 else "float32"}
    wanted = kind.get(array.dtype.kind, "uint8" if array.dtype == np.uint8 else "int64")
    return torch.from_numpy(np.array(array, dtype=wanted))  # a copy: strides may be negative


def _channels_first(source: Tensor | np.ndarray, argument: str) -> Tensor:
    """``(H, W)``, ``(C, H, W)``, ``(B, C, H, W)``, of an array first ``(H, W, C)``, last ``(B, H, W, C)``."""
    tensor = _numbers(source, argument) if isinstance(source, np.ndarray) else source
    found = tensor[None, None] if tensor.ndim == 2 else tensor[None] if tensor.ndim == 3 else tensor
    last = tensor.ndim == 3 or (tensor.ndim == 4 and tensor.shape[1] not in (1, 3))
    if isinstance(source, np.ndarray) and last and found.shape[-1] in (1, 3, 4):
        found = found.permute(0, 3, 1, 2)
    if found.ndim != 4 or found.shape[1] not in (1, 3, 4) or 0 in found.shape:
        raise ValueError(f"{argument} must have one, three or four channels, got {checks.describe(tensor)}")
    return found


def _shares(levels: Tensor, argument: str, *, whole: int) -> Tensor:
    """Numbers as float32 in [0, 1]: levels of 8 or 16 bits are divided by the largest, shares are left alone."""
    kind, top = levels.dtype, 1
    levels = levels.float()
    low, high = levels.min().item(), levels.max().item()
    if kind.is_floating_point:
        top = whole if 1.001 < high <= whole and bool((levels == levels.round()).all()) else 1
    elif kind != torch.bool and (high > 1 or not whole):
        top = 255 if kind == torch.uint8 or high <= 255 else 65535
    if not (low >= -1e-3 and high <= top * 1.001):  # NaN fails every comparison
        raise ValueError(f"{argument} must be finite and in [0, 1], or levels, got values from {low:.4g} to {high:.4g}")
    return (levels / top).clamp(0, 1)
