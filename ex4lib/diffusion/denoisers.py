"""Pixel U-Nets and Stable Diffusion behind one convention.

A `Denoiser` maps a sample and a timestep to the network's output with classifier-free guidance in it; its ``space``
turns clean samples into images ``(B, 3, H, W)`` in [0, 1]. Model ranges and latents live in this room only.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Output:
    """What a U-Net says of a sample.

    ``prediction`` ``(B, C, H, W)`` is of the scheduler's prediction type, guided by the prompt; ``variance`` holds the
    channels of a learned variance, if there are any; ``correction`` is conditional minus unconditional prediction.
    """

    prediction: Tensor
    variance: Tensor | None = None
    correction: Tensor | None = None

    def detached(self) -> Output:
        """The same numbers without a graph."""
        parts = (self.prediction, self.variance, self.correction)
        return Output(*(None if part is None else part.detach() for part in parts))

    @property
    def whole(self) -> Tensor:
        """Prediction and variance as ``scheduler.step`` wants them."""
        return self.prediction if self.variance is None else torch.cat([self.prediction, self.variance], dim=1)


class Pixels:
    """Samples are pictures in [-1, 1]."""

    modules: tuple[nn.Module, ...] = ()

    def decode(self, clean: Tensor) -> Tensor:
        """``x0/2 + 1/2``, not clamped, so that gradients pass."""
        return clean / 2 + 0.5

    def encode(self, image: Tensor) -> Tensor:
        """The sample of an image in [0, 1]: ``2·image - 1``."""
        return 2 * image - 1

    def render(self, clean: Tensor) -> Tensor:
        """The picture to look at, clamped."""
        with torch.no_grad():
            return self.decode(clean).clamp(0, 1)


class Latents:
    """Samples are latents of an autoencoder, divided by its ``scaling_factor`` before they are decoded.

    Arguments:
        vae: the autoencoder of the final picture, ``AutoencoderKL``.
        preview: a smaller one, such as ``AutoencoderTiny``, that takes the gradients. Without it, ``vae`` does, in a
            float32 copy of its decoder where it is of lower precision.
    """

    def __init__(self, vae: nn.Module, preview: nn.Module | None = None):
        self.vae = vae
        self._differentiable = preview or vae
        if self._differentiable.dtype in (torch.float16, torch.bfloat16):
            self._differentiable = copy.deepcopy(self._differentiable).float()
        self.modules = (self._differentiable,)

    def decode(self, clean: Tensor) -> Tensor:
        """The decoded picture, not clamped, at least float32, so that gradients pass."""
        vae = self._differentiable
        return vae.decode(clean.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0] / 2 + 0.5

    def encode(self, image: Tensor) -> Tensor:
        """The latents of an image in [0, 1]: the mode of the full autoencoder's posterior, scaled."""
        with torch.no_grad():
            posterior = self.vae.encode((2 * image - 1).to(self.vae.dtype)).latent_dist
        return posterior.mode() * self.vae.config.scaling_factor

    def render(self, clean: Tensor) -> Tensor:
        """The full autoencoder's picture, clamped."""
        with torch.no_grad():
            decoded = self.vae.decode(clean.to(self.vae.dtype) / self.vae.config.scaling_factor, return_dict=False)[0]
        return (decoded.float() / 2 + 0.5).clamp(0, 1)


class Denoiser:
    """A U-Net, what it is told, and the space it works in.

    With ``embeddings`` and a ``guidance_scale`` γ other than 1, ``ε = ε_u + γ·(ε_c - ε_u)`` (Ho & Salimans,
    "Classifier-Free Diffusion Guidance" (2022); γ = 1 is the conditional prediction, γ = 0 the unconditional).
    Channels of a learned variance are split off; they are the conditional ones.

    Arguments:
        unet: ``UNet2DModel``, or ``UNet2DConditionModel`` with embeddings.
        space: `Pixels` or `Latents`.
        embeddings: of the prompts, ``(B, T, D)``.
        negative: of the negative prompts, alike.
        guidance_scale: γ.
        options: further keyword arguments of the U-Net.
    """

    def __init__(
        self,
        unet: nn.Module,
        space: Pixels | Latents,
        *,
        embeddings: Tensor | None = None,
        negative: Tensor | None = None,
        guidance_scale: float = 1.0,
        options: dict | None = None,
    ):
        self.unet, self.space, self.guidance_scale = unet, space, guidance_scale
        self.embeddings, self.negative, self.options = embeddings, negative, options or {}
        self.dtype: torch.dtype = unet.dtype  # kept: diffusers looks through all parameters for it
        if embeddings is not None and negative is None and guidance_scale != 1:
            raise ValueError(f"guidance_scale {guidance_scale} needs embeddings of the negative prompt")

    def __call__(self, sample: Tensor, timestep: Tensor | int) -> Output:
        """The network's `Output` for samples ``(B, C, H, W)`` as ``scheduler.scale_model_input`` left them."""
        channels = sample.shape[1]
        sample = sample.to(self.dtype)
        if self.embeddings is None:
            return Output(*_split(self.unet(sample, timestep, return_dict=False)[0], channels))
        if self.guidance_scale == 1:
            told = self._unet(sample, timestep, self.embeddings)
            return Output(*_split(told, channels))
        both = self._unet(torch.cat([sample] * 2), timestep, torch.cat([self.negative, self.embeddings]))
        (free, _), (told, variance) = (_split(half, channels) for half in both.chunk(2))
        correction = told - free
        return Output(free + self.guidance_scale * correction, variance, correction)

    def _unet(self, sample: Tensor, timestep: Tensor | int, embeddings: Tensor) -> Tensor:
        return self.unet(sample, timestep, encoder_hidden_states=embeddings, **self.options, return_dict=False)[0]


def _split(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """Prediction, and variance where the network has twice the channels."""
    return (output[:, :channels], output[:, channels:]) if output.shape[1] == 2 * channels else (output, None)


@contextlib.contextmanager
def frozen(denoiser: Denoiser, *, checkpointing: bool = False) -> Iterator[None]:
    """Weights take no gradients inside, and are left as they were; ``checkpointing`` trades time for memory.

    Without it every guided step would keep the gradients of all weights.
    """
    modules = (denoiser.unet, *denoiser.space.modules)
    wanted = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    switched = []
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        if checkpointing:
            for module in modules:
                if not module.is_gradient_checkpointing:
                    module.enable_gradient_checkpointing()
                    switched.append(module)
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        for module in switched:
            module.disable_gradient_checkpointing()
