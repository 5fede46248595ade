"""Pictures of digits to learn from: MNIST where it is or can be fetched, else the 8 x 8 digits of scikit-learn.

``(N, 1, 28, 28)`` in [0, 1], white on black. scikit-learn's 1,797 digits are drawn 24 px large onto 28 px in one
bicubic resampling, each time a little moved, turned and scaled: an epoch is then a fixed number of such drawings.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import math
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.files import cache_dir

from .unet import SIZE

MNIST_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
DRAWN_PER_EPOCH = 640  # of scikit-learn's digits; MNIST's epoch is its 60,000 pictures
SHIFT, TURN, SCALE = 2.0, 8.0, 0.06  # pixels, degrees, relative: the most a drawing is moved


@dataclasses.dataclass(frozen=True)
class Digits:
    """One split: 8-bit pictures ``(N, 1, h, w)`` with labels ``(N,)``; ``drawn`` when each use draws them anew."""

    name: str
    pictures: Tensor
    labels: Tensor
    drawn: bool = False
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 of pictures and labels as the source has them."""
        digest = hashlib.sha256(f"{tuple(self.pictures.shape)} {self.drawn}".encode())
        digest.update(self.pictures.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()

    def take(self, index: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Pictures ``(B, 1, 28, 28)`` in [0, 1] and labels of these places; with a generator, drawn at random."""
        pictures = self.pictures[index].float() / 255
        if self.drawn:
            pictures = draw(pictures, generator)
        return pictures, self.labels[index]

    def order(self, epoch: int, seed: int, count: int | None = None) -> Tensor:
        """The places of an epoch: whole permutations one after another, cut to ``count`` (default the epoch)."""
        count = count or self.epoch
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        rounds = -(-count // len(self))
        return torch.cat([torch.randperm(len(self), generator=generator) for _ in range(rounds)])[:count]


def load(source: str = "auto", *, epoch: int | None = None) -> tuple[Digits, Digits]:
    """Training and test split.

    Arguments:
        source: ``"mnist"`` (fetched into the user's cache if need be), ``"digits"`` (scikit-learn's, 360 of 1,797 held
            out, the same share of each class), a folder with MNIST's four files (gzipped or not; also in ``raw`` or
            ``MNIST/raw`` below it), or ``"auto"``: MNIST, or the digits with a warning if it cannot be fetched.
        epoch: pictures per epoch; None is 60,000 (the whole split) for MNIST and 640 drawings for the digits.

    Raises:
        FileNotFoundError: no such folder, a file is missing, or MNIST cannot be fetched.
        ValueError: a file is damaged or no MNIST file; it is named.
    """
    if source == "auto":
        try:
            return load("mnist", epoch=epoch)
        except FileNotFoundError as error:
            warnings.warn(f"{error}; scikit-learn's digits are used instead", RuntimeWarning, stacklevel=2)
            source = "digits"
    if source == "digits":
        return _sklearn(epoch)
    folder = _fetched() if source == "mnist" else _raw_folder(Path(source))
    train, test = (_read_split(folder, split) for split in ("train", "test"))
    epoch = epoch or len(train[1])
    return Digits("mnist", *train, epoch=epoch), Digits("mnist", *test, epoch=len(test[1]))


def draw(small: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """``(B, 1, 8, 8) -> (B, 1, 28, 28)``: 24 px large in the middle, or moved, turned and scaled at random.

    One bicubic resampling: output place p reads the source at ``A p``, with A a rotation by up to 8 degrees, a scale
    of 28/24 within 6 % and a shift within 2 px of the output.
    """
    count = len(small)
    unit = torch.zeros(4, count) if generator is None else 2 * torch.rand(4, count, generator=generator) - 1
    angle, scale = unit[0] * math.radians(TURN), SIZE / 24 * (1 + SCALE * unit[1])
    shift = unit[2:] * SHIFT * 2 / SIZE
    cos, sin = scale * angle.cos(), scale * angle.sin()
    matrix = torch.stack([torch.stack([cos, -sin, shift[0]], 1), torch.stack([sin, cos, shift[1]], 1)], 1)
    places = F.affine_grid(matrix, (count, 1, SIZE, SIZE), align_corners=False)
    return F.grid_sample(small, places, mode="bicubic", align_corners=False).clamp(0, 1)


def _sklearn(epoch: int | None) -> tuple[Digits, Digits]:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise FileNotFoundError(
            "scikit-learn, which carries the digits, is not installed: run `pip install scikit-learn`"
        ) from error
    bunch = load_digits()
    pictures = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    train, test = train_test_split(np.arange(len(labels)), test_size=360, random_state=0, stratify=labels.numpy())
    splits = []
    for places, drawings in ((np.sort(train), epoch or DRAWN_PER_EPOCH), (np.sort(test), len(test))):
        splits.append(Digits("digits", pictures[places], labels[places], drawn=True, epoch=drawings))
    return splits[0], splits[1]


def _fetched() -> Path:
    """MNIST's files in the user's cache, fetched by torchvision if need be."""
    from torchvision.datasets import MNIST

    root = cache_dir() / "mnist"
    raw = root / "MNIST" / "raw"
    if not all((raw / name).is_file() for pair in MNIST_FILES.values() for name in pair):
        try:
            MNIST(str(root), download=True)
        except (OSError, RuntimeError, ValueError, AssertionError) as error:
            raise FileNotFoundError(f"MNIST could not be fetched into {root} ({error})") from error
    return raw  # what is wrong with a file is said when it is read


def _raw_folder(root: Path) -> Path:
    names = [name for pair in MNIST_FILES.values() for name in pair]
    for folder in (root, root / "raw", root / "MNIST" / "raw"):
        if any((folder / f"{name}{ending}").is_file() for name in names for ending in ("", ".gz")):
            return folder
    kinds = "it must be auto, mnist, digits or a folder with MNIST's files"
    raise FileNotFoundError(f"there is no MNIST in {str(root)!r}: {kinds} ({', '.join(names)})")


def _read_split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    pictures, labels = (_read_idx(folder, name) for name in MNIST_FILES[split])
    if tuple(pictures.shape[1:]) != (SIZE, SIZE) or labels.ndim != 1 or len(pictures) != len(labels):
        raise ValueError(
            f"{folder / MNIST_FILES[split][0]} holds pictures {tuple(pictures.shape)} for labels "
            f"{tuple(labels.shape)}; (N, {SIZE}, {SIZE}) and (N,) are needed"
        )
    if len(labels) == 0 or labels.max() > 9:
        raise ValueError(f"{folder / MNIST_FILES[split][1]} must hold labels 0 to 9")
    return pictures[:, None], labels.long()


def _read_idx(folder: Path, name: str) -> Tensor:
    """An IDX file of bytes: 0, 0, 8, dimensions, each length as big-endian 32 bits, then the values."""
    path = next((folder / each for each in (name, f"{name}.gz") if (folder / each).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder / name} is missing (gzipped or not)")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged or half-downloaded ({error}): delete it and fetch it again") from error
    dimensions = 3 if "images" in name else 1
    if len(content) < 4 + 4 * dimensions or content[:4] != bytes((0, 0, 8, dimensions)):
        raise ValueError(f"{path} is no MNIST file: it must begin with the bytes 0 0 8 {dimensions}")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", dimensions, 4))
    start, wanted = 4 + 4 * dimensions, math.prod(shape)
    if len(content) != start + wanted:
        raise ValueError(
            f"{path} announces {wanted + start:,} bytes and holds {len(content):,}: delete it and fetch it again"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, wanted, start).reshape(shape).copy())
