"""Muon for the matrices and kernels of a diffusion U-Net, AdamW for all that is left."""

import torch
from torch.optim import AdamW, Muon

ENDS = ("conv_in", "conv_out")  # the first and last layers see pixels, not features


def _rows(x: torch.Tensor, layout: torch.Tensor) -> torch.Tensor:
    """`x` as a matrix with a row for each output, in the order in which `layout` lies in memory."""
    if x.ndim == 4 and not layout.is_contiguous():
        x = x.permute(0, 2, 3, 1)
    return x.reshape(len(x), -1)


class MuonAdamW:
    """One optimiser in two parts, with the calls of a `torch.optim.Optimizer` that a training loop makes.

    Muon (Jordan et al. 2024) replaces a matrix's momentum by the nearest orthogonal matrix; scaled to AdamW's
    RMS (Liu et al. 2025), so that one learning rate serves both parts. `torch.optim.Muon` takes matrices
    alone: kernels (out, in, h, w) are given to it as views (out, in h w) of the same memory.
    """

    def __init__(self, net: torch.nn.Module, lr: float, weight_decay: float = 0.01):
        named = list(net.named_parameters())
        self.kernels = [p for n, p in named if p.ndim in (2, 4) and not any(end in n for end in ENDS)]
        chosen = {id(p) for p in self.kernels}
        self.rows = [_rows(p.data, p.data).requires_grad_() for p in self.kernels]
        if any(p.data_ptr() != r.data_ptr() for p, r in zip(self.kernels, self.rows, strict=True)):
            raise ValueError("A kernel is neither contiguous nor channels-last: it has no view as a matrix.")
        rest = [p for _, p in named if id(p) not in chosen]
        self.parts = {
            "matrices": Muon(self.rows, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            "others": AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True),
        }

    @property
    def param_groups(self) -> list[dict]:
        return [group for part in self.parts.values() for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p in self.kernels:
            p.grad = None
        self.parts["others"].zero_grad(set_to_none)

    def step(self) -> None:
        for p, rows in zip(self.kernels, self.rows, strict=True):
            rows.grad = None if p.grad is None else _rows(p.grad, p.data)
        for part in self.parts.values():
            part.step()

    def state_dict(self) -> dict:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
