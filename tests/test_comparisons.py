"""Tables, paired differences and matched strengths against closed forms, and one comparison from end to end."""

import itertools

import pytest

from ex4lib.diffusion.guidance import Guidance
from ex4lib.diffusion.pipelines import StyleGuidedStableDiffusionPipeline
from experiments import comparisons, sentences
from experiments.comparisons import Condition, Study, Way
from experiments.drawings import PAINTINGS, REPORT_PAINTINGS, Judges
from experiments.judge import Judge
from experiments.measures import Interval
from tests.random_models import random_network, save_judge, save_stable_diffusion


def table(seeds=range(4), **values):
    """A table of 2 prompts × 2 paintings; values are functions of (prompt, painting, seed) by number."""
    rows = {"prompt": [], "painting": [], "seed": []}
    for prompt, painting, seed in itertools.product(range(2), range(2), seeds):
        rows["prompt"].append(f"prompt {prompt}")
        rows["painting"].append(REPORT_PAINTINGS[painting])
        rows["seed"].append(seed)
        for name, value in values.items():
            rows.setdefault(name, []).append(value(prompt, painting, seed))
    return rows


def test_differences_are_paired_by_prompt_painting_and_seed():
    hard = lambda prompt, painting, seed: 10 * prompt + 3 * painting + seed  # noqa: E731
    first = table(style=lambda *key: hard(*key) + 0.5)
    second = table(seeds=[3, 1], style=hard)
    found = comparisons.difference(first, second, "style")
    assert tuple(found) == pytest.approx((0.5, 0.5, 0.5))  # what pairs share cancels
    assert found.count == 8 and found.clusters == {"prompt": 2, "painting": 2, "seed": 2}
    assert sentences.sample(found) == "N = 8: 2 prompts, 2 paintings, 2 seeds"
    with pytest.raises(ValueError, match="no picture of the same"):
        comparisons.difference(first, table(seeds=[9], style=hard), "style")


def test_the_removed_share_is_a_ratio_of_means():
    before = table(style=lambda prompt, painting, seed: 4.0 + seed)
    after = table(style=lambda prompt, painting, seed: 1.0 + seed / 4)
    assert tuple(comparisons.removed(after, before, "style")) == pytest.approx((0.75, 0.75, 0.75))


def test_methods_are_compared_where_their_style_is_equal():
    """Along strengths d = 1, 2, 3 the other method has agreement d / 4; at d = 2.5 that is 0.625."""
    noise = lambda prompt, painting, seed: 0.01 * (seed - 1.5)  # noqa: E731
    strengths = [
        table(style=lambda *key, d=d: d + noise(*key), agrees=lambda *key, d=d: (d + noise(*key)) / 4)
        for d in (3.0, 1.0, 2.0)
    ]
    target = table(style=lambda *key: 2.5 + noise(*key), agrees=lambda *key: 0.7 + noise(*key) / 4)
    found = comparisons.at_equal(target, strengths, "style", "agrees")
    assert tuple(found) == pytest.approx((0.075, 0.075, 0.075))
    far = table(style=lambda *key: 9.0, agrees=lambda *key: 0.7)
    assert comparisons.at_equal(far, strengths, "style", "agrees") is None


def test_confusion_counts_the_nearest_painting():
    rows = table(seeds=[0], style=lambda *key: 1.0) | {"first": [PAINTINGS[0]] * 3 + [REPORT_PAINTINGS[1]]}
    shares, labels = comparisons.confusion(rows)
    assert labels == [name for name in PAINTINGS if name in REPORT_PAINTINGS[:2]]
    assert [sum(row) for row in shares] == [1, 1]
    assert shares[labels.index(REPORT_PAINTINGS[1])][PAINTINGS.index(REPORT_PAINTINGS[1])] == 0.5


def test_overview_and_curves_carry_intervals_and_counts():
    tables = {"a": table(style=lambda *key: key[2] / 2), "a, weaker": table(style=lambda *key: 1 + key[2])}
    text = comparisons.overview(tables, ["style"])
    assert "| a | 16 | 0.75 (" in text and text.startswith("| | N | style distance |")
    (part,) = comparisons.trade_offs({"a": comparisons.curve("a", tables)}, [("style", "style")])
    x, y = part["series"]["a"]
    assert [point[0] for point in x] == [0.75, 2.5] and len(y[0]) == 3


def test_conditions_report_on_other_paintings_than_the_choice(monkeypatch):
    monkeypatch.setenv("EX4_PROFILE", "full")
    found = comparisons.conditions()
    assert found["guided, Gram"].pictures == 4 * 5 * 8 and found["unguided"].pictures == 4 * 8
    assert len(comparisons.curve("guided, Gram", found)) == len(comparisons.curve("transfer, MeanVar", found)) == 3
    assert set(found["guided, Gram"].paintings).isdisjoint(found["other paintings"].paintings)
    assert "| all | |" in comparisons.plan()


def test_a_comparison_from_end_to_end(tmp_path):
    save_stable_diffusion(tmp_path / "sd")
    pipe = StyleGuidedStableDiffusionPipeline.from_pretrained(tmp_path / "sd")
    pipe.set_progress_bar_config(disable=True)
    network = random_network("vgg16").float()
    judges = Judges(network, random_network("vgg16", seed=1).float(), Judge(save_judge(tmp_path / "judge")))
    study = Study(pipe, network, judges, steps=2, guidance_scale=2.0, evaluations=2, size=32)
    prompts, paintings, seeds = ["a cat"], list(comparisons.WORDS)[:2], [1, 0]
    ways = {"unguided": Way(), "guided": Way(Guidance(0.5)), "words": Way(words=True), "nst": Way(transfer_weight=1.0)}
    found = {name: study.table(Condition(way, prompts, paintings, seeds)) for name, way in ways.items()}
    for rows in found.values():
        assert rows["painting"] == [paintings[0]] * 2 + [paintings[1]] * 2 and rows["seed"] == [0, 1] * 2
        assert {*comparisons.MEASURES, "first", "second_first"} <= set(rows)
        assert {len(values) for values in rows.values()} == {4}
    assert found["unguided"]["content"] == [0] * 4 and min(found["guided"]["content"]) > 0
    assert comparisons.difference(found["guided"], found["unguided"], "content").mean > 0


def test_sentences_say_what_intervals_bear_out():
    above, unclear = Interval(0.1, 0.02, 0.2, 9), Interval(-0.01, -0.2, 0.1, 9)
    words = ("more", "less", "no clear difference")
    assert sentences.verdict(above, *words) == "more" and sentences.verdict(unclear, *words) == "no clear difference"
    assert sentences.percent(above) == "10 % (2 to 20)" and sentences.percent(0.125) == "12 %"
    assert sentences.points(above) == "+10 points (95 % interval +2 to +20)"
    assert sentences.number(1.234) == "1.23" and sentences.number(above, 1) == "0.1 (0.0 to 0.2)"
    assert sentences.say("One.", "", " Two. ").data == "One. Two."
