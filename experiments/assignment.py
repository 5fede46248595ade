"""The KAIST CS492D assignment on score distillation: its losses by name, its settings, and a run of one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ex4lib import checks, images
from ex4lib.images import ImageSource
from experiments.distillation.loop import Canvas, Step, distil
from experiments.distillation.rules import DDS, PDS, SDS, VSD

RULES = {"sds": SDS, "vsd": VSD, "pds": PDS, "dds": DDS}
#: The KAIST assignment's classifier-free guidance and number of updates, by loss; DDS, which it lacks, uses PDS's.
ASSIGNMENT = {"sds": (25.0, 500), "vsd": (7.5, 500), "pds": (7.5, 200), "dds": (7.5, 200)}


def check_request(loss: str, has_source: bool, has_edit: bool) -> None:
    """Raise an error if a loss lacks a source or an edit, or has one that it does not use.

    Raises:
        ValueError: an unknown loss; an edit without a source or a source without an edit; a drawing with either.
    """
    edits = checks.choice(loss, "loss", ASSIGNMENT) in ("pds", "dds")
    if edits and not (has_source and has_edit):
        raise ValueError(f"{loss} needs a source, a prompt for the source and a prompt for the edit")
    if not edits and (has_source or has_edit):
        raise ValueError(f"{loss} draws from noise and takes no source or edit")


def distil_prompt(
    pipe,
    prompt: str | list[str],
    *,
    loss: str = "sds",
    source: ImageSource | None = None,
    source_prompt: str | list[str] | None = None,
    guidance_scale: float | None = None,
    steps: int | None = None,
    negative_prompt: str | list[str] = "",
    seed: int = 0,
    **options,
) -> Iterator[Step]:
    """Draw a prompt, or edit a source towards it, in latents: the KAIST CS492D assignment.

    Arguments:
        pipe: a `StyleGuidedStableDiffusionPipeline`.
        prompt: one, or several for a batch.
        loss: ``"sds"`` or ``"vsd"`` from latents of noise; ``"pds"`` or ``"dds"`` from the encoded source.
        source: a picture, or a batch ``(B, 3, H, W)``; ``source_prompt`` describes it.
        guidance_scale, steps: default `ASSIGNMENT`.
        options: of the rule (``weight``, ``form``, ``stride``, ``rank``, ``adapter_learning_rate``) and of `distil`.

    Raises:
        ValueError: an unknown loss; an edit without source or its prompt, or a drawing with them; numbers outside their
            range, or as many prompts as do not fit the sources.
    """
    check_request(loss, source is not None, source_prompt is not None)
    scale, count = ASSIGNMENT[loss]
    scale = scale if guidance_scale is None else checks.number(guidance_scale, "guidance_scale")
    steps = count if steps is None else checks.integer(steps, "steps", low=1)
    prompts, of_rule, options = checks.prompts(prompt), *split_options(loss, options)
    generator = torch.Generator().manual_seed(checks.seed(seed))
    conditions = {"negative_prompt": negative_prompt, "guidance_scale": scale}
    if source is not None:
        pictures, described = _fitting(source, pipe), checks.prompts(source_prompt, "source_prompt")
        if not len(pictures) == len(prompts) == len(described):
            raise ValueError(
                f"prompt and source_prompt must be one for each source, got {len(prompts)} and {len(described)} for "
                f"{len(pictures)}"
            )
    denoiser = pipe.denoiser(prompts, **conditions)
    if source is not None:
        start = denoiser.space.encode(pictures).float()  # bfloat16 would round AdamW's steps away
        rule = RULES[loss](denoiser, pipe.denoiser(described, **conditions), start, pipe.scheduler, **of_rule)
    else:
        side, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
        start = torch.randn(len(prompts), channels, side, side, generator=generator).to(pipe.device)
        rule = RULES[loss](denoiser, pipe.scheduler, **of_rule)
    return distil(rule, Canvas(start), denoiser.space, steps=steps, generator=generator, **options)


def split_options(loss: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options that are fields of a loss's rule, and the rest."""
    known = {field.name for field in dataclasses.fields(RULES[loss])}
    of_rule = {name: value for name, value in options.items() if name in known}
    return of_rule, {name: value for name, value in options.items() if name not in known}


def _fitting(source: ImageSource, pipe) -> Tensor:
    """The source's central square at the size the pipeline draws."""
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    return images.resize(images.crop_square(images.picture(source, "source")), side).to(pipe.device)
