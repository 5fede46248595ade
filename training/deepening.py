"""A U-Net with one more level, begun from the weights of a U-Net without it.

The embedded mini-sd works on 32 x 32 latents. Its deeper levels began as those of an earlier mini-sd, which worked on
16 x 16 latents of a coarser autoencoder and knew what things look like and which words name them. Only the outermost
level, and what reads or writes latents, had to begin from nothing.
"""

from collections.abc import Mapping

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor

TIMESTEPS = 1000
RIDGE = 1e-3


def deepened(weights: Mapping[str, Tensor], net: UNet2DConditionModel) -> set[str]:
    """Copy the weights of a U-Net with one level less into `net`, wherever they fit.

    Level i of the old network becomes level i + 1. Up blocks are counted from the deepest level, so they keep their
    numbers. The first linear layer of the time embedding, whose inputs are the sines and cosines of the timestep, is
    fitted by ridge regression to what the old one makes of more of them.

    Returns:
        The names of the parameters that are new, to be trained alone at first.
    """
    own = net.state_dict()
    hidden, beside = net.config.block_out_channels[1], f"up_blocks.{len(net.up_blocks) - 2}.resnets.1."
    outermost = f"up_blocks.{len(net.up_blocks) - 1}."
    new = {
        name
        for name in own
        if name.startswith(("conv_in.", "conv_out.", "conv_norm_out.", "down_blocks.0.", outermost))
    }
    for name in own.keys() - new:
        first, _, rest = name.removeprefix("down_blocks.").partition(".")
        source = f"down_blocks.{int(first) - 1}.{rest}" if name.startswith("down_blocks.") else name
        if name.startswith("time_embedding.linear_1"):
            continue
        if source not in weights:  # what the last level does not have, because nothing lies beyond it
            new.add(name)
            continue
        old = weights[source].float()
        if old.shape == own[name].shape:
            own[name] = old
        else:
            new.add(name)
            if name.startswith(beside):  # its inputs are hidden features, then those of a skip connection
                inputs = (slice(None),) * (old.ndim > 1) + (slice(hidden),)
                own[name][inputs] = old[inputs]
    _fit_time(weights, own)
    net.load_state_dict(own)
    return new


def _fit_time(weights: Mapping[str, Tensor], own: dict[str, Tensor]) -> None:
    steps = torch.arange(TIMESTEPS)
    old_weight = weights["time_embedding.linear_1.weight"].double()
    old_bias = weights["time_embedding.linear_1.bias"].double()
    size = own["time_embedding.linear_1.weight"].shape[1]
    many, few = (_sines(steps, count) for count in (old_weight.shape[1], size))
    inputs = torch.cat([few, torch.ones(TIMESTEPS, 1).double()], 1)
    wanted = many @ old_weight.T + old_bias
    # The slowest sines are nearly equal: without the ridge their weights would be huge and cancel.
    fitted = torch.linalg.solve(inputs.T @ inputs + RIDGE * torch.eye(size + 1).double(), inputs.T @ wanted)
    own["time_embedding.linear_1.weight"] = fitted[:size].T.float().contiguous()
    own["time_embedding.linear_1.bias"] = fitted[size].float()


def _sines(steps: Tensor, count: int) -> Tensor:
    return get_timestep_embedding(steps, count, flip_sin_to_cos=True, downscale_freq_shift=0).double()
