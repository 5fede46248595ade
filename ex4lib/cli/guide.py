"""Drawing with style guidance: text to image, image to image and inpainting, with any scheduler that can be guided."""

import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

from ex4lib import checks, images, models
from ex4lib.cli import options
from ex4lib.cli.options import within
from ex4lib.statistics import STATISTICS

#: Names of `guidance.PRESETS` that pipelines can follow, without importing it: it takes diffusers, and seconds.
PRESETS = ("default", "in-pixels", "full", "cheap", "algorithm-1", "mpgd")
#: Arguments of `guide` that a picture's metadata hold as they were given.
RECORDED = ("prompt", "style", "style_loss", "style_weights", "regions", "scheduler", "image", "mask", "strength")


def guide(
    prompt: Annotated[str, typer.Argument(help='What to draw in the painting\'s style; "" leaves it open.')],
    style: Annotated[list[str], typer.Argument(help="One painting, or several to blend.")],
    output: options.Output,
    style_scale: options.StyleScale = None,
    style_weights: options.StyleWeights = None,
    regions: options.Regions = None,
    style_loss: options.StyleLoss = "gram",
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = "default",
    window: Annotated[str | None, typer.Option(help="Fractions of the steps, such as 0.2,1.")] = None,
    ramp: Annotated[str | None, typer.Option(help="constant, rising, falling or late.")] = None,
    palette: Annotated[float | None, typer.Option(help="How fast its colours come.", callback=within(0))] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.", callback=within(1, 1000))] = 30,
    size: Annotated[str | None, typer.Option(help="Side, or WIDTHxHEIGHT, in pixels. Default: the model's.")] = None,
    count: Annotated[int, typer.Option(help="Pictures to draw, with seeds that count up.", callback=within(1, 64))] = 1,
    scheduler: Annotated[str | None, typer.Option(help="Class of diffusers, such as DDIM or EulerDiscrete.")] = None,
    guidance_scale: options.GuidanceScale = None,
    negative_prompt: Annotated[str, typer.Option(help="What not to draw.")] = "",
    image: Annotated[str | None, typer.Option(help="A picture to start from (image to image).")] = None,
    strength: options.Strength = 0.6,
    mask: Annotated[str | None, typer.Option(help="The part of the picture that is drawn anew (inpainting).")] = None,
    eta: Annotated[float, typer.Option(help="Noise of DDIM's steps: 0 none, 1 as DDPM.", callback=within(0, 1))] = 0.0,
    model: Annotated[str | None, typer.Option(help="Hub id or folder. Default by EX4_PROFILE.")] = None,
    network: options.Network = None,
    seed: options.Seed = 0,
    preview: options.Preview = None,
    quality: options.Quality = 95,
) -> None:
    """Draw a prompt in the style of a painting with a diffusion model.

    Example: python -m ex4lib guide "a cat" hokusai-great-wave -o cat.png
    """
    from ex4lib.diffusion import guidance, schedulers  # diffusers takes seconds to import

    given = locals()
    checks.prompts(prompt)
    inputs = [*style, *(options.parts(regions, "regions") or []), image, mask]
    paths = _paths(output, count, inputs)
    call = {"num_inference_steps": steps, "negative_prompt": negative_prompt, "num_images_per_prompt": count}
    call |= {"guidance_scale": models.guidance_scale() if guidance_scale is None else guidance_scale}
    call |= {"eta": eta} if eta else {}
    checks.choice(preset, "preset", PRESETS)
    checks.integer(seed, "seed", high=2**64 - count)
    if scheduler is not None:
        scheduler = checks.choice(scheduler.removesuffix("Scheduler") + "Scheduler", "scheduler", schedulers.SUPPORTED)
    checks.choice(style_loss, "style_loss", STATISTICS)
    shares = options.numbers(style_weights, "style_weights")
    masks = options.region_masks(regions, "regions", len(style))
    checks.weights(shares, len(style), "style_weights")
    interval = window and checks.interval(options.numbers(window, "window"), "window")
    settings = guidance.settings(preset, style_scale=style_scale, ramp=ramp, palette=palette, window=interval)
    paintings = [images.load(name) for name in style]
    call |= _inputs(image, mask, strength, _size(size))
    arguments = {"style_weights": shares, "regions": masks, "style_loss": style_loss}
    arguments |= {"guidance": settings, "features": models.features(network)}
    pipe = _pipeline(model, image, mask, scheduler, call)
    call |= {"prompt": prompt, "generator": [torch.Generator().manual_seed(seed + i) for i in range(count)]}
    callback = options.preview_callback(preview, inputs=inputs)
    drawn, trace, interrupted = _drawn(pipe, call, paintings, arguments, callback)
    record = {name: given[name] for name in RECORDED} | {"model": model or models.source("stable-diffusion")}
    record |= {"guidance": dataclasses.asdict(settings), "interrupted": interrupted, "seed": seed}
    record |= {name: value for name, value in call.items() if name not in ("image", "mask_image", "generator")}
    _write(drawn, paths, trace, record, quality)


def _paths(output: Path, count: int, inputs: list) -> list[Path]:
    """A file for each picture, none of which is an input; several are numbered."""
    suffixes = [f"-{number}" for number in range(1, count + 1)] if count > 1 else [""]
    paths = [output.with_name(f"{output.stem}{suffix}{output.suffix}") for suffix in suffixes]
    for path in paths:
        options.check_output(path, inputs=inputs)
    return paths


def _write(drawn: torch.Tensor, paths: list[Path], trace: list[dict], record: dict, quality: int) -> None:
    """Write the pictures and say what was drawn; after Ctrl-C end with code 130."""
    for number, path in enumerate(paths):
        metadata = {"ex4lib": json.dumps(record | {"seed": record["seed"] + number})}
        images.save(drawn[number : number + 1].float().cpu().clamp(0, 1), path, metadata=metadata, quality=quality)
    seconds, lost = sum(row["seconds"] for row in trace), sum(row["skipped"] for row in trace)
    text = f"{len(trace)} guided steps in {seconds:.1f} s" + f", {lost} skipped" * bool(lost)
    text += ", interrupted: the estimate so far" * record["interrupted"]
    typer.echo(f"{', '.join(map(str, paths))}: {text}")
    if record["interrupted"]:
        sys.exit(130)


def _drawn(
    pipe, call: dict, paintings: list, arguments: dict, write: Callable | None
) -> tuple[torch.Tensor, list[dict], bool]:
    """The pictures, the trace, and whether Ctrl-C ended the drawing, which leaves the estimate so far."""
    from ex4lib.diffusion.steering import guided

    last, trace = None, []

    def watch(step) -> None:
        nonlocal last
        last = step
        if write is not None:
            write(step)

    try:
        with guided(pipe, paintings, on_step=watch, **arguments) as trace:
            return pipe(output_type="pt", **call).images, trace, False
    except KeyboardInterrupt:
        if last is None:
            raise
        return last.image, trace, True


def _size(text: str | None) -> tuple[int, int] | None:
    """Height and width from ``512`` or ``768x512`` (width first)."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d{1,9})(?:\s*[xX×]\s*(\d{1,9}))?\s*", text)
    if not match:
        raise ValueError(f"size must be a side or WIDTHxHEIGHT in pixels, got {text!r}")
    width, height = int(match[1]), int(match[2] or match[1])
    return checks.grid((height, width), "size", multiple=8)


def _inputs(image: str | None, mask: str | None, strength: float, size: tuple[int, int] | None) -> dict:
    """The arguments of the pipeline that hold pictures and their size."""
    if image is None:
        if mask is not None:
            raise ValueError("--mask needs --image: the picture of which a part is drawn anew")
        return {} if size is None else {"height": size[0], "width": size[1]}
    picture = images.picture(image, "image")
    size = size or tuple(max(8, round(side / 8) * 8) for side in picture.shape[-2:])
    inputs = {"image": images.resize(picture, size), "strength": strength}
    if mask is not None:
        inputs |= {"mask_image": images.mask(mask, "mask", size), "height": size[0], "width": size[1]}
    return inputs


def _pipeline(model: str | None, image: str | None, mask: str | None, scheduler: str | None, call: dict):
    """diffusers' own pipeline for the task, on the profile's device, if it takes the arguments of ``call``."""
    import diffusers

    from ex4lib.diffusion import pipelines, schedulers

    task = "Text2Image" if image is None else "Image2Image" if mask is None else "Inpainting"
    source, arguments = models.source("stable-diffusion", model), {}
    if "safety_checker" in diffusers.DiffusionPipeline.load_config(source):
        arguments["safety_checker"] = None
    pipe = pipelines.loaded(getattr(diffusers, f"AutoPipelineFor{task}"), source, **arguments)
    if scheduler is not None:
        pipe.scheduler = schedulers.named(scheduler, pipe.scheduler)
    unknown = set(call) - set(inspect.signature(pipe.__call__).parameters)
    if unknown:
        raise ValueError(f"{type(pipe).__name__} does not take {', '.join(sorted(unknown))}")
    return pipe
