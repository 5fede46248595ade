"""Folders for figures and caches, files that are written whole or not at all, hashes, installed packages."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_LEFTOVER_SECONDS = 3600  # a file in the making that is older was left by a process that was killed


def figures_folder() -> Path:
    """Where figures and store live: ``EX4_FIGURES``, or ``figures`` in the checkout, or ``figures`` here."""
    if os.environ.get("EX4_FIGURES"):
        return Path(os.environ["EX4_FIGURES"])
    checkout = Path(__file__).resolve().parent.parent
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / "figures"


def picture_sha256(picture: Tensor) -> str:
    """SHA-256 of a batch's size and 8-bit levels."""
    levels = (picture.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().contiguous()
    return hashlib.sha256(str(tuple(levels.shape)).encode() + levels.numpy().tobytes()).hexdigest()


def optional(module: str, extra: str, package: str | None = None) -> ModuleType:
    """Import a module of a package (``package`` on PyPI) that only an extra of ``pyproject.toml`` installs.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = package or module.split(".")[0]
        raise ImportError(f'this needs the package {package}: run pip install "ex4lib[{extra}]"') from error


def environment() -> dict[str, Any]:
    """Versions and hardware, for the record."""
    packages = ("ex4lib", "torch", "torchvision", "diffusers", "transformers")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return {**versions, "python": platform.python_version(), "device": device}


def write_bytes(path: str | os.PathLike, content: bytes) -> Path:
    """Write a file atomically (beside its place, then renamed), making its folder.

    Raises:
        OSError: the file cannot be written; the message names it.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes private files
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise
    return path


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed while writing have left in a folder an hour ago or earlier."""
    for path in folder.glob(".*.part"):
        with contextlib.suppress(OSError):  # another process may remove it too
            if time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS:
                path.unlink()


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, the same bytes for the same content."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def cache_dir() -> Path:
    """The user's cache for artwork, pictures and checkpoints: `$EX4_CACHE`, else `~/.cache/ex4lib`."""
    root = os.environ.get("EX4_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ex4lib"
    return Path(root)
