"""Commands of the first part: style transfer, inversion, textures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

from ex4lib import images, models, transfer
from ex4lib.cli.options import (
    Evaluations,
    Network,
    Optimiser,
    Output,
    Precision,
    Seed,
    Start,
    StyleLoss,
    check_output,
    default,
)


def stylize(
    content: Annotated[str, typer.Argument(help="The photograph.")],
    style: Annotated[list[str], typer.Argument(help="One painting, or several to blend.")],
    output: Output,
    size: Annotated[int, typer.Option(help="Longer side in pixels.")] = default(transfer.stylize_steps, "size"),
    style_loss: StyleLoss = transfer.DEFAULT.style_loss,
    style_weight: Annotated[float, typer.Option(help="1 is balanced; 0.2 is faint.")] = transfer.DEFAULT.style_weight,
    tv_weight: Annotated[float, typer.Option(help="Smoothness; 0 for none.")] = transfer.DEFAULT.tv_weight,
    evaluations: Evaluations = default(transfer.stylize_steps, "evaluations"),
    stroke_scale: Annotated[float, typer.Option(help="Larger gives larger strokes.")] = default(
        transfer.stylize_steps, "stroke_scale"
    ),
    keep_colour: Annotated[str, typer.Option(help="no, match or luminance.")] = default(
        transfer.stylize_steps, "keep_colour"
    ),
    start: Start = default(transfer.stylize_steps, "start"),
    optimiser: Optimiser = default(transfer.stylize_steps, "optimiser"),
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
        "stroke_scale": stroke_scale,
        "keep_colour": keep_colour,
        "optimiser": optimiser,
    }
    pictures = [images.load(name) for name in (content, *style)]
    _run(
        output,
        {"content": content, "style": style, "seed": seed, **options, "recipe": dataclasses.asdict(recipe)},
        lambda vgg, **shared: transfer.stylize(vgg, pictures[0], pictures[1:], **options, **shared),
        start,
        network,
        precision,
        seed,
    )


def invert(
    target: Annotated[str, typer.Argument(help="The picture whose features are inverted.")],
    output: Output,
    layer: Annotated[str, typer.Option(help="Such as relu3_1, conv_5 or pool4.")] = "relu3_1",
    size: Annotated[int, typer.Option(help="Longer side in pixels.")] = 256,
    tv_weight: Annotated[float, typer.Option(help="Smoothness; 0 for none.")] = default(
        transfer.invert_steps, "tv_weight"
    ),
    evaluations: Evaluations = default(transfer.invert_steps, "evaluations"),
    start: Start = default(transfer.invert_steps, "start"),
    optimiser: Optimiser = default(transfer.invert_steps, "optimiser"),
    network: Network = None,
    precision: Precision = "float32",
    seed: Seed = 0,
) -> None:
    """Show what one layer knows of a picture: an image found from its features alone.

    Example: python -m ex4lib invert chelsea --layer relu4_1 -o inverted.png
    """
    picture = images.load(target, size)
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


def texture(
    style: Annotated[str, typer.Argument(help="The picture whose texture is made anew.")],
    output: Output,
    layers: Annotated[str, typer.Option(help="Layers, separated by commas.")] = ",".join(transfer.DEFAULT.style_layers),
    size: Annotated[int, typer.Option(help="Side of the square texture in pixels.")] = 256,
    style_loss: StyleLoss = default(transfer.synthesize_steps, "style_loss"),
    tv_weight: Annotated[float, typer.Option(help="Smoothness; 0 for none.")] = default(
        transfer.synthesize_steps, "tv_weight"
    ),
    evaluations: Evaluations = default(transfer.synthesize_steps, "evaluations"),
    start: Start = default(transfer.synthesize_steps, "start"),
    optimiser: Optimiser = default(transfer.synthesize_steps, "optimiser"),
    network: Network = None,
    precision: Precision = "auto",
    seed: Seed = 0,
) -> None:
    """Make a new texture with the style statistics of a picture.

    Example: python -m ex4lib texture van-gogh-village-street-in-auvers --layers relu1_1,relu2_1 -o texture.png
    """
    picture = images.load(style, size)
    options = {"size": size, "style_loss": style_loss, "tv_weight": tv_weight, "evaluations": evaluations}
    options["optimiser"] = optimiser
    _run(
        output,
        {"style": style, "layers": layers, "seed": seed, **options},
        lambda vgg, **shared: transfer.synthesize(vgg, picture, layers, **options, **shared),
        start,
        network,
        precision,
        seed,
    )


def _run(output: Path, settings: dict, recipe: Callable, start: str, network, precision, seed) -> None:
    check_output(output)
    begin = start if start in ("content", "noise", "grey", "statistics") else images.load(start)
    vgg = models.features(network, precision=precision)
    result = recipe(vgg, start=begin, generator=torch.Generator().manual_seed(seed), progress=True)
    settings |= {"network": vgg.name, "weights": vgg.sha256, "precision": precision, "start": start}
    images.save(result.image, output, metadata={"ex4lib": json.dumps(settings, default=str)})
    for note in result.notes:
        typer.echo(note, err=True)
    typer.echo(f"{output}: {result.evaluations} evaluations in {result.seconds:.1f} s, loss {result.loss:.4g}")
