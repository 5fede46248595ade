"""Loops watched by an explorer: what it runs, what is seen of a step, what is kept of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from ex4lib import images

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


@dataclasses.dataclass(frozen=True)
class View:
    """What is seen of a step: ``number`` counts from 1; ``picture`` is None where none was decoded."""

    number: int
    total: int
    loss: float | None
    note: str
    picture: Tensor | None


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished or cancelled run: PNG ``frames`` by step number, and the last of them as ``image`` ``(1, 3, H, W)``.

    ``losses`` has an entry for every step that was made, None where there was none or it was not finite.
    """

    settings: Settings
    frames: dict[int, bytes]
    image: Tensor
    losses: list[float | None]
    total: int
    inputs: Mapping[str, Tensor]
    weights: Weights

    @property
    def done(self) -> int:
        return len(self.losses)

    def picture(self, number: int) -> Tensor:
        """The frame of a step, at 8 bits."""
        return images.load(Image.open(io.BytesIO(self.frames[number])))


def watched(job: Job) -> Iterator[View]:
    """The steps of a job as they are made, about `FRAMES` of them decoded, and then the last again as the result.

    Raises:
        ValueError: a loop without steps.
    """

    def view(picture: Callable[[Any], Tensor] | None) -> View:
        seen = None if picture is None else picture(step).detach().float().cpu()
        return View(number, total, job.loss(step), job.note(step), seen)

    step = None
    with contextlib.closing(job.steps) as steps:
        for number, step in enumerate(steps, start=1):
            total = step.total - job.skipped
            due = number < total and (number == 1 or number % math.ceil(total / FRAMES) == 0)
            yield view(job.picture if due else None)
    if step is None:
        raise ValueError("the loop had no steps")
    yield view(job.final)


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a store keeps of a run: numbers, and pictures ``(1, 3, H, W)`` by name."""

    values: dict[str, Any]
    pictures: dict[str, Tensor]


def no_store(kind: str, config: Settings, compute: Callable[[], Finished], **identity: Any) -> Finished:
    """The store that keeps nothing."""
    return compute()


class Recorder:
    """Collects the views of a run into a `Result`."""

    def __init__(self, settings: Settings, job: Job):
        self.settings, self.job, self.began = settings, job, time.perf_counter()
        self.frames: dict[int, bytes] = {}
        self.losses: dict[int, float | None] = {}

    def add(self, view: View) -> None:
        self.total = view.total
        self.losses[view.number] = view.loss if view.loss is not None and math.isfinite(view.loss) else None
        if view.picture is not None:
            self.image, self.frames[view.number] = view.picture, png(view.picture)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def result(self) -> Result:
        losses = list(self.losses.values())
        return Result(
            self.settings, self.frames, self.image, losses, self.total, self.job.inputs, self.job.weights
        )  # fmt: skip


def from_store(store: Store, explorer: str, settings: Settings, job: Job) -> Result:
    """The result of a job from a store of finished runs, or else computed and kept there.

    Its pictures are those of the last and `FILM` earlier steps, as the store keeps them.
    """

    def compute() -> Finished:
        recorder = Recorder(settings, job)
        for view in watched(job):
            recorder.add(view)
        result = recorder.result()
        pictures = {str(number): result.picture(number) for number in spread(list(result.frames), FILM + 1)}
        return Finished({"total": result.total, "losses": result.losses}, pictures)

    config = {"explorer": explorer, **settings}
    weights = job.weights() if store is not no_store else {}
    run = store("explorers", config, compute, inputs=job.inputs, weights=weights)
    job.steps.close()  # where the store had it, the loop was never begun
    pictures = {int(number): picture for number, picture in run.pictures.items()}
    frames = {number: png(pictures[number]) for number in sorted(pictures)}
    losses, total = run.values["losses"], run.values["total"]
    return Result(settings, frames, pictures[max(pictures)], losses, total, job.inputs, job.weights)


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
