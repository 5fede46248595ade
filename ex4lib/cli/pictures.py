"""Commands of the first part: style transfer of pictures and videos, inversion, textures."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm.auto import tqdm

from ex4lib import checks, files, images, models, tiles, transfer, video
from ex4lib.cli import batch, options
from ex4lib.cli.options import default, within
from ex4lib.optimisation import RATES, Result
from ex4lib.transfer import DEFAULT, invert_steps, stylize_steps, synthesize_steps
from ex4lib.video import stylize_frames

LAYERS = ",".join(DEFAULT.style_layers)


def stylize(
    pictures: Annotated[list[str], typer.Argument(help="Photographs: files, folders, patterns; last, the painting.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A picture file, or a folder for many.")],
    style: Annotated[list[str] | None, typer.Option(help="A painting; several are blended or share regions.")] = None,
    style_weights: options.StyleWeights = None,
    regions: options.Regions = None,
    style_masks: Annotated[str | None, typer.Option(help="Masks of the paintings, one per style, or none.")] = None,
    size: options.Size = default(stylize_steps, "size"),
    scales: Annotated[str | None, typer.Option(help="Longer sides from coarse to fine, such as 128,256.")] = None,
    layers: options.Layers = LAYERS,
    tile: Annotated[int, typer.Option(help="Tiles of this side for large pictures; 0: none.", callback=within(0))] = 0,
    style_loss: options.StyleLoss = DEFAULT.style_loss,
    style_weight: options.Weight = DEFAULT.style_weight,
    tv_weight: options.Smoothness = DEFAULT.tv_weight,
    evaluations: options.Evaluations = default(stylize_steps, "evaluations"),
    seconds: options.Seconds = None,
    stroke_scale: options.StrokeScale = default(stylize_steps, "stroke_scale"),
    keep_colour: Annotated[str, typer.Option(help="no, match or luminance.")] = default(stylize_steps, "keep_colour"),
    keep_alpha: Annotated[bool, typer.Option("--keep-alpha", help="Keep the photograph's transparency.")] = False,
    start: options.Start = default(stylize_steps, "start"),
    optimiser: options.Optimiser = default(stylize_steps, "optimiser"),
    network: options.Network = None,
    precision: options.Precision = "auto",
    seed: options.Seed = 0,
    preview: options.Preview = None,
    quality: options.Quality = 95,
    ending: Annotated[str, typer.Option(help="Format of the files in a folder: png, jpg, webp or tif.")] = "png",
) -> None:
    """Paint photographs in the style of a painting; photographs that are finished are not painted again.

    Example: python -m ex4lib stylize chelsea hokusai-great-wave -o cat.png
    """
    if not style and len(pictures) < 2:
        raise ValueError("a photograph and a painting are needed, got one picture")
    sources, styles = (pictures, style) if style else (pictures[:-1], pictures[-1:])
    photographs = batch.expand(sources)
    paths = batch.targets(photographs, output, ending)
    if keep_alpha and any(path.suffix.lower() in (".jpg", ".jpeg") for path in paths):
        raise ValueError("--keep-alpha needs a .png, .webp or .tif output: JPEG has no transparency")
    recipe = _recipe(layers, tile, style_loss=style_loss, style_weight=style_weight, tv_weight=tv_weight)
    checks.choice(keep_colour, "keep_colour", transfer.COLOURS)
    arguments = {"recipe": recipe, "size": size, "scales": options.numbers(scales, "scales", int)}
    arguments |= {"evaluations": evaluations, "seconds": seconds, "stroke_scale": stroke_scale, "optimiser": optimiser}
    arguments |= {"keep_colour": keep_colour, "style_weights": options.numbers(style_weights, "style_weights")}
    checks.weights(arguments["style_weights"], len(styles), "style_weights")
    paintings = [images.load(source) for source in styles]
    masks = {"regions": options.region_masks(regions, "regions", len(styles))}
    masks["style_masks"] = options.region_masks(style_masks, "style_masks", len(styles))
    settings = {"style": styles, "style_sha256": [files.picture_sha256(painting) for painting in paintings]}
    for name, given in masks.items():
        settings[name] = given and [mask if mask is None else files.picture_sha256(mask) for mask in given]
    settings |= arguments | {"recipe": dataclasses.asdict(recipe)}
    paint = functools.partial(transfer.stylize, style=paintings, **arguments, **masks)
    shared = (start, network, precision, seed, preview)
    inputs = [*styles, *(options.parts(regions, "regions") or []), *(options.parts(style_masks, "style_masks") or [])]
    _run(photographs, paths, settings, paint, shared, inputs=inputs, keep_alpha=keep_alpha, quality=quality)


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
    weights = {"content_weight": content_weight, "style_weight": style_weight, "tv_weight": tv_weight}
    settings = {"recipe": dataclasses.replace(DEFAULT, style_loss=style_loss, **weights), "size": size}
    settings |= {"temporal_weight": temporal_weight, "first_evaluations": first_evaluations}
    settings |= {"evaluations": evaluations, "start": start if start in transfer.STARTS else images.load(start)}
    paintings, (frames, rate, count) = [images.load(name) for name in style], video.opened(source)
    vgg, generator = models.features(network, precision=precision), torch.Generator().manual_seed(seed)
    painted = stylize_frames(vgg, frames, paintings, generator=generator, **settings)
    bar = tqdm(painted, total=count or None, unit="frame", leave=False)
    try:
        video.save(bar, output, rate)
    except (KeyboardInterrupt, *batch.FAILURES) as error:
        if not bar.n:
            raise
        kept = f"the first {bar.n} frames are in {output}"
        if not isinstance(error, KeyboardInterrupt):
            raise ValueError(f"{batch.reason(error)}; {kept}") from error
        typer.echo(f"ex4lib: interrupted; {kept}", err=True)
        sys.exit(130)
    typer.echo(f"{output}: {bar.n} frames in {bar.format_dict['elapsed']:.1f} s")


def invert(
    target: Annotated[str, typer.Argument(help="The picture whose features are inverted.")],
    output: options.Output,
    layer: Annotated[str, typer.Option(help="Such as relu3_1, conv_5 or 21.")] = "relu3_1",
    size: options.Size = default(stylize_steps, "size"),
    tv_weight: options.Smoothness = default(invert_steps, "tv_weight"),
    evaluations: options.Evaluations = default(invert_steps, "evaluations"),
    seconds: options.Seconds = None,
    start: options.Start = default(invert_steps, "start"),
    optimiser: options.Optimiser = default(invert_steps, "optimiser"),
    network: options.Network = None,
    precision: options.Precision = "float32",
    seed: options.Seed = 0,
    preview: options.Preview = None,
    quality: options.Quality = 95,
) -> None:
    """Show what one layer knows of a picture: an image found from its features alone.

    Example: python -m ex4lib invert chelsea --layer relu4_1 -o inverted.png
    """
    arguments = {"tv_weight": tv_weight, "evaluations": evaluations, "seconds": seconds, "optimiser": optimiser}
    (name,) = checks.names([layer], "layer")
    paint = functools.partial(transfer.invert, layer=name, **arguments)
    settings, shared = {"layer": layer, "size": size, **arguments}, (start, network, precision, seed, preview)
    _run([target], [output], settings, paint, shared, size=size, quality=quality)


def texture(
    style: Annotated[str, typer.Argument(help="The picture whose texture is made anew.")],
    output: options.Output,
    layers: options.Layers = LAYERS,
    size: options.Size = default(stylize_steps, "size"),
    style_loss: options.StyleLoss = default(synthesize_steps, "style_loss"),
    tv_weight: options.Smoothness = default(synthesize_steps, "tv_weight"),
    evaluations: options.Evaluations = default(synthesize_steps, "evaluations"),
    seconds: options.Seconds = None,
    start: options.Start = default(synthesize_steps, "start"),
    optimiser: options.Optimiser = default(synthesize_steps, "optimiser"),
    network: options.Network = None,
    precision: options.Precision = "auto",
    seed: options.Seed = 0,
    preview: options.Preview = None,
    quality: options.Quality = 95,
) -> None:
    """Make a new texture with the style statistics of a picture.

    Example: python -m ex4lib texture van-gogh-village-street-in-auvers --layers relu1_1,relu2_1 -o texture.png
    """
    arguments = {"size": size, "style_loss": style_loss, "tv_weight": tv_weight}
    arguments |= {"evaluations": evaluations, "seconds": seconds, "optimiser": optimiser}
    paint = functools.partial(transfer.synthesize, layers=checks.names(layers, "layers"), **arguments)
    settings, shared = {"layers": layers, **arguments}, (start, network, precision, seed, preview)
    _run([style], [output], settings, paint, shared, size=size, quality=quality)


def _recipe(layers: str, tile: int, **weights) -> transfer.Recipe:
    """The default recipe with other weights, layers and, above 0, tiles."""
    recipe = dataclasses.replace(DEFAULT, **weights)
    if layers != LAYERS:
        recipe = dataclasses.replace(recipe, style_layers=tuple(checks.names(layers, "layers")), layer_weights=None)
    return tiles.TiledRecipe(**vars(recipe), tile=tile) if tile else recipe


def _run(
    sources: Sequence[str],
    paths: Sequence[Path],
    settings: dict,
    paint: Callable[..., Result],
    shared: tuple,
    *,
    inputs: Sequence[str] = (),
    **saving,
) -> None:
    """Apply ``paint(network, picture, ...)`` to every source; ``shared`` holds the options of all commands here."""
    start, network, precision, seed, preview = shared
    begin = start if start in transfer.STARTS else images.load(start)
    checks.choice(settings["optimiser"], "optimiser", RATES)
    for path in paths:
        options.check_output(path, inputs=[*sources, *inputs, start])
    callback = options.preview_callback(preview, inputs=[*sources, *inputs, start])
    if len(sources) == 1:
        images.load(sources[0], 16)  # a picture that cannot be read is noticed before the network is loaded
    vgg = models.features(network, precision=precision)
    settings |= {"seed": seed, "network": vgg.name, "weights": vgg.sha256, "precision": precision, "start": start}

    def one(picture: images.Tensor) -> Result:
        generator = torch.Generator().manual_seed(seed)
        progress = len(sources) == 1
        return paint(vgg, picture, start=begin, generator=generator, progress=progress, callback=callback)

    batch.run(sources, paths, settings, one, **saving)
