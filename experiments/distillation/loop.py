"""Score distillation: a picture, or anything that renders one, optimised by a diffusion model's score.

θ are the parameters of a canvas and ``x0 = g(θ)`` is the clean sample it renders. A rule of `rules` gives the gradient
in x0, and `distil` applies the chain rule through g.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from diffusers import SchedulerMixin
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch import Tensor, nn

from ex4lib import checks
from ex4lib.diffusion.sampling import is_due
from ex4lib.optimisation import PATIENCE
from experiments.distillation.rules import descend, level


class Rule(Protocol):
    """The gradient in x0 ``(B, C, H, W)`` at a timestep; noise comes from the generator.

    A rule that is not defined everywhere has a property ``timesteps``, the range of those it accepts.
    """

    scheduler: SchedulerMixin

    def gradient(self, clean: Tensor, timestep: int, generator: torch.Generator | None) -> Tensor: ...


class Canvas(nn.Module):
    """θ = x0 itself: latents, or pixels in [-1, 1]."""

    def __init__(self, initial: Tensor):
        super().__init__()
        self.sample = nn.Parameter(checks.finite(initial, "initial").detach().clone())

    def forward(self) -> Tensor:
        return self.sample


@dataclasses.dataclass(frozen=True)
class Step:
    """One update.

    ``clean`` is x0 after it and ``image`` the picture, decoded when it is read. ``gradient_rms`` is that of the rule in
    x0, read from the device when it is asked for, and ``loss`` is the objective's ``(B,)`` if there is one. ``note``
    says what went wrong, if anything did.
    """

    index: int
    total: int
    timestep: int
    loss: Tensor | None
    clean: Tensor
    note: str
    _gradient: Tensor = dataclasses.field(repr=False)
    _render: Callable[[Tensor], Tensor] = dataclasses.field(repr=False)

    @property
    def image(self) -> Tensor:
        return self._render(self.clean)

    @property
    def gradient_rms(self) -> float:
        return self._gradient.square().mean().sqrt().item()


def distil(
    rule: Rule,
    canvas: nn.Module,
    space,
    *,
    steps: int = 500,
    learning_rate: float = 0.1,
    warm_up: int = 100,
    t_range: tuple[float, float] = (0.02, 0.98),
    objective: Callable[[Tensor], Tensor] | None = None,
    objective_weight: float = 1.0,
    generator: torch.Generator | None = None,
) -> Iterator[Step]:
    """Optimise what a canvas renders; yields a `Step` after each update.

    The loss is ``½ ‖x0 - (x0 - gradient).detach()‖²``, whose gradient in x0 is the rule's. AdamW without weight decay;
    its learning rate follows a cosine over 1.5 × ``steps`` after ``warm_up``, as in the KAIST assignment.

    An update that is not finite is taken back, and the learning rate is halved, with a warning and a ``note``; after
    `PATIENCE` such updates in a row the loop ends. Accelerators report it at every tenth update only.

    Arguments:
        canvas: a module that takes nothing and gives x0 ``(B, C, H, W)``.
        space: `denoisers.Pixels` or `denoisers.Latents`, for pictures of x0 and for the objective.
        t_range: timesteps are drawn between these fractions of all of them. Where the rule divides by 0, as PDS does
            at its first timesteps, the range is limited, with a warning.
        objective: images -> losses ``(B,)``, added with ``objective_weight``: style-guided distillation.

    Raises:
        ValueError: a number outside its range, or no timestep that the rule accepts; during the loop, a first update
            that is not finite.
    """
    count = rule.scheduler.config.num_train_timesteps
    low, high = (min(int(share * count), count - 1) for share in checks.interval(t_range, "t_range"))
    level(rule.scheduler, high)
    accepted = getattr(rule, "timesteps", range(count))
    drawn = range(max(low, accepted.start), min(high + 1, accepted.stop))
    if not drawn:
        raise ValueError(f"t_range must hold a timestep from {accepted.start} to {accepted.stop - 1}, got {t_range}")
    if drawn != range(low, high + 1):
        limits = f"timesteps {drawn.start} to {drawn.stop - 1}, at which {type(rule).__name__} is finite"
        warnings.warn(f"t_range {t_range} is limited to {limits}", RuntimeWarning, stacklevel=2)
    steps, warm_up = checks.integer(steps, "steps", low=1), checks.integer(warm_up, "warm_up", low=0)
    rate = checks.number(learning_rate, "learning_rate", low=0)
    weight = checks.number(objective_weight, "objective_weight")
    gradients = functools.partial(_gradients, rule, space, drawn, objective, weight, generator)
    return _updates(canvas, space.render, gradients, steps, rate, warm_up)


def _updates(
    canvas: nn.Module, render: Callable[[Tensor], Tensor], found: Callable, steps: int, rate: float, warm_up: int
) -> Iterator[Step]:
    parameters = list(canvas.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimiser, warm_up, int(1.5 * steps))
    pending, failures, successes = [], 0, 0  # pending: results of updates that are still on the device
    with torch.enable_grad():
        clean = canvas()
    for index in range(steps):
        t, gradient, loss, gradients = found(parameters, clean)
        pending.append(descend(optimiser, parameters, gradients))
        schedule.step()
        with torch.enable_grad():
            clean = canvas()
        note = ""
        if is_due(clean.device, index, steps):
            results, pending = torch.stack(pending).tolist(), []
            successes += sum(results)
            if not successes:
                raise ValueError(f"the gradient is not finite at the first update (timestep {t})")
            failures = failures + len(results) if not any(results) else results[::-1].index(True)
            if lost := results.count(False):
                schedule.base_lrs = [rate / 2**lost for rate in schedule.base_lrs]
                note = f"update {index + 1}: {lost} of {len(results)} not finite and taken back, learning rate halved"
                warnings.warn(note, RuntimeWarning, stacklevel=2)
        yield Step(index, steps, t, loss, clean.detach().clone(), note, gradient, render)
        if failures >= PATIENCE:
            return


def _gradients(rule, space, drawn: range, objective, weight: float, generator, parameters, clean) -> tuple:
    """The timestep, the rule's gradient in x0, the objective's losses or None, and the gradients of the parameters."""
    device = generator.device if generator is not None else "cpu"
    t = int(torch.randint(drawn.start, drawn.stop, (), generator=generator, device=device))
    gradient, value = rule.gradient(clean.detach(), t, generator), None
    with torch.enable_grad():
        loss = 0.5 * (clean - (clean - gradient).detach()).square().sum()
        if objective is not None:
            value = objective(space.decode(clean))
            loss = loss + weight * value.sum()
        gradients = torch.autograd.grad(loss, parameters)
    return t, gradient, None if value is None else value.detach(), gradients
