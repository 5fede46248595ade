"""Drawing with the embedded models while they are trained and evaluated; grids of pictures."""

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from PIL import Image
from torchvision.utils import make_grid
from transformers import CLIPTextModel, CLIPTokenizer

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


def to_picture(tensor: torch.Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] -> PIL."""
    return Image.fromarray((tensor.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def grid(pictures: torch.Tensor, columns: int = 8) -> Image.Image:
    return to_picture(make_grid(pictures.float().cpu(), nrow=columns, padding=2, pad_value=1.0))


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.inference_mode()
def reconstruct(vae: AutoencoderKL, x: torch.Tensor, batch: int = 32) -> torch.Tensor:
    """Mean-latent reconstruction of (B, 3, S, S) in [-1, 1], clamped."""
    return torch.cat([vae.decode(vae.encode(b).latent_dist.mean).sample.clamp(-1, 1) for b in x.split(batch)])


def _prompts(tokenizer, encoder, prompts: list[str]) -> torch.Tensor:
    tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return encoder(tokens.to(encoder.device))[0]


@torch.inference_mode()
def draw(unet, scheduler, tokenizer, encoder, prompts: list[str], seed: int, batch: int = 32) -> torch.Tensor:
    """DDIM with classifier-free guidance, eps = eps_u + w (eps_c - eps_u); the noise comes from the seed.

    Returns x0 in the model's own space, (B, C, S, S).
    """
    g = torch.Generator().manual_seed(seed)
    side, channels = unet.config.sample_size, unet.config.in_channels
    noise = torch.randn(len(prompts), channels, side, side, generator=g)
    fast = networks.native_bf16(unet.device)
    done = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        said = _prompts(tokenizer, encoder, [""] * len(part) + part)
        x = noise[start : start + batch].to(unet.device)
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            with torch.autocast(unet.device.type, torch.bfloat16, enabled=fast):
                free, bound = unet(torch.cat([x, x]), t, said).sample.float().chunk(2)
            x = scheduler.step(free + GUIDANCE * (bound - free), t, x).prev_sample
        done.append(x.cpu())
    return torch.cat(done)


class Text:
    """The committed text tower and its tokenizer."""

    def __init__(self, device: torch.device):
        self.tokenizer = CLIPTokenizer.from_pretrained(MODELS / "mini-sd" / "tokenizer")
        self.encoder = CLIPTextModel.from_pretrained(MODELS / "mini-sd" / "text_encoder").eval().to(device)


def draw_latent(unet, vae, prompts: list[str], seed: int = 0) -> torch.Tensor:
    """mini-sd pictures, (B, 3, 128, 128) in [0, 1]."""
    text = Text(unet.device)
    z = draw(unet, latent_scheduler(), text.tokenizer, text.encoder, prompts, seed) / vae.config.scaling_factor
    with torch.inference_mode():
        x = torch.cat([vae.decode(b.to(vae.device)).sample.cpu() for b in z.split(16)])
    return (x / 2 + 0.5).clamp(0, 1)


def draw_pixels(unet, prompts: list[str], seed: int = 0) -> torch.Tensor:
    """mini-pixel pictures, (B, 3, S, S) in [0, 1]."""
    text = Text(unet.device)
    scheduler = DDIMScheduler.from_config(pixel_scheduler().config)
    return (draw(unet, scheduler, text.tokenizer, text.encoder, prompts, seed) / 2 + 0.5).clamp(0, 1)


def draw_faces(unet, count: int, seed: int = 0) -> torch.Tensor:
    """mini-ddpm pictures by 100 DDIM steps, (B, 3, S, S) in [0, 1]."""
    scheduler = DDIMScheduler.from_config(face_scheduler().config)
    scheduler.set_timesteps(100)
    side = unet.config.sample_size
    x = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed)).to(unet.device)
    fast = networks.native_bf16(unet.device)
    with torch.inference_mode():
        for t in scheduler.timesteps:
            with torch.autocast(unet.device.type, torch.bfloat16, enabled=fast):
                noise = unet(x, t).sample.float()
            x = scheduler.step(noise, t, x).prev_sample
    return (x / 2 + 0.5).clamp(0, 1).cpu()


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
