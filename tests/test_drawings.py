"""Drawn, stylised and judged pictures on random weights: what is stored is what the library does."""

import diffusers
import numpy as np
import pytest
import torch

from ex4lib.diffusion.guidance import Guidance
from ex4lib.diffusion.pipelines import StyleGuidedDDPMPipeline
from experiments import drawings, measures, metrics
from experiments.judge import Judge
from tests.random_models import random_network, save_ddpm, save_judge


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    pipe = StyleGuidedDDPMPipeline.from_pretrained(save_ddpm(tmp_path_factory.mktemp("ddpm")))
    pipe.scheduler = diffusers.DDPMScheduler(clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def vgg():
    return random_network("vgg16").float()


def test_seeds_are_independent_of_how_they_are_grouped(pipe, picture, vgg):
    style = picture(40, 40, dtype=torch.float32)
    call = {"style": style, "guidance": Guidance(0.2), "steps": 3, "features": vgg, "scheduler": "DDIMScheduler"}
    together = drawings.drawn(pipe, None, [5, 6, 7], **call, batch=2)
    alone = drawings.drawn(pipe, None, [6], **call)
    torch.testing.assert_close(together.pictures["6"], alone.pictures["6"], atol=2 / 255, rtol=0)
    assert len(together.values["loss"]) == 3 and together.values["skipped"] == [0, 0, 0]
    assert type(pipe.scheduler).__name__ == "DDPMScheduler"


def test_a_finished_run_is_not_drawn_again(pipe, monkeypatch):
    first = drawings.drawn(pipe, None, [0], steps=2)
    monkeypatch.setattr(type(pipe), "__call__", lambda *_, **__: pytest.fail("drawn again"))
    torch.testing.assert_close(drawings.drawn(pipe, None, [0], steps=2).pictures["0"], first.pictures["0"])


@pytest.fixture
def judges(vgg, tmp_path):
    return drawings.Judges(vgg, random_network("vgg16", seed=1).float(), Judge(save_judge(tmp_path)))


def test_judgements_are_the_metrics(pipe, judges):
    run, painting = drawings.drawn(pipe, None, [3, 1], steps=2), drawings.REPORT_PAINTINGS[1]
    found = drawings.judged(judges, run, painting, prompt="a cat", unguided=run)
    pictures, style = drawings.stack(run), drawings.style_named(painting)
    assert torch.equal(pictures[0], run.pictures["1"][0])  # by seed, not by order
    for prefix, name, network in (("", "style", judges.network), ("second_", "second", judges.second)):
        distances = metrics.style_distances(pictures, drawings.PAINTINGS, network)
        column = drawings.PAINTINGS.index(painting)
        again = measures.specificity(distances, [column] * 2)
        assert found[name] == pytest.approx(distances[:, column].tolist(), rel=1e-5)
        assert found[f"{prefix}nearest"] == list(again.nearest) and found[f"{prefix}rank"] == list(again.ranks)
        assert found[f"{prefix}first"] == [drawings.PAINTINGS[i] for i in distances.argmin(1).tolist()]
    for i in range(2):
        expected = metrics.style_distance(judges.network, pictures[i : i + 1], style, statistic="meanvar")
        assert found["meanvar"][i] == pytest.approx(expected, rel=1e-4)
        assert found["colour"][i] == pytest.approx(metrics.colour_distance(pictures[i : i + 1], style), rel=1e-4)
    assert found["content"] == [0, 0] and set(found["agrees"]) <= {0.0, 1.0}


def test_a_painting_that_does_not_ship_competes_with_those_that_do(pipe, judges):
    run = drawings.drawn(pipe, None, [3], steps=2)
    found = drawings.judged(judges, run, "look-mosaic")
    assert 1 <= found["rank"][0] <= 9 and "agrees" not in found and "content" not in found


def test_stylised_pictures_are_nearer_to_the_style(pipe, picture, vgg):
    style = picture(40, 40, dtype=torch.float32)
    run = drawings.drawn(pipe, None, [0], steps=2)
    after = drawings.stylised(vgg, run, style, evaluations=30, size=32)
    before, later = (metrics.style_distance(vgg, x.pictures["0"], style) for x in (run, after))
    assert later < before


def test_interval_covers_a_known_mean():
    draws = np.random.default_rng(1)
    hits = 0
    for _ in range(60):
        mean, low, high = drawings.interval(draws.normal(2.0, 1.0, 30))
        assert low < mean < high
        hits += low <= 2.0 <= high
    assert hits >= 50
    assert drawings.interval([1.0, 1.0]) == (1.0, 1.0, 1.0)


def test_kernel_distance_against_explicit_sums_of_sets_of_different_size(generator):
    x, y = torch.randn(20, 6, generator=generator, dtype=torch.float64), torch.randn(13, 6, generator=generator) + 0.5

    def kernel(a, b):
        return float((a.double() @ b.double() / 6 + 1) ** 3)

    same = [np.mean([kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]) for z in (x, y)]
    cross = np.mean([kernel(a, b) for a in x for b in y])
    assert measures.kernel_distance(x, y) == pytest.approx(sum(same) - 2 * cross, rel=1e-6)
