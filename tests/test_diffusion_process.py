"""Noise levels and conversions, against diffusers' schedulers and against each other."""

import diffusers
import pytest
import torch

from ex4lib.diffusion import schedulers
from ex4lib.diffusion.process import PREDICTIONS, Level

LEVELS = [Level.preserving(0.3), Level(1.0, 2.5), Level.preserving(0.999), Level.flow(0.7)]


@pytest.fixture
def pair(generator):
    return torch.randn(2, 3, 2, 5, 5, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_gives_back_the_clean_sample_and_the_noise(level, prediction, pair):
    clean, noise = pair
    sample = level.diffuse(clean, noise)
    alpha_bar = level.alpha_bar
    output = {
        "epsilon": noise,
        "v_prediction": alpha_bar**0.5 * noise - (1 - alpha_bar) ** 0.5 * clean,
        "sample": clean,
        "flow_prediction": noise - clean,
    }[prediction]
    torch.testing.assert_close(level.clean(sample, output, prediction), clean)
    torch.testing.assert_close(level.noise_of(sample, output, prediction), noise)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_shift_of_the_noise_is_the_same_shift_in_every_prediction(level, prediction, pair):
    output, shift = pair
    sample = torch.ones_like(output)
    moved = output + level.output_shift(shift, prediction)
    before, after = (level.noise_of(sample, each, prediction) for each in (output, moved))
    torch.testing.assert_close(after - before, shift)
    before, after = (level.clean(sample, each, prediction) for each in (output, moved))
    torch.testing.assert_close(after - before, level.clean_shift(shift))
    torch.testing.assert_close(level.noise_shift(level.clean_shift(shift)), shift)


def test_the_forward_process_is_that_of_diffusers(generator):
    scheduler = diffusers.DDPMScheduler()
    clean, noise = torch.randn(2, 4, 3, 8, 8, generator=generator)
    t = torch.tensor([0, 250, 500, 999])
    expected = scheduler.add_noise(clean, noise, t)
    for i, each in enumerate(t):
        level = Level.preserving(float(scheduler.alphas_cumprod[each]))
        torch.testing.assert_close(level.diffuse(clean[i], noise[i]), expected[i])


STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("name", schedulers.FLOW)
def test_levels_of_a_flow_agree_with_the_schedulers_straight_line(name, generator):
    scheduler = schedulers.timed(getattr(diffusers, name)(shift=3.0), 12)
    clean, noise = torch.randn(2, 1, 4, 6, 6, generator=generator, dtype=torch.float64)
    sample = noise
    for t, level in zip(scheduler.timesteps, schedulers.levels(scheduler), strict=True):
        torch.testing.assert_close(sample, level.diffuse(clean, noise), atol=1e-5, rtol=0)
        assert schedulers.levels(scheduler)[schedulers.position(scheduler, t)] == level
        sample = scheduler.step(noise - clean, t, sample).prev_sample.double()
    torch.testing.assert_close(sample, clean, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", schedulers.SUPPORTED)
def test_levels_agree_with_each_schedulers_own_estimate_of_the_clean_sample(name, prediction, generator):
    """At the level we read, the right output for a known clean sample makes the scheduler keep it to the end."""
    scheduler = schedulers.timed(
        getattr(diffusers, name)(**STABLE_DIFFUSION, prediction_type=prediction, **_unclipped(name)), 20
    )
    clean = torch.randn(1, 4, 6, 6, generator=generator, dtype=torch.float64)
    sample = torch.randn(1, 4, 6, 6, generator=generator, dtype=torch.float64) * scheduler.init_noise_sigma
    arguments = schedulers.step_arguments(scheduler, generator, 0.0)
    for t, level in zip(scheduler.timesteps, schedulers.levels(scheduler), strict=True):
        scheduler.scale_model_input(sample, t)
        assert schedulers.levels(scheduler)[schedulers.position(scheduler, t)] == level
        noise = (sample - level.signal * clean) / level.noise
        output = (
            noise if prediction == "epsilon" else level.alpha_bar**0.5 * noise - (1 - level.alpha_bar) ** 0.5 * clean
        )
        sample = scheduler.step(output, t, sample, **arguments).prev_sample
    atol = 0.03 if name not in ("PNDMScheduler", "DDIMScheduler", "DEISMultistepScheduler") else 0.1  # ends at σ > 0
    torch.testing.assert_close(sample, clean, atol=atol, rtol=0)


def _unclipped(name):
    if name in ("DDPMScheduler", "DDIMScheduler"):
        return {"clip_sample": False}
    return {"skip_prk_steps": True, "set_alpha_to_one": True} if name == "PNDMScheduler" else {}


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("steps", [10, 1000])
def test_transition_predicts_how_ddpm_answers(kind, steps, monkeypatch, generator):
    scheduler = schedulers.timed(diffusers.DDPMScheduler(variance_type=kind, clip_sample=False), steps)
    _check_transition(scheduler, 1.0, "scheduling_ddpm", monkeypatch, generator)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_transition_predicts_how_ddim_answers(eta, monkeypatch, generator):
    scheduler = schedulers.timed(diffusers.DDIMScheduler(clip_sample=False), 25)
    _check_transition(scheduler, eta, "scheduling_ddim", monkeypatch, generator)


def _check_transition(scheduler, eta, module, monkeypatch, generator):
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    x, output, shift = torch.randn(3, 1, 1, 4, 4, generator=generator, dtype=torch.float64)
    arguments = schedulers.step_arguments(scheduler, generator, eta)

    def step(prediction, t, noise):
        monkeypatch.setattr(f"diffusers.schedulers.{module}.randn_tensor", lambda *_, **__: noise * torch.ones_like(x))
        return scheduler.step(prediction, t, x, **arguments).prev_sample

    for t in scheduler.timesteps[:: max(1, len(scheduler.timesteps) // 7)]:
        found = schedulers.transition(scheduler, int(t), eta)
        torch.testing.assert_close(step(output + shift, t, 0.0), step(output, t, 0.0) - found.response * shift)
        deviation = step(output, t, 1.0) - step(output, t, 0.0)
        if t == 0 and module == "scheduling_ddpm":  # diffusers adds no noise here, whatever Σ is
            continue
        torch.testing.assert_close(deviation.square().mean().item(), found.variance, atol=1e-9, rtol=1e-5)


def test_a_step_without_a_mean_is_refused():
    scheduler = schedulers.timed(diffusers.UniPCMultistepScheduler(), 10)
    with pytest.raises(ValueError, match="DDPMScheduler and DDIMScheduler only, got UniPC"):
        schedulers.transition(scheduler, 10, 0.0)


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.TCDScheduler(),
        diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    ],
)
def test_unknown_schedulers_are_refused(scheduler):
    with pytest.raises(ValueError, match="to be guided, the scheduler must"):
        schedulers.check(scheduler)


@pytest.mark.parametrize("steps", [0, 1001])
def test_a_number_of_steps_that_cannot_be_is_refused(steps):
    with pytest.raises(ValueError, match=f"steps must be at (least 1|most 1000), got {steps}"):
        schedulers.timed(diffusers.DDIMScheduler(), steps)


def test_clipping_is_switched_off_and_on_again():
    scheduler = diffusers.DDPMScheduler(clip_sample=True, clip_sample_range=1.0)
    x = torch.tensor([-3.0, 0.5, 3.0])
    assert schedulers.clips(scheduler)
    torch.testing.assert_close(schedulers.clip(scheduler, x), torch.tensor([-1.0, 0.5, 1.0]))
    with schedulers.without_clipping(scheduler):
        assert not schedulers.clips(scheduler)
    assert scheduler.config.clip_sample


@pytest.mark.parametrize("name", schedulers.SUPPORTED)
def test_a_named_scheduler_keeps_the_noise_schedule(name):
    original = diffusers.DDIMScheduler(beta_start=0.001, beta_end=0.01, beta_schedule="scaled_linear")
    found = schedulers.named(name, original)
    assert type(found).__name__ == name
    torch.testing.assert_close(found.alphas_cumprod, original.alphas_cumprod)


def test_a_scheduler_that_guidance_does_not_know_is_not_named():
    with pytest.raises(ValueError, match=r"must be one of DDPMScheduler, .*got 'TCDScheduler'"):
        schedulers.named("TCDScheduler", diffusers.DDIMScheduler())
