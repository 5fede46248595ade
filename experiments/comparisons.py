"""Methods against each other: what their pictures score on average, how sure that is, and the curves between scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ex4lib.metrics import kernel_distance
from experiments.drawings import interval

#: The scores of `drawings.judged`, and KID, as tables and axes name them.
MEASURES = {
    "gram": "Gram distance",
    "meanvar": "MeanVar distance",
    "colour": "colour distance",
    "texture": "texture distance",
    "agrees": "prompt agreement",
    "content": "content error",
    "kid": "KID × 1000",
}


def summary(
    rows: Sequence[Mapping[str, list]], reference: Sequence[Sequence[float]]
) -> dict[str, tuple[float, float, float]]:
    """Mean and 95 % interval of every measure over all pictures of several judged runs.

    KID is the squared maximum mean discrepancy of the pictures' features to ``reference``, times 1000; features are
    taken times √D, without which the kernel of unit vectors is all but linear and sees means alone. Its interval is
    1.96 jackknife standard errors wide on each side, leaving out one of the pictures at a time (a bootstrap would
    repeat pictures, which the kernel of a picture with itself pays for).

    Arguments:
        rows: what `drawings.judged` returned, a mapping for each run.
        reference: features (unit vectors) of pictures that nobody guided, of other seeds than the rows'.
    """
    pooled = {name: [x for row in rows for x in row[name]] for name in MEASURES if name in rows[0]}
    found = {name: interval(values) for name, values in pooled.items()}
    own, other = torch.tensor([x for row in rows for x in row["features"]]), torch.tensor(reference)
    own, other = own * own.shape[1] ** 0.5, other * other.shape[1] ** 0.5
    kid = kernel_distance(own, other)
    without = [kernel_distance(torch.cat([own[:i], own[i + 1 :]]), other) for i in range(len(own))]
    reach = 1.96 * np.sqrt(len(own) - 1) * np.std(without)
    return found | {"kid": tuple(float(1000 * x) for x in (kid, kid - reach, kid + reach))}


def table(summaries: Mapping[str, Mapping[str, Sequence[float]]], measures: Mapping[str, str] | None = None) -> str:
    """Rows by method, columns by measure (default `MEASURES`): mean and interval as text."""
    measures = MEASURES if measures is None else measures
    columns = [name for name in measures if all(name in row for row in summaries.values())]
    rows = [["", *(measures[name] for name in columns)]]
    for label, row in summaries.items():
        rows.append([label, *("{:.3f} ({:.3f}, {:.3f})".format(*row[name]) for name in columns)])
    first, *widths = (max(map(len, cells)) for cells in zip(*rows, strict=True))
    return "\n".join(
        f"{label:{first}}" + "".join(f"{cell:>{width + 3}}" for cell, width in zip(cells, widths, strict=True))
        for label, *cells in rows
    )


def trade_offs(
    curves: Mapping[str, Sequence[Mapping[str, Sequence[float]]]], pairs: Sequence[tuple[str, str]]
) -> list[dict]:
    """Parts for `figures.panels`: for each pair of measures a curve a method, a point a strength, with intervals.

    Distances of style, which fall by factors, have logarithmic axes.
    """
    return [
        {
            "series": {label: ([row[x] for row in rows], [row[y] for row in rows]) for label, rows in curves.items()},
            "xlabel": MEASURES[x],
            "ylabel": MEASURES[y],
            "log": "x" if x in ("gram", "meanvar") else "",
        }
        for x, y in pairs
    ]
