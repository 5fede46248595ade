"""The experiments of the exercise's first part: one configuration in, one stored `Run` out.

Notebooks sweep over these. Pictures are judged by a network at float32 that is given apart from the optimised one.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ex4lib import images
from ex4lib import transfer as recipes
from ex4lib.features import VGG
from ex4lib.losses import Objective
from ex4lib.optimisation import Step, finish, optimise
from ex4lib.statistics import STATISTICS
from experiments import measures, metrics
from experiments.calibration import calibrate
from experiments.store import Run, stored


def inversion(
    network: VGG, target: Tensor, layer: str, *, evaluations: int, tv_weight: float = 0.0, seed: int = 0
) -> Run:
    """Invert one layer from noise.

    Values: ``feature_error`` (normalised, at the layer), ``psnr``, ``ssim``, ``lpips`` against the target (None where
    the network is no VGG-16), ``brightness``, ``losses``. Picture: ``image``.
    """
    (layer,) = network.names(layer)

    def compute() -> Run:
        generator = torch.Generator().manual_seed(seed)
        result = recipes.invert(
            network, target, layer, evaluations=evaluations, tv_weight=tv_weight, generator=generator
        )
        image = result.image.float()
        values = {
            "feature_error": min(result.terms[f"content/{layer}"]),
            "psnr": metrics.psnr(image, target),
            "ssim": measures.ssim(image, target),
            "lpips": measures.perceptual_distance(network, image, target) if network.architecture == "vgg16" else None,
            "brightness": measures.brightness(image),
            "losses": result.losses,
        }
        return Run(values, {"image": image})

    config = {"layer": layer, "evaluations": evaluations, "tv_weight": tv_weight, "seed": seed}
    return stored("inversion", config, compute, inputs={"target": target}, weights={"network": network.identity})


def texture(
    network: VGG,
    judge: VGG,
    style: Tensor,
    layers: Sequence[str],
    *,
    judged: Sequence[str],
    style_loss: str = "gram",
    tv_weight: float = 0.0,
    evaluations: int,
    seed: int = 0,
) -> Run:
    """Synthesise a texture of the style's size from noise.

    Values: ``distances`` by judged layer (Gram, relative, at the texture's own size), ``losses``. Picture: ``image``.
    """
    layers = network.names(layers)

    def compute() -> Run:
        generator = torch.Generator().manual_seed(seed)
        result = recipes.synthesize(
            network,
            style,
            layers,
            style_loss=style_loss,
            tv_weight=tv_weight,
            evaluations=evaluations,
            generator=generator,
        )
        image = result.image.float()
        distances = {layer: metrics.style_distance(judge, image, style, layers=[layer]) for layer in judged}
        return Run({"distances": distances, "losses": result.losses}, {"image": image})

    config = {"layers": layers, "judged": list(judged), "style_loss": style_loss}
    config |= {"tv_weight": tv_weight, "evaluations": evaluations, "seed": seed}
    return stored(
        "texture",
        config,
        compute,
        inputs={"style": style},
        weights=_identities(network, judge),
    )


def stylization(
    network: VGG,
    judge: VGG,
    content: Tensor,
    style: Tensor | Sequence[Tensor],
    *,
    recipe: recipes.Recipe = recipes.DEFAULT,
    size: int,
    evaluations: int,
    **options,
) -> Run:
    """`transfer.stylize` judged: `judgement` of the result in ``values``, with ``terms`` and ``losses``."""
    styles = [style] if isinstance(style, Tensor) else list(style)

    def compute() -> Run:
        result = recipes.stylize(network, content, styles, recipe=recipe, size=size, evaluations=evaluations, **options)
        values = judgement(judge, result.image.float(), images.resize(content, size), styles[0])
        values |= {"losses": result.losses, "terms": {name: parts[-1] for name, parts in result.terms.items()}}
        return Run(values, {"image": result.image.float()})

    plain = {name: value for name, value in options.items() if name != "regions"}
    config = {"recipe": dataclasses.asdict(recipe), "size": size, "evaluations": evaluations, **plain}
    inputs = {"content": content, **{f"style{i}": each for i, each in enumerate(styles)}}
    for i, mask in enumerate(options.get("regions") or ()):
        inputs[f"region{i}"] = mask
    return stored("stylization", config, compute, inputs=inputs, weights=_identities(network, judge))


def weighted(
    network: VGG,
    judge: VGG,
    content: Tensor,
    style: Tensor,
    *,
    recipe: recipes.Recipe,
    ratio: float | None,
    evaluations: int,
    snapshots: Sequence[int] = (),
) -> Run:
    """One trajectory at the pictures' own size from the photograph, its style weight calibrated to ``ratio``.

    ``ratio`` is the quotient of the style and the content gradient's norm at a perturbed start (`calibrate`),
    by which a weight means the same for every loss and network; None takes the recipe's raw weights. Values by number
    of evaluations (``snapshots`` and the last): `judgement` and the picture's content loss; pictures ``at300`` and so
    on, each the best until then.
    """
    marks = sorted({*snapshots, evaluations})

    def compute() -> Run:
        objective = recipe.objective(network, content, [style])
        if ratio is not None:
            objective = calibrate(objective, content, ratio)
        kept: dict[int, Tensor] = {}

        def keep(step: Step) -> None:
            if step.index in marks:
                kept[step.index] = step.best.float()

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # kept as notes
            result = finish(optimise(objective, content, evaluations=evaluations), callback=keep)
        for mark in marks:
            kept.setdefault(mark, result.image.float())  # the loop may end early when nothing helps any more
        values = {
            str(mark): judgement(judge, image, content, style) | {"content_loss": _content_loss(objective, image)}
            for mark, image in kept.items()
        }
        weights = {part.name: part.weight for part in objective.parts if part.weight}
        return Run(
            {**values, "weights": weights, "losses": result.losses, "notes": result.notes},
            {f"at{mark}": image for mark, image in kept.items()},
        )

    config = {"recipe": dataclasses.asdict(recipe), "ratio": ratio, "evaluations": evaluations, "snapshots": marks}
    return stored(
        "weighted",
        config,
        compute,
        inputs={"content": content, "style": style},
        weights=_identities(network, judge),
    )


def at_content_error(
    network: VGG,
    judge: VGG,
    content: Tensor,
    style: Tensor,
    *,
    recipe: recipes.Recipe,
    target: float,
    evaluations: int,
    tolerance: float = 0.04,
    rounds: int = 12,
) -> tuple[float, Run]:
    """The ratio at which a recipe ends with the content error ``target``, by bisection in its logarithm, and its run.

    The content error grows with the ratio; the bracket starts at ratio 1 and is widened by factors of 10. Stops
    within ``tolerance`` (relative) or after ``rounds`` runs; the run says what was reached.
    """
    low, high, ratio = None, None, 1.0
    best = None
    for _ in range(rounds):
        run = weighted(network, judge, content, style, recipe=recipe, ratio=ratio, evaluations=evaluations)
        error = run.values[str(evaluations)]["content_error"]
        if best is None or abs(math.log(error / target)) < best[0]:
            best = (abs(math.log(error / target)), ratio, run)
        if best[0] <= tolerance:
            break
        if error < target:
            low = ratio
        else:
            high = ratio
        if low is None:
            ratio /= 10
        elif high is None:
            ratio *= 10
        else:
            ratio = float(f"{math.sqrt(low * high):.4g}")
    return best[1], best[2]


def judgement(judge: VGG, image: Tensor, content: Tensor, style: Tensor) -> dict:
    """Everything a stylised picture is judged by.

    ``style`` by statistic on held-out layers, ``colour``, ``texture``, ``content_error`` at relu4_2, and ``cut``: the
    mean Gram distance over relu1_1 .. relu4_1 as a fraction of the photograph's own.
    """
    layers = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")
    before, after = (metrics.style_distance(judge, picture, style, layers=layers) for picture in (content, image))
    return {
        "style": {name: metrics.style_distance(judge, image, style, statistic=name) for name in STATISTICS},
        "colour": metrics.colour_distance(image, style),
        "texture": metrics.texture_distance(judge, image, style),
        "content_error": metrics.content_error(judge, image, content),
        "cut": after / before,
    }


def _identities(network: VGG, judge: VGG) -> dict[str, dict]:
    return {"network": network.identity, "judge": judge.identity}


@torch.no_grad()
def _content_loss(objective: Objective, image: Tensor) -> float:
    terms = objective.terms(image)
    return sum(value.item() for name, value in terms.items() if name.startswith("content"))
