"""Editing pictures by noising and denoising them: SDEdit and inpainting.

Each returns the generator of `sampling.sample`, so that a style may guide it: its ``objective=`` and ``guidance=``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from diffusers import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ex4lib.diffusion import schedulers
from ex4lib.diffusion.denoisers import Denoiser
from ex4lib.diffusion.sampling import Step, sample
from ex4lib.images import check


def noised(
    denoiser: Denoiser,
    scheduler: SchedulerMixin,
    image: Tensor,
    *,
    steps: int | Sequence[int],
    start: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The sample of ``image`` at the noise level of timestep number ``start``: ``x = a·x0 + b·ε``."""
    timed = schedulers.timed(scheduler, steps)
    if not 0 <= start < len(timed.timesteps):
        raise ValueError(f"start must be between 0 and {len(timed.timesteps) - 1}, got {start}")
    clean = denoiser.space.encode(check(image, "image"))
    noise = randn_tensor(clean.shape, generator=generator, device=clean.device, dtype=clean.dtype)
    return schedulers.levels(timed)[start].diffuse(clean, noise)


def edit(
    denoiser: Denoiser,
    scheduler: SchedulerMixin,
    image: Tensor,
    *,
    start: int,
    steps: int | Sequence[int] = 50,
    generator: torch.Generator | None = None,
    **options,
) -> Iterator[Step]:
    """SDEdit: noise an image to timestep number ``start`` and denoise it from there; the later, the closer to it.

    Arguments:
        image: ``(B, 3, H, W)`` in [0, 1], of the denoiser's size.
        options: of `sampling.sample`.

    Source: Meng et al., "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations" (2022).
    """
    x = noised(denoiser, scheduler, image, steps=steps, start=start, generator=generator)
    return sample(denoiser, scheduler, x, steps=steps, start=start, generator=generator, **options)


def inpaint(
    denoiser: Denoiser,
    scheduler: SchedulerMixin,
    image: Tensor,
    mask: Tensor,
    *,
    steps: int | Sequence[int] = 50,
    start: int = 0,
    generator: torch.Generator | None = None,
    **options,
) -> Iterator[Step]:
    """Draw anew where ``mask`` is 1 and keep the rest: ``x <- m·x + (1-m)·noised(image)`` after every step.

    The known part is noised, afresh each time, to the level that the step has reached; after the last step it is the
    image itself. `Step.image` and `Step.sample_image` show the original pixels there, bit for bit. ``repeats=10`` of
    `sampling.sample` is RePaint's resampling, which lets the two parts grow together.

    Arguments:
        image: ``(B, 3, H, W)`` in [0, 1], of the denoiser's size, one for each of its prompts.
        mask: ``(1, 1, H, W)``, 1 is drawn anew. Samples at a lower resolution use its average pooling, rounded.
        start: timestep number to begin with; above 0 the masked part begins from the noised image, as in SDEdit.

    Source: CS180 project 5, 1.7.2; Lugmayr et al., "RePaint" (2022), algorithm 1.

    Raises:
        ValueError: a mask of another size than the image, or with values other than 0 and 1.
    """
    check(image, "image")
    if mask.shape[-2:] != image.shape[-2:] or not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            f"mask must be 0 or 1 and of the image's size {tuple(image.shape[-2:])}, got {tuple(mask.shape)} "
            f"with values from {mask.min().item():.3g} to {mask.max().item():.3g}"
        )
    timed = schedulers.timed(scheduler, steps)
    levels = schedulers.levels(timed)
    clean = denoiser.space.encode(image)
    region = torch.nn.functional.adaptive_avg_pool2d(mask.to(clean), clean.shape[-2:]).round()

    def keep(x: Tensor, index: int, _) -> Tensor:
        known = clean.to(x)
        if index + 1 < len(levels):
            noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            known = levels[index + 1].diffuse(known, noise)
        return region * x + (1 - region) * known

    x = noised(denoiser, scheduler, image, steps=steps, start=start, generator=generator)
    if start == 0:
        pure = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype) * timed.init_noise_sigma
        x = region * pure + (1 - region) * x
    steps_of = sample(denoiser, scheduler, x, steps=steps, start=start, generator=generator, after_step=keep, **options)
    return _pasted(steps_of, image, mask)


def _pasted(steps: Iterator[Step], image: Tensor, mask: Tensor) -> Iterator[Step]:
    """The steps, showing the original pixels outside of the mask."""

    def over(render: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.where(mask.to(x) == 1, render(x), image.to(x))

    for step in steps:
        yield dataclasses.replace(step, _render=over(step._render))


def seam_ratio(image: Tensor, mask: Tensor) -> float:
    """Mean absolute difference of neighbouring pixels across the mask's border over that inside of the mask.

    1 is a border that is as smooth as what was drawn; a visible seam is above. Needs a mask with a border.
    """
    across, within = [], []
    for dim in (-1, -2):
        gradient = image.diff(dim=dim).abs().mean(1, keepdim=True)
        edge = mask.diff(dim=dim).abs() > 0
        inside = torch.minimum(*(mask.narrow(dim, offset, mask.shape[dim] - 1) for offset in (0, 1))) > 0
        across.append(gradient[edge.expand_as(gradient)])
        within.append(gradient[inside.expand_as(gradient)])
    return (torch.cat(across).mean() / torch.cat(within).mean()).item()
