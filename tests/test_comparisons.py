"""Summaries against NumPy, the jackknife against the spread of fresh samples, and what tables and curves show."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ex4lib import figures
from ex4lib.metrics import kernel_distance
from experiments import comparisons


def judged(count: int, seed: int, shift: float = 0.0) -> dict[str, list]:
    generator = torch.Generator().manual_seed(seed)
    features = F.normalize(torch.randn(count, 8, generator=generator) + shift, dim=1)
    scores = {n: torch.rand(count, generator=generator).tolist() for n in comparisons.MEASURES if n != "kid"}
    return scores | {"features": features.tolist()}


def test_a_summary_pools_pictures_of_all_runs():
    rows, reference = [judged(5, 0), judged(9, 1)], judged(20, 2)["features"]
    found = comparisons.summary(rows, reference)
    for name in comparisons.MEASURES:
        mean, low, high = found[name]
        assert low < mean < high
        if name != "kid":
            assert mean == pytest.approx(np.mean(rows[0][name] + rows[1][name]))
    own = torch.tensor(rows[0]["features"] + rows[1]["features"])
    assert found["kid"][0] == pytest.approx(1000 * kernel_distance(own * 8**0.5, torch.tensor(reference) * 8**0.5))


def test_the_jackknife_knows_how_far_fresh_samples_spread():
    reference = judged(60, 99)["features"]
    found = [comparisons.summary([judged(40, seed, 0.5)], reference)["kid"] for seed in range(40)]
    spread = np.std([kid for kid, _, _ in found])
    told = np.mean([(high - low) / 2 / 1.96 for _, low, high in found])
    assert told == pytest.approx(spread, rel=0.35)


def test_a_measure_that_some_rows_lack_is_left_out_of_the_table():
    whole = comparisons.summary([judged(5, 0)], judged(6, 1)["features"])
    part = {name: values for name, values in whole.items() if name != "content"}
    text = comparisons.table({"guided": whole, "words": part})
    assert "prompt agreement" in text and "content" not in text
    assert len({len(line) for line in text.split("\n")}) == 1


def test_curves_carry_their_intervals():
    rows = [comparisons.summary([judged(5, seed)], judged(6, 9)["features"]) for seed in (0, 1, 2)]
    parts = comparisons.trade_offs({"guided": rows}, [("gram", "agrees"), ("gram", "kid")])
    figure = figures.panels(parts)
    container = figure.axes[0].containers[0]
    assert container.lines[0].get_xdata() == pytest.approx([row["gram"][0] for row in rows])
    bars = container.lines[2][1].get_segments()
    assert [tuple(bar[:, 1]) for bar in bars] == [pytest.approx(row["agrees"][1:]) for row in rows]
    assert figure.axes[1].get_ylabel() == "KID × 1000"
