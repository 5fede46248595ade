"""Commands of the second part: guided drawing, score distillation, and its grading."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm.auto import tqdm

from ex4lib import files, images, models
from ex4lib.cli.options import Network, Output, Seed, StyleLoss, check_output
from experiments import grading


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
        callback=None if preview is None else lambda step: images.save(step.image.float().cpu(), preview),
    )
    config = {"prompt": prompt, "style": style, "style_scale": style_scale, "style_loss": style_loss, "steps": steps}
    config |= {"guidance": dataclasses.asdict(settings), "guidance_scale": guidance_scale, "eta": eta, "seed": seed}
    config |= {"negative_prompt": negative_prompt, "model": model or models.source("stable-diffusion")}
    images.save(found.images.float().cpu(), output, metadata={"ex4lib": json.dumps(config)})
    seconds = sum(row["seconds"] for row in found.trace)
    lost = sum(row["skipped"] for row in found.trace)
    typer.echo(f"{output}: {len(found.trace)} guided steps in {seconds:.1f} s" + f", {lost} skipped" * bool(lost))


def distil(
    prompt: Annotated[str, typer.Option(help="What to draw, or what the source shows.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; the file is named after the prompt.")],
    edit_prompt: Annotated[str | None, typer.Option(help="What to make of the source (pds, dds).")] = None,
    src_img: Annotated[str | None, typer.Option(help="The source (pds, dds).")] = None,
    loss: Annotated[str, typer.Option(help="sds, vsd, pds or dds.")] = "sds",
    guidance_scale: Annotated[float | None, typer.Option(help="Default: the assignment's for this loss.")] = None,
    step: Annotated[int | None, typer.Option(help="Updates. Default: the assignment's for this loss.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="Default: 'low quality' in the full profile.")] = None,
    model: Annotated[str | None, typer.Option(help="Hub id or folder. Default by EX4_PROFILE.")] = None,
    every: Annotated[int, typer.Option(help="Also keep a picture every so many steps; 0 for none.")] = 0,
    seed: Seed = 0,
) -> None:
    """Optimise latents by a diffusion model's score: the KAIST assignment's main.py.

    Example: python -m ex4lib distil --prompt "A car on the road" --loss sds -o sds
    """
    from ex4lib.diffusion import pipelines
    from ex4lib.diffusion.distillation import check_request, distil_prompt

    target = output / grading.file_name(edit_prompt or prompt)
    check_output(target)
    check_request(loss, src_img is not None, edit_prompt is not None)
    source = None if src_img is None else images.load(src_img)
    if negative_prompt is None:
        negative_prompt = "low quality" if models.profile() == "full" else ""
    pipe = pipelines.stable_diffusion(model or models.source("distillation"))
    steps = distil_prompt(
        pipe,
        edit_prompt or prompt,
        loss=loss,
        source=source,
        source_prompt=prompt if edit_prompt else None,
        guidance_scale=guidance_scale,
        steps=step,
        negative_prompt=negative_prompt,
        seed=seed,
    )
    bar = None
    for each in steps:
        bar = bar or tqdm(total=each.total, unit="update")
        bar.update()
        if every and each.index % every == 0:
            images.save(each.image.cpu(), output / "steps" / f"{target.stem}-{each.index:04d}.png")
    bar.close()
    config = {"prompt": prompt, "edit_prompt": edit_prompt, "source": src_img, "loss": loss, "seed": seed}
    config |= {"guidance_scale": guidance_scale, "steps": each.total, "negative_prompt": negative_prompt}
    images.save(each.image.cpu(), target, metadata={"ex4lib": json.dumps(config)})
    typer.echo(f"{target}: {each.total} updates")


def evaluate(
    folder: Annotated[Path, typer.Argument(help="Pictures named after their prompts.")],
    judge: Annotated[str | None, typer.Option(help="Hub id or folder of a CLIPModel. Default by EX4_PROFILE.")] = None,
) -> None:
    """Score pictures against the prompts in their names; writes FOLDER/eval.json: the assignment's eval.py."""
    grading.pictures_in(folder)  # before the judge is loaded
    name = models.source("judge", judge)
    found = grading.evaluate_folder(folder, models.judge(judge), name=name)
    for prompt, score in found["scores"].items():
        typer.echo(f"{score:.4f}  {prompt}")
    graded = "no points: thresholds are CLIP ViT-B/32's" if found["points"] is None else f"{found['points']:g} points"
    typer.echo(f"{found['score']:.4f}  mean ({graded})")


def sweep(
    config: Annotated[Path, typer.Argument(help="YAML: prompts, styles, style_scales, style_losses, seeds, ...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the table goes (.csv).")],
) -> None:
    """Draw and judge a grid of prompts, paintings, scales and seeds; go on where an earlier run stopped.

    Example: python -m ex4lib sweep sweep.yaml -o sweep.csv; over several GPUs: accelerate launch -m ex4lib sweep ...
    """
    from experiments import sweeps

    check_output(output, (".csv",))
    rows = sweeps.sweep(sweeps.read(config))
    if sweeps.processes().is_main_process:
        images.write_bytes(output, sweeps.table(rows).encode())
        typer.echo(f"{output}: {len(rows)} pictures, also in {files.figures_folder() / 'runs'}")


def _fractions(text: str) -> tuple[float, float]:
    try:
        start, stop = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"window must be two fractions such as 0.2,1, got {text!r}") from None
    return start, stop
