"""CS180's project 5B: the recipes of its networks, and a name -> a trained network.

    python -m experiments.digits.mnist class --data digits
    python -m experiments.digits.mnist export

Checkpoints and kept weights lie in the user's cache directory; `export` copies the finished weights of `SHIPPED` into
``ex4lib/assets/models/from-scratch``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Annotated

import typer
from safetensors import safe_open

from ex4lib import cli
from ex4lib.images import write_bytes
from ex4lib.models import EMBEDDED, device
from experiments.files import cache_dir

from .digits import Digits, load
from .loop import Recipe, Training, identity, read_weights, snapshot_path, train
from .methods import Schedule
from .scores import Classifier
from .unet import UNet

ASSETS = EMBEDDED / "from-scratch"
SHIPPED = ("class", "flow", "classifier")

#: The course's own numbers. `scaled` and `pure-noise` are experiments on them.
RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("one-step", "denoise", width=128, epochs=5, batch=256, lr=1e-4, decay=False),
        Recipe("pure-noise", "pure-noise", width=32, epochs=5, batch=256, lr=1e-3, decay=False),
        Recipe("time", "ddpm"),
        Recipe("class", "ddpm", classes=10),
        Recipe("flow", "flow", epochs=10, batch=64, lr=1e-2, classes=10),
        Recipe("classifier", "classify", width=32, epochs=10, lr=2e-3, classes=10, seed=1),
        Recipe("scaled", "ddpm", schedule=Schedule(scale=1000 / 300)),
    )
}
#: Batch sizes where an epoch is short: there the number of steps is what learning lacks.
SMALL_BATCHES = {256: 16, 128: 16, 64: 16}
#: How many times as many drawings as `digits.DRAWN_PER_EPOCH` an epoch of these networks is.
LONGER = {"one-step": 4, "class": 4, "classifier": 4, "time": 4, "scaled": 4, "flow": 8, "pure-noise": 2}
app = typer.Typer(add_completion=False)


def recipe(name: str, data: Digits, **changes) -> Recipe:
    """A recipe for these pictures: the course's, with smaller batches where an epoch has under 10,000 pictures.

    Raises:
        ValueError: unknown name.
    """
    if name not in RECIPES:
        raise ValueError(f"name must be one of {', '.join(RECIPES)}, got {name!r}")
    course = RECIPES[name]
    batch = course.batch if data.epoch >= 10_000 else SMALL_BATCHES[course.batch]
    return dataclasses.replace(course, **{"batch": batch, **changes})


def pictures(name: str, data: Digits) -> Digits:
    """What a network is trained on: the data, of drawn digits with the longer epochs of `LONGER`."""
    return dataclasses.replace(data, epoch=LONGER.get(name, 1) * data.epoch) if data.drawn else data


def folder(recipe: Recipe, data: Digits) -> Path:
    """Where a training is kept: one folder per recipe and pictures."""
    key = hashlib.sha256(json.dumps(identity(recipe, data), sort_keys=True).encode()).hexdigest()[:12]
    return cache_dir() / "from-scratch" / f"{recipe.name}-{key}"


def finished(recipe: Recipe, data: Digits, *, progress: bool = False) -> Training:
    """The training at its end, trained or taken up where that has not been done."""
    return train(Training(recipe, data, device()), folder(recipe, data), progress=progress)


def trained(recipe: Recipe, data: Digits, epoch: int | None = None, *, progress: bool = False) -> UNet | Classifier:
    """The averaged network after an epoch (default the last): from the cache, from the package, or trained now.

    Raises:
        ValueError: the recipe keeps no weights after that epoch.
    """
    epoch = recipe.epochs if epoch is None else epoch
    if epoch not in recipe.keep or epoch > recipe.epochs:
        raise ValueError(f"epoch must be one of {recipe.keep} and at most {recipe.epochs}, got {epoch}")
    path = snapshot_path(folder(recipe, data), recipe.name, epoch)
    shipped = snapshot_path(ASSETS, recipe.name, epoch)
    if not path.is_file() and shipped.is_file() and shipped_identity(shipped) == identity(recipe, data):
        path = shipped
    elif not path.is_file():
        finished(recipe, data, progress=progress)
    return read_weights(recipe.build(), path).to(device())


def shipped_identity(path: Path) -> dict:
    """What made the weights of a file."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["identity"])


@app.command()
def main(
    name: Annotated[str, typer.Argument(help=f"{', '.join(RECIPES)}, or: export")],
    data: Annotated[str, typer.Option(help="auto, mnist, digits, or a folder with MNIST's files")] = "auto",
    epoch: Annotated[int, typer.Option(help="pictures per epoch; 0 is the source's own", min=0)] = 0,
) -> None:
    """Train one network to its end, or go on where it was interrupted."""
    if name not in (*RECIPES, "export"):
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(RECIPES)}, export.")
    split, _ = load(data, epoch=epoch or None)
    for each in SHIPPED if name == "export" else (name,):
        used = pictures(each, split)
        made = recipe(each, used)
        if name == "export":
            source = snapshot_path(folder(made, used), each, made.epochs)
            if source.is_file():
                write_bytes(ASSETS / source.name, source.read_bytes())
        else:
            training = finished(made, used, progress=True)
            rate = training.step * made.batch / training.seconds
            typer.echo(f"{name}: {training.step} steps, {rate:.0f} pictures a second, in {folder(made, used)}")


if __name__ == "__main__":
    cli.main(app, "experiments.digits.mnist")
