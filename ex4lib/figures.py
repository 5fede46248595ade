"""Labelled grids of pictures, and figures saved with what made them. Only `save` writes into the folder of figures."""

import dataclasses
import hashlib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from filelock import FileLock  # torch and huggingface_hub require it
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from PIL import Image
from torch import Tensor

from ex4lib import checks, images
from ex4lib.files import environment, figures_folder, write_bytes

#: Pixels per inch of a figure, at least and at most; between them as many as its pictures have.
DENSITY = (140, 170)
#: Greatest width in pixels at which a notebook shows a figure.
SHOWN_WIDTH = 1000
#: Files of pictures, as `save` writes them.
SUFFIXES = (".jpg", ".png")
_DRAWING = 1  # raise it when figures are drawn in another way, so that all are written again
_CELL = 0.9  # least width of a picture in inches: smaller pictures make larger labels, once in print
#: matplotlib's settings for every figure.
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.framealpha": 0.75,  # what a legend covers shows through
    "legend.edgecolor": "none",
    "figure.dpi": 150,
}


def grid(
    rows: Sequence[Sequence[Tensor | None]],
    *,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    captions: Sequence[Sequence[str]] | None = None,
    cell: float | None = None,
) -> Figure:
    """Pictures in rows and columns, with labels outside and a caption under each; None leaves a cell empty.

    ``cell`` is the width of a picture in inches, by default what the widest caption or column label needs.
    """
    columns = max(len(row) for row in rows)
    if cell is None:
        texts = [(text, 8) for row in captions or [] for text in row] + [(text, 9) for text in column_labels or []]
        cell = max([_CELL, *(_width(text, size) + 0.08 for text, size in texts)])
    shapes = [picture.shape for row in rows for picture in row if picture is not None]
    height = cell * max(shape[-2] / shape[-1] for shape in shapes)
    beside = 0.1 + max((_width(label, 9) + 0.05 for label in row_labels or []), default=0)
    density = min(max(max(shape[-1] for shape in shapes) / cell, DENSITY[0]), DENSITY[1])
    lines = max((text.count("\n") + 1 for row in captions or [] for text in row if text), default=0)
    extra = 0.06 + 0.14 * lines if lines else 0
    with matplotlib.rc_context(STYLE):
        size = (columns * cell + beside, len(rows) * (height + extra + 0.06) + (0.35 if column_labels else 0.05))
        figure = Figure(size, dpi=density, layout="constrained")
        axes = figure.subplots(len(rows), columns, squeeze=False)
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
        for i, row in enumerate(rows):
            for j in range(columns):
                ax = axes[i, j]
                ax.set(xticks=[], yticks=[])
                ax.grid(False)
                ax.spines[:].set_visible(False)
                if j < len(row) and row[j] is not None:
                    ax.imshow(np.asarray(images.to_pil(row[j])), interpolation="lanczos")
                if captions and j < len(captions[i]) and captions[i][j]:
                    ax.set_xlabel(captions[i][j], fontsize=8, labelpad=2)
                if row_labels and j == 0:
                    ax.set_ylabel(row_labels[i], rotation=0, ha="right", va="center", fontsize=9)
                if column_labels and i == 0:
                    ax.set_title(column_labels[j], fontsize=9, pad=3)
    return figure


def _width(text: str, size: float) -> float:
    """Inches that the widest line of a label takes at a font size in points."""
    lines = [line for line in text.split("\n") if line.strip()]
    return max((TextPath((0, 0), line, size=size).get_extents().width / 72 for line in lines), default=0.0)


@dataclasses.dataclass(frozen=True)
class Saved:
    """A written figure; as the last line of a notebook's cell it shows itself, at most `SHOWN_WIDTH` pixels wide."""

    path: Path
    caption: str

    def _repr_jpeg_(self) -> bytes:
        buffer = io.BytesIO()
        with Image.open(self.path) as picture:
            shown = picture.convert("RGB")
        shown.thumbnail((SHOWN_WIDTH, shown.height), Image.Resampling.LANCZOS, reducing_gap=None)
        shown.save(buffer, "JPEG", quality=80)
        return buffer.getvalue()

    def __repr__(self) -> str:
        return self.caption


def save(
    figure: Figure, name: str, *, caption: str, values: Any = None, lossless: bool = False, **provenance: Any
) -> Saved:
    """Write a figure and its row of ``figures/metrics/NN.json``; returns what a notebook shows.

    A figure with colour pictures becomes ``figures/NAME.jpg``, any other ``figures/NAME.png``. ``NN`` is the number
    that the name begins with, or its folder. Nothing is written while the picture file is there, its row holds the same
    `content_sha256` and its ``values`` agree to four digits: another processor or version of a library changes neither.

    Arguments:
        caption: what the figure shows, also its alt text.
        values: the numbers behind it, as plain JSON; the report reads them.
        lossless: write a PNG that keeps every pixel and holds the row as its text ``ex4lib``.
        provenance: config, seed, network names, weight hashes.

    Raises:
        ValueError, TypeError: values that are no JSON, or not finite, or a name that leads out of the folder.
    """
    checks.name(name)
    row = {"caption": caption, "values": values, **provenance, "sha256": content_sha256(figure)}
    row = json.loads(json.dumps(row, allow_nan=False))  # tuples as lists, as the file has them
    photographs = not lossless and any(np.ndim(image.get_array()) == 3 for axes in figure.axes for image in axes.images)
    path = figures_folder() / f"{name}.{'jpg' if photographs else 'png'}"
    table = _table(name)
    table.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(table.parent / ".lock"):  # notebooks may run side by side
        rows = json.loads(table.read_text("utf-8"))["figures"] if table.is_file() else {}
        if path.is_file() and _agree(rows.get(name), row):
            return Saved(path, caption)
        for other in path.parent.glob(f"{path.stem}.*"):
            if other != path and other.suffix in SUFFIXES:
                other.unlink()
        write_bytes(path, _encoded(figure, photographs, row | {"environment": environment()} if lossless else None))
        _write_table(table, rows | {name: row})
    return Saved(path, caption)


def content_sha256(figure: Figure) -> str:
    """SHA-256 of what a figure shows: its size, pictures at 8 bits, labels, and lines and intervals to three digits."""
    parts: list[Any] = [_DRAWING, [round(float(side), 2) for side in figure.get_size_inches()]]
    digest = hashlib.sha256()
    for axes in figure.axes:
        legend = axes.get_legend()
        labels = [axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale(), axes.get_yscale()]
        labels += [text.get_text() for text in [*axes.texts, *(legend.get_texts() if legend else [])]]
        labels += [list(getattr(axis.get_major_formatter(), "seq", [])) for axis in (axes.xaxis, axes.yaxis)]
        parts.append([labels, [(_digits(line.get_xydata()), line.get_marker()) for line in axes.lines]])
        parts.append([_digits(part) for group in axes.collections for part in getattr(group, "get_segments", list)()])
        for image in axes.images:
            levels = np.asarray(image.get_array())
            shown = levels.tobytes() if levels.ndim == 3 else json.dumps(_digits(levels)).encode()
            digest.update(f"{levels.shape}".encode() + shown)
    digest.update(json.dumps(parts).encode())
    return digest.hexdigest()


def _digits(values: Any) -> list[str]:
    return [f"{value:.3g}" for value in np.ma.filled(np.ma.asarray(values, dtype=float), np.nan).ravel()]


def _agree(old: Any, new: Any) -> bool:
    """Whether two rows are the same but for the last digits of their numbers."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_agree(old[key], new[key]) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_agree, old, new))
    if isinstance(old, (int, float)) and isinstance(new, (int, float)) and float in (type(old), type(new)):
        return math.isclose(old, new, rel_tol=1e-4, abs_tol=1e-6)
    return old == new


def _encoded(figure: Figure, photographs: bool, row: Mapping[str, Any] | None) -> bytes:
    buffer = io.BytesIO()
    if row is not None:
        text = images.png_text({"ex4lib": json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False)})
        figure.savefig(buffer, format="png", pil_kwargs={"pnginfo": text})
        return buffer.getvalue()
    figure.savefig(buffer, format="png")
    picture = Image.open(buffer).convert("RGB")
    smaller = io.BytesIO()
    if photographs:
        picture.save(smaller, "JPEG", quality=87, subsampling=0)
    else:  # lines and letters have few colours
        picture.quantize(255, dither=Image.Dither.NONE).save(smaller, "PNG", optimize=True)
    return smaller.getvalue()


def _table(name: str) -> Path:
    """The file of a figure's row."""
    found = re.match(r"(\d\d)_|(\w+)/", name)
    return figures_folder() / "metrics" / f"{(found[1] or found[2]) if found else 'others'}.json"


def _write_table(table: Path, rows: Mapping[str, Mapping]) -> None:
    """Write a table with a line for each entry of a row, so that a changed figure changes few lines."""

    def text(value: Any) -> str:
        return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)

    blocks = []
    for name in sorted(rows):
        lines = [f"   {text(key)}: {text(value)}" for key, value in sorted(rows[name].items())]
        blocks.append(f"  {text(name)}: {{\n" + ",\n".join(lines) + "\n  }")
    figures = ' "figures": {\n' + ",\n".join(blocks) + "\n }"
    write_bytes(table, f'{{\n "environment": {text(environment())},\n{figures}\n}}\n'.encode())
