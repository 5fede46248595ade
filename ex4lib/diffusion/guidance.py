"""One guided denoising step: the gradient of a loss on images, turned into a shift of the predicted noise.

Notation: a sample ``x = a·x0 + b·ε`` with ``ᾱ = a²/(a²+b²)``, the network's estimates ε̂ and x̂0, a loss L of the decoded
estimate, its gradients ``g0 = ∂L/∂x̂0`` and ``g = ∂L/∂x = Jᵀ g0`` through the network, and a scale s. Every method is a
shift δε of the predicted noise, made before ``scheduler.step``, so that any scheduler stays consistent:

``noise``
    ``δε = s·b·g``: the score is that of ``p(x)·exp(-s·L(x̂0(x)))``. Any scheduler.
    Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis" (2021), algorithm 2.
``mean``
    The step's mean moves by ``-s·Σ·g``: algorithm 1 of that paper and of the exercise. DDPM, and DDIM with η > 0.
``sample``
    The step's result moves by ``-s·g``. DDPM and DDIM. Chung et al., "Diffusion Posterior Sampling" (2023).
``clean``
    ``δx0 = -s·(1-ᾱ)·g0``: the network's Jacobian is replaced by that of unit-variance data, and neither its forward nor
    its backward pass keeps a graph. Any scheduler. Cf. He et al., "Manifold Preserving Guided Diffusion" (2024).
``both``
    ``noise`` and ``clean`` mixed: Ye et al., "TFG: Unified Training-Free Guidance" (2024), algorithm 1. Any scheduler.
``noisy``
    The loss of x itself, ``g = ∂L(decode(x))/∂x``: what the exercise warns of. Any scheduler.

A gradient is first taken in x̂0, scaled to rms 1 per image, then carried through the network and scaled back: this is
what loss scaling is for in float16, and it is exact.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Real

import torch
from torch import Tensor

from ex4lib import checks
from ex4lib.diffusion import schedulers
from ex4lib.diffusion.process import Level

METHODS = ("noise", "mean", "sample", "clean", "both", "noisy")
#: Methods that need the gradient through the network.
THROUGH = ("noise", "mean", "sample", "both")
UNITS = ("noise", "raw", "correction")
CLIPPING = ("scheduler", "first", "never")
#: The largest scale but for the unit ``"raw"``: beside a shift a thousand times its size, half precision, whose numbers
#: have 11 bits, loses the prediction itself, and nothing is left of the picture.
MOST_SCALE = 1000.0
#: Units without a meaning of their own: a shift of ε by its rms forgets what ``mean`` and ``sample`` multiply it with.
MEANINGLESS = (("mean", "noise"), ("sample", "noise"), ("mean", "correction"))

NO_CORRECTION = "unit 'correction' needs a prompt and a guidance_scale other than 1"

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

    The fields' defaults are the plain equation: one strength at every step. `guided` uses `DEFAULT` or `IN_PIXELS`.

    Arguments:
        scale: s; a number, or one per image of the batch. 0 takes no gradient, and the pictures are bit-identical to
            those of the stock sampler. More of it repaints the picture at the prompt's expense.
        method: one of `METHODS`.
        unit: what s is measured in. ``"noise"``: per image, ``rms(δε) = s · rms(ε̂)``, which means the same for every
            loss, scheduler, number of steps and resolution. ``"raw"``: the method's equation, s is the inverse
            temperature of exp(-s·L). ``"correction"``: per image, the rms of what the method moves (ε, the step's
            result, or x̂0) is s times that of γ·(ε_c - ε_u), the unit of FreeDoM and MPGD; needs a prompt and γ ≠ 1.
            ``mean`` has the unit raw only, ``sample`` raw and correction.
        window: guided while ``start <= i/n < stop`` for step i of n, counted in the full schedule.
        every: guide every k-th step of the window only, at the same scale.
        ramp: one of `RAMPS`, a factor on the scale.
        palette: before the gradient, x̂0 goes ``palette · s`` of the way (with the ramp, at most all of it) to the
            `colour.Palette` of the style: its channels' mean and covariance. A gradient moves colours slowly, since
            it looks at every layer at once. Unit ``"noise"`` only; an objective of one's own has no palette.
        inner: iterations on x̂0 of ``clean`` and ``both``, each with a share of the scale and its own gradient.
        clean_share: the part of the scale that ``both`` gives to ``clean``.
        recurrence: how often a step is run; between runs its result is noised again. DDPM and DDIM in the library's
            own loop only.
        recurrence_window: where steps are repeated, as in ``window``.
        clipping: where the scheduler clips x̂0. ``"scheduler"``: after the shift, of which it removes a part, and
            s → 0 tends to the unguided picture. In the library's own loop also ``"first"``: x̂0 is clipped and then
            shifted, as OpenAI's code does; ``"never"``.
        style_loss: a name of `ex4lib.statistics.STATISTICS`.
        size: longer side in pixels at which the feature network sees the pictures; None is their own, but at least
            `steering.LEAST_SIZE`.
    """

    scale: float | tuple[float, ...] = 0.2
    method: str = "noise"
    unit: str = "noise"
    window: tuple[float, float] = (0.0, 1.0)
    every: int = 1
    ramp: str = "constant"
    palette: float = 0.0
    inner: int = 1
    clean_share: float = 0.5
    recurrence: int = 1
    recurrence_window: tuple[float, float] = (0.0, 1.0)
    clipping: str = "scheduler"
    style_loss: str = "gram"
    size: int | None = None

    def __post_init__(self):
        for name, accepted in (("method", METHODS), ("unit", UNITS), ("ramp", RAMPS), ("clipping", CLIPPING)):
            checks.choice(getattr(self, name), name, accepted)
        if (self.method, self.unit) in MEANINGLESS:
            units = [unit for unit in UNITS if (self.method, unit) not in MEANINGLESS]
            raise ValueError(f"method {self.method!r} has the unit {' or '.join(units)}, got {self.unit!r}")
        checks.values(self.scales, "style_scale", low=0, high=math.inf if self.unit == "raw" else MOST_SCALE)
        for name in ("window", "recurrence_window"):
            pair = checks.interval(getattr(self, name), name)
            if {type(number) for number in getattr(self, name)} - {int, float}:  # stored runs tell 0 from 0.0
                object.__setattr__(self, name, pair)
        for name in ("every", "inner", "recurrence", *(["size"] if self.size is not None else [])):
            object.__setattr__(self, name, checks.integer(getattr(self, name), name, low=1))
        if self.inner > 1 and self.method not in ("clean", "both"):
            raise ValueError(f"inner iterations belong to the methods clean and both, got method {self.method!r}")
        checks.fraction(self.clean_share, "clean_share")
        object.__setattr__(self, "palette", checks.number(self.palette, "palette", low=0))
        if self.palette and self.unit != "noise":
            raise ValueError(f"palette multiplies a scale in the unit noise, got unit {self.unit!r}")

    @property
    def scales(self) -> tuple[float, ...]:
        single = isinstance(self.scale, (Real, str)) or getattr(self.scale, "ndim", 1) == 0
        return (self.scale,) if single or not isinstance(self.scale, Iterable) else tuple(self.scale)

    @property
    def is_on(self) -> bool:
        """Whether any image is guided at all."""
        return any(scale > 0 for scale in self.scales) and self.window[0] < self.window[1]

    def strength(self, index: int, total: int) -> float:
        """The factor on the scale at step ``index`` of ``total``; 0 outside the window and between guided steps."""
        progress, (start, stop) = index / total, self.window
        if not (start <= progress < stop) or (index - math.ceil(start * total)) % self.every:
            return 0.0
        return RAMPS[self.ramp]((progress - start) / (stop - start), progress)

    def runs(self, index: int, total: int) -> int:
        """How often step ``index`` is run."""
        start, stop = self.recurrence_window
        return self.recurrence if start <= index / total < stop and self.strength(index, total) > 0 else 1


#: What is used where nothing else is asked for. The layout is left alone at first; then the pull of the painting grows
#: while the noise, and with it the unit of the scale, falls. docs/guidance.md says how it was chosen.
DEFAULT = Guidance(scale=0.5, method="clean", ramp="rising", window=(0.3, 1.0), palette=0.8)
#: The default of pipelines in pixels: a shift without the network's Jacobian would stay as grain (notebook 04).
IN_PIXELS = Guidance(scale=0.4, window=(0.66, 1.0), palette=1.0)
#: The gradient through the network, at every step.
FULL = Guidance()
#: Half of the default's gradients, each of twice the strength.
CHEAP = dataclasses.replace(DEFAULT, scale=1.0, every=2)
#: The exercise's algorithm 1. Needs DDPM, or DDIM with η > 0. A raw scale belongs to one model, loss and number of
#: steps: with the embedded faces and the Gram loss this one is visible, and ten times as much overflows (notebook 04).
ALGORITHM_1 = Guidance(method="mean", unit="raw", scale=0.01)
#: Yu et al., "FreeDoM: Training-Free Energy-Guided Conditional Diffusion Model" (2023), as its code draws styles.
#: Differs from it in the loss (statistics of a VGG, not of CLIP) and in moving the prediction, not the result.
FREEDOM = Guidance(
    scale=0.2, method="sample", unit="correction", window=(0.3, 0.7), recurrence=3, recurrence_window=(0.3, 0.6)
)
#: He et al., "Manifold Preserving Guided Diffusion" (2024), the latent variant, as its code draws styles. Differs from
#: it as `FREEDOM` does.
MPGD = Guidance(scale=15.0, method="clean", unit="correction", window=(0.3, 0.7))
PRESETS = {
    "default": DEFAULT,
    "in-pixels": IN_PIXELS,
    "full": FULL,
    "cheap": CHEAP,
    "algorithm-1": ALGORITHM_1,
    "freedom": FREEDOM,
    "mpgd": MPGD,
}


def settings(guidance: Guidance | str = "default", *, style_scale=None, in_pixels: bool = False, **changes) -> Guidance:
    """A `Guidance`, or a name of `PRESETS` (of which ``in_pixels`` changes the default), with some fields changed."""
    if not isinstance(guidance, Guidance):
        if not isinstance(guidance, str) or guidance not in PRESETS:
            names = ", ".join(PRESETS)
            raise ValueError(f"guidance must be a Guidance or one of {names}, got {checks.describe(guidance)}")
        guidance = IN_PIXELS if in_pixels and guidance == "default" else PRESETS[guidance]
    if style_scale is not None:
        scales = checks.values(style_scale, "style_scale")
        single = isinstance(style_scale, Real) or getattr(style_scale, "ndim", 1) == 0
        changes["scale"] = scales[0] if single else tuple(scales)
    return dataclasses.replace(guidance, **{name: value for name, value in changes.items() if value is not None})


def strength_at(guidance: Guidance, scheduler, level: Level, index: int) -> float:
    """The factor on the scale at an entry of the scheduler's timesteps; 0 where it is not guided."""
    guidable = guidance.is_on and schedulers.is_guidable(level, schedulers.prediction_type(scheduler))
    order = scheduler.order  # entries of the timesteps that are one step
    return guidance.strength(index // order, -(-len(scheduler.timesteps) // order)) if guidable else 0.0


def check_scheduler(guidance: Guidance, scheduler, eta: float) -> None:
    """Raise a ValueError for a method that needs a mean or a variance which the scheduler's steps do not have."""
    if guidance.method in ("mean", "sample"):
        schedulers.require_memoryless(scheduler)
    if guidance.method == "mean" and schedulers.is_a(scheduler, "DDIMScheduler") and eta == 0:
        raise ValueError(
            "method 'mean' moves by the step's variance, which is 0 for DDIM at eta 0; use eta=1 or method 'noise'"
        )


def check_count(scales: Sequence[float], batch: int) -> None:
    """Raise a ValueError for scales that are neither one nor one per image."""
    if len(scales) not in (1, batch):
        raise ValueError(f"style_scale must be one number or one per image, {batch} here, got {len(scales)}")


@dataclasses.dataclass(frozen=True)
class Situation:
    """What a guided step knows. Tensors are at least float32, have no graph, and are ``(B, C, H, W)`` or ``(B, L, C)``.

    Arguments:
        prediction: of the network, guided by the prompt, of the kind `schedulers.prediction_type`.
        loss: clean samples -> losses ``(B,)``, through the decoder.
        pull: cotangent of the prediction -> its gradient in the sample, through the network; None keeps to ``clean``.
        variance: channels of a learned variance, if there are any.
        correction: ``γ·(ε_c - ε_u)`` in the prediction's kind, if there is a prompt.
        palette: clean samples -> the same with the colours of the style, if it has any.
    """

    scheduler: object
    level: Level
    timestep: int
    sample: Tensor
    prediction: Tensor
    loss: Callable[[Tensor], Tensor]
    pull: Callable[[Tensor], Tensor] | None = None
    variance: Tensor | None = None
    correction: Tensor | None = None
    eta: float = 0.0
    palette: Callable[[Tensor], Tensor] | None = None

    @property
    def kind(self) -> str:
        return schedulers.prediction_type(self.scheduler)

    @property
    def clean(self) -> Tensor:
        """x̂0."""
        return self.level.clean(self.sample, self.prediction, self.kind)

    @property
    def noise(self) -> Tensor:
        """ε̂."""
        return self.level.noise_of(self.sample, self.prediction, self.kind)

    @functools.cached_property
    def step(self) -> schedulers.Transition:
        """Of DDPM and DDIM."""
        return schedulers.transition(self.scheduler, self.timestep, self.eta, self.variance)

    @functools.cached_property
    def gradient(self) -> tuple[Tensor, Tensor]:
        """The losses ``(B,)`` at x̂0 and their gradient g0."""
        return gradient(self.loss, self.clean)


@dataclasses.dataclass(frozen=True)
class Shift:
    """A shift δε; all but it ``(B,)``: the loss before it, the norm of the gradient, where that was not finite."""

    noise: Tensor
    loss: Tensor
    gradient_norm: Tensor
    skipped: Tensor


@dataclasses.dataclass(frozen=True)
class Guided:
    """The result of `guide`: the shifted prediction, the clean estimate with the shift in it, the rms ``movement``
    ``(B,)`` by which it moved, and the `Shift`."""

    prediction: Tensor
    clean: Tensor
    movement: Tensor
    shift: Shift

    def measured(self, level: Level, strength: float, loss: Callable[[Tensor], Tensor] | None) -> dict:
        """What the trace says of the step (see `sampling.Step`); ``loss`` is that of clean samples, if it is to say it.

        Values by image stay tensors, so that an accelerator is not stopped.
        """
        with torch.no_grad():
            after = None if loss is None else loss(self.clean)
        row = {"noise": level.noise, "strength": strength, "loss": self.shift.loss, "loss_after": after}
        row |= {"gradient_norm": self.shift.gradient_norm, "movement": self.movement}
        return row | {"skipped": self.shift.skipped.sum()}


def guide(situation: Situation, guidance: Guidance, strength: float = 1.0) -> Guided:
    """Take the gradient and shift the prediction; ``strength`` is a factor on the scale at this step."""
    clean, kind, level = situation.clean, situation.kind, situation.level
    scale, coloured = strength * _per_image(guidance.scales, clean), 0.0
    if guidance.palette and situation.palette is not None:
        coloured = (guidance.palette * scale).clamp(max=1) * (situation.palette(clean) - clean)
        prediction = situation.prediction + level.output_shift(level.noise_shift(coloured), kind)
        situation = dataclasses.replace(situation, prediction=prediction)
    shift = _METHODS[guidance.method](situation, guidance, scale)
    prediction, movement = situation.prediction, coloured + level.clean_shift(shift.noise)
    if guidance.clipping == "first" and schedulers.clips(situation.scheduler):
        base = schedulers.clip(situation.scheduler, clean)
        prediction = prediction + level.output_shift(level.noise_shift(base - clean), kind)
        clean = base
    prediction = prediction + level.output_shift(shift.noise, kind)
    clean = clean + movement
    if guidance.clipping == "scheduler":
        clean = schedulers.clip(situation.scheduler, clean)
    return Guided(prediction, clean, _rms(movement).flatten(), shift)


def _along_the_gradient(situation: Situation, guidance: Guidance, scale: Tensor) -> Shift:
    """Methods ``noise``, ``mean`` and ``sample``, through the network, and ``noisy``, past it."""
    loss, g = gradient(situation.loss, situation.sample) if guidance.method == "noisy" else _pulled(situation)
    g, skipped = _finite(g)
    if guidance.unit == "raw":
        factor = situation.level.noise
        if guidance.method in ("mean", "sample"):
            factor = (situation.step.variance if guidance.method == "mean" else 1) / situation.step.response
        return Shift(scale * factor * g, loss, _norm(g), skipped)
    size = scale * (_rms(situation.noise) if guidance.unit == "noise" else _correction(situation))
    if guidance.method == "sample":
        size = size / situation.step.response
    return Shift(size * _unit(g), loss, _norm(g), skipped)


def _on_the_estimate(situation: Situation, guidance: Guidance, scale: Tensor) -> Shift:
    """Method ``clean``."""
    level, clean, moved = situation.level, situation.clean, torch.zeros_like(situation.sample)
    first, norm, skipped = None, None, False
    for iteration in range(guidance.inner):
        loss, g0 = gradient(situation.loss, clean + level.clean_shift(moved)) if iteration else situation.gradient
        g0, lost = _finite(g0)
        if guidance.unit == "noise":
            shift = scale * _rms(situation.noise) * _unit(g0)
        elif guidance.unit == "correction":
            shift = level.noise_shift(-scale * _correction(situation) * _unit(g0))
        else:
            shift = level.noise_shift(-scale * (1 - level.alpha_bar) * g0)
        moved = moved + shift / guidance.inner
        first, norm, skipped = loss if first is None else first, _norm(g0), skipped | lost
    return Shift(moved, first, norm, skipped)


def _mixed(situation: Situation, guidance: Guidance, scale: Tensor) -> Shift:
    """Method ``both``: each of ``noise`` and ``clean`` gets its share of the scale."""
    share = guidance.clean_share
    plain = dataclasses.replace(guidance, method="noise", inner=1)
    through = _along_the_gradient(situation, plain, (1 - share) * scale)
    clean = _on_the_estimate(situation, guidance, share * scale)
    skipped = through.skipped | clean.skipped
    return dataclasses.replace(through, noise=through.noise + clean.noise, skipped=skipped)


_METHODS = dict.fromkeys(("noise", "mean", "sample", "noisy"), _along_the_gradient)
_METHODS |= {"clean": _on_the_estimate, "both": _mixed}


def gradient(loss: Callable[[Tensor], Tensor], clean: Tensor) -> tuple[Tensor, Tensor]:
    """The losses ``(B,)`` of clean samples and their gradient."""
    leaf = clean.detach().requires_grad_()
    with torch.enable_grad():
        values = loss(leaf)
        if values.shape != leaf.shape[:1]:
            shape = tuple(values.shape)
            raise ValueError(f"an objective must give one loss per image, {leaf.shape[0]} here, got {shape}")
        if not values.requires_grad:
            raise ValueError("the objective does not depend on the image")
        (slope,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), slope


def _pulled(situation: Situation) -> tuple[Tensor, Tensor]:
    """Loss, and its gradient in the sample through the network.

    x̂0 is linear in sample and prediction, ``x̂0 = p·x + q·f(x)``, so that ``g = p·g0 + q·J_fᵀ g0``.
    """
    loss, g0 = situation.gradient
    size = _rms(g0).clamp_min(torch.finfo(g0.dtype).tiny)
    of_sample = situation.level.clean(1.0, 0.0, situation.kind)
    of_prediction = situation.level.clean(0.0, 1.0, situation.kind)
    g = of_sample * g0 + size * of_prediction * situation.pull(g0 / size).to(g0)
    return loss, g


def _correction(situation: Situation) -> Tensor:
    if situation.correction is None:
        raise ValueError(NO_CORRECTION)
    return _rms(situation.correction)


def _finite(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient, 0 for images where it is not finite, and which those are, ``(B,)``."""
    lost = ~gradient.flatten(1).isfinite().all(1)
    return gradient.masked_fill(lost.view(-1, *[1] * (gradient.ndim - 1)), 0.0), lost


def _unit(x: Tensor) -> Tensor:
    """x with rms 1 per image; 0 stays 0."""
    return x / _rms(x).clamp_min(torch.finfo(x.dtype).tiny)


def _rms(x: Tensor) -> Tensor:
    return x.square().mean(tuple(range(1, x.ndim)), keepdim=True).sqrt()


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def _per_image(scales: Sequence[float], like: Tensor) -> Tensor:
    check_count(scales, len(like))
    scale = torch.stack([like.new_full((), float(scale)) for scale in scales])  # filled, not copied: no waiting
    return scale.expand(len(like)).view(-1, *[1] * (like.ndim - 1))
