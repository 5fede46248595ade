"""``ex4 info``: what this machine has, what is missing, and how to get it."""

import importlib.util
from pathlib import Path

import torch
import typer

from ex4lib import files, images, models
from ex4lib.features import BLOCKS


def info() -> None:
    """Show profile, device, versions and models, and how to get what is missing.

    Example: python -m ex4lib info
    """
    rows = [("profile", f"{models.profile()} (EX4_PROFILE=full or mini chooses)")]
    rows += list(files.environment().items())
    rows += [("figures", str(files.figures_folder())), ("pictures", f"{len(images.names())} are shipped")]
    for name in (*BLOCKS, models.OFFLINE_PACKAGE):
        rows.append((f"network {name}", _network(name)))
    for profile, sources in models.SOURCES.items():
        rows += [(f"{profile}: {part}", _model(name)) for part, name in sources.items() if name is not None]
    found = importlib.util.find_spec("pillow_heif") is not None
    rows.append(("HEIC photographs", "can be read" if found else "cannot be read; pip install pillow-heif"))
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        typer.echo(f"{label:<{width}}  {text}")


def _network(name: str) -> str:
    if name == models.OFFLINE_PACKAGE:
        try:
            return f"found: {models._offline_file()}"
        except FileNotFoundError as error:
            return f"missing: {error}"
    from torchvision.models import get_model_weights

    cached = Path(torch.hub.get_dir(), "checkpoints", Path(get_model_weights(name).IMAGENET1K_V1.url).name)
    found = models.local(f"{name}.pth") or (cached if cached.is_file() else None)
    return f"found: {found}" if found else f"missing; fetched at first use, or put {name}.pth into EX4_MODELS"


def _model(name: str) -> str:
    """Where a folder or hub model is: the folder, EX4_MODELS, or the cache of the hub."""
    from huggingface_hub import try_to_load_from_cache

    place = Path(name) if Path(name).is_dir() else models.local(Path(name).name)
    if place is not None:
        return f"found: {place}"
    if Path(name).is_absolute():
        return f"missing: {name} is not in this installation"
    for file in ("model_index.json", "config.json"):
        if isinstance(cached := try_to_load_from_cache(name, file), str):
            return f"found: {Path(cached).parent}"
    return f"missing; fetched at first use, or: hf download {name}"
