"""Everything on another device than the CPU: ``pytest tests/test_devices.py --device cuda`` on a machine with a GPU.

Without one the device is that of `tests.devices`, which refuses to mix with the CPU as CUDA does.
"""

import dataclasses

import diffusers
import pytest
import torch

from ex4lib import colour, transfer
from ex4lib.diffusion import editing, schedulers
from ex4lib.diffusion.denoisers import Denoiser, Latents, Pixels
from ex4lib.diffusion.guidance import PRESETS, Guidance
from ex4lib.diffusion.sampling import finish, sample
from ex4lib.diffusion.steering import StyleObjective, guided
from ex4lib.statistics import STATISTICS, second_moment
from experiments import calibration, illusions, measures, metrics
from experiments.distillation import loop, rules
from experiments.illusions import Hybrid
from experiments.inpainting import inpaint
from experiments.judge import Judge
from tests.devices import waits
from tests.random_models import STABLE_DIFFUSION, random_network, save_judge
from tests.test_steering_families import autoencoder, stable_diffusion, unet

SIZE = 32


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(device, *shape, seed=0):
    return torch.rand(*shape, generator=seeded(seed)).to(device)


def right(tensor, device):
    """Whether a tensor is on the device and finite."""
    return tensor.device.type == device.type and bool(tensor.isfinite().all())


@pytest.fixture
def vgg(device):
    return random_network("vgg16").float().to(device)


@pytest.fixture
def painting():
    """A picture on the CPU, where pictures come from."""
    return torch.rand(1, 3, 40, 48, generator=seeded(5))


def ddim():
    return diffusers.DDIMScheduler(**STABLE_DIFFUSION, clip_sample=False, steps_offset=1)


def pixel_unet(device):
    torch.manual_seed(1)
    network = diffusers.UNet2DModel(
        sample_size=16, block_out_channels=(16, 32), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), layers_per_block=1, norm_num_groups=8, attention_head_dim=8,
    )  # fmt: skip
    return network.eval().to(device)


def denoiser(device, count=1, seed=0):
    """A latent U-Net with prompts of its own."""
    space = Latents(autoencoder(scaling_factor=0.5).eval().to(device))
    text, negative = drawn(device, count, 7, 32, seed=seed), drawn(device, count, 7, 32, seed=seed + 1)
    network = unet().eval().to(device)
    return Denoiser(network, space, embeddings=text, negative=negative, guidance_scale=3.0)


def test_the_device_refuses_to_mix(device):
    with pytest.raises(RuntimeError):
        torch.ones(3, device=device) + torch.ones(3)


@pytest.mark.parametrize("loss", STATISTICS)
def test_transfer(device, vgg, painting, loss):
    recipe = transfer.Recipe(
        content_layers=("relu2_2",), style_layers=("relu1_1", "relu2_1"), layer_weights=(1, 2), style_loss=loss
    )
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., :16] = 1
    options = {"recipe": recipe, "size": SIZE, "evaluations": 3, "keep_colour": "luminance"}
    styles = [painting, painting.flip(1)]
    steps = list(
        transfer.stylize_steps(vgg, drawn("cpu", 1, 3, SIZE, SIZE), styles, regions=[mask, 1 - mask], **options)
    )
    assert all(right(step.image, device) and right(step.loss, device) for step in steps)
    found = transfer.stylize(vgg, painting, painting, start="statistics", generator=seeded(), **options)
    assert right(found.image, device) and found.evaluations == 3


@pytest.mark.parametrize("precision", (torch.bfloat16, torch.float16))
def test_half_precision(device, painting, precision):
    """Products of half precisions are added in float32, whatever the hardware multiplies."""
    features = drawn(device, 2, 24, 40, 33).to(precision).requires_grad_()
    moment, exact = second_moment(features), second_moment(features.double())
    assert moment.dtype == torch.float32
    torch.testing.assert_close(moment, exact.float(), rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(moment.square().sum(), features)
    (expected,) = torch.autograd.grad(exact.square().sum(), features)
    torch.testing.assert_close(gradient.float(), expected.float(), rtol=0.03, atol=0)
    network = random_network("vgg16").float()
    network.convolutions.to(precision)
    network = network.to(device)
    recipe = transfer.Recipe(content_layers=("relu2_2",), style_layers=("relu1_1", "relu2_1"), layer_weights=None)
    found = transfer.stylize(network, painting, painting.flip(1), recipe=recipe, size=SIZE, evaluations=3)
    assert right(found.image, device)


def test_texture_inversion_and_calibration(device, vgg, painting):
    texture = transfer.synthesize(vgg, painting, ["relu1_1", "relu2_1"], size=SIZE, evaluations=3, optimiser="adam")
    inverted = transfer.invert(vgg, painting, "relu2_1", evaluations=3, tv_weight=0.1)
    assert right(texture.image, device) and right(inverted.image, device)
    objective = transfer.Recipe(content_layers=("relu2_1",), style_layers=("relu1_1",), layer_weights=None).objective(
        vgg, painting.to(device), [painting.to(device)]
    )
    calibrated = calibration.calibrate(objective, painting.to(device), generator=seeded())
    assert right(calibrated(painting.to(device)), device)


def test_colours(device, painting):
    far = painting.to(device)
    assert right(colour.match_colour(far, painting), device)
    assert right(colour.with_luminance(far, colour.luminance(far)), device)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name not in ("algorithm-1", "freedom")])
def test_guided_stable_diffusion(device, vgg, painting, preset):
    pipe, steps = stable_diffusion("StableDiffusionPipeline"), []
    for part in (pipe.unet, pipe.vae):
        part.eval().to(device)
    pipe.set_progress_bar_config(disable=True)
    prompt = {"prompt_embeds": drawn(device, 2, 7, 32), "negative_prompt_embeds": drawn(device, 2, 7, 32, seed=1)}
    options = {"num_inference_steps": 3, "output_type": "pt", "generator": seeded()}
    style = {"features": vgg, "guidance": preset, "window": (0, 1), "measure": True, "on_step": steps.append}
    with guided(pipe, [painting, painting.flip(1)], style_each=True, **style) as trace:
        images = pipe(**prompt, **options).images
    chosen = dataclasses.replace(PRESETS[preset], window=(0, 1))
    assert right(images, device) and len(trace) == sum(chosen.strength(i, 3) > 0 for i in range(3))
    assert all(right(step.image, device) for step in steps)
    assert all(row["skipped"] == 0 and row["gradient_norm"][0] > 0 for row in trace)


def test_guided_ddpm(device, vgg, painting):
    pipe = diffusers.DDPMPipeline(pixel_unet(device), diffusers.DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    options = {"features": vgg, "checkpointing": True}
    with guided(pipe, [painting, painting], regions=[mask, 1 - mask], guidance="full", **options) as trace:
        images = pipe(num_inference_steps=3, output_type="np", generator=seeded()).images
    assert torch.as_tensor(images).isfinite().all() and all(row["skipped"] == 0 for row in trace)


@pytest.mark.parametrize("name", ("DDPMScheduler", *schedulers.EXPLODING, "DPMSolverMultistepScheduler"))
def test_the_loop_with_each_kind_of_scheduler(device, vgg, painting, name):
    if name == "LMSDiscreteScheduler":
        pytest.importorskip("scipy")
    scheduler, network = schedulers.named(name, ddim()), denoiser(device)
    objective = StyleObjective(vgg, [painting], (SIZE, SIZE))
    x = drawn(device, 1, 4, 16, 16) * scheduler.init_noise_sigma
    options = {"objective": objective, "guidance": Guidance(0.1), "generator": seeded(), "measure": True}
    last, trace = finish(sample(network, scheduler, x, steps=4, **options))
    assert right(last.image, device) and right(last.sample, device) and trace[0]["seconds"] > 0


@pytest.mark.parametrize("preset", ("algorithm-1", "freedom"))
def test_presets_of_the_loop(device, vgg, painting, preset):
    objective, network = StyleObjective(vgg, [painting], (SIZE, SIZE)), denoiser(device)
    x = drawn(device, 1, 4, 16, 16)
    options = {"objective": objective, "guidance": PRESETS[preset], "generator": seeded(), "eta": 1.0}
    last, trace = finish(sample(network, ddim(), x, steps=5, **options))
    assert right(last.image, device) and trace


def test_editing(device, vgg, painting):
    scheduler, image = ddim(), torch.rand(1, 3, SIZE, SIZE, generator=seeded(2))
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., 8:24, 8:24] = 1
    objective = StyleObjective(vgg, [painting], (SIZE, SIZE))
    style = {"objective": objective, "guidance": Guidance(0.1), "generator": seeded()}
    for network in (denoiser(device), Denoiser(pixel_unet(device), Pixels())):
        edited, _ = finish(editing.edit(network, scheduler, image, start=2, steps=5, **style))
        filled, _ = finish(inpaint(network, scheduler, image, mask, steps=4, repeats=2, **style))
        assert right(edited.image, device) and right(filled.image, device)
        outside = (mask == 0).expand(1, 3, -1, -1)
        assert torch.equal(filled.image.cpu()[outside], image[outside])


def test_illusions(device):
    first, second = denoiser(device, seed=1), denoiser(device, seed=2)
    x = drawn(device, 1, 4, 16, 16)
    for view in (illusions.FLIP, illusions.ROTATION, illusions.NEGATION, illusions.INNER_CIRCLE, illusions.patches(4)):
        anagram = illusions.Anagram([first, second], [illusions.IDENTITY, view])
        assert right(finish(sample(anagram, ddim(), x, steps=2))[0].sample, device)
    assert right(finish(sample(Hybrid(first, second), ddim(), x, steps=2))[0].sample, device)


@pytest.mark.parametrize("name", ("SDS", "DDS", "PDS", "VSD"))
def test_distillation(device, vgg, painting, name):
    target, source = denoiser(device, seed=1), denoiser(device, seed=2)
    clean = torch.rand(1, 4, 16, 16, generator=seeded(3))
    parts = [source, clean] if name in ("DDS", "PDS") else []
    rule = getattr(rules, name)(target, *parts, ddim())
    canvas = loop.Canvas(clean).to(device)
    options = {"objective": StyleObjective(vgg, [painting], (SIZE, SIZE)), "generator": seeded(), "warm_up": 0}
    for step in loop.distil(rule, canvas, target.space, steps=12, **options):
        assert right(step.clean, device) and step.loss.device.type == device.type
    assert right(step.image, device) and step.gradient_rms > 0


def test_metrics(device, vgg, painting):
    picture = drawn(device, 2, 3, 40, 48)
    distances = metrics.style_distances(picture, [painting, painting.flip(1)], vgg)
    measures.specificity(distances, torch.tensor([0, 1], device=device))
    measures.anchors(painting, [painting.flip(1)], vgg, unguided=picture)
    numbers = [
        metrics.style_distance(vgg, picture, painting),
        metrics.texture_distance(vgg, picture, painting),
        metrics.colour_distance(picture, painting),
        metrics.content_error(vgg, picture[:1], painting),
        metrics.psnr(picture[:1], painting),
        measures.kernel_distance(picture.flatten(1), picture.flatten(1)),
    ]
    assert distances.isfinite().all() and torch.tensor(numbers).isfinite().all()


def test_judge(device, tmp_path, painting):
    judge = Judge(save_judge(tmp_path / "judge"), device)
    assert right(judge.image_features(painting), device)
    assert judge.scores(drawn(device, 2, 3, 40, 48), ["a cat", "a dog"]).isfinite().all()
    assert judge.agrees(painting, "a cat", ["a dog"]).device.type == "cpu"


def stock(device, scheduler):
    """A pipeline of Stable Diffusion on the device, and prompts of two pictures."""
    pipe = stable_diffusion("StableDiffusionPipeline")
    pipe.scheduler = schedulers.named(scheduler, ddim())
    for part in (pipe.unet, pipe.vae):
        part.eval().to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe, {"prompt_embeds": drawn(device, 2, 7, 32), "negative_prompt_embeds": drawn(device, 2, 7, 32, seed=1)}


@pytest.mark.parametrize("scheduler", ("DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"))
@pytest.mark.parametrize("preset", ("full", Guidance(method="clean"), "mpgd"))
def test_a_guided_step_does_not_wait_for_the_device(device, vgg, painting, scheduler, preset):
    """What a picture waits for does not grow with its steps, and the trace is read when it is asked for."""
    pipe, prompt = stock(device, scheduler)
    counts, options = {}, {"features": vgg, "guidance": preset, "window": (0, 1), "measure": True}
    with guided(pipe, [painting, painting.flip(1)], style_scale=[0.1, 0.2], **options) as trace:
        for steps in (2, 4, 7):
            with waits(device) as counts[steps]:
                pipe(**prompt, num_inference_steps=steps, output_type="latent")
        with waits(device) as reading:
            assert trace[-1]["gradient_norm"][0] > 0
    assert sorted(counts[4]) == sorted(counts[7]), counts
    assert reading


def test_the_loops_wait_at_every_tenth_step_only(device, vgg, painting):
    """The library's own loops, with noise from the device's own generator."""
    objective, network, x = StyleObjective(vgg, [painting], (SIZE, SIZE)), denoiser(device), drawn(device, 1, 4, 16, 16)
    euler = schedulers.named("EulerDiscreteScheduler", ddim())

    def sampled(steps):
        list(sample(network, euler, x * 10, steps=steps, objective=objective, guidance=Guidance(0.1), measure=True))

    def distilled(steps):
        rule = rules.VSD(network, ddim())
        list(loop.distil(rule, loop.Canvas(x), network.space, steps=steps, objective=objective))

    for passes in (sampled, distilled):
        counts = []
        for steps in (3, 6, 12):
            with waits(device) as places:
                passes(steps)
            counts.append(len(places))
        assert counts[1] == counts[0] and counts[2] == counts[0] + 1, (passes.__name__, places)
