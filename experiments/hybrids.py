"""Hybrid images: a denoiser that joins the low frequencies of one with the high frequencies of another."""

from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from ex4lib import checks
from ex4lib.diffusion.denoisers import Denoiser, Output
from ex4lib.diffusion.illusions import Composite, mean


class Hybrid(Composite):
    """One picture that shows one prompt from afar, another from near: ``ε = lowpass(ε_far) + highpass(ε_near)``.

    The low pass is a Gaussian blur of σ = 2H/64 (33 pixels wide at 64), the high pass the identity minus the low pass.
    Variances are averaged, unfiltered.

    Source: Geng et al., "Factorized Diffusion: Perceptual Illusions by Noise Decomposition" (2024).
    """

    def __init__(self, far: Denoiser, near: Denoiser, *, sigma: float | None = None):
        super().__init__([far, near])
        self.sigma = None if sigma is None else checks.number(sigma, "sigma", above=0)

    def __call__(self, sample: Tensor, timestep: Tensor | int) -> Output:
        far, near = (denoiser(sample, timestep) for denoiser in self.denoisers)

        def joined(low: Tensor | None, high: Tensor | None) -> Tensor | None:
            if low is None or high is None:
                return None
            return low_pass(low, self.sigma) + high - low_pass(high, self.sigma)

        correction = joined(far.correction, near.correction)
        return Output(joined(far.prediction, near.prediction), mean([far.variance, near.variance]), correction)


def low_pass(x: Tensor, sigma: float | None = None) -> Tensor:
    """Gaussian blur with reflected borders; by default σ = 2H/64 pixels, in an odd window of about 33H/64 pixels."""
    height, shortest = x.shape[-2], min(x.shape[-2:])
    sigma = 2 * height / 64 if sigma is None else checks.number(sigma, "sigma", above=0)
    window = max(3, int(33 / 2 * sigma) // 2 * 2 + 1)
    largest = max(1, shortest // 2 * 2 - 1)  # a reflected border is shorter than the picture
    return gaussian_blur(x, [min(window, largest)] * 2, [sigma] * 2)
