"""Visual anagrams and hybrid images: denoisers that combine others, for `sampling.sample`.

They need a model in pixels: the latents of an autoencoder do not rotate and blur as pictures do.
"""

import dataclasses
import operator
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from ex4lib import checks
from ex4lib.diffusion.denoisers import Denoiser, Output


@dataclasses.dataclass(frozen=True)
class View:
    """An orthogonal map of pictures: a permutation of pixels, or its negative, so that noise stays N(0, I).

    ``permute`` and ``restore`` are each other's inverse on ``(B, C, H, W)`` with any number of channels.
    """

    name: str
    permute: Callable[[Tensor], Tensor]
    restore: Callable[[Tensor], Tensor]
    sign: float = 1.0

    def apply(self, x: Tensor) -> Tensor:
        return self.sign * self.permute(x)

    def invert(self, x: Tensor) -> Tensor:
        return self.sign * self.restore(x)

    def shown(self, image: Tensor) -> Tensor:
        """The view of an image in [0, 1]; negation maps v to 1 - v."""
        permuted = self.permute(image)
        return permuted if self.sign > 0 else 1 - permuted


def _unchanged(x: Tensor) -> Tensor:
    return x


def _with_rotated_disc(x: Tensor) -> Tensor:
    """A centred disc, 0.8 of the short side wide, rotated by 180 degrees; its pixels map onto each other exactly."""
    height, width = x.shape[-2:]
    rows = torch.arange(height, device=x.device) - (height - 1) / 2
    columns = torch.arange(width, device=x.device) - (width - 1) / 2
    disc = rows[:, None] ** 2 + columns[None] ** 2 < (0.4 * min(height, width)) ** 2
    return torch.where(disc, x.flip(-1, -2), x)


_flipped, _rotated = operator.methodcaller("flip", -2), operator.methodcaller("flip", -1, -2)
IDENTITY = View("identity", _unchanged, _unchanged)
#: Mirrored top to bottom, which the course calls flipping upside down; it is not a rotation.
FLIP = View("vertical flip", _flipped, _flipped)
ROTATION = View("180° rotation", _rotated, _rotated)
NEGATION = View("colour negation", _unchanged, _unchanged, sign=-1.0)
INNER_CIRCLE = View("inner circle", _with_rotated_disc, _with_rotated_disc)


def patches(count: int = 4, seed: int = 0) -> View:
    """The ``count × count`` patches of a picture, shuffled. Sides must be divisible by ``count``."""
    count = checks.integer(count, "count", low=1)
    order = torch.randperm(count**2, generator=torch.Generator().manual_seed(checks.seed(seed)))

    def shuffle(x: Tensor, order: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height % count or width % count:
            raise ValueError(f"a picture of {height} x {width} pixels has no {count} x {count} equal patches")
        patch = {"kernel_size": (height // count, width // count), "stride": (height // count, width // count)}
        return F.fold(F.unfold(x, **patch)[..., order.to(x.device)], (height, width), **patch)

    return View(f"{count} x {count} patches", lambda x: shuffle(x, order), lambda x: shuffle(x, order.argsort()))


class Composite:
    """What the library asks of a denoiser, answered by the first of several."""

    def __init__(self, denoisers: Sequence[Denoiser]):
        if len(denoisers) < 2:
            raise ValueError(f"at least two denoisers are needed, got {len(denoisers)}")
        self.denoisers = tuple(denoisers)
        first = self.denoisers[0]
        self.space, self.embeddings, self.guidance_scale = first.space, first.embeddings, first.guidance_scale
        networks = list({id(denoiser.unet): denoiser.unet for denoiser in self.denoisers}.values())
        self.unet, self.dtype = networks[0] if len(networks) == 1 else nn.ModuleList(networks), first.dtype


class Anagram(Composite):
    """One picture that shows another prompt in each view: ``ε = mean_k V_k⁻¹ ε_k(V_k x)``.

    Each ε_k includes the guidance of its own prompt. Variance channels are mapped back too, without the sign.

    Source: Geng et al., "Visual Anagrams: Generating Multi-View Optical Illusions with Diffusion Models" (2024).

    Arguments:
        denoisers, views: as many of each; usually one U-Net with several prompts, and `IDENTITY` first.
    """

    def __init__(self, denoisers: Sequence[Denoiser], views: Sequence[View]):
        super().__init__(denoisers)
        if len(views) != len(self.denoisers):
            raise ValueError(f"there must be one view for each denoiser, got {len(views)} and {len(self.denoisers)}")
        self.views = tuple(views)

    def __call__(self, sample: Tensor, timestep: Tensor | int) -> Output:
        predictions, variances, corrections = [], [], []
        for view, denoiser in zip(self.views, self.denoisers, strict=True):
            output = denoiser(view.apply(sample), timestep)
            predictions.append(view.invert(output.prediction))
            variances.append(None if output.variance is None else view.restore(output.variance))
            corrections.append(None if output.correction is None else view.invert(output.correction))
        return Output(mean(predictions), mean(variances), mean(corrections))


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


def mean(parts: Sequence[Tensor | None]) -> Tensor | None:
    return None if any(part is None for part in parts) else torch.stack(list(parts)).mean(0)
