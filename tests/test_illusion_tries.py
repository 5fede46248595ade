"""Tries of illusions: scores against explicit sums, and that the best try is the one shown."""

import math

import pytest
import torch

from ex4lib.diffusion.pipelines import StyleGuidedStableDiffusionPipeline
from ex4lib.diffusion.pixel import pixel_model
from experiments import illusion_tries, loops, metrics
from experiments.drawings import interval, stack
from experiments.illusions import low_pass
from experiments.judge import Judge
from tests.opinions import Opinionated, plain
from tests.random_models import save_judge, save_pixel, save_stable_diffusion


def test_illusions_against_explicit_sums():
    views = [torch.cat([plain(1.0, 0, 0), plain(0.8, 0.6, 0)]), torch.cat([plain(0, 1.0, 0), plain(1.0, 0, 0)])]
    found = illusion_tries.illusion_scores(Opinionated(), views, ["red", "green"])
    assert found["alignment"] == pytest.approx([1.0, 0.0])
    assert found["agreement"] == [1.0, 0.5]

    def share(own, other):
        return math.exp(10 * own) / (math.exp(10 * own) + math.exp(10 * other))

    assert found["concealment"] == pytest.approx([share(1, 0), (share(0.8, 0.6) + share(0, 1)) / 2], rel=1e-5)
    assert found["scores"][1] == [pytest.approx([0.8, 0.6]), pytest.approx([1.0, 0.0])]
    with pytest.raises(ValueError, match="one view for each prompt, got 2 and 1"):
        illusion_tries.illusion_scores(Opinionated(), views, ["red"])


def test_distances_add_up(picture):
    image = picture(32, 32, dtype=torch.float32)
    low, high = illusion_tries.distances(image)
    torch.testing.assert_close(low + high - 0.5, image, atol=1e-5, rtol=0)
    assert low.std() < image.std()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return pixel_model(str(save_pixel(tmp_path_factory.mktemp("pixel") / "model")))


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return Judge(save_judge(tmp_path_factory.mktemp("judge")))


def test_the_best_try_is_shown_and_all_are_scored(model, judge):
    told = loops.TwoViews(("a cat", "a dog"), ("identity", "180° rotation"), 4.0)
    tries = illusion_tries.anagram(model, judge, told, [7, 5, 6], steps=3)
    pictures = stack(loops.native(tries.run))  # by seed: 5, 6, 7
    upright, turned = (judge.scores(x, told.prompts) for x in (pictures, pictures.flip(-1, -2)))
    alignment = torch.minimum(upright[:, 0], turned[:, 1])
    assert tries.scores["alignment"] == pytest.approx(alignment.tolist(), abs=1e-5)
    assert tries.shown == 5 + alignment.argmax()
    (seen, first, score), (other, second, _) = tries.looks
    torch.testing.assert_close(seen, tries.run.pictures[str(tries.shown)], atol=0.02, rtol=0)
    assert torch.equal(other, seen.flip(-1, -2)) and (first, second) == told.prompts
    assert score == pytest.approx(upright[tries.shown - 5, 0].item(), abs=1e-5)
    assert tries.numbers["tries"] == 3 and tries.numbers["shown"] == tries.shown


def test_a_hybrid_is_seen_from_afar_from_near_and_by_its_detail(model, judge):
    tries = illusion_tries.hybrid(model, judge, loops.TwoDistances("a cat", "a dog", 4.0), [0, 1], steps=3)
    pictures = stack(loops.native(tries.run))
    expected = illusion_tries.illusion_scores(judge, [low_pass(pictures), pictures], ["a cat", "a dog"])
    assert tries.scores["shares"] == expected["shares"]
    assert tries.shown == expected["concealment"].index(max(expected["concealment"]))
    (whole, near, _), (low, far, _), (high, fine, score) = tries.looks
    assert (near, far, fine) == ("a dog", "a cat", "a dog")
    shown = pictures[tries.shown : tries.shown + 1]
    torch.testing.assert_close(low, loops.enlarged(low_pass(shown)))
    torch.testing.assert_close(high, loops.enlarged((shown - low_pass(shown) + 0.5).clamp(0, 1)))
    assert torch.equal(whole, loops.enlarged(shown)) and score == tries.scores["high pass"][tries.shown]


def test_a_table_tells_means_with_intervals():
    rows = {
        name: {"alignment": [0.1, 0.3, 0.2], "concealment": [0.5] * 3, "agreement": [1.0, 0.5, 1.0]} for name in "ab"
    }
    head, first, _ = illusion_tries.table(rows).splitlines()
    assert head.split() == ["alignment", "concealment", "agreement"]
    mean, low, high = interval([0.1, 0.3, 0.2])
    assert first.startswith("a") and f"{mean:.3f} ({low:.3f}, {high:.3f})" in first and "0.500 (0.500, 0.500)" in first


def test_latents_do_not_turn_as_pictures_do(tmp_path, picture):
    pipe = StyleGuidedStableDiffusionPipeline.from_pretrained(save_stable_diffusion(tmp_path))
    image = picture(32, 32, dtype=torch.float32)
    run = illusion_tries.through_latents(pipe, image)
    with torch.no_grad():
        latents = pipe.vae.encode(2 * image - 1).latent_dist.mode()
        plain_again, flipped = ((pipe.vae.decode(x).sample / 2 + 0.5).clamp(0, 1) for x in (latents, latents.flip(-2)))
    assert run.values["plain"] == pytest.approx(metrics.psnr(plain_again, image), abs=0.01)
    assert run.values["flipped"] == pytest.approx(metrics.psnr(flipped.flip(-2), image), abs=0.01)
    assert (run.pictures["flipped"] - run.pictures["plain"]).abs().mean() > 0.01
    assert illusion_tries.through_latents(pipe, image).provenance == run.provenance
