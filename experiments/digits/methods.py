"""What the networks learn and how they draw: one-step denoising, DDPM, flow matching, classifier-free guidance.

Times t of DDPM count from 1 as in the course: ``bars[0] = 1`` is the clean picture, so that the last step from t = 1
needs no special case but its missing noise. Sources: Ho et al. (2020), algorithms 1 and 2, with σ² = β; Ho & Salimans
(2022); Lipman et al. (2023); https://cal-cs180.github.io/fa24/hw/proj5/partb.html and fa25's edition of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ex4lib.diffusion.process import Level
from ex4lib.models import native_bfloat16

from .unet import UNet


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Linear noise schedule; ``betas``, ``alphas`` and ``bars`` are float64 ``(T+1,)``, of which place 0 is no noise.

    ``scale`` multiplies every β: T = 300 steps with ``scale`` 1000/300 end where 1,000 unscaled steps end.
    """

    steps: int = 300
    first: float = 1e-4
    last: float = 0.02
    scale: float = 1.0

    def __post_init__(self):
        if self.steps < 1 or not 0 < self.first * self.scale <= self.last * self.scale < 1:
            raise ValueError(f"a schedule needs steps >= 1 and 0 < first <= last < 1 after scaling, got {self}")

    @property
    def betas(self) -> Tensor:
        rising = torch.linspace(self.first, self.last, self.steps, dtype=torch.float64) * self.scale
        return torch.cat([torch.zeros(1, dtype=torch.float64), rising])

    @property
    def alphas(self) -> Tensor:
        return 1 - self.betas

    @property
    def bars(self) -> Tensor:
        """``ᾱ_t = Π_{s<=t} α_s``; ``ᾱ_0 = 1``."""
        return self.alphas.cumprod(0)

    def diffuse(self, clean: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """``x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε`` for times ``(B,)`` from 0 to T."""
        bar = self.bars[t.cpu()].to(clean).view(-1, 1, 1, 1)
        return bar.sqrt() * clean + (1 - bar).sqrt() * noise

    def posterior(self, x: Tensor, clean: Tensor, t: int) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x_0): ``√ᾱ_{t-1} β_t/(1-ᾱ_t) x_0 + √α_t (1-ᾱ_{t-1})/(1-ᾱ_t) x_t`` (Ho et al., 7)."""
        bars, beta, alpha = self.bars, self.betas[t], self.alphas[t]
        on_clean = bars[t - 1].sqrt() * beta / (1 - bars[t])
        on_x = alpha.sqrt() * (1 - bars[t - 1]) / (1 - bars[t])
        return on_clean.item() * clean + on_x.item() * x


@dataclasses.dataclass(frozen=True)
class Drawn:
    """One step of a sampler: ``x`` after it, the clean picture it expected, the time that ``x`` has now."""

    index: int
    total: int
    t: float
    x: Tensor
    clean: Tensor


# What is learnt --------------------------------------------------------------------------------------------------


def noised(clean: Tensor, sigma: float, generator: torch.Generator | None = None) -> Tensor:
    """``z = x + σ ε``: the course's first noising, which fades nothing."""
    return clean + sigma * gaussian(clean, generator)


def denoising_loss(net: UNet, clean: Tensor, sigma: float | None, generator: torch.Generator) -> Tensor:
    """``‖D(x + σε) - x‖²``, or for σ = None ``‖D(ε) - x‖²``: an input that says nothing about the picture."""
    noisy = gaussian(clean, generator) if sigma is None else noised(clean, sigma, generator)
    return F.mse_loss(net(noisy).float(), clean)


def ddpm_loss(
    net: UNet, clean: Tensor, labels: Tensor, schedule: Schedule, drop: float, generator: torch.Generator
) -> Tensor:
    """``‖ε - ε_θ(x_t, t/T, c)‖²`` with t uniform in 1..T; a class is dropped per picture with probability ``drop``."""
    noise = gaussian(clean, generator)
    t = torch.randint(1, schedule.steps + 1, (len(clean),), generator=generator).to(clean.device)
    c = conditions(net, labels, drop, generator)
    predicted = net(schedule.diffuse(clean, t, noise), t / schedule.steps, c)
    return F.mse_loss(predicted.float(), noise)


def flow_loss(net: UNet, clean: Tensor, labels: Tensor, drop: float, generator: torch.Generator) -> Tensor:
    """``‖(x_1 - x_0) - u_θ(x_t, t, c)‖²`` on ``x_t = (1-t) x_0 + t x_1``: x_0 is noise, x_1 a picture, t in [0, 1]."""
    noise = gaussian(clean, generator)
    t = torch.rand(len(clean), generator=generator).to(clean)
    place = t.view(-1, 1, 1, 1)
    c = conditions(net, labels, drop, generator)
    velocity = net((1 - place) * noise + place * clean, t, c)
    return F.mse_loss(velocity.float(), clean - noise)


def conditions(net: UNet, labels: Tensor, drop: float = 0.0, generator: torch.Generator | None = None) -> Tensor | None:
    """One-hot classes ``(B, classes)``, the zero vector where dropped; None for a network without classes."""
    if not net.classes:
        return None
    onehot = F.one_hot(labels, net.classes).float()
    if drop == 0:
        return onehot
    keep = torch.rand(len(labels), generator=generator) >= drop
    return onehot * keep.to(onehot)[:, None]


# How they draw ---------------------------------------------------------------------------------------------------


def ddpm_sample(
    net: UNet,
    schedule: Schedule,
    start: Tensor,
    labels: Tensor | None = None,
    *,
    guidance_scale: float = 5.0,
    generator: torch.Generator | None = None,
) -> Iterator[Drawn]:
    """Algorithm 2 from ``start`` at t = T: ``x_{t-1} = posterior mean(x_t, x̂_0) + √β_t z``, z = 0 in the last step.

    Arguments:
        start: ``(B, 1, 28, 28)``, the course's is N(0, I).
        labels: ``(B,)``, or None for no class.
        guidance_scale: γ in ``ε_u + γ (ε_c - ε_u)``; without labels it is not used.
    """
    with evaluating(net):
        x = start
        for t in range(schedule.steps, 0, -1):
            noise = guided(net, x, t / schedule.steps, labels, guidance_scale)
            clean = Level.preserving(schedule.bars[t].item()).clean(x, noise, "epsilon")
            x = schedule.posterior(x, clean, t)
            if t > 1:
                x = x + schedule.betas[t].sqrt().item() * gaussian(x, generator)
            yield Drawn(schedule.steps - t + 1, schedule.steps, t - 1, x, clean)


def flow_sample(
    net: UNet, start: Tensor, labels: Tensor | None = None, *, guidance_scale: float = 5.0, steps: int = 50
) -> Iterator[Drawn]:
    """Euler's method from noise at t = 0 to a picture at t = 1: ``x <- x + u_θ(x, t)/steps``."""
    with evaluating(net):
        x = start
        for step in range(steps):
            t = step / steps
            velocity = guided(net, x, t, labels, guidance_scale)
            clean = x + (1 - t) * velocity
            x = x + velocity / steps
            yield Drawn(step + 1, steps, (step + 1) / steps, x, clean)


@torch.no_grad()
def guided(net: UNet, x: Tensor, t: float, labels: Tensor | None, guidance_scale: float) -> Tensor:
    """``out_u + γ (out_c - out_u)``, float32; γ = 0 and γ = 1 take one pass instead of two."""
    times = torch.full((len(x),), t, device=x.device)
    if net.classes and labels is None:
        guidance_scale, labels = 0.0, torch.zeros(len(x), dtype=torch.long, device=x.device)
    with precision(x.device):
        if not net.classes:
            return net(x, times).float()
        c = conditions(net, labels)
        if guidance_scale in (0.0, 1.0):
            return net(x, times, guidance_scale * c).float()
        both = net(torch.cat([x, x]), torch.cat([times, times]), torch.cat([0 * c, c])).float()
    free, bound = both.chunk(2)
    return free + guidance_scale * (bound - free)


@contextlib.contextmanager
def evaluating(net: torch.nn.Module) -> Iterator[None]:
    """Batch norm with its running statistics, and as it was afterwards."""
    before = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(before)


def precision(device: torch.device | str) -> contextlib.AbstractContextManager:
    """bfloat16 products where the hardware has units for them, else nothing."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16) if native_bfloat16(device) else contextlib.nullcontext()


def gaussian(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """N(0, I) of that shape, drawn on the CPU so that a seed means the same everywhere."""
    return torch.randn(like.shape, generator=generator).to(like)


def last(steps: Iterator[Drawn]) -> Drawn:
    """The end of a sampler."""
    *_, end = steps
    return end
