"""Curves and shaded tables of the notebooks, in the style of `ex4lib.figures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ex4lib.figures import STYLE

#: Okabe & Ito's colours, told apart by most colour-blind readers; markers say it a second time.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_FEW = 8  # values of a logarithmic axis that are all labelled
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


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
    with matplotlib.rc_context(STYLE):
        figure = Figure(size, layout="constrained")
        draw_curves(figure.subplots(), series, xlabel, ylabel, log=log, markers=markers, lines=lines, ticks=ticks)
    return figure


def panels(
    parts: Sequence[Mapping[str, Any]], *, size: tuple[float, float] = (2.6, 2.3), columns: int | None = None
) -> Figure:
    """Several `curves` side by side; each part holds the arguments of `draw_curves` and a ``title``."""
    columns = columns or len(parts)
    rows = -(-len(parts) // columns)
    with matplotlib.rc_context(STYLE):
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
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
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
