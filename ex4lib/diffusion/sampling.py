"""The sampling loop: a generator of denoising steps, guided or not, for every supported scheduler."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from diffusers import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ex4lib import checks
from ex4lib.colour import Palette
from ex4lib.diffusion import guidance as rules
from ex4lib.diffusion import schedulers
from ex4lib.diffusion.denoisers import Denoiser, Output, Pixels, frozen
from ex4lib.diffusion.guidance import NO_CORRECTION, THROUGH, Guidance, Situation, check_count, check_scheduler
from ex4lib.diffusion.process import Level
from ex4lib.statistics import at_least_float32

#: Reading a number from an accelerator stops its queue, so that there only every tenth step is checked for NaN.
CHECK_EVERY = 10


@dataclasses.dataclass(frozen=True)
class Step:
    """One denoising step.

    ``sample`` is the result of the step, ``clean`` the estimate x̂0 behind it, guidance included. ``image`` and
    ``sample_image`` decode the two when they are read, as at least float32 ``(B, 3, H, W)`` in [0, 1].
    """

    index: int
    total: int
    timestep: int
    level: Level
    sample: Tensor
    clean: Tensor
    _measured: Callable[[], dict[str, Any]] | None = dataclasses.field(repr=False)
    _render: Callable[[Tensor], Tensor] = dataclasses.field(repr=False)

    @property
    def image(self) -> Tensor:
        return at_least_float32(self._render(self.clean))

    @property
    def sample_image(self) -> Tensor:
        return at_least_float32(self._render(self.sample))

    @functools.cached_property
    def trace(self) -> dict[str, Any] | None:
        """Measurements of a guided step as plain numbers; None for a step without guidance.

        Lists by image: the ``loss`` at x̂0, ``loss_after`` the shift (None unless it was asked for), the
        ``gradient_norm`` and the rms ``movement`` of x̂0. ``skipped`` counts gradients that were not finite.
        ``seconds`` are those of the processor. Values are read from the device here and not earlier.
        """
        return None if self._measured is None else self._measured()


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A trace with lists and numbers in place of tensors."""
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in row.items()}


def sample(
    denoiser: Denoiser,
    scheduler: SchedulerMixin,
    x: Tensor,
    *,
    steps: int | Sequence[int] = 50,
    start: int = 0,
    objective: Callable[[Tensor], Tensor] | None = None,
    guidance: Guidance | str | None = None,
    eta: float = 0.0,
    generator: torch.Generator | list[torch.Generator] | None = None,
    after_step: Callable[[Tensor, int, Tensor], Tensor] | None = None,
    repeats: int = 1,
    checkpointing: bool = False,
    measure: bool = False,
) -> Iterator[Step]:
    """Denoise ``x`` step by step; yields a `Step` each.

    Arguments:
        x: the first sample ``(B, C, H, W)``; pure noise has the standard deviation ``scheduler.init_noise_sigma``.
        steps: the number of steps, or the falling timesteps themselves.
        start: index of the timestep to begin with; see `begin`.
        objective: images ``(B, 3, H, W)`` -> losses ``(B,)``.
        guidance: how the objective steers, or a preset's name; without it, or at scale 0, steps are as in diffusers.
        eta: noise of DDIM's steps in [0, 1]; 0 is deterministic, 1 as noisy as DDPM.
        generator: one, or one for each sample of the batch.
        after_step: ``(x, index, timestep) -> x``, applied to the result of every step.
        repeats: how often each step is run, with noise between the runs that takes its result back to the level it
            came from (Lugmayr et al., "RePaint" (2022)); a guidance's recurrence is the same. DDPM and DDIM only.
        checkpointing: recompute activations in the backward pass, which saves memory and costs time.
        measure: also the loss after the shift, which costs another forward pass of decoder and features.

    Raises:
        ValueError: an unknown scheduler, a guidance that it cannot follow, numbers outside their range, or a number of
            prompts or generators that differs from the batch; during the loop, a sample that is not finite.
    """
    scheduler, start = begin(scheduler, steps, start, x.device)
    eta, repeats = checks.fraction(eta, "eta"), checks.integer(repeats, "repeats", low=1)
    _check_batch(denoiser, checks.finite(x, "x"), generator)
    if guidance is not None:
        guidance = rules.settings(guidance, in_pixels=isinstance(denoiser.space, Pixels))
    elif objective is not None:
        raise ValueError("objective has no effect without a guidance, which says how it steers")
    guided = guidance is not None and guidance.is_on
    if max(repeats, guidance.recurrence if guided else 1) > 1 and not schedulers.is_memoryless(scheduler):
        memory = f"{type(scheduler).__name__} remembers earlier steps; use DDIMScheduler or DDPMScheduler"
        raise ValueError(f"repeating steps needs a scheduler without memory, but {memory}")
    if not callable(objective) and (guided or objective is not None):
        raise ValueError(f"guidance needs an objective, images -> one loss each, got {checks.describe(objective)}")
    if guided:
        check_scheduler(guidance, scheduler, eta)
        check_count(guidance.scales, x.shape[0])
        if guidance.unit == "correction" and (denoiser.embeddings is None or denoiser.guidance_scale == 1):
            raise ValueError(NO_CORRECTION)
    arguments = schedulers.step_arguments(scheduler, generator, eta) | {"return_dict": False}
    loop = _Loop(denoiser, scheduler, arguments, eta, objective, guidance if guided else None, checkpointing, measure)
    return _steps(loop, x, start, after_step, repeats, generator)


def finish(steps: Iterator[Step]) -> tuple[Step, list[dict]]:
    """Run a loop to its end: the last step, and the traces of the guided ones."""
    guided = []
    for step in steps:
        if step._measured is not None:  # a Step holds samples: keep the few numbers only
            guided.append(dataclasses.replace(step, sample=None, clean=None, _render=None))
    return step, [kept.trace for kept in guided]


def begin(
    scheduler: SchedulerMixin, steps: int | Sequence[int], start: int, device: torch.device | str
) -> tuple[SchedulerMixin, int]:
    """A copy of the scheduler with its timesteps set, and the index of the timestep that it will begin with.

    Schedulers of order 2 (Heun) run two entries of their timesteps as one step: an odd ``start`` moves to the next
    entry, which for Heun has the same level. PNDM runs its second step twice to gather history, wherever it begins.
    """
    scheduler = schedulers.timed(scheduler, steps, device=device)
    start = checks.integer(start, "start", low=0, high=len(scheduler.timesteps) - 1)
    if start == 0:
        return scheduler, 0
    if schedulers.is_a(scheduler, "LMSDiscreteScheduler"):
        raise ValueError("LMSDiscreteScheduler cannot begin late: it counts on a history that it then lacks")
    start += start % scheduler.order
    if schedulers.is_a(scheduler, "PNDMScheduler"):
        if not scheduler.config.skip_prk_steps:
            raise ValueError("PNDMScheduler begins late only without its Runge-Kutta steps: set skip_prk_steps=True")
        start, times = max(start, 2), scheduler.timesteps
        scheduler.timesteps = torch.cat([times[: start + 2], times[start + 1 :]])
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    return scheduler, start


def _check_batch(denoiser: Denoiser, x: Tensor, generator) -> None:
    prompts = getattr(denoiser, "embeddings", None)
    if x.ndim != 4 or (prompts is not None and len(prompts) != len(x)):
        number = "" if prompts is None else f" with one picture for each of the {len(prompts)} prompts"
        raise ValueError(f"x must have shape (B, C, H, W){number}, got {tuple(x.shape)}")
    if isinstance(generator, (list, tuple)) and len(generator) != len(x):
        raise ValueError(f"generator must be one, or one for each of {len(x)} pictures, got {len(generator)}")


def is_due(device: torch.device, index: int, total: int) -> bool:
    """Whether step ``index`` is one at which a loop reads back if its numbers are finite: on the CPU all of them."""
    return device.type == "cpu" or (index + 1) % CHECK_EVERY == 0 or index + 1 == total


def _steps(
    loop: "_Loop", x: Tensor, start: int, after_step: Callable | None, repeats: int, generator
) -> Iterator[Step]:
    scheduler = loop.scheduler
    levels, times = schedulers.levels(scheduler), [int(time) for time in scheduler.timesteps.tolist()]
    total = len(times)
    for index in range(start, total):
        t, level, time_number = scheduler.timesteps[index], levels[index], times[index]
        runs, rows = max(repeats, 1 if loop.guidance is None else loop.guidance.runs(index, total)), []  # of order 1
        for run in range(runs):
            with loop.context():
                after, clean, row = loop.step(x, t, level, index, time_number)
            rows.append(row)
            if after_step is not None:
                after = after_step(after, index, t)
            if run + 1 < runs:
                x = _renoised(scheduler, after, time_number, generator)
        x = after
        if is_due(x.device, index, total) and not x.isfinite().all():
            raise ValueError(f"the sample is not finite after step {index + 1} of {total} (timestep {time_number})")
        measured = rows[-1]
        if measured is not None:  # of the last run, but all skipped gradients and all the time
            sums = {name: sum(row[name] for row in rows) for name in ("skipped", "seconds")}
            measured = functools.partial(plain, {"index": index, "timestep": time_number} | measured | sums)
        yield Step(index, total, time_number, level, x, clean, measured, loop.denoiser.space.render)


@torch.no_grad()
def _renoised(scheduler: SchedulerMixin, after: Tensor, t: int, generator) -> Tensor:
    """A step's result taken back to the level it came from: ``√α·x' + √(1-α)·z``."""
    now, then = schedulers.alpha_bars(scheduler, t)
    alpha = now / then
    noise = randn_tensor(after.shape, generator=generator, device=after.device, dtype=after.dtype)
    return alpha**0.5 * after + (1 - alpha) ** 0.5 * noise


@dataclasses.dataclass(frozen=True)
class _Loop:
    """Steps of the stock scheduler, guided in the window of a guidance if there is one."""

    denoiser: Denoiser
    scheduler: SchedulerMixin
    arguments: dict
    eta: float
    objective: Callable[[Tensor], Tensor] | None
    guidance: Guidance | None
    checkpointing: bool
    measure: bool

    def context(self) -> contextlib.AbstractContextManager:
        if self.guidance is None:
            return torch.no_grad()
        return frozen(self.denoiser.unet, *self.denoiser.space.modules, checkpointing=self.checkpointing)

    def step(self, x: Tensor, t: Tensor, level: Level, index: int, number: int) -> tuple[Tensor, Tensor, dict | None]:
        """The result of a step, the clean estimate behind it, and the measurements of a guided one."""
        strength = 0.0 if self.guidance is None else rules.strength_at(self.guidance, self.scheduler, level, index)
        if strength:
            return self.guided(x, t, level, number, strength)
        with torch.no_grad(), self.clipping(self.guidance is None or self.guidance.clipping != "never"):
            output = self.denoiser(self.scheduler.scale_model_input(x, t), t)
            kind = schedulers.prediction_type(self.scheduler)
            clean = level.clean(at_least_float32(x), at_least_float32(output.prediction), kind)
            after = self.scheduler.step(output.whole, t, x, **self.arguments)[0]
            return after, schedulers.clip(self.scheduler, clean), None

    def guided(self, x: Tensor, t: Tensor, level: Level, number: int, strength: float) -> tuple[Tensor, Tensor, dict]:
        began = time.perf_counter()
        situation, output = self.situation(x, t, level, number)
        result = rules.guide(situation, self.guidance, strength)
        shifted = dataclasses.replace(output, prediction=result.prediction.to(x.dtype))
        with torch.no_grad(), self.clipping(self.guidance.clipping == "scheduler"):
            after = self.scheduler.step(shifted.whole, t, x, **self.arguments)[0]
        row = result.measured(level, strength, self.loss if self.measure else None)
        return after, result.clean, row | {"seconds": time.perf_counter() - began}

    def situation(self, x: Tensor, t: Tensor, level: Level, number: int) -> tuple[Situation, Output]:
        """What `guide` needs to know, and the network's output."""
        through = self.guidance.method in THROUGH
        leaf = at_least_float32(x.detach()).requires_grad_(through)
        with torch.set_grad_enabled(through):
            output = self.denoiser(self.scheduler.scale_model_input(leaf, t), t)
            prediction = at_least_float32(output.prediction)

        def pull(cotangent: Tensor) -> Tensor:
            return torch.autograd.grad(prediction, leaf, cotangent)[0]

        output = output.detached()
        correction = None if output.correction is None else self.denoiser.guidance_scale * output.correction
        options = {"pull": pull if through else None, "variance": output.variance, "correction": correction}
        options |= {"eta": self.eta, "palette": self.palette}
        sample, detached = leaf.detach(), prediction.detach()
        return Situation(self.scheduler, level, number, sample, detached, self.loss, **options), output

    def loss(self, clean: Tensor) -> Tensor:
        return self.objective(self.denoiser.space.decode(clean))

    @functools.cached_property
    def palette(self) -> Palette | None:
        """Of the style, if the objective has one and the guidance asks for it."""
        wanted = self.guidance.palette and hasattr(self.objective, "palette")
        return self.objective.palette(self.denoiser.space.encode) if wanted else None

    def clipping(self, allowed: bool) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if allowed else schedulers.without_clipping(self.scheduler)
