"""Score distillation: a picture, or anything that renders one, optimised by a diffusion model's score.

θ are the parameters of a canvas, ``x0 = g(θ)`` the clean sample it renders. A rule of `scores` gives the gradient in
x0; `distil` carries it on through g.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from diffusers import SchedulerMixin
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch import Tensor, nn

from ex4lib import images
from ex4lib.diffusion.scores import DDS, PDS, SDS, VSD


class Rule(Protocol):
    """The gradient in x0 ``(B, C, H, W)`` at a timestep; noise comes from the generator."""

    scheduler: SchedulerMixin

    def gradient(self, clean: Tensor, timestep: int, generator: torch.Generator | None) -> Tensor: ...


class Canvas(nn.Module):
    """θ = x0 itself: latents, or pixels in [-1, 1]."""

    def __init__(self, initial: Tensor):
        super().__init__()
        self.sample = nn.Parameter(initial.detach().clone())

    def forward(self) -> Tensor:
        return self.sample


class CoordinateNetwork(nn.Module):
    """θ are the weights of a network from places to values: Fourier features and an MLP, at any resolution.

    Source: Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions" (2020), equation 5.
    """

    def __init__(
        self, shape: tuple[int, int, int], *, features: int = 64, width: int = 128, scale: float = 4.0, seed=0
    ):
        super().__init__()
        channels, height, width_px = shape
        draw = torch.Generator().manual_seed(seed)
        self.register_buffer("frequencies", scale * torch.randn(2, features, generator=draw))
        rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width_px)
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
    """Pixels under a model of latents: ``x0 = E(tanh(p))``, E the encoder, p what a canvas of three channels renders.

    Arguments:
        pixels: gives ``(B, 3, H, W)``, unbounded.
        vae: the autoencoder; gradients pass its encoder, its weights are no parameters of the canvas.
    """

    def __init__(self, pixels: nn.Module, vae: nn.Module):
        super().__init__()
        self.pixels, self._vae = pixels, (vae,)  # in a tuple: unregistered

    def forward(self) -> Tensor:
        (vae,) = self._vae
        posterior = vae.encode(self.pixels().tanh().to(vae.dtype)).latent_dist
        return posterior.mode().float() * vae.config.scaling_factor

    @torch.no_grad()
    def picture(self) -> Tensor:
        """The pixels themselves, ``(B, 3, H, W)`` in [0, 1]: no decoder tidies them."""
        return self.pixels().tanh() / 2 + 0.5


@dataclasses.dataclass(frozen=True)
class Step:
    """One update. ``gradient_rms`` is that of the rule in x0, ``loss`` the objective's ``(B,)`` if there is one."""

    index: int
    total: int
    timestep: int
    gradient_rms: float
    loss: Tensor | None
    clean: Tensor
    _render: Callable[[Tensor], Tensor] = dataclasses.field(repr=False)

    @property
    def image(self) -> Tensor:
        return self._render(self.clean)


def distil(
    rule: Rule,
    canvas: nn.Module,
    space,
    *,
    steps: int = 500,
    learning_rate: float = 0.1,
    warm_up: int = 100,
    t_range: tuple[float, float] = (0.02, 0.98),
    objective: Callable[[Tensor], Tensor] | None = None,
    objective_weight: float = 1.0,
    generator: torch.Generator | None = None,
) -> Iterator[Step]:
    """Optimise what a canvas renders; yields a `Step` after each update.

    The loss is ``½ ‖x0 - (x0 - gradient).detach()‖²``, whose gradient in x0 is the rule's. AdamW without decay, its
    rate on a cosine of 1.5 × ``steps`` after ``warm_up``, as in the KAIST assignment.

    Arguments:
        canvas: a module that takes nothing and gives x0 ``(B, C, H, W)``.
        space: `denoisers.Pixels` or `denoisers.Latents`, to look at x0 and for the objective.
        t_range: timesteps are drawn between these fractions of all.
        objective: images -> losses ``(B,)``, added with ``objective_weight``: style-guided distillation.

    Raises:
        ValueError: no steps, or a range of timesteps that is empty.
    """
    count = rule.scheduler.config.num_train_timesteps
    low, high = int(t_range[0] * count), min(int(t_range[1] * count), count - 1)
    if steps < 1 or not 0 <= low <= high:
        raise ValueError(f"steps must be at least 1 and t_range rising within [0, 1], got {steps} and {t_range}")
    return _updates(
        rule, canvas, space, steps, learning_rate, warm_up, (low, high), objective, objective_weight, generator
    )


def _updates(rule, canvas, space, steps, rate, warm_up, between, objective, weight, generator) -> Iterator[Step]:
    optimiser = torch.optim.AdamW(canvas.parameters(), lr=rate, weight_decay=0.0, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimiser, warm_up, int(1.5 * steps))
    where = generator.device if generator is not None else "cpu"
    for index in range(steps):
        t = int(torch.randint(between[0], between[1] + 1, (), generator=generator, device=where))
        with torch.enable_grad():
            clean = canvas()
            gradient = rule.gradient(clean.detach(), t, generator)
            loss = 0.5 * (clean - (clean - gradient).detach()).square().sum()
            value = None
            if objective is not None:
                value = objective(space.decode(clean))
                loss = loss + weight * value.sum()
            gradients = torch.autograd.grad(loss, list(canvas.parameters()))
        for parameter, own in zip(canvas.parameters(), gradients, strict=True):
            parameter.grad = own
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            clean = canvas().detach().clone()
        rms = gradient.square().mean().sqrt().item()
        yield Step(index, steps, t, rms, None if value is None else value.detach(), clean, space.render)


RULES = {"sds": SDS, "vsd": VSD, "pds": PDS, "dds": DDS}
#: The KAIST assignment's classifier-free guidance and number of updates, by loss; DDS is not in it and takes PDS's.
ASSIGNMENT = {"sds": (25.0, 500), "vsd": (7.5, 500), "pds": (7.5, 200), "dds": (7.5, 200)}


def check_request(loss: str, has_source: bool, has_edit: bool) -> None:
    """Say in one sentence what a loss lacks, or has too much.

    Raises:
        ValueError: an unknown loss; an edit without a source or a source without an edit; a drawing with either.
    """
    if loss not in ASSIGNMENT:
        raise ValueError(f"loss must be one of {', '.join(ASSIGNMENT)}, got {loss!r}")
    edits = loss in ("pds", "dds")
    if edits and not (has_source and has_edit):
        raise ValueError(f"{loss} needs a source and prompts for it and for what is to be made of it")
    if not edits and (has_source or has_edit):
        raise ValueError(f"{loss} draws from noise and takes no source or edit")


def distil_prompt(
    pipe,
    prompt: str,
    *,
    loss: str = "sds",
    source: Tensor | None = None,
    source_prompt: str | None = None,
    guidance_scale: float | None = None,
    steps: int | None = None,
    negative_prompt: str = "",
    seed: int = 0,
    **options,
) -> Iterator[Step]:
    """Draw a prompt, or edit a source towards it, in latents: the KAIST CS492D assignment.

    Arguments:
        pipe: a `StyleGuidedStableDiffusionPipeline`.
        loss: ``"sds"`` or ``"vsd"`` from latents of noise; ``"pds"`` or ``"dds"`` from the encoded source.
        source: ``(1, 3, H, W)`` in [0, 1], and ``source_prompt``, what it shows.
        guidance_scale, steps: default `ASSIGNMENT`.
        options: of the rule (``weight``, ``form``, ``stride``, ``rank``, ``adapter_learning_rate``) and of `distil`.

    Raises:
        ValueError: an unknown loss; an edit without source or its prompt, or a drawing with them.
    """
    check_request(loss, source is not None, source_prompt is not None)
    scale, count = ASSIGNMENT[loss]
    edits = source is not None
    told = {"negative_prompt": negative_prompt, "guidance_scale": scale if guidance_scale is None else guidance_scale}
    of_rule, options = split_options(loss, options)
    generator = torch.Generator().manual_seed(seed)
    denoiser = pipe.denoiser(prompt, **told)
    if edits:
        start = denoiser.space.encode(_fitting(source, pipe)).float()  # bfloat16 would round AdamW's steps away
        before = pipe.denoiser(source_prompt, **told)
        rule = RULES[loss](denoiser, before, start, pipe.scheduler, **of_rule)
    else:
        side, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
        start = torch.randn(1, channels, side, side, generator=generator).to(pipe.device)
        rule = RULES[loss](denoiser, pipe.scheduler, **of_rule)
    return _closing(
        rule, distil(rule, Canvas(start), denoiser.space, steps=steps or count, generator=generator, **options)
    )


def split_options(loss: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options that are fields of a loss's rule, and the rest."""
    known = {field.name for field in dataclasses.fields(RULES[loss])}
    of_rule = {name: value for name, value in options.items() if name in known}
    return of_rule, {name: value for name, value in options.items() if name not in known}


def _fitting(source: Tensor, pipe) -> Tensor:
    """The source's central square at the size the pipeline draws."""
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    return images.resize(images.crop_square(images.check(source, "source")), side).to(pipe.device)


def _closing(rule, steps: Iterator[Step]) -> Iterator[Step]:
    """The steps; afterwards, or when the loop is abandoned, a rule's adapter is taken away."""
    try:
        yield from steps
    finally:
        if hasattr(rule, "close"):
            rule.close()
