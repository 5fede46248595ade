"""Explorers of optimised pictures: style transfer and feature inversion.

Ready parts may be passed in; what is not passed is loaded when Run is first pressed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ipywidgets import BoundedIntText, Dropdown, FloatLogSlider, FloatSlider, IntSlider, SelectMultiple
from torch import Tensor

from ex4lib import images, models, optimisation, transfer
from ex4lib.features import VGG, layer_names
from ex4lib.images import ImageSource
from ex4lib.statistics import STATISTICS
from ex4lib.widgets.controls import Shelf, once, seeded
from ex4lib.widgets.machine import Explorer
from ex4lib.widgets.watching import Job, Settings, Store


def style_transfer(
    *,
    network: VGG | None = None,
    pictures: Mapping[str, ImageSource] | None = None,
    store: Store | None = None,
    **initial: Any,
) -> Explorer:
    """Neural style transfer: weight, loss and layers of the style, and where the picture starts.

    Arguments:
        network: the feature network; default the profile's.
        pictures: your own, by name: files, URLs, PIL pictures or tensors.
        store: where the static twin looks for finished runs, such as ``experiments.store.stored``; default: nowhere.
        initial: settings to begin with.
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
        inputs = shelf.load(settings, "photo", "painting")
        recipe = dataclasses.replace(
            transfer.DEFAULT,
            style_weight=settings["style_weight"],
            style_loss=settings["style_loss"],
            style_layers=layers,
            layer_weights=tuple(shares[layer] for layer in layers),
        )
        loaded = load()
        steps = transfer.stylize_steps(
            loaded, *inputs.values(), recipe=recipe, size=settings["size"], evaluations=settings["evaluations"],
            start=settings["start"], generator=seeded(settings),
        )  # fmt: skip
        return _optimised(steps, loaded, inputs)

    about = "The content of a photograph with the statistics of a painting."
    return Explorer(
        "Style transfer", about, controls, begin, folded=("style_loss", "style_layers", "size", "evaluations", "seed"),
        look=shelf.look("photo", "painting"), initial=initial, store=store,
    )  # fmt: skip


def inversion(
    *,
    network: VGG | None = None,
    pictures: Mapping[str, ImageSource] | None = None,
    store: Store | None = None,
    **initial: Any,
) -> Explorer:
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
        options = {name: settings[name] for name in ("tv_weight", "evaluations")}
        steps = transfer.invert_steps(loaded, target, settings["layer"], generator=seeded(settings), **options)
        return _optimised(steps, loaded, {"photo": target})

    about = "A picture with the photograph's features at one layer, found from noise: it shows what the layer keeps."
    return Explorer(
        "Feature inversion", about, controls, begin, folded=("size", "evaluations", "seed"), look=shelf.look("photo"),
        initial=initial, store=store,
    )  # fmt: skip


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
