"""How often a guided picture follows the intended painting, and what that costs the prompt: a search over settings.

``python -m experiments.specificity --scales 0.1 0.2 --methods noise clean --windows 0:1 0.2:1`` draws pictures of some
prompts and paintings for every combination and prints one row for each. By default it uses the paintings and prompts of
the choice; ``--report`` uses the others, on which results are reported.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ex4lib import checks, cli, images, models
from ex4lib.cli.options import PICTURES, check_output
from ex4lib.diffusion import schedulers
from ex4lib.diffusion.guidance import DEFAULT, Guidance
from ex4lib.features import VGG
from experiments import measures, metrics
from experiments.drawings import (
    CHOICE_PAINTINGS,
    CHOICE_PROMPTS,
    PAINTINGS,
    REPORT_PAINTINGS,
    REPORT_PROMPTS,
    Judges,
    as_stored,
    draw,
    grams,
    pipeline_sha256,
    text_to_image,
)
from experiments.store import Run, stored


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is drawn, apart from prompt, painting and seed."""

    guidance: Guidance
    steps: int = 30
    guidance_scale: float | None = None
    scheduler: str | None = None
    eta: float = 0.0
    style_loss: str = "gram"


@dataclasses.dataclass
class Evaluation:
    """Numbers by picture, in one order: prompt by prompt, painting by painting, seed by seed."""

    prompts: list[str] = dataclasses.field(default_factory=list)
    paintings: list[str] = dataclasses.field(default_factory=list)
    seeds: list[int] = dataclasses.field(default_factory=list)
    distances: list[Tensor] = dataclasses.field(default_factory=list)
    second: list[Tensor] = dataclasses.field(default_factory=list)
    agrees: list[float] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    def specificity(self, judge: str = "distances") -> measures.Specificity:
        intended = [PAINTINGS.index(painting) for painting in self.paintings]
        return measures.specificity(torch.stack(getattr(self, judge)), intended)

    @property
    def clusters(self) -> dict[str, list]:
        return {"prompt": self.prompts, "painting": self.paintings, "seed": self.seeds}

    def style_distance(self) -> list[float]:
        """Distance of each picture to the intended painting."""
        return [
            row[PAINTINGS.index(painting)].item() for row, painting in zip(self.distances, self.paintings, strict=True)
        ]


def evaluate(
    pipe,
    setting: Setting | None,
    paintings: Sequence[str] = CHOICE_PAINTINGS,
    prompts: Sequence[str] = CHOICE_PROMPTS,
    seeds: Sequence[int] = range(4),
    *,
    judges: Judges,
    features: VGG,
    steps: int = 30,
    guidance_scale: float | None = None,
    batch: int = 16,
    keep: list[Tensor] | None = None,
) -> Evaluation:
    """Draw prompts × paintings × seeds and judge every picture against all shipped `PAINTINGS`.

    Arguments:
        pipe: a pipeline of `ex4lib.diffusion.pipelines`.
        setting: None draws unguided pictures, which do not depend on the painting: they are drawn once for each prompt
            and judged for every painting; ``steps`` and ``guidance_scale`` are for them.
        features: the network whose statistics guide.
        keep: a list to which the pictures are appended, for looking at them.
    """
    plain, seeds = setting is None, list(seeds)
    setting = setting or Setting(Guidance(scale=0.0), steps, guidance_scale)
    scale = models.guidance_scale() if setting.guidance_scale is None else setting.guidance_scale
    options = {"steps": setting.steps, "guidance_scale": scale, "eta": setting.eta, "batch": batch}
    options |= {"style_loss": setting.style_loss, "features": features, "guidance": setting.guidance}
    styles = {painting: None if plain else images.load(painting, 256) for painting in paintings}
    original, drawn, started = pipe.scheduler, {}, time.perf_counter()
    if setting.scheduler is not None:
        pipe.scheduler = schedulers.named(setting.scheduler, original)
    try:
        for prompt, painting in itertools.product(prompts, [None] if plain else paintings):
            drawn[prompt, painting] = draw(pipe, prompt, seeds, style=styles.get(painting), **options)[0]
    finally:
        pipe.scheduler = original
    seconds = time.perf_counter() - started
    if keep is not None:
        keep.extend(drawn.values())
    return _judged(drawn, paintings, seeds, judges, seconds)


def _judged(drawn: dict, paintings: Sequence[str], seeds: list[int], judges: Judges, seconds: float) -> Evaluation:
    pictures, count = torch.cat(list(drawn.values())), len(seeds)
    scores = [metrics.style_distances(pictures, grams(PAINTINGS, network), network) for network in judges.networks]
    first, second = (dict(zip(drawn, rows.split(count), strict=True)) for rows in scores)
    agrees = {key: judges.agree(part, key[0]) for key, part in drawn.items()}
    found = Evaluation(seconds=seconds)
    for prompt, painting in itertools.product(dict.fromkeys(prompt for prompt, _ in drawn), paintings):
        key = (prompt, painting) if (prompt, painting) in drawn else (prompt, None)  # unguided: the same for all
        found.prompts += [prompt] * count
        found.paintings += [painting] * count
        found.seeds += seeds
        found.distances += list(first[key])
        found.second += list(second[key])
        found.agrees += agrees[key]
    return found


def summary(found: Evaluation, unguided: Evaluation) -> dict[str, float]:
    """The numbers of one setting, with the paired fall of prompt agreement against unguided pictures of equal seeds."""
    nearest, second = found.specificity(), found.specificity("second")
    fall = measures.interval([b - a for a, b in zip(found.agrees, unguided.agrees, strict=True)], found.clusters)
    return {
        "pictures": len(found.agrees),
        "specificity": nearest.share,
        "mean rank": nearest.mean_rank,
        "second judge": second.share,
        "agreement": sum(found.agrees) / len(found.agrees),
        "fall": fall.mean,
        "fall low": fall.low,
        "fall high": fall.high,
        "style distance": sum(found.style_distance()) / len(found.agrees),
        "seconds": found.seconds / len(found.agrees),
    }


def anchors_of(
    guided: Mapping[str, list], unguided: Mapping[str, list], network: VGG, autoencoder=None
) -> dict[str, dict[str, float]]:
    """For each painting the mean style distance of its guided pictures, beside the anchors of `measures.anchors`.

    Arguments:
        guided, unguided: columns ``painting`` and ``style`` of equal length, such as `comparisons.Study.table` has.
        autoencoder: a function of pictures, such as `round_trip`, through which the painting itself is passed.
    """

    def mean(table: Mapping[str, list], painting: str) -> float:
        own = [x for x, name in zip(table["style"], table["painting"], strict=True) if name == painting]
        return sum(own) / len(own)

    rows = {}
    for painting in dict.fromkeys(guided["painting"]):
        others = [name for name in PAINTINGS if name != painting]
        rows[painting] = {"guided": mean(guided, painting), "unguided": mean(unguided, painting)}
        rows[painting] |= measures.anchors(painting, others, network)
        del rows[painting]["itself"]  # 0 by definition
        if autoencoder is not None:
            square = images.resize(images.crop_square(images.load(painting)), (128, 128))
            again = metrics.style_distances(autoencoder(square), [painting], network)
            rows[painting]["encoded and decoded"] = again.item()
    return rows


@torch.no_grad()
def round_trip(pipe, pictures: Tensor) -> Tensor:
    """Pictures encoded to latents (the mean) and decoded: the best that guidance of these latents can show."""
    x = pictures.to(pipe.vae.device, pipe.vae.dtype) * 2 - 1
    again = pipe.vae.decode(pipe.vae.encode(x).latent_dist.mean).sample
    return (again / 2 + 0.5).clamp(0, 1).float().cpu()


def search(
    pipe,
    settings: Iterable[Setting],
    paintings: Sequence[str] = CHOICE_PAINTINGS,
    prompts: Sequence[str] = CHOICE_PROMPTS,
    seeds: Sequence[int] = range(4),
    *,
    judges: Judges,
    features: VGG,
    batch: int = 16,
) -> Iterator[tuple[Setting, dict[str, float]]]:
    """Each setting with its `summary`, as soon as it is known; unguided pictures are drawn once per number of steps."""
    plain: dict[tuple, Evaluation] = {}
    shared = {"judges": judges, "features": features, "batch": batch}
    for setting in settings:
        key = (setting.steps, setting.guidance_scale)
        if key not in plain:
            options = {"steps": setting.steps, "guidance_scale": setting.guidance_scale}
            plain[key] = evaluate(pipe, None, paintings, prompts, seeds, **options, **shared)
        found = evaluate(pipe, setting, paintings, prompts, seeds, **shared)
        yield setting, summary(found, plain[key])


def calibrated(
    pipe,
    settings: Sequence[Setting],
    paintings: Sequence[str],
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    judges: Judges,
    features: VGG,
) -> list[tuple[Setting, dict[str, float]]]:
    """All of `search`, kept in the store."""

    def compute() -> Run:
        found = search(pipe, settings, paintings, prompts, seeds, judges=judges, features=features)
        return Run({"rows": [row for _, row in tqdm(found, total=len(settings), unit="setting")]})

    written = [dataclasses.asdict(each) | {"guidance": as_stored(each.guidance)} for each in settings]
    config = {"settings": written, "seeds": list(seeds)}
    config |= {"paintings": list(paintings), "prompts": list(prompts)}
    weights = {"pipeline": pipeline_sha256(pipe), "features": features.identity} | judges.identity
    rows = stored("calibrated", config, compute, weights=weights).values["rows"]
    return list(zip(settings, rows, strict=True))


def recommended(rows: Sequence[tuple[Setting, dict[str, float]]], most: float = 0.1) -> tuple[Setting, dict]:
    """The setting of the highest specificity whose prompt agreement falls by at most ``most``.

    Where none keeps the prompt so far, one of those that lose least. Among equal ones the one of the lower mean rank,
    then the faster.
    """
    bound = max(most, min(row["fall"] for _, row in rows))
    fitting = [row for row in rows if row[1]["fall"] <= bound + 1e-9]
    return max(fitting, key=lambda row: (row[1]["specificity"], -row[1]["mean rank"], -row[1]["seconds"]))


def named(setting: Setting) -> str:
    """What a setting changes from the defaults, in a few words."""
    parts = []
    for part in (setting.guidance, setting):
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if field.name != "guidance" and (value != field.default or field.name in ("scale", "method")):
                parts.append(f"{field.name} {value}")
    return ", ".join(parts)


def _window(text: str) -> tuple[float, float]:
    start, stop = map(float, text.split(":"))
    return start, stop


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a Stable Diffusion folder or hub id; default: the profile's")
    parser.add_argument("--report", action="store_true", help="paintings and prompts of the report, not of the choice")
    parser.add_argument("--prompts", nargs="+", help="other than those of the choice or the report")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.4, 0.8, 1.2])
    parser.add_argument("--methods", nargs="+", default=[DEFAULT.method])
    parser.add_argument("--windows", type=_window, nargs="+", default=[DEFAULT.window], help="START:STOP in fractions")
    parser.add_argument("--ramps", nargs="+", default=[DEFAULT.ramp])
    parser.add_argument("--palettes", type=float, nargs="+", default=[DEFAULT.palette])
    parser.add_argument("--every", type=int, nargs="+", default=[1], help="guide every k-th step")
    parser.add_argument("--inner", type=int, nargs="+", default=[1])
    parser.add_argument("--losses", nargs="+", default=["gram"])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--seeds", type=int, default=4, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", default="float32", help="of the guiding network")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--sheet", type=Path, help="write a sheet of pictures of the last setting to this file")
    return parser.parse_args()


def _settings(arguments: argparse.Namespace) -> list[Setting]:
    lists = {"method": "methods", "scale": "scales", "window": "windows", "ramp": "ramps", "palette": "palettes"}
    lists |= {"inner": "inner", "every": "every"}
    found = []
    for row in itertools.product(*(getattr(arguments, option) for option in lists.values())):
        values = dict(zip(lists, row, strict=True))
        values["inner"] = values["inner"] if values["method"] in ("clean", "both") else 1
        guidance = Guidance(**values)
        for loss in arguments.losses:
            setting = Setting(guidance, arguments.steps, arguments.guidance_scale, style_loss=loss)
            found += [setting] if setting not in found else []
    return found


def main() -> None:
    """Search over the settings of the command line."""
    arguments = _arguments()
    settings = _settings(arguments)
    for name in ("steps", "seeds", "batch"):
        checks.integer(getattr(arguments, name), name, low=1)
    checks.seed(arguments.first_seed, "first_seed")
    for output, endings in ((arguments.json, (".json",)), (arguments.sheet, PICTURES)):
        if output is not None:
            check_output(output, endings)
    pipe = text_to_image(arguments.model)
    shared = {"judges": Judges.default(), "features": models.features(precision=arguments.precision)}
    shared["batch"] = arguments.batch
    paintings, prompts = CHOICE_PAINTINGS, CHOICE_PROMPTS
    if arguments.report:
        paintings, prompts = REPORT_PAINTINGS, REPORT_PROMPTS
    sets = (paintings, arguments.prompts or prompts)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    rows = []
    for setting, row in search(pipe, settings, *sets, seeds, **shared):
        rows.append((setting, row))
        print(named(setting), *(f"{name} {value:.3g}" for name, value in row.items()), sep=" | ", flush=True)
        if arguments.json:
            lines = [{"setting": dataclasses.asdict(each), **numbers} for each, numbers in rows]
            arguments.json.write_text(json.dumps(lines, indent=1))
    print("best:", named(recommended(rows)[0]))
    if arguments.sheet:
        pictures: list[Tensor] = []
        evaluate(pipe, rows[-1][0], *sets, seeds[:2], keep=pictures, **shared)
        grid = torch.cat([torch.cat(list(part), 2) for part in pictures], 1)
        images.save(grid[None], arguments.sheet)


if __name__ == "__main__":
    cli.main(main, "experiments.specificity")
