"""Style weights that mean the same for every statistic, layer set and network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from ex4lib.losses import Objective


def calibrate(
    objective: Objective,
    image: Tensor,
    ratio: float = 1.0,
    *,
    noise: float = 0.1,
    per_layer: bool = False,
    generator: torch.Generator | None = None,
) -> Objective:
    """Set the style weights so that ``‖∇style‖ = ratio · ‖∇content‖`` at a perturbed image.

    After it, a style weight means the same for every statistic, layer set and network. The gradients are taken at
    ``image`` plus Gaussian noise (clamped), since at the content image itself the content gradient is zero. Without
    a content term the style gradient is brought to norm ``ratio``.

    Arguments:
        image: where to measure, ``(1, 3, H, W)``; usually the start.
        noise: standard deviation of the perturbation, in units of the image's range.
        per_layer: first divide every style term by the norm of its own gradient, so that the weights of the layers
            are shares of the gradient; else their proportions stay as they are.

    Raises:
        ValueError: no style term, or a style gradient of zero or not finite.
    """
    generator = generator or torch.Generator().manual_seed(0)
    disturbance = torch.randn(image.shape, generator=generator, device=generator.device).to(image)
    x = (image.detach() + noise * disturbance).clamp(0, 1).requires_grad_()
    weights = {part.name: part.weight for part in objective.parts}
    content, style, factors = torch.zeros_like(x), torch.zeros_like(x), {}
    with torch.enable_grad():
        for name, loss in objective.terms(x).items():
            if not name.startswith(("content", "style")):
                continue
            (gradient,) = torch.autograd.grad(loss.sum(), x, retain_graph=True)
            if name.startswith("content"):
                content += gradient
            else:
                factors[name] = weights[name] / _norm(gradient, name) if per_layer else 1.0
                style += factors[name] * gradient
    common = ratio * (content.norm().item() or 1.0) / _norm(style, "style")
    return reweighted(objective, {name: weights[name] * factor * common for name, factor in factors.items()})


def reweighted(objective: Objective, weights: Mapping[str, float]) -> Objective:
    """The same objective with other weights: by term name, or by kind (``style``, ``content``, ``tv``).

    A kind's number multiplies each of its terms; a name's number replaces that term's weight.
    """
    parts = []
    for part in objective.parts:
        weight = part.weight * weights.get(part.name.split("/")[0], 1.0)
        parts.append(dataclasses.replace(part, weight=weights.get(part.name, weight)))
    return Objective(objective.network, parts)


def _norm(gradient: Tensor, name: str) -> float:
    norm = gradient.norm().item()
    if not 0 < norm < float("inf"):
        raise ValueError(
            f"to calibrate, the style gradient must be finite and not zero; that of {name} has norm {norm}"
        )
    return norm
