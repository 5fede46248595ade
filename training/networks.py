"""The embedded models before they know anything: architectures, the tokenizer, and what they cost.

Widths and sizes are settings (`SIZES`): double them where an accelerator trains.
"""

import json
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from ex4lib.models import EMBEDDED, native_bfloat16

from .words import all_phrases

TOKENS = 32  # max_position_embeddings: the longest caption has some 25 tokens
LATENTS = 4
SIZES = {"vae": 128, "mini-clip": 64, "mini-judge": 60, "mini-sd": 32, "mini-pixel": 64, "mini-ddpm": 64}


def vocabulary() -> list[str]:
    """Every word of the world, sorted: what the tokenizer must know whole."""
    cleaned = " ".join(all_phrases()).lower().replace("{colour}", " ").replace("{}", " ")
    return sorted(
        {"".join(c for c in word if c.isalpha()) for part in cleaned.split() for word in part.split("-")} - {""}
    )


def tokenizer() -> CLIPTokenizer:
    """A CLIPTokenizer whose merges make one token of every word of the world; other words are spelt."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    final = [c + "</w>" for c in alphabet]
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        min_frequency=1,
        special_tokens=final,  # fixes their ids, by which ties are broken: else every run would find other merges
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(vocabulary(), trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    pieces = [*alphabet, *final, *("".join(pair) for pair in merges)]
    pieces = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(pieces)}))
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges))
        return CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)


def shipped_tokenizer(folder: str = "mini-sd/tokenizer") -> CLIPTokenizer:
    """The tokenizer that ships with the weights; it may be that of an earlier world, and then spells newer words."""
    return CLIPTokenizer.from_pretrained(EMBEDDED / folder)


def save_tokenizer(words: CLIPTokenizer, folder: Path) -> None:
    """Write a tokenizer for transformers 5 (``tokenizer.json``) and 4 (``vocab.json``, ``merges.txt``)."""
    words.save_pretrained(folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")


def _clip(words: CLIPTokenizer, *, image_size: int, patch: int, width: int, layers: int, text: int, text_layers: int):
    special = {
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    config = CLIPConfig(
        text_config={
            "vocab_size": len(words),
            "hidden_size": text,
            "intermediate_size": 4 * text,
            "hidden_act": "gelu",
            "num_hidden_layers": text_layers,
            "num_attention_heads": text // 32,
            "max_position_embeddings": TOKENS,
            "projection_dim": 128,
            **special,
        },
        vision_config={
            "image_size": image_size,
            "patch_size": patch,
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "hidden_act": "gelu",
            "num_hidden_layers": layers,
            "num_attention_heads": width // 32,
            "projection_dim": 128,
        },
        projection_dim=128,
    )
    return CLIPModel(config)


def mini_clip(words: CLIPTokenizer) -> CLIPModel:
    """The towers whose text half conditions mini-sd and mini-pixel; the picture half only teaches it."""
    return _clip(words, image_size=64, patch=16, width=128, layers=4, text=192, text_layers=4)


def mini_judge(words: CLIPTokenizer) -> CLIPModel:
    """The judge: other patches, widths and depths than `mini_clip`, and trained on other scenes."""
    return _clip(words, image_size=SIZES["mini-judge"], patch=12, width=160, layers=5, text=128, text_layers=3)


def vae() -> AutoencoderKL:
    """128 px -> 32 x 32 x 4: few channels where pixels are many; a factor of 4 keeps the texture of paint."""
    return AutoencoderKL(
        block_out_channels=(24, 48, 80),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=LATENTS,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=SIZES["vae"],
    )


def _text_unet(
    size: int, channels: int, widths: tuple[int, ...], crossed: tuple[bool, ...], groups: int, text: int, **options
):
    down = tuple("CrossAttnDownBlock2D" if c else "DownBlock2D" for c in crossed)
    up = tuple("CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(crossed))
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=widths,
        down_block_types=down,
        up_block_types=up,
        layers_per_block=1,
        cross_attention_dim=text,
        attention_head_dim=4,
        norm_num_groups=groups,
        **options,
    )


def mini_sd_unet(text: int) -> UNet2DConditionModel:
    """Latent U-Net, 32 x 32 x 4, attention at 8 and 4; the first level is narrow because it is the most costly."""
    crossed = (False, False, True, True)
    return _text_unet(SIZES["mini-sd"], LATENTS, (32, 64, 128, 160), crossed, 16, text, time_embedding_dim=256)


def mini_pixel_unet(text: int) -> UNet2DConditionModel:
    """Pixel U-Net, attention at a quarter and an eighth of the size."""
    return _text_unet(SIZES["mini-pixel"], 3, (24, 48, 80, 96), (False, False, True, True), 8, text)


def mini_ddpm_unet() -> UNet2DModel:
    """Unconditional pixel U-Net for faces."""
    return UNet2DModel(
        sample_size=SIZES["mini-ddpm"],
        block_out_channels=(32, 48, 80, 96),
        down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=16,
    )


def native_bf16(device: torch.device) -> bool:
    """Whether autocast to bfloat16 is faster rather than slower on a device: the dot products of AVX-512 are enough."""
    vectors = device.type == "cpu" and getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16")
    return native_bfloat16(device) or bool(vectors)
