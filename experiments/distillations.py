"""The experiments of the KAIST CS492D assignment on score distillation: run, judged and graded, kept in the store.

`distilled` is the assignment's own run, the picture that ``python -m experiments distil`` writes. `particles` draws
several pictures in one batch, which costs half as much for each picture, and with any canvas: latents, pixels, a
network of coordinates.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ex4lib import images, models
from ex4lib.diffusion.pipelines import StyleObjective
from ex4lib.features import VGG
from ex4lib.models import pipeline_sha256
from experiments import grading, measures
from experiments.assignment import ASSIGNMENT, RULES, distil_prompt, split_options
from experiments.canvases import CoordinateNetwork, Encoded
from experiments.distillation.loop import Canvas, Step, distil
from experiments.judge import Judge
from experiments.store import Run, stored


@dataclasses.dataclass(frozen=True)
class Edit:
    """What a source shows, what is to be made of it, and the seed at which the model draws the source."""

    source: str
    target: str
    seed: int = 1


# A prompt; its edit in the assignment's slides and README, spelt as there; its edit in the repository's JSON.
_TABLE = """
a boat in a river | a boat in a frozen river | a golden boat in a river
A burger on the table | A hotdog on the table | A burger with lettuce on the table
A cabin surrounded by forests | A cabin surrounded by snowy forests | A cabin surrounded by flowers
A car on the road | A futuristic car wiht neon signs on the road | A yellow sportscar on the road
A castle next to a river | A toy lego castle close to the pool | A rainbow castle next to a river
a cat sitting on a table | a squirrel sitting on a table | a wooden cat statue sitting on a table
A church beside a lake | A church beside a waterfall | A church beside a lake at night
A dog sitting on grass | A cat sitting on grass | A golden retriever sitting on grass
A red bus driving on a desert road | A red sportscar driving on a desert road | A yellow school bus driving on a desert road
A villa close to the pool | An ancient villa close to the pool | A villa covered with ivy close to the pool
"""  # noqa: E501
# At seed 1 mini-sd draws the dog in its look without a name.
_SEEDS = {"A dog sitting on grass": 0}
_ROWS = [line.split(" | ") for line in _TABLE.strip().splitlines()]
#: The assignment's ten prompts, and its two lists of ten edits.
PROMPTS = tuple(row[0] for row in _ROWS)
EDITS = {
    name: tuple(Edit(row[0], row[column], _SEEDS.get(row[0], 1)) for row in _ROWS)
    for column, name in ((1, "slides"), (2, "repository"))
}
#: Prompts that the embedded world cannot draw, and the words it lacks.
LACKING = {
    "A futuristic car wiht neon signs on the road": ("wiht",),
}
#: Learning rates of the canvases of `particles`; the assignment's for latents.
LEARNING_RATES = {"latents": 0.1, "pixels": 0.05, "coordinates": 0.005}


def distilled(
    pipe,
    prompt: str | Sequence[str],
    *,
    loss: str = "sds",
    source: Tensor | None = None,
    source_prompt: str | Sequence[str] | None = None,
    style: Tensor | None = None,
    style_weight: float = 0.0,
    features: VGG | None = None,
    frames: Sequence[int] = (),
    **options,
) -> Run:
    """`distil_prompt` to its end: a drawing of a prompt, or edits of sources, several in one batch.

    Values: ``gradient_rms`` by update; ``seconds``, the median of an update. Pictures: ``"0"``, ``"1"``, ... by place,
    and ``"0-25"`` and so on: the first after as many updates as ``frames`` names.

    Arguments:
        source: ``(B, 3, H, W)``; the prompts are then lists of B.
        style: a painting ``(1, 3, H, W)`` whose `StyleObjective` in ``features`` joins in with ``style_weight``.
        options: of `distil_prompt`, plain JSON.

    Raises:
        ValueError: a style without features, or what `distil_prompt` refuses.
    """
    if style is not None and features is None:
        raise ValueError("a style needs features, the network that sees it")

    def compute() -> Run:
        joins = {}
        if style is not None:
            joins = {"objective": style_objective(pipe, features, style), "objective_weight": style_weight}
        edit = {"source": source, "source_prompt": source_prompt}
        return _finished(distil_prompt(pipe, prompt, loss=loss, **edit, **options, **joins), frames)

    config = {"prompt": prompt, "loss": loss, "source_prompt": source_prompt, **options, "frames": sorted(frames)}
    config |= {"assignment": ASSIGNMENT.get(loss), "style_weight": style_weight}
    inputs = {name: x for name, x in (("source", source), ("style", style)) if x is not None}
    hashes = {"pipeline": pipeline_sha256(pipe)} | ({"features": features.identity} if style is not None else {})
    return stored("distilled", config, compute, inputs=inputs, weights=hashes)


def particles(
    pipe,
    prompts: str | Sequence[str],
    seeds: Sequence[int],
    *,
    loss: str = "sds",
    canvas: str = "latents",
    guidance_scale: float | None = None,
    negative_prompt: str = "",
    steps: int,
    **options,
) -> Run:
    """Drawings in one batch, one per seed: timesteps are shared, noise is not, and VSD has one adapter for all.

    Values and pictures as of `distilled`, and ``parameters``, how many a picture has.

    Arguments:
        prompts: one for all, or one per seed.
        loss: ``"sds"`` or ``"vsd"``.
        canvas: a key of `LEARNING_RATES`; pixels and coordinates are `Encoded`.
        options: of the rule and of `distil`, plain JSON.

    Raises:
        ValueError: an unknown loss or canvas, prompts or seeds that do not fit.
    """
    prompts = [prompts] * len(seeds) if isinstance(prompts, str) else list(prompts)
    if loss not in ("sds", "vsd") or canvas not in LEARNING_RATES:
        raise ValueError(f"loss must be sds or vsd and canvas one of {', '.join(LEARNING_RATES)}, got {loss}, {canvas}")
    if not seeds or len(prompts) != len(seeds) or (canvas == "coordinates" and len(seeds) > 1):
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds do not fit a canvas of {canvas}")
    scale = ASSIGNMENT[loss][0] if guidance_scale is None else guidance_scale
    told = {"guidance_scale": scale, "negative_prompt": negative_prompt}
    options = {"steps": steps, "learning_rate": LEARNING_RATES[canvas]} | options

    def compute() -> Run:
        denoiser = pipe.denoiser(prompts, **told)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn = _canvas(pipe, canvas, generators, seeds[0])
        of_rule, of_loop = split_options(loss, options)
        rule = RULES[loss](denoiser, pipe.scheduler, **of_rule)
        loop = distil(rule, drawn, denoiser.space, generator=generators[0], **of_loop)
        run = _finished(loop, picture=None if canvas == "latents" else drawn.picture)
        run.values["parameters"] = sum(each.numel() for each in drawn.parameters()) // len(seeds)
        return run

    config = {"prompts": prompts, "seeds": list(seeds), "loss": loss, "canvas": canvas}
    return stored("particles", config | told | options, compute, weights={"pipeline": pipeline_sha256(pipe)})


def costs(pipe, prompt: str, source: Tensor, source_prompt: str, *, rounds: int = 6, updates: int = 4) -> Run:
    """Seconds of an update by loss, medians over all rounds; losses take turns, so that a busy machine slows all alike.

    Values: a number for each key of `ASSIGNMENT`.
    """

    def compute() -> Run:
        seconds: dict[str, list[float]] = {loss: [] for loss in ASSIGNMENT}
        for _ in range(rounds):
            for loss, found in seconds.items():
                edit = {"source": source, "source_prompt": source_prompt} if loss in ("pds", "dds") else {}
                loop = distil_prompt(pipe, prompt, loss=loss, steps=updates + 1, **edit)
                next(loop)  # warms up
                started = time.perf_counter()
                for _ in loop:
                    found.append(time.perf_counter() - started)
                    started = time.perf_counter()
        return Run({loss: statistics.median(found) for loss, found in seconds.items()})

    config = {"prompt": prompt, "source_prompt": source_prompt, "rounds": rounds, "updates": updates}
    hashes = {"pipeline": pipeline_sha256(pipe)}
    return stored("distillation_costs", config, compute, inputs={"source": source}, weights=hashes)


def style_objective(pipe, features: VGG, style: Tensor) -> StyleObjective:
    """The Gram loss of a painting for pictures of the pipeline's size."""
    return StyleObjective(features, [style], (_pixels(pipe), _pixels(pipe)))


def balanced_weight(pipe, features: VGG, style: Tensor, run: Run, share: float) -> float:
    """The weight at which, at a run's first picture, the style's gradient in x0 is a share of what the run's rule gave.

    ``share · mean_t rms(rule) / rms(∇ style)``, to three digits: a share means the same for every painting and model.
    """
    space = pipe.denoiser(run.provenance["config"]["prompt"], guidance_scale=1.0).space
    picture = images.resize(run.pictures["0"], _pixels(pipe)).to(pipe.device)
    clean = space.encode(picture).float().requires_grad_()
    with torch.enable_grad():
        loss = style_objective(pipe, features, style)(space.decode(clean)).sum()
    (gradient,) = torch.autograd.grad(loss, clean)
    rule = sum(run.values["gradient_rms"]) / len(run.values["gradient_rms"])
    return float(f"{share * rule / gradient.square().mean().sqrt().item():.3g}")


def pictures(run: Run) -> Tensor:
    """The final pictures of a run as one batch, by place."""
    return torch.cat([run.pictures[key] for key in sorted(filter(str.isdigit, run.pictures), key=int)])


def judged(judge: Judge, drawn: Tensor, prompts: Sequence[str]) -> dict:
    """What can be said of pictures ``(B, 3, H, W)`` and prompts.

    ``cosines``: of each picture with each prompt; ``diversity``: mean ``1 - cosine`` of the judge's features over pairs
    of pictures (0 for one); ``saturation``: mean of ``(max - min)/max`` over channels, the S of HSV.
    """

    def compute() -> Run:
        features, most = judge.image_features(drawn).cpu(), drawn.amax(1)
        pairs = max(1, len(drawn) * (len(drawn) - 1))
        values = {
            "cosines": (features @ judge.text_features(prompts).cpu().T).tolist(),
            "diversity": float((1 - features @ features.T).fill_diagonal_(0).sum() / pairs),
            "saturation": float(((most - drawn.amin(1)) / most.clamp_min(1e-6)).mean()),
        }
        return Run(values)

    hashes = {"judge": models.weights_sha256(judge.model)}
    return stored("cosines", {"prompts": list(prompts)}, compute, inputs={"pictures": drawn}, weights=hashes).values


def judged_edits(judge: Judge, network: VGG, edited: Tensor, sources: Tensor, edits: Sequence[Edit]) -> dict:
    """What edits reached and what they kept, a list over edits each.

    ``before``, ``after``: the judge's cosine of the target's prompt with the source and with the edit; ``direction``:
    the cosine of what changed in the picture and in the prompt; ``ssim``, ``lpips``: edit against source.

    Source of ``direction``: Gal et al., "StyleGAN-NADA" (2021), equation 3.
    """

    def compute() -> Run:
        new, old = judge.image_features(edited), judge.image_features(sources)
        target, source = (judge.text_features([getattr(edit, name) for edit in edits]) for name in ("target", "source"))
        pairs = list(zip(edited.split(1), sources.split(1), strict=True))
        values = {
            "before": (old * target).sum(1).tolist(),
            "after": (new * target).sum(1).tolist(),
            "direction": torch.cosine_similarity(new - old, target - source).tolist(),
            "ssim": [measures.ssim(*pair) for pair in pairs],
            "lpips": [measures.perceptual_distance(network, *pair) for pair in pairs],
        }
        return Run(values)

    config = {"edits": [dataclasses.asdict(edit) for edit in edits]}
    hashes = {"judge": models.weights_sha256(judge.model), "network": network.identity}
    inputs = {"edited": edited, "sources": sources}
    return stored("edits", config, compute, inputs=inputs, weights=hashes).values


def graded(folder: Path, drawn: Mapping[str, Tensor], judge: Judge, *, name: str) -> dict:
    """Hand in: a folder with pictures named after their prompts, and ``eval.json``.

    Pictures of the assignment's other prompts, from an earlier time, are taken out of it. Returns what
    `grading.evaluate_folder` does.
    """
    for prompt in (*PROMPTS, *(edit.target for rows in EDITS.values() for edit in rows)):
        (folder / grading.file_name(prompt)).unlink(missing_ok=True)
    for prompt, picture in drawn.items():
        images.save(picture, folder / grading.file_name(prompt))
    return grading.evaluate_folder(folder, judge, name=name)


def _finished(loop: Iterator[Step], frames: Sequence[int] = (), picture: Callable[[], Tensor] | None = None) -> Run:
    """Drive a loop to its end; what is looked at, ``step.image`` or ``picture()``, does not count as time."""
    seconds, rms, kept, started = [], [], {}, time.perf_counter()
    for step in loop:
        seconds.append(time.perf_counter() - started)
        rms.append(step.gradient_rms)
        if step.index + 1 in frames:
            kept[f"0-{step.index + 1}"] = step.image[:1].float().cpu()
        started = time.perf_counter()
    final = step.image if picture is None else picture()
    kept |= {str(i): each.float().cpu() for i, each in enumerate(final.split(1))}
    return Run({"gradient_rms": rms, "seconds": sorted(seconds)[len(seconds) // 2]}, kept)


def _pixels(pipe) -> int:
    """The side of what the pipeline draws."""
    return pipe.unet.config.sample_size * pipe.vae_scale_factor


def _canvas(pipe, name: str, generators: Sequence[torch.Generator], seed: int) -> nn.Module:
    """A canvas at its start: noise for latents and, faint, for pixels."""
    side, channels, pixels = pipe.unet.config.sample_size, pipe.unet.config.in_channels, _pixels(pipe)
    if name == "coordinates":
        return Encoded(CoordinateNetwork((3, pixels, pixels), seed=seed), pipe.vae).to(pipe.device)
    shape = (1, channels, side, side) if name == "latents" else (1, 3, pixels, pixels)
    noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
    canvas = Canvas(noise) if name == "latents" else Encoded(Canvas(0.2 * noise), pipe.vae)
    return canvas.to(pipe.device)
