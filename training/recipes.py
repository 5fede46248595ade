"""What the autoencoder and the diffusion models learn from, and the table of all recipes."""

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler
from diffusers.training_utils import compute_snr
from transformers import CLIPTextModel

from ex4lib.models import weights_sha256
from experiments.files import cache_dir

from . import networks
from .contrastive import Contrastive
from .faces import face_pictures
from .optimisers import MuonAdamW
from .painter import paint
from .pictures import write_atomically
from .recipe import LATENT_NOISE, MODELS, SNR_GAMMA, Recipe
from .styled import StyledScenes
from .texture import texture_error, texture_network

PLAIN_SHARE = 0.3  # of the autoencoder's pictures that are left as drawn
STYLED_SHARE = 0.36  # of what the diffusion models see
ANIMAL_WEIGHT = 3.0  # scenes with animals are seen so much more often: they are the hardest to draw
VARIANTS = 2  # how often every scene is encoded: as drawn, and in a style


@dataclass
class Autoencoder(Recipe):
    """MSE + 0.2 L1 + 0.1 L1 of gradients + 0.2 texture error; the posterior's std is held at `LATENT_NOISE`.

    All but the texture error is computed on [-1, 1].
    """

    lr: float = 1e-3
    batch_size: int = 32

    def __post_init__(self):
        self.scenes = StyledScenes("train", device=self.device)
        self.network = texture_network(self.device)

    def build(self) -> AutoencoderKL:
        return networks.vae()

    def compiled_parts(self, net: AutoencoderKL) -> list[torch.nn.Module]:
        return [net.encoder, net.decoder]

    def batch(self, step: int) -> dict:
        rng, random = self.randomness(step)
        plain = self.scenes.plain(self.scenes.chosen(self.batch_size, random), random)
        styled, _ = self.scenes.painted(plain, rng, random)
        kept = torch.rand(len(plain), 1, 1, 1, generator=random, device=self.device) < PLAIN_SHARE
        noise = torch.randn(
            len(plain), networks.LATENTS, *(plain.shape[-1] // 4,) * 2, generator=random, device=self.device
        )
        return {"x": torch.where(kept, plain, styled) * 2 - 1, "noise": noise}

    def loss(self, net: AutoencoderKL, batch: dict) -> torch.Tensor:
        x = batch["x"]
        moments = net.quant_conv(net.encoder(x)).float()
        mean, log_variance = moments.chunk(2, dim=1)
        latents = mean + log_variance.clamp(-12, 2).div(2).exp() * batch["noise"]
        y = net.decode(latents, return_dict=False)[0].float()
        error = y - x
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        pinned = (log_variance - 2 * np.log(LATENT_NOISE)).square().mean()
        pixels = error.square().mean() + 0.2 * error.abs().mean() + 0.1 * edges
        texture = texture_error(self.network, y / 2 + 0.5, x / 2 + 0.5)
        return pixels + 0.2 * texture + 1e-3 * pinned + 2e-4 * mean.square().mean()


@dataclass(frozen=True)
class Variant:
    """Every scene in a style of its own, on the CPU.

    Arguments:
        latents: fp16 ``(N, 4, S, S)``, unscaled.
        small: uint8 ``(N, 3, s, s)``, for models in pixels.
        looks: ``(N,)``, the numbers of the looks that captions name.
    """

    latents: torch.Tensor
    small: torch.Tensor
    looks: torch.Tensor


@torch.inference_mode()
def styled_variant(vae: AutoencoderKL, scenes: StyledScenes, number: int) -> Variant:
    """Variant `number` of all scenes: 0 as drawn, the others in styles.

    It comes from the cache, where it lies by the weights of the autoencoder, or else is made and kept.
    """
    folder = cache_dir() / "latents" / f"{weights_sha256(vae)[:8]}-{len(scenes)}-{number}"
    names = [field.name for field in dataclasses.fields(Variant)]
    if not all((folder / f"{name}.npy").exists() for name in names):
        fast, device = networks.native_bf16(vae.device), scenes.device
        parts, part_size = {name: [] for name in names}, 1024 if device.type == "cuda" else 128
        for part, chosen in enumerate(torch.arange(len(scenes), device=device).split(part_size)):
            random = torch.Generator(device).manual_seed(1000 * part + number)
            rng = np.random.default_rng((number, part))
            pictures = scenes.plain(chosen, random)
            looks = torch.zeros_like(chosen)
            if number:
                pictures, looks = scenes.painted(pictures, rng, random)
            with torch.autocast(device.type, torch.bfloat16, enabled=fast):
                parts["latents"].append(vae.encode(pictures * 2 - 1).latent_dist.mean.half().cpu())
            small = F.interpolate(pictures, (networks.SIZES["mini-pixel"],) * 2, mode="area")
            parts["small"].append((small * 255).round().byte().cpu())
            parts["looks"].append(looks.cpu())
        for name, tensors in parts.items():
            array = torch.cat(tensors).numpy()
            write_atomically(folder / f"{name}.npy", lambda file, array=array: np.save(file, array))
    return Variant(*(torch.from_numpy(np.load(folder / f"{name}.npy")) for name in names))


def styled_variants(scenes: StyledScenes, vae: AutoencoderKL) -> list[Variant]:
    """All variants; the pictures of the scenes are let go, since these stand for them."""
    variants = [styled_variant(vae, scenes, number) for number in range(VARIANTS)]
    scenes.levels = None
    return variants


def trained_vae(device: torch.device) -> AutoencoderKL:
    """The autoencoder that ships, in float32."""
    return AutoencoderKL.from_pretrained(MODELS / "mini-sd" / "vae").eval().to(device)


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
        steps = torch.arange(self.scheduler.config.num_train_timesteps)
        self.snr = compute_snr(self.scheduler, steps).to(self.device)
        if self.text:
            folder = MODELS / "mini-sd" / "text_encoder"
            self.encoder = CLIPTextModel.from_pretrained(folder).eval().requires_grad_(False).to(self.device)
            empty = networks.shipped_tokenizer()("", padding="max_length", return_tensors="pt").input_ids
            self.empty = empty.to(self.device)

    def optimizer(self, net: torch.nn.Module) -> MuonAdamW:
        return MuonAdamW(net, self.lr)

    def chosen(self, variants: int, scenes: StyledScenes, random: torch.Generator) -> list[torch.Tensor]:
        """Random pairs of a variant and a scene.

        `STYLED_SHARE` of the variants are not the scenes as drawn, and scenes with animals weigh `ANIMAL_WEIGHT`.
        """
        variant = torch.rand(self.batch_size, generator=random, device=self.device)
        styled = 1 + (variant / STYLED_SHARE * (variants - 1)).long()
        weights = torch.where(scenes.with_animals, ANIMAL_WEIGHT, 1.0)
        scene = torch.multinomial(weights, self.batch_size, replacement=True, generator=random)
        return [torch.where(variant < STYLED_SHARE, styled, 0), scene]

    def noised(self, x: torch.Tensor, random: torch.Generator) -> dict:
        """A noise level and noise for each picture, and the weight of its error."""
        noise = torch.randn(x.shape, generator=random, device=self.device)
        t = torch.randint(0, len(self.snr), (len(x),), generator=random, device=self.device)
        weight = self.snr[t].clamp(max=SNR_GAMMA) / self.snr[t]
        return {"x": self.scheduler.add_noise(x, noise, t), "noise": noise, "t": t, "weight": weight}

    def dropped(self, tokens: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """The tokens, a share of which becomes the empty caption, so that the model also learns without words."""
        dropped = torch.rand(len(tokens), 1, generator=random, device=self.device) < self.dropout
        return torch.where(dropped, self.empty, tokens.long())

    def loss(self, net: torch.nn.Module, batch: dict) -> torch.Tensor:
        said = ()
        if self.text:
            with torch.no_grad():
                said = (self.encoder(batch["tokens"])[0].to(net.dtype),)
        predicted = net(batch["x"].to(net.dtype), batch["t"], *said, return_dict=False)[0]
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
        self.scenes = StyledScenes("train", device=self.device, tokenizer=networks.shipped_tokenizer())
        self.vae = trained_vae(self.device)
        variants = styled_variants(self.scenes, self.vae)
        self.latents = torch.stack([variant.latents for variant in variants]).to(self.device)
        self.looks = torch.stack([variant.looks for variant in variants]).to(self.device)

    def build(self):
        return networks.mini_sd_unet(self.encoder.config.hidden_size)

    def batch(self, step: int) -> dict:
        _, random = self.randomness(step)
        variant, scene = self.chosen(len(self.looks), self.scenes, random)
        latents = self.latents[variant, scene].float() * self.vae.config.scaling_factor
        tokens = self.scenes.tokens[scene, self.looks[variant, scene]]
        return {**self.noised(latents, random), "tokens": self.dropped(tokens, random)}


@dataclass
class PixelText(Diffusion):
    """mini-pixel."""

    scheduler: DDPMScheduler = field(default_factory=pixel_scheduler)

    def __post_init__(self):
        super().__post_init__()
        self.scenes = StyledScenes("train", device=self.device, tokenizer=networks.shipped_tokenizer())
        variants = styled_variants(self.scenes, trained_vae(self.device))
        self.pictures = torch.stack([variant.small for variant in variants]).to(self.device)
        self.looks = torch.stack([variant.looks for variant in variants]).to(self.device)

    def build(self):
        return networks.mini_pixel_unet(self.encoder.config.hidden_size)

    def batch(self, step: int) -> dict:
        _, random = self.randomness(step)
        variant, scene = self.chosen(len(self.looks), self.scenes, random)
        x = self.pictures[variant, scene].float() / 127.5 - 1
        tokens = self.scenes.tokens[scene, self.looks[variant, scene]]
        return {**self.noised(x, random), "tokens": self.dropped(tokens, random)}


@dataclass
class Faces(Diffusion):
    """mini-ddpm: faces only, mirrored at will, in every style, no text."""

    scheduler: DDPMScheduler = field(default_factory=face_scheduler)
    text: bool = False
    batch_size: int = 32

    def __post_init__(self):
        super().__post_init__()
        faces = np.array(face_pictures(networks.SIZES["vae"]))
        self.faces = torch.from_numpy(faces).to(self.device)

    def build(self):
        return networks.mini_ddpm_unet()

    def batch(self, step: int) -> dict:
        _, random = self.randomness(step)
        chosen = torch.randint(0, len(self.faces), (self.batch_size,), generator=random, device=self.device)
        x = self.faces[chosen].permute(0, 3, 1, 2).float() / 255
        mirrored = torch.rand(len(x), 1, 1, 1, generator=random, device=self.device) < 0.5
        x = paint(torch.where(mirrored, x.flip(-1), x), random)
        x = F.interpolate(x * 2 - 1, (networks.SIZES["mini-ddpm"],) * 2, mode="area")
        return self.noised(x, random)


def _judge(**options) -> Contrastive:
    return Contrastive(**{"seed": 2, "stream": "judge", "judge": True, "lr": 8e-4, **options})


RECIPES = {
    "vae": Autoencoder,
    "mini-clip": Contrastive,
    "mini-judge": _judge,
    "mini-sd": LatentText,
    "mini-pixel": PixelText,
    "mini-ddpm": Faces,
}

#: Batches that fill an accelerator, and the learning rates that go with them.
LARGE = {
    "vae": {"batch_size": 64, "lr": 1.2e-3},
    "mini-clip": {"batch_size": 512, "lr": 1e-3},
    "mini-judge": {"batch_size": 512, "lr": 1e-3},
    "mini-sd": {"batch_size": 768, "lr": 1.6e-3},
    "mini-pixel": {"batch_size": 384, "lr": 1e-3},
    "mini-ddpm": {"batch_size": 256, "lr": 1e-3},
}
