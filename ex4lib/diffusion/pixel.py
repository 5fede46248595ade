"""Text to image in pixels: DeepFloyd IF and the embedded mini-pixel behind one interface."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, IFPipeline, SchedulerMixin, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from ex4lib import checks, models
from ex4lib.diffusion.denoisers import Denoiser, Pixels, paired_prompts


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
        """
        prompts, negative = paired_prompts(prompt, negative_prompt)
        scale = checks.number(guidance_scale, "guidance_scale")
        embeddings, unprompted = self.encode(prompts), self.encode(negative)
        return Denoiser(self.unet, Pixels(), embeddings=embeddings, negative=unprompted, guidance_scale=scale)

    def noise(self, count: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """First samples ``(count, 3, size, size)`` ~ N(0, I)."""
        shape = (checks.integer(count, "count", low=1), 3, self.size, self.size)
        return randn_tensor(shape, generator, self.device, self.unet.dtype)


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
    pipe = deepfloyd_stage(IFPipeline, source, device)

    def encode(prompts: list[str]) -> Tensor:
        return pipe.encode_prompt(prompts, do_classifier_free_guidance=False, device=device)[0]

    return PixelModel(pipe.unet.eval().requires_grad_(False), pipe.scheduler, pipe.text_encoder, encode)


def _embedded(folder: Path, device: torch.device) -> PixelModel:
    text = (folder / (folder / "text_encoder.txt").read_text().strip()).resolve()
    tokenizer = CLIPTokenizer.from_pretrained(text / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(text / "text_encoder").to(device).eval().requires_grad_(False)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").to(device).eval().requires_grad_(False)

    def encode(prompts: list[str]) -> Tensor:
        tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return encoder(tokens.to(encoder.device))[0]

    return PixelModel(unet, DDPMScheduler.from_pretrained(folder / "scheduler"), encoder, encode)


def deepfloyd_stage(
    pipeline: type[DiffusionPipeline], source: str, device: torch.device, without: Sequence[str] = ()
) -> DiffusionPipeline:
    """A stage of DeepFloyd IF, in float16 on CUDA, without safety checker, watermark and the parts ``without``.

    Raises:
        FileNotFoundError: the stage could not be loaded; the message says how to get access.
    """
    options = {"variant": "fp16", "torch_dtype": torch.float16} if device.type == "cuda" else {}
    options |= dict.fromkeys(("safety_checker", "feature_extractor", "watermarker", *without))
    try:
        return pipeline.from_pretrained(source, requires_safety_checker=False, **options).to(device)
    except OSError as error:
        raise FileNotFoundError(
            f"{source} could not be loaded ({type(error).__name__}): DeepFloyd IF is gated; accept its licence at "
            "https://huggingface.co/DeepFloyd/IF-I-XL-v1.0, then run `huggingface-cli login`; or set EX4_PROFILE=mini "
            "for the embedded model"
        ) from error
