"""Results in words, as a figure, as a row of provenance, and as a file that a report includes.

``shown``: results, each with the number of the step that is looked at; what was kept, and last what is on display.
"""

import itertools
import json
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from ex4lib import figures, files
from ex4lib.widgets.watching import Result, Settings, position, spread

Shown = Sequence[tuple[Result, int]]


def in_words(settings: Settings) -> str:
    """Settings in words."""

    def text(value: Any) -> str:
        if isinstance(value, tuple):
            return " ".join(map(text, value))
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return "; ".join(f"{name.replace('_', ' ')} {text(value)}" for name, value in settings.items())


def differing(shown: Shown) -> list[str]:
    """The settings in which runs of one explorer differ."""
    first = shown[0][0].settings
    return [name for name in first if any(result.settings[name] != first[name] for result, _ in shown)]


def figure(shown: Shown, film: int = 0) -> Figure:
    """A row for each: its inputs, ``film`` earlier steps and the picture; labelled by what the rows differ in."""
    rows, captions, labels, names = [], [], [], differing(shown)
    for result, number in shown:
        numbers = spread([step for step in result.frames if step <= number], film + 1)
        rows.append([*result.inputs.values(), *(result.picture(step) for step in numbers)])
        captions.append([*result.inputs, *(position(step, result.total) for step in numbers)])
        labels.append("\n".join(textwrap.fill(in_words({name: result.settings[name]}), 18) for name in names))
    width = max(row[-1].shape[-1] for row in rows)
    cell = 1.1 if film else min(max(width / figures.DENSITY[0], 1.4), 4.0)
    return figures.grid(rows, captions=captions, row_labels=labels if len(rows) > 1 else None, cell=cell)


def provenance(explorer: str, shown: Shown) -> dict[str, Any]:
    """Configuration, seed, hashes of inputs and weights, and losses of the last; of another under ``kept``."""
    *kept, present = [
        {
            "config": {"explorer": explorer, **result.settings, "step": number, "total": result.total},
            "seed": result.settings.get("seed"),
            "inputs": {name: files.picture_sha256(picture) for name, picture in result.inputs.items()},
            "weights": result.weights(),
            "values": {"losses": result.losses[:number]},
        }
        for result, number in shown
    ]
    return {**present, "kept": kept[0]} if kept else present


def write(explorer: str, shown: Shown, name: str) -> tuple[figures.Saved, str]:
    """Save the figure as ``figures/exported/NAME.png``, or with a number where the name is taken.

    Returns what was written, and the line of Typst that includes it.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}", name):
        accepted = "letters, digits, dashes and underscores and begin with a letter or digit"
        raise ValueError(f"the name must be of {accepted}, got {name!r}")
    folder = files.figures_folder() / "exported"
    names = itertools.chain([name], (f"{name}-{copy}" for copy in itertools.count(2)))
    free = next(name for name in names if not (folder / f"{name}.png").exists())
    result, number = shown[-1]
    text = f"{explorer}, {position(number, result.total)}: {in_words(result.settings)}."
    saved = figures.save(figure(shown), f"exported/{free}", caption=text, lossless=True, **provenance(explorer, shown))
    return saved, typst_line(free, text)


def typst_line(name: str, caption: str) -> str:
    """The line of Typst that includes an exported figure; characters of Typst's own in the caption are escaped."""
    escaped = re.sub(r"([\\#$*_`<>@\[\]~=+\-/'\"])", r"\\\1", caption)
    alt = json.dumps(caption, ensure_ascii=False)
    return f'#figure(image("exported/{name}.png", alt: {alt}), caption: [{escaped}])'
