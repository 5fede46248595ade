"""The search over settings of guidance: who draws, who judges, and which setting is recommended."""

import pytest
import torch

from ex4lib.diffusion.guidance import Guidance
from ex4lib.diffusion.pipelines import StyleGuidedStableDiffusionPipeline
from experiments import drawings, metrics, specificity
from experiments.drawings import CAPTIONS, PAINTINGS
from experiments.judge import Judge
from experiments.specificity import Evaluation, Setting
from tests.random_models import random_network, save_judge, save_stable_diffusion

PROMPTS, STYLES = CAPTIONS[:2], ("hokusai-great-wave", "arcimboldo-spring")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_stable_diffusion(folder / "sd")
    pipe = StyleGuidedStableDiffusionPipeline.from_pretrained(folder / "sd")
    pipe.set_progress_bar_config(disable=True)
    network = random_network("vgg16").float()
    judges = drawings.Judges(network, random_network("vgg16", seed=1).float(), Judge(save_judge(folder)))
    return pipe, {"judges": judges, "features": network}


def test_sets_of_paintings_and_prompts_are_apart():
    assert not set(specificity.CHOICE_PAINTINGS) & set(specificity.REPORT_PAINTINGS) and len(PAINTINGS) == 8
    assert not set(specificity.CHOICE_PROMPTS) & set(specificity.REPORT_PROMPTS)
    assert len(set(CAPTIONS)) == 64
    assert {*specificity.CHOICE_PROMPTS, *specificity.REPORT_PROMPTS} <= set(CAPTIONS)


def test_a_picture_depends_on_its_own_seed_alone(parts, picture):
    pipe, shared = parts
    call = {"style": picture(40, 40, dtype=torch.float32), "guidance": Guidance(0.2), "steps": 3}
    call |= {"features": shared["features"], "guidance_scale": 2.0}
    together, traces = drawings.draw(pipe, "a cat", [5, 6, 7], batch=2, **call)
    alone, _ = drawings.draw(pipe, "a cat", [6], **call)
    torch.testing.assert_close(together[1:2], alone, atol=2 / 255, rtol=0)
    assert [len(trace) for trace in traces] == [3, 3]


def test_repeated_steps_are_drawn_by_the_library_s_loop(parts, picture):
    pipe, shared = parts
    call = {"style": picture(40, 40, dtype=torch.float32), "steps": 3, "guidance_scale": 2.0}
    call |= {"features": shared["features"], "eta": 1.0}
    once, _ = drawings.draw(pipe, "a cat", [5], guidance=Guidance(0.2), **call)
    again, (trace,) = drawings.draw(pipe, "a cat", [5], guidance=Guidance(0.2, recurrence=2), **call)
    assert again.shape == once.shape and len(trace) == 3 and not torch.equal(once, again)


def test_every_picture_is_judged_against_all_paintings(parts):
    pipe, shared = parts
    kept = []
    setting = Setting(Guidance(0.5), steps=2, guidance_scale=2.0)
    found = specificity.evaluate(pipe, setting, STYLES, PROMPTS, [3, 4], keep=kept, **shared)
    pictures = torch.cat(kept)
    assert found.prompts == [PROMPTS[0]] * 4 + [PROMPTS[1]] * 4
    assert found.paintings == [STYLES[0]] * 2 + [STYLES[1]] * 2 + [STYLES[0]] * 2 + [STYLES[1]] * 2
    assert found.seeds == [3, 4] * 4
    expected = metrics.style_distances(pictures, PAINTINGS, shared["features"])
    torch.testing.assert_close(torch.stack(found.distances), expected)
    assert found.style_distance()[2] == expected[2, PAINTINGS.index(STYLES[1])]
    again = [shared["judges"].agree(x[None], prompt)[0] for x, prompt in zip(pictures, found.prompts, strict=True)]
    assert found.agrees == again


def test_unguided_pictures_are_drawn_once_and_judged_for_every_painting(parts, monkeypatch):
    pipe, shared = parts
    calls, draw = [], specificity.draw
    monkeypatch.setattr(specificity, "draw", lambda *args, **call: calls.append(args) or draw(*args, **call))
    options = {"steps": 2, "guidance_scale": 2.0}
    found = specificity.evaluate(pipe, None, STYLES, PROMPTS, [3], **options, **shared)
    assert len(calls) == len(PROMPTS) and found.paintings == [*STYLES, *STYLES]
    assert torch.equal(found.distances[0], found.distances[1])
    setting = Setting(Guidance(0.0), steps=2, guidance_scale=2.0)
    summary = specificity.summary(specificity.evaluate(pipe, setting, STYLES, PROMPTS, [3], **shared), found)
    assert summary["fall"] == 0 and summary["pictures"] == 4


def test_anchors_stand_beside_the_distances_of_each_painting(parts):
    pipe, shared = parts
    guided = {"painting": [STYLES[0], STYLES[0], STYLES[1]], "style": [1.0, 3.0, 5.0]}
    plain = {"painting": list(STYLES), "style": [6.0, 7.0]}
    rows = specificity.anchors_of(guided, plain, shared["features"], lambda x: specificity.round_trip(pipe, x))
    assert rows[STYLES[0]]["guided"] == 2 and rows[STYLES[1]]["unguided"] == 7
    assert {"flat grey", "another painting", "another crop", "encoded and decoded"} <= set(rows[STYLES[0]])


def test_a_calibration_is_computed_once(parts, monkeypatch):
    pipe, shared = parts
    settings = [Setting(Guidance(scale), steps=2, guidance_scale=2.0) for scale in (0.1, 0.3)]
    rows = specificity.calibrated(pipe, settings, STYLES, PROMPTS[:1], [3], **shared)
    assert [setting for setting, _ in rows] == settings and rows[0][1]["pictures"] == 2
    monkeypatch.setattr(specificity, "search", lambda *_, **__: pytest.fail("computed again"))
    assert specificity.calibrated(pipe, settings, STYLES, PROMPTS[:1], [3], **shared) == rows


def test_the_fall_of_agreement_is_paired():
    def evaluation(agrees):
        found = Evaluation(["a", "a", "b", "b"], [PAINTINGS[0]] * 4, [1, 2, 1, 2], agrees=agrees, seconds=2.0)
        found.distances = found.second = list(torch.eye(8).roll(1, 0)[:1].expand(4, 8))
        return found

    found = specificity.summary(evaluation([0.0, 1.0, 1.0, 1.0]), evaluation([1.0, 1.0, 1.0, 1.0]))
    assert found["fall"] == 0.25 and found["agreement"] == 0.75 and found["seconds"] == 0.5


def test_the_recommended_setting_keeps_the_prompt():
    def row(share, fall, rank=1.0, seconds=1.0):
        return Setting(Guidance(share)), {"specificity": share, "fall": fall, "mean rank": rank, "seconds": seconds}

    rows = [row(0.5, 0.0), row(0.9, 0.09), row(1.0, 0.3)]
    assert specificity.recommended(rows)[0].guidance.scale == 0.9
    assert specificity.recommended([*rows, row(0.9, 0.1, rank=0.5)])[1]["mean rank"] == 0.5
    assert specificity.recommended([row(1.0, 0.3), row(0.2, 0.2)])[0].guidance.scale == 0.2
    assert specificity.recommended([row(0.8, 0.25), row(1.0, 0.25), row(0.9, 0.4)])[0].guidance.scale == 1.0


def test_a_setting_is_named_by_what_it_changes():
    assert specificity.named(Setting(Guidance(0.2))) == "scale 0.2, method noise"
    changed = specificity.named(Setting(Guidance(0.2, window=(0.2, 1.0)), steps=50))
    assert "window (0.2, 1.0)" in changed and "steps 50" in changed
