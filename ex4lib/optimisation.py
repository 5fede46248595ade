"""Move pixels down an objective, which is any function of images: the loop of style transfer, a generator of steps."""

import dataclasses
import functools
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ex4lib import checks, images
from ex4lib.statistics import at_least_float32

#: L-BFGS without a line search has lost its way when the loss has not fallen for so many evaluations.
STALL = 10
#: After so many failed steps in a row the loop ends with the best image it has.
PATIENCE = 8
#: Forward and backward passes, and pairs of vectors that L-BFGS keeps, by default.
EVALUATIONS, HISTORY = 300, 20
#: Learning rate of each optimiser, by default.
RATES = {"lbfgs": 1.0, "adam": 0.03}


@dataclasses.dataclass(frozen=True)
class Step:
    """One evaluation of an objective.

    ``loss`` ``(B,)`` and its weighted parts ``terms`` belong to ``image``; ``best`` is the image of the lowest loss at
    this scale so far, which is ``lowest``, summed over the batch. ``index`` counts evaluations from 1 to at most
    ``total``. ``note`` says what went wrong. ``size`` is ``(H, W)`` of the finished image.
    """

    index: int
    total: int
    loss: Tensor
    terms: dict[str, Tensor]
    note: str
    lowest: float
    size: tuple[int, int]
    _image: Callable[[], Tensor] = dataclasses.field(repr=False)
    _best: Callable[[], Tensor] = dataclasses.field(repr=False)

    @property
    def image(self) -> Tensor:
        return self._image()

    @property
    def best(self) -> Tensor:
        return self._best()


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished loop leaves.

    ``image`` is the best image and ``loss`` its loss. ``losses`` and ``terms`` hold the loss and its parts at each
    evaluation. All are summed over a batch. ``interrupted``: Ctrl-C ended the loop; ``image`` may then be an enlarged
    one of a coarser scale, to which ``loss`` belongs.
    """

    image: Tensor
    loss: float
    losses: list[float]
    terms: dict[str, list[float]]
    seconds: float
    notes: list[str]
    interrupted: bool = False

    @property
    def evaluations(self) -> int:
        return len(self.losses)


def optimise(
    objective: Callable[[Tensor], Tensor],
    init: Tensor,
    *,
    optimiser: str = "lbfgs",
    evaluations: int = EVALUATIONS,
    seconds: float | None = None,
    learning_rate: float | None = None,
    history: int = HISTORY,
    fallback: Tensor | None = None,
) -> Iterator[Step]:
    """Minimise ``objective`` over the pixels of ``init``; yields a `Step` per evaluation of it.

    ``"lbfgs"``: the image is ``x = (1 + sin u) / 2`` and L-BFGS moves u, one evaluation per step, so that x stays in
    [0, 1] without clamping, after which L-BFGS would misjudge the curvature. The first step has an rms of 0.02 in u
    whatever the scale of the loss. ``"adam"``: x itself, clamped to [0, 1] after each step.

    A loss or gradient that is not finite, or a loss far above the best (see `_limit`), rolls back to the best image
    with half the step, with a warning and a ``note``; so, with a note only, does L-BFGS after `STALL` evaluations
    without progress. After `PATIENCE` such failures in a row the loop ends.

    Arguments:
        objective: images ``(B, 3, H, W)`` -> losses ``(B,)``; with a method ``terms`` its parts are reported too.
        init: ``(B, 3, H, W)`` in [0, 1]; a batch shares L-BFGS's curvature, Adam treats its images apart.
        evaluations: forward and backward passes, the unit that cost is counted in.
        seconds: no evaluation starts later than this after the first; None for no limit.
        learning_rate: default 1 (L-BFGS), 0.03 (Adam).
        history: pairs of vectors that L-BFGS keeps, each the size of the image.
        fallback: an image like ``init`` that stays the best one until another has a lower loss.

    Raises:
        ValueError: an argument outside of these, at once; an objective not finite at ``init``, at the first step.
    """
    optimiser = checks.choice(optimiser, "optimiser", RATES)
    evaluations = checks.integer(evaluations, "evaluations", low=1)
    history = checks.integer(history, "history", low=1)
    rate = RATES[optimiser] if learning_rate is None else checks.number(learning_rate, "learning_rate", above=0)
    seconds = None if seconds is None else checks.number(seconds, "seconds", low=0)
    init = at_least_float32(images.check(init, "init").detach())  # in half precision Adam's epsilon is 0
    fallback = None if fallback is None else at_least_float32(fallback)
    return _descend(objective, init, optimiser, evaluations, seconds, rate, history, fallback)


def _descend(
    objective: Callable[[Tensor], Tensor], init: Tensor, optimiser: str, evaluations: int, seconds: float | None,
    rate: float, history: int, fallback: Tensor | None,
) -> Iterator[Step]:  # fmt: skip
    """The loop of `optimise`."""
    encode, decode = (_to_angle, _from_angle) if optimiser == "lbfgs" else (torch.clone, torch.clone)
    point = encode(init).contiguous().requires_grad_()
    best_loss, best_point, best_index, failures = math.inf, point.detach().clone(), 0, 0
    first_loss, best, size = math.inf, functools.partial(decode, best_point), tuple(init.shape[-2:])
    if fallback is not None:
        with torch.no_grad():
            loss = objective(fallback).sum().item()
        best_loss, best = loss if math.isfinite(loss) else math.inf, fallback.clone
    method, began = _method(optimiser, point, rate, history), time.perf_counter()
    for index in range(1, evaluations + 1):
        snapshot = point.detach().clone()
        loss, terms, gradient = _evaluate(objective, point, decode)
        # The loop goes on or back by these two numbers: the one time that an evaluation waits for the device.
        total, finite = torch.stack([loss.sum(), gradient.isfinite().all().to(loss)]).tolist()
        finite, note = bool(finite) and math.isfinite(total), ""
        if index == 1:
            first_loss = total
            if not finite:
                raise ValueError(f"the objective or its gradient is not finite at the start: loss {total}")
        astray = optimiser == "lbfgs" and total > best_loss and index - best_index >= STALL
        if index == 1 or (finite and total <= _limit(best_loss, first_loss) and not astray):
            if total < best_loss:
                best_loss, best_point, best_index, failures = total, snapshot, index, 0
                best = functools.partial(decode, snapshot)
            # Contiguous: torch's L-BFGS views the gradient as a vector.
            point.grad = gradient.contiguous()
            method(total)
        else:
            failures, best_index = failures + 1, index
            rate /= 2
            note = f"evaluation {index}: loss {total:.3g} after {best_loss:.3g}; back to the best image, half the step"
            if not astray:
                warnings.warn(note, RuntimeWarning, stacklevel=2)
            with torch.no_grad():
                point.copy_(best_point)
            method = _method(optimiser, point, rate, history)
        image = functools.partial(decode, snapshot)
        yield Step(index, evaluations, loss, terms, note, best_loss, size, image, best)
        if failures == PATIENCE or (seconds is not None and time.perf_counter() - began >= seconds):
            return


def finish(steps: Iterator[Step], *, progress: bool = False, callback: Callable | None = None) -> Result:
    """Run a loop to its end; ``progress`` shows a bar, ``callback(step)`` sees every step.

    Ctrl-C ends the loop with the best image so far; before the first step it is raised as usual.
    """
    losses, terms, notes, began, interrupted = [], {}, [], time.perf_counter(), False
    first = step = next(steps, None)  # before the bar, so that an error is not written behind it
    if first is None:
        raise ValueError("the loop had no steps")
    with tqdm(total=first.total, disable=not progress, unit="evaluation") as bar:
        try:
            for step in itertools.chain([first], steps):
                losses.append(step.loss.sum())
                for name, value in step.terms.items():
                    terms.setdefault(name, []).append(value.sum())
                notes += [step.note] if step.note else []
                bar.update()
                if callback is not None:
                    callback(step)
        except KeyboardInterrupt:
            interrupted = True
    curves = {name: torch.stack(values).tolist() for name, values in terms.items()}
    seconds, image = time.perf_counter() - began, images.resize(step.best, step.size)
    return Result(image, step.lowest, torch.stack(losses).tolist(), curves, seconds, notes, interrupted)


def _limit(best: float, first: float) -> float:
    """The loss above which a step has failed: ten times the best, as long as losses are positive.

    Where they may be negative, nine times as far above the best as the best is from zero or from the first loss.
    """
    return 10 * best if best >= 0 else best + 9 * max(-best, first - best)


def _evaluate(objective, point: Tensor, decode) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    with torch.enable_grad():
        image = decode(point)
        if hasattr(objective, "terms"):
            terms = objective.terms(image)
            loss = torch.stack(list(terms.values())).sum(0)
        else:
            terms, loss = {}, objective(image)
        if not loss.requires_grad:
            raise ValueError("the objective does not depend on the image")
        (gradient,) = torch.autograd.grad(loss.sum(), point)
    return loss.detach(), {name: value.detach() for name, value in terms.items()}, gradient


def _method(optimiser: str, point: Tensor, rate: float, history: int) -> Callable[[float], None]:
    """A function that moves ``point`` along its ``.grad``."""
    if optimiser == "adam":
        adam = torch.optim.Adam([point], lr=rate, betas=(0.9, 0.99))

        def move_adam(loss: float) -> None:
            adam.step()
            with torch.no_grad():
                point.clamp_(0, 1)

        return move_adam
    # max_iter=1 makes one step of one evaluation; the tolerances would otherwise stop it by the loss's scale.
    lbfgs = torch.optim.LBFGS([point], lr=rate, max_iter=1, history_size=history, tolerance_grad=0, tolerance_change=0)
    first = True

    def move_lbfgs(loss: float) -> None:
        nonlocal first
        # torch's first step, min(1, 1 / ‖g‖₁) g, may be smaller than the rounding of the loss; ours has a fixed length.
        group = lbfgs.param_groups[0]
        if first:
            slope = point.grad
            rms = slope.square().mean().sqrt().item() * min(1.0, 1 / max(slope.abs().sum().item(), 1e-30))
            group["lr"] = 0.02 * rate / max(rms, 1e-30)
        lbfgs.step(lambda: loss)
        group["lr"], first = rate, False

    return move_lbfgs


def _to_angle(image: Tensor) -> Tensor:
    return torch.asin((2 * image - 1).clamp(-0.98, 0.98))  # a little away from where the slope is 0


def _from_angle(angle: Tensor) -> Tensor:
    return 0.5 + 0.5 * torch.sin(angle)
