"""The command that paints videos."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm.auto import tqdm

from ex4lib import checks, images, models, transfer, video
from ex4lib.cli import batch, options
from ex4lib.cli.options import default
from ex4lib.transfer import DEFAULT, stylize_steps
from ex4lib.video import stylize_frames


def stylize_video(
    source: Annotated[str, typer.Argument(metavar="VIDEO", help="A video file.")],
    style: Annotated[list[str], typer.Argument(help="One painting, or several to blend.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .mp4 file that is written, without sound.")],
    size: options.Size = default(stylize_frames, "size"),
    style_loss: options.StyleLoss = DEFAULT.style_loss,
    content_weight: options.Weight = DEFAULT.content_weight,
    style_weight: options.Weight = DEFAULT.style_weight,
    tv_weight: options.Smoothness = DEFAULT.tv_weight,
    temporal_weight: options.Smoothness = default(stylize_frames, "temporal_weight"),
    first_evaluations: options.Evaluations = default(stylize_frames, "first_evaluations"),
    evaluations: options.Evaluations = default(stylize_frames, "evaluations"),
    keep_colour: Annotated[str, typer.Option(help="no, match or luminance.")] = default(stylize_steps, "keep_colour"),
    start: options.Start = default(stylize_steps, "start"),
    network: options.Network = None,
    precision: options.Precision = "auto",
    seed: options.Seed = 0,
) -> None:
    """Paint a video in the style of a painting, each frame from the one before it, so that it flickers less.

    Example: python -m ex4lib stylize-video holiday.mp4 hokusai-great-wave -o painted.mp4
    """
    options.check_output(output, (".mp4",), inputs=[source, *style, start])
    checks.choice(style_loss, "style_loss", options.STATISTICS)
    checks.choice(keep_colour, "keep_colour", transfer.COLOURS)
    weights = {"content_weight": content_weight, "style_weight": style_weight, "tv_weight": tv_weight}
    settings = {"recipe": dataclasses.replace(DEFAULT, style_loss=style_loss, **weights), "size": size}
    settings |= {"temporal_weight": temporal_weight, "keep_colour": keep_colour, "first_evaluations": first_evaluations}
    settings |= {"evaluations": evaluations, "start": start if start in transfer.STARTS else images.load(start)}
    paintings, film = [images.load(name) for name in style], video.Video(source)
    vgg, generator = models.features(network, precision=precision), torch.Generator().manual_seed(seed)
    painted = stylize_frames(vgg, film, paintings, generator=generator, **settings)
    bar = tqdm(painted, total=film.count or None, unit="frame", leave=False)
    try:
        video.save(bar, output, film.rate)
    except (KeyboardInterrupt, *batch.FAILURES) as error:
        if not bar.n:
            raise
        kept = f"the first {bar.n} frames are in {output}"
        if not isinstance(error, KeyboardInterrupt):
            raise ValueError(f"{batch.reason(error)}; {kept}") from error
        typer.echo(f"ex4lib: interrupted; {kept}", err=True)
        sys.exit(130)
    typer.echo(f"{output}: {bar.n} frames in {bar.format_dict['elapsed']:.1f} s")
