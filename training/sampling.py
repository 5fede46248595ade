"""Drawing with the embedded models while they are trained and evaluated; grids of pictures."""

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from PIL import Image
from torchvision.utils import make_grid
from transformers import CLIPTextModel, CLIPTokenizer

from ex4lib import images
from ex4lib.diffusion.denoisers import Denoiser, Latents, Pixels
from ex4lib.diffusion.sampling import finish, sample

from . import networks
from .pictures import Pictures
from .recipe import MODELS, to_tensor
from .recipes import face_scheduler, latent_scheduler, pixel_scheduler

STEPS, GUIDANCE = 30, 4.0
GRID = [
    "a cat", "a dog", "a castle next to a river", "a boat in a river", "a burger on the table",
    "a cabin surrounded by forests", "a car on the road", "a cat sitting on a table",
    "a church beside a lake", "a dog sitting on grass", "a red bus driving on a desert road",
    "a villa close to the pool", "a squirrel", "a ballerina", "a man wearing a hat", "a rocket ship",
    "a campfire at night", "a hotdog on the table", "a house in snowy mountains", "a smiling face",
    "a waterfall", "an oil painting of a cat", "a castle, mosaic", "a pencil sketch of a dog",
    "a cat, pointillism", "a house, woodblock print", "a cat, flat", "a car, glossy",
    "a silhouette of a cat", "a yellow school bus", "a blue butterfly", "a rainbow castle",
]  # fmt: skip


def grid(pictures: torch.Tensor, columns: int = 8) -> Image.Image:
    """(B, 3, H, W) in [0, 1] -> one PIL picture."""
    sheet = make_grid(pictures.float().cpu(), nrow=columns, padding=2, pad_value=1.0)
    return images.to_pil(sheet.clamp(0, 1))


@torch.inference_mode()
def reconstruct(vae: AutoencoderKL, x: torch.Tensor, batch: int = 32) -> torch.Tensor:
    """Mean-latent reconstruction of (B, 3, S, S) in [-1, 1], clamped."""
    return torch.cat([vae.decode(vae.encode(b).latent_dist.mean).sample.clamp(-1, 1) for b in x.split(batch)])


class Text:
    """The committed text encoder and its tokenizer."""

    def __init__(self, device: torch.device):
        self.tokenizer = CLIPTokenizer.from_pretrained(MODELS / "mini-sd" / "tokenizer")
        self.encoder = CLIPTextModel.from_pretrained(MODELS / "mini-sd" / "text_encoder").eval().to(device)

    def encode(self, prompts: list[str]) -> torch.Tensor:
        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return self.encoder(tokens.to(self.encoder.device))[0]


class _Fast(torch.nn.Module):
    """A U-Net that computes in bfloat16 where that is native, and answers in float32."""

    dtype = torch.float32

    def __init__(self, unet: torch.nn.Module):
        super().__init__()
        self.unet, self.native = unet, networks.native_bf16(unet.device)

    def forward(self, *arguments, **options) -> tuple[torch.Tensor]:
        with torch.autocast(self.unet.device.type, torch.bfloat16, enabled=self.native):
            return (self.unet(*arguments, **options)[0].float(),)


@torch.inference_mode()
def draw(unet, scheduler, count: int, seed: int, *, steps: int = STEPS, text=None, prompts=(), batch=32):
    """`count` samples by `ex4lib.diffusion.sampling`, with classifier-free guidance if there are prompts.

    The noise comes from the seed. Returns x0 in the model's own space, (B, C, S, S), on the CPU.
    """
    side, channels = unet.config.sample_size, unet.config.in_channels
    noise = torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))
    done = []
    for start in range(0, count, batch):
        x, options = noise[start : start + batch].to(unet.device), {}
        if text is not None:
            embeddings = text.encode(list(prompts[start : start + batch]))
            options = {"embeddings": embeddings, "guidance_scale": GUIDANCE}
            options["negative"] = text.encode([""] * len(embeddings))
        step, _ = finish(sample(Denoiser(_Fast(unet), Pixels(), **options), scheduler, x, steps=steps))
        done.append(step.sample.cpu())
    return torch.cat(done)


def draw_latent(unet, vae, prompts: list[str], seed: int = 0) -> torch.Tensor:
    """mini-sd pictures, (B, 3, 128, 128) in [0, 1]."""
    text = Text(unet.device)
    z = draw(unet, latent_scheduler(), len(prompts), seed, text=text, prompts=prompts)
    return torch.cat([Latents(vae).render(part.to(vae.device)).cpu() for part in z.split(16)])


def draw_pixels(unet, prompts: list[str], seed: int = 0) -> torch.Tensor:
    """mini-pixel pictures, (B, 3, S, S) in [0, 1]."""
    scheduler = DDIMScheduler.from_config(pixel_scheduler().config)
    x = draw(unet, scheduler, len(prompts), seed, text=Text(unet.device), prompts=prompts)
    return Pixels().render(x)


def draw_faces(unet, count: int, seed: int = 0) -> torch.Tensor:
    """mini-ddpm pictures by 100 DDIM steps, (B, 3, S, S) in [0, 1]."""
    scheduler = DDIMScheduler.from_config(face_scheduler().config)
    return Pixels().render(draw(unet, scheduler, count, seed, steps=100))


def sample_grid(name: str, net: torch.nn.Module, recipe) -> Image.Image | None:
    """What the network `name` draws now, for the eye; nothing for the towers of CLIP."""
    if name == "vae":
        x = to_tensor(Pictures("held-out", size=networks.SIZES["vae"])[np.arange(16)])
        return grid(torch.cat([x[:8], reconstruct(net, x[:8]), x[8:], reconstruct(net, x[8:])]) / 2 + 0.5)
    if name == "mini-sd":
        return grid(draw_latent(net, recipe.vae, GRID))
    if name == "mini-pixel":
        return grid(draw_pixels(net, GRID))
    if name == "mini-ddpm":
        return grid(draw_faces(net, 16))
    return None
