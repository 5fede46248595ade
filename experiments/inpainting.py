"""Inpainting by the loop of `sampling.sample`, as the course and RePaint describe it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ex4lib import images
from ex4lib.diffusion import schedulers
from ex4lib.diffusion.denoisers import Denoiser
from ex4lib.diffusion.editing import encoded, noised
from ex4lib.diffusion.sampling import Step, begin, sample
from ex4lib.images import ImageSource


def inpaint(
    denoiser: Denoiser,
    scheduler: SchedulerMixin,
    image: ImageSource,
    mask: ImageSource,
    *,
    steps: int | Sequence[int] = 50,
    start: int = 0,
    generator: torch.Generator | None = None,
    **options,
) -> Iterator[Step]:
    """Draw the masked part of an image anew and keep the rest: ``x <- m·x + (1-m)·noised(image)`` after every step.

    The known part is noised to the level that the step has reached, with new noise each time; after the last step it
    is the image itself. `Step.image` and `Step.sample_image` hold the original pixels there, bit for bit.
    ``repeats=10`` of `sampling.sample` is RePaint's resampling, which fits the two parts to each other.

    Arguments:
        image: a picture, or a batch ``(B, 3, H, W)`` with one for each of the denoiser's prompts.
        mask: of the image's size, in any form that `images.mask` reads; above one half is drawn anew. Latents use its
            average over the pixels of each cell.
        start: timestep number to begin with; above 0 the masked part begins from the noised image, as in SDEdit.

    Source: CS180 project 5, 1.7.2; Lugmayr et al., "RePaint" (2022), algorithm 1.
    """
    image, clean = encoded(denoiser, image)
    mask = images.mask(mask, "mask").to(image.device)
    if mask.shape[-2:] != image.shape[-2:] or len(mask) not in (1, len(image)):
        raise ValueError(f"mask must have the image's size {tuple(image.shape[-2:])}, got {tuple(mask.shape)}")
    mask = mask > 0.5
    region = F.adaptive_avg_pool2d(mask.to(clean), clean.shape[-2:]) > 0.5
    timed, first = begin(scheduler, steps, start, clean.device)
    levels = schedulers.levels(timed)

    def keep(x: Tensor, index: int, _) -> Tensor:
        known = clean.to(x)
        if index + 1 < len(levels):
            noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            known = levels[index + 1].diffuse(known, noise)
        return torch.where(region, x, known)

    x = noised(denoiser, scheduler, image, steps=steps, start=first, generator=generator)
    if first == 0:
        pure = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype) * timed.init_noise_sigma
        x = torch.where(region, pure, x)
    loop = sample(denoiser, scheduler, x, steps=steps, start=first, generator=generator, after_step=keep, **options)

    def pasted(step: Step) -> Step:
        return dataclasses.replace(step, _render=lambda x: torch.where(mask, step._render(x).to(image), image))

    return (pasted(step) for step in loop)
