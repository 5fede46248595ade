"""One guided denoising step: the gradient of a loss on images, turned into a shift of the predicted noise.

Notation: a sample ``x = a·x0 + b·ε`` with ``ᾱ = a²/(a²+b²)``, the network's estimates ε̂ and x̂0, a loss L of the decoded
estimate, its gradients ``g0 = ∂L/∂x̂0`` and ``g = ∂L/∂x = Jᵀ g0`` through the U-Net, and a scale s. Every method is a
shift δε of the predicted noise, made before ``scheduler.step``, so that any scheduler stays consistent:

``noise``
    ``δε = s·b·g``: the score is that of ``p(x)·exp(-s·L(x̂0(x)))``. Any scheduler.
    Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis" (2021), algorithm 2.
``mean``
    The step's mean moves by ``-s·Σ·g``: algorithm 1 of that paper and of the exercise. DDPM, and DDIM with η > 0.
``sample``
    The step's result moves by ``-s·g``. DDPM and DDIM. Chung et al., "Diffusion Posterior Sampling" (2023).
``clean``
    ``δx0 = -s·(1-ᾱ)·g0``: the U-Net's Jacobian is replaced by that of unit-variance data, and neither its forward nor
    its backward pass keeps a graph. Any scheduler. Cf. He et al., "Manifold Preserving Guided Diffusion" (2024).
``both``
    ``noise`` and ``clean`` mixed: Ye et al., "TFG: Unified Training-Free Guidance" (2024), algorithm 1. Any scheduler.
``noisy``
    The loss of x itself, ``g = ∂L(decode(x))/∂x``: what the exercise warns of. Any scheduler.

A gradient is first taken in x̂0, scaled to rms 1 per image, then carried through the U-Net and scaled back: this is what
loss scaling is for in float16, and it is exact.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ex4lib.diffusion import schedulers
from ex4lib.diffusion.denoisers import Denoiser, Output
from ex4lib.diffusion.process import Level
from ex4lib.statistics import at_least_float32

METHODS = ("noise", "mean", "sample", "clean", "both", "noisy")
UNITS = ("noise", "raw", "correction")
CLIPPING = ("first", "scheduler", "never")

#: Below this share of signal in a sample, x̂0 is noise divided by nearly nothing, and there is nothing to guide.
LEAST_SIGNAL = 1e-3

#: Strength along the sampling, as a function of the position u in the window and of the progress p, both in [0, 1).
RAMPS: dict[str, Callable[[float, float], float]] = {
    "constant": lambda u, p: 1.0,
    "rising": lambda u, p: 2 * u,
    "falling": lambda u, p: 2 * (1 - u),
    "late": lambda u, p: 1.0 if p < 0.5 else 1.5,  # a course report's: half as much again from halfway
}


@dataclasses.dataclass(frozen=True)
class Guidance:
    """How a loss steers the sampling; plain numbers and names, so that it can be stored.

    Arguments:
        scale: s; a number, or one per image of the batch. 0 takes no gradient and is the stock sampler bit by bit. The
            default moves a picture towards the painting and leaves it what the prompt says; 0.2 repaints it, at the
            prompt's expense (both measured in notebook 06).
        method: one of `METHODS`.
        unit: what s is measured in. ``"noise"``: per image, ``rms(δε) = s · rms(ε̂)``, which means the same for every
            loss, scheduler, number of steps and resolution. ``"raw"``: the method's equation, s is the inverse
            temperature of exp(-s·L). ``"correction"``: per image, the rms of what the method moves (ε, the step's
            result, or x̂0) is s times that of γ·(ε_c - ε_u), the unit of FreeDoM and MPGD; needs a prompt and γ ≠ 1.
        window: guided while ``start <= i/n < stop`` for step i of n.
        ramp: one of `RAMPS`, a factor on the scale.
        inner: iterations on x̂0 of ``clean`` and ``both``, each with a share of the scale and its own gradient.
        clean_share: the part of the scale that ``both`` gives to ``clean``.
        recurrence: how often a step is run; between runs its result is noised again. DDPM and DDIM only.
        recurrence_window: where steps are repeated, as in ``window``.
        clipping: ``"first"``: x̂0 is clipped as the scheduler is configured to and then shifted (as OpenAI's code
            does); ``"scheduler"``: its clipping comes last and eats part of the shift; ``"never"``.

    Raises:
        ValueError: a value that is none of these.
    """

    scale: float | tuple[float, ...] = 0.05
    method: str = "noise"
    unit: str = "noise"
    window: tuple[float, float] = (0.0, 1.0)
    ramp: str = "constant"
    inner: int = 1
    clean_share: float = 0.5
    recurrence: int = 1
    recurrence_window: tuple[float, float] = (0.0, 1.0)
    clipping: str = "first"

    def __post_init__(self):
        for name, accepted in (("method", METHODS), ("unit", UNITS), ("ramp", RAMPS), ("clipping", CLIPPING)):
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} must be one of {', '.join(accepted)}, got {getattr(self, name)!r}")
        if not all(0 <= scale < math.inf for scale in self.scales):
            raise ValueError(f"style_scale must be finite and at least 0, got {self.scale}")
        for name in ("window", "recurrence_window"):
            start, stop = getattr(self, name)
            if not 0 <= start <= stop <= 1:
                raise ValueError(f"{name} must be fractions 0 <= start <= stop <= 1, got {(start, stop)}")
        if self.inner < 1 or self.recurrence < 1 or not 0 <= self.clean_share <= 1:
            raise ValueError(
                "inner and recurrence must be at least 1 and clean_share between 0 and 1, got "
                f"{self.inner}, {self.recurrence} and {self.clean_share}"
            )

    @property
    def scales(self) -> tuple[float, ...]:
        return tuple(self.scale) if isinstance(self.scale, Sequence) else (self.scale,)

    @property
    def is_on(self) -> bool:
        """Whether any image is guided at all."""
        return any(scale > 0 for scale in self.scales) and self.window[0] < self.window[1]

    def strength(self, index: int, total: int) -> float:
        """The factor on the scale at step ``index`` of ``total``; 0 outside the window."""
        progress, (start, stop) = index / total, self.window
        if not (start <= progress < stop):
            return 0.0
        return RAMPS[self.ramp]((progress - start) / (stop - start), progress)

    def runs(self, index: int, total: int) -> int:
        """How often step ``index`` is run."""
        start, stop = self.recurrence_window
        return self.recurrence if start <= index / total < stop and self.strength(index, total) > 0 else 1


#: The full gradient, the default.
FULL = Guidance()
#: The cheap gradient: no Jacobian of the U-Net.
CHEAP = Guidance(method="clean")
#: The exercise's algorithm 1. Needs DDPM, or DDIM with η > 0.
ALGORITHM_1 = Guidance(method="mean", unit="raw", scale=100.0)
#: Yu et al., "FreeDoM: Training-Free Energy-Guided Conditional Diffusion Model" (2023), as its code draws styles.
#: Differs from it in the loss (statistics of a VGG, not of CLIP) and in moving the prediction, not the result.
FREEDOM = Guidance(
    scale=0.2,
    method="sample",
    unit="correction",
    window=(0.3, 0.7),
    recurrence=3,
    recurrence_window=(0.3, 0.6),
)
#: He et al., "Manifold Preserving Guided Diffusion" (2024), the latent variant, as its code draws styles. Differs from
#: it as `FREEDOM` does.
MPGD = Guidance(scale=15.0, method="clean", unit="correction", window=(0.3, 0.7))
PRESETS = {"full": FULL, "cheap": CHEAP, "algorithm-1": ALGORITHM_1, "freedom": FREEDOM, "mpgd": MPGD}


@dataclasses.dataclass(frozen=True)
class Situation:
    """What a guided step knows: the sample, where it is, and who predicts."""

    denoiser: Denoiser
    scheduler: object
    objective: Callable[[Tensor], Tensor]
    sample: Tensor
    timestep: Tensor
    level: Level
    eta: float


@dataclasses.dataclass(frozen=True)
class Guided:
    """The result of `guide`: the network's output, the shifted prediction, and what the trace tells of it.

    All but the first three are ``(B,)``: the loss at x̂0 before the shift, the norm of the gradient that was used, the
    rms by which x̂0 moves, and whether a gradient that was not finite was left out.
    """

    output: Output
    prediction: Tensor
    clean: Tensor
    loss: Tensor
    gradient_norm: Tensor
    movement: Tensor
    skipped: Tensor


def guide(here: Situation, guidance: Guidance, strength: float) -> Guided:
    """Predict, take the gradient, and shift the prediction.

    Arguments:
        strength: factor on the scale at this step.
    """
    kind = here.scheduler.config.prediction_type
    through = guidance.method in ("noise", "mean", "sample", "both")
    leaf = at_least_float32(here.sample.detach()).requires_grad_(through)
    with torch.set_grad_enabled(through):
        scaled = here.scheduler.scale_model_input(leaf, here.timestep)
        output = here.denoiser(scaled, here.timestep)
        estimate = here.level.clean(leaf, at_least_float32(output.prediction), kind)
    output = output.detached()
    noise = here.level.noise_of(leaf.detach(), at_least_float32(output.prediction), kind)
    clean = estimate.detach()
    scale = strength * _per_image(guidance.scales, clean)
    shift, norm, loss, skipped = torch.zeros_like(clean), torch.zeros_like(scale), None, torch.zeros_like(scale).bool()

    if guidance.method == "noisy":
        loss, gradient = _gradient(here, leaf.detach())
        direction, bad = _finite(gradient)
        shift += _sized(direction, scale, here, guidance, noise, output)
        norm, skipped = _norm(direction), bad
    if through:
        loss, gradient = _gradient(here, clean)
        size = _rms(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)
        (carried,) = torch.autograd.grad(estimate, leaf, gradient / size)
        direction, bad = _finite(carried * size)
        share = 1 - guidance.clean_share if guidance.method == "both" else 1.0
        shift += _sized(direction, share * scale, here, guidance, noise, output)
        norm, skipped = _norm(direction), bad
    if guidance.method in ("clean", "both"):
        share = (guidance.clean_share if guidance.method == "both" else 1.0) / guidance.inner
        moved = torch.zeros_like(clean)
        for iteration in range(guidance.inner):
            if iteration or not through:
                value, gradient = _gradient(here, clean + here.level.clean_shift(moved))
                loss = value if loss is None else loss
            direction, bad = _finite(gradient)
            moved += _sized(direction, share * scale, here, guidance, noise, output, clean=True)
            norm, skipped = norm if through else _norm(direction), skipped | bad
        shift += moved

    base, prediction = clean, at_least_float32(output.prediction)
    if guidance.clipping == "first" and schedulers.clips(here.scheduler):
        base = schedulers.clip(here.scheduler, clean)
        prediction = prediction + here.level.output_shift(here.level.noise_shift(base - clean), kind)
    movement = here.level.clean_shift(shift)
    return Guided(
        output=output,
        prediction=(prediction + here.level.output_shift(shift, kind)).to(here.sample.dtype),
        clean=base + movement,
        loss=loss,
        gradient_norm=norm.flatten(),
        movement=_rms(movement).flatten(),
        skipped=skipped.flatten(),
    )


def _gradient(here: Situation, clean: Tensor) -> tuple[Tensor, Tensor]:
    """Loss ``(B,)`` of the decoded picture and its gradient in ``clean``."""
    leaf = clean.detach().requires_grad_()
    with torch.enable_grad():
        loss = here.objective(here.denoiser.space.decode(leaf))
        if loss.shape != leaf.shape[:1]:
            raise ValueError(
                f"an objective must give one loss per image, {leaf.shape[0]} here, got {tuple(loss.shape)}"
            )
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), gradient


def _sized(
    direction: Tensor,
    scale: Tensor,
    here: Situation,
    guidance: Guidance,
    noise: Tensor,
    output: Output,
    *,
    clean: bool = False,
) -> Tensor:
    """The shift of ε along a gradient: by the method's equation, or of the rms that the unit asks for."""
    level = here.level
    method = "clean" if clean else guidance.method
    if guidance.unit == "noise":
        return scale * _rms(noise) / _rms(direction).clamp_min(torch.finfo(direction.dtype).tiny) * direction
    if guidance.unit == "correction":
        if output.correction is None:
            raise ValueError("unit 'correction' needs a prompt and a guidance_scale other than 1")
        correction = here.denoiser.guidance_scale * at_least_float32(output.correction)
        scale = scale * _rms(correction) / _rms(direction).clamp_min(torch.finfo(direction.dtype).tiny)
    elif method == "clean":
        scale = scale * (1 - level.alpha_bar)
    if method == "clean":
        return level.noise_shift(-scale * direction)
    if method in ("mean", "sample"):
        step = schedulers.transition(here.scheduler, int(here.timestep), here.eta, output.variance)
        variance = step.variance if method == "mean" else 1.0
        return scale * variance / step.response * direction
    return scale * (level.noise if guidance.unit == "raw" else 1.0) * direction


def _finite(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient, 0 for images where it is not finite, and which those are."""
    bad = ~gradient.flatten(1).isfinite().all(1).view(-1, 1, 1, 1)
    return gradient.masked_fill(bad, 0.0), bad


def _rms(x: Tensor) -> Tensor:
    return x.square().mean((1, 2, 3), keepdim=True).sqrt()


def _norm(x: Tensor) -> Tensor:
    return x.square().sum((1, 2, 3), keepdim=True).sqrt()


def _per_image(scales: Sequence[float], like: Tensor) -> Tensor:
    if len(scales) not in (1, like.shape[0]):
        raise ValueError(f"style_scale must be one number or one per image, {like.shape[0]} here, got {len(scales)}")
    return torch.tensor(scales, dtype=like.dtype, device=like.device).view(-1, 1, 1, 1).expand(like.shape[0], 1, 1, 1)
