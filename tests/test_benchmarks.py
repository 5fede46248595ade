"""The benchmark's pieces at the smallest size, so that the script cannot rot. No time is asserted."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from ex4lib.transfer import TUTORIAL

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
    rows = nst.time_to_value(32, evaluations=3)
    assert rows[0]["run"] == "tutorial" and rows[0]["share"] == 1
    assert all(row["evaluations"] >= 1 and 0 < row["value"] < float("inf") for row in rows)
    assert len({row["goal"] for row in rows}) == 1


def test_memory_is_measured(nst):
    assert nst.memory("tutorial", 32) >= 0
