"""`guided` around each family of pipelines, with random weights of the real classes and embedded prompts."""

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel, SD3Transformer2DModel

from ex4lib.colour import colour_moments
from ex4lib.diffusion import schedulers, steering
from ex4lib.diffusion.guidance import Guidance
from tests.random_models import STABLE_DIFFUSION, random_network, save_deepfloyd
from tests.test_steering import UNCOLOURED, guided, loss_of, seeded, untouched

D = torch.float64
STEPS = 5


def drawn(seed, *shape):
    return torch.randn(*shape, generator=seeded(seed), dtype=D)


def autoencoder(channels=4, **options):
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=channels,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, sample_size=32, **options,
    )  # fmt: skip


def unet(channels=4, **options):
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=channels, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_head_dim=2, norm_num_groups=8, **options,
    )  # fmt: skip


def ddim():
    return diffusers.DDIMScheduler(**STABLE_DIFFUSION, clip_sample=False, steps_offset=1)


def flow_autoencoder(channels):
    return autoencoder(channels, shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False)


def stable_diffusion(pipeline, channels=4, **more):
    parts = {"vae": autoencoder(scaling_factor=0.5), "text_encoder": None, "tokenizer": None, "scheduler": ddim()}
    parts |= {"unet": unet(channels), "safety_checker": None, "feature_extractor": None} | more
    return getattr(diffusers, pipeline)(**parts, requires_safety_checker=False)


#: What Stable Diffusion XL's networks know beside the prompt.
ADDITION = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
}


def stable_diffusion_xl(pipeline, **more):
    network = unet(**ADDITION)
    parts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    scheduler = diffusers.EulerDiscreteScheduler(**STABLE_DIFFUSION, steps_offset=1, timestep_spacing="leading")
    return getattr(diffusers, pipeline)(
        vae=autoencoder(scaling_factor=0.13), unet=network, scheduler=scheduler, **parts | more
    )


#: Sizes of Stable Diffusion 3's transformer and its ControlNet.
SD3 = {
    "sample_size": 16, "patch_size": 1, "in_channels": 16, "attention_head_dim": 8, "num_attention_heads": 4,
    "caption_projection_dim": 32, "joint_attention_dim": 32, "pooled_projection_dim": 64, "out_channels": 16,
}  # fmt: skip


def stable_diffusion_3(pipeline, **more):
    torch.manual_seed(0)
    network = SD3Transformer2DModel(**SD3, num_layers=2)
    names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    parts = dict.fromkeys(names)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return getattr(diffusers, pipeline)(
        transformer=network, scheduler=scheduler, vae=flow_autoencoder(16), **parts | more
    )


#: Sizes of Flux's transformer and its ControlNet.
FLUX = {
    "patch_size": 1, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": (4, 4, 8),
}  # fmt: skip


def flux(pipeline, **more):
    torch.manual_seed(0)
    network = FluxTransformer2DModel(**FLUX, in_channels=16, out_channels=16)
    parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    scheduler = FlowMatchEulerDiscreteScheduler()
    return getattr(diffusers, pipeline)(
        transformer=network, scheduler=scheduler, vae=flow_autoencoder(4), **parts | more
    )


def pixart(pipeline):
    torch.manual_seed(0)
    network = diffusers.PixArtTransformer2DModel(
        sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
        in_channels=4, cross_attention_dim=24, out_channels=8, attention_bias=True, norm_type="ada_norm_single",
        activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip
    parts = {"tokenizer": None, "text_encoder": None, "vae": autoencoder(scaling_factor=0.13)}
    return getattr(diffusers, pipeline)(transformer=network, scheduler=ddim(), **parts)


def deepfloyd(pipeline, path):
    parts = diffusers.IFPipeline.from_pretrained(save_deepfloyd(path)).components
    return getattr(diffusers, pipeline)(**parts, requires_safety_checker=False)


def controlnet(**options):
    torch.manual_seed(1)
    return awake(diffusers.ControlNetModel(
        in_channels=4, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=32, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), conditioning_embedding_out_channels=(16, 32),
        norm_num_groups=8, **options,
    ))  # fmt: skip


def awake(network):
    """A ControlNet whose residuals are not zero, as they are before the training."""
    for name, part in network.named_parameters():
        if name.startswith("controlnet_") and "cond_embedding" not in name and part.ndim > 1:
            torch.nn.init.normal_(part, std=0.1)
    return network


IMAGE = torch.rand(1, 3, 32, 32, generator=seeded(8), dtype=D)
MASK = torch.zeros(1, 1, 32, 32, dtype=D)
MASK[..., 8:24, 4:28] = 1
SIZE = {"height": 32, "width": 32}
EDIT = {"image": IMAGE, "strength": 0.8}
FILL = {"image": IMAGE, "mask_image": MASK, "strength": 1.0} | SIZE
FLUX_EDIT = EDIT | SIZE

SEEN = {"control_image": IMAGE} | SIZE

#: Name: the family, which says how prompts are embedded; the pipeline; what it is called with; its further components.
FAMILIES = {
    "sd": (stable_diffusion, "StableDiffusionPipeline", {}),
    "sd img2img": (stable_diffusion, "StableDiffusionImg2ImgPipeline", EDIT),
    "sd inpaint": (stable_diffusion, "StableDiffusionInpaintPipeline", FILL),
    "sd inpaint, 9 channels": (stable_diffusion, "StableDiffusionInpaintPipeline", FILL, lambda: {"channels": 9}),
    "sd controlnet": (
        stable_diffusion,
        "StableDiffusionControlNetPipeline",
        {"image": IMAGE},
        lambda: {"controlnet": controlnet()},
    ),
    "sdxl": (stable_diffusion_xl, "StableDiffusionXLPipeline", SIZE),
    "sdxl img2img": (stable_diffusion_xl, "StableDiffusionXLImg2ImgPipeline", EDIT),
    "sdxl inpaint": (stable_diffusion_xl, "StableDiffusionXLInpaintPipeline", FILL),
    "sdxl controlnet": (
        stable_diffusion_xl,
        "StableDiffusionXLControlNetPipeline",
        {"image": IMAGE},
        lambda: {"controlnet": controlnet(**ADDITION)},
    ),
    "sd3": (stable_diffusion_3, "StableDiffusion3Pipeline", SIZE),
    "sd3 img2img": (stable_diffusion_3, "StableDiffusion3Img2ImgPipeline", FLUX_EDIT),
    "sd3 inpaint": (stable_diffusion_3, "StableDiffusion3InpaintPipeline", FILL),
    "sd3 controlnet": (
        stable_diffusion_3,
        "StableDiffusion3ControlNetPipeline",
        SEEN,
        lambda: {"controlnet": awake(diffusers.SD3ControlNetModel(**SD3, num_layers=1))},
    ),
    "flux": (flux, "FluxPipeline", SIZE),
    "flux, true guidance": (flux, "FluxPipeline", SIZE | {"true_cfg_scale": 3.0}),
    "flux img2img": (flux, "FluxImg2ImgPipeline", FLUX_EDIT),
    "flux inpaint": (flux, "FluxInpaintPipeline", FILL),
    "flux controlnet": (
        flux,
        "FluxControlNetPipeline",
        SEEN,
        lambda: {"controlnet": awake(diffusers.FluxControlNetModel(**FLUX, in_channels=16))},
    ),
    "pixart": (pixart, "PixArtSigmaPipeline", SIZE | {"use_resolution_binning": False}),
    "if": (deepfloyd, "IFPipeline", {}),
    "if img2img": (deepfloyd, "IFImg2ImgPipeline", EDIT),
    "if inpaint": (deepfloyd, "IFInpaintingPipeline", {"image": IMAGE, "mask_image": MASK, "strength": 0.8}),
}


def embedded(build, batch, options):
    """Prompts as the family's pipelines take them."""
    told, negative = drawn(1, 2, 7, 32)[:batch], drawn(2, 2, 7, 32)[:batch]
    if build is stable_diffusion_xl or build is stable_diffusion_3:
        width = 32 if build is stable_diffusion_xl else 64
        pooled, without = drawn(3, 2, width)[:batch], drawn(4, 2, width)[:batch]
        names = {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": without}
        return {"prompt_embeds": told, "negative_prompt_embeds": negative} | names
    if build is flux:
        found = {"prompt_embeds": told, "pooled_prompt_embeds": drawn(3, 2, 32)[:batch]}
        if "true_cfg_scale" not in options:
            return found
        return found | {"negative_prompt_embeds": negative, "negative_pooled_prompt_embeds": drawn(4, 2, 32)[:batch]}
    if build is pixart:
        masks = torch.ones(batch, 7, dtype=torch.long)
        found = {"prompt_embeds": told, "negative_prompt_embeds": negative, "negative_prompt": None}
        return found | {"prompt_attention_mask": masks, "negative_prompt_attention_mask": masks}
    if build is deepfloyd:
        return {"prompt_embeds": drawn(1, 2, 7, 24)[:batch], "negative_prompt_embeds": drawn(2, 2, 7, 24)[:batch]}
    return {"prompt_embeds": told, "negative_prompt_embeds": negative}


@pytest.fixture(scope="module")
def vgg():
    return random_network("vgg16")


@pytest.fixture(params=FAMILIES)
def family(request, tmp_path):
    """A pipeline in float64, and a function that draws with it."""
    build, name, options, *more = FAMILIES[request.param]
    pipe = build(name, **({"path": tmp_path} if build is deepfloyd else {}), **(more[0]() if more else {}))
    pipe.set_progress_bar_config(disable=True)
    pipe.to(D)

    def draw(*seeds, **changes):
        options_ = {"num_inference_steps": STEPS, "output_type": "pt", "generator": [seeded(seed) for seed in seeds]}
        options_ |= embedded(build, len(seeds), options) | options
        if len(seeds) > 1:
            options_ |= {key: value.expand(2, -1, -1, -1) for key, value in options.items() if torch.is_tensor(value)}
        return pipe(**options_ | changes).images

    return pipe, draw


def test_a_scale_lowers_the_loss_of_the_picture_and_leaves_nothing_behind(family, vgg, picture):
    pipe, draw = family
    style, plain = picture(40, 56), draw(3)
    with guided(pipe, style, features=vgg, style_scale=0.0) as trace:
        assert torch.equal(draw(3), plain) and trace == []
    with guided(pipe, style, features=vgg, style_scale=0.15) as trace:
        painted = draw(3)
    assert loss_of(painted, vgg, style) < loss_of(plain, vgg, style)
    assert trace and all(row["method"] == "noise" and "note" not in row for row in trace)
    with steering.guided(pipe, style, features=vgg, guidance=UNCOLOURED):
        assert loss_of(draw(3), vgg, style) < loss_of(plain, vgg, style)
    assert untouched(pipe) and torch.equal(draw(3), plain)


def test_a_batch_of_two_is_two_singles(family, vgg, picture):
    pipe, draw = family
    style = picture(40, 56)
    with guided(pipe, style, features=vgg, style_scale=0.1):
        both, first = draw(3, 4), draw(3)
    torch.testing.assert_close(both[:1], first, atol=1e-5, rtol=0)


def test_the_gradient_without_the_network(family, vgg, picture):
    pipe, draw = family
    style, plain = picture(40, 56), draw(3)
    with guided(pipe, style, features=vgg, style_scale=0.15, guidance=Guidance(method="clean")) as trace:
        painted = draw(3)
    assert trace and loss_of(painted, vgg, style) < loss_of(plain, vgg, style)


def test_a_palette_gives_every_picture_the_moments_of_the_painting(family, vgg, picture):
    pipe, draw = family
    if schedulers.clips(pipe.scheduler):  # which comes after the shift, and changes the moments again
        unclipped = {"clip_sample": False, "thresholding": False}
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **unclipped)
    last, options = [], {"features": vgg, "guidance": Guidance(1e-9, "clean", palette=1e9)}
    with steering.guided(pipe, picture(40, 56), on_step=last.append, **options):
        draw(3)
        first = last[-1].clean
        draw(4)
    second = last[-1].clean
    assert not torch.allclose(first, second, atol=1e-2)
    for one, other in zip(channel_moments(first), channel_moments(second), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def channel_moments(clean):
    """Of latents, or of Flux's tokens, which hold 2 x 2 of them."""
    if clean.ndim == 3:
        clean = clean.unflatten(2, (-1, 4)).permute(0, 2, 1, 3)
    return colour_moments(clean)
