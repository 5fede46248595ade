"""Options that several commands share, and the checks before any work."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ex4lib.statistics import STATISTICS


def default(function: Callable, name: str) -> Any:
    """The library's own default, so that the two cannot drift apart."""
    return inspect.signature(function).parameters[name].default


Output = Annotated[Path, typer.Option("--output", "-o", help="Where the picture goes (.png keeps the settings).")]
Evaluations = Annotated[int, typer.Option(help="Forward and backward passes; more is finer and slower.")]
Optimiser = Annotated[str, typer.Option(help="lbfgs or adam.")]
Start = Annotated[str, typer.Option(help="content, noise, grey, statistics, or a picture.")]
Seed = Annotated[int, typer.Option(help="Seed of the noise.")]
Network = Annotated[str | None, typer.Option(help="vgg19, vgg16 or vgg16-hed; default by EX4_PROFILE.")]
Precision = Annotated[str, typer.Option(help="float32, bfloat16, or auto: bfloat16 where it is fast.")]
StyleLoss = Annotated[str, typer.Option(help=f"One of {', '.join(STATISTICS)}.")]


PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")


def check_output(output: Path, endings: tuple[str, ...] = PICTURES) -> None:
    """Refuse, before any work, an output that could not be written after it."""
    if output.suffix.lower() not in endings:
        raise ValueError(f"the output must end in {' or '.join(endings)}, got {output.name!r}")
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    if output.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"the output {str(output)!r} cannot be written there")
