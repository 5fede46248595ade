"""Algorithm 1 written out against the stock scheduler and against the library's guided step."""

import diffusers
import pytest
import torch

from ex4lib.diffusion.denoisers import Denoiser, Pixels
from ex4lib.diffusion.guidance import Guidance
from ex4lib.diffusion.pipelines import StyleGuidedDDPMPipeline
from ex4lib.diffusion.sampling import finish
from ex4lib.diffusion.sampling import sample as library_sample
from experiments import algorithm_1
from experiments.forced_choice import ForcedChoice
from tests.random_models import random_network, save_ddpm


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    pipe = StyleGuidedDDPMPipeline.from_pretrained(save_ddpm(tmp_path_factory.mktemp("ddpm")))
    pipe.scheduler = diffusers.DDPMScheduler(clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def loss(image):
    return (image - 0.3).square().mean((1, 2, 3))


@pytest.mark.parametrize("s", [0.0, 50.0])
def test_algorithm_1_is_the_library_s_method_mean(pipe, s):
    steps, side = 6, pipe.unet.config.sample_size
    generator = torch.Generator().manual_seed(3)
    draws = [torch.randn(1, 3, side, side, generator=generator) for _ in range(steps + 1)]
    pipe.scheduler.set_timesteps(steps)
    *_, (t, by_hand, _, share) = algorithm_1.sample(pipe.unet, pipe.scheduler, loss, s, draws[0], draws[1:])

    generator = torch.Generator().manual_seed(3)
    start = torch.randn(1, 3, side, side, generator=generator)
    guidance = {"objective": loss, "guidance": Guidance(scale=s, method="mean", unit="raw")} if s else {}
    denoiser = Denoiser(pipe.unet, Pixels())
    last, _ = finish(library_sample(denoiser, pipe.scheduler, start, steps=steps, generator=generator, **guidance))
    torch.testing.assert_close(by_hand, last.sample, atol=1e-4, rtol=1e-4)
    assert t == 0 and share == 0  # the last step has no variance, so that nothing moves it


def test_runs_are_kept_and_differ_by_scale(pipe, picture):
    style, network = picture(40, 40, dtype=torch.float32), random_network("vgg16").float()
    plain, guided = (algorithm_1.drawn(pipe, style, s, [1, 2], 3, network) for s in (0.0, 1000.0))
    assert set(plain.pictures) == {"1", "2"} and len(guided.values["share"]) == 3
    assert not torch.equal(plain.pictures["1"], guided.pictures["1"])


def test_a_forced_choice_hides_and_scores(picture):
    paintings = ("hokusai-great-wave", "arcimboldo-spring", "kandinsky-composition-viii")
    pictures = {name: [picture(64, 64, dtype=torch.float32) for _ in range(5)] for name in paintings}
    quiz = ForcedChoice.of(pictures, count=12)
    assert len(quiz.answers) == len(quiz.pictures) == 12 and quiz.answers != "".join(sorted(quiz.answers))
    assert quiz.right(quiz.answers.lower()) == 12 and quiz.right(" ".join(quiz.answers)) == 12
    assert len(quiz.judged(random_network("vgg16").float())) == 12
    shown = dict(zip("ABC", paintings, strict=True))
    for x, letter in zip(quiz.pictures, quiz.answers, strict=True):
        assert any(x is candidate for candidate in pictures[shown[letter]])
    assert len(quiz.figure().axes) == 3 * 6
    with pytest.raises(ValueError, match="answers must hold 12 letters"):
        quiz.right("ABC")
    with pytest.raises(ValueError, match="pictures must be of 3 paintings, got 1"):
        ForcedChoice.of({"hokusai-great-wave": []})
