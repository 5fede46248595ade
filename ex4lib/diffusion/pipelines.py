"""Style-guided pipelines with the face that users of diffusers know.

They are the stock pipelines with a style image: without one, or at ``style_scale=0``, they return the stock pipelines'
pictures bit by bit.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from diffusers import DDPMPipeline, StableDiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from ex4lib import images, models
from ex4lib.diffusion import schedulers
from ex4lib.diffusion.denoisers import Denoiser, Latents, Pixels
from ex4lib.diffusion.guidance import PRESETS, Guidance
from ex4lib.diffusion.sampling import Step, sample
from ex4lib.features import VGG
from ex4lib.losses import Objective, style_terms
from ex4lib.statistics import Statistic

#: Smaller pictures are enlarged to this before the feature network sees them.
LEAST_SIZE = 128
STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")


class StyleObjective:
    """Style loss of pictures of any size: ``image (B, 3, H, W) -> (B,)``.

    The mean over layers of ``d(S, S*) / d(0, S*)`` (for Gram matrices ``‖G - G*‖² / ‖G*‖²``), so that a raw scale means
    the same for every layer and painting. Pictures with a longer side under `LEAST_SIZE` are enlarged to it, the styles
    to the same longer side.

    Arguments:
        network: the feature network.
        styles: pictures ``(1, 3, H, W)``.
        size: ``(H, W)`` of the pictures that will be judged.
        style_loss: a name of `ex4lib.statistics.STATISTICS`, or a statistic.
        layers: of the network.
        layer_weights: default even.
        style_weights: shares of the styles, default even.
        regions: for each style a mask ``(1, 1, H, W)`` of the part of the picture that it applies to.
        style_each: style k is for picture k of the batch.

    Raises:
        ValueError: no style, one that is too small for the layers, an unknown loss or layer, weights or masks that do
            not fit.
    """

    def __init__(
        self,
        network: VGG,
        styles: Sequence[Tensor],
        size: tuple[int, int],
        *,
        style_loss: str | Statistic = "gram",
        layers: Sequence[str | int] = STYLE_LAYERS,
        layer_weights: Sequence[float] | None = None,
        style_weights: Sequence[float] | None = None,
        regions: Sequence[Tensor] | None = None,
        style_each: bool = False,
    ):
        if (style_weights is not None) + (regions is not None) + style_each > 1:
            raise ValueError("styles either blend, or have a region each, or a picture each: give one of the three")
        network = network.variant(pooling="average", padding="replicate")
        factor = max(1.0, LEAST_SIZE / max(size))
        self.size = tuple(round(side * factor) for side in size)
        minimum = network.minimum_size(layers)
        for style in styles:
            if min(style.shape[-2:]) < minimum:
                raise ValueError(
                    f"a style image must be at least {minimum} x {minimum} pixels for the layers "
                    f"{', '.join(map(str, layers))}, got {style.shape[-2]} x {style.shape[-1]}"
                )
        where = network.mean
        styles = [images.resize(style.to(where), max(self.size)) for style in styles]
        options = {"relative": True, "layer_weights": layer_weights}
        shared = (layers, style_loss, 1 / len(layers))
        if style_each:
            squares = [images.resize(images.crop_square(style), max(self.size)) for style in styles]
            styles = torch.cat(squares)
        elif regions is not None:
            options["regions"] = [images.resize(region.to(where), self.size) for region in regions]
        else:
            options["style_weights"] = style_weights
        parts = style_terms(network, styles, *shared, **options)
        self.objective, self.batch = Objective(network, parts), len(styles) if style_each else None

    def __call__(self, image: Tensor) -> Tensor:
        if self.batch not in (None, image.shape[0]):
            raise ValueError(f"there are {self.batch} styles, one for each picture, but {image.shape[0]} pictures")
        if tuple(image.shape[-2:]) != self.size:
            image = F.interpolate(image, self.size, mode="bicubic", antialias=True)  # not clamped, unlike images.resize
        return self.objective(image)


@dataclasses.dataclass
class StyleGuidedOutput(BaseOutput):
    """``images`` as ``output_type`` asks; ``trace`` has a dictionary per guided step (see `sampling.Step`)."""

    images: object
    trace: list[dict]
    nsfw_content_detected: list[bool] | None = None


class _StyleGuided:
    """What the two pipelines share: from a style image to an objective and a guidance."""

    def _style(
        self, style_image, style_scale, size: tuple[int, int], guidance: Guidance | str, features, batch: int, **options
    ) -> tuple[Callable | None, Guidance | None]:
        """The objective and the guidance of a call, checked before anything is computed."""
        schedulers.check(self.scheduler)
        if isinstance(guidance, str):
            if guidance not in PRESETS:
                raise ValueError(f"guidance must be a Guidance or one of {', '.join(PRESETS)}, got {guidance!r}")
            guidance = PRESETS[guidance]
        if style_scale is not None:
            scale = float(style_scale) if isinstance(style_scale, (int, float)) else tuple(map(float, style_scale))
            guidance = dataclasses.replace(guidance, scale=scale)
        if style_image is None or not guidance.is_on:
            if style_image is None and style_scale:
                raise ValueError(f"style_scale is {style_scale}, but there is no style_image")
            return None, None
        for name, module in self.components.items():
            if isinstance(module, nn.Module) and hasattr(module, "_hf_hook"):
                raise ValueError(
                    f"the pipeline offloads its {name}, through which gradients cannot be taken: load it without "
                    "enable_model_cpu_offload or enable_sequential_cpu_offload"
                )
        sources = style_image if isinstance(style_image, (list, tuple)) else [style_image]
        styles = [picture for source in sources for picture in images.load(source).split(1)]
        if options["style_each"] and len(styles) != batch:
            raise ValueError(f"style_each needs a style for each picture: {len(styles)} styles, {batch} pictures")
        network = features if isinstance(features, VGG) else _features(features, str(self._execution_device))
        return StyleObjective(network, styles, size, **options), guidance

    def _run(
        self, steps: Iterator[Step], total: int, callback: Callable[[Step], None] | None
    ) -> tuple[Tensor, list[dict]]:
        trace = []
        with self.progress_bar(total=total) as bar:
            for step in steps:
                trace += [step.trace] if step.trace is not None else []
                if callback is not None:
                    callback(step)
                bar.update()
        return step.sample, trace


class StyleGuidedStableDiffusionPipeline(_StyleGuided, StableDiffusionPipeline):
    """Stable Diffusion 1.x and 2.x, steered by the style of an image while it draws.

    ``StyleGuidedStableDiffusionPipeline.from_pretrained(name)`` loads what ``StableDiffusionPipeline`` loads;
    ``.from_pipe(pipe)`` shares the weights of a loaded one.

    Example:
        >>> pipe = StyleGuidedStableDiffusionPipeline.from_pretrained("ex4lib/assets/models/mini-sd")
        >>> pipe("a cat", style_image="hokusai-great-wave", num_inference_steps=30).images[0]
    """

    @torch.no_grad()
    def denoiser(self, prompt: str | list[str], *, negative_prompt: str = "", guidance_scale: float = 7.5) -> Denoiser:
        """The U-Net told a prompt, for loops of one's own; ``guidance_scale`` 1 is the bare conditional prediction."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        told, negative = self.encode_prompt(prompts, self._execution_device, 1, True, [negative_prompt] * len(prompts))
        return Denoiser(self.unet, Latents(self.vae), embeddings=told, negative=negative, guidance_scale=guidance_scale)

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        style_image=None,
        style_scale: float | Sequence[float] | None = None,
        style_loss: str | Statistic = "gram",
        style_layers: Sequence[str | int] = STYLE_LAYERS,
        style_layer_weights: Sequence[float] | None = None,
        style_weights: Sequence[float] | None = None,
        regions: Sequence[Tensor] | None = None,
        style_masks: None = None,
        style_each: bool = False,
        guidance: Guidance | str = "full",
        features: VGG | str | None = None,
        preview_vae: nn.Module | None = None,
        checkpointing: bool = False,
        measure: bool = False,
        callback: Callable[[Step], None] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> StyleGuidedOutput | tuple:
        """Draw pictures.

        Arguments beyond those of ``StableDiffusionPipeline``:
            style_image: a path, URL, shipped name, PIL image or tensor; or several, which blend.
            style_scale: strength, in the unit of the guidance; None is the guidance's own. Per image if a sequence.
            style_loss, style_layers, style_layer_weights: see `StyleObjective`.
            style_weights: shares of several styles.
            regions: for each style a mask ``(1, 1, H, W)`` of the part of the picture that it applies to.
            style_each: style k is for picture k.
            guidance: a `Guidance`, or a name of `guidance.PRESETS`: method, window, ramp, recurrence and so on.
            features: the feature network or its name; None is the profile's default.
            preview_vae: a tiny autoencoder for the gradients; the final picture is the full one's.
            checkpointing: less memory for more time.
            measure: the trace holds the loss after each shift, too.
            callback: called with every `Step`.

        Raises:
            ValueError: input that does not fit, in one sentence, before the first step.
        """
        height = height or self.unet.config.sample_size * self.vae_scale_factor
        width = width or self.unet.config.sample_size * self.vae_scale_factor
        tensors = list(callback_on_step_end_tensor_inputs)
        self.check_inputs(
            prompt, height, width, None, negative_prompt, prompt_embeds, negative_prompt_embeds,
            callback_on_step_end_tensor_inputs=tensors,
        )  # fmt: skip
        count = 1 if isinstance(prompt, str) else len(prompt) if prompt is not None else len(prompt_embeds)
        batch, device = count * num_images_per_prompt, self._execution_device
        shape = (batch, self.unet.config.in_channels, height // self.vae_scale_factor, width // self.vae_scale_factor)
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(f"latents must have shape {shape} for {count} prompts, got {tuple(latents.shape)}")
        if style_masks is not None:
            raise ValueError("the regions of the picture that each style applies to are now called regions")
        objective, settings = self._style(
            style_image, style_scale, (height, width), guidance, features, batch,
            style_loss=style_loss, layers=style_layers, layer_weights=style_layer_weights,
            style_weights=style_weights, regions=regions, style_each=style_each,
        )  # fmt: skip
        self._guidance_scale, self._clip_skip, self._interrupt = guidance_scale, clip_skip, False
        self._cross_attention_kwargs = cross_attention_kwargs
        with torch.no_grad():
            told, negative = self.encode_prompt(
                prompt, device, num_images_per_prompt, self.do_classifier_free_guidance, negative_prompt,
                prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds,
                lora_scale=(cross_attention_kwargs or {}).get("scale"), clip_skip=clip_skip,
            )  # fmt: skip
            scheduler = schedulers.timed(self.scheduler, timesteps or num_inference_steps, device=device)
            latents = randn_tensor(shape, generator, device, told.dtype) if latents is None else latents.to(device)
            latents = latents * scheduler.init_noise_sigma
        denoiser = Denoiser(
            self.unet,
            Latents(self.vae, preview_vae),
            embeddings=told,
            negative=negative if self.do_classifier_free_guidance else None,
            guidance_scale=guidance_scale if self.do_classifier_free_guidance else 1.0,
            options={"cross_attention_kwargs": cross_attention_kwargs},
        )

        def after_step(latents: Tensor, index: int, timestep: Tensor) -> Tensor:
            if callback_on_step_end is None:
                return latents
            known = {"latents": latents, "prompt_embeds": told, "negative_prompt_embeds": negative}
            changed = callback_on_step_end(self, index, timestep, {name: known[name] for name in tensors}) or {}
            return changed.get("latents", latents)

        steps = sample(
            denoiser, self.scheduler, latents, steps=timesteps or num_inference_steps, objective=objective,
            guidance=settings, eta=eta, generator=generator, after_step=after_step, checkpointing=checkpointing,
            measure=measure,
        )  # fmt: skip
        latents, trace = self._run(steps, len(scheduler.timesteps), callback)
        flagged = None
        if output_type == "latent":
            pictures = latents
        else:
            with torch.no_grad():
                decoded = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
            decoded, flagged = self.run_safety_checker(decoded, device, told.dtype)
            shown = [not flag for flag in flagged] if flagged is not None else [True] * len(decoded)
            pictures = self.image_processor.postprocess(decoded, output_type=output_type, do_denormalize=shown)
        self.maybe_free_model_hooks()
        return StyleGuidedOutput(pictures, trace, flagged) if return_dict else (pictures, flagged)


class StyleGuidedDDPMPipeline(_StyleGuided, DDPMPipeline):
    """An unconditional diffusion model in pixels, steered by the style of an image while it draws.

    Example:
        >>> pipe = StyleGuidedDDPMPipeline.from_pretrained("ex4lib/assets/models/mini-ddpm")
        >>> pipe(style_image="van-gogh-starry-night", num_inference_steps=100).images[0]
    """

    def __call__(
        self,
        batch_size: int = 1,
        *,
        style_image=None,
        style_scale: float | Sequence[float] | None = None,
        style_loss: str | Statistic = "gram",
        style_layers: Sequence[str | int] = STYLE_LAYERS,
        style_layer_weights: Sequence[float] | None = None,
        style_weights: Sequence[float] | None = None,
        regions: Sequence[Tensor] | None = None,
        style_masks: None = None,
        style_each: bool = False,
        guidance: Guidance | str = "full",
        features: VGG | str | None = None,
        checkpointing: bool = False,
        measure: bool = False,
        callback: Callable[[Step], None] | None = None,
        num_inference_steps: int = 1000,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> StyleGuidedOutput | tuple:
        """Draw pictures; arguments as in `StyleGuidedStableDiffusionPipeline`.

        Raises:
            ValueError: input that does not fit, in one sentence, before the first step.
        """
        side = self.unet.config.sample_size
        size = (side, side) if isinstance(side, int) else tuple(side)
        shape, device = (batch_size, self.unet.config.in_channels, *size), self._execution_device
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(f"latents must have shape {shape}, got {tuple(latents.shape)}")
        if style_masks is not None:
            raise ValueError("the regions of the picture that each style applies to are now called regions")
        objective, settings = self._style(
            style_image, style_scale, size, guidance, features, batch_size,
            style_loss=style_loss, layers=style_layers, layer_weights=style_layer_weights,
            style_weights=style_weights, regions=regions, style_each=style_each,
        )  # fmt: skip
        x = randn_tensor(shape, generator, device, self.unet.dtype) if latents is None else latents.to(device)
        x = x * schedulers.timed(self.scheduler, num_inference_steps, device=device).init_noise_sigma
        steps = sample(
            Denoiser(self.unet, Pixels()), self.scheduler, x, steps=num_inference_steps, objective=objective,
            guidance=settings, eta=eta, generator=generator, checkpointing=checkpointing, measure=measure,
        )  # fmt: skip
        x, trace = self._run(steps, num_inference_steps, callback)
        pictures = Pixels().render(x)
        if output_type != "pt":
            pictures = pictures.cpu().permute(0, 2, 3, 1).float().numpy()
            pictures = self.numpy_to_pil(pictures) if output_type == "pil" else pictures
        self.maybe_free_model_hooks()
        return StyleGuidedOutput(pictures, trace) if return_dict else (pictures,)


def stable_diffusion(name: str | None = None) -> StyleGuidedStableDiffusionPipeline:
    """The profile's text to image pipeline, or another by hub id or folder; on CUDA in bfloat16 where it is native."""
    return _load(StyleGuidedStableDiffusionPipeline, models.source("stable-diffusion", name), safety_checker=None)


def ddpm(name: str | None = None) -> StyleGuidedDDPMPipeline:
    """The profile's unconditional pipeline, or another by hub id or folder."""
    return _load(StyleGuidedDDPMPipeline, models.source("ddpm", name))


def _load(pipeline: type, source: str, **options):
    where = models.device()
    if where.type == "cuda" and models.native_bfloat16(where):
        options["torch_dtype"] = torch.bfloat16
    return pipeline.from_pretrained(source, **options).to(where)


@functools.lru_cache(maxsize=2)
def _features(name: str | None, device: str) -> VGG:
    return models.features(name, where=device)
