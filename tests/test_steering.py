"""`guided` around stock pipelines of random weights: bit-identical without a scale, nearer to the style with one."""

import dataclasses
import functools
import threading

import diffusers
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, StableDiffusionPipeline
from torch import nn

from ex4lib.diffusion import schedulers, steering
from ex4lib.diffusion.denoisers import Denoiser, Latents
from ex4lib.diffusion.guidance import DEFAULT, Guidance
from ex4lib.diffusion.sampling import finish, sample
from ex4lib.diffusion.steering import StyleObjective
from tests.random_models import random_network, save_stable_diffusion

STEPS = 4
#: Through the network and at every step, unless a test says otherwise.
guided = functools.partial(steering.guided, guidance="full")
#: The default without its palette: latents of a random encoder say nothing to a random decoder.
UNCOLOURED = dataclasses.replace(DEFAULT, palette=0.0)


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def quiet(pipe, dtype=torch.float64):
    """In float64, because random networks amplify the rounding of other batch sizes."""
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(dtype)


@pytest.fixture(scope="module")
def stable(tmp_path_factory):
    return quiet(StableDiffusionPipeline.from_pretrained(save_stable_diffusion(tmp_path_factory.mktemp("sd"))))


@pytest.fixture(scope="module")
def vgg():
    return random_network("vgg16")


@pytest.fixture
def style(picture):
    return picture(40, 56)


def call(pipe, **changes):
    options = {"num_inference_steps": STEPS, "generator": seeded(), "output_type": "pt"}
    return pipe(**{"prompt": "a cat", "guidance_scale": 4.0} | options | changes).images


def loss_of(image, vgg, style):
    return StyleObjective(vgg, [style], tuple(image.shape[-2:]))(image)


def untouched(pipe):
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    return "step" not in vars(pipe.scheduler) and "_compiled_call_impl" not in vars(network)


def test_the_default_begins_late_and_takes_no_gradient_of_the_network(stable, vgg, style):
    plain = call(stable)
    with steering.guided(stable, style, features=vgg, guidance=UNCOLOURED) as trace:
        painted = call(stable)
    start, _ = DEFAULT.window
    assert [row["index"] for row in trace] == [i for i in range(STEPS) if i >= start * STEPS]
    assert {row["method"] for row in trace} == {"clean"}
    assert loss_of(painted, vgg, style) < loss_of(plain, vgg, style)
    with steering.guided(stable, style, features=vgg, style_scale=1e-7):
        assert (call(stable) - plain).square().mean().sqrt() <= 1e-3
    with steering.guided(stable, style, features=vgg) as trace:
        assert not torch.equal(call(stable), painted) and len(trace)
    assert untouched(stable) and torch.equal(call(stable), plain)


def test_it_lowers_the_style_loss_and_leaves_nothing_behind(stable, vgg, style):
    before = [parameter.requires_grad for parameter in stable.unet.parameters()]
    plain = call(stable)
    with guided(stable, style, features=vgg, style_scale=0.2) as trace:
        painted = call(stable)
        assert not any(parameter.requires_grad for parameter in stable.unet.parameters())
    assert len(trace) == STEPS and all(row["method"] == "noise" and "note" not in row for row in trace)
    assert loss_of(painted, vgg, style) < loss_of(plain, vgg, style)
    assert untouched(stable) and torch.equal(call(stable), plain)
    assert [parameter.requires_grad for parameter in stable.unet.parameters()] == before


@pytest.mark.parametrize("name", schedulers.SUPPORTED)
@pytest.mark.parametrize("method", ["noise", "clean"])
def test_a_tiny_scale_tends_to_the_stock_picture_with_every_scheduler(name, method, stable, vgg, style):
    options = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    original, stable.scheduler = (
        stable.scheduler,
        getattr(diffusers, name).from_config(stable.scheduler.config, **options),
    )
    try:
        plain = call(stable)
        for scale, bound in ((0.0, 0.0), (1e-7, 1e-3)):
            with guided(stable, style, features=vgg, style_scale=scale, guidance=Guidance(method=method)):
                assert (call(stable) - plain).square().mean().sqrt() <= bound
    finally:
        stable.scheduler = original


@pytest.mark.parametrize("pipeline", [DDPMPipeline, DDIMPipeline])
@pytest.mark.parametrize("scheduler", [diffusers.DDPMScheduler, diffusers.DDIMScheduler])
def test_pixels_with_clipping(pipeline, scheduler, vgg, style, tmp_path):
    from tests.random_models import save_ddpm

    pipe = quiet(DDPMPipeline.from_pretrained(save_ddpm(tmp_path)))
    pipe = pipeline(pipe.unet, scheduler())
    pipe.set_progress_bar_config(disable=True)

    def draw():
        return torch.from_numpy(pipe(2, num_inference_steps=5, generator=seeded(), output_type="np").images)

    plain = draw()
    with guided(pipe, style, features=vgg, style_scale=1e-7):
        assert (draw() - plain).square().mean().sqrt() < 1e-3
    with guided(pipe, style, features=vgg, style_scale=0.3) as trace:
        painted = draw()
    assert trace and (painted - plain).abs().mean() > 1e-3
    losses = [loss_of(images.permute(0, 3, 1, 2), vgg, style) for images in (painted, plain)]
    assert losses[0].sum() < losses[1].sum() and untouched(pipe)


def test_errors_inside_undo_it_and_nesting_is_refused(stable, vgg, style):
    with pytest.raises(KeyError), guided(stable, style, features=vgg):
        raise KeyError
    assert untouched(stable)
    with guided(stable, style, features=vgg):
        call(stable)
        with pytest.raises(ValueError, match="already guided"), guided(stable, style, features=vgg):
            pass
        call(stable)
    assert untouched(stable)


def test_a_replaced_scheduler_is_noticed(stable, vgg, style):
    original = stable.scheduler
    try:
        with pytest.raises(RuntimeError, match="no step of the scheduler was seen"):  # noqa: SIM117
            with guided(stable, style, features=vgg):
                stable.scheduler = diffusers.DDIMScheduler.from_config(original.config)
                call(stable)
    finally:
        stable.scheduler = original


def test_a_window_without_steps_warns(stable, vgg, style):
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**stable.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    with pytest.warns(UserWarning, match="no step was guided"), guided(pipe, style, features=vgg, window=(0.0, 0.4)):
        call(pipe, image=image, strength=0.5)


def test_rescaled_and_dynamic_guidance_are_measured(stable, vgg, style):
    """With rescaling the sum of the weights is not 1; a callback may change the guidance scale."""

    def weaker(pipe, index, timestep, tensors):
        pipe._guidance_scale *= 0.7
        return {}

    with guided(stable, style, features=vgg) as trace:
        call(stable, guidance_rescale=0.7)
        call(stable, callback_on_step_end=weaker)
    assert len(trace) == 2 * STEPS and not any("note" in row for row in trace)


def test_a_prediction_that_is_no_combination_is_guided_without_the_network(stable, vgg, style):
    with guided(stable, style, features=vgg) as trace:
        shifted = stable.scheduler.step
        stable.scheduler.step = lambda output, *rest, **options: shifted(output.sign() * output**2, *rest, **options)
        call(stable)
    assert untouched(stable)
    assert all(row["method"] == "clean" and "no combination" in row["note"] for row in trace)


def test_inference_mode(stable, vgg, style):
    plain = call(stable)
    with guided(stable, style, features=vgg):
        expected = call(stable)
        with torch.inference_mode():
            found = call(stable)
    torch.testing.assert_close(found.clone(), expected)
    assert not torch.equal(expected, plain)


@pytest.mark.parametrize("whole", [False, True])
def test_torch_compile(whole, stable, vgg, style):
    with guided(stable, style, features=vgg) as trace:
        expected = call(stable)
    pipe = StableDiffusionPipeline(**stable.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    if whole:
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    else:
        pipe.unet.compile(backend="eager")
    try:
        with guided(pipe, style, features=vgg) as again:
            found = call(pipe)
    finally:
        stable.unet._compiled_call_impl = None
        vars(stable.unet).pop("_compiled_call_impl", None)
    torch.testing.assert_close(found, expected)
    assert [row["loss"][0] for row in again] == pytest.approx([row["loss"][0] for row in trace])
    assert not any("note" in row for row in again)


def test_threads_that_share_weights(stable, vgg, style):
    results, expected, pipes = {}, {}, {}
    # The prompt is encoded before: a fast tokenizer is not made for two threads.
    wanted, unwanted = stable.encode_prompt("a cat", torch.device("cpu"), 1, do_classifier_free_guidance=True)
    prompt = {"prompt": None, "prompt_embeds": wanted, "negative_prompt_embeds": unwanted}
    for scale in (0.1, 0.3):
        scheduler = diffusers.DDIMScheduler.from_config(stable.scheduler.config)
        pipes[scale] = StableDiffusionPipeline(
            **stable.components | {"scheduler": scheduler}, requires_safety_checker=False
        )
        pipes[scale].set_progress_bar_config(disable=True)
        with guided(pipes[scale], style, features=vgg, style_scale=scale):
            expected[scale] = call(pipes[scale], **prompt)

    def draw(scale):
        with guided(pipes[scale], style, features=vgg, style_scale=scale) as trace:
            results[scale] = call(pipes[scale], **prompt)
            assert not any("note" in row for row in trace)

    threads = [threading.Thread(target=draw, args=(scale,)) for scale in pipes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for scale in pipes:
        torch.testing.assert_close(results[scale], expected[scale])
    assert untouched(stable) and all(parameter.requires_grad for parameter in stable.unet.parameters())


@pytest.mark.parametrize("twice", [1, 2])
def test_offloaded_models_are_guided_in_every_call(twice, stable, vgg, style, tmp_path):
    pipe = quiet(StableDiffusionPipeline.from_pretrained(save_stable_diffusion(tmp_path)))
    with guided(pipe, style, features=vgg):
        expected = call(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    with guided(pipe, style, features=vgg) as trace:
        for _ in range(twice):
            torch.testing.assert_close(call(pipe), expected)
    assert len(trace) == twice * STEPS and not any("note" in row for row in trace)


def test_with_group_offloading_the_default_draws_the_same_picture(vgg, style, tmp_path):
    pipe = quiet(StableDiffusionPipeline.from_pretrained(save_stable_diffusion(tmp_path)))
    with steering.guided(pipe, style, features=vgg):
        expected = call(pipe)
    cpu = torch.device("cpu")
    pipe.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    with steering.guided(pipe, style, features=vgg) as trace:
        torch.testing.assert_close(call(pipe), expected)
    assert trace


def test_parts_of_a_sequentially_offloaded_autoencoder_have_its_weights():
    """Not through a pipeline: accelerate's sequential offloading to the CPU fails in the stock one, too."""
    from accelerate import cpu_offload

    from ex4lib.diffusion.denoisers import Latents
    from tests.test_steering_families import autoencoder

    vae, cpu = autoencoder(scaling_factor=0.5).eval(), torch.device("cpu")
    image, latents = torch.rand(1, 3, 32, 32), torch.randn(1, 4, 16, 16)
    whole = Latents(vae)
    expected = whole.encode(image), whole.decode(latents)
    for part in (vae.encoder, vae.decoder, vae.quant_conv, vae.post_quant_conv):
        cpu_offload(part, cpu)
    offloaded = Latents(vae, device=cpu)
    assert vae.device.type == "meta"
    for got, right in zip((offloaded.encode(image), offloaded.decode(latents)), expected, strict=True):
        torch.testing.assert_close(got, right)
    assert vae.device.type == "meta"


def test_the_default_of_pipelines_in_pixels_is_another(vgg, style, tmp_path):
    from tests.random_models import save_ddpm

    pipe = quiet(DDPMPipeline.from_pretrained(save_ddpm(tmp_path)))
    with steering.guided(pipe, style, features=vgg) as trace:
        pipe(num_inference_steps=6, generator=seeded(), output_type="np")
    assert {row["method"] for row in trace} == {"noise"} and [row["index"] for row in trace] == [4, 5]


def test_pipelines_that_are_not_known_are_refused(stable, style):
    class Other:
        scheduler, components, unet = stable.scheduler, {}, nn.Identity()

    with pytest.raises(ValueError, match=r"supports the pipelines of Stable Diffusion 1.x, .* Flux, .* got Other"):
        guided(Other(), style)


@pytest.mark.parametrize(("method", "backward"), [("noise", 1), ("clean", 0)])
def test_a_guided_step_makes_the_passes_that_it_needs_and_no_others(method, backward, stable, vgg, style, monkeypatch):
    counts = dict.fromkeys(("network", "network back", "decoder", "decoder back", "features"), 0)

    def watch(name):
        def hook(module, arguments, output):
            counts[name] += 1
            found = output if torch.is_tensor(output) else output[0]
            if found.requires_grad:
                found.register_hook(lambda gradient: counts.__setitem__(f"{name} back", counts[f"{name} back"] + 1))

        return hook

    walk = type(vgg).walk

    def counted(self, image, layers):
        counts["features"] += image.requires_grad  # those of the painting are computed once, without a gradient
        return walk(self, image, layers)

    monkeypatch.setattr(type(vgg), "walk", counted)
    handles = [
        module.register_forward_hook(watch(name))
        for name, module in (("network", stable.unet), ("decoder", stable.vae.decoder))
    ]
    try:
        with guided(stable, style, features=vgg, guidance=Guidance(method=method)):
            call(stable, output_type="latent")
    finally:
        for handle in handles:
            handle.remove()
    assert counts == {
        "network": STEPS,
        "network back": backward * STEPS,
        "decoder": STEPS,
        "decoder back": STEPS,
        "features": STEPS,
    }


@pytest.mark.parametrize(("options", "guided_steps"), [({"every": 2}, 2), ({"window": (0.5, 1.0)}, 2)])
def test_steps_that_are_not_guided_cost_nothing(options, guided_steps, stable, vgg, style):
    graphs = []
    handle = stable.unet.register_forward_hook(lambda module, arguments, output: graphs.append(output[0].requires_grad))
    try:
        with guided(stable, style, features=vgg, guidance=Guidance(**options)) as trace:
            call(stable)
    finally:
        handle.remove()
    assert len(trace) == sum(graphs) == guided_steps and len(graphs) == STEPS


def test_the_copy_of_the_decoder_is_made_once_and_only_of_the_decoder(vgg, style, tmp_path, monkeypatch):
    from ex4lib.diffusion import denoisers

    pipe = quiet(StableDiffusionPipeline.from_pretrained(save_stable_diffusion(tmp_path)), torch.bfloat16)
    copied, original = [], denoisers.copy.deepcopy
    monkeypatch.setattr(denoisers.copy, "deepcopy", lambda module: copied.append(module) or original(module))
    call(pipe)
    assert not copied
    for _ in range(2):
        with guided(pipe, style.float(), features=vgg.float()) as trace:
            call(pipe)
        assert len(trace) == STEPS and not any("note" in row for row in trace)
    assert len(copied) == 1 and not hasattr(copied[0], "encoder") and pipe.vae.encoder is not None
    with torch.no_grad():
        next(pipe.vae.decoder.parameters()).mul_(1.1)  # other weights need another copy
    with guided(pipe, style.float(), features=vgg):
        call(pipe)
    assert len(copied) == 2
    vgg.double()


def test_a_sample_that_is_not_finite_ends_the_drawing_at_its_step(stable, vgg, style):
    seen = []
    with (
        pytest.raises(ValueError, match=r"the sample is not finite after step 2 of 4 \(timestep"),
        guided(stable, style, features=vgg, guidance=Guidance(scale=1e308, unit="raw"), on_step=seen.append),
    ):
        call(stable)
    assert len(seen) < STEPS and untouched(stable)


@pytest.mark.parametrize("unit", ["noise", "correction"])
def test_a_scale_that_leaves_nothing_of_the_model_is_refused(unit):
    with pytest.raises(ValueError, match=r"style_scale must be a finite number from 0 to 1000, got 1e\+30"):
        Guidance(scale=1e30, method="clean", unit=unit)
    assert Guidance(scale=1e30, unit="raw").scale == 1e30  # its unit depends on the loss


def test_an_objective_without_the_picture_is_one_sentence(stable):
    with (
        pytest.raises(ValueError, match="the objective does not depend on the image"),
        guided(stable, lambda image: torch.ones(len(image))),
    ):
        call(stable)


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("changes", [{}, {"every": 2}, {"window": (0.0, 0.5)}])
def test_the_librarys_loop_draws_the_same_picture_bit_by_bit(name, changes, stable, vgg, style):
    """Schedulers of order 2 have two timesteps a step: window, ramp and ``every`` count the steps in both loops."""
    guidance, original = dataclasses.replace(UNCOLOURED, **changes), stable.scheduler
    stable.scheduler = getattr(diffusers, name).from_config(original.config)
    try:
        x = torch.randn(1, 4, 16, 16, generator=seeded(), dtype=torch.float64)
        with steering.guided(stable, style, features=vgg, guidance=guidance) as trace:
            expected = call(stable, latents=x, output_type="latent")
        wanted, unwanted = stable.encode_prompt("a cat", torch.device("cpu"), 1, True)
        denoiser = Denoiser(stable.unet, Latents(stable.vae), embeddings=wanted, negative=unwanted, guidance_scale=4.0)
        objective = StyleObjective(vgg, [style], (32, 32))
        timed = schedulers.timed(stable.scheduler, STEPS)
        options = {"steps": STEPS, "objective": objective, "guidance": guidance}
        last, rows = finish(sample(denoiser, stable.scheduler, x * timed.init_noise_sigma, **options))
    finally:
        stable.scheduler = original
    assert [row["index"] for row in rows] == [row["index"] for row in trace] and rows
    assert torch.equal(last.sample, expected)


@pytest.mark.parametrize("off", [{"style_scale": 0}, {"window": (0.5, 0.5)}, {"style_scale": (0.0, 0.0)}])
def test_scale_0_is_watched_and_stays_the_stock_picture(off, stable, vgg, style):
    plain, seen = call(stable, num_images_per_prompt=2), []
    with guided(stable, style, features=vgg, on_step=seen.append, **off) as trace:
        assert torch.equal(call(stable, num_images_per_prompt=2), plain)
    assert [step.index for step in seen] == list(range(STEPS)) and all(step.trace is None for step in seen)
    assert seen[-1].image.shape == plain.shape
    assert not trace and untouched(stable)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pipe": None}, "supports the pipelines of .* got NoneType"),
        ({"style": "typo"}, "no file 'typo' and no shipped picture"),
        ({"style_loss": "typo"}, "style_loss must be gram"),
        ({"style_layers": "relu9_9"}, "no layer 'relu9_9'"),
        ({"guidance": Guidance(recurrence=2)}, "recurrence and clipping are of the library's own loop"),
    ],
)
def test_arguments_are_checked_at_scale_0(arguments, message, stable, vgg, style):
    arguments = {"pipe": stable, "style": style, "features": vgg} | arguments
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        guided(arguments.pop("pipe"), arguments.pop("style"), style_scale=0, **arguments)


def test_two_pipelines_with_one_network_are_refused_in_one_thread(stable, vgg, style):
    """The second would take the calls of the first, which then had no Jacobian."""
    scheduler = diffusers.DDIMScheduler.from_config(stable.scheduler.config)
    parts = stable.components | {"scheduler": scheduler}
    other = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    with guided(stable, style, features=vgg) as trace:
        with pytest.raises(ValueError, match="another pipeline with this network is guided in this thread"):  # noqa: SIM117
            with guided(other, style, features=vgg):
                pytest.fail("it was entered")
        call(stable)
    assert untouched(other) and untouched(stable)
    assert len(trace) == STEPS and not any("note" in row for row in trace)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"style_loss": "nonsense"}, "style_loss"),
        ({"regions": [torch.ones(1, 1, 4, 4)], "style_weights": [1, 2, 3]}, "style_weights, regions"),
        ({"style_layers": ["relu1_1"], "style_each": True}, "style_layers, style_each"),
        ({"style_layer_weights": torch.ones(4)}, "style_layer_weights"),
    ],
)
def test_an_objective_of_ones_own_takes_no_arguments_of_paintings(given, names, stable):
    with pytest.raises(ValueError, match=f"^{names} cannot be used with an objective of one's own"):
        guided(stable, lambda image: image.sum((1, 2, 3)), **given)
    layers = tuple(steering.STYLE_LAYERS)
    guided(stable, lambda image: image.sum((1, 2, 3)), style_layers=layers, style_each=False)


@pytest.mark.parametrize("shape", [(64, 1400), (1400, 64), (9, 300)])
def test_a_long_thin_painting_is_seen_large_enough(shape, stable, vgg):
    thin = torch.rand(1, 3, *shape, generator=seeded(), dtype=torch.float64)
    with guided(stable, thin, features=vgg) as trace:
        assert call(stable).isfinite().all()
    assert len(trace) == STEPS and not any(row["skipped"] for row in trace)
    (painting,) = StyleObjective(vgg, [thin], (32, 32)).styles
    assert min(painting.shape[-2:]) == vgg.minimum_size(steering.STYLE_LAYERS)
