"""Scores of pictures against explicit formulas, with a judge whose opinions are known."""

import pytest
import torch

from experiments import loop_scores, measures, metrics
from tests.opinions import Opinionated, plain
from tests.random_models import random_network


def test_what_guidance_trades():
    pictures = torch.cat([plain(1.0, 0, 0), plain(1.0, 0, 0), plain(0.5, 0.5, 0.5)])
    found = loop_scores.sampling_scores(Opinionated(), pictures, "red", rivals=["green", "yellow"])
    assert found["score"] == pytest.approx((1 + 1 + 3**-0.5) / 3)
    assert found["agreement"] == pytest.approx(2 / 3)
    assert found["diversity"] == pytest.approx(2 / 3 * (1 - 3**-0.5))
    assert found["saturation"] == pytest.approx(2 / 3) and found["clipped"] == pytest.approx(2 / 3)


def test_fidelity_is_the_metrics_with_lpips_at_64(picture):
    network = random_network("vgg16", channels=(64, 128, 256, 512, 512)).float()
    own, other = picture(32, 32, batch=4, dtype=torch.float32).split(2)
    found = loop_scores.fidelity(network, own, other)
    to_one = loop_scores.fidelity(network, own, other[:1])
    assert to_one["psnr"][0] == found["psnr"][0] and to_one["psnr"][1] != found["psnr"][1]
    for i, (a, b) in enumerate(zip(own.split(1), other.split(1), strict=True)):
        assert found["psnr"][i] == metrics.psnr(a, b) and found["ssim"][i] == measures.ssim(a, b)
        large = [torch.nn.functional.interpolate(x, (64, 64), mode="bicubic", antialias=True).clamp(0, 1)
                 for x in (a, b)]  # fmt: skip
        assert found["lpips"][i] == pytest.approx(measures.perceptual_distance(network, *large), rel=1e-5)


def test_held_out_scenes_are_cut_without_their_frame():
    scenes = loop_scores.held_out_scenes(128)
    assert scenes.shape == (16, 3, 128, 128)
    edges = torch.cat([scenes[..., 0, :], scenes[..., -1, :], scenes[..., 0], scenes[..., -1]], -1)
    assert not (edges > 0.98).all(1).flatten(1).all(1).any()  # white frames would be white all around
    assert loop_scores.held_out_scenes(32).shape == (16, 3, 32, 32)
