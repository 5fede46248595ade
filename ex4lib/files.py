"""Folders for figures and caches, files that are written whole or not at all, hashes, installed packages."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ex4lib import images


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


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, the same bytes for the same content."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    images.write_bytes(path, (text + "\n").encode())


def cache_dir() -> Path:
    """The user's cache for artwork, pictures and checkpoints: `$EX4_CACHE`, else `~/.cache/ex4lib`."""
    root = os.environ.get("EX4_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ex4lib"
    return Path(root)
