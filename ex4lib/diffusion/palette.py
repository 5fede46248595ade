"""The palette of a painting: mean and covariance of the channels of what a model denoises, pixels or latents.

The latents of an autoencoder are nearly linear in the colours of the picture, so that their moments stand for its
palette. Matching the moments of a content's features to those of a style is also what instance normalisation does:
Huang & Belongie, "Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization" (2017).
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from ex4lib import images
from ex4lib.colour import colour_moments, transport

#: An encoder takes pictures whose sides are multiples of this.
MULTIPLE = 64


@dataclasses.dataclass(frozen=True)
class Palette:
    """Moves clean samples to the palette of a style, or in each region to that of another.

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
        """Clean samples ``(B, C, h, w)`` that have the palette's moments: see `colour.transport`."""
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
