"""The sampling loop: a generator of steps, guided or not, over any supported scheduler."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from diffusers import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ex4lib.diffusion import schedulers
from ex4lib.diffusion.denoisers import Denoiser, frozen
from ex4lib.diffusion.guidance import LEAST_SIGNAL, Guidance, Situation, guide
from ex4lib.diffusion.process import Level
from ex4lib.statistics import at_least_float32


@dataclasses.dataclass(frozen=True)
class Step:
    """One denoising step.

    ``sample`` is what the step leaves, ``clean`` the estimate x̂0 it went towards, with the guidance in it; ``image``
    and ``sample_image`` decode them only when read. ``trace`` is None where the step was not guided, else it holds, by
    image, the ``loss`` at x̂0, ``loss_after`` the shift (if measured), the ``gradient_norm``, the rms ``movement`` of
    x̂0, and how many gradients were ``skipped`` because they were not finite; ``seconds``, on CUDA ``peak_bytes``.
    """

    index: int
    total: int
    timestep: int
    level: Level
    sample: Tensor
    clean: Tensor
    trace: dict | None
    _render: Callable[[Tensor], Tensor] = dataclasses.field(repr=False)

    @property
    def image(self) -> Tensor:
        return self._render(self.clean)

    @property
    def sample_image(self) -> Tensor:
        return self._render(self.sample)


def sample(
    denoiser: Denoiser,
    scheduler: SchedulerMixin,
    x: Tensor,
    *,
    steps: int | Sequence[int] = 50,
    start: int = 0,
    objective: Callable[[Tensor], Tensor] | None = None,
    guidance: Guidance | None = None,
    eta: float = 0.0,
    generator: torch.Generator | list[torch.Generator] | None = None,
    after_step: Callable[[Tensor, int, Tensor], Tensor] | None = None,
    repeats: int = 1,
    checkpointing: bool = False,
    measure: bool = False,
) -> Iterator[Step]:
    """Denoise ``x`` step by step; yields a `Step` each.

    Arguments:
        x: the first sample ``(B, C, H, W)``; pure noise is of deviation ``scheduler.init_noise_sigma``.
        steps: how many, or the timesteps themselves.
        start: index of the timestep to begin with.
        objective: images ``(B, 3, H, W)`` -> losses ``(B,)``.
        guidance: how the objective steers. Without one, or at scale 0, the steps are the stock scheduler's bit by bit.
        eta: of DDIM; 0 is deterministic, 1 as noisy as DDPM.
        after_step: ``(x, index, timestep) -> x``, applied to the result of every step.
        repeats: how often each step is run, with noise between the runs that takes its result back to the level it
            came from (Lugmayr et al., "RePaint" (2022)); a guidance's recurrence is the same. DDPM and DDIM only.
        checkpointing: recompute activations in the backward pass, for memory.
        measure: also the loss after the shift, which costs another forward pass of decoder and features.

    Raises:
        ValueError: a scheduler that is not known, or a guidance that it cannot follow.
    """
    scheduler = schedulers.timed(scheduler, steps, device=x.device, start=start)
    if not 0 <= start < len(scheduler.timesteps):
        raise ValueError(f"start must be between 0 and {len(scheduler.timesteps) - 1}, got {start}")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    if max(repeats, guidance.recurrence if guidance is not None and guidance.is_on else 1) > 1:
        _require_no_memory(scheduler)
    arguments = schedulers.step_arguments(scheduler, generator, eta)
    if guidance is None or not guidance.is_on:
        loop = _Loop(denoiser, scheduler, arguments, eta)
    else:
        if objective is None:
            raise ValueError("guidance needs an objective, images -> one loss each")
        check(guidance, scheduler, denoiser, x.shape[0], eta)
        loop = _GuidedLoop(denoiser, scheduler, arguments, eta, objective, guidance, checkpointing, measure)
    return _steps(loop, x, start, after_step, repeats, generator)


def finish(steps: Iterator[Step]) -> tuple[Step, list[dict]]:
    """Run a loop to its end: the last step and the rows of the trace."""
    rows = []
    for step in steps:
        rows += [step.trace] if step.trace is not None else []
    return step, rows


def check(guidance: Guidance, scheduler: SchedulerMixin, denoiser: Denoiser, batch: int, eta: float) -> None:
    """Say in one sentence what a scheduler or denoiser cannot do of a guidance.

    Raises:
        ValueError: a method that needs a mean or a variance which the scheduler does not have; a unit that needs a
            prompt; scales that do not fit the batch.
    """
    if guidance.method in ("mean", "sample") and guidance.unit != "noise":
        schedulers.require_memoryless(scheduler)
        if guidance.method == "mean" and schedulers.is_a(scheduler, "DDIMScheduler") and eta == 0:
            raise ValueError(
                "method 'mean' moves by the step's variance, which is 0 for DDIM at eta 0; use eta=1 or method 'noise'"
            )
    if guidance.unit == "correction" and (denoiser.embeddings is None or denoiser.guidance_scale == 1):
        raise ValueError("unit 'correction' needs a prompt and a guidance_scale other than 1")
    if len(guidance.scales) not in (1, batch):
        raise ValueError(f"style_scale must be one number or one per image, {batch} here, got {len(guidance.scales)}")


def _require_no_memory(scheduler: SchedulerMixin) -> None:
    if not schedulers.is_memoryless(scheduler):
        raise ValueError(
            f"repeating steps needs a scheduler without memory, but {type(scheduler).__name__} remembers earlier "
            "steps; use DDIMScheduler or DDPMScheduler"
        )


def _steps(loop: _Loop, x: Tensor, start: int, after_step: Callable | None, repeats: int, generator) -> Iterator[Step]:
    scheduler = loop.scheduler
    levels, total = schedulers.levels(scheduler), len(scheduler.timesteps)
    for index in range(start, total):
        t, level = scheduler.timesteps[index], levels[index]
        runs, rows = max(repeats, loop.runs(index, total)), []
        for run in range(runs):
            with loop.context():
                after, clean, row = loop.step(x, t, level, index, total)
            rows.append(row)
            if after_step is not None:
                after = after_step(after, index, t)
            if run + 1 < runs:
                x = _again(scheduler, after, int(t), generator)
        x = after
        yield Step(index, total, int(t), level, x, clean, _merged(rows), loop.denoiser.space.render)


@torch.no_grad()
def _again(scheduler: SchedulerMixin, after: Tensor, t: int, generator) -> Tensor:
    """A step's result taken back to its level: ``√α·x' + √(1-α)·z``."""
    now, then = schedulers.alpha_bars(scheduler, t)
    alpha = now / then
    noise = randn_tensor(after.shape, generator=generator, device=after.device, dtype=after.dtype)
    return alpha**0.5 * after + (1 - alpha) ** 0.5 * noise


def _merged(rows: list[dict | None]) -> dict | None:
    """The trace of a step over its runs: the last run's, with everything skipped and every second."""
    if rows[-1] is None:
        return None
    return rows[-1] | {name: sum(row[name] for row in rows) for name in ("skipped", "seconds")}


@dataclasses.dataclass(frozen=True)
class _Loop:
    """Steps of the stock scheduler."""

    denoiser: Denoiser
    scheduler: SchedulerMixin
    arguments: dict
    eta: float

    def runs(self, index: int, total: int) -> int:
        return 1

    def context(self) -> contextlib.AbstractContextManager:
        return torch.no_grad()

    def step(self, x: Tensor, t: Tensor, level: Level, index: int, total: int) -> tuple[Tensor, Tensor, None]:
        output = self.denoiser(self.scheduler.scale_model_input(x, t), t)
        kind = self.scheduler.config.prediction_type
        clean = level.clean(at_least_float32(x), at_least_float32(output.prediction), kind)
        return self.advance(output.whole, t, x), schedulers.clip(self.scheduler, clean), None

    def advance(self, output: Tensor, t: Tensor, x: Tensor) -> Tensor:
        return self.scheduler.step(output, t, x, **self.arguments, return_dict=False)[0]


@dataclasses.dataclass(frozen=True)
class _GuidedLoop(_Loop):
    """Steps guided in the window, the stock scheduler's outside of it."""

    objective: Callable[[Tensor], Tensor]
    guidance: Guidance
    checkpointing: bool
    measure: bool

    def runs(self, index: int, total: int) -> int:
        return self.guidance.runs(index, total)

    def context(self) -> contextlib.AbstractContextManager:
        return frozen(self.denoiser, checkpointing=self.checkpointing)

    def step(self, x: Tensor, t: Tensor, level: Level, index: int, total: int) -> tuple[Tensor, Tensor, dict | None]:
        strength = self.guidance.strength(index, total)
        if not strength or level.signal < LEAST_SIGNAL * level.noise:
            with torch.no_grad(), self.clipping(self.guidance.clipping != "never"):
                return super().step(x, t, level, index, total)
        began = time.perf_counter()
        if x.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(x.device)
        here = Situation(self.denoiser, self.scheduler, self.objective, x, t, level, self.eta)
        found = guide(here, self.guidance, strength)
        shifted = dataclasses.replace(found.output, prediction=found.prediction)
        with torch.no_grad(), self.clipping(self.guidance.clipping == "scheduler"):
            after = self.advance(shifted.whole, t, x)
        row = {
            "index": index,
            "timestep": int(t),
            "noise": level.noise,
            "strength": strength,
            "loss": found.loss.tolist(),
            "loss_after": self.loss(found.clean) if self.measure else None,
            "gradient_norm": found.gradient_norm.tolist(),
            "movement": found.movement.tolist(),
            "skipped": int(found.skipped.sum()),
        }
        row["seconds"] = time.perf_counter() - began
        if x.device.type == "cuda":
            row["peak_bytes"] = torch.cuda.max_memory_allocated(x.device)
        return after, found.clean, row

    @torch.no_grad()
    def loss(self, clean: Tensor) -> list[float]:
        return self.objective(self.denoiser.space.decode(clean)).tolist()

    def clipping(self, allowed: bool) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if allowed else schedulers.without_clipping(self.scheduler)
