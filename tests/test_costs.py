"""The cost at equal specificity takes the weakest scale that reaches the target."""

from ex4lib.diffusion.guidance import Guidance
from experiments import costs, specificity
from experiments.specificity import Setting


def test_the_weakest_scale_that_reaches_the_target_counts(monkeypatch):
    drawn = []

    def search(pipe, settings, paintings, prompts, seeds, **_):
        for setting in settings:
            drawn.append(setting)
            share = min(1.0, setting.guidance.scale * (4 if setting.steps == 30 else 1))
            yield setting, {"specificity": share, "seconds": setting.steps / 10, "agreement": 0.9}

    monkeypatch.setattr(specificity, "search", search)
    settings = {"ours": Setting(Guidance(0.1)), "theirs": Setting(Guidance(0.1), steps=100)}
    ours, theirs = costs.cost_at_equal_specificity(None, settings, target=0.75, judges=None, features=None)
    assert ours["scale"] == 0.2 and ours["reached"] and ours["seconds"] == 3
    assert theirs["scale"] == 0.4 and not theirs["reached"] and theirs["seconds"] == 10
    assert len(drawn) == 3 + 4  # nothing is drawn after the target is reached


def test_other_papers_settings_are_compared_at_their_own_number_of_steps():
    assert {name: setting.steps for name, setting in costs.SETTINGS.items()} == {
        "ours": 30,
        "FreeDoM": 100,
        "MPGD": 100,
    }
