"""The experiments of the exercise's second part: drawn, stylised and judged pictures, kept in the store.

Drawing and judging are apart, so that every picture is judged by the same numbers, whoever made it. Pictures are judged
as the store keeps them. Wherever there are several seeds, numbers are lists with an entry each.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ex4lib import images, metrics, models, transfer
from ex4lib.diffusion import schedulers
from ex4lib.diffusion.guidance import Guidance
from ex4lib.features import VGG
from ex4lib.judge import Judge
from experiments.store import Run, stored

#: What the comparisons draw, and what the judge may take it for instead.
PROMPTS = ("a cat", "a castle next to a river", "a red bus driving on a desert road")
RIVALS = (
    "a dog", "a boat in a river", "a burger on the table", "a cabin surrounded by forests", "a car on the road",
    "a church beside a lake", "a villa close to the pool", "a squirrel", "a rocket ship", "a campfire at night",
    "a house in snowy mountains", "a smiling face", "a waterfall", "a blue butterfly", "a tree", "an owl", "a fish",
    "a sunflower", "a train", "a bicycle", "a guitar", "an umbrella", "a crown", "a robot", "a horse", "a penguin",
    "a cake", "a chair", "a lion",
)  # fmt: skip


def drawn(
    pipe,
    prompt: str | None,
    seeds: Sequence[int],
    *,
    style: Tensor | None = None,
    style_loss: str = "gram",
    guidance: Guidance | None = None,
    steps: int = 30,
    guidance_scale: float | None = None,
    scheduler: str | None = None,
    eta: float = 0.0,
    features: VGG | None = None,
    measure: bool = False,
    batch: int = 16,
) -> Run:
    """Pictures of a prompt, one per seed, guided by a style or not; without a prompt by a `StyleGuidedDDPMPipeline`.

    Values: ``total_seconds``; the trace by step of a guided run: ``loss``, ``loss_after``, ``gradient_norm``,
    ``movement`` (means over the pictures), ``seconds`` and ``skipped`` (sums), ``timestep``. Pictures: by seed.
    """
    guided = style is not None and guidance is not None and guidance.is_on
    config = {
        "prompt": prompt,
        "seeds": list(seeds),
        "style_loss": style_loss if guided else None,
        "guidance": dataclasses.asdict(guidance) if guided else None,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "scheduler": scheduler or type(pipe.scheduler).__name__,
        "eta": eta,
        "measure": measure,
    }

    def compute() -> Run:
        original = pipe.scheduler
        if scheduler is not None:
            pipe.scheduler = schedulers.named(scheduler, original)
        pictures, rows, started = {}, [], time.perf_counter()
        try:
            for start in range(0, len(seeds), batch):
                part = list(seeds[start : start + batch])
                call = {"generator": [torch.Generator().manual_seed(seed) for seed in part], "output_type": "pt"}
                call |= {"num_inference_steps": steps, "eta": eta, "measure": measure, "features": features}
                if guided:
                    call |= {"style_image": style, "style_loss": style_loss, "guidance": guidance}
                if prompt is None:
                    found = pipe(len(part), **call)
                else:
                    found = pipe([prompt] * len(part), guidance_scale=guidance_scale, **call)
                pictures |= {str(seed): x[None].float().cpu() for seed, x in zip(part, found.images, strict=True)}
                rows.append(found.trace)
        finally:
            pipe.scheduler = original
        return Run({"total_seconds": time.perf_counter() - started} | _traces(rows), pictures)

    inputs = {"style": style} if guided else {}
    hashes = {"pipeline": pipeline_sha256(pipe)} | ({features.name: features.sha256} if guided and features else {})
    return stored("drawn", config, compute, inputs=inputs, weights=hashes)


def stylised(
    network: VGG,
    drawing: Run,
    style: Tensor,
    *,
    style_loss: str = "gram",
    style_weight: float = transfer.DEFAULT.style_weight,
    evaluations: int = 150,
    size: int = 128,
) -> Run:
    """Every picture of a run after neural style transfer with the default recipe: the control to guided drawing.

    Values: ``seconds`` by seed. Pictures: by seed.
    """
    recipe = dataclasses.replace(transfer.DEFAULT, style_loss=style_loss, style_weight=style_weight)

    def compute() -> Run:
        pictures, seconds = {}, []
        for seed, picture in drawing.pictures.items():
            found = transfer.stylize(network, picture, style, recipe=recipe, size=size, evaluations=evaluations)
            pictures[seed] = found.image.float().cpu()
            seconds.append(found.seconds)
        return Run({"seconds": seconds}, pictures)

    config = {"recipe": dataclasses.asdict(recipe), "evaluations": evaluations, "size": size}
    inputs = {"style": style, "drawings": stack(drawing)}
    return stored("stylised", config, compute, inputs=inputs, weights={network.name: network.sha256})


def judged(
    judge: Judge,
    network: VGG,
    run: Run,
    style: Tensor,
    *,
    prompt: str,
    unguided: Run | None = None,
    rivals: Sequence[str] = RIVALS,
) -> dict[str, list]:
    """Every number that pictures are compared by, a list over seeds each.

    ``gram``, ``meanvar``: `metrics.style_distance` on held-out layers; ``colour``, ``texture``: its parts; ``agrees``:
    whether the judge prefers the prompt over the rivals and the other prompts; ``score``: the cosine with the prompt;
    ``content``: `metrics.content_error` against the unguided picture of the same seed; ``features``: the judge's unit
    vectors.
    """
    pictures = stack(run)

    def compute() -> Run:
        values = {"gram": [], "meanvar": [], "colour": [], "texture": []}
        for picture in pictures.split(1):
            for name in ("gram", "meanvar"):
                values[name].append(metrics.style_distance(network, picture, style, statistic=name))
            values["colour"].append(metrics.colour_distance(picture, style))
            values["texture"].append(metrics.texture_distance(network, picture, style))
        values["agrees"] = judge.agrees(pictures, prompt, [*PROMPTS, *rivals]).float().tolist()
        values["score"] = judge.scores(pictures, [prompt])[:, 0].tolist()
        values["features"] = judge.image_features(pictures).cpu().tolist()
        if unguided is not None:
            before = stack(unguided)
            values["content"] = [
                metrics.content_error(network, a, b) for a, b in zip(pictures.split(1), before.split(1), strict=True)
            ]
        return Run(values)

    inputs = {"pictures": pictures, "style": style} | ({} if unguided is None else {"unguided": stack(unguided)})
    hashes = {network.name: network.sha256, "judge": models.weights_sha256(judge.model)}
    config = {"prompt": prompt, "rivals": list(rivals)}
    return stored("judged", config, compute, inputs=inputs, weights=hashes).values


def style_distances(network: VGG, run: Run, style: Tensor, *, statistic: str = "gram") -> list[float]:
    """`metrics.style_distance` on held-out layers of every picture of a run, by seed."""
    pictures = stack(run)

    def compute() -> Run:
        return Run(
            {"distances": [metrics.style_distance(network, x, style, statistic=statistic) for x in pictures.split(1)]}
        )

    inputs = {"pictures": pictures, "style": style}
    found = stored(
        "distances", {"statistic": statistic}, compute, inputs=inputs, weights={network.name: network.sha256}
    )
    return found.values["distances"]


def stack(run: Run) -> Tensor:
    """The pictures of a run as one batch, by seed."""
    return torch.cat([run.pictures[seed] for seed in sorted(run.pictures, key=int)])


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and bootstrap interval of independent values (`metrics.interval`)."""
    return tuple(metrics.interval(values, confidence=confidence))


def pipeline_sha256(pipe) -> str:
    """SHA-256 over all weights of a pipeline; computed once for each."""
    known = pipe.__dict__.setdefault("_ex4lib_sha256", {})
    if not known:
        modules = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
        known["all"] = "-".join(models.weights_sha256(modules[name])[:16] for name in sorted(modules))
    return known["all"]


def style_named(name: str, size: int = 256) -> Tensor:
    """A shipped painting at the size the comparisons use."""
    return images.load(name, size)


def _traces(rows: Sequence[Sequence[Mapping]]) -> dict[str, list]:
    """The batches' traces as one, by step: means over pictures, sums of seconds and of skipped gradients."""
    if not rows or not rows[0]:
        return {"seconds": []}
    steps = list(zip(*rows, strict=True))

    def mean(name: str) -> list[float | None]:
        return [
            None if step[0][name] is None else float(np.mean([x for batch in step for x in batch[name]]))
            for step in steps
        ]

    return {
        **{name: mean(name) for name in ("loss", "loss_after", "gradient_norm", "movement")},
        "timestep": [step[0]["timestep"] for step in steps],
        "seconds": [sum(batch["seconds"] for batch in step) for step in steps],
        "skipped": [sum(batch["skipped"] for batch in step) for step in steps],
    }
