"""Explorers of optimised pictures: style transfer and feature inversion."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from ipywidgets import BoundedIntText, Dropdown, FloatLogSlider, FloatSlider, IntSlider, SelectMultiple
from torch import Tensor

from ex4lib import images, models, optimisation, transfer
from ex4lib.features import VGG, layer_names
from ex4lib.statistics import STATISTICS
from ex4lib.widgets.controls import Pictures, Shelf, once, seeded
from ex4lib.widgets.machine import Explorer
from ex4lib.widgets.watching import Job, Settings


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
        "style_weight": FloatLogSlider(value=transfer.DEFAULT.style_weight, min=-2, max=2, step=0.1),
        "style_loss": Dropdown(options=list(STATISTICS)),
        "style_layers": SelectMultiple(options=list(shares), value=tuple(shares), rows=len(shares)),
        "start": Dropdown(options=list(transfer.STARTS)),
        "size": IntSlider(value=size, min=32, max=1024, step=16),
        "evaluations": IntSlider(value=evaluations, min=1, max=1000),
        "seed": BoundedIntText(max=2**31 - 1),
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
        "layer": Dropdown(options=layer_names(architecture), value="relu3_1"),
        "tv_weight": FloatSlider(value=1.0, min=0.0, max=10.0, step=0.1),
        "size": IntSlider(value=size, min=32, max=512, step=16),
        "evaluations": IntSlider(value=evaluations, min=1, max=1000),
        "seed": BoundedIntText(max=2**31 - 1),
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
