"""The experiments of the first part: judged at the right size, read off the right place, found by bisection."""

import dataclasses

import pytest
import torch

from ex4lib import images, transfer
from experiments import metrics, transfers


@pytest.fixture
def pictures():
    content = images.resize(images.crop_square(images.load("chelsea")), 48)
    style = images.resize(images.crop_square(images.load("kandinsky-composition-viii")), 48)
    return content, style


def test_small_pictures_are_judged_at_their_own_size(offline, pictures):
    content, _ = pictures
    large = images.load("kandinsky-composition-viii")
    expected = metrics.style_distance(offline, content, images.resize(large, 48))
    assert metrics.style_distance(offline, content, large) == pytest.approx(expected, rel=1e-6)


def test_snapshots_are_those_of_a_shorter_run(offline, pictures):
    recipe = dataclasses.replace(transfer.DEFAULT, style_layers=("relu1_1", "relu2_1"), layer_weights=None)
    options = {"recipe": recipe, "ratio": 1.0}
    long = transfers.weighted(offline, offline, *pictures, evaluations=6, snapshots=(3,), **options)
    short = transfers.weighted(offline, offline, *pictures, evaluations=3, **options)
    assert set(long.pictures) == {"at3", "at6"}
    assert long.values["3"] == short.values["3"]
    assert torch.equal(long.pictures["at3"], short.pictures["at3"])


def test_the_ratio_orders_content_error(offline, pictures):
    recipe = dataclasses.replace(transfer.DEFAULT, style_layers=("relu1_1", "relu2_1"), layer_weights=None)
    errors = [
        transfers.weighted(offline, offline, *pictures, recipe=recipe, ratio=ratio, evaluations=15).values["15"][
            "content_error"
        ]
        for ratio in (0.01, 1.0, 100.0)
    ]
    assert errors == sorted(errors) and errors[0] < errors[2]


def test_bisection_ends_at_the_content_error(offline, pictures):
    recipe = dataclasses.replace(transfer.DEFAULT, style_layers=("relu1_1", "relu2_1"), layer_weights=None)
    ratio, run = transfers.at_content_error(
        offline, offline, *pictures, recipe=recipe, target=0.3, evaluations=15, tolerance=0.1, rounds=15
    )
    assert run.values["15"]["content_error"] == pytest.approx(0.3, rel=0.11)
    assert run.provenance["config"]["ratio"] == ratio


def test_inversion_and_texture_report_what_they_optimised(offline, pictures):
    content, style = pictures
    inverted = transfers.inversion(offline, content, "conv_1", evaluations=20)
    assert inverted.provenance["config"]["layer"] == "conv1_1"
    assert inverted.values["feature_error"] == pytest.approx(min(inverted.values["losses"]), rel=1e-4)
    made = transfers.texture(offline, offline, style, ["relu1_1"], judged=["relu1_1", "relu2_1"], evaluations=20)
    assert made.values["distances"]["relu1_1"] < made.values["losses"][0]
    assert set(made.values["distances"]) == {"relu1_1", "relu2_1"}
