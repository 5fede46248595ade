"""Algorithm 1 of the exercise, as it is written there: the mean of every DDPM step moves by ``s Σ ∇ log p(y|x_t)``.

The gradient of the classifier is replaced by ``-∇L``, for a style loss L of the clean picture that is estimated from
``x_t``, as the exercise suggests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ex4lib.diffusion.pipelines import StyleObjective
from ex4lib.features import VGG
from ex4lib.models import pipeline_sha256
from experiments.store import Run, stored


def sample(
    unet,
    scheduler,
    loss: Callable[[Tensor], Tensor],
    s: float,
    x: Tensor,
    noise: Sequence[Tensor],
    start: float = 0.0,
):
    """Yield ``(t, x_{t-1}, x̂_0, gradient share)`` for all t from T to 1.

    Arguments:
        loss: pictures in [0, 1] -> one loss each.
        s: gradient scale.
        x: ``x_T``.
        noise: the Gaussian draw of each step.
        start: the share of the steps that come before the first guided one; 0 is the algorithm as it is written.
    """
    alphas = scheduler.alphas_cumprod.to(x)
    times = [int(t) for t in scheduler.timesteps]
    for index, (t, then, z) in enumerate(zip(times, [*times[1:], None], noise, strict=True)):
        guided = s > 0 and index >= start * len(times)
        alpha_bar, alpha_bar_then = alphas[t], alphas[then] if then is not None else torch.ones_like(alphas[0])
        beta = 1 - alpha_bar / alpha_bar_then
        x = x.detach().requires_grad_(guided)
        epsilon = unet(x, t).sample
        clean = (x - (1 - alpha_bar).sqrt() * epsilon) / alpha_bar.sqrt()
        gradient = torch.autograd.grad(loss(clean / 2 + 0.5).sum(), x)[0] if guided else torch.zeros_like(x)
        with torch.no_grad():
            mean = (x - beta / (1 - alpha_bar).sqrt() * epsilon) / (1 - beta).sqrt()
            variance = beta * (1 - alpha_bar_then) / (1 - alpha_bar)
            shift = -s * variance * gradient
            share = shift.square().mean().sqrt() / ((mean - x).square().mean().sqrt())
            x = mean + shift + variance.sqrt() * z
        yield t, x, clean.detach(), share.item()


def drawn(pipe, style: Tensor, s: float, seeds: Sequence[int], steps: int, features: VGG, start: float = 0.0) -> Run:
    """Pictures by seed from `sample`, kept in the store.

    Values by step: ``timestep``, and ``share``, the rms of the shift relative to that of the step's own movement.
    """

    def compute() -> Run:
        scheduler, unet = pipe.scheduler, pipe.unet.requires_grad_(False)
        scheduler.set_timesteps(steps)
        shape = (3, unet.config.sample_size, unet.config.sample_size)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        draws = [
            torch.stack([torch.randn(shape, generator=g) for g in generators]).to(pipe.device, unet.dtype)
            for _ in range(steps + 1)
        ]
        objective = StyleObjective(features, [style], shape[1:])
        rows = list(sample(unet, scheduler, objective, s, draws[0], draws[1:], start))
        pictures = (rows[-1][1] / 2 + 0.5).clamp(0, 1).nan_to_num().float().cpu().split(1)
        values = {"timestep": [row[0] for row in rows], "share": [row[3] for row in rows]}
        return Run(values, {str(seed): x for seed, x in zip(seeds, pictures, strict=True)})

    config = {"s": s, "seeds": list(seeds), "steps": steps, "start": start}
    weights = {"pipeline": pipeline_sha256(pipe), features.name: features.sha256}
    return stored("algorithm-1", config, compute, inputs={"style": style}, weights=weights)
