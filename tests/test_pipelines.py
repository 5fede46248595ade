"""The pipelines against diffusers' own, on folders of random weights."""

import dataclasses
import inspect

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    DDPMPipeline,
    StableDiffusionPipeline,
    UNet2DModel,
)

from ex4lib.diffusion import sampling, schedulers
from ex4lib.diffusion.denoisers import Denoiser, Latents, Pixels, frozen
from ex4lib.diffusion.guidance import FREEDOM, Guidance
from ex4lib.diffusion.pipelines import (
    StyleGuidedDDPMPipeline,
    StyleGuidedStableDiffusionPipeline,
    StyleObjective,
)
from tests.random_models import STABLE_DIFFUSION, random_network, save_stable_diffusion

SCHEDULERS = schedulers.SUPPORTED
SIZE = 32


def scheduler_of(name, **options):
    options |= {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    options |= {"steps_offset": 1} if name in ("PNDMScheduler", "DDIMScheduler") else {}
    options |= {"clip_sample": False} if name in ("DDIMScheduler", "DDPMScheduler") else {}
    return getattr(diffusers, name)(**STABLE_DIFFUSION, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_stable_diffusion(tmp_path_factory.mktemp("sd"), SIZE)


@pytest.fixture(scope="module")
def stock(folder):
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe(folder):
    pipe = StyleGuidedStableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def double_pipe(folder):
    """In float64, because random networks amplify the rounding of other batch sizes."""
    pipe = StyleGuidedStableDiffusionPipeline.from_pretrained(folder).to(torch.float64)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def faces():
    torch.manual_seed(1)
    unet = UNet2DModel(
        sample_size=16, block_out_channels=(16, 32), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), layers_per_block=1, norm_num_groups=8, attention_head_dim=8,
    )  # fmt: skip
    pipe = StyleGuidedDDPMPipeline(unet, diffusers.DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def vgg():
    """Narrow, random, in float32."""
    return random_network("vgg16").float()


@pytest.fixture
def style(picture):
    return picture(40, 56, dtype=torch.float32)


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_scale_0_is_stable_diffusion_bit_by_bit(name, guidance_scale, stock, pipe, style, vgg):
    stock.scheduler, pipe.scheduler = scheduler_of(name), scheduler_of(name)
    shared = {"prompt": ["a cat", "a castle"], "num_inference_steps": 4, "guidance_scale": guidance_scale,
              "output_type": "np", "negative_prompt": ["a dog", ""]}  # fmt: skip
    expected = stock(**shared, generator=seeded()).images
    for extra in ({}, {"style_image": style, "style_scale": 0.0}, {"style_image": style, "features": vgg,
                  "guidance": Guidance(window=(0.3, 0.3))}):  # fmt: skip
        found = pipe(**shared, generator=seeded(), **extra)
        assert np.array_equal(expected, found.images)
        assert found.trace == []


def test_the_other_arguments_reach_the_sampler_as_in_the_stock_pipeline(stock, pipe):
    stock.scheduler, pipe.scheduler = scheduler_of("DDIMScheduler"), scheduler_of("DDIMScheduler")
    latents = torch.randn(2, 4, 16, 16, generator=seeded())

    def shorten(pipeline, index, timestep, tensors):
        return {"latents": 0.9 * tensors["latents"]}

    shared = {"prompt": "a cat", "num_images_per_prompt": 2, "latents": latents, "eta": 0.7, "num_inference_steps": 3,
              "callback_on_step_end": shorten, "output_type": "latent"}  # fmt: skip
    assert torch.equal(stock(**shared, generator=seeded()).images, pipe(**shared, generator=seeded()).images)


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_scale_0_is_ddpm_bit_by_bit(name, faces, style):
    faces.scheduler = getattr(diffusers, name)()
    stock = DDPMPipeline(faces.unet, faces.scheduler)
    stock.set_progress_bar_config(disable=True)
    expected = stock(2, generator=seeded(), num_inference_steps=5, output_type="np").images
    found = faces(2, generator=seeded(), num_inference_steps=5, output_type="np", style_image=style, style_scale=0)
    assert np.array_equal(expected, found.images)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_guidance_changes_the_picture_and_is_reproducible_with_every_scheduler(name, pipe, style, vgg):
    pipe.scheduler = scheduler_of(name)
    call = {"prompt": "a cat", "num_inference_steps": 3, "output_type": "pt", "features": vgg}
    plain = pipe(**call, generator=seeded()).images
    first, second = (
        pipe(**call, generator=seeded(), style_image=style, guidance=Guidance(0.3), measure=True) for _ in "12"
    )
    assert torch.equal(first.images, second.images)
    assert (first.images - plain).abs().mean() > 1e-3
    assert len(first.trace) == len(pipe.scheduler.timesteps)
    for row in first.trace:
        assert row["skipped"] == 0 and row["seconds"] > 0
        assert all(x > 0 for x in row["loss"] + row["gradient_norm"] + row["movement"] + row["loss_after"])


@pytest.mark.parametrize(
    "guidance", [Guidance(), Guidance(method="both", inner=2), Guidance(method="clean"), Guidance(method="noisy")]
)
def test_a_batch_is_its_single_pictures(guidance, double_pipe, style):
    latents = torch.randn(3, 4, 16, 16, generator=seeded(), dtype=torch.float64)
    prompts = ["a cat", "a castle", "a boat"]
    call = {"num_inference_steps": 3, "output_type": "pt", "features": random_network("vgg16"),
            "style_image": style.double(), "guidance": guidance}  # fmt: skip
    batch = double_pipe(prompts, latents=latents, style_scale=(0.1, 0.2, 0.3), **call).images
    for i, prompt in enumerate(prompts):
        single = double_pipe(prompt, latents=latents[i : i + 1], style_scale=(0.1, 0.2, 0.3)[i], **call).images
        torch.testing.assert_close(batch[i : i + 1], single, atol=1e-5, rtol=0)


def test_each_picture_of_a_batch_can_have_its_own_style(double_pipe, picture):
    latents = torch.randn(2, 4, 16, 16, generator=seeded(), dtype=torch.float64)
    styles = [picture(40, 40) for _ in "12"]
    call = {"num_inference_steps": 3, "output_type": "pt", "features": random_network("vgg16")}
    both = double_pipe(["a cat"] * 2, latents=latents, style_image=styles, style_each=True, **call).images
    for i in range(2):
        single = double_pipe("a cat", latents=latents[i : i + 1], style_image=styles[i], **call).images
        torch.testing.assert_close(both[i : i + 1], single, atol=1e-5, rtol=0)


def test_masks_and_blends(vgg, picture):
    styles = [picture(40, 40, dtype=torch.float32) for _ in "12"]
    image = picture(SIZE, SIZE, dtype=torch.float32)
    alone = StyleObjective(vgg, styles[:1], (SIZE, SIZE))
    torch.testing.assert_close(alone(image), StyleObjective(vgg, styles, (SIZE, SIZE), style_weights=[1, 0])(image))
    left = torch.zeros(1, 1, SIZE, SIZE)
    left[..., : SIZE // 2] = 1
    regions = StyleObjective(vgg, styles, (SIZE, SIZE), regions=[left, 1 - left])
    leaf = image.clone().requires_grad_()
    parts = regions.objective.terms(torch.nn.functional.interpolate(leaf, regions.size))
    first = sum(value for name, value in parts.items() if name.endswith("/0")).sum()
    (gradient,) = torch.autograd.grad(first, leaf)
    assert gradient[..., : SIZE // 2].abs().mean() > 5 * gradient[..., -SIZE // 4 :].abs().mean()


def test_the_style_itself_has_no_loss_and_small_pictures_are_enlarged(vgg, picture):
    style = picture(128, 96, dtype=torch.float32)
    assert StyleObjective(vgg, [style], (128, 96))(style).item() < 1e-10
    small = StyleObjective(vgg, [style], (16, 16))
    assert small.size == (128, 128)
    image = picture(16, 16, batch=2, dtype=torch.float32)
    assert small(image).shape == (2,)
    unit = small(torch.zeros(1, 3, 16, 16))
    assert 0.1 < unit.item() < 10  # relative: of order one for an empty picture


def test_recurrence_is_of_the_librarys_own_loop(pipe, style, vgg):
    pipe.scheduler = scheduler_of("DDIMScheduler")
    call = {"prompt": "a cat", "num_inference_steps": 3, "features": vgg, "style_image": style}
    for guidance in ("freedom", Guidance(recurrence=3), Guidance(clipping="first")):
        with pytest.raises(ValueError, match="recurrence and clipping are of the library's own loop"):
            pipe(**call, guidance=guidance)
    denoiser = pipe.denoiser("a cat", guidance_scale=4.0)
    options = {"steps": 10, "objective": StyleObjective(vgg, [style], (SIZE, SIZE))}
    once, thrice = (
        sampling.finish(
            sampling.sample(
                denoiser, pipe.scheduler, torch.randn(1, 4, 16, 16, generator=seeded()),
                guidance=dataclasses.replace(FREEDOM, recurrence=times), generator=seeded(), **options,
            )
        )[0].sample
        for times in (1, 3)
    )  # fmt: skip
    assert thrice.isfinite().all() and not torch.equal(once, thrice)
    with pytest.raises(ValueError, match="repeating steps needs a scheduler without memory, but UniPC"):
        sampling.sample(denoiser, scheduler_of("UniPCMultistepScheduler"), once, guidance=FREEDOM, **options)


@pytest.mark.parametrize("preset", ["full", "cheap", "mpgd", "algorithm-1"])
def test_every_preset_runs_where_it_belongs(preset, pipe, style, vgg):
    pipe.scheduler = scheduler_of("DDPMScheduler")
    found = pipe("a cat", num_inference_steps=10, output_type="pt", features=vgg, style_image=style, guidance=preset)
    assert found.images.isfinite().all() and found.trace


def test_the_final_picture_is_the_full_autoencoders(pipe, style, vgg):
    pipe.scheduler = scheduler_of("DDIMScheduler")
    torch.manual_seed(5)
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=4,
    ).eval()  # fmt: skip
    call = {"prompt": "a cat", "num_inference_steps": 3, "features": vgg, "style_image": style, "decoder": tiny}
    latents = pipe(**call, generator=seeded(), output_type="latent").images
    pictures = pipe(**call, generator=seeded(), output_type="pt").images
    torch.testing.assert_close(pictures, Latents(pipe.vae).render(latents))


def test_a_learned_variance_is_split_off_and_kept(style, vgg, generator):
    torch.manual_seed(2)
    unet = UNet2DModel(
        sample_size=16, out_channels=6, block_out_channels=(16, 32), down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2, layers_per_block=1, norm_num_groups=8,
    )  # fmt: skip
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False)
    x = torch.randn(2, 3, 16, 16, generator=generator)
    output = Denoiser(unet, Pixels())(x, 10)
    assert output.prediction.shape == output.variance.shape == x.shape
    objective = StyleObjective(vgg, [style], (16, 16))
    for method in ("noise", "mean"):
        steps = sampling.sample(
            Denoiser(unet, Pixels()), scheduler, x, steps=4, objective=objective,
            guidance=Guidance(scale=1.0, method=method, unit="raw"), generator=generator,
        )  # fmt: skip
        assert sampling.finish(steps)[0].sample.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_guidance_in_float32(dtype, folder, style, vgg):
    pipe = StyleGuidedStableDiffusionPipeline.from_pretrained(folder).to(dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    full = StyleGuidedStableDiffusionPipeline.from_pretrained(folder)
    full.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 4, 16, 16, generator=seeded())
    call = {"prompt": "a cat", "num_inference_steps": 2, "features": vgg, "style_image": style, "output_type": "pt"}
    half, whole = (each(latents=latents.to(each.unet.dtype), **call) for each in (pipe, full))
    assert half.images.isfinite().all() and all(row["skipped"] == 0 for row in half.trace)
    assert half.trace[0]["loss"][0] == pytest.approx(whole.trace[0]["loss"][0], rel=0.1)
    assert half.trace[0]["gradient_norm"][0] == pytest.approx(whole.trace[0]["gradient_norm"][0], rel=0.3)
    assert pipe.vae.dtype == dtype


def test_checkpointing_changes_memory_but_not_the_picture_and_is_undone(pipe, style, vgg):
    pipe.scheduler = scheduler_of("DDIMScheduler")
    call = {"prompt": "a cat", "num_inference_steps": 2, "output_type": "pt", "features": vgg, "style_image": style}
    plain = pipe(**call, generator=seeded()).images
    saving = pipe(**call, generator=seeded(), checkpointing=True).images
    torch.testing.assert_close(plain, saving, atol=1e-5, rtol=0)
    assert not pipe.unet.is_gradient_checkpointing and not pipe.vae.is_gradient_checkpointing


def test_weights_take_no_gradient_inside_and_are_left_as_they_were(pipe):
    first = next(pipe.unet.parameters())
    first.requires_grad_(True)
    with pytest.raises(RuntimeError), frozen(pipe.unet, pipe.vae):
        assert not any(p.requires_grad for p in (*pipe.unet.parameters(), *pipe.vae.parameters()))
        raise RuntimeError
    assert all(p.requires_grad for p in pipe.unet.parameters())
    assert all(p.grad is None for p in pipe.unet.parameters())


def test_an_abandoned_loop_leaves_the_pipeline_as_it_was(pipe, style, vgg):
    scheduler = scheduler_of("UniPCMultistepScheduler")
    denoiser = Denoiser(pipe.unet, Latents(pipe.vae), embeddings=torch.randn(1, 5, 32), guidance_scale=1.0)
    before = [p.requires_grad for p in pipe.unet.parameters()]
    steps = sampling.sample(
        denoiser, scheduler, torch.randn(1, 4, 16, 16), steps=5,
        objective=StyleObjective(vgg, [style], (SIZE, SIZE)), guidance=Guidance(),
    )  # fmt: skip
    step = next(steps)
    assert step.image.shape == step.sample_image.shape == (1, 3, SIZE, SIZE)
    del steps
    assert [p.requires_grad for p in pipe.unet.parameters()] == before
    assert scheduler.num_inference_steps is None


def test_from_pipe_shares_the_weights(stock):
    shared = StyleGuidedStableDiffusionPipeline.from_pipe(stock)
    assert shared.unet is stock.unet


def test_wrong_input_is_refused_before_the_first_step(pipe, style, vgg, monkeypatch):
    pipe.scheduler = scheduler_of("DDIMScheduler")
    monkeypatch.setattr(type(pipe.unet), "forward", lambda *_, **__: pytest.fail("a step was made"))
    cases = [
        ({"style_scale": -0.5}, "style_scale must be a finite number from 0 to 1000, got -0.5"),
        ({"style_image": None, "style_scale": 0.5}, "there is no style_image"),
        ({"style_image": torch.rand(1, 3, 4, 4), "style_layers": ("relu5_1",)}, "at least 16 x 16 pixels"),
        ({"style_loss": "gran"}, "style_loss must be gram"),
        ({"style_layers": ("relu9_9",)}, "no layer 'relu9_9'"),
        ({"guidance": "fredom"}, "guidance must be a Guidance or one of default, in-pixels, full"),
        ({"window": (0.8, 0.2)}, "window must be fractions"),
        ({"regions": [torch.ones(1, 1, 32, 32)] * 2}, "regions must be one per style: 1 styles, 2 masks"),
        ({"regions": [torch.zeros(1, 1, 32, 32)]}, "region is empty"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            pipe(**{"prompt": "a cat", "features": vgg, "style_image": style} | arguments)
    pipe.scheduler = diffusers.TCDScheduler()
    with pytest.raises(ValueError, match="the scheduler must be one of DDPMScheduler"):
        pipe("a cat", style_image=style, features=vgg)


def test_what_does_not_fit_the_call_is_refused_before_the_network_runs(pipe, style, vgg, monkeypatch):
    pipe.scheduler = scheduler_of("DDIMScheduler")
    monkeypatch.setattr(type(pipe.unet), "forward", lambda *_, **__: pytest.fail("the network ran"))
    cases = [
        ({"style_scale": (0.1, 0.2)}, "one number or one per image, 1 here, got 2"),
        ({"style_each": True, "style_image": [style, style]}, "2 styles, one for each picture, but 1 pictures"),
        ({"guidance": Guidance(unit="correction"), "guidance_scale": 1.0}, "needs a prompt and a guidance_scale"),
        ({"guidance": "algorithm-1"}, "0 for DDIM at eta 0"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            pipe(**{"prompt": "a cat", "features": vgg, "style_image": style} | arguments)
        assert "step" not in vars(pipe.scheduler)


def test_a_saved_pipeline_names_the_stock_class(pipe, faces, tmp_path):
    for ours, stock in ((pipe, StableDiffusionPipeline), (faces, DDPMPipeline)):
        ours.save_pretrained(tmp_path / stock.__name__)
        assert type(diffusers.DiffusionPipeline.from_pretrained(tmp_path / stock.__name__)) is stock


def test_the_signature_is_the_stock_pipelines_with_the_style_arguments():
    for ours, stock in (
        (StyleGuidedStableDiffusionPipeline, StableDiffusionPipeline), (StyleGuidedDDPMPipeline, DDPMPipeline)
    ):  # fmt: skip
        found, expected = (dict(inspect.signature(cls.__call__).parameters) for cls in (ours, stock))
        assert {name: item for name, item in found.items() if name in expected} == expected
        assert set(found) - set(expected) >= {"style_image", "style_scale", "guidance", "regions", "decoder"}


def test_several_negative_prompts(pipe):
    both = pipe.denoiser(["a cat", "a dog"], negative_prompt=["a boat", ""])
    single = pipe.denoiser("a dog", negative_prompt="")
    torch.testing.assert_close(both.negative[1:], single.negative)
    assert not torch.allclose(both.negative[0], both.negative[1])
    with pytest.raises(ValueError, match="negative_prompt must be one or one per prompt, got 3 for 2"):
        pipe.denoiser(["a cat", "a dog"], negative_prompt=["a", "b", "c"])


@pytest.mark.parametrize(
    ("layers", "names"), [("relu2_1", ["relu2_1"]), (1, ["relu1_1"]), ("0, 1", ["conv1_1", "relu1_1"])]
)
def test_an_objective_takes_layers_as_the_network_does(layers, names, vgg, style):
    image = torch.rand(1, 3, SIZE, SIZE, generator=seeded())
    found, expected = (StyleObjective(vgg, [style], (SIZE, SIZE), layers=given)(image) for given in (layers, names))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"regions": [1], "guidance": "x"}, "regions, guidance"),
        ({"style_scale": np.array([0.0, 0.5])}, "style_scale"),
        ({"window": (0.0, 0.5), "style_loss": "gram"}, "style_loss, window"),
        ({"on_step": print, "style_scale": 0}, "style_scale, on_step"),
    ],
)
def test_arguments_of_a_style_need_a_style_image(given, names, pipe):
    with pytest.raises(ValueError, match=f"^{names} cannot be used: there is no style_image"):
        pipe("a cat", num_inference_steps=1, **given)


def test_a_scale_of_0_needs_no_style_image(pipe):
    pipe.scheduler = scheduler_of("DDIMScheduler")
    for zero in (0, 0.0, np.array([0.0, 0.0]), [0, 0]):
        assert pipe("a cat", num_inference_steps=1, num_images_per_prompt=2, style_scale=zero).trace == []
