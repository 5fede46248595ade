"""A grid of prompts, paintings, strengths and seeds from one YAML file, over as many processes as there are.

Every cell of the grid is a run of its own in the store: a sweep that was interrupted goes on where it stopped, and one
that grew computes what is new. Under ``accelerate launch`` each process takes its share of the cells.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from ex4lib import checks, images, models
from ex4lib.diffusion import pipelines
from ex4lib.diffusion.guidance import DEFAULT, PRESETS
from ex4lib.diffusion.schedulers import SUPPORTED
from ex4lib.statistics import STATISTICS
from experiments import drawings

#: What `drawings.judged` says of a picture and a table holds.
SCORES = ("style", "second", "nearest", "rank", "meanvar", "colour", "texture", "agrees", "score", "content")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a YAML file holds: lists span the grid, the rest is the same for all cells.

    Raises:
        ValueError: an empty list, an unknown preset, scheduler or style loss, a negative scale, less than a step.
    """

    prompts: Sequence[str]
    styles: Sequence[str]
    style_scales: Sequence[float] = (DEFAULT.scale,)
    style_losses: Sequence[str] = ("gram",)
    seeds: Sequence[int] = (0,)
    preset: str = "default"
    steps: int = 30
    guidance_scale: float | None = None
    scheduler: str | None = None
    model: str | None = None
    network: str | None = None

    def __post_init__(self):
        for name in ("prompts", "styles", "style_scales", "style_losses", "seeds"):
            values = getattr(self, name)
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise ValueError(f"{name} must be a list with at least one entry, got {values!r}")
        for name in ("prompts", "styles"):
            checks.prompts(list(getattr(self, name)), name)
        checks.choice(self.preset, "preset", PRESETS)
        if self.scheduler is not None:
            checks.choice(self.scheduler, "scheduler", SUPPORTED)
        checks.integer(self.steps, "steps", low=1, high=1000)
        if self.guidance_scale is not None:
            checks.number(self.guidance_scale, "guidance_scale")
        for name in ("model", "network"):
            if getattr(self, name) is not None and not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be a name, got {checks.describe(getattr(self, name))}")
        for loss in self.style_losses:
            checks.choice(loss, "each of style_losses", STATISTICS)
        dataclasses.replace(PRESETS[self.preset], scale=max(checks.values(self.style_scales, "style_scales", low=0)))
        for seed in self.seeds:
            checks.seed(seed, "each of seeds")

    def cells(self) -> list[Cell]:
        """The grid in a fixed order. Unguided cells (scale 0) are drawn once, and judged against every painting."""
        grid = itertools.product(self.prompts, self.styles, self.style_losses, self.style_scales, self.seeds)
        return list(
            dict.fromkeys(Cell(p, s, loss if scale else "", float(scale), seed) for p, s, loss, scale, seed in grid)
        )


@dataclasses.dataclass(frozen=True)
class Cell:
    """One picture of a grid; without guidance there is no style loss."""

    prompt: str
    style: str
    style_loss: str
    style_scale: float
    seed: int


def read(path: str | Path) -> Sweep:
    """A sweep from a YAML file.

    Raises:
        ValueError: no YAML mapping, a missing or unknown entry (near ones are named), or what `Sweep` refuses.
        FileNotFoundError: there is no such file.
    """
    try:
        found = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {str(path)!r}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from None
    known = {field.name: field for field in dataclasses.fields(Sweep)}
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} must hold entries such as `prompts: [a cat]`, got {type(found).__name__}")
    for name in found:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, cutoff=0.5) or list(known)
            raise ValueError(f"{path} has an unknown entry {name!r}; did you mean {', '.join(near)}?")
    for name in ("prompts", "styles"):
        if name not in found:
            raise ValueError(f"{path} lacks {name}")
    return Sweep(**found)


def processes() -> PartialState:
    """The processes that share the work: one, or as many as ``accelerate launch`` started."""
    return PartialState(cpu=models.device().type == "cpu")


def sweep(grid: Sweep) -> list[dict[str, Any]]:
    """Draw and judge all cells; every process returns all rows, in the grid's order.

    Each row holds the cell, its scores (see `drawings.judged`; ``content`` is measured against the unguided picture of
    the same seed) and the seconds its drawing took when it was drawn.
    """
    state, groups = processes(), {}
    for number, cell in enumerate(grid.cells()):  # a process keeps what is compared with one unguided picture
        groups.setdefault((cell.prompt, cell.seed), []).append((number, cell))
    own = []
    with state.split_between_processes(list(groups.values())) as share:
        cells = [cell for group in share for cell in group]
        for found in tqdm(_rows(grid, cells), total=len(cells), unit="picture", disable=not state.is_main_process):
            own.append(found)
    rows = gather_object(own) if state.num_processes > 1 else own
    return [row for _, row in sorted(rows, key=lambda each: each[0])]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV. A text that a spreadsheet would take for a formula gets an apostrophe before it; numbers do not."""

    def cell(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and value.lstrip()[:1] in tuple("=+-@＝＋－＠") else value

    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)
    return buffer.getvalue()


def _rows(grid: Sweep, share: Sequence[tuple[int, Cell]]) -> Iterator[tuple[int, dict[str, Any]]]:
    styles = {name: images.load(name, 256) for name in grid.styles}
    pipe = pipelines.stable_diffusion(grid.model)
    pipe.set_progress_bar_config(disable=True)
    network, judges = models.features(grid.network, precision="auto"), drawings.Judges.default()
    scale = models.guidance_scale() if grid.guidance_scale is None else grid.guidance_scale
    call = {"steps": grid.steps, "guidance_scale": scale, "scheduler": grid.scheduler, "features": network}
    for number, cell in share:
        plain = drawings.drawn(pipe, cell.prompt, [cell.seed], **call)
        run = plain
        if cell.style_scale:
            guidance = dataclasses.replace(PRESETS[grid.preset], scale=cell.style_scale)
            style = {"style": styles[cell.style], "style_loss": cell.style_loss, "guidance": guidance}
            run = drawings.drawn(pipe, cell.prompt, [cell.seed], **style, **call)
        scores = drawings.judged(judges, run, cell.style, prompt=cell.prompt, unguided=plain)
        row = dataclasses.asdict(cell) | {name: scores[name][0] for name in SCORES}
        yield number, row | {"seconds": run.values["total_seconds"]}
