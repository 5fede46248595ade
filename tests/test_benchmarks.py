"""The benchmark's pieces at the smallest size, so that the script cannot rot. No time is asserted."""

import dataclasses
import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch

from ex4lib import models
from ex4lib.diffusion.guidance import Guidance
from ex4lib.diffusion.sampling import sample
from ex4lib.transfer import TUTORIAL
from tests.random_models import random_network, save_stable_diffusion

FOLDER = Path(__file__).parents[1] / "benchmarks"


def script(name):
    sys.path.insert(0, str(FOLDER))  # as when it is run
    try:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


@pytest.fixture(scope="module")
def nst():
    return script("nst")


def test_overhead_has_a_row_per_precision(nst):
    rows = nst.overhead((32,), repeats=1)
    assert [row["precision"] for row in rows] == list(nst.precisions())
    assert all(row["until"] == "relu5_1" and row["ratio"] > 0 for row in rows)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_transcribed_tutorial_is_the_preset(nst, channels_last):
    content, style = nst.pictures(64)
    image = (content + style) / 2
    vgg = nst.network()
    expected = nst.Tutorial(vgg, content, style, channels_last)(image)
    torch.testing.assert_close(TUTORIAL.objective(vgg, content, [style])(image)[0], expected, rtol=1e-4, atol=0)


def test_time_to_value_judges_every_run_by_the_same_goal(nst):
    rows = nst.time_to_value(nst.PAIRS[0], 32, evaluations=3)
    assert rows[0]["run"] == "tutorial" and rows[0]["share"] == 1
    assert all(row["evaluations"] >= 1 and 0 < row["value"] < float("inf") for row in rows)
    assert len({row["goal"] for row in rows}) == 1


def test_pairs_share_the_tutorial_s_time(nst):
    first = nst.time_to_value(nst.PAIRS[0], 32, evaluations=3)
    for row in nst.over_pairs(nst.PAIRS[:3], 32, 3, first):
        shares = [float(share) for share in row["each"].split()]
        assert len(shares) == 3 and row["low"] < row["share"] < row["high"]
        assert row["share"] == pytest.approx(math.prod(shares) ** (1 / 3), rel=0.01)  # printed with three digits


def test_both_loops_of_the_digits_learn_alike():
    digits = script("digits")
    data = digits.drawn_once(digits.load("digits")[0])
    assert data.pictures.shape[1:] == (1, 28, 28) and not data.drawn
    recipe = dataclasses.replace(digits.RECIPES["class"], width=4, batch=16)
    plain, ours = digits.training(recipe, data, 40, "cpu")
    assert plain["loss"] == pytest.approx(ours["loss"], rel=0.15) and plain["loss"] < 1.0


def test_memory_is_measured(nst):
    assert nst.memory("tutorial", 32) >= 0


def test_the_benchmarks_of_diffusion_measure_what_they_say(tmp_path, monkeypatch):
    """On random weights of the real classes: bare passes give the gradient that the guided step takes."""
    monkeypatch.setenv("EX4_MODELS", str(tmp_path))
    monkeypatch.setenv("EX4_PROFILE", "full")
    save_stable_diffusion(tmp_path / "stable-diffusion-v1-5")
    monkeypatch.setattr(models, "features", lambda *_, **__: random_network("vgg16").float())
    guidance, distillation = script("guidance"), script("distillation")
    pipe, denoiser, objective, x = guidance.setting(32)
    by_hand = guidance.bare_passes(pipe, denoiser, objective, x, through=True)
    raw = Guidance(1.0, unit="raw")
    step = next(sample(denoiser, pipe.scheduler, x, steps=30, objective=objective, guidance=raw))
    assert step.trace["gradient_norm"][0] > 0 and by_hand.isfinite().all()
    rows = distillation.overhead(repeats=1)
    assert rows[0]["ratio"] > 0 and distillation.memory("pds") >= 0


def test_the_benchmark_of_a_gpu_runs_on_a_cpu(tmp_path, monkeypatch):
    """Every kind of row, and one that fails is a sentence."""
    gpu = script("gpu")
    run = gpu.Run(torch.device("cpu"), True, tmp_path / "gpu.json")
    monkeypatch.setattr(gpu, "MODES", [gpu.MODES[0], gpu.MODES[4]])
    run.end = gpu.time.perf_counter() + 600
    for name in gpu.UNETS:
        gpu._configuration(run, name, 64, torch.float32)
    gpu._evaluation(run, 32, "float32")
    gpu.batches(run)
    run.attempt("a row", lambda: 1 / 0)
    written = gpu.json.loads((tmp_path / "gpu.json").read_text())
    assert [row["mode"] for row in written["guidance"]] == ["unguided", "full, tiny, checkpointing"] * 2
    assert all(row["ratio"] > 0 and not row["note"] for row in written["guidance"])
    assert written["transfer"][0]["ratio"] > 0 and len(written["batches"]) == 6
    assert written["failures"] == ["a row failed: ZeroDivisionError: division by zero"]


def test_the_benchmark_of_videos_measures_a_crop_that_moves(nst, tmp_path):
    """Frames that are kept as they are flicker no more than the video; frames of noise flicker much more."""
    video = script("video")
    frames = list(video.moving_crop(nst.pictures(128)[0], 3, 48))
    assert [tuple(frame.shape) for frame in frames] == [(1, 3, 36, 48)] * 3 and not torch.equal(frames[0], frames[2])
    kept = video.measured("kept as it is", frames, frames, None, tmp_path)
    noise = video.measured("noise", [torch.rand_like(frame) for frame in frames], frames, None, None)
    assert 0 < kept["flicker"] < 20 < noise["flicker"]
    assert [path.name for path in tmp_path.iterdir()] == ["kept-as-it-is.mp4"]
