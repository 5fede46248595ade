"""Writing trained weights as standard diffusers and transformers folders, in fp16, swapped in when whole."""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMPipeline, StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPImageProcessor, CLIPTextModel

from . import networks
from .recipe import MODELS
from .recipes import face_scheduler, latent_scheduler, pixel_scheduler
from .styled import StyledScenes

FOLDERS = {
    "vae": "mini-sd/vae",
    "mini-clip": "mini-sd/text_encoder",
    "mini-sd": "mini-sd/unet",
    "mini-pixel": "mini-pixel/unet",
    "mini-ddpm": "mini-ddpm/unet",
    "mini-judge": "mini-judge",
}


def committed_weights(name: str) -> dict[str, torch.Tensor]:
    """The weights of `name` that ship, in fp32, under the names its training knows; else nothing."""
    files = sorted((MODELS / FOLDERS[name]).glob("*.safetensors"))
    weights = {k: v.float() for file in files for k, v in load_file(file).items()}
    if name == "mini-judge":
        weights = {f"clip.{k}": v for k, v in weights.items()}
    if name == "mini-clip":
        weights = {"clip." + (k if k.startswith("text_model.") else f"text_model.{k}"): v for k, v in weights.items()}
    return weights


def _replace(folder: Path, write) -> None:
    """`write(new)` beside, then swap: the folder is whole at any time."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as room:
        new = Path(room) / folder.name
        write(new)
        if folder.exists():
            folder.rename(Path(room) / "old")
        new.rename(folder)


def _as_float32(folder: Path) -> None:
    """Weights lie in fp16; transformers would load them as such, next to a U-Net in float32."""
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    config.pop("torch_dtype", None)
    for part in ("text_config", "vision_config"):
        if part in config:
            config[part]["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _load(net: torch.nn.Module, averaged: dict[str, torch.Tensor], prefix: str = "") -> torch.nn.Module:
    own = net.state_dict()
    own.update({k.removeprefix(prefix): v.float() for k, v in averaged.items() if k.startswith(prefix)})
    net.load_state_dict({k: v for k, v in own.items() if k in net.state_dict()})
    return net


def _write_index() -> None:
    """`model_index.json` of mini-sd, as `StableDiffusionPipeline.save_pretrained` writes it."""
    root = MODELS / "mini-sd"
    latent_scheduler().save_pretrained(root / "scheduler")
    index = {
        "_class_name": StableDiffusionPipeline.__name__,
        "_diffusers_version": "0.31.0",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (root / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


@torch.inference_mode()
def latent_deviation(net: AutoencoderKL) -> float:
    """Standard deviation of the latents of 512 training scenes in styles."""
    scenes = StyledScenes("train", device=torch.device("cpu"), chunks=1)
    random, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    parts = [scenes.painted(scenes.plain(scenes.chosen(64, random), random), rng, random)[0] for _ in range(8)]
    return float(torch.cat([net.encode(part * 2 - 1).latent_dist.mean for part in parts]).std())


def export(name: str, averaged: dict[str, torch.Tensor]) -> Path:
    """Write the averaged weights of `name` into the package.

    The autoencoder's `scaling_factor` is 1 / `latent_deviation`, measured here.
    """
    folder = MODELS / FOLDERS[name]
    if name == "vae":
        net = _load(networks.vae(), averaged).eval()
        net.register_to_config(scaling_factor=round(1 / latent_deviation(net), 5))
        _replace(folder, net.half().save_pretrained)
        _write_index()
    elif name in ("mini-clip", "mini-judge"):
        words = networks.tokenizer()
        build = networks.mini_judge if name == "mini-judge" else networks.mini_clip
        clip = _load(build(words), averaged, "clip.").half()
        if name == "mini-judge":
            _replace(folder, clip.save_pretrained)
            networks.save_tokenizer(words, folder)
            side = networks.SIZES[name]
            CLIPImageProcessor(
                size={"height": side, "width": side},
                do_center_crop=False,
                image_mean=[0.5] * 3,
                image_std=[0.5] * 3,
            ).save_pretrained(folder)
        else:
            with tempfile.TemporaryDirectory() as room:
                clip.save_pretrained(room)
                text = CLIPTextModel.from_pretrained(room, dtype=torch.float16)
            _replace(folder, text.save_pretrained)
            networks.save_tokenizer(words, MODELS / "mini-sd" / "tokenizer")
            _write_index()
        _as_float32(folder)
    elif name == "mini-sd":
        text = CLIPTextModel.from_pretrained(MODELS / "mini-sd" / "text_encoder").config.hidden_size
        _replace(folder, _load(networks.mini_sd_unet(text), averaged).half().save_pretrained)
        _write_index()
    elif name == "mini-pixel":
        text = CLIPTextModel.from_pretrained(MODELS / "mini-sd" / "text_encoder").config.hidden_size
        _replace(folder, _load(networks.mini_pixel_unet(text), averaged).half().save_pretrained)
        pixel_scheduler().save_pretrained(folder.parent / "scheduler")
        (folder.parent / "text_encoder.txt").write_text("../mini-sd\n")
    elif name == "mini-ddpm":
        net = _load(networks.mini_ddpm_unet(), averaged).half()
        keep = {p.name: p.read_bytes() for p in folder.parent.glob("*.*") if p.suffix in (".md", ".json", ".jpg")}
        _replace(folder.parent, DDPMPipeline(net, face_scheduler()).save_pretrained)
        for file, content in keep.items():
            if not (folder.parent / file).exists():
                (folder.parent / file).write_bytes(content)
    return folder


def load_vae() -> AutoencoderKL:
    """The committed autoencoder in float32."""
    return AutoencoderKL.from_pretrained(MODELS / "mini-sd" / "vae").eval()
