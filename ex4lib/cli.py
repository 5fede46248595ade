"""``python -m ex4lib``: style transfer, inversion, textures and guided diffusion from a shell."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ex4lib import images, models, transfer
from ex4lib.statistics import STATISTICS

app = typer.Typer(
    help="Style as an optimisation target. Pictures are given by path, URL or the name of a shipped one "
    f"({', '.join(images.names())}).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _default(function: Callable, name: str) -> Any:
    """The library's own default, so that the two cannot drift apart."""
    return inspect.signature(function).parameters[name].default


Output = Annotated[Path, typer.Option("--output", "-o", help="Where the picture goes (.png keeps the settings).")]
Evaluations = Annotated[int, typer.Option(help="Forward and backward passes; more is finer and slower.")]
Optimiser = Annotated[str, typer.Option(help="lbfgs or adam.")]
Start = Annotated[str, typer.Option(help="content, noise, grey, statistics, or a picture.")]
Seed = Annotated[int, typer.Option(help="Seed of the noise.")]
Network = Annotated[str | None, typer.Option(help="vgg19, vgg16 or vgg16-hed; default by EX4_PROFILE.")]
Precision = Annotated[str, typer.Option(help="float32, bfloat16, or auto: bfloat16 where it is fast.")]
StyleLoss = Annotated[str, typer.Option(help=f"One of {', '.join(STATISTICS)}.")]


@app.command()
def stylize(
    content: Annotated[str, typer.Argument(help="The photograph.")],
    style: Annotated[list[str], typer.Argument(help="One painting, or several to blend.")],
    output: Output,
    size: Annotated[int, typer.Option(help="Longer side in pixels.")] = _default(transfer.stylize, "size"),
    style_loss: StyleLoss = transfer.DEFAULT.style_loss,
    style_weight: Annotated[float, typer.Option(help="1 is balanced; 0.2 is faint.")] = transfer.DEFAULT.style_weight,
    tv_weight: Annotated[float, typer.Option(help="Smoothness; 0 for none.")] = transfer.DEFAULT.tv_weight,
    evaluations: Evaluations = _default(transfer.stylize, "evaluations"),
    style_scale: Annotated[float, typer.Option(help="Larger gives larger strokes.")] = _default(
        transfer.stylize, "style_scale"
    ),
    keep_colour: Annotated[str, typer.Option(help="no, match or luminance.")] = _default(
        transfer.stylize, "keep_colour"
    ),
    start: Start = _default(transfer.stylize, "start"),
    optimiser: Optimiser = _default(transfer.stylize, "optimiser"),
    network: Network = None,
    precision: Precision = "auto",
    seed: Seed = 0,
) -> None:
    """Paint a photograph in the style of a painting.

    Example: python -m ex4lib stylize chelsea hokusai-great-wave -o cat.png
    """
    recipe = dataclasses.replace(
        transfer.DEFAULT, style_loss=style_loss, style_weight=style_weight, tv_weight=tv_weight
    )
    options = {
        "recipe": recipe,
        "size": size,
        "evaluations": evaluations,
        "style_scale": style_scale,
        "keep_colour": keep_colour,
        "optimiser": optimiser,
    }
    pictures = [_read(name) for name in (content, *style)]
    _run(
        output,
        {"content": content, "style": style, "seed": seed, **options, "recipe": dataclasses.asdict(recipe)},
        lambda vgg, **shared: transfer.stylize(vgg, pictures[0], pictures[1:], **options, **shared),
        start,
        network,
        precision,
        seed,
    )


@app.command()
def invert(
    target: Annotated[str, typer.Argument(help="The picture whose features are inverted.")],
    output: Output,
    layer: Annotated[str, typer.Option(help="Such as relu3_1, conv_5 or pool4.")] = "relu3_1",
    size: Annotated[int, typer.Option(help="Longer side in pixels.")] = 256,
    tv_weight: Annotated[float, typer.Option(help="Smoothness; 0 for none.")] = _default(transfer.invert, "tv_weight"),
    evaluations: Evaluations = _default(transfer.invert, "evaluations"),
    start: Start = _default(transfer.invert, "start"),
    optimiser: Optimiser = _default(transfer.invert, "optimiser"),
    network: Network = None,
    precision: Precision = "float32",
    seed: Seed = 0,
) -> None:
    """Show what one layer knows of a picture: an image found from its features alone.

    Example: python -m ex4lib invert chelsea --layer relu4_1 -o inverted.png
    """
    picture = _read(target, size)
    options = {"tv_weight": tv_weight, "evaluations": evaluations, "optimiser": optimiser}
    _run(
        output,
        {"target": target, "layer": layer, "size": size, "seed": seed, **options},
        lambda vgg, **shared: transfer.invert(vgg, picture, layer, **options, **shared),
        start,
        network,
        precision,
        seed,
    )


@app.command()
def texture(
    style: Annotated[str, typer.Argument(help="The picture whose texture is made anew.")],
    output: Output,
    layers: Annotated[str, typer.Option(help="Layers, separated by commas.")] = ",".join(transfer.DEFAULT.style_layers),
    size: Annotated[int, typer.Option(help="Side of the square texture in pixels.")] = 256,
    style_loss: StyleLoss = _default(transfer.synthesize, "style_loss"),
    tv_weight: Annotated[float, typer.Option(help="Smoothness; 0 for none.")] = _default(
        transfer.synthesize, "tv_weight"
    ),
    evaluations: Evaluations = _default(transfer.synthesize, "evaluations"),
    start: Start = _default(transfer.synthesize, "start"),
    optimiser: Optimiser = _default(transfer.synthesize, "optimiser"),
    network: Network = None,
    precision: Precision = "auto",
    seed: Seed = 0,
) -> None:
    """Make a new texture with the style statistics of a picture.

    Example: python -m ex4lib texture van-gogh-village-street-in-auvers --layers relu1_1,relu2_1 -o texture.png
    """
    picture = _read(style, size)
    options = {"size": size, "style_loss": style_loss, "tv_weight": tv_weight, "evaluations": evaluations}
    options["optimiser"] = optimiser
    _run(
        output,
        {"style": style, "layers": layers, "seed": seed, **options},
        lambda vgg, **shared: transfer.synthesize(vgg, picture, layers.split(","), **options, **shared),
        start,
        network,
        precision,
        seed,
    )


@app.command()
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
        _check_output(path)
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    changes = {"ramp": ramp, "window": None if window is None else _fractions(window)}
    settings = dataclasses.replace(PRESETS[preset], **{key: value for key, value in changes.items() if value})
    pictures = [_read(name) for name in style]
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


def main() -> None:
    """Run the command line; a mistake in its arguments is one sentence and exit code 1."""
    try:
        app()
    except (ValueError, OSError) as error:
        typer.echo(f"ex4lib: {error}", err=True)
        sys.exit(1)


def _run(output: Path, settings: dict, recipe: Callable, start: str, network, precision, seed) -> None:
    _check_output(output)
    begin = start if start in ("content", "noise", "grey", "statistics") else _read(start)
    vgg = models.features(network, precision=precision)
    result = recipe(vgg, start=begin, generator=torch.Generator().manual_seed(seed), progress=True)
    settings |= {"network": vgg.name, "weights": vgg.sha256, "precision": precision, "start": start}
    images.save(result.image, output, metadata={"ex4lib": json.dumps(settings, default=str)})
    for note in result.notes:
        typer.echo(note, err=True)
    typer.echo(f"{output}: {result.evaluations} evaluations in {result.seconds:.1f} s, loss {min(result.losses):.4g}")


def _fractions(text: str) -> tuple[float, float]:
    try:
        start, stop = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"window must be two fractions such as 0.2,1, got {text!r}") from None
    return start, stop


def _check_output(output: Path) -> None:
    """Refuse, before any work, an output that could not be written after it."""
    if output.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"):
        raise ValueError(f"the output must end in .png, .jpg, .webp or .tif, got {output.name!r}")
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    if output.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"the output {str(output)!r} cannot be written there")


def _read(name: str, size: int | None = None) -> torch.Tensor:
    return images.load(name, size)
