"""The command that draws a prompt in the style of a painting."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import torch
import typer

from ex4lib import images, models
from ex4lib.cli.options import Network, Output, Seed, StyleLoss, check_output


def guide(
    prompt: Annotated[str, typer.Argument(help="What to draw; the style comes from the painting.")],
    style: Annotated[list[str], typer.Argument(help="One painting, or several to blend.")],
    output: Output,
    style_scale: Annotated[float | None, typer.Option(help="Strength; 0 is unguided. Default: the preset's.")] = None,
    style_loss: StyleLoss = "gram",
    preset: Annotated[str, typer.Option(help="full, cheap, algorithm-1, freedom or mpgd.")] = "full",
    window: Annotated[str | None, typer.Option(help="Fractions of the steps, such as 0.2,1.")] = None,
    ramp: Annotated[str | None, typer.Option(help="constant, rising, falling or late.")] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 30,
    guidance_scale: Annotated[float | None, typer.Option(help="Of the prompt. Default by EX4_PROFILE.")] = None,
    negative_prompt: Annotated[str, typer.Option(help="What not to draw.")] = "",
    eta: Annotated[float, typer.Option(help="Noise of DDIM's steps: 0 none, 1 as DDPM.")] = 0.0,
    model: Annotated[str | None, typer.Option(help="Hub id or folder. Default by EX4_PROFILE.")] = None,
    preview: Annotated[Path | None, typer.Option(help="Write the clean estimate here while drawing.")] = None,
    network: Network = None,
    seed: Seed = 0,
) -> None:
    """Draw a prompt in the style of a painting, by style-guided Stable Diffusion.

    Example: python -m ex4lib guide "a cat" hokusai-great-wave -o cat.png
    """
    from ex4lib.diffusion import pipelines  # diffusers takes seconds to import: the other commands do without
    from ex4lib.diffusion.guidance import PRESETS

    for path in (output, *([preview] if preview else [])):
        check_output(path)
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    changes = {"ramp": ramp, "window": None if window is None else _fractions(window)}
    settings = dataclasses.replace(PRESETS[preset], **{key: value for key, value in changes.items() if value})
    pictures = [images.load(name) for name in style]
    guidance_scale = models.guidance_scale() if guidance_scale is None else guidance_scale
    pipe = pipelines.stable_diffusion(model)
    found = pipe(
        prompt,
        style_image=pictures,
        style_scale=style_scale,
        style_loss=style_loss,
        guidance=settings,
        features=network,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        negative_prompt=negative_prompt,
        eta=eta,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
        on_step=None if preview is None else lambda step: images.save(step.image.float().cpu(), preview),
    )
    config = {"prompt": prompt, "style": style, "style_scale": style_scale, "style_loss": style_loss, "steps": steps}
    config |= {"guidance": dataclasses.asdict(settings), "guidance_scale": guidance_scale, "eta": eta, "seed": seed}
    config |= {"negative_prompt": negative_prompt, "model": model or models.source("stable-diffusion")}
    images.save(found.images.float().cpu(), output, metadata={"ex4lib": json.dumps(config)})
    seconds = sum(row["seconds"] for row in found.trace)
    lost = sum(row["skipped"] for row in found.trace)
    typer.echo(f"{output}: {len(found.trace)} guided steps in {seconds:.1f} s" + f", {lost} skipped" * bool(lost))


def _fractions(text: str) -> tuple[float, float]:
    try:
        start, stop = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"window must be two fractions such as 0.2,1, got {text!r}") from None
    return start, stop
