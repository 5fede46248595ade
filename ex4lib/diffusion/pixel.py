"""Text to image in pixels: DeepFloyd IF's first stage, and the embedded mini-pixel, behind one face."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from diffusers import DDPMScheduler, IFPipeline, SchedulerMixin, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ex4lib import models
from ex4lib.diffusion.denoisers import Denoiser, Pixels


@dataclasses.dataclass(frozen=True)
class PixelModel:
    """A U-Net in pixels that is told prompts; ``encode`` makes embeddings ``(B, T, D)`` of a list of them."""

    unet: UNet2DConditionModel
    scheduler: SchedulerMixin
    encode: Callable[[list[str]], Tensor]

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


def _embedded(folder: Path, where: torch.device) -> PixelModel:
    text = (folder / (folder / "text_encoder.txt").read_text().strip()).resolve()
    tokenizer = CLIPTokenizer.from_pretrained(text / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(text / "text_encoder").to(where).eval().requires_grad_(False)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").to(where).eval().requires_grad_(False)

    def encode(prompts: list[str]) -> Tensor:
        tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return encoder(tokens.to(where))[0]

    return PixelModel(unet, DDPMScheduler.from_pretrained(folder / "scheduler"), encode)


def _deepfloyd(source: str, where: torch.device) -> PixelModel:
    options = {"variant": "fp16", "torch_dtype": torch.float16} if where.type == "cuda" else {}
    with _access(source):
        pipe = IFPipeline.from_pretrained(
            source,
            safety_checker=None,
            feature_extractor=None,
            watermarker=None,
            requires_safety_checker=False,
            **options,
        ).to(where)

    def encode(prompts: list[str]) -> Tensor:
        return pipe.encode_prompt(prompts, do_classifier_free_guidance=False, device=where)[0]

    return PixelModel(pipe.unet.eval().requires_grad_(False), pipe.scheduler, encode)


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
