"""What all recipes share: a recipe decides the network, the batch of every step and the loss.

A recipe holds no state that training changes. Batch `step` is decided by the step alone, so that training
that was interrupted and goes on sees what it would have seen.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ex4lib.models import EMBEDDED

MODELS = EMBEDDED
LATENT_NOISE = 0.05  # std of the encoder's posterior, next to latents of std 1
SNR_GAMMA = 5.0


def to_tensor(pictures: np.ndarray, size: int | None = None) -> torch.Tensor:
    """uint8 (B, S, S, 3) -> float32 (B, 3, size, size) in [-1, 1], reduced by area."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x if size in (None, x.shape[-1]) else F.interpolate(x, size=(size, size), mode="area")


def generator(seed: int, step: int) -> torch.Generator:
    """The randomness of one step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


@dataclass
class Recipe:
    """Base: `build()` makes the network(s), `batch(step)` CPU tensors, `loss(net, batch)` a scalar."""

    seed: int = 1
    lr: float = 1e-3
    batch_size: int = 32

    def optimizer(self, net: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(net.parameters(), lr=self.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)

    def indices(self, step: int, count: int) -> np.ndarray:
        return np.random.default_rng((self.seed, step)).integers(0, count, self.batch_size)


def strange(caption: str, rng: np.random.Generator) -> str:
    """Now and then a word from outside the world is added, so that such words are learnt to mean nothing."""
    if rng.random() > 0.04:
        return caption
    syllables = [
        "pi",
        "cas",
        "so",
        "van",
        "mo",
        "net",
        "ku",
        "bi",
        "ra",
        "lith",
        "ogr",
        "neo",
        "fu",
        "tur",
        "dra",
        "wen",
    ]
    word = "".join(rng.choice(syllables, rng.integers(1, 4)))
    return f"{caption}, {word}" if rng.random() < 0.5 else f"{caption} in the style of {word}"
