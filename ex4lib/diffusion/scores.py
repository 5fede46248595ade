"""Score distillation's rules: the gradient in a clean sample that a diffusion model's score gives.

Notation: a clean sample x0, ``x = √ᾱ·x0 + √(1-ᾱ)·z`` at timestep t, ε̂ the prediction with classifier-free guidance. The
U-Net's Jacobian is dropped everywhere: no graph runs through the U-Net.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from ex4lib.diffusion.denoisers import Denoiser
from ex4lib.diffusion.process import Level, posterior_variance

#: Weights of the score by timestep. DreamFusion's is 1-ᾱ; the assignment's is 1.
WEIGHTS: dict[str, Callable[[float], float]] = {"constant": lambda a: 1.0, "variance": lambda a: 1 - a}


def level(scheduler: SchedulerMixin, timestep: int) -> Level:
    """The noise level of a trained timestep; the one before the first is clean."""
    return Level.preserving(float(scheduler.alphas_cumprod[timestep]) if timestep >= 0 else 1.0)


@torch.no_grad()
def noise_of(denoiser: Denoiser, scheduler: SchedulerMixin, x: Tensor, timestep: int) -> Tensor:
    """ε̂ of a sample, whatever the network predicts."""
    output = denoiser(x, torch.tensor(timestep, device=x.device)).prediction
    return level(scheduler, timestep).noise_of(x, output.to(x.dtype), scheduler.config.prediction_type)


def _drawn(like: Tensor, generator: torch.Generator | None) -> Tensor:
    where = generator.device if generator is not None else like.device
    return torch.randn(like.shape, generator=generator, device=where, dtype=like.dtype).to(like.device)


@dataclasses.dataclass
class SDS:
    """Score distillation sampling: ``w(t)·(ε̂(x, y, t) - z)``.

    Source: Poole et al., "DreamFusion" (2022), equation 3. Guided as ``ε_u + γ·(ε_c - ε_u)``.
    """

    denoiser: Denoiser
    scheduler: SchedulerMixin
    weight: str = "constant"

    def gradient(self, clean: Tensor, timestep: int, generator: torch.Generator | None) -> Tensor:
        at, z = level(self.scheduler, timestep), _drawn(clean, generator)
        predicted = noise_of(self.denoiser, self.scheduler, at.diffuse(clean, z), timestep)
        return WEIGHTS[self.weight](at.alpha_bar) * (predicted - z)


@dataclasses.dataclass
class DDS:
    """Delta denoising score: ``w(t)·(ε̂(x_tgt, y_tgt, t) - ε̂(x_src, y_src, t))`` with one noise for both.

    Source: Hertz et al., "Delta Denoising Score" (2023), equation 3.
    """

    denoiser: Denoiser
    source_denoiser: Denoiser
    source: Tensor
    scheduler: SchedulerMixin
    weight: str = "constant"

    def gradient(self, clean: Tensor, timestep: int, generator: torch.Generator | None) -> Tensor:
        at, z = level(self.scheduler, timestep), _drawn(clean, generator)
        predicted = [
            noise_of(denoiser, self.scheduler, at.diffuse(x, z), timestep)
            for denoiser, x in ((self.denoiser, clean), (self.source_denoiser, self.source))
        ]
        return WEIGHTS[self.weight](at.alpha_bar) * (predicted[0] - predicted[1])


@dataclasses.dataclass
class PDS:
    """Posterior distillation: the gap of the stochastic latents ``z̃ = (x' - μ̃(x))/σ`` of target and source.

    Both share the noises of x (at t) and x' (before it). ``form``:

    ``"tweedie"``
        μ̃ is the posterior mean at the estimate x̂0, as in the paper. Then ``z̃_tgt - z̃_src = ψ·Δx0 + χ·Δε̂`` with χ > 0
        (`tweedie_coefficients`), and descending along it goes towards the target. With ``stride`` 1 everywhere ψ is
        exactly 0: what is left is a reweighted DDS without any term that keeps the source. The paper's code has ψ > 0
        because x' lies two timesteps before x while β and α are those of one: ``stride=2``.
    ``"literal"``
        μ̃ is computed from x0 = θ itself, as the assignment's slides write it. θ cancels, what is left is
        ``-c·Δε̂`` (`literal_coefficient`), and the gradient is the source's minus the target's.

    Source: Koo et al., "Posterior Distillation Sampling" (2024), equations 9 to 14.
    """

    denoiser: Denoiser
    source_denoiser: Denoiser
    source: Tensor
    scheduler: SchedulerMixin
    form: str = "tweedie"
    stride: int = 1

    def __post_init__(self):
        if self.form not in ("tweedie", "literal") or self.stride < 1:
            raise ValueError(f"form must be tweedie or literal and stride at least 1, got {self.form!r}, {self.stride}")

    def gradient(self, clean: Tensor, timestep: int, generator: torch.Generator | None) -> Tensor:
        z, z_before = _drawn(clean, generator), _drawn(clean, generator)
        target, source = (
            self._stochastic(denoiser, x, timestep, z, z_before)
            for denoiser, x in ((self.denoiser, clean), (self.source_denoiser, self.source))
        )
        return target - source if self.form == "tweedie" else source - target

    def _stochastic(self, denoiser: Denoiser, clean: Tensor, t: int, z: Tensor, z_before: Tensor) -> Tensor:
        now, then = level(self.scheduler, t), level(self.scheduler, t - self.stride)
        x, before = now.diffuse(clean, z), then.diffuse(clean, z_before)
        predicted = noise_of(denoiser, self.scheduler, x, t)
        if self.form == "literal":
            sigma = math.sqrt(posterior_variance(now, then))
            mean = then.signal * clean + math.sqrt(1 - then.alpha_bar - sigma**2) * predicted
        else:
            of_clean, of_sample, sigma = _mixed_posterior(self.scheduler, t, self.stride)
            mean = of_clean * now.clean(x, predicted, "epsilon") + of_sample * x
        return (before - mean) / sigma


def _mixed_posterior(scheduler: SchedulerMixin, t: int, stride: int) -> tuple[float, float, float]:
    """Coefficients of x̂0 and x in μ̃, and σ, with ᾱ' from ``stride`` timesteps before but β of a single one."""
    now, then, one_before = (level(scheduler, each) for each in (t, t - stride, t - 1))
    alpha = now.alpha_bar / one_before.alpha_bar
    of_clean = then.signal * (1 - alpha) / now.noise**2
    of_sample = math.sqrt(alpha) * then.noise**2 / now.noise**2
    return of_clean, of_sample, math.sqrt(then.noise**2 / now.noise**2 * (1 - alpha))


def tweedie_coefficients(scheduler: SchedulerMixin, t: int, stride: int = 1) -> tuple[float, float]:
    """ψ and χ of ``z̃_tgt - z̃_src = ψ·Δx0 + χ·Δε̂``.

    With γ, δ the coefficients of x̂0 and x in the posterior's mean: ``ψ = (√ᾱ' - γ - δ·√ᾱ)/σ`` and
    ``χ = γ·√((1-ᾱ)/ᾱ)/σ``. ``γ + δ·√ᾱ = √ᾱ'`` when all of them are of one stride.
    """
    now, then = level(scheduler, t), level(scheduler, t - stride)
    of_clean, of_sample, sigma = _mixed_posterior(scheduler, t, stride)
    psi = (then.signal - of_clean - of_sample * now.signal) / sigma
    return psi, of_clean * now.noise / now.signal / sigma


def literal_coefficient(scheduler: SchedulerMixin, t: int) -> float:
    """c of ``z̃_tgt - z̃_src = -c·Δε̂``: ``√(1-ᾱ'-σ²)/σ``."""
    now, then = level(scheduler, t), level(scheduler, t - 1)
    variance = posterior_variance(now, then)
    return math.sqrt((1 - then.alpha_bar - variance) / variance)


@dataclasses.dataclass
class VSD:
    """Variational score distillation: ``w(t)·(ε̂(x, y, t) - ε_φ(x, y, t))``; φ learns what the pictures look like now.

    φ is the same U-Net with a LoRA adapter (peft), trained with the ordinary noise prediction loss on the current
    pictures by an optimiser of its own, without classifier-free guidance. An untrained adapter is zero, so that at
    γ = 1 the first gradient is, too.

    Source: Wang et al., "ProlificDreamer" (2023), equation 9 and algorithm 2.

    Arguments:
        denoiser: its U-Net gets the adapter, which is off unless φ is asked. `close` takes it away again.
        rank, adapter_learning_rate: of the adapter.
    """

    denoiser: Denoiser
    scheduler: SchedulerMixin
    weight: str = "variance"
    rank: int = 4
    adapter_learning_rate: float = 1e-4
    seed: int = 0

    ADAPTER = "particles"

    def __post_init__(self):
        from peft import LoraConfig

        unet = self.denoiser.unet
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            unet.add_adapter(LoraConfig(r=self.rank, lora_alpha=self.rank, target_modules=targets), self.ADAPTER)
        self._parameters = [p for name, p in unet.named_parameters() if f".{self.ADAPTER}." in name]
        self._optimiser = torch.optim.AdamW(self._parameters, lr=self.adapter_learning_rate)
        unet.disable_adapters()
        self.adapted = Denoiser(
            unet, self.denoiser.space, embeddings=self.denoiser.embeddings, options=self.denoiser.options
        )

    def gradient(self, clean: Tensor, timestep: int, generator: torch.Generator | None) -> Tensor:
        at, z = level(self.scheduler, timestep), _drawn(clean, generator)
        x = at.diffuse(clean, z)
        pretrained = noise_of(self.denoiser, self.scheduler, x, timestep)
        self.denoiser.unet.enable_adapters()
        try:
            particles = noise_of(self.adapted, self.scheduler, x, timestep)
            self._learn(clean, generator)
        finally:
            self.denoiser.unet.disable_adapters()
        return WEIGHTS[self.weight](at.alpha_bar) * (pretrained - particles)

    def _learn(self, clean: Tensor, generator: torch.Generator | None) -> None:
        """One step of ``‖ε_φ(x, y, t) - z‖²`` at a timestep drawn from all."""
        where = generator.device if generator is not None else "cpu"
        count = self.scheduler.config.num_train_timesteps
        t = int(torch.randint(0, count, (), generator=generator, device=where))
        at, z = level(self.scheduler, t), _drawn(clean, generator)
        x = at.diffuse(clean.detach(), z)
        with torch.enable_grad():
            output = self.adapted(x, torch.tensor(t, device=x.device)).prediction
            predicted = at.noise_of(x, output.to(x.dtype), self.scheduler.config.prediction_type)
            loss = (predicted - z).square().mean()
            gradients = torch.autograd.grad(loss, self._parameters)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        self._optimiser.step()

    def close(self) -> None:
        """Take the adapter away: the U-Net is as it was."""
        self.denoiser.unet.unload_lora()
