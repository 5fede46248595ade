"""Loops watched by an explorer: what it runs, what is seen of a step, what is kept and exported of a run.

``shown``: results, each with the number of the step that is looked at; what was kept, and last what is on display.
"""

import contextlib
import dataclasses
import io
import itertools
import json
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ex4lib import figures, files, images

#: Previews that a run decodes and keeps for the scrubber, about.
FRAMES = 16
#: Steps that a static twin shows besides the last.
FILM = 4

Settings = dict[str, Any]

#: ``store(kind, config, compute, inputs=..., weights=...)`` -> a `Finished` run, computed or found.
Store = Callable[..., Any]
Weights = Callable[[], dict[str, str | None]]


@dataclasses.dataclass(frozen=True)
class Job:
    """A loop that is about to run, and how to look at its steps.

    Arguments:
        steps: a generator of the library's ``Step`` objects; it is closed when the run ends or is cancelled.
        picture: step -> image ``(1, 3, H, W)`` while the loop runs; called every few steps, as decoding may cost.
        final: last step -> the result.
        loss, note: of a step, for the line under the progress bar.
        inputs: the pictures that the result depends on, by name.
        weights: SHA-256 by network name; called only when a result is exported or stored, as hashing may cost.
        skipped: steps left out at the start.
    """

    steps: Iterator[Any]
    picture: Callable[[Any], Tensor]
    final: Callable[[Any], Tensor]
    loss: Callable[[Any], float | None] = lambda step: None
    note: Callable[[Any], str] = lambda step: ""
    inputs: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    weights: Weights = dict
    skipped: int = 0


class Result:
    """A run, while it goes on and after it: PNG ``frames`` by step number, the last of them as ``image (1, 3, H, W)``.

    ``losses`` has an entry for every step that was made, None where there was none or it was not finite.
    """

    def __init__(self, settings: Settings, job: Job):
        self.settings, self.job, self.inputs, self.weights = settings, job, job.inputs, job.weights
        self.frames: dict[int, bytes] = {}
        self.losses: list[float | None] = []
        self.image: Tensor | None = None
        self.total, self.words = 1, ""

    @property
    def done(self) -> int:
        return len(self.losses)

    def picture(self, number: int) -> Tensor:
        """The frame of a step, at 8 bits."""
        return images.load(Image.open(io.BytesIO(self.frames[number])))

    def steps(self) -> Iterator[bytes | None]:
        """Make one step at a time; yields its preview as a PNG, or None where none was decoded, and last the result."""
        step = None
        with contextlib.closing(self.job.steps) as steps:
            for step in steps:
                self.total, loss = step.total - self.job.skipped, self.job.loss(step)
                self.losses.append(loss if loss is not None and math.isfinite(loss) else None)
                words = ["" if loss is None else f"loss {loss:.4g}", self.job.note(step)]
                self.words = ", ".join(filter(None, [position(self.done, self.total), *words]))
                due = self.done == 1 or self.done % math.ceil(self.total / FRAMES) == 0
                yield self._decoded(self.job.picture(step)) if due and self.done < self.total else None
        if step is None:
            raise ValueError("the loop had no steps")
        yield self._decoded(self.job.final(step))

    def _decoded(self, picture: Tensor) -> bytes:
        self.image = picture.detach().float().cpu()
        self.frames[self.done] = png(self.image)
        return self.frames[self.done]


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a store keeps of a run: numbers, and pictures ``(1, 3, H, W)`` by name."""

    values: dict[str, Any]
    pictures: dict[str, Tensor]


def computed(settings: Settings, job: Job) -> Result:
    """The result of a job that runs to its end."""
    result = Result(settings, job)
    for _ in result.steps():
        pass
    return result


def from_store(store: Store, explorer: str, settings: Settings, job: Job) -> Result:
    """The result of a job from a store, or else computed and kept there: the last and `FILM` earlier pictures."""

    def compute() -> Finished:
        result = computed(settings, job)
        pictures = {str(number): result.picture(number) for number in spread(list(result.frames), FILM + 1)}
        return Finished({"total": result.total, "losses": result.losses}, pictures)

    config = {"explorer": explorer, **settings}
    run = store("explorers", config, compute, inputs=job.inputs, weights=job.weights())
    job.steps.close()  # where the store had it, the loop was never begun
    pictures = {int(number): picture for number, picture in run.pictures.items()}
    result = Result(settings, job)
    result.frames = {number: png(pictures[number]) for number in sorted(pictures)}
    result.losses, result.total, result.image = run.values["losses"], run.values["total"], pictures[max(pictures)]
    return result


def position(number: int, total: int) -> str:
    """Where in its run a picture was seen."""
    return f"step {number} of {total}"


def spread(numbers: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of some numbers, evenly from the first to the last; of one, the last."""
    last = len(numbers) - 1
    if last < count:
        return list(numbers)
    return [numbers[last - round(i * last / max(1, count - 1))] for i in reversed(range(count))]


def png(picture: Tensor) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    images.to_pil(picture).save(buffer, "PNG")
    return buffer.getvalue()


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
