"""Two pipelines that take a style: the stock ones of diffusers inside `steering.guided`.

Without a style image, or at ``style_scale=0``, their pictures are bit-identical to the stock pipelines'.
"""

import contextlib
import dataclasses
import functools
import inspect

import torch
from diffusers import DDPMPipeline, StableDiffusionPipeline
from diffusers.utils import BaseOutput

from ex4lib import models
from ex4lib.diffusion.denoisers import Denoiser, Latents, paired_prompts
from ex4lib.diffusion.guidance import check_scheduler, settings
from ex4lib.diffusion.steering import OF_PAINTINGS, changed, guided
from ex4lib.diffusion.steering import StyleObjective as StyleObjective


@dataclasses.dataclass
class StyleGuidedOutput(BaseOutput):
    """``images`` as ``output_type`` asks; ``trace`` has a dictionary per guided step (see `steering.guided`)."""

    images: object
    trace: list[dict]
    nsfw_content_detected: list[bool] | None = None


#: What `guided` takes by name, and so do the pipelines.
_STYLE = [item for item in inspect.signature(guided).parameters.values() if item.kind is item.KEYWORD_ONLY]


class _StyleGuided:
    """A stock pipeline whose ``__call__`` also takes the arguments of `steering.guided`."""

    def __init_subclass__(cls, **options):
        """Give ``__call__`` the stock pipeline's signature with the style arguments added."""
        super().__init_subclass__(**options)
        stock = list(inspect.signature(cls._stock().__call__).parameters.values())
        image = inspect.Parameter("style_image", inspect.Parameter.KEYWORD_ONLY, default=None)

        @functools.wraps(cls._stock().__call__)
        def call(self, *args, **kwargs):
            return _StyleGuided.__call__(self, *args, **kwargs)

        call.__doc__ = _StyleGuided.__call__.__doc__
        parameters = sorted([*stock, image, *_STYLE], key=lambda item: item.kind)  # a ``**kwargs`` goes last
        call.__signature__ = inspect.Signature(parameters)
        cls.__call__ = call

    @classmethod
    def _stock(cls) -> type:
        return next(base for base in cls.__mro__ if base.__module__.startswith("diffusers."))

    def to_json_string(self) -> str:
        """The configuration as it is saved: ``model_index.json`` names the stock class, which loads everywhere."""
        entries = (f'"_class_name": "{pipeline.__name__}"' for pipeline in (type(self), self._stock()))
        return super().to_json_string().replace(*entries)

    def __call__(self, *args, style_image=None, **arguments) -> StyleGuidedOutput | tuple:
        """Draw pictures: every argument of the stock pipeline, and those of `steering.guided`.

        ``style_image`` is the painting, ``style`` of `steering.guided`; without one the stock pipeline draws. Returns a
        `StyleGuidedOutput`, or the stock pipeline's tuple with ``return_dict=False``.
        """
        style = {item.name: arguments.pop(item.name) for item in _STYLE if item.name in arguments}
        unused = changed(style, (*OF_PAINTINGS, "style_scale", "guidance", "window", "on_step"))
        context = contextlib.nullcontext([])
        if style_image is not None:
            context = guided(self, style_image, **style)
            guidance = settings(style.get("guidance", "default"), style_scale=style.get("style_scale"))
            stock = inspect.signature(self._stock().__call__).bind_partial(self, *args, **arguments).arguments
            check_scheduler(guidance, self.scheduler, stock.get("eta", 0.0))
        elif unused and (unused != ["style_scale"] or settings(style_scale=style["style_scale"]).is_on):
            raise ValueError(f"{', '.join(unused)} cannot be used: there is no style_image")
        with context as trace:
            output = self._stock().__call__(self, *args, **arguments)
        if isinstance(output, tuple):
            return output
        return StyleGuidedOutput(output.images, list(trace), output.get("nsfw_content_detected"))


class StyleGuidedStableDiffusionPipeline(_StyleGuided, StableDiffusionPipeline):
    """Stable Diffusion 1.x and 2.x, steered by the style of an image while it draws.

    ``StyleGuidedStableDiffusionPipeline.from_pretrained(name)`` loads what ``StableDiffusionPipeline`` loads;
    ``.from_pipe(pipe)`` shares the weights of a loaded one. For other pipelines see `steering.guided`.

    Example:
        >>> pipe = StyleGuidedStableDiffusionPipeline.from_pretrained("ex4lib/assets/models/mini-sd")
        >>> pipe("a cat", style_image="hokusai-great-wave", num_inference_steps=30).images[0]
    """

    @torch.no_grad()
    def denoiser(
        self, prompt: str | list[str], *, negative_prompt: str | list[str] = "", guidance_scale: float = 7.5
    ) -> Denoiser:
        """The U-Net with embedded prompts, for loops of one's own; ``guidance_scale`` 1 is the conditional prediction.

        There is one negative prompt for all prompts, or one for each.
        """
        prompts, negative = paired_prompts(prompt, negative_prompt)
        positive, negative = self.encode_prompt(prompts, self._execution_device, 1, True, negative)
        embedded = {"embeddings": positive, "negative": negative}
        return Denoiser(self.unet, Latents(self.vae), **embedded, guidance_scale=guidance_scale)


class StyleGuidedDDPMPipeline(_StyleGuided, DDPMPipeline):
    """An unconditional diffusion model in pixels, steered by the style of an image while it draws.

    Example:
        >>> pipe = StyleGuidedDDPMPipeline.from_pretrained("ex4lib/assets/models/mini-ddpm")
        >>> pipe(style_image="hokusai-great-wave", num_inference_steps=100).images[0]
    """


def stable_diffusion(name: str | None = None) -> StyleGuidedStableDiffusionPipeline:
    """The profile's text to image pipeline, or another by hub id or folder."""
    return loaded(StyleGuidedStableDiffusionPipeline, models.source("stable-diffusion", name), safety_checker=None)


def ddpm(name: str | None = None) -> StyleGuidedDDPMPipeline:
    """The profile's unconditional pipeline, or another by hub id or folder."""
    return loaded(StyleGuidedDDPMPipeline, models.source("ddpm", name))


def loaded(pipeline: type, source: str, **options):
    """A pipeline of this class on the profile's device; on CUDA in bfloat16 where that is native."""
    device = models.device()
    if device.type == "cuda" and models.native_bfloat16(device):
        options["torch_dtype"] = torch.bfloat16
    return pipeline.from_pretrained(source, **options).to(device)
