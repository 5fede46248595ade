"""The distribution of a less noisy sample, given a noisy one and the clean one."""

from __future__ import annotations

import math

from torch import Tensor

from ex4lib.diffusion.process import Level


def posterior(now: Level, then: Level, alpha: float | None = None) -> tuple[float, float, float]:
    """A less noisy sample, given a noisy one and x0: the coefficients of x0 and x in its mean, and its variance.

    ``√ᾱ'·β/(1-ᾱ)``, ``√α·(1-ᾱ')/(1-ᾱ)`` and ``(1-ᾱ')/(1-ᾱ)·β`` with ``β = 1-α`` and, unless it is given, ``α = ᾱ/ᾱ'``.
    Both levels are variance preserving, and steps may be skipped. Source: Ho et al., "Denoising Diffusion Probabilistic
    Models" (2020), equation 7; CS180 project 5, equation 3.
    """
    alpha = now.alpha_bar / then.alpha_bar if alpha is None else alpha
    share = then.noise**2 / now.noise**2
    return then.signal * (1 - alpha) / now.noise**2, math.sqrt(alpha) * share, share * (1 - alpha)


def posterior_mean(now: Level, then: Level, clean: Tensor, sample: Tensor) -> Tensor:
    """The mean of `posterior`."""
    of_clean, of_sample, _ = posterior(now, then)
    return of_clean * clean + of_sample * sample


def posterior_variance(now: Level, then: Level) -> float:
    """The variance of `posterior`."""
    return posterior(now, then)[2]
