"""``python -m experiments``: score distillation with the assignment's hand-in, its grading, and sweeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from tqdm.auto import tqdm

from ex4lib import cli, files, images, models
from ex4lib.cli.options import Seed, check_output, within
from experiments import grading
from experiments.judge import Judge


def distil(
    prompt: Annotated[str, typer.Option(help="What to draw, or what the source shows.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; the file is named after the prompt.")],
    edit_prompt: Annotated[str | None, typer.Option(help="What to make of the source (pds, dds).")] = None,
    src_img: Annotated[str | None, typer.Option(help="The source (pds, dds).")] = None,
    loss: Annotated[str, typer.Option(help="sds, vsd, pds or dds.")] = "sds",
    guidance_scale: Annotated[
        float | None, typer.Option(help="Default: the assignment's for this loss.", callback=within())
    ] = None,
    step: Annotated[
        int | None, typer.Option(help="Updates. Default: the assignment's for this loss.", callback=within(1))
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="Default: 'low quality' in the full profile.")] = None,
    model: Annotated[str | None, typer.Option(help="Hub id or folder. Default by EX4_PROFILE.")] = None,
    every: Annotated[
        int, typer.Option(help="Also keep a picture every so many steps; 0 for none.", callback=within(0))
    ] = 0,
    seed: Seed = 0,
) -> None:
    """Optimise latents by a diffusion model's score: the KAIST assignment's main.py.

    Example: python -m experiments distil --prompt "A car on the road" --loss sds -o sds
    """
    from ex4lib.diffusion import pipelines
    from experiments.assignment import check_request, distil_prompt

    target = output / grading.file_name(edit_prompt or prompt)
    check_output(target, inputs=[src_img])
    if every:
        check_output(_kept(target, step or 0))
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
    for update in steps:
        bar = bar or tqdm(total=update.total, unit="update")
        bar.update()
        if every and update.index % every == 0:
            images.save(update.image.cpu(), _kept(target, update.index))
    bar.close()
    config = {"prompt": prompt, "edit_prompt": edit_prompt, "source": src_img, "loss": loss, "seed": seed}
    config |= {"guidance_scale": guidance_scale, "steps": update.total, "negative_prompt": negative_prompt}
    images.save(update.image.cpu(), target, metadata={"ex4lib": json.dumps(config)})
    typer.echo(f"{target}: {update.total} updates")


def _kept(target: Path, index: int) -> Path:
    """Where the picture of an update is kept."""
    return target.parent / "steps" / f"{target.stem}-{index:04d}.png"


def evaluate(
    folder: Annotated[Path, typer.Argument(help="Pictures named after their prompts.")],
    judge: Annotated[str | None, typer.Option(help="Hub id or folder of a CLIPModel. Default by EX4_PROFILE.")] = None,
) -> None:
    """Score pictures against the prompts in their names; writes FOLDER/eval.json: the assignment's eval.py."""
    grading.pictures_in(folder)  # before the judge is loaded
    check_output(folder / grading.SCORES, (".json",))
    name = models.source("judge", judge)
    found = grading.evaluate_folder(folder, Judge.load(judge), name=name)
    for prompt, score in found["scores"].items():
        typer.echo(f"{score:.4f}  {prompt}")
    graded = "no points: thresholds are CLIP ViT-B/32's" if found["points"] is None else f"{found['points']:g} points"
    typer.echo(f"{found['score']:.4f}  mean ({graded})")


def sweep(
    config: Annotated[Path, typer.Argument(help="YAML: prompts, styles, style_scales, style_losses, seeds, ...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the table goes (.csv).")],
) -> None:
    """Draw and judge a grid of prompts, paintings, scales and seeds; go on where an earlier run stopped.

    Example: python -m experiments sweep sweep.yaml -o sweep.csv
    Over several GPUs: accelerate launch -m experiments sweep sweep.yaml -o sweep.csv
    """
    from experiments import sweeps

    check_output(output, (".csv",), inputs=[str(config)])
    check_output(files.figures_folder() / "runs" / "drawn.jsonl", (".jsonl",))
    rows = sweeps.sweep(sweeps.read(config))
    if sweeps.processes().is_main_process:
        images.write_bytes(output, sweeps.table(rows).encode())
        typer.echo(f"{output}: {len(rows)} pictures, also in {files.figures_folder() / 'runs'}")


app = typer.Typer(
    help="Experiments from a shell.", no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
)
for command in (distil, evaluate, sweep):
    app.command()(cli.interruptible(command))


def main() -> None:
    """Run the command line; a mistake in its arguments is one sentence and exit code 1."""
    cli.main(app, "experiments")


if __name__ == "__main__":
    main()
