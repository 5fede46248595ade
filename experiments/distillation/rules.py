"""Rules of score distillation: the gradient in a clean sample that a diffusion model's score gives.

Notation: a clean sample x0, ``x = √ᾱ·x0 + √(1-ᾱ)·z`` at timestep t, and the predicted noise ε̂ with classifier-free
guidance. Every rule drops the U-Net's Jacobian: no graph runs through the U-Net.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin
from torch import Tensor, nn

from ex4lib import checks
from ex4lib.diffusion.denoisers import Denoiser
from ex4lib.diffusion.process import Level
from ex4lib.statistics import at_least_float32
from experiments.posterior import posterior, posterior_variance

#: Weights w of the score as functions of ᾱ. DreamFusion's is 1-ᾱ; the assignment's is 1.
WEIGHTS: dict[str, Callable[[float], float]] = {"constant": lambda a: 1.0, "variance": lambda a: 1 - a}


def level(scheduler: SchedulerMixin, timestep: int) -> Level:
    """The noise level of a trained timestep; timesteps below 0 are clean.

    Raises:
        ValueError: a scheduler without ᾱ, such as one for flow matching, or a timestep beyond the last one.
    """
    alpha_bars = getattr(scheduler, "alphas_cumprod", None)
    if alpha_bars is None or timestep >= len(alpha_bars):
        raise ValueError(f"{type(scheduler).__name__} has no noise level ᾱ for timestep {timestep}")
    return Level.preserving(float(alpha_bars[timestep]) if timestep >= 0 else 1.0)


def noise_of(denoiser: Denoiser, scheduler: SchedulerMixin, x: Tensor, timestep: int) -> Tensor:
    """ε̂ of a sample, for every prediction type."""
    output = denoiser(x, torch.full((), timestep, device=x.device)).prediction  # filled, not copied: no waiting
    return level(scheduler, timestep).noise_of(x, output.to(x.dtype), scheduler.config.prediction_type)


def _drawn(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else like.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype).to(
        like.device, non_blocking=True
    )


def descend(optimiser: torch.optim.Optimizer, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """One update of the parameters; returns a bool tensor on their device, whether it was finite.

    An update that is not finite leaves the parameters as they were, and nothing in the optimiser that is not finite.
    """
    finite = torch.stack([at_least_float32(gradient).square().sum() for gradient in gradients]).sum().isfinite()
    before = [parameter.detach().clone() for parameter in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.where(finite, gradient, torch.zeros_like(gradient))
    optimiser.step()
    finite = torch.stack([finite, *(parameter.detach().isfinite().all() for parameter in parameters)]).all()
    with torch.no_grad():
        for parameter, old in zip(parameters, before, strict=True):
            parameter.copy_(torch.where(finite, parameter, old))
    return finite


class _Weighted:
    """Rules ``w(t)·(ε̂ - reference)`` at one noised sample. An unknown weight is a ValueError."""

    def __post_init__(self):
        checks.choice(self.weight, "weight", WEIGHTS)

    @torch.no_grad()
    def gradient(self, clean: Tensor, timestep: int, generator: torch.Generator | None) -> Tensor:
        now, z = level(self.scheduler, timestep), _drawn(clean, generator)
        predicted = noise_of(self.denoiser, self.scheduler, now.diffuse(clean, z), timestep)
        return WEIGHTS[self.weight](now.alpha_bar) * (predicted - self._reference(clean, z, timestep, generator))


@dataclasses.dataclass
class SDS(_Weighted):
    """Score distillation sampling: ``w(t)·(ε̂(x, y, t) - z)``.

    Source: Poole et al., "DreamFusion" (2022), equation 3. Guided as ``ε_u + γ·(ε_c - ε_u)``.
    """

    denoiser: Denoiser
    scheduler: SchedulerMixin
    weight: str = "constant"

    def _reference(self, clean: Tensor, z: Tensor, timestep: int, generator: torch.Generator | None) -> Tensor:
        return z


@dataclasses.dataclass
class DDS(_Weighted):
    """Delta denoising score: ``w(t)·(ε̂(x_tgt, y_tgt, t) - ε̂(x_src, y_src, t))`` with one noise for both.

    Source: Hertz et al., "Delta Denoising Score" (2023), equation 3.
    """

    denoiser: Denoiser
    source_denoiser: Denoiser
    source: Tensor
    scheduler: SchedulerMixin
    weight: str = "constant"

    def _reference(self, clean: Tensor, z: Tensor, timestep: int, generator: torch.Generator | None) -> Tensor:
        x = level(self.scheduler, timestep).diffuse(self.source.to(clean.device), z)
        return noise_of(self.source_denoiser, self.scheduler, x, timestep)


@dataclasses.dataclass
class PDS:
    """Posterior distillation: the difference of the stochastic latents ``z̃ = (x' - μ̃(x))/σ`` of target and source.

    Target and source share the noise of x (at timestep t) and the noise of x' (``stride`` timesteps earlier). Below
    t = ``stride`` the posterior is a point, with σ = 0: `timesteps` holds the timesteps at which z̃ exists. ``form``:

    ``"tweedie"``
        μ̃ is the posterior mean at the estimate x̂0, as in the paper. Then ``z̃_tgt - z̃_src = ψ·Δx0 + χ·Δε̂`` with χ > 0
        (`tweedie_coefficients`), and descending along it leads to the target. With ``stride`` 1 everywhere ψ is
        exactly 0, and the rule is a reweighted DDS without any term that keeps the source. The paper's code has ψ > 0
        because x' lies two timesteps before x while β and α are those of one: ``stride=2``.
    ``"literal"``
        μ̃ is computed from x0 = θ itself, as the assignment's slides write it. θ cancels, the difference is
        ``-c·Δε̂`` (`literal_coefficient`), and the gradient is the source's minus the target's.

    Source: Koo et al., "Posterior Distillation Sampling" (2024), equations 9 to 14.

    Raises:
        ValueError: an unknown form or a stride below 1; for `gradient`, a timestep outside `timesteps`.
    """

    denoiser: Denoiser
    source_denoiser: Denoiser
    source: Tensor
    scheduler: SchedulerMixin
    form: str = "tweedie"
    stride: int = 1

    def __post_init__(self):
        checks.choice(self.form, "form", ("tweedie", "literal"))
        self.stride = checks.integer(self.stride, "stride", low=1)

    @property
    def timesteps(self) -> range:
        """The timesteps with a posterior of positive variance, and with some signal in x."""
        return _stochastic_timesteps(self.scheduler, self.stride)

    @torch.no_grad()
    def gradient(self, clean: Tensor, timestep: int, generator: torch.Generator | None) -> Tensor:
        z, z_before = _drawn(clean, generator), _drawn(clean, generator)
        target, source = (
            self._stochastic(denoiser, x, timestep, z, z_before)
            for denoiser, x in ((self.denoiser, clean), (self.source_denoiser, self.source.to(clean.device)))
        )
        return target - source if self.form == "tweedie" else source - target

    def _stochastic(self, denoiser: Denoiser, clean: Tensor, t: int, z: Tensor, z_before: Tensor) -> Tensor:
        of_clean, of_sample, sigma = _mixed_posterior(self.scheduler, t, self.stride)
        now, then = level(self.scheduler, t), level(self.scheduler, t - self.stride)
        x, before = now.diffuse(clean, z), then.diffuse(clean, z_before)
        predicted = noise_of(denoiser, self.scheduler, x, t)
        if self.form == "literal":
            sigma = math.sqrt(posterior_variance(now, then))
            mean = then.signal * clean + math.sqrt(1 - then.alpha_bar - sigma**2) * predicted
        else:
            mean = of_clean * now.clean(x, predicted, "epsilon") + of_sample * x
        return (before - mean) / sigma


def _stochastic_timesteps(scheduler: SchedulerMixin, stride: int) -> range:
    last = len(scheduler.alphas_cumprod) - 1
    return range(stride, last + (level(scheduler, last).signal > 0))


def _mixed_posterior(scheduler: SchedulerMixin, t: int, stride: int) -> tuple[float, float, float]:
    """Coefficients of x̂0 and x in μ̃, and σ, with ᾱ' from ``stride`` timesteps before but β of a single one."""
    accepted = _stochastic_timesteps(scheduler, stride)
    if t not in accepted:
        raise ValueError(
            f"timestep must be from {accepted.start} to {accepted.stop - 1} at stride {stride}, where σ and the signal "
            f"are positive, got {t}"
        )
    now, then, one_before = (level(scheduler, timestep) for timestep in (t, t - stride, t - 1))
    of_clean, of_sample, variance = posterior(now, then, now.alpha_bar / one_before.alpha_bar)
    return of_clean, of_sample, math.sqrt(variance)


def tweedie_coefficients(scheduler: SchedulerMixin, t: int, stride: int = 1) -> tuple[float, float]:
    """ψ and χ of ``z̃_tgt - z̃_src = ψ·Δx0 + χ·Δε̂``.

    With γ, δ the coefficients of x̂0 and x in the posterior's mean: ``ψ = (√ᾱ' - γ - δ·√ᾱ)/σ`` and
    ``χ = γ·√((1-ᾱ)/ᾱ)/σ``. ``γ + δ·√ᾱ = √ᾱ'`` when all of them are of one stride.
    """
    of_clean, of_sample, sigma = _mixed_posterior(scheduler, t, stride)
    now, then = level(scheduler, t), level(scheduler, t - stride)
    psi = (then.signal - of_clean - of_sample * now.signal) / sigma
    return psi, of_clean * now.noise / now.signal / sigma


def literal_coefficient(scheduler: SchedulerMixin, t: int) -> float:
    """c of ``z̃_tgt - z̃_src = -c·Δε̂``: ``√(1-ᾱ'-σ²)/σ``."""
    _, _, sigma = _mixed_posterior(scheduler, t, 1)
    return math.sqrt(1 - level(scheduler, t - 1).alpha_bar - sigma**2) / sigma


class Adapter(nn.Module):
    """A low-rank addition ``W x + B A x`` to every attention projection of a network, in float32 (LoRA).

    The network is not changed: inside `applied` hooks add ``B A x`` to the outputs of its layers, and outside there is
    nothing of the adapter on it. Adapters that the network already has stay as they are and add to this one.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2022), equation 3.

    Raises:
        ValueError: a network without attention, or a rank below 1.
    """

    TARGETS = (".to_q", ".to_k", ".to_v", ".to_out.0")

    def __init__(self, network: nn.Module, rank: int = 4, seed: int = 0):
        super().__init__()
        rank, draws = checks.integer(rank, "rank", low=1), torch.Generator().manual_seed(checks.seed(seed))
        named = network.named_modules()
        self._layers = [part for name, part in named if name.endswith(self.TARGETS) and hasattr(part, "in_features")]
        if not self._layers:
            raise ValueError(f"an adapter needs attention layers, but {type(network).__name__} has none")
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for layer in self._layers:
            device = next(layer.parameters()).device
            uniform = 2 * torch.rand(rank, layer.in_features, generator=draws) - 1
            self.down.append(nn.Parameter((uniform / layer.in_features**0.5).to(device)))
            self.up.append(nn.Parameter(torch.zeros(layer.out_features, rank, device=device)))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The network answers with the adapter inside."""
        with contextlib.ExitStack() as hooks:
            for layer, down, up in zip(self._layers, self.down, self.up, strict=True):
                hooks.callback(layer.register_forward_hook(functools.partial(_with_addition, down, up)).remove)
            yield


def _with_addition(down: Tensor, up: Tensor, _: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return output + F.linear(F.linear(inputs[0].to(down.dtype), down), up).to(output.dtype)


@dataclasses.dataclass
class VSD(_Weighted):
    """Variational score distillation: ``w(t)·(ε̂(x, y, t) - ε_φ(x, y, t))``; φ learns what the pictures look like now.

    φ is the same U-Net with an `Adapter`, trained with the ordinary noise prediction loss on the current pictures by an
    optimiser of its own, without classifier-free guidance. An untrained adapter is zero, so that at γ = 1 the first
    gradient is, too.

    Source: Wang et al., "ProlificDreamer" (2023), equation 9 and algorithm 2.

    Arguments:
        rank, adapter_learning_rate, seed: of the adapter.

    Raises:
        ValueError: an unknown weight, a number out of range, or a U-Net without attention.
    """

    denoiser: Denoiser
    scheduler: SchedulerMixin
    weight: str = "variance"
    rank: int = 4
    adapter_learning_rate: float = 1e-4
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        rate = checks.number(self.adapter_learning_rate, "adapter_learning_rate", low=0)
        pretrained = self.denoiser
        self.adapter = Adapter(pretrained.unet, self.rank, self.seed)
        self.adapted = Denoiser(
            pretrained.unet, pretrained.space, embeddings=pretrained.embeddings, options=pretrained.options
        )
        self._parameters = list(self.adapter.parameters())
        self._optimiser = torch.optim.AdamW(self._parameters, lr=rate)

    def _reference(self, clean: Tensor, z: Tensor, timestep: int, generator: torch.Generator | None) -> Tensor:
        x = level(self.scheduler, timestep).diffuse(clean, z)
        with self.adapter.applied():
            particles = noise_of(self.adapted, self.scheduler, x, timestep)
            self._learn(clean, generator)
        return particles

    def _learn(self, clean: Tensor, generator: torch.Generator | None) -> None:
        """One update by ``‖ε_φ(x, y, t) - z‖²`` at a timestep drawn from all."""
        device = generator.device if generator is not None else "cpu"
        count = self.scheduler.config.num_train_timesteps
        t = int(torch.randint(0, count, (), generator=generator, device=device))
        z = _drawn(clean, generator)
        with torch.enable_grad():
            x = level(self.scheduler, t).diffuse(clean.detach(), z)
            predicted = noise_of(self.adapted, self.scheduler, x, t)
            gradients = torch.autograd.grad((predicted - z).square().mean(), self._parameters)
        descend(self._optimiser, self._parameters, gradients)
