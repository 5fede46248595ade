"""Canvases for score distillation other than latents: a network of coordinates, and pixels under an encoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ex4lib import checks


class CoordinateNetwork(nn.Module):
    """θ are the weights of a network from coordinates to values: Fourier features and an MLP.

    Source: Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions" (2020), equation 5.
    """

    def __init__(
        self, shape: tuple[int, int, int], *, features: int = 64, width: int = 128, scale: float = 4.0, seed: int = 0
    ):
        super().__init__()
        draws = torch.Generator().manual_seed(checks.seed(seed))
        self.register_buffer("frequencies", scale * torch.randn(2, features, generator=draws))
        channels, rows, columns = shape[0], torch.linspace(-1, 1, shape[1]), torch.linspace(-1, 1, shape[2])
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)
        angles = math.pi * grid.flatten(0, 1) @ self.frequencies
        self.register_buffer("encoded", torch.cat([angles.sin(), angles.cos()], 1))
        self.shape = shape
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Linear(2 * features, width),
                nn.SiLU(),
                nn.Linear(width, width),
                nn.SiLU(),
                nn.Linear(width, channels),
            )

    def forward(self) -> Tensor:
        return self.layers(self.encoded).T.reshape(1, *self.shape)


class Encoded(nn.Module):
    """Pixels for a model of latents: ``x0 = E(tanh(p))`` with the encoder E and p from a canvas of three channels.

    Arguments:
        pixels: gives ``(B, 3, H, W)``, unbounded.
        vae: the autoencoder; gradients pass through its encoder, but its weights are not parameters of the canvas.
    """

    def __init__(self, pixels: nn.Module, vae: nn.Module):
        super().__init__()
        self.pixels, self._vae = pixels, (vae,)  # in a tuple, so that it is not a submodule

    def forward(self) -> Tensor:
        (vae,) = self._vae
        posterior = vae.encode(self.pixels().tanh().to(vae.dtype)).latent_dist
        return posterior.mode().float() * vae.config.scaling_factor

    @torch.no_grad()
    def picture(self) -> Tensor:
        """The pixels themselves, ``(B, 3, H, W)`` in [0, 1], without a round trip through the decoder."""
        return self.pixels().tanh() / 2 + 0.5
