"""Explorers of style transfer, feature inversion, guided diffusion and SDEdit."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ipywidgets
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ex4lib import images, models, optimisation, transfer
from ex4lib.diffusion import editing, pipelines, sampling, schedulers
from ex4lib.diffusion.denoisers import Denoiser, Pixels
from ex4lib.diffusion.guidance import DEFAULT, IN_PIXELS, RAMPS, Guidance
from ex4lib.diffusion.pixel import PixelModel, pixel_model
from ex4lib.diffusion.process import strided_timesteps
from ex4lib.features import VGG, layer_names
from ex4lib.statistics import STATISTICS
from ex4lib.widgets.controls import Pictures, Shelf, once, seeded
from ex4lib.widgets.machine import Explorer
from ex4lib.widgets.watching import Job, Settings, Weights

#: Settings of guided diffusion that are folded away.
FOLDED = ("palette", "ramp", "style_loss", "steps", "scheduler")


def style_transfer(*, network: VGG | None = None, pictures: Pictures = None, **options: Any) -> Explorer:
    """Neural style transfer: weight, loss and layers of the style, and where the picture starts.

    Arguments:
        network: the feature network; default the profile's.
        pictures: your own, by name: files, URLs, PIL pictures or tensors.
        options: ``store`` of `machine.Explorer`, and settings to begin with by name, such as ``style_weight=3.0``.
    """
    shelf, load = Shelf(pictures), once(network, lambda: models.features(precision="auto"))
    size, evaluations = models.budget(fast=(64, 3), mini=(192, 100), full=(512, 300))
    shares = dict(zip(transfer.DEFAULT.style_layers, transfer.DEFAULT.layer_weights, strict=True))
    controls = {
        "photo": shelf.control("chelsea"),
        "painting": shelf.control("hokusai-great-wave"),
        "style_weight": ipywidgets.FloatLogSlider(value=transfer.DEFAULT.style_weight, min=-2, max=2, step=0.1),
        "style_loss": ipywidgets.Dropdown(options=list(STATISTICS)),
        "style_layers": ipywidgets.SelectMultiple(options=list(shares), value=tuple(shares), rows=len(shares)),
        "start": ipywidgets.Dropdown(options=list(transfer.STARTS)),
        "size": ipywidgets.IntSlider(value=size, min=32, max=1024, step=16),
        "evaluations": ipywidgets.IntSlider(value=evaluations, min=1, max=1000),
        "seed": ipywidgets.BoundedIntText(max=2**31 - 1),
    }

    def begin(settings: Settings) -> Job:
        layers = settings["style_layers"]
        weights = {"style_layers": layers, "layer_weights": tuple(shares[layer] for layer in layers)}
        weights |= {name: settings[name] for name in ("style_weight", "style_loss")}
        arguments = {name: settings[name] for name in ("size", "evaluations", "start")}
        arguments |= {"recipe": dataclasses.replace(transfer.DEFAULT, **weights), "generator": seeded(settings)}
        inputs, loaded = shelf.load(settings, "photo", "painting"), load()
        return _optimised(transfer.stylize_steps(loaded, *inputs.values(), **arguments), loaded, inputs)

    about = "The content of a photograph with the statistics of a painting."
    folded, look = ("style_loss", "style_layers", "size", "evaluations", "seed"), shelf.look("photo", "painting")
    return Explorer("Style transfer", about, controls, begin, folded=folded, look=look, **options)


def inversion(*, network: VGG | None = None, pictures: Pictures = None, **options: Any) -> Explorer:
    """Feature inversion: the layer, and a prior; arguments as in `style_transfer`."""
    shelf, load = Shelf(pictures), once(network, lambda: models.features(precision="auto"))
    architecture = network.architecture if network is not None else models.FEATURES[models.profile()].split("-")[0]
    size, evaluations = models.budget(fast=(64, 3), mini=(128, 150), full=(256, 300))
    controls = {
        "photo": shelf.control("chelsea"),
        "layer": ipywidgets.Dropdown(options=layer_names(architecture), value="relu3_1"),
        "tv_weight": ipywidgets.FloatSlider(value=1.0, min=0.0, max=10.0, step=0.1),
        "size": ipywidgets.IntSlider(value=size, min=32, max=512, step=16),
        "evaluations": ipywidgets.IntSlider(value=evaluations, min=1, max=1000),
        "seed": ipywidgets.BoundedIntText(max=2**31 - 1),
    }

    def begin(settings: Settings) -> Job:
        (photo,) = shelf.load(settings, "photo").values()
        loaded = load()
        target = images.resize(images.crop_square(photo), settings["size"]).to(loaded.mean.device)
        arguments = {name: settings[name] for name in ("tv_weight", "evaluations")} | {"generator": seeded(settings)}
        steps = transfer.invert_steps(loaded, target, settings["layer"], **arguments)
        return _optimised(steps, loaded, {"photo": target})

    about = "A picture with the photograph's features at one layer, found from noise: it shows what the layer keeps."
    folded, look = ("size", "evaluations", "seed"), shelf.look("photo")
    return Explorer("Feature inversion", about, controls, begin, folded=folded, look=look, **options)


def guided_stable_diffusion(
    *,
    pipe: pipelines.StyleGuidedStableDiffusionPipeline | None = None,
    features: VGG | None = None,
    pictures: Pictures = None,
    **options: Any,
) -> Explorer:
    """Stable Diffusion steered by a painting while it draws a prompt.

    Arguments:
        pipe, features: the pipeline and the feature network; default the profile's.
        pictures, options: as in `style_transfer`.
    """
    shelf, load, load_features = Shelf(pictures), once(pipe, pipelines.stable_diffusion), once(features, _features)
    controls = {
        "prompt": ipywidgets.Text(value="a cat", continuous_update=False),
        **_guidance_controls(shelf, DEFAULT, steps=models.budget(fast=2, mini=30, full=50)),
        "guidance_scale": ipywidgets.FloatSlider(value=models.guidance_scale(), min=1.0, max=20.0, step=0.5),
    }

    def begin(settings: Settings) -> Job:
        loaded = load()
        denoiser = loaded.denoiser(settings["prompt"], guidance_scale=settings["guidance_scale"])
        return _guided(loaded, denoiser, DEFAULT, settings, shelf, load_features)

    about = "The prompt says what is drawn, the painting how. At style scale 0 the painting has no influence."
    folded, look = (*FOLDED, "guidance_scale"), shelf.look("painting")
    return Explorer("Guided Stable Diffusion", about, controls, begin, folded=folded, look=look, **options)


def guided_ddpm(
    *,
    pipe: pipelines.StyleGuidedDDPMPipeline | None = None,
    features: VGG | None = None,
    pictures: Pictures = None,
    **options: Any,
) -> Explorer:
    """An unconditional diffusion model steered by a painting; arguments as in `guided_stable_diffusion`."""
    shelf, load, load_features = Shelf(pictures), once(pipe, pipelines.ddpm), once(features, _features)
    controls = _guidance_controls(shelf, IN_PIXELS, steps=models.budget(fast=3, mini=40, full=100))

    def begin(settings: Settings) -> Job:
        loaded = load()
        return _guided(loaded, Denoiser(loaded.unet, Pixels()), IN_PIXELS, settings, shelf, load_features)

    about = "A model without prompts, steered by a painting. At style scale 0 the painting has no influence."
    return Explorer("Guided DDPM", about, controls, begin, folded=FOLDED, look=shelf.look("painting"), **options)


def sdedit(*, model: PixelModel | None = None, pictures: Pictures = None, **options: Any) -> Explorer:
    """SDEdit: a picture noised to a level and drawn anew from there towards a prompt.

    Arguments:
        model: text to image in pixels; default the profile's.
        pictures, options: as in `style_transfer`.
    """
    shelf, load = Shelf(pictures), once(model, pixel_model)
    timesteps = course_timesteps()
    controls = {
        "photo": shelf.control("chelsea"),
        "prompt": ipywidgets.Text(value="a cat", continuous_update=False),
        "start": ipywidgets.IntSlider(value=len(timesteps) // 3, min=0, max=len(timesteps) - 1),
        **pixel_controls(),
    }

    def begin(settings: Settings) -> Job:
        (photo,) = shelf.load(settings, "photo").values()
        loaded = load()
        picture = images.resize(images.crop_square(photo), loaded.size).to(loaded.device)
        denoiser = loaded.denoiser(settings["prompt"], guidance_scale=settings["guidance_scale"])
        schedule = {"start": settings["start"], "steps": timesteps}
        steps = editing.edit(denoiser, loaded.scheduler, picture, generator=seeded(settings), **schedule)
        return sampled(steps, {"photo": picture}, pixel_weights(loaded), skipped=settings["start"])

    about = (
        "Noise is added to the photograph and removed again towards the prompt. The start is the timestep to "
        f"begin at, of {len(timesteps)}: a later one stays closer to the photograph."
    )
    folded, look = ("guidance_scale",), shelf.look("photo")
    return Explorer("SDEdit", about, controls, begin, folded=folded, look=look, **options)


def pixel_controls() -> dict[str, Any]:
    scale = ipywidgets.FloatSlider(value=7.0, min=1.0, max=20.0, step=0.5)
    return {"guidance_scale": scale, "seed": ipywidgets.BoundedIntText(max=2**31 - 1)}


def _guidance_controls(shelf: Shelf, start: Guidance, *, steps: int) -> dict[str, Any]:
    names = [(name.removesuffix("Scheduler"), name) for name in schedulers.SUPPORTED]
    return {
        "painting": shelf.control("van-gogh-village-street-in-auvers"),
        "style_scale": ipywidgets.FloatSlider(value=start.scale, min=0.0, max=1.5, step=0.05),
        "palette": ipywidgets.FloatSlider(value=start.palette, min=0.0, max=2.0, step=0.1),
        "window": ipywidgets.FloatRangeSlider(value=start.window, min=0.0, max=1.0, step=0.05),
        "ramp": ipywidgets.Dropdown(options=list(RAMPS), value=start.ramp),
        "style_loss": ipywidgets.Dropdown(options=list(STATISTICS)),
        "steps": ipywidgets.IntSlider(value=steps, min=1, max=250),
        "scheduler": ipywidgets.Dropdown(options=names, value="DDIMScheduler"),
        "seed": ipywidgets.BoundedIntText(max=2**31 - 1),
    }


def _guided(
    pipe: Any, denoiser: Denoiser, start: Guidance, settings: Settings, shelf: Shelf, load_features: Callable[[], VGG]
) -> Job:
    """The loop of a style-guided pipeline for one picture; ``start`` is the guidance that the controls change."""
    changes = {name: settings[name] for name in ("palette", "window", "ramp")}
    guidance = dataclasses.replace(start, scale=settings["style_scale"], **changes)
    side, enlarged = pipe.unet.config.sample_size, getattr(pipe, "vae_scale_factor", 1)
    grid = (side, side) if isinstance(side, int) else tuple(side)
    inputs, objective, hashes = {}, None, {}
    if guidance.is_on:
        inputs, network = shelf.load(settings, "painting"), load_features()
        hashes["features"] = network.identity
        size, style_loss = tuple(enlarged * length for length in grid), settings["style_loss"]
        objective = pipelines.StyleObjective(network, list(inputs.values()), size, style_loss=style_loss)
    scheduler, draws = schedulers.named(settings["scheduler"], pipe.scheduler), seeded(settings)
    x = randn_tensor((1, pipe.unet.config.in_channels, *grid), draws, pipe.device, denoiser.dtype)
    x = x * schedulers.timed(scheduler, settings["steps"], device=pipe.device).init_noise_sigma
    options = {"objective": objective, "guidance": guidance, "generator": draws}
    steps = sampling.sample(denoiser, scheduler, x, steps=settings["steps"], **options)
    return sampled(steps, inputs, lambda: {Path(pipe.name_or_path).name: models.pipeline_sha256(pipe), **hashes})


def sampled(
    steps: Iterator[sampling.Step],
    inputs: dict[str, Tensor],
    weights: Weights,
    seen: Callable[[Tensor], Tensor] = lambda image: image,
    **options: Any,
) -> Job:
    """A denoising loop: shown is x̂0, and at the end the sample; ``seen`` maps either to what is looked at."""
    return Job(
        steps,
        picture=lambda step: seen(step.image),
        final=lambda step: seen(step.sample_image),
        loss=lambda step: step.trace["loss"][0] if step.trace is not None else None,
        note=lambda step: f"timestep {step.timestep}",
        inputs=inputs,
        weights=weights,
        **options,
    )


def pixel_weights(model: PixelModel) -> Weights:
    return lambda: {"pixel U-Net": models.weights_sha256(model.unet)}


def _features() -> VGG:
    return models.features(precision="auto")


def course_timesteps() -> list[int]:
    """The course's 990, 960, ..., 0."""
    return strided_timesteps(models.budget(fast=330, mini=30, full=30))


def _optimised(steps: Iterator[optimisation.Step], network: VGG, inputs: dict[str, Tensor]) -> Job:
    """A loop over pixels: shown is the best image so far."""
    return Job(
        steps,
        picture=lambda step: step.best,
        final=lambda step: step.best,
        loss=lambda step: step.loss.sum().item(),
        note=lambda step: step.note,
        inputs=inputs,
        weights=lambda: {"network": network.identity},
    )
