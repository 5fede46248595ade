"""Drawn, stylised and judged pictures of the exercise's second part, kept in the store.

Drawing and judging are apart, so that every picture is judged by the same numbers, whoever made it. Pictures are judged
as the store keeps them. Wherever there are several seeds, numbers are lists with an entry for each seed.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ex4lib import colour, images, models, transfer
from ex4lib.diffusion import pipelines, schedulers
from ex4lib.diffusion.guidance import Guidance
from ex4lib.diffusion.sampling import finish, sample
from ex4lib.features import VGG
from ex4lib.models import pipeline_sha256
from experiments import measures, metrics
from experiments.judge import Judge
from experiments.store import Run, stored

#: Paintings and prompts on which a setting is chosen, and those on which it is reported.
CHOICE_PAINTINGS = ("arcimboldo-spring", "bruegel-the-harvesters", "renoir-moulin-de-la-galette")
REPORT_PAINTINGS = (
    "van-gogh-village-street-in-auvers",
    "hokusai-great-wave",
    "kandinsky-composition-viii",
    "hokusai-poppies",
    "leonardo-mona-lisa",
)
PAINTINGS = tuple(sorted(CHOICE_PAINTINGS + REPORT_PAINTINGS))
#: What sentences and axes call a painting.
TITLES = {
    "arcimboldo-spring": "Arcimboldo",
    "bruegel-the-harvesters": "Bruegel",
    "hokusai-great-wave": "Hokusai's wave",
    "hokusai-poppies": "Hokusai's poppies",
    "kandinsky-composition-viii": "Kandinsky",
    "leonardo-mona-lisa": "Leonardo",
    "renoir-moulin-de-la-galette": "Renoir",
    "van-gogh-village-street-in-auvers": "van Gogh",
}
CHOICE_PROMPTS = (
    "a dog sitting on grass",
    "a horse",
    "a house in snowy mountains",
    "a duck",
    "a church beside a lake",
    "a burger on the table",
)
REPORT_PROMPTS = (
    "a cat",
    "a castle next to a river",
    "a red bus driving on a desert road",
    "a cabin surrounded by forests",
)
#: Captions among which the judge of prompts has to find the right one: 64 with those above.
CAPTIONS = (
    *CHOICE_PROMPTS,
    *REPORT_PROMPTS,
    "a car on the road", "a villa close to the pool", "a squirrel sitting on a table", "a rocket ship",
    "a campfire at night", "a boat in a river", "a smiley", "a waterfall", "a blue butterfly", "a tree",
    "an owl", "a fish", "a sunflower", "a train", "a bicycle", "a guitar", "an umbrella", "a crown", "a robot",
    "a penguin", "a cake", "a chair", "a man wearing a hat", "a ballerina", "an elephant", "a giraffe",
    "a turtle", "a snail", "an octopus", "a dolphin in the sea", "a parrot", "a pizza", "a banana",
    "a pineapple", "a mushroom", "a taxi", "a fire engine", "a tractor", "a helicopter", "a balloon in the sky",
    "a tent", "a ferris wheel", "a volcano", "a cactus in the desert", "a snowman", "the moon", "a rainbow", "a key",
    "a drum", "a camera", "a clock", "a teddy bear", "a cup of coffee on the table", "a palm tree",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Judges:
    """Who judges pictures: a network for style, a second one that shares no weights with it, and CLIP for prompts."""

    network: VGG
    second: VGG
    prompts: Judge

    @classmethod
    def default(cls, device: torch.device | str | None = None) -> Judges:
        device = models.device() if device is None else torch.device(device)
        network = models.features(models.JUDGES[models.profile()], device=device)
        return cls(network, measures.random_network().to(device), Judge.load(device=device))

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        """SHA-256 of the weights by judge, for the store."""
        parts = {"network": self.network, "second": self.second, "prompts": self.prompts.model}
        return {name: models.weights_sha256(part) for name, part in parts.items()}

    @property
    def networks(self) -> tuple[VGG, VGG]:
        return self.network, self.second

    def agree(self, pictures: Tensor, prompt: str, captions: Sequence[str] = CAPTIONS) -> list[float]:
        """For each picture 1.0 where the caption that fits best among ``captions`` is ``prompt``, else 0.0."""
        return self.prompts.agrees(pictures, prompt, captions).double().tolist()


def text_to_image(name: str | None = None, device: torch.device | str | None = None):
    """The profile's text to image pipeline, silent; the embedded model in float32 on every device, as on the CPU."""
    pipe = pipelines.stable_diffusion(name)
    pipe.set_progress_bar_config(disable=True)
    dtype = models.budget(fast=torch.float32, mini=torch.float32, full=pipe.dtype)
    pipe = pipe.to(models.device() if device is None else device)
    return pipe if pipe.dtype == dtype else pipe.to(dtype)


def draw(
    pipe,
    prompt: str | None,
    seeds: Sequence[int],
    *,
    style: Tensor | None = None,
    guidance: Guidance | None = None,
    style_loss: str = "gram",
    steps: int = 30,
    guidance_scale: float | None = None,
    eta: float = 0.0,
    features: VGG | None = None,
    measure: bool = False,
    batch: int = 16,
) -> tuple[Tensor, list[list[dict]]]:
    """Pictures ``(N, 3, H, W)`` on the CPU, one for each seed, and the trace of every batch.

    A picture depends on its own seed alone, not on the batch it is in. Without a prompt ``pipe`` is an unconditional
    pipeline.
    """
    guided = style is not None and guidance is not None and guidance.is_on
    style_arguments = {"style_image": style, "guidance": guidance, "style_loss": style_loss, "features": features}
    pictures, traces = [], []
    for start in range(0, len(seeds), batch):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + batch]]
        if guided and guidance.recurrence > 1:
            shown, trace = _recurrent(pipe, prompt, generators, style_arguments, steps, guidance_scale, eta)
        else:
            call = {"generator": generators, "output_type": "pt", "num_inference_steps": steps, "measure": measure}
            call |= {"eta": eta} if eta or prompt is not None else {}  # DDPM's pipeline has none
            call |= style_arguments if guided else {}
            if prompt is None:
                output = pipe(len(generators), **call)
            else:
                output = pipe([prompt] * len(generators), guidance_scale=guidance_scale, **call)
            shown, trace = output.images, output.trace
        pictures.append(shown.float().cpu())
        traces.append(trace)
    return torch.cat(pictures), traces


def _recurrent(pipe, prompt: str, generators: list, style: Mapping, steps: int, guidance_scale: float, eta: float):
    """Pictures by the library's own loop, which is the only one that repeats steps."""
    denoiser = pipe.denoiser([prompt] * len(generators), guidance_scale=guidance_scale)
    side = pipe.unet.config.sample_size
    shape = (len(generators), pipe.unet.config.in_channels, side, side)
    x = randn_tensor(shape, generators, pipe.device, pipe.unet.dtype)
    size = (side * pipe.vae_scale_factor,) * 2
    objective = pipelines.StyleObjective(
        style["features"], [style["style_image"]], size, style_loss=style["style_loss"]
    )
    options = {"objective": objective, "guidance": style["guidance"], "eta": eta, "generator": generators}
    last, trace = finish(sample(denoiser, pipe.scheduler, x, steps=steps, **options))
    return denoiser.space.render(last.sample), trace


def as_stored(guidance: Guidance) -> dict:
    """A guidance in a run's key, the palette only where there is one: runs without it are older than the option."""
    fields = dataclasses.asdict(guidance)
    return fields if guidance.palette else {name: value for name, value in fields.items() if name != "palette"}


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
        "guidance": as_stored(guidance) if guided else None,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "scheduler": scheduler or type(pipe.scheduler).__name__,
        "eta": eta,
        "measure": measure,
    }

    def compute() -> Run:
        original, started = pipe.scheduler, time.perf_counter()
        if scheduler is not None:
            pipe.scheduler = schedulers.named(scheduler, original)
        options = {"steps": steps, "guidance_scale": guidance_scale, "eta": eta, "measure": measure, "batch": batch}
        options |= {"style": style, "guidance": guidance, "style_loss": style_loss, "features": features}
        try:
            pictures, traces = draw(pipe, prompt, seeds, **options)
        finally:
            pipe.scheduler = original
        shown = {str(seed): picture for seed, picture in zip(seeds, pictures.split(1), strict=True)}
        return Run({"total_seconds": time.perf_counter() - started} | _traces(traces), shown)

    inputs = {"style": style} if guided else {}
    hashes = {"pipeline": pipeline_sha256(pipe)} | ({"features": features.identity} if guided and features else {})
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
    return stored("stylised", config, compute, inputs=inputs, weights={"network": network.identity})


def judged(
    judges: Judges,
    run: Run,
    painting: str,
    *,
    prompt: str | None = None,
    unguided: Run | None = None,
    captions: Sequence[str] = CAPTIONS,
) -> dict[str, list]:
    """Every number that pictures are compared by, a list over seeds each.

    ``style``: `metrics.style_distances` to the painting; ``rank`` of the painting among all shipped ones by this
    distance, and ``nearest``, whether it is the first; ``second``, ``second_nearest``: the same by the second judge;
    ``meanvar``: `metrics.style_distance` by means and variances on held-out layers; ``colour``, ``texture``: see
    `metrics`. With a prompt ``agrees``: whether it fits best among the captions, and ``score``: its cosine. With
    unguided pictures of the same seeds ``content``: `metrics.content_error` against them.
    """
    pictures, style = stack(run), style_named(painting)
    network, candidates = judges.network, tuple(dict.fromkeys([*PAINTINGS, painting]))

    def compute() -> Run:
        values: dict[str, list] = {}
        intended = [candidates.index(painting)] * len(pictures)
        for name, judge in (("", network), ("second_", judges.second)):
            distances = metrics.style_distances(pictures, grams(candidates, judge), judge)
            found = measures.specificity(distances, intended)
            values |= {f"{name}nearest": list(found.nearest), f"{name}rank": list(found.ranks)}
            values["second" if name else "style"] = distances[:, intended[0]].tolist()
            values[f"{name}first"] = [candidates[number] for number in distances.argmin(1).tolist()]
        singles = pictures.split(1)
        values["colour"] = [metrics.colour_distance(x, style) for x in singles]
        matched = colour.match_colour(pictures, style)
        for name, shown, statistic in (("meanvar", pictures, "meanvar"), ("texture", matched, "gram")):
            values[name] = metrics.statistic_distances(network, shown, style, statistic=statistic).tolist()
        if prompt is not None:
            values["agrees"] = judges.agree(pictures, prompt, captions)
            values["score"] = judges.prompts.scores(pictures, [prompt])[:, 0].tolist()
        if unguided is not None:
            pairs = zip(singles, stack(unguided).split(1), strict=True)
            values["content"] = [metrics.content_error(network, own, before) for own, before in pairs]
        return Run(values)

    inputs = {"pictures": pictures, "style": style} | ({} if unguided is None else {"unguided": stack(unguided)})
    config = {"prompt": prompt, "captions": list(captions) if prompt else None, "paintings": list(candidates)}
    return stored("judged", config, compute, inputs=inputs, weights=judges.identity).values


@functools.lru_cache(maxsize=8)
def grams(paintings: tuple[str, ...], network: VGG) -> dict[str, Tensor]:
    """`metrics.painting_grams`, computed once for each network."""
    return metrics.painting_grams(paintings, network)


def stack(run: Run) -> Tensor:
    """The pictures of a run as one batch, by seed."""
    return torch.cat([run.pictures[seed] for seed in sorted(run.pictures, key=int)])


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and bootstrap interval of independent values (`measures.interval`)."""
    return tuple(measures.interval(values, confidence=confidence))


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
