"""Models of the real classes with random weights, small enough to run in tests."""

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDPMPipeline,
    IFPipeline,
    IFSuperResolutionPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from ex4lib import models
from ex4lib.features import BLOCKS, VGG
from training import networks

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def random_network(architecture="vgg19", channels=(4, 5, 6, 6, 6), seed=0, **options):
    """A narrow VGG with random float64 weights that keep activations near one."""
    draw = torch.Generator().manual_seed(seed)
    convolutions, before = [], 3
    for depth, width in zip(BLOCKS[architecture], channels, strict=True):
        for _ in range(depth):
            weight = torch.randn(width, before, 3, 3, generator=draw, dtype=torch.float64) * (2 / (9 * before)) ** 0.5
            convolutions.append((weight, 0.1 * torch.randn(width, generator=draw, dtype=torch.float64)))
            before = width
    network = VGG(architecture, convolutions, mean=models.IMAGENET_MEAN, std=models.IMAGENET_STD, **options)
    return network.double()


def save_stable_diffusion(path, size=32):
    """A Stable Diffusion folder as the stock pipeline saves it; pictures of ``size`` pixels."""
    torch.manual_seed(0)
    words = networks.tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=words.model_max_length, bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, sample_size=size, scaling_factor=0.5,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=size // 2, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_head_dim=2, norm_num_groups=8,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=words, unet=unet,
        scheduler=diffusers.DDIMScheduler(**STABLE_DIFFUSION, clip_sample=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(path)
    return path


def save_ddpm(path, size=16):
    """A `DDPMPipeline` folder."""
    torch.manual_seed(1)
    unet = UNet2DModel(
        sample_size=size, block_out_channels=(16, 32), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), layers_per_block=1, norm_num_groups=8, attention_head_dim=8,
    )  # fmt: skip
    DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(path)
    return path


def save_judge(path):
    """A ``CLIPModel`` folder with tokenizer and image processor."""
    torch.manual_seed(0)
    words, side = networks.tokenizer(), networks.SIZES["mini-judge"]
    networks.mini_judge(words).save_pretrained(path)
    networks.save_tokenizer(words, path)
    CLIPImageProcessor(
        size={"height": side, "width": side},
        do_center_crop=False,
        image_mean=[0.4, 0.5, 0.6],
        image_std=[0.5, 0.4, 0.3],
    ).save_pretrained(path)
    return path


def save_pixel(path, size=16):
    """A folder as mini-pixel's, with the Stable Diffusion folder beside it that lends its text encoder."""
    save_stable_diffusion(path.parent / "lender")
    unet = UNet2DConditionModel(
        sample_size=size, in_channels=3, out_channels=3, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_head_dim=2, norm_num_groups=8,
    )  # fmt: skip
    unet.save_pretrained(path / "unet")
    diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(path / "scheduler")
    (path / "text_encoder.txt").write_text("../lender\n")
    return path


def save_deepfloyd(path, size=16):
    """An ``IFPipeline`` folder: T5 encoder, six output channels for the learned variance."""
    torch.manual_seed(3)
    alphabet = [chr(code) for code in range(32, 127)]
    words = Tokenizer(WordLevel({piece: i for i, piece in enumerate(["<pad>", "</s>", "<unk>", *alphabet])}, "<unk>"))
    words.pre_tokenizer = Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=77
    )
    text = T5EncoderModel(T5Config(vocab_size=98, d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    unet = UNet2DConditionModel(
        sample_size=size, in_channels=3, out_channels=6, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=24, attention_head_dim=2, norm_num_groups=8,
    )  # fmt: skip
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
    )
    pipe = IFPipeline(
        tokenizer=tokenizer, text_encoder=text, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, watermarker=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(path)
    return path


def save_upsampler(path, size=32):
    """An ``IFSuperResolutionPipeline`` folder without text encoder: pictures of ``size`` pixels, told a noise level."""
    torch.manual_seed(4)
    unet = UNet2DConditionModel(
        sample_size=size, in_channels=6, out_channels=6, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=24, attention_head_dim=2, norm_num_groups=8, class_embed_type="timestep",
    )  # fmt: skip
    pipe = IFSuperResolutionPipeline(
        tokenizer=None, text_encoder=None, unet=unet, safety_checker=None, feature_extractor=None, watermarker=None,
        scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range"),
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(path)
    return path
