"""Text to image in pixels: DeepFloyd IF, and the embedded mini-pixel, behind one face."""

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

from ex4lib import images, models
from ex4lib.diffusion.denoisers import Denoiser, Pixels


@dataclasses.dataclass(frozen=True)
class PixelModel:
    """A U-Net in pixels that is told prompts; ``encode`` makes embeddings ``(B, T, D)`` of a list of them."""

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
    def denoiser(self, prompt: str | list[str], *, negative_prompt: str = "", guidance_scale: float = 7.0) -> Denoiser:
        """The U-Net told a prompt; ``guidance_scale`` 1 is the bare conditional prediction, 0 that of the negative."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        told, negative = self.encode(prompts), self.encode([negative_prompt] * len(prompts))
        return Denoiser(self.unet, Pixels(), embeddings=told, negative=negative, guidance_scale=guidance_scale)

    def noise(self, count: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """First samples ``(count, 3, size, size)`` ~ N(0, I)."""
        return randn_tensor((count, 3, self.size, self.size), generator, self.device, self.unet.dtype)


@dataclasses.dataclass(frozen=True)
class Upsampler:
    """DeepFloyd IF's second stage: pictures of its first stage four times as large, drawn anew from their prompts."""

    pipe: IFSuperResolutionPipeline
    encode: Callable[[list[str]], Tensor]

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 over the weights of the U-Net; computed once."""
        return models.weights_sha256(self.pipe.unet)

    def __call__(
        self,
        image: Tensor,
        prompt: str,
        *,
        steps: int = 50,
        guidance_scale: float = 4.0,
        noise_level: int = 250,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Tensor:
        """Pictures ``(B, 3, H, W)`` in [0, 1], H and W being the stage's own (256 for IF-II), told one prompt.

        Arguments:
            image: ``(B, 3, h, w)`` in [0, 1]; enlarged, then noised to timestep ``noise_level``.
            guidance_scale: of the prompt; 4 and ``noise_level`` 250 are diffusers' defaults.

        Source: Ho et al., "Cascaded Diffusion Models for High Fidelity Image Generation" (2022).

        Raises:
            ValueError: an image outside of [0, 1], or a noise level that is no timestep.
        """
        image = images.check(image, "image")
        with torch.no_grad():
            told, negative = self.encode([prompt] * len(image)), self.encode([""] * len(image))
        drawn = self.pipe(
            image=2 * image - 1,  # the pipeline takes and gives tensors in [-1, 1]
            prompt_embeds=told,
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

    A folder with ``model_index.json`` is an ``IFPipeline``; one without holds ``unet`` and ``scheduler`` and is told
    prompts by the text encoder of the Stable Diffusion folder beside it that its ``text_encoder.txt`` names.

    Raises:
        FileNotFoundError: DeepFloyd IF is gated, and access was not granted yet; says how to get it.
    """
    source = models.source("pixel", name)
    where = models.device()
    if (Path(source) / "unet").is_dir() and not (Path(source) / "model_index.json").is_file():
        return _embedded(Path(source), where)
    return _deepfloyd(source, where)


def upsampler(model: PixelModel, name: str | None = None) -> Upsampler | None:
    """The second stage of the profile's model, or another ``IFSuperResolutionPipeline`` by hub id or folder.

    None where the profile has none, which is mini. Prompts are encoded by the first stage, ``model``.

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


def _embedded(folder: Path, where: torch.device) -> PixelModel:
    text = (folder / (folder / "text_encoder.txt").read_text().strip()).resolve()
    tokenizer = CLIPTokenizer.from_pretrained(text / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(text / "text_encoder").to(where).eval().requires_grad_(False)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").to(where).eval().requires_grad_(False)

    def encode(prompts: list[str]) -> Tensor:
        tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return encoder(tokens.to(where))[0]

    return PixelModel(unet, DDPMScheduler.from_pretrained(folder / "scheduler"), encoder, encode)


def _deepfloyd(source: str, where: torch.device) -> PixelModel:
    pipe = _loaded(IFPipeline, source, where)

    def encode(prompts: list[str]) -> Tensor:
        return pipe.encode_prompt(prompts, do_classifier_free_guidance=False, device=where)[0]

    return PixelModel(pipe.unet.eval().requires_grad_(False), pipe.scheduler, pipe.text_encoder, encode)


def _loaded(pipeline: type, source: str, where: torch.device, without: Sequence[str] = ()):
    """A stage of DeepFloyd IF, in float16 on CUDA, without safety checker and watermark."""
    options = {"variant": "fp16", "torch_dtype": torch.float16} if where.type == "cuda" else {}
    options |= dict.fromkeys(("safety_checker", "feature_extractor", "watermarker", *without))
    with _access(source):
        return pipeline.from_pretrained(source, requires_safety_checker=False, **options).to(where)


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
