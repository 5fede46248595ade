"""The forward process and its inverse: each formula once.

Every sample of the supported schedulers is ``x = a·x0 + b·ε`` with a clean sample x0 and noise ε ~ N(0, I). In the
variance preserving space of DDPM, DDIM, PNDM, DPM++ and UniPC, ``a = √ᾱ`` and ``b = √(1-ᾱ)``; in the space of the
Euler and Heun schedulers, ``a = 1`` and ``b = σ = √((1-ᾱ)/ᾱ)``; in rectified flow, ``a = 1-σ`` and ``b = σ``.
"""

import dataclasses
import math

from torch import Tensor

PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")


@dataclasses.dataclass(frozen=True)
class Level:
    """A noise level: ``x = signal · x0 + noise · ε``."""

    signal: float
    noise: float

    @classmethod
    def preserving(cls, alpha_bar: float) -> "Level":
        """Signal √ᾱ, noise √(1-ᾱ)."""
        return cls(math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))

    @classmethod
    def flow(cls, sigma: float) -> "Level":
        """Signal 1-σ, noise σ: a point on the straight line from a clean sample to noise."""
        return cls(1 - sigma, sigma)

    @property
    def alpha_bar(self) -> float:
        """ᾱ = a² / (a² + b²): the share of the signal in the variance, whatever the space."""
        return self.signal**2 / (self.signal**2 + self.noise**2)

    def diffuse(self, clean: Tensor, noise: Tensor) -> Tensor:
        """``x = a·x0 + b·ε``. Source: Ho et al., "Denoising Diffusion Probabilistic Models" (2020), equation 4."""
        return self.signal * clean + self.noise * noise

    def clean(self, sample: Tensor, output: Tensor, prediction: str) -> Tensor:
        """x0 from a network's output: ε, ``v = √ᾱ·ε - √(1-ᾱ)·x0``, x0 itself, or the velocity of a flow ``u = ε - x0``.

        With ``r = √(a² + b²)``: ``x0 = (x - b·ε)/a``, ``x0 = (a·x - b·r·v)/r²``, or ``x0 = (x - b·u)/(a + b)``.
        Source: Ho et al. (2020), equation 15; Salimans & Ho (2022), appendix D; Liu et al., "Flow Straight and Fast"
        (2023), equation 1.
        """
        a, b, r = self.signal, self.noise, math.hypot(self.signal, self.noise)
        if prediction == "epsilon":
            return (sample - b * output) / a
        if prediction == "v_prediction":
            return (a / r**2) * sample - (b / r) * output
        if prediction == "flow_prediction":
            return (sample - b * output) / (a + b)
        return output

    def noise_of(self, sample: Tensor, output: Tensor, prediction: str) -> Tensor:
        """ε from a network's output: ``(x - a·x0)/b``, ``(b·x + a·r·v)/r²``, or ``(x + a·u)/(a + b)``."""
        a, b, r = self.signal, self.noise, math.hypot(self.signal, self.noise)
        if prediction == "epsilon":
            return output
        if prediction == "v_prediction":
            return (b / r**2) * sample + (a / r) * output
        if prediction == "flow_prediction":
            return (sample + a * output) / (a + b)
        return (sample - a * output) / b

    def output_shift(self, noise_shift: Tensor, prediction: str) -> Tensor:
        """A shift of ε in the output: ``δε``, ``δv = (r/a)·δε``, ``δx0 = -(b/a)·δε``, ``δu = ((a+b)/a)·δε``."""
        if prediction == "epsilon":
            return noise_shift
        if prediction == "v_prediction":
            return (math.hypot(self.signal, self.noise) / self.signal) * noise_shift
        if prediction == "flow_prediction":
            return ((self.signal + self.noise) / self.signal) * noise_shift
        return self.clean_shift(noise_shift)

    def clean_shift(self, noise_shift: Tensor) -> Tensor:
        """What a shift of ε is in x0 at the same x: ``δx0 = -(b/a)·δε``."""
        return -(self.noise / self.signal) * noise_shift

    def noise_shift(self, clean_shift: Tensor) -> Tensor:
        """What a shift of x0 is in ε at the same x: ``δε = -(a/b)·δx0``."""
        return -(self.signal / self.noise) * clean_shift


def strided_timesteps(stride: int = 30, first: int = 990) -> list[int]:
    """Timesteps from ``first`` down to 0 in equal strides; the course's 990, 960, ..., 0 by default."""
    if stride < 1 or first < 1 or first % stride:
        raise ValueError(f"first must be a positive multiple of stride, got {first} and {stride}")
    return list(range(first, -1, -stride))
