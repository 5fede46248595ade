"""Sentences of the comparisons from tables whose numbers are known."""

import itertools

import pytest

from experiments import claims, sentences
from experiments.comparisons import MEASURES, WORDS
from experiments.drawings import REPORT_PAINTINGS


def table(**means):
    """2 prompts × 3 paintings × 2 seeds; every measure is its mean plus what its pictures share."""
    rows = {"prompt": [], "painting": [], "seed": []}
    for prompt, painting, seed in itertools.product(("p", "q"), REPORT_PAINTINGS[:3], (0, 1)):
        for name, value in {"prompt": prompt, "painting": painting, "seed": seed}.items():
            rows[name].append(value)
        for name in MEASURES:
            rows.setdefault(name, []).append(means.get(name, 1.0) + 0.01 * seed)
    return rows


@pytest.fixture
def tables():
    found = {"unguided": table(style=4.0, agrees=0.9, colour=1.0, texture=1.0, content=0.0)}
    for loss, style in (("Gram", 1.0), ("MeanVar", 1.5)):
        found[f"guided, {loss}"] = table(style=style, agrees=0.8, colour=0.6, texture=0.2, content=0.7)
        found[f"guided, {loss}, scale × 2"] = table(style=style / 2, agrees=0.6, content=0.9)
        found[f"transfer, {loss}"] = table(style=0.5, agrees=0.5, content=0.5)
        found[f"transfer, {loss}, weight 0.1"] = table(style=2.0, agrees=0.8, content=0.2)
    return found | {"words": table(style=3.0, agrees=0.9), "both": table(style=0.7, agrees=0.8)}


def test_methods_are_described_at_their_defaults(tables):
    text = claims.at_default(tables, "guided, Gram")
    assert "the style distance falls by 75 %" in text and "changes by -10 points" in text and "N = 12" in text
    assert "colour distance falls by 40 %" in claims.colour_and_texture(tables, "guided, Gram")


def test_matched_sentences_take_the_side_of_the_interval(tables):
    # Transfer at the distance 1.0 has the agreement 0.6, guidance 0.8.
    text = claims.matched(tables, "Gram", "style", "agrees")
    assert "a higher prompt agreement: the difference is +20 points" in text
    assert "nothing compares" in claims.matched(tables, "Gram", "content", "style")


def test_comparison_b_and_the_reports_are_answered(tables):
    rows = claims.by_painting(tables, {"words": "words", "painting": "guided, Gram", "both": "both"})
    assert set(rows) == set(WORDS)
    text = claims.words_against(rows, "hokusai-great-wave")
    assert "nearer to the painting than the words “woodblock print” (-2.00" in text and "nearer still (-0.30" in text
    natural, colours, both, meanvar = claims.course_reports(tables, rows)
    assert "more often than after transfer (+20 points" in natural
    assert "colours.* No: the colour distance falls by 40 %" in colours and "superior.* Yes" in both
    assert "farther from the painting (0.50" in meanvar
    assert "ends farther from the painting by the Gram distance" in claims.losses_apart(tables)


def test_a_share_that_is_negative_grows():
    assert sentences.change(0.57) == "falls by 57 %" and sentences.change(-0.23) == "grows by 23 %"
