"""Colour apart from texture: luminance, matching one picture's colours to another's, and palettes."""

import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ex4lib import images
from ex4lib.images import ImageSource

#: An encoder takes pictures whose sides are multiples of this.
MULTIPLE = 64
_LUMA = torch.tensor([0.299, 0.587, 0.114])


def luminance(image: Tensor) -> Tensor:
    """ITU-R BT.601 luma ``Y = 0.299 R + 0.587 G + 0.114 B``: ``(B, 3, H, W)`` -> ``(B, 1, H, W)``."""
    return (image * _LUMA.to(image).view(1, 3, 1, 1)).sum(1, keepdim=True)


def grey(image: Tensor) -> Tensor:
    """The `luminance` in every channel ``(B, 3, H, W)``."""
    return luminance(image).expand(-1, 3, -1, -1).contiguous()


def with_luminance(image: Tensor, luma: Tensor) -> Tensor:
    """Give ``image`` another luminance and keep its chroma: ``x + (Y' - Y)`` in every channel, clamped."""
    return (image + luma - luminance(image)).clamp(0, 1)


def match_luminance(image: ImageSource, reference: ImageSource) -> Tensor:
    """A grey copy of ``image`` whose luma has the mean and deviation of ``reference``'s.

    Source: Gatys et al., "Preserving Color in Neural Artistic Style Transfer" (2016), equation 9.
    """
    image, reference = _pair(image, reference)
    luma, target = luminance(image), luminance(reference)
    dims = (1, 2, 3)
    deviation, deviation_ref = (levels.std(dims, correction=0, keepdim=True) for levels in (luma, target))
    scale = deviation_ref / deviation.clamp_min(1e-6)
    matched = (luma - luma.mean(dims, keepdim=True)) * scale + target.mean(dims, keepdim=True)
    return matched.clamp(0, 1).expand(-1, 3, -1, -1).contiguous()


def match_colour(image: ImageSource, reference: ImageSource) -> Tensor:
    """Linear map of ``image``'s colours to the mean and covariance of ``reference``'s, clamped to [0, 1].

    ``x' = A (x - μ) + μ_ref`` with ``A = Σ_ref^½ Σ^-½`` (symmetric square roots), so that before clamping
    ``A Σ Aᵀ = Σ_ref`` exactly.

    Source: Gatys et al. (2016), equations 4 to 8 ("image analogies" variant).
    """
    image, reference = _pair(image, reference)
    mean, covariance = colour_moments(image)
    mean_ref, covariance_ref = colour_moments(reference)
    transform = _matrix_power(covariance_ref, 0.5) @ _matrix_power(covariance, -0.5)
    return _mapped(image, mean, transform, mean_ref).clamp(0, 1)


def transport(image: Tensor, own: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
    """The linear map of the channels from the moments ``own`` to ``target`` that moves them least; not clamped.

    ``x' = A (x - μ) + μ*`` with ``A = Σ^-½ (Σ^½ Σ* Σ^½)^½ Σ^-½``: the optimal transport between normal distributions.
    Moments are those of `colour_moments`; any number of channels.

    Source: Pitié & Kokaram, "The Linear Monge-Kantorovitch Linear Colour Mapping for Example-Based Colour Transfer"
    (2007).
    """
    root, inverse = _matrix_power(own[1], 0.5), _matrix_power(own[1], -0.5)
    transform = inverse @ _matrix_power(root @ target[1] @ root, 0.5) @ inverse
    return _mapped(image, own[0], transform, target[0])


def colour_moments(image: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean ``(B, C)`` and covariance ``(B, C, C)`` of the channels, in double precision.

    ``mask`` ``(1, 1, H, W)`` holds the weights of the pixels; by default all count alike.
    """
    pixels = image.flatten(2).double()
    weights = torch.ones_like(pixels[:1, :1]) if mask is None else mask.flatten(2).double()
    weights = weights / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
    mean = (weights * pixels).sum(2)
    centred = pixels - mean[..., None]
    return mean, (weights * centred) @ centred.mT


@dataclasses.dataclass(frozen=True)
class Palette:
    """Moves clean samples, pixels or latents, to the palette of a style, or in each region to that of another.

    A palette is the mean and covariance of the channels; those of latents are nearly linear in the colours. Matching
    the moments of features is also what instance normalisation does: Huang & Belongie, "Arbitrary Style Transfer in
    Real-time with Adaptive Instance Normalization" (2017).

    Arguments:
        moments: mean ``(1 or B, C)`` and covariance ``(1 or B, C, C)``, one pair for each region.
        regions: masks ``(1, 1, H, W)`` of any size; None is the whole picture, with one pair of moments.
    """

    moments: Sequence[tuple[Tensor, Tensor]]
    regions: Sequence[Tensor] | None = None

    @classmethod
    def of(
        cls,
        encode: Callable[[Tensor], Tensor],
        styles: Sequence[Tensor],
        shares: Sequence[float],
        regions: Sequence[Tensor] | None = None,
    ) -> "Palette":
        """The palette of styles ``(1 or B, 3, H, W)``: one for each region, or the mean of their moments by ``shares``.

        ``encode`` turns pictures in [0, 1] into clean samples.
        """
        moments = [colour_moments(encode(_encodable(style))) for style in styles]
        if regions is not None:
            return cls(moments, regions)
        blend = (
            sum(share * part for share, part in zip(shares, parts, strict=True)) for parts in zip(*moments, strict=True)
        )
        return cls([tuple(blend)])

    def __call__(self, clean: Tensor) -> Tensor:
        """Clean samples ``(B, C, h, w)`` that have the palette's moments: see `transport`."""
        if self.regions is None:
            return transport(clean, colour_moments(clean), self.moments[0])
        moved = clean
        for target, region in zip(self.moments, self.regions, strict=True):
            mask = images.resize(region.to(clean), tuple(clean.shape[-2:]))
            moved = moved + mask * (transport(clean, colour_moments(clean, mask), target) - clean)
        return moved


def _encodable(picture: Tensor) -> Tensor:
    """The picture with both sides rounded to multiples of `MULTIPLE`: its colours stay, its proportions nearly."""
    size = [max(MULTIPLE, round(side / MULTIPLE) * MULTIPLE) for side in picture.shape[-2:]]
    return F.interpolate(picture, size, mode="bicubic", antialias=True).clamp(0, 1)


def _mapped(image: Tensor, mean: Tensor, transform: Tensor, mean_ref: Tensor) -> Tensor:
    """``A (x - μ) + μ_ref``, in the image's type."""
    pixels = image.flatten(2).double()
    return (transform @ (pixels - mean[..., None]) + mean_ref[..., None]).to(image.dtype).view_as(image)


def _pair(image: ImageSource, reference: ImageSource) -> tuple[Tensor, Tensor]:
    """Two pictures, or a batch and one reference for all or for each, on one device."""
    image, reference = images.picture(image, "image"), images.picture(reference, "reference")
    if len(reference) not in (1, len(image)):
        raise ValueError(f"reference must be one picture or {len(image)}, one for each, got {len(reference)}")
    return image, reference.to(image.device)


def _matrix_power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag_embed(values.clamp_min(1e-6) ** exponent) @ vectors.mT
