"""The folder for figures, files that are written whole or not at all, hashes, installed packages."""

import contextlib
import hashlib
import importlib
import importlib.metadata
import os
import platform
import uuid
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


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
    """Import a module of a package that only an extra installs; the ImportError says how to install ``package``."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = package or module.split(".")[0]
        raise ImportError(
            f"this needs the package {package}, of the extra {extra}: run pip install {package}"
        ) from error


def environment() -> dict[str, Any]:
    """Versions and hardware, for the record."""
    versions = {}
    for package in ("ex4lib", "torch", "torchvision", "diffusers", "transformers"):
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
    temporary = path.parent / f".{uuid.uuid4().hex}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise
    return path
