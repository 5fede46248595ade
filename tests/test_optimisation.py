"""The loop: where it ends, what it counts, and what it does when a loss goes wrong."""

import gc
import weakref

import pytest
import torch

from ex4lib.optimisation import PATIENCE, STALL, finish, optimise
from ex4lib.statistics import mean_square


class Quadratic:
    """``Σ d (x - x*)²`` with its minimum inside (0, 1); counts its calls."""

    def __init__(self, generator, shape=(1, 3, 6, 5), break_at=(), broken=float("nan")):
        self.minimum = 0.1 + 0.8 * torch.rand(shape, generator=generator, dtype=torch.float64)
        self.curvature = 0.2 + 5 * torch.rand(shape, generator=generator, dtype=torch.float64)
        self.calls, self.break_at, self.broken = 0, set(break_at), broken

    def __call__(self, image):
        self.calls += 1
        loss = (self.curvature * (image - self.minimum).square()).sum((1, 2, 3))
        return loss * self.broken if self.calls in self.break_at else loss

    def start(self):
        return torch.full_like(self.minimum, 0.5)


METHODS = pytest.mark.parametrize("optimiser", ["lbfgs", "adam"])


@METHODS
def test_a_quadratic_reaches_its_minimum(generator, optimiser):
    objective = Quadratic(generator)
    result = finish(optimise(objective, objective.start(), optimiser=optimiser, evaluations=300))
    torch.testing.assert_close(result.image, objective.minimum, rtol=0, atol=1e-3)
    assert result.losses[-1] < 1e-4 * result.losses[0]
    assert result.notes == []


def test_lbfgs_needs_few_evaluations_whatever_the_scale_of_the_loss(generator):
    for scale in (1e-6, 1.0, 1e6):
        objective = Quadratic(torch.Generator().manual_seed(1))
        objective.curvature *= scale
        result = finish(optimise(objective, objective.start(), evaluations=60))
        torch.testing.assert_close(result.image, objective.minimum, rtol=0, atol=1e-3)


@METHODS
def test_a_minimum_outside_the_range_ends_at_its_border(generator, optimiser):
    objective = Quadratic(generator)
    objective.minimum[:, 0], objective.minimum[:, 1] = -0.5, 1.5
    result = finish(optimise(objective, objective.start(), optimiser=optimiser, evaluations=150))
    assert result.image.min() >= 0 and result.image.max() <= 1
    assert result.image[:, 0].max() < 0.05 and result.image[:, 1].min() > 0.95


@METHODS
@pytest.mark.parametrize("evaluations", [1, 2, 13])
def test_one_step_is_one_evaluation(generator, optimiser, evaluations):
    objective = Quadratic(generator)
    steps = list(optimise(objective, objective.start(), optimiser=optimiser, evaluations=evaluations))
    assert objective.calls == len(steps) == evaluations
    assert [step.index for step in steps] == list(range(1, evaluations + 1))
    assert {step.total for step in steps} == {evaluations}


@METHODS
def test_a_step_s_loss_belongs_to_its_image(generator, optimiser):
    objective = Quadratic(generator, (2, 3, 6, 5))
    lowest = float("inf")
    for step in optimise(objective, objective.start(), optimiser=optimiser, evaluations=12):
        torch.testing.assert_close(objective(step.image), step.loss)
        assert step.image.min() >= 0 and step.image.max() <= 1
        lowest = min(lowest, step.loss.sum().item())
        assert objective(step.best).sum().item() == pytest.approx(lowest)


@METHODS
def test_the_first_image_is_the_start(generator, optimiser):
    objective = Quadratic(generator)
    start = 0.05 + 0.9 * torch.rand(1, 3, 6, 5, generator=generator, dtype=torch.float64)
    step = next(optimise(objective, start, optimiser=optimiser))
    torch.testing.assert_close(step.image, start)


@METHODS
def test_black_and_white_can_be_left(generator, optimiser):
    """A start at the ends of the range, where the parametrisation is flattest."""
    objective = Quadratic(generator)
    start = (torch.rand(1, 3, 6, 5, generator=generator, dtype=torch.float64) > 0.5).double()
    result = finish(optimise(objective, start, optimiser=optimiser, evaluations=300))
    torch.testing.assert_close(result.image, objective.minimum, rtol=0, atol=2e-3)


@METHODS
def test_the_result_is_the_best_image_seen(optimiser):
    """The last loss is higher, but not so high that it counts as a failure."""
    objective = Quadratic(torch.Generator().manual_seed(2), break_at=[4], broken=5.0)
    result = finish(optimise(objective, objective.start(), optimiser=optimiser, evaluations=4))
    assert result.losses[-1] > min(result.losses) and result.notes == []
    assert objective(result.image).item() == pytest.approx(min(result.losses))


@METHODS
def test_the_same_start_gives_the_same_bits(offline, optimiser):
    from ex4lib.losses import Objective, style_terms

    style = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    objective = Objective(offline, style_terms(offline, style, ["relu1_1", "relu3_1"], relative=True))
    runs = [finish(optimise(objective, 1 - style, optimiser=optimiser, evaluations=6)) for _ in range(2)]
    assert torch.equal(runs[0].image, runs[1].image)
    assert runs[0].losses == runs[1].losses


def test_a_batch_with_adam_is_its_images(generator):
    objective = Quadratic(generator, (2, 3, 6, 5))
    together = finish(optimise(objective, objective.start(), optimiser="adam", evaluations=20)).image
    for i in range(2):
        alone = Quadratic(generator)
        alone.minimum, alone.curvature = objective.minimum[i : i + 1], objective.curvature[i : i + 1]
        got = finish(optimise(alone, alone.start(), optimiser="adam", evaluations=20)).image
        torch.testing.assert_close(together[i : i + 1], got)


def test_terms_are_reported(generator):
    quadratic = Quadratic(generator)

    class Parts:
        def terms(self, image):
            loss = quadratic(image)
            return {"a": 0.25 * loss, "b": 0.75 * loss}

    result = finish(optimise(Parts(), quadratic.start(), evaluations=5))
    assert set(result.terms) == {"a", "b"} and quadratic.calls == 5
    assert [a + b for a, b in zip(result.terms["a"], result.terms["b"], strict=True)] == pytest.approx(result.losses)
    assert result.terms["b"] == pytest.approx([3 * a for a in result.terms["a"]])


# --- losses that go wrong -----------------------------------------------------------------------------------------


@METHODS
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 1e6])
def test_a_broken_evaluation_rolls_back_and_the_loop_goes_on(generator, optimiser, broken):
    objective = Quadratic(generator, break_at=[6], broken=broken)
    with pytest.warns(RuntimeWarning, match="evaluation 6: loss .*back to the best image, half the step"):
        steps = list(optimise(objective, objective.start(), optimiser=optimiser, evaluations=150))
    assert len(steps) == 150 and objective.calls == 150
    assert [step.index for step in steps if step.note] == [6]
    assert steps[5].best.isfinite().all()
    torch.testing.assert_close(steps[6].image, steps[4].best)  # back to the best of the first five
    torch.testing.assert_close(steps[-1].best, objective.minimum, rtol=0, atol=0.02)


@METHODS
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_first_step_after_a_failure_is_half_as_long(generator, optimiser):
    """Adam's first step is its rate in every pixel; that of L-BFGS has an rms of 0.02 in asin(2x - 1)."""
    objective = Quadratic(generator, break_at=[3])
    steps = list(optimise(objective, objective.start(), optimiser=optimiser, evaluations=5))

    def length(before, after):
        if optimiser == "adam":
            return (after.image - before.image).abs().mean().item()
        return (torch.asin(2 * after.image - 1) - torch.asin(2 * before.image - 1)).square().mean().sqrt().item()

    full = 0.03 if optimiser == "adam" else 0.02
    assert length(steps[0], steps[1]) == pytest.approx(full, rel=1e-4)
    assert length(steps[3], steps[4]) == pytest.approx(full / 2, rel=1e-4)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_notes_reach_the_result(generator):
    objective = Quadratic(generator, break_at=[3, 5])
    result = finish(optimise(objective, objective.start(), evaluations=8))
    assert len(result.notes) == 2 and result.evaluations == 8
    assert result.image.isfinite().all()
    objective.break_at = set()
    assert objective(result.image).item() == pytest.approx(min(loss for loss in result.losses if loss == loss))


@METHODS
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_loop_without_hope_ends_with_its_best_image(generator, optimiser):
    objective = Quadratic(generator, break_at=range(4, 1000))
    result = finish(optimise(objective, objective.start(), optimiser=optimiser, evaluations=500))
    assert result.evaluations == 3 + PATIENCE
    objective.break_at = set()
    assert objective(result.image).item() == pytest.approx(min(result.losses[:3]))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_start_without_a_loss_is_an_error(generator, broken):
    objective = Quadratic(generator, break_at=[1], broken=broken)
    with pytest.raises(ValueError, match="not finite at the start"):
        next(optimise(objective, objective.start()))


@METHODS
@pytest.mark.filterwarnings("error")
def test_a_start_at_the_minimum_is_no_failure(generator, optimiser):
    objective = Quadratic(generator)
    objective.minimum = objective.start()  # exactly representable by both parametrisations
    result = finish(optimise(objective, objective.start(), optimiser=optimiser, evaluations=12))
    assert result.losses == [0.0] * 12 and result.notes == []
    assert torch.equal(result.image, objective.minimum)


# --- manners ------------------------------------------------------------------------------------------------------


@METHODS
def test_an_abandoned_loop_leaves_nothing_behind(generator, optimiser):
    objective, gradients = Quadratic(generator), torch.is_grad_enabled()
    start = objective.start()
    before, alive = start.clone(), weakref.ref(objective)
    steps = optimise(objective, start, optimiser=optimiser, evaluations=100)
    for _ in range(3):
        step = next(steps)
    calls = objective.calls
    steps.close()
    assert calls == objective.calls == 3
    assert torch.equal(start, before) and not start.requires_grad and start.grad is None
    assert torch.is_grad_enabled() == gradients
    del objective, steps, step
    gc.collect()
    assert alive() is None


def test_it_works_where_gradients_are_off(generator):
    objective = Quadratic(generator)
    with torch.no_grad():
        result = finish(optimise(objective, objective.start(), evaluations=60))
    torch.testing.assert_close(result.image, objective.minimum, rtol=0, atol=1e-3)
    assert not result.image.requires_grad


def test_the_callback_sees_every_step(generator):
    objective, seen = Quadratic(generator), []
    result = finish(optimise(objective, objective.start(), evaluations=5), callback=lambda step: seen.append(step))
    assert [step.index for step in seen] == [1, 2, 3, 4, 5]
    assert [step.loss.item() for step in seen] == result.losses


def test_no_bar_unless_asked_for(generator, capsys):
    objective = Quadratic(generator)
    finish(optimise(objective, objective.start(), evaluations=2))
    assert capsys.readouterr() == ("", "")
    finish(optimise(objective, objective.start(), evaluations=2), progress=True)
    assert "2/2" in capsys.readouterr().err


def test_a_channels_last_start(generator):
    objective = Quadratic(generator)
    start = objective.start().contiguous(memory_format=torch.channels_last)
    result = finish(optimise(objective, start, evaluations=60))
    torch.testing.assert_close(result.image, objective.minimum, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimiser": "sgd"}, "optimiser must be lbfgs or adam, got 'sgd'"),
        ({"evaluations": 0}, "evaluations must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number above 0"),
        ({"init": torch.full((1, 3, 4, 4), float("nan"))}, "init must lie in"),
        ({"init": torch.zeros(3, 4, 4)}, "init must have shape"),
    ],
)
def test_bad_arguments(generator, options, message):
    objective = Quadratic(generator)
    with pytest.raises(ValueError, match=message):
        next(optimise(objective, **({"init": objective.start()} | options)))
    assert objective.calls == 0


@METHODS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_start_is_optimised_in_float32(generator, optimiser, dtype):
    start, target = torch.rand(2, 1, 3, 8, 8, generator=generator).to(dtype)
    arguments = {"optimiser": optimiser, "evaluations": 60, "fallback": start}
    result = finish(optimise(lambda x: mean_square(x, target), start, **arguments))
    assert result.image.dtype == torch.float32
    assert result.loss < 0.1 * result.losses[0]


@METHODS
@pytest.mark.parametrize("offset", [-1000.0, -1.0, 0.0, 3.0])
def test_losses_of_any_sign(generator, optimiser, offset):
    objective = Quadratic(generator)
    result = finish(
        optimise(lambda image: objective(image) + offset, objective.start(), optimiser=optimiser, evaluations=300)
    )
    torch.testing.assert_close(result.image, objective.minimum, rtol=0, atol=5e-3)
    assert result.loss == pytest.approx(min(result.losses))


@METHODS
def test_a_mean_can_be_raised(optimiser):
    start = torch.full((1, 3, 4, 4), 0.5)
    result = finish(optimise(lambda image: -image.mean((1, 2, 3)), start, optimiser=optimiser, evaluations=100))
    assert result.image.min() > 0.95 and result.loss < -0.95


@METHODS
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_gradient_that_is_not_finite_is_noticed_at_its_step(generator, optimiser):
    objective = Quadratic(generator)

    def cracked(image):
        loss = objective(image)
        if objective.calls == 4:
            loss = loss + (image.sum() * 0).sqrt()  # 0, with an infinite slope
        return loss

    steps = list(optimise(cracked, objective.start(), optimiser=optimiser, evaluations=20))
    assert [step.index for step in steps if step.note] == [4]
    assert all(step.image.isfinite().all() for step in steps)


@METHODS
def test_a_fallback_is_kept_until_something_better_is_found(generator, optimiser):
    objective = Quadratic(generator)
    steps = list(optimise(objective, objective.start(), optimiser=optimiser, evaluations=3, fallback=objective.minimum))
    assert steps[-1].lowest == 0 and torch.equal(steps[-1].best, objective.minimum)
    better = list(
        optimise(objective, objective.start(), optimiser=optimiser, fallback=torch.zeros_like(objective.start()))
    )
    assert objective(better[-1].best) < 0.01 * objective(objective.start())


def test_seconds_end_the_loop(generator):
    objective = Quadratic(generator)
    assert finish(optimise(objective, objective.start(), seconds=0)).evaluations == 1
    assert finish(optimise(objective, objective.start(), evaluations=10**9, seconds=0.2)).seconds < 5


def test_an_empty_loop_has_no_result():
    with pytest.raises(ValueError, match="no steps"):
        finish(iter(()))


def test_lbfgs_that_lost_its_way_goes_back_to_the_best_image(picture):
    """Without the rule, full steps may wander for ever above a loss that was reached, as MeanVar did from noise."""
    calls = []

    def objective(image):
        calls.append(image.detach().clone())
        # Falls for five evaluations, then lies higher for twelve whatever the image, then falls again.
        level = 20.0 - len(calls) if len(calls) <= 5 or len(calls) > 17 else 20.0
        return level + 1e-6 * image.square().mean((1, 2, 3))

    steps = list(optimise(objective, picture(8, 8, dtype=torch.float32), evaluations=20))
    noted = [step.index for step in steps if step.note]
    assert noted == [5 + STALL]
    assert torch.equal(steps[noted[0]].image, steps[4].image)  # the next evaluation is at the best image


def test_an_objective_without_the_image_is_an_error():
    with pytest.raises(ValueError, match="the objective does not depend on the image"):
        next(optimise(lambda image: torch.ones(len(image)), torch.full((1, 3, 4, 4), 0.5)))
