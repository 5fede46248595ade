"""DeepFloyd IF's second stage, which enlarges the pictures of the first."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from diffusers import IFSuperResolutionPipeline
from torch import Tensor

from ex4lib import checks, images, models
from ex4lib.diffusion.pixel import PixelModel, deepfloyd_stage
from ex4lib.images import ImageSource


@dataclasses.dataclass(frozen=True)
class Upsampler:
    """DeepFloyd IF's second stage: enlarges pictures of the first stage four times, guided by their prompt."""

    pipe: IFSuperResolutionPipeline
    encode: Callable[[list[str]], Tensor]

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 over the weights of the U-Net; computed once."""
        return models.weights_sha256(self.pipe.unet)

    def __call__(
        self,
        image: ImageSource,
        prompt: str | list[str],
        *,
        steps: int = 50,
        guidance_scale: float = 4.0,
        noise_level: int = 250,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Tensor:
        """Pictures ``(B, 3, H, W)`` in [0, 1] of the stage's own size, which is 256 for IF-II.

        Arguments:
            image: ``(B, 3, h, w)`` in [0, 1]; enlarged, then noised to timestep ``noise_level``.
            prompt: one for all pictures, or one for each.
            guidance_scale: classifier-free guidance; 4 and ``noise_level`` 250 are diffusers' defaults.

        Source: Ho et al., "Cascaded Diffusion Models for High Fidelity Image Generation" (2022).

        Raises:
            ValueError: not a picture, a number of prompts that differs from the pictures, or a number out of range.
        """
        image, prompts = images.picture(image, "image").to(self.pipe.device), checks.prompts(prompt)
        prompts = prompts * (len(image) if len(prompts) == 1 else 1)
        if len(prompts) != len(image):
            raise ValueError(f"prompt must be one or one per picture, got {len(prompts)} for {len(image)} pictures")
        steps = checks.integer(steps, "steps", low=1, high=self.pipe.scheduler.config.num_train_timesteps)
        guidance_scale = checks.number(guidance_scale, "guidance_scale")
        last = self.pipe.image_noising_scheduler.config.num_train_timesteps - 1
        noise_level = checks.integer(noise_level, "noise_level", low=0, high=last)
        with torch.no_grad():
            embeddings, negative = self.encode(prompts), self.encode([""] * len(prompts))
        drawn = self.pipe(
            image=2 * image - 1,  # the pipeline takes and gives tensors in [-1, 1]
            prompt_embeds=embeddings,
            negative_prompt_embeds=negative,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            noise_level=noise_level,
            generator=generator,
            output_type="pt",
        ).images
        return (drawn.float() / 2 + 0.5).clamp(0, 1)


def upsampler(model: PixelModel, name: str | None = None) -> Upsampler | None:
    """The second stage of the profile's model, or another ``IFSuperResolutionPipeline`` by hub id or folder.

    None for the mini profile, which has none. The first stage, ``model``, encodes the prompts.

    Raises:
        FileNotFoundError: as for `pixel_model`.
    """
    if name is None and models.SOURCES[models.profile()]["pixel-upsampler"] is None:
        return None
    source = models.source("pixel-upsampler", name)
    pipe = deepfloyd_stage(IFSuperResolutionPipeline, source, model.device, without=("tokenizer", "text_encoder"))
    pipe.unet.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return Upsampler(pipe, model.encode)
