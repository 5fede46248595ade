"""Stored runs of the sampling loops: drawing, denoising, SDEdit, inpainting, visual anagrams, hybrid images.

What a loop is told is plain data (`Prompt`, `TwoViews`, `TwoDistances`), so that a run can be stored; a painting can
steer every one of them. A model is a `PixelModel`, or Stable Diffusion's pipeline, whose latents then take the pixels'
place.

Pictures are kept by seed, enlarged by whole pixels to at most 256: so JPEG keeps the single pixels of a picture of 32,
and figures show them. `native` takes them back to their own size. Seeds do not depend on each other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from ex4lib.diffusion import editing, schedulers
from ex4lib.diffusion.denoisers import Denoiser
from ex4lib.diffusion.guidance import Guidance
from ex4lib.diffusion.pipelines import StyleGuidedStableDiffusionPipeline, StyleObjective
from ex4lib.diffusion.pixel import PixelModel
from ex4lib.diffusion.process import strided_timesteps
from ex4lib.diffusion.sampling import Step, finish, sample
from ex4lib.features import VGG
from ex4lib.models import pipeline_sha256
from experiments import store
from experiments.drawings import as_stored, stack
from experiments.illusions import FLIP, IDENTITY, INNER_CIRCLE, NEGATION, ROTATION, Anagram, Hybrid, patches
from experiments.inpainting import inpaint
from experiments.loop_scores import fidelity, seam_ratio
from experiments.store import Run, stored
from experiments.upsampling import Upsampler

Model = PixelModel | StyleGuidedStableDiffusionPipeline

#: The course's prompt for no thing in particular.
ANYTHING = "a high quality photo"
#: The views of anagrams, by name.
VIEWS = {view.name: view for view in (IDENTITY, FLIP, ROTATION, NEGATION, INNER_CIRCLE, patches())}
#: What `denoised` compares.
METHODS = ("noisy", "blur", "one-step", "iterative")
#: Gaussian kernels among which it looks for the best.
_KERNELS, _SIGMAS = (3, 5, 7, 9, 13), (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.5)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt, with classifier-free guidance γ."""

    text: str
    guidance_scale: float = 7.0

    def denoiser(self, model: Model, count: int) -> Denoiser:
        return model.denoiser([self.text] * count, guidance_scale=self.guidance_scale)


@dataclasses.dataclass(frozen=True)
class TwoViews:
    """A visual anagram: a prompt for each view, named as in `VIEWS`."""

    prompts: tuple[str, ...]
    views: tuple[str, ...] = (IDENTITY.name, FLIP.name)
    guidance_scale: float = 7.0

    def denoiser(self, model: Model, count: int) -> Anagram:
        told = [Prompt(text, self.guidance_scale).denoiser(model, count) for text in self.prompts]
        return Anagram(told, [VIEWS[name] for name in self.views])


@dataclasses.dataclass(frozen=True)
class TwoDistances:
    """A hybrid image: a prompt for the low frequencies and one for the high ones; ``sigma`` None is 2H/64."""

    far: str
    near: str
    guidance_scale: float = 7.0
    sigma: float | None = None

    def denoiser(self, model: Model, count: int) -> Hybrid:
        far, near = (Prompt(text, self.guidance_scale).denoiser(model, count) for text in (self.far, self.near))
        return Hybrid(far, near, sigma=self.sigma)


def looped(
    model: Model,
    told: Prompt | TwoViews | TwoDistances,
    seeds: Sequence[int],
    *,
    steps: int | Sequence[int] = tuple(strided_timesteps()),
    picture: Tensor | None = None,
    start: int = 0,
    mask: Tensor | None = None,
    repeats: int = 1,
    style: Tensor | None = None,
    style_loss: str = "gram",
    guidance: Guidance | None = None,
    features: VGG | None = None,
    batch: int = 16,
) -> Run:
    """Pictures by seed: from noise; given a ``picture``, by SDEdit; given a ``mask`` too, by inpainting.

    Arguments:
        picture: ``(1, 3, H, W)`` of the model's size. start: timestep number to begin with, 0 is noise alone.
        mask: ``(1, 1, H, W)``, 1 is drawn anew.
        repeats: see `sampling.sample`; RePaint's resampling.
        style, style_loss, guidance, features: a painting that steers, as in `drawings.drawn`.

    Values: ``size`` of the pictures in pixels. With a mask also, by seed, the `seam_ratio` as ``seams`` (None
    where the mask has no border) and the greatest difference of a known pixel from the picture as ``known_error``.

    Raises:
        ValueError: a start without a picture, a mask without one, or a guidance without style and features.
    """
    guided = guidance is not None and guidance.is_on
    if picture is None and (start or mask is not None):
        raise ValueError("start and mask edit a picture, but there is none")
    if guided and (style is None or features is None):
        raise ValueError("guidance needs a style and the features that see it")
    plain = steps if isinstance(steps, int) else list(steps)
    options = {"steps": plain, "repeats": repeats, "guidance": guidance if guided else None}

    def compute() -> Run:
        objective = StyleObjective(features, [style], (_size(model),) * 2, style_loss=style_loss) if guided else None
        found = {}
        for first in range(0, len(seeds), batch):
            part = list(seeds[first : first + batch])
            step, _ = finish(_loop(model, told, part, picture, start, mask, objective=objective, **options))
            found |= dict(zip(map(str, part), step.sample_image.float().cpu().split(1), strict=True))
        values = {"size": _size(model)}
        if mask is not None:
            known = 1 - mask.cpu()
            values["seams"] = [seam_ratio(each, mask.cpu()) for each in found.values()]
            values["known_error"] = [(known * (each - picture.cpu())).abs().max().item() for each in found.values()]
        return Run(values, {seed: enlarged(each) for seed, each in found.items()})

    config = {"told": {"kind": type(told).__name__, **dataclasses.asdict(told)}, "seeds": list(seeds), "steps": plain}
    config |= {"start": start, "repeats": repeats, "style_loss": style_loss if guided else None}
    config |= {"guidance": as_stored(guidance) if guided else None}
    inputs = {"picture": picture, "mask": mask, "style": style if guided else None}
    hashes = {"model": _sha256(model)} | ({"features": features.identity} if guided else {})
    given = {name: tensor for name, tensor in inputs.items() if tensor is not None}
    return stored("looped", config, compute, inputs=given, weights=hashes)


def _loop(
    model: Model,
    told: Prompt | TwoViews | TwoDistances,
    seeds: Sequence[int],
    picture: Tensor | None,
    start: int,
    mask: Tensor | None,
    **options,
) -> Iterator[Step]:
    """The library's loop that `looped` runs: sampling, editing or inpainting, with ``options`` of `sampling.sample`."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    arguments, options = (told.denoiser(model, len(seeds)), model.scheduler), options | {"generator": generators}
    if picture is None:
        side, channels = model.unet.config.sample_size, model.unet.config.in_channels
        x = randn_tensor((len(seeds), channels, side, side), generators, model.device, model.unet.dtype)
        return sample(*arguments, x * schedulers.timed(model.scheduler, options["steps"]).init_noise_sigma, **options)
    several = picture.to(model.device).expand(len(seeds), -1, -1, -1)
    if mask is None:
        return editing.edit(*arguments, several, start=start, **options)
    return inpaint(*arguments, several, mask.to(model.device), start=start, **options)


def denoised(
    model: PixelModel,
    network: VGG,
    pictures: Tensor,
    timesteps: Sequence[int],
    *,
    steps: Sequence[int],
    prompt: str = ANYTHING,
    seed: int = 0,
) -> Run:
    """Noised pictures ``(B, 3, H, W)`` denoised by a blur, in one step, and step by step, all from the same noise.

    The blur is, of 35 Gaussian kernels on ``x`` and on ``x/√ᾱ``, the one with the best mean PSNR at each timestep,
    chosen *knowing the answer*. The model is told ``prompt`` without classifier-free guidance; step by step it goes
    from t through all later ``steps``.

    Values: ``timesteps``, the chosen ``blur`` for each, and for each of `METHODS` what `fidelity` says, a list by
    timestep of lists by picture. Pictures: the first one's, ``METHOD-TIMESTEP``.
    """

    @torch.no_grad()
    def compute() -> Run:
        denoiser = model.denoiser([prompt] * len(pictures), guidance_scale=1.0)
        kind, space = model.scheduler.config.prediction_type, denoiser.space
        values = {"timesteps": list(timesteps), "blur": {"chosen": []}}
        shown = {}
        for t in timesteps:
            generator = torch.Generator().manual_seed(seed)
            later = [t, *(step for step in steps if step < t)]
            x = editing.noised(
                denoiser, model.scheduler, pictures.to(model.device), steps=later, start=0, generator=generator
            )
            level = schedulers.levels(schedulers.timed(model.scheduler, later))[0]
            found = {"noisy": space.render(x)}
            found["blur"], choice = _best_blur(x, level.signal, pictures)
            found["one-step"] = space.render(level.clean(x, denoiser(x, t).prediction.to(x), kind))
            loop = sample(denoiser, model.scheduler, x, steps=later, generator=generator)
            found["iterative"] = finish(loop)[0].sample_image
            values["blur"]["chosen"].append(choice)
            for method in METHODS:
                images = found[method].float().cpu()
                for name, numbers in fidelity(network, images, pictures).items():
                    values.setdefault(method, {}).setdefault(name, []).append(numbers)
                shown[f"{method}-{t}"] = enlarged(images[:1])
        return Run(values, shown)

    config = {"timesteps": list(timesteps), "steps": list(steps), "prompt": prompt, "seed": seed}
    hashes = {"model": _sha256(model), "network": network.identity}
    return stored("denoised", config, compute, inputs={"pictures": pictures}, weights=hashes)


def _best_blur(x: Tensor, signal: float, pictures: Tensor) -> tuple[Tensor, dict]:
    clean, best = pictures.to(x), None
    for divided in (False, True):
        noisy = (x / signal if divided else x) / 2 + 0.5
        for kernel in _KERNELS:
            for sigma in _SIGMAS:
                blurred = gaussian_blur(noisy, [kernel] * 2, [sigma] * 2).clamp(0, 1)
                score = -(blurred - clean).square().mean((1, 2, 3)).log10().mean().item()
                if best is None or score > best[0]:
                    best = score, blurred, {"kernel": kernel, "sigma": sigma, "divided": divided}
    return best[1:]


def compared(network: VGG, run: Run, reference: Tensor) -> dict[str, list[float]]:
    """`fidelity` of a run's pictures, by seed, to one picture; kept in the store."""
    pictures = stack(native(run))
    inputs, hashes = {"pictures": pictures, "reference": reference}, {"network": network.identity}
    measured = stored(
        "compared", {}, lambda: Run(fidelity(network, pictures, reference)), inputs=inputs, weights=hashes
    )
    return measured.values


def upsampled(second: Upsampler, run: Run, prompt: str, *, steps: int = 50) -> Run:
    """A run's pictures through the second stage, each with its own seed."""
    small = native(run).pictures

    def compute() -> Run:
        large = {}
        for seed, picture in small.items():
            generator = torch.Generator().manual_seed(int(seed))
            large[seed] = second(picture, prompt, steps=steps, generator=generator).cpu()
        return Run({}, large)

    config, hashes = {"prompt": prompt, "steps": steps}, {"upsampler": second.sha256}
    return stored("upsampled", config, compute, inputs=small, weights=hashes)


def enlarged(picture: Tensor, size: int = store.STORED_SIZE) -> Tensor:
    """Every pixel a square of as many pixels as fit into ``size``."""
    factor = max(1, size // max(picture.shape[-2:]))
    return picture.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def native(run: Run) -> Run:
    """A run of `looped` with its pictures at the size at which they were drawn: what numbers are of."""

    def reduced(picture: Tensor) -> Tensor:
        factor = max(1, picture.shape[-1] // run.values["size"])
        return picture[..., factor // 2 :: factor, factor // 2 :: factor].contiguous()

    return dataclasses.replace(run, pictures={seed: reduced(picture) for seed, picture in run.pictures.items()})


def _size(model: Model) -> int:
    """Side of the pictures in pixels."""
    return model.unet.config.sample_size * getattr(model, "vae_scale_factor", 1)


def _sha256(model: Model) -> str:
    return model.sha256 if isinstance(model, PixelModel) else pipeline_sha256(model)
