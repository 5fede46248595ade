"""Options that several commands share, and the checks before any work."""

import inspect
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from ex4lib import checks, images
from ex4lib.statistics import STATISTICS


def default(function: Callable, name: str) -> Any:
    """The library's own default, so that the two cannot drift apart."""
    return inspect.signature(function).parameters[name].default


def within(low: float | None = None, high: float | None = None, *, above: float | None = None) -> Callable:
    """A callback that refuses numbers outside a range, and nan, which typer's own ``min`` and ``max`` let through."""

    def check(parameter: typer.CallbackParam, value: Any) -> Any:
        if isinstance(value, int):
            return checks.integer(value, parameter.name, low=low, high=high)
        given = {name: limit for name, limit in (("low", low), ("high", high), ("above", above)) if limit is not None}
        return None if value is None else checks.number(value, parameter.name, **given)

    return check


Output = Annotated[Path, typer.Option("--output", "-o", help="Where the picture goes (.png keeps all settings).")]
Size = Annotated[int, typer.Option(help="Longer side in pixels.", callback=within(1, checks.MAX_SIDE))]
Evaluations = Annotated[int, typer.Option(help="Forward and backward passes, 1 per scale or more.", callback=within(1))]
Seconds = Annotated[float | None, typer.Option(help="Stop after this time with the best picture.", callback=within(0))]
Smoothness = Annotated[float, typer.Option(help="0 for none.", callback=within(0))]
Weight = Annotated[float, typer.Option(help="1 is balanced; 0.2 is faint.", callback=within(0))]
StrokeScale = Annotated[float, typer.Option(help="Larger gives larger strokes.", callback=within(above=0))]
StyleScale = Annotated[float | None, typer.Option(help="0 is unguided. Default: the preset's.", callback=within(0))]
GuidanceScale = Annotated[float | None, typer.Option(help="Of the prompt. Default by EX4_PROFILE.", callback=within())]
Strength = Annotated[float, typer.Option(help="Share that is drawn anew, up to 1.", callback=within(high=1, above=0))]
Optimiser = Annotated[str, typer.Option(help="lbfgs or adam.")]
Start = Annotated[str, typer.Option(help="content, noise, grey, statistics, or a picture.")]
Seed = Annotated[int, typer.Option(help="Seed of the noise.", callback=within(0, 2**64 - 1))]
Network = Annotated[str | None, typer.Option(help="vgg19, vgg16 or vgg16-hed; default by EX4_PROFILE.")]
Precision = Annotated[str, typer.Option(help="float32, bfloat16, or auto: bfloat16 where it is fast.")]
Layers = Annotated[str, typer.Option(help="Style layers, separated by commas.")]
StyleWeights = Annotated[str | None, typer.Option(help="Shares of the styles, such as 2,1.")]
Regions = Annotated[str | None, typer.Option(help="Masks of the result, one per style: a.png,b.png.")]
StyleLoss = Annotated[str, typer.Option(help=f"One of {', '.join(STATISTICS)}.")]
Preview = Annotated[Path | None, typer.Option(help="Picture file that is rewritten every two seconds meanwhile.")]
Quality = Annotated[int, typer.Option(help="1 to 100, of .jpg and .webp files.", callback=within(1, 100))]

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")


def check_output(output: Path, endings: tuple[str, ...] = PICTURES, inputs: Iterable[str | None] = ()) -> None:
    """Refuse, before any work, an output that could not be written after it, or that would replace an input."""
    if output.suffix.lower() not in endings:
        raise ValueError(f"the output must end in {' or '.join(endings)}, got {output.name!r}")
    if len(output.name.encode()) > 255:
        raise ValueError(f"the output's name has {len(output.name.encode())} bytes; file systems take at most 255")
    try:
        folder = next(parent for parent in output.absolute().parents if parent.exists())
        writable = folder.is_dir() and os.access(folder, os.W_OK | os.X_OK) and not output.is_dir()
    except (OSError, ValueError):  # too long, or a zero byte
        writable = False
    if not writable:
        raise ValueError(f"the output {str(output)[:200]!r} cannot be written there")
    read = [os.path.expanduser(name) for name in inputs if name]
    if output.exists() and any(os.path.exists(name) and output.samefile(name) for name in read):
        raise ValueError(f"the output {str(output)[:200]!r} would replace a file that is read: write elsewhere")


def preview_callback(
    preview: Path | None, every: float = 2.0, inputs: Iterable[str | None] = ()
) -> Callable[[Any], None] | None:
    """A callback that writes ``step.image`` to ``preview`` at the first step and then every so many seconds."""
    if preview is None:
        return None
    check_output(preview, inputs=inputs)
    last = -every

    def write(step: Any) -> None:
        nonlocal last
        if time.monotonic() - last >= every:
            images.save(step.image[:1].float().cpu(), preview)
            last = time.monotonic()

    return write


def parts(text: str | None, argument: str) -> list[str] | None:
    """The parts of a list with commas, without blanks; None stays None."""
    if text is None:
        return None
    found = [part.strip() for part in text.split(",")]
    if "" in found:
        raise ValueError(f"{argument} must be a list with commas and without gaps, got {text!r}")
    return found


def numbers(text: str | None, argument: str, kind: type = float) -> list | None:
    """The numbers of a list with commas; None stays None."""
    try:
        return None if text is None else [kind(part) for part in parts(text, argument)]
    except ValueError:
        name = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"{argument} must be {name} with commas between them, got {text!r}") from None


def region_masks(text: str | None, argument: str, count: int) -> list | None:
    """The masks of a list of files; ``none`` is no mask."""
    names = parts(text, argument)
    if names is not None and len(names) != count:
        raise ValueError(f"{argument} must be one per style: {count} styles, {len(names)} masks")
    return names and [None if name == "none" else images.mask(name, argument) for name in names]
