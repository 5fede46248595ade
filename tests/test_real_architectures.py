"""Stable Diffusion's real shapes with random weights: what runs on Colab takes a guided step here."""

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from ex4lib.diffusion.guidance import Guidance
from ex4lib.diffusion.pipelines import StyleGuidedStableDiffusionPipeline
from tests.random_models import random_network
from training.networks import tokenizer

#: What differs between the versions: the published configurations of runwayml's 1.5 and stabilityai's 2.1.
VERSIONS = {
    "1.5": ({"cross_attention_dim": 768, "attention_head_dim": 8}, "epsilon"),
    "2.1": (
        {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
        "v_prediction",
    ),
}


def random_weights(module):
    """Fill a module made on the meta device: quicker than its own initialisation."""
    module = module.to_empty(device="cpu").eval()
    draw = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, parameter[0].numel() ** -0.5, generator=draw)
        else:
            parameter.data.zero_()
    for norm in module.modules():
        if isinstance(norm, (torch.nn.GroupNorm, torch.nn.LayerNorm)):
            norm.weight.data.fill_(1.0)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_a_guided_step_of_stable_diffusion(version, picture):
    options, prediction = VERSIONS[version]
    words = tokenizer()
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, **options)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        )
    assert sum(p.numel() for p in unet.parameters()) > 850e6
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=options["cross_attention_dim"],
            num_hidden_layers=1,
            max_position_embeddings=words.model_max_length,
        )
    )
    pipe = StyleGuidedStableDiffusionPipeline(
        vae=random_weights(vae),
        text_encoder=text.eval(),
        tokenizer=words,
        unet=random_weights(unet),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            prediction_type=prediction,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    found = pipe(
        "a cat",
        style_image=picture(96, 96, dtype=torch.float32),
        guidance=Guidance(0.3),
        features=random_network("vgg16").float(),
        height=256,
        width=256,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        checkpointing=True,
        measure=True,
        output_type="pt",
    )
    assert found.images.shape == (1, 3, 256, 256) and found.images.isfinite().all()
    assert len(found.trace) == 2 and all(row["skipped"] == 0 and row["gradient_norm"][0] > 0 for row in found.trace)
    assert found.trace[0]["loss_after"][0] < found.trace[0]["loss"][0]
    assert not unet.is_gradient_checkpointing
