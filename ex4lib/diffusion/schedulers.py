"""Schedulers of diffusers: the noise level of every step, the variance and response of some steps, and clipping."""

import contextlib
import copy
import dataclasses
import inspect
import itertools
import math
from collections.abc import Iterator, Sequence

import diffusers
import torch
from diffusers import SchedulerMixin
from torch import Tensor

from ex4lib import checks
from ex4lib.diffusion.process import PREDICTIONS, Level

#: By their samples: √ᾱ·x0 + √(1-ᾱ)·ε (preserving), x0 + σ·ε (exploding), or (1-σ)·x0 + σ·ε (rectified flow).
PRESERVING = ("DDPM", "DDIM", "PNDM", "DPMSolverMultistep", "UniPCMultistep", "DEISMultistep", "LCM")
EXPLODING = ("EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete", "KDPM2Discrete")
PRESERVING, EXPLODING = (tuple(f"{name}Scheduler" for name in names) for names in (PRESERVING, EXPLODING))
FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
#: For networks that predict noise, v or the clean sample, and so with one noise schedule among them.
SUPPORTED = PRESERVING + EXPLODING
#: Below these ratios of signal to noise, x̂0 is noise divided by nearly nothing, and there is nothing to guide. A flow
#: starts at σ = 1, where a shift of the velocity is infinite; it is guided from σ = 0.95 on.
LEAST_SIGNAL, LEAST_FLOW_SIGNAL = 1e-3, 0.05 / 0.95


def is_a(scheduler: SchedulerMixin, *names: str) -> bool:
    """Whether the scheduler is one of these classes of diffusers."""
    return isinstance(scheduler, tuple(getattr(diffusers, name) for name in names))


def check(scheduler: SchedulerMixin) -> SchedulerMixin:
    """Return the scheduler if guidance supports it."""
    if not is_a(scheduler, *SUPPORTED, *FLOW):
        names = ", ".join(SUPPORTED + FLOW)
        raise ValueError(f"to be guided, the scheduler must be one of {names}, got {type(scheduler).__name__}")
    kind = prediction_type(scheduler)
    if kind not in PREDICTIONS or scheduler.config.get("use_flow_sigmas"):
        raise ValueError(f"to be guided, the scheduler must predict {', '.join(PREDICTIONS[:3])}, got {kind}")
    return scheduler


def prediction_type(scheduler: SchedulerMixin) -> str:
    """What the network predicts: one of `process.PREDICTIONS`."""
    return "flow_prediction" if is_a(scheduler, *FLOW) else scheduler.config.prediction_type


def named(name: str, original: SchedulerMixin) -> SchedulerMixin:
    """A scheduler by its class name, with the noise schedule of another; PNDM without its Runge-Kutta warm-up."""
    if name not in SUPPORTED:
        raise ValueError(f"scheduler must be one of {', '.join(SUPPORTED)}, got {name!r}")
    options = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    return getattr(diffusers, name).from_config(original.config, **options)


def timed(
    scheduler: SchedulerMixin, steps: int | Sequence[int], *, device: torch.device | str = "cpu"
) -> SchedulerMixin:
    """A copy of the scheduler, ready to run a number of steps, or falling timesteps where it accepts them."""
    scheduler = copy.deepcopy(check(scheduler))
    trained = scheduler.config.num_train_timesteps
    if not isinstance(steps, (Sequence, Tensor)) or (isinstance(steps, Tensor) and steps.ndim == 0):
        scheduler.set_timesteps(checks.integer(steps, "steps", low=1, high=trained), device=device)
        return scheduler
    steps = [checks.integer(t, "each of steps", low=0, high=trained - 1) for t in steps]
    if not steps or any(earlier <= later for earlier, later in itertools.pairwise(steps)):
        raise ValueError(f"steps must be falling timesteps, at least one, got {checks.describe(steps)}")
    if "timesteps" not in inspect.signature(scheduler.set_timesteps).parameters:
        raise ValueError(f"{type(scheduler).__name__} takes a number of steps, not timesteps")
    scheduler.set_timesteps(timesteps=steps, device=device)
    return scheduler


def levels(scheduler: SchedulerMixin) -> list[Level]:
    """The noise level of every entry of ``scheduler.timesteps``, read from the device at once."""
    times = scheduler.timesteps.tolist()
    if not hasattr(scheduler, "sigmas"):
        alpha_bars = scheduler.alphas_cumprod.tolist()
        return [Level.preserving(alpha_bars[int(time)]) for time in times]
    sigmas = scheduler.sigmas.tolist()
    if is_a(scheduler, "KDPM2DiscreteScheduler"):  # the second call of a step lies between two levels
        sigmas[1::2] = scheduler.sigmas_interpol[: len(sigmas)].tolist()[1::2]
    sigmas = sigmas[: len(times)]
    if is_a(scheduler, *EXPLODING):
        return [Level(1.0, sigma) for sigma in sigmas]
    if is_a(scheduler, *FLOW):
        return [Level.flow(sigma) for sigma in sigmas]
    return [Level.preserving(1 / (1 + sigma**2)) for sigma in sigmas]  # DPM++, UniPC, DEIS: also between timesteps


def position(scheduler: SchedulerMixin, timestep: Tensor | float | None) -> int | None:
    """The entry of ``scheduler.timesteps`` that the scheduler is about to run; None if it cannot be known.

    Schedulers that count their steps are asked, and a timestep that is a view of ``scheduler.timesteps``, as pipelines
    hand it on, is known by its place in memory. Only the others are read from the device, to search for the timestep.
    """
    for name in ("step_index", "begin_index"):
        if getattr(scheduler, name, None) is not None:
            return int(getattr(scheduler, name))
    times, counts = scheduler.timesteps, hasattr(scheduler, "index_for_timestep")
    shares = isinstance(timestep, Tensor) and timestep.untyped_storage()._cdata == times.untyped_storage()._cdata
    if shares and not counts:
        return timestep.storage_offset() - times.storage_offset()
    equal = [] if timestep is None else (times == timestep).flatten().nonzero().flatten().tolist()
    if equal and counts:
        return int(scheduler.index_for_timestep(timestep))
    if len(equal) > 1 and getattr(scheduler, "counter", None) in equal:
        return scheduler.counter  # PNDM runs a timestep twice and counts its calls
    return equal[0] if equal else None


def is_guidable(level: Level, kind: str) -> bool:
    """Whether a sample at this level holds enough of the picture to be guided."""
    least = LEAST_FLOW_SIGNAL if kind == "flow_prediction" else LEAST_SIGNAL
    return level.signal >= least * level.noise


def is_memoryless(scheduler: SchedulerMixin) -> bool:
    """Whether a step depends on its sample and prediction alone, so that it may be repeated."""
    return is_a(scheduler, "DDPMScheduler", "DDIMScheduler")


def require_memoryless(scheduler: SchedulerMixin) -> None:
    """Raise a ValueError for a scheduler whose steps have no mean and variance of their own."""
    if not is_memoryless(scheduler):
        limit = "the mean of a step and its variance exist for DDPMScheduler and DDIMScheduler only"
        raise ValueError(f"{limit}, got {type(scheduler).__name__}; method 'noise' serves every scheduler")


def step_arguments(scheduler: SchedulerMixin, generator, eta: float) -> dict:
    """The keyword arguments that this scheduler's ``step`` accepts."""
    accepted = inspect.signature(scheduler.step).parameters
    return {name: value for name, value in {"eta": eta, "generator": generator}.items() if name in accepted}


@dataclasses.dataclass(frozen=True)
class Transition:
    """A step of a memoryless scheduler from ᾱ to ᾱ': its variance Σ, and how its mean answers to ε.

    ``x' = √ᾱ'·x0 + √(1-ᾱ'-σ²)·ε + σ·z`` (Song et al., "Denoising Diffusion Implicit Models" (2021), equation 12), so
    that a shift δε moves the mean by ``-response · δε`` with ``response = √(ᾱ'(1-ᾱ)/ᾱ) - √(1-ᾱ'-σ²)``. For DDPM, and
    for DDIM at η = 1, this is ``β / (√α √(1-ᾱ))``.
    """

    response: float
    variance: float | Tensor


def transition(scheduler: SchedulerMixin, t: int, eta: float, learned: Tensor | None = None) -> Transition:
    """The `Transition` of a step of DDPM or DDIM; ``learned`` holds the variance channels of the network, if any."""
    require_memoryless(scheduler)
    now, then = alpha_bars(scheduler, t)
    if is_a(scheduler, "DDPMScheduler"):
        variance = _ddpm_variance(scheduler, t, now, then, learned)
        response = (1 - now / then) / math.sqrt(now / then * (1 - now))
    else:
        variance = eta**2 * (1 - then) / (1 - now) * (1 - now / then)
        response = math.sqrt(then * (1 - now) / now) - math.sqrt(max(1 - then - variance, 0))
    return Transition(response, variance)


def alpha_bars(scheduler: SchedulerMixin, t: int) -> tuple[float, float]:
    """ᾱ before a step of DDPM or DDIM from timestep ``t``, and ᾱ' after it."""
    if is_a(scheduler, "DDPMScheduler"):
        before, clean = int(scheduler.previous_timestep(t)), 1.0
    else:
        stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        before, clean = t - stride, float(scheduler.final_alpha_cumprod)
    return float(scheduler.alphas_cumprod[t]), float(scheduler.alphas_cumprod[before]) if before >= 0 else clean


def _ddpm_variance(scheduler, t: int, now: float, then: float, learned: Tensor | None) -> float | Tensor:
    kind, beta = scheduler.config.variance_type, 1 - now / then
    if kind.startswith("fixed_large"):
        return beta
    if kind.startswith("learned"):
        variance = scheduler._get_variance(t, predicted_variance=learned)
        return variance.exp() if kind == "learned_range" else variance
    return (1 - then) / (1 - now) * beta


def clips(scheduler: SchedulerMixin) -> bool:
    """Whether the scheduler is configured to clip its estimate of x0."""
    return bool(scheduler.config.get("clip_sample") or scheduler.config.get("thresholding"))


def clip(scheduler: SchedulerMixin, clean: Tensor) -> Tensor:
    """x0 clipped as the scheduler is configured to: dynamic thresholding, clamping, or nothing."""
    if scheduler.config.get("thresholding"):
        return scheduler._threshold_sample(clean)
    if scheduler.config.get("clip_sample"):
        return clean.clamp(-scheduler.config.clip_sample_range, scheduler.config.clip_sample_range)
    return clean


@contextlib.contextmanager
def without_clipping(scheduler: SchedulerMixin) -> Iterator[None]:
    """The scheduler does not clip inside."""
    kept = {name: scheduler.config[name] for name in ("clip_sample", "thresholding") if name in scheduler.config}
    scheduler.register_to_config(**dict.fromkeys(kept, False))
    try:
        yield
    finally:
        scheduler.register_to_config(**kept)
