"""Comparisons A and B of the exercise: ways to make a picture, tables of judged pictures, and differences between ways.

A way is guidance, style transfer of the unguided picture, words in the prompt, or a mixture; a table holds one row for
every picture that a way makes of prompts × paintings × seeds. Differences are taken between pictures of the same
prompt, painting and seed, and their intervals resample prompts, paintings and seeds (`measures.interval`).
``python -m experiments.comparisons`` computes all runs of notebooks 05 and 06 that are compared, on the GPU if there is
one, and keeps them in the store.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ex4lib import models
from ex4lib.diffusion.guidance import DEFAULT, Guidance
from ex4lib.features import VGG
from experiments import drawings, measures
from experiments.drawings import CHOICE_PAINTINGS, PAINTINGS, REPORT_PAINTINGS, REPORT_PROMPTS, Judges
from experiments.measures import Interval
from experiments.store import Run

#: Columns of a table that hold numbers, as tables and axes name them.
MEASURES = {
    "nearest": "intended painting nearest",
    "rank": "rank of the painting",
    "style": "style distance",
    "second_nearest": "nearest, second judge",
    "meanvar": "MeanVar distance",
    "colour": "colour distance",
    "texture": "texture distance",
    "agrees": "prompt agreement",
    "content": "content error",
}
#: Comparison B: what is put behind the prompt to name the style of a painting. The last is a word that the embedded
#: model has never met.
WORDS = {
    "van-gogh-village-street-in-auvers": ", oil painting",
    "hokusai-great-wave": ", woodblock print",
    "kandinsky-composition-viii": ", abstract painting",
}
LOSSES = {"gram": "Gram", "meanvar": "MeanVar"}

Table = dict[str, list]


@dataclasses.dataclass(frozen=True)
class Way:
    """How a picture is made: guided or not, with words or not, transferred afterwards or not."""

    guidance: Guidance | None = None
    style_loss: str = "gram"
    words: bool = False
    transfer_weight: float | None = None


@dataclasses.dataclass(frozen=True)
class Condition:
    """A way, and of what it makes pictures."""

    way: Way
    prompts: Sequence[str]
    paintings: Sequence[str]
    seeds: Sequence[int]

    @property
    def pictures(self) -> int:
        """How many pictures are made; those that do not depend on the painting are made once."""
        free = self.way.guidance is None and self.way.transfer_weight is None and not self.way.words
        return len(self.prompts) * (1 if free else len(self.paintings)) * len(self.seeds)


@dataclasses.dataclass(frozen=True)
class Study:
    """Who draws and who judges, and how long."""

    pipe: object
    features: VGG
    judges: Judges
    steps: int = 30
    guidance_scale: float = 4.0
    evaluations: int = 60
    size: int = 128

    @classmethod
    def default(cls, device: torch.device | str | None = None) -> Study:
        """The profile's models and budgets."""
        device = models.device() if device is None else torch.device(device)
        pipe = drawings.text_to_image(device=device)
        features = models.features(precision="auto", device=device)
        steps, evaluations, size = models.budget(fast=(2, 2, 64), mini=(30, 60, 128), full=(50, 300, 512))
        return cls(pipe, features, Judges.default(device), steps, models.guidance_scale(), evaluations, size)

    def pictures(self, way: Way, prompt: str, painting: str, seeds: Sequence[int]) -> Run:
        """Pictures of a prompt by seed, made in a way."""
        style = drawings.style_named(painting)
        if way.transfer_weight is not None:
            before = self.pictures(dataclasses.replace(way, transfer_weight=None), prompt, painting, seeds)
            options = {"evaluations": self.evaluations, "size": self.size, "style_weight": way.transfer_weight}
            return drawings.stylised(self.features, before, style, style_loss=way.style_loss, **options)
        return drawings.drawn(
            self.pipe,
            prompt + WORDS[painting] if way.words else prompt,
            list(seeds),
            style=style if way.guidance else None,
            style_loss=way.style_loss,
            guidance=way.guidance,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            features=self.features,
        )

    def table(self, condition: Condition) -> Table:
        """A row for each picture: prompt, painting, seed, and the numbers of `drawings.judged`."""
        rows: Table = {"prompt": [], "painting": [], "seed": []}
        for prompt in condition.prompts:
            for painting in condition.paintings:
                run = self.pictures(condition.way, prompt, painting, condition.seeds)
                unguided = self.pictures(Way(), prompt, painting, condition.seeds)
                scores = drawings.judged(self.judges, run, painting, prompt=prompt, unguided=unguided)
                seeds = sorted(condition.seeds)  # the order of `drawings.stack`
                own = {"prompt": [prompt] * len(seeds), "painting": [painting] * len(seeds), "seed": seeds}
                for name, values in (own | scores).items():
                    rows.setdefault(name, []).extend(values)
        return rows


def conditions() -> dict[str, Condition]:
    """Every condition of comparisons A and B, and of the confusion matrix, by name.

    Strengths other than the default have fewer seeds, and so has style transfer with the full models, where it is slow.
    """
    counts = models.budget(fast=(2, 1, 1), mini=(8, 8, 1), full=(8, 4, 2))
    many, some, few = (list(range(count)) for count in counts)
    prompts, paintings = models.budget(
        fast=(REPORT_PROMPTS[:1], REPORT_PAINTINGS[:3]),
        mini=(REPORT_PROMPTS, REPORT_PAINTINGS),
        full=(REPORT_PROMPTS, REPORT_PAINTINGS),
    )
    scale = DEFAULT.scale
    found = {"unguided": Condition(Way(), prompts, paintings, many)}
    for loss, label in LOSSES.items():
        for factor, seeds in ((1, many), (0.5, few), (2, few)):
            guidance = dataclasses.replace(DEFAULT, scale=factor * scale)
            name = f"guided, {label}" + ("" if factor == 1 else f", scale × {factor:g}")
            found[name] = Condition(Way(guidance, loss), prompts, paintings, seeds)
        for weight, seeds in ((1.0, some), (0.3, few), (0.1, few)):
            name = f"transfer, {label}" + ("" if weight == 1 else f", weight {weight:g}")
            way = Way(style_loss=loss, transfer_weight=weight)
            found[name] = Condition(way, prompts, paintings, seeds)
    named = [painting for painting in WORDS if painting in paintings]
    found["words"] = Condition(Way(words=True), prompts, named, some)
    found["both"] = Condition(Way(DEFAULT, words=True), prompts, named, some)
    found["other paintings"] = Condition(Way(DEFAULT), prompts, CHOICE_PAINTINGS, few)
    return found


def curve(name: str, tables: Mapping[str, Table]) -> list[Table]:
    """The tables of one method along its strengths: those whose names begin with ``name``."""
    return [table for label, table in tables.items() if label == name or label.startswith(f"{name}, ")]


def select(table: Table, **accepted) -> Table:
    """The rows whose columns hold one of the accepted values, e.g. ``painting=["hokusai-great-wave"]``."""
    rows = [i for i in range(len(table["seed"])) if all(table[name][i] in values for name, values in accepted.items())]
    return {name: [values[i] for i in rows] for name, values in table.items()}


def clusters(table: Table) -> dict[str, list]:
    """The labels of a table's rows, as `measures.interval` takes them."""
    return {name: table[name] for name in ("prompt", "painting", "seed")}


def mean(table: Table, measure: str) -> Interval:
    """Mean of a measure with its interval over prompts, paintings and seeds."""
    return measures.interval(table[measure], clusters(table))


def paired(*tables: Table) -> list[Table]:
    """The rows of tables that all of them have, in one order."""
    places = [{key: i for i, key in enumerate(zip(*clusters(table).values(), strict=True))} for table in tables]
    shared = [key for key in places[0] if all(key in place for place in places)]
    if not shared:
        raise ValueError("the tables have no picture of the same prompt, painting and seed")
    return [
        {name: [values[place[key]] for key in shared] for name, values in table.items()}
        for table, place in zip(tables, places, strict=True)
    ]


def difference(first: Table, second: Table, measure: str) -> Interval:
    """Mean of ``first - second`` over the pictures that both have."""
    a, b = paired(first, second)
    return measures.interval(np.subtract(a[measure], b[measure]), clusters(a))


def removed(table: Table, unguided: Table, measure: str) -> Interval:
    """The share of a distance that a way removes: 1 - mean(way) / mean(unguided), over the pictures that both have."""
    own, before = paired(table, unguided)
    weights = measures.cluster_weights(clusters(own))
    shares = 1 - (weights @ np.asarray(own[measure])) / (weights @ np.asarray(before[measure]))
    share = 1 - np.mean(own[measure]) / np.mean(before[measure])
    return _interval(share, shares, own)


def at_equal(target: Table, strengths: Sequence[Table], on: str, measure: str) -> Interval | None:
    """``target`` minus another method at the strength where both have the same mean of ``on``.

    The other method's mean of ``measure`` is interpolated linearly between its strengths. Over the pictures that all
    tables have. None where no strength of the method reaches the target's mean of ``on``.
    """
    target, *strengths = paired(target, *strengths)
    x, y = (np.array([table[name] for table in strengths]) for name in (on, measure))
    reached = x.mean(1).min() <= np.mean(target[on]) <= x.mean(1).max()
    if not reached:
        return None

    own_x, own_y = np.array(target[on]), np.array(target[measure])

    def gap(weights: np.ndarray) -> float:
        places, heights = x @ weights, y @ weights
        order = places.argsort()
        return weights @ own_y - np.interp(weights @ own_x, places[order], heights[order])

    rows = measures.cluster_weights(clusters(target))
    even = np.full(rows.shape[1], 1 / rows.shape[1])
    return _interval(gap(even), np.array([gap(weights) for weights in rows]), target)


def _interval(value: float, resampled: np.ndarray, table: Table) -> Interval:
    low, high = np.quantile(resampled, [0.025, 0.975])
    counts = {name: len(set(labels)) for name, labels in clusters(table).items()}
    return Interval(float(value), float(low), float(high), len(table["seed"]), counts)


def confusion(table: Table, first: str = "first") -> tuple[list[list[float]], list[str]]:
    """Shares of pictures by intended painting (rows) and nearest painting (columns), and the paintings of the rows."""
    rows = [name for name in PAINTINGS if name in table["painting"]]
    pairs = list(zip(table["painting"], table[first], strict=True))
    counts = [[pairs.count((row, column)) for column in PAINTINGS] for row in rows]
    return [[count / sum(line) for count in line] for line in counts], rows


def joined(*tables: Table) -> Table:
    """The rows of several tables."""
    return {name: [value for table in tables for value in table[name]] for name in tables[0]}


def overview(tables: Mapping[str, Table], measures: Sequence[str] | None = None) -> str:
    """A Markdown table of means with intervals, a row for each way; N counts pictures."""
    names = [name for name in measures or MEASURES if all(name in table for table in tables.values())]
    lines = ["| | N | " + " | ".join(MEASURES[name] for name in names) + " |", "|---" * (len(names) + 2) + "|"]
    for label, table in tables.items():
        cells = ["{:.2f} ({:.2f}, {:.2f})".format(*mean(table, name)) for name in names]
        lines.append(f"| {label} | {len(table['seed'])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def trade_offs(curves: Mapping[str, Sequence[Table]], pairs: Sequence[tuple[str, str]]) -> list[dict]:
    """Parts for `charts.panels`: for each pair of measures a curve for each method, a point for each strength."""
    return [
        {
            "series": {
                label: tuple([tuple(mean(table, name)) for table in tables] for name in pair)
                for label, tables in ((label, sorted(tables, key=_style)) for label, tables in curves.items())
            },
            "xlabel": MEASURES[pair[0]],
            "ylabel": MEASURES[pair[1]],
        }
        for pair in pairs
    ]


def _style(table: Table) -> float:
    return float(np.mean(table["style"]))


#: Seconds of one picture on one CPU core with the embedded models, for the table of what is computed.
SECONDS = {"unguided": 1.5, "guided": 7.0, "transfer": 13.0}


def plan() -> str:
    """A Markdown table of what is computed: conditions, pictures, and about how many seconds."""
    lines, total = ["| condition | pictures | seconds, about |", "|---|---|---|"], 0.0
    for name, condition in conditions().items():
        kind = "transfer" if condition.way.transfer_weight else "guided" if condition.way.guidance else "unguided"
        seconds = condition.pictures * SECONDS[kind]
        total += seconds
        lines.append(f"| {name} | {condition.pictures} | {seconds:.0f} |")
    return "\n".join([*lines, f"| all | | {total:.0f} |"])


def compute_all(device: torch.device | str | None = None) -> dict[str, Table]:
    """Draw and judge everything of `conditions`; what is in the store already is read from there."""
    study, tables = Study.default(device), {}
    for name, condition in conditions().items():
        started = time.perf_counter()
        tables[name] = study.table(condition)
        print(f"{name}: {condition.pictures} pictures, {time.perf_counter() - started:.0f} s", flush=True)
    return tables


if __name__ == "__main__":
    print(plan())
    compute_all()
