"""SDEdit: editing by the loop of `sampling.sample`, with its ``objective`` and ``guidance``."""

from collections.abc import Iterator, Sequence

import torch
from diffusers import SchedulerMixin, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ex4lib import images
from ex4lib.diffusion import schedulers
from ex4lib.diffusion.denoisers import Denoiser
from ex4lib.diffusion.sampling import Step, begin, sample
from ex4lib.images import ImageSource


def noised(
    denoiser: Denoiser,
    scheduler: SchedulerMixin,
    image: ImageSource,
    *,
    steps: int | Sequence[int],
    start: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The sample of ``image`` at the noise level of timestep number ``start``: ``x = a·x0 + b·ε``."""
    _, clean = encoded(denoiser, image)
    timed, start = begin(scheduler, steps, start, clean.device)
    noise = randn_tensor(clean.shape, generator=generator, device=clean.device, dtype=clean.dtype)
    return schedulers.levels(timed)[start].diffuse(clean, noise)


def edit(
    denoiser: Denoiser,
    scheduler: SchedulerMixin,
    image: ImageSource,
    *,
    start: int,
    steps: int | Sequence[int] = 50,
    generator: torch.Generator | None = None,
    **options,
) -> Iterator[Step]:
    """SDEdit: noise an image to timestep number ``start`` and denoise it. A later start keeps more of the image.

    Arguments:
        image: a picture, or a batch ``(B, 3, H, W)`` with one for each of the denoiser's prompts.
        options: of `sampling.sample`.

    Source: Meng et al., "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations" (2022).
    """
    x = noised(denoiser, scheduler, image, steps=steps, start=start, generator=generator)
    return sample(denoiser, scheduler, x, steps=steps, start=start, generator=generator, **options)


def encoded(denoiser: Denoiser, image: ImageSource) -> tuple[Tensor, Tensor]:
    """A picture on the network's device, and its clean sample."""
    weights = next(denoiser.unet.parameters(), None)
    image = images.picture(image, "image")
    image = image if weights is None else image.to(weights.device)
    vae = getattr(denoiser.space, "vae", None)
    halvings = 0 if vae is None else len(vae.config.block_out_channels) - 1
    if isinstance(denoiser.unet, UNet2DModel):
        halvings += len(denoiser.unet.config.block_out_channels) - 1
    multiple = 2**halvings
    if any(side % multiple for side in image.shape[-2:]):
        raise ValueError(f"image must have sides that are multiples of {multiple}, got {tuple(image.shape[-2:])}")
    return image, denoiser.space.encode(image)
