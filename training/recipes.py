"""What the autoencoder and the diffusion models learn from, and the table of all recipes."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler
from diffusers.training_utils import compute_snr
from transformers import CLIPTextModel

from ex4lib.files import cache_dir

from . import networks
from .contrastive import Contrastive
from .faces import face_pictures
from .optimisers import MuonAdamW
from .pictures import Pictures, write_atomically
from .recipe import LATENT_NOISE, MODELS, SNR_GAMMA, Recipe, generator, strange, to_tensor


@dataclass
class Autoencoder(Recipe):
    """MSE + 0.2 L1 + 0.1 L1 of gradients; the posterior's std is held at `LATENT_NOISE`."""

    lr: float = 2e-3
    batch_size: int = 8

    def __post_init__(self):
        self.pictures = Pictures("train", size=networks.SIZES["vae"])

    def build(self) -> AutoencoderKL:
        return networks.vae()

    def batch(self, step: int) -> dict:
        """Mostly quarters of pictures, four times as many for the same work; whole ones every third step."""
        rng = np.random.default_rng((self.seed, step, 1))
        whole = step % 3 == 0
        count = self.batch_size if whole else 4 * self.batch_size
        x = self.pictures[np.random.default_rng((self.seed, step)).integers(0, len(self.pictures), count)]
        if rng.random() < 0.5:
            x = x[:, :, ::-1].copy()
        if not whole:
            half = x.shape[1] // 2
            corners = rng.integers(0, half + 1, (count, 2))
            x = np.stack([p[t : t + half, l : l + half] for p, (t, l) in zip(x, corners, strict=True)])
        return {"x": to_tensor(x), "step": step}

    def loss(self, net: AutoencoderKL, batch: dict) -> torch.Tensor:
        x = batch["x"]
        moments = net.quant_conv(net.encoder(x)).float()
        mean, log_variance = moments.chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=generator(self.seed, batch["step"])).to(mean.device)
        y = net.decode(mean + log_variance.clamp(-12, 2).div(2).exp() * noise).sample.float()
        error = y - x
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        pinned = (log_variance - 2 * np.log(LATENT_NOISE)).square().mean()
        return (
            error.square().mean() + 0.2 * error.abs().mean() + 0.1 * edges + 1e-3 * pinned + 2e-4 * mean.square().mean()
        )


def fingerprint(module: torch.nn.Module) -> str:
    """Eight hex digits of a network's weights."""
    digest = hashlib.sha256()
    for tensor in module.state_dict().values():
        digest.update(tensor.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


@torch.inference_mode()
def encode_pictures(vae: AutoencoderKL, pictures: Pictures, limit: int | None = None) -> list[np.ndarray]:
    """The latent means of every drawn chunk, unscaled, fp16 (N, 8, 16, 16); cached per autoencoder."""
    folder = cache_dir() / "latents" / fingerprint(vae)
    fast = networks.native_bf16(vae.device)
    for path in pictures.paths[:limit]:
        target = folder / path.parent.name / path.name
        if target.exists():
            continue
        chunk = np.load(path, mmap_mode="r")
        means = []
        for start in range(0, len(chunk), 64):
            with torch.autocast(vae.device.type, torch.bfloat16, enabled=fast):
                x = to_tensor(np.asarray(chunk[start : start + 64])).to(vae.device)
                means.append(vae.encode(x).latent_dist.mean.half().cpu().numpy())
        stacked = np.concatenate(means)
        write_atomically(target, lambda file, a=stacked: np.save(file, a))
    paths = [folder / p.parent.name / p.name for p in pictures.paths[:limit]]
    return [np.load(path, mmap_mode="r") for path in paths]


STREAMS = ("train",)  # what the text to image models learn from


@dataclass
class Diffusion(Recipe):
    """|| eps - eps_theta(x_t, t, text) ||^2 with min-SNR weights (Hang et al. 2023)."""

    scheduler: DDPMScheduler | DDIMScheduler = None
    dropout: float = 0.1
    lr: float = 6e-4
    batch_size: int = 64
    text: bool = True
    snr: torch.Tensor = field(init=False, default=None)

    def __post_init__(self):
        self.snr = compute_snr(self.scheduler, torch.arange(self.scheduler.config.num_train_timesteps))
        if self.text:
            self.words = networks.tokenizer()
            self.encoder = (
                CLIPTextModel.from_pretrained(MODELS / "mini-sd" / "text_encoder").eval().requires_grad_(False)
            )

    def optimizer(self, net: torch.nn.Module) -> MuonAdamW:
        return MuonAdamW(net, self.lr)

    def noised(self, x: torch.Tensor, step: int) -> dict:
        g = generator(self.seed, step)
        noise = torch.randn(x.shape, generator=g)
        t = torch.randint(0, self.scheduler.config.num_train_timesteps, (len(x),), generator=g)
        weight = self.snr[t].clamp(max=SNR_GAMMA) / self.snr[t]
        return {"x": self.scheduler.add_noise(x, noise, t), "noise": noise, "t": t, "weight": weight}

    def tokens(self, captions: list[str], step: int) -> torch.Tensor:
        rng = np.random.default_rng((self.seed, step, 2))
        said = ["" if rng.random() < self.dropout else strange(c, rng) for c in captions]
        return self.words(said, padding="max_length", truncation=True, return_tensors="pt").input_ids

    def loss(self, net: torch.nn.Module, batch: dict) -> torch.Tensor:
        if self.text:
            with torch.no_grad():
                said = self.encoder(batch["tokens"])[0]
            predicted = net(batch["x"], batch["t"], said).sample
        else:
            predicted = net(batch["x"], batch["t"]).sample
        error = (predicted.float() - batch["noise"]).square().mean((1, 2, 3))
        return (batch["weight"] * error).mean()


def latent_scheduler() -> DDIMScheduler:
    """Stable Diffusion's own noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def pixel_scheduler() -> DDPMScheduler:
    """The cosine schedule, which wastes fewer steps on small pictures than the linear one."""
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=True)


def face_scheduler() -> DDPMScheduler:
    """The linear schedule and the clipping of ddpm-celebahq-256, whose small sibling mini-ddpm is."""
    return DDPMScheduler(clip_sample=True)


@dataclass
class LatentText(Diffusion):
    """mini-sd."""

    scheduler: DDIMScheduler = field(default_factory=latent_scheduler)

    def __post_init__(self):
        super().__post_init__()
        self.vae = AutoencoderKL.from_pretrained(MODELS / "mini-sd" / "vae").eval()
        pictures = Pictures(*STREAMS, size=networks.SIZES["vae"])
        self.latents = encode_pictures(self.vae, pictures)
        self.captions = [s["caption"] for s in pictures.said]
        self.starts = np.cumsum([0, *(len(c) for c in self.latents)])

    def build(self):
        return networks.mini_sd_unet(self.encoder.config.hidden_size)

    def batch(self, step: int) -> dict:
        chosen = self.indices(step, int(self.starts[-1]))
        where = np.searchsorted(self.starts, chosen, side="right") - 1
        z = np.stack([self.latents[k][i - self.starts[k]] for k, i in zip(where, chosen, strict=True)])
        z = torch.from_numpy(z).float() * self.vae.config.scaling_factor
        return {**self.noised(z, step), "tokens": self.tokens([self.captions[i] for i in chosen], step)}


@dataclass
class PixelText(Diffusion):
    """mini-pixel."""

    scheduler: DDPMScheduler = field(default_factory=pixel_scheduler)

    def __post_init__(self):
        super().__post_init__()
        self.pictures = Pictures(*STREAMS, size=networks.SIZES["vae"])

    def build(self):
        return networks.mini_pixel_unet(self.encoder.config.hidden_size)

    def batch(self, step: int) -> dict:
        chosen = self.indices(step, len(self.pictures))
        x = to_tensor(self.pictures[chosen], networks.SIZES["mini-pixel"])
        captions = [self.pictures.said[i]["caption"] for i in chosen]
        return {**self.noised(x, step), "tokens": self.tokens(captions, step)}


@dataclass
class Faces(Diffusion):
    """mini-ddpm: faces only, mirrored at will, no text."""

    scheduler: DDPMScheduler = field(default_factory=face_scheduler)
    text: bool = False
    batch_size: int = 32

    def __post_init__(self):
        super().__post_init__()
        self.pictures = face_pictures(networks.SIZES["mini-ddpm"])

    def build(self):
        return networks.mini_ddpm_unet()

    def batch(self, step: int) -> dict:
        x = to_tensor(self.pictures[self.indices(step, len(self.pictures))])
        mirrored = np.random.default_rng((self.seed, step, 3)).random(len(x)) < 0.5
        x[mirrored] = x[mirrored].flip(-1)
        return self.noised(x, step)


RECIPES = {
    "vae": Autoencoder,
    "mini-clip": Contrastive,
    "mini-judge": lambda: Contrastive(seed=2, stream="judge", judge=True, lr=8e-4, batch_size=128),
    "mini-sd": LatentText,
    "mini-pixel": PixelText,
    "mini-ddpm": Faces,
}
