"""Labelled grids and curves, saved with what made them.

`save` writes ``figures/NAME.png`` with its provenance inside the file and in ``figures/metrics.json``; nothing else
writes there.
"""

from __future__ import annotations

import dataclasses
import fcntl
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image
from torch import Tensor

from ex4lib import images
from ex4lib.files import environment, figures_folder, write_json

#: Okabe & Ito's colours, told apart by most colour-blind readers; markers say it a second time.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
#: Pixels per inch of a figure, at least and at most; between them as many as its pictures have.
DENSITY = (140, 170)
_CELL = 0.9  # least width of a picture in inches: smaller pictures make larger labels, once in print
_FEW = 8  # values of a logarithmic axis that are all labelled
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_STYLE = {
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

    Arguments:
        cell: width of a picture in inches; by default what the widest caption or column label needs, so that labels
            stay legible where the figure is shown small.
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
    with matplotlib.rc_context(_STYLE):
        figure = Figure(
            (
                columns * cell + beside,
                len(rows) * (height + extra + 0.06) + (0.35 if column_labels else 0.05),
            ),
            dpi=density,
            layout="constrained",
        )
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


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    xlabel: str,
    ylabel: str,
    log: str = "",
    markers: bool = True,
    lines: bool = True,
    ticks: Sequence[str] | None = None,
    size: tuple[float, float] = (3.8, 2.5),
) -> Figure:
    """Lines by name, each told apart by colour and marker; ``log`` names the logarithmic axes ("x", "y", "xy").

    A point of a line is a number or (value, low, high), which is drawn with its interval. ``ticks`` labels the
    positions 0, 1, 2, ... of the horizontal axis; where they have no order, ``lines=False`` leaves the markers alone.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(size, layout="constrained")
        draw_curves(figure.subplots(), series, xlabel, ylabel, log=log, markers=markers, lines=lines, ticks=ticks)
    return figure


def panels(
    parts: Sequence[Mapping[str, Any]], *, size: tuple[float, float] = (2.6, 2.3), columns: int | None = None
) -> Figure:
    """Several `curves` side by side; each part holds the arguments of `draw_curves` and a ``title``."""
    columns = columns or len(parts)
    rows = -(-len(parts) // columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure((size[0] * columns, size[1] * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, part in zip(axes, parts, strict=False):
            options = dict(part)
            ax.set_title(options.pop("title", ""))
            draw_curves(ax, **options)
        for ax in axes[len(parts) :]:
            ax.set_visible(False)
    return figure


def draw_curves(ax, series, xlabel, ylabel, *, log="", markers=True, lines=True, ticks=None) -> None:
    """Draw `curves` into a matplotlib axis."""
    for number, (name, (x, y)) in enumerate(series.items()):
        style = {"marker": MARKERS[number % len(MARKERS)], "markersize": 4} if markers else {}
        (x, x_reach), (y, y_reach) = _with_reach(x), _with_reach(y)
        style |= {"color": COLOURS[number % len(COLOURS)], "label": name, "linewidth": 1.4}
        style |= {} if lines else {"linestyle": "none"}
        ax.errorbar(x, y, xerr=x_reach, yerr=y_reach, elinewidth=0.7, **style)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if "x" in log:
        ax.set_xscale("log")
        values = sorted({float(value) for x, _ in series.values() for value in _with_reach(x)[0]} - {0.0})
        if len(values) <= _FEW:  # those that were measured say more than powers of ten
            ax.set_xticks(values, [f"{value:g}" for value in values])
        else:
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_locator(NullLocator())
    if "y" in log:
        ax.set_yscale("log")
    if ticks is not None:
        ax.set_xticks(range(len(ticks)), ticks, rotation=60, ha="right", fontsize=7)
    if len(series) > 1:
        ax.legend(fontsize=7.5, handlelength=1.4, labelspacing=0.3, borderaxespad=0.2)


def _with_reach(points: Sequence) -> tuple[np.ndarray, np.ndarray | None]:
    """Values ``(N,)``, and how far their intervals reach down and up ``(2, N)`` if they have any."""
    points = np.asarray(points, dtype=float)
    if points.ndim < 2:
        return points, None
    value, low, high = points.T
    return value, np.stack([value - low, high - value]).clip(min=0)


def matrix(
    values: Sequence[Sequence[float]],
    *,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    xlabel: str,
    ylabel: str,
    log: bool = True,
) -> Figure:
    """Numbers as a shaded table; shades are logarithmic by default."""
    table = np.asarray(values, dtype=float)
    with matplotlib.rc_context(_STYLE | {"axes.grid": False}):
        figure = Figure((1.3 + 0.58 * table.shape[1], 1.0 + 0.3 * table.shape[0]), layout="constrained")
        ax = figure.subplots()
        shades = np.log(table.clip(min=table[table > 0].min())) if log else table  # a 0 is as dark as the least
        ax.imshow(shades, cmap="viridis", aspect="auto")
        ax.set_xticks(range(table.shape[1]), column_labels, rotation=45, ha="right")
        ax.set_yticks(range(table.shape[0]), row_labels)
        ax.set(xlabel=xlabel, ylabel=ylabel)
        middle = (shades.min() + shades.max()) / 2
        for i, j in np.ndindex(table.shape):
            shade = "black" if shades[i, j] > middle else "white"
            ax.text(j, i, f"{table[i, j]:.2g}", ha="center", va="center", fontsize=8, color=shade)
    return figure


@dataclasses.dataclass(frozen=True)
class Saved:
    """A written figure; as the last line of a notebook's cell it shows itself, as JPEG to keep the notebook small."""

    path: Path
    caption: str

    def _repr_jpeg_(self) -> bytes:
        buffer = io.BytesIO()
        with Image.open(self.path) as picture:
            picture.convert("RGB").save(buffer, "JPEG", quality=85)
        return buffer.getvalue()

    def __repr__(self) -> str:
        return self.caption


def save(figure: Figure, name: str, *, caption: str, values: Any = None, **provenance: Any) -> Saved:
    """Write ``figures/NAME.png`` and its row of ``figures/metrics.json``; returns what a notebook shows.

    Arguments:
        caption: what the figure shows, also its alt text.
        values: the numbers behind it, as plain JSON; the report reads them.
        provenance: config, seed, network names, weight hashes.
    """
    row = {"caption": caption, "values": values, **provenance, "environment": environment()}
    buffer = io.BytesIO()
    text = images.png_text({"ex4lib": json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False)})
    figure.savefig(buffer, format="png", pil_kwargs={"pnginfo": text})
    folder = figures_folder()
    picture = images.write_bytes(folder / f"{name}.png", buffer.getvalue())
    with open(folder / ".lock", "w") as lock:  # notebooks may run side by side
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = folder / "metrics.json"
        rows = json.loads(path.read_text()) if path.is_file() else {}
        write_json(path, rows | {name: row})
    return Saved(picture, caption)
