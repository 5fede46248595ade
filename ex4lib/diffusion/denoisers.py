"""Pixel U-Nets and Stable Diffusion behind one convention.

A `Denoiser` maps a sample and a timestep to the network's output with classifier-free guidance in it; its ``space``
turns clean samples into images ``(B, 3, H, W)`` in [0, 1]. Model ranges and latents live in this module only.
"""

import contextlib
import copy
import dataclasses
import functools
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ex4lib import checks


@dataclasses.dataclass(frozen=True)
class Output:
    """The output of a U-Net.

    ``prediction`` ``(B, C, H, W)`` is of the scheduler's prediction type, guided by the prompt; ``variance`` holds the
    channels of a learned variance, if there are any; ``correction`` is conditional minus unconditional prediction.
    """

    prediction: Tensor
    variance: Tensor | None = None
    correction: Tensor | None = None

    def detached(self) -> "Output":
        """The same numbers without a graph."""
        parts = (self.prediction, self.variance, self.correction)
        return Output(*(None if part is None else part.detach() for part in parts))

    @property
    def whole(self) -> Tensor:
        """Prediction and variance as ``scheduler.step`` wants them."""
        return self.prediction if self.variance is None else torch.cat([self.prediction, self.variance], dim=1)


class Pixels:
    """Samples are pictures in [-1, 1]."""

    modules: tuple[nn.Module, ...] = ()

    def decode(self, clean: Tensor) -> Tensor:
        """``x0/2 + 1/2``, not clamped, so that gradients pass."""
        return clean / 2 + 0.5

    def encode(self, image: Tensor) -> Tensor:
        """The sample of an image in [0, 1]: ``2·image - 1``."""
        return 2 * image - 1

    def render(self, clean: Tensor) -> Tensor:
        """The picture to look at, clamped."""
        with torch.no_grad():
            return self.decode(clean).clamp(0, 1)


class Latents:
    """Samples are latents of an autoencoder: ``z = scaling_factor · (encoded - shift_factor)``.

    Arguments:
        vae: the autoencoder of the final picture, ``AutoencoderKL``.
        preview: a smaller one, such as ``AutoencoderTiny``, that takes the gradients; by default ``vae``, with its
            decoder copied in float32 where it is of lower precision.
        device: where gradients are taken; None is where the autoencoder is.
        unpack: samples -> latents ``(B, C, H, W)``, where a transformer takes them as tokens.
    """

    def __init__(
        self,
        vae: nn.Module,
        preview: nn.Module | None = None,
        *,
        device: torch.device | None = None,
        unpack: Callable[[Tensor], Tensor] = lambda sample: sample,
    ):
        self.vae, self._preview, self._device, self._unpack = vae, preview, device, unpack

    @functools.cached_property
    def modules(self) -> tuple[nn.Module, ...]:
        """What takes the gradients; made when it is first needed."""
        return (_part(self._preview or self.vae, "decoder", self._device),)

    def decode(self, clean: Tensor) -> Tensor:
        """The decoded picture, not clamped, at least float32, so that gradients pass."""
        return self._decoded(self.modules[0], clean) / 2 + 0.5

    def encode(self, image: Tensor) -> Tensor:
        """The latents of an image in [0, 1]: the mode of the full autoencoder's posterior, scaled."""
        with torch.no_grad():
            encoder = _part(self.vae, "encoder", self._device)
            encoded = encoder.encode((2 * image - 1).to(encoder.device, encoder.dtype))
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return ((latents - _shift(self.vae)) * self.vae.config.scaling_factor).to(self.vae.dtype)

    def render(self, clean: Tensor) -> Tensor:
        """The full autoencoder's picture, clamped."""
        with torch.no_grad():
            return (self._decoded(self.vae, clean).float() / 2 + 0.5).clamp(0, 1)

    def _decoded(self, vae: nn.Module, clean: Tensor) -> Tensor:
        latents = self._unpack(clean).to(vae.dtype) / vae.config.scaling_factor + _shift(vae)
        return vae.decode(latents, return_dict=False)[0]


def _shift(vae: nn.Module) -> float:
    return vae.config.get("shift_factor") or 0.0


#: Copies of parts of autoencoders, by autoencoder and name, with what the weights were when they were copied.
_COPIES: weakref.WeakKeyDictionary[nn.Module, dict[str, tuple]] = weakref.WeakKeyDictionary()
#: Modules of a part of an autoencoder.
_PARTS = {"encoder": ("encoder", "quant_conv"), "decoder": ("decoder", "post_quant_conv")}


def _part(vae: nn.Module, name: str, device: torch.device | None) -> nn.Module:
    """The autoencoder with its encoder or decoder only, without tiling and offloading, on the device.

    It has the same weights, or is a copy where those are elsewhere or of half precision, in which some autoencoders
    overflow. The copy is in float32; it is made once and again only after the weights have changed.
    """
    light = copy.copy(vae)
    light._modules = {kept: part for kept, part in vae._modules.items() if kept in _PARTS[name]}
    light.use_slicing = light.use_tiling = False
    for hook in ("_hf_hook", "_old_forward", "forward"):
        light.__dict__.pop(hook, None)
    device, half = device or vae.device, vae.dtype in (torch.float16, torch.bfloat16)
    if not half and vae.device == device:
        return light
    state = (device, *((part.data_ptr(), part._version) for part in light.parameters()))
    copies = _COPIES.setdefault(vae, {})
    kept, part = copies.get(name, (None, None))
    if kept != state:
        part = copy.deepcopy(light)
        if part.device.type == "meta":  # sequential offloading, whose hooks hold the weights
            from accelerate.hooks import remove_hook_from_submodules

            remove_hook_from_submodules(part)
        part = part.to(device=device, dtype=torch.float32 if half else vae.dtype)
        copies[name] = (state, part)
    return part


class Denoiser:
    """A U-Net, what it is told, and the space it works in.

    With ``embeddings`` and a ``guidance_scale`` γ other than 1, ``ε = ε_u + γ·(ε_c - ε_u)`` (Ho & Salimans,
    "Classifier-Free Diffusion Guidance" (2022); γ = 1 is the conditional prediction, γ = 0 the unconditional).
    Channels of a learned variance are split off; they are the conditional ones.

    Arguments:
        unet: ``UNet2DModel``, or ``UNet2DConditionModel`` with embeddings.
        embeddings, negative: of the prompts and of the negative prompts, ``(B, T, D)``.
        guidance_scale: γ.
        options: further keyword arguments of the U-Net.
    """

    def __init__(
        self,
        unet: nn.Module,
        space: Pixels | Latents,
        *,
        embeddings: Tensor | None = None,
        negative: Tensor | None = None,
        guidance_scale: float = 1.0,
        options: dict | None = None,
    ):
        self.unet, self.space, self.guidance_scale = unet, space, checks.number(guidance_scale, "guidance_scale")
        self.embeddings, self.negative, self.options = embeddings, negative, options or {}
        self.dtype: torch.dtype = unet.dtype  # kept: diffusers looks through all parameters for it
        if embeddings is not None and negative is None and guidance_scale != 1:
            raise ValueError(f"guidance_scale {guidance_scale} needs embeddings of the negative prompt")

    def __call__(self, sample: Tensor, timestep: Tensor | int) -> Output:
        """The network's `Output` for samples ``(B, C, H, W)`` as ``scheduler.scale_model_input`` left them."""
        channels = sample.shape[1]
        sample = sample.to(self.dtype)
        if self.embeddings is None:
            return Output(*split(self.unet(sample, timestep, return_dict=False)[0], channels))
        if self.guidance_scale == 1:
            return Output(*split(self._unet(sample, timestep, self.embeddings), channels))
        outputs = self._unet(torch.cat([sample] * 2), timestep, torch.cat([self.negative, self.embeddings]))
        (unprompted, _), (conditional, variance) = (split(half, channels) for half in outputs.chunk(2))
        correction = conditional - unprompted
        return Output(unprompted + self.guidance_scale * correction, variance, correction)

    def _unet(self, sample: Tensor, timestep: Tensor | int, embeddings: Tensor) -> Tensor:
        return self.unet(sample, timestep, encoder_hidden_states=embeddings, **self.options, return_dict=False)[0]


def split(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """Prediction, and variance where the network has twice the channels."""
    return (output[:, :channels], output[:, channels:]) if output.shape[1] == 2 * channels else (output, None)


def paired_prompts(prompt: str | list[str], negative_prompt: str | list[str]) -> tuple[list[str], list[str]]:
    """Prompts and as many negative prompts; a single negative prompt serves all."""
    prompts, negative = checks.prompts(prompt, "prompt"), checks.prompts(negative_prompt, "negative_prompt")
    if len(negative) not in (1, len(prompts)):
        raise ValueError(f"negative_prompt must be one or one per prompt, got {len(negative)} for {len(prompts)}")
    return prompts, negative * (len(prompts) if len(negative) == 1 else 1)


#: Weights that take no gradients now, and for how many.
_FROZEN: dict[nn.Parameter, int] = {}
_LOCK = threading.Lock()


@contextlib.contextmanager
def frozen(*modules: nn.Module, checkpointing: bool = False) -> Iterator[None]:
    """Inside, weights take no gradients, which a guided step would keep; ``checkpointing`` trades time for memory.

    Threads may share weights: the last to leave undoes it.
    """
    counted, switched = [], []
    with _LOCK:
        for parameter in (parameter for module in modules for parameter in module.parameters()):
            if parameter.requires_grad or parameter in _FROZEN:
                _FROZEN[parameter] = _FROZEN.get(parameter, 0) + 1
                parameter.requires_grad_(False)
                counted.append(parameter)
    try:
        lists = [module if isinstance(module, nn.ModuleList) else [module] for module in modules]  # illusions have two
        for module in itertools.chain(*lists) if checkpointing else ():
            if not module.is_gradient_checkpointing:
                module.enable_gradient_checkpointing()
                switched.append(module)
        yield
    finally:
        with _LOCK:
            for parameter in counted:
                _FROZEN[parameter] -= 1
                if not _FROZEN[parameter]:
                    del _FROZEN[parameter]
                    parameter.requires_grad_(True)
        for module in switched:
            module.disable_gradient_checkpointing()
