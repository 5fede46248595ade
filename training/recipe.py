"""What all recipes share: a recipe decides the network, the batch of every step and the loss.

A recipe holds no state that training changes. Batch `step` is decided by the step alone, so that training
that was interrupted and resumed sees the same batches on the same kind of device.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from ex4lib.models import EMBEDDED

MODELS = EMBEDDED
LATENT_NOISE = 0.05  # standard deviation of the encoder's posterior
SNR_GAMMA = 5.0


def to_tensor(pictures: np.ndarray, size: int | None = None) -> torch.Tensor:
    """uint8 (B, S, S, 3) -> float32 (B, 3, size, size) in [-1, 1], reduced by area."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x if size in (None, x.shape[-1]) else F.interpolate(x, size=(size, size), mode="area")


def generator(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The randomness of one step."""
    return torch.Generator(device).manual_seed(seed * 1_000_003 + step)


@dataclass
class Recipe:
    """Base: `build()` makes the network, `batch(step)` tensors on `device`, `loss(net, batch)` a scalar.

    Arguments:
        seed: decides the first weights and every batch.
        lr: learning rate at its highest.
        batch_size: pictures of a step; the larger default is for an accelerator.
        device: where batches are made.
    """

    seed: int = 1
    lr: float = 1e-3
    batch_size: int = 32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def optimizer(self, net: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(net.parameters(), lr=self.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)

    def compiled_parts(self, net: torch.nn.Module) -> list[torch.nn.Module]:
        """The modules that `loss` calls and that torch.compile makes faster."""
        return [net]

    def randomness(self, step: int) -> tuple[np.random.Generator, torch.Generator]:
        """Of one step, for choices that the CPU has to know and for tensors on the device."""
        return np.random.default_rng((self.seed, step)), generator(self.seed, step, self.device)
