"""Text to image in pixels: DeepFloyd IF and the embedded mini-pixel behind one interface."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from diffusers import DDPMScheduler, IFPipeline, IFSuperResolutionPipeline, SchedulerMixin, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from ex4lib import checks, images, models
from ex4lib.diffusion.denoisers import Denoiser, Pixels
from ex4lib.images import ImageSource


@dataclasses.dataclass(frozen=True)
class PixelModel:
    """A U-Net in pixels that takes prompts; ``encode`` makes embeddings ``(B, T, D)`` of a list of B prompts."""

    unet: UNet2DConditionModel
    scheduler: SchedulerMixin
    text_encoder: nn.Module
    encode: Callable[[list[str]], Tensor]

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 over the weights of text encoder and U-Net, 16 digits each; computed once."""
        return "-".join(models.weights_sha256(part)[:16] for part in (self.text_encoder, self.unet))

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        return self.unet.config.sample_size

    @torch.no_grad()
    def denoiser(
        self, prompt: str | list[str], *, negative_prompt: str | list[str] = "", guidance_scale: float = 7.0
    ) -> Denoiser:
        """The U-Net with prompts, one per picture, and one negative prompt for all or one for each.

        ``guidance_scale`` 1 is the bare conditional prediction, 0 the prediction for the negative prompt.

        Raises:
            ValueError: not texts, another number of negative prompts, or a scale that is not a finite number.
        """
        prompts, negative = paired_prompts(prompt, negative_prompt)
        scale = checks.number(guidance_scale, "guidance_scale")
        embeddings, free = self.encode(prompts), self.encode(negative)
        return Denoiser(self.unet, Pixels(), embeddings=embeddings, negative=free, guidance_scale=scale)

    def noise(self, count: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """First samples ``(count, 3, size, size)`` ~ N(0, I)."""
        shape = (checks.integer(count, "count", low=1), 3, self.size, self.size)
        return randn_tensor(shape, generator, self.device, self.unet.dtype)


def paired_prompts(prompt: str | list[str], negative_prompt: str | list[str]) -> tuple[list[str], list[str]]:
    """Prompts and as many negative prompts; a single negative prompt serves all.

    Raises:
        ValueError: not texts, or numbers that differ.
    """
    prompts, negative = checks.prompts(prompt, "prompt"), checks.prompts(negative_prompt, "negative_prompt")
    if len(negative) not in (1, len(prompts)):
        raise ValueError(f"negative_prompt must be one or one per prompt, got {len(negative)} for {len(prompts)}")
    return prompts, negative * (len(prompts) if len(negative) == 1 else 1)


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


def pixel_model(name: str | None = None) -> PixelModel:
    """The profile's text to image model in pixels, or another by hub id or folder.

    A folder with ``model_index.json`` is an ``IFPipeline``. A folder without it holds ``unet`` and ``scheduler``, and
    its ``text_encoder.txt`` names the Stable Diffusion folder whose text encoder it uses.

    Raises:
        FileNotFoundError: DeepFloyd IF is gated and access was not granted yet; the message says how to get it.
    """
    source, device = models.source("pixel", name), models.device()
    if (Path(source) / "unet").is_dir() and not (Path(source) / "model_index.json").is_file():
        return _embedded(Path(source), device)
    return _deepfloyd(source, device)


def upsampler(model: PixelModel, name: str | None = None) -> Upsampler | None:
    """The second stage of the profile's model, or another ``IFSuperResolutionPipeline`` by hub id or folder.

    None for the mini profile, which has none. The first stage, ``model``, encodes the prompts.

    Raises:
        FileNotFoundError: as for `pixel_model`.
    """
    if name is None and models.SOURCES[models.profile()]["pixel-upsampler"] is None:
        return None
    pipe = _loaded(
        IFSuperResolutionPipeline,
        models.source("pixel-upsampler", name),
        model.device,
        without=("tokenizer", "text_encoder"),
    )
    pipe.unet.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return Upsampler(pipe, model.encode)


def _embedded(folder: Path, device: torch.device) -> PixelModel:
    text = (folder / (folder / "text_encoder.txt").read_text().strip()).resolve()
    tokenizer = CLIPTokenizer.from_pretrained(text / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(text / "text_encoder").to(device).eval().requires_grad_(False)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").to(device).eval().requires_grad_(False)

    def encode(prompts: list[str]) -> Tensor:
        tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return encoder(tokens.to(encoder.device))[0]

    return PixelModel(unet, DDPMScheduler.from_pretrained(folder / "scheduler"), encoder, encode)


def _deepfloyd(source: str, device: torch.device) -> PixelModel:
    pipe = _loaded(IFPipeline, source, device)

    def encode(prompts: list[str]) -> Tensor:
        return pipe.encode_prompt(prompts, do_classifier_free_guidance=False, device=device)[0]

    return PixelModel(pipe.unet.eval().requires_grad_(False), pipe.scheduler, pipe.text_encoder, encode)


def _loaded(pipeline: type, source: str, device: torch.device, without: Sequence[str] = ()):
    """A stage of DeepFloyd IF, in float16 on CUDA, without safety checker and watermark."""
    options = {"variant": "fp16", "torch_dtype": torch.float16} if device.type == "cuda" else {}
    options |= dict.fromkeys(("safety_checker", "feature_extractor", "watermarker", *without))
    with _access(source):
        return pipeline.from_pretrained(source, requires_safety_checker=False, **options).to(device)


@contextlib.contextmanager
def _access(source: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileNotFoundError(
            f"{source} could not be loaded ({type(error).__name__}): DeepFloyd IF is gated; accept its licence at "
            "https://huggingface.co/DeepFloyd/IF-I-XL-v1.0, then run `huggingface-cli login`; or set EX4_PROFILE=mini "
            "for the embedded model"
        ) from error
