"""Stored distillation runs on random weights: what is stored is what the library and the command line do."""

import json

import pytest
import torch

from ex4lib import images
from ex4lib.diffusion.pipelines import StyleGuidedStableDiffusionPipeline
from experiments import distillations, measures
from experiments.assignment import ASSIGNMENT, distil_prompt
from experiments.canvases import CoordinateNetwork, Encoded
from experiments.distillation.loop import Canvas
from experiments.distillation.rules import literal_coefficient, tweedie_coefficients
from experiments.distillations import EDITS, LACKING, PROMPTS, Edit
from experiments.judge import Judge
from tests.random_models import random_network, save_judge, save_stable_diffusion
from training.prompts import unknown_words

QUICK = {"steps": 3, "warm_up": 1}


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    pipe = StyleGuidedStableDiffusionPipeline.from_pretrained(save_stable_diffusion(tmp_path_factory.mktemp("sd")))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return Judge(save_judge(tmp_path_factory.mktemp("judge")))


@pytest.fixture
def vgg():
    return random_network("vgg16").float()


def as_stored(picture):
    """Within what a JPEG of quality 92 changes."""
    return {"actual": picture, "atol": 0.15, "rtol": 0}


def test_the_tables_are_the_assignments():
    assert len(set(PROMPTS)) == 10 and {len(set(rows)) for rows in EDITS.values()} == {10}
    assert all(edit.source in PROMPTS for rows in EDITS.values() for edit in rows)
    assert Edit("A dog sitting on grass", "A golden retriever sitting on grass", seed=0) in EDITS["repository"]
    assert Edit("A castle next to a river", "A toy lego castle close to the pool") in EDITS["slides"]


def test_what_is_lacking_is_what_the_embedded_world_has_no_words_for():
    said = [*PROMPTS, *(edit.target for rows in EDITS.values() for edit in rows)]
    assert {prompt: words for prompt in said if (words := tuple(unknown_words(prompt)))} == LACKING


def test_a_drawing_is_the_command_lines_and_is_drawn_once(pipe, monkeypatch):
    call = {**QUICK, "guidance_scale": 5.0, "seed": 3}
    run = distillations.distilled(pipe, "a cat", frames=(1, 3), **call)
    expected = [step.image for step in distil_prompt(pipe, "a cat", loss="sds", **call)]
    torch.testing.assert_close(expected=expected[-1], **as_stored(run.pictures["0"]))
    torch.testing.assert_close(expected=expected[0], **as_stored(run.pictures["0-1"]))
    assert sorted(run.pictures) == ["0", "0-1", "0-3"] and len(run.values["gradient_rms"]) == 3
    monkeypatch.setattr(distillations, "distil_prompt", lambda *_, **__: pytest.fail("drawn again"))
    again = distillations.distilled(pipe, "a cat", frames=(3, 1), **call)
    assert torch.equal(again.pictures["0"], run.pictures["0"])


def test_other_weights_are_another_run(pipe, tmp_path, monkeypatch):
    other = StyleGuidedStableDiffusionPipeline.from_pretrained(save_stable_diffusion(tmp_path))
    with torch.no_grad():
        other.unet.conv_out.bias += 1
    paths = []
    monkeypatch.setattr(distillations, "stored", lambda *_, **given: paths.append(given["weights"]))
    for each in (pipe, other):
        distillations.distilled(each, "a cat", **QUICK)
        distillations.particles(each, "a cat", [0], **QUICK)
    assert paths[0] == paths[1] != paths[2] == paths[3]


def test_edits_go_in_one_batch(pipe, picture):
    sources = picture(32, 32, batch=2, dtype=torch.float32)
    edits = {"source": sources, "source_prompt": ["a cat", "a car"], "loss": "pds", **QUICK}
    run = distillations.distilled(pipe, ["a dog", "a car"], **edits)
    pictures = distillations.pictures(run)
    assert pictures.shape == (2, 3, 32, 32)
    unedited = pipe.denoiser("a car").space
    kept = unedited.render(unedited.encode(sources[1:]))
    torch.testing.assert_close(expected=kept, **as_stored(pictures[1:]))  # "a car" is what it was: no edit
    assert not torch.equal(distillations.pictures(distillations.distilled(pipe, ["a dog", "a bus"], **edits)), pictures)


@pytest.mark.parametrize("loss", ["sds", "vsd"])
def test_particles_are_one_per_seed_and_leave_the_unet_as_it_was(pipe, loss):
    before = list(pipe.unet.state_dict())
    run = distillations.particles(pipe, ["a cat", "a dog"], [0, 1], loss=loss, weight="constant", **QUICK)
    assert distillations.pictures(run).shape == (2, 3, 32, 32)
    assert not torch.equal(run.pictures["0"], run.pictures["1"]) and list(pipe.unet.state_dict()) == before


def test_the_gradient_reaches_the_pixels_and_only_them(pipe, generator):
    pixels = torch.randn(1, 3, 32, 32, generator=generator)
    canvas = Encoded(Canvas(pixels), pipe.vae)
    assert [name for name, _ in canvas.named_parameters()] == ["pixels.sample"]
    expected = pipe.denoiser("a cat").space.encode(pixels.tanh() / 2 + 0.5)
    torch.testing.assert_close(canvas(), expected, atol=1e-5, rtol=1e-4)
    (gradient,) = torch.autograd.grad(canvas().square().sum(), list(canvas.parameters()))
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("canvas", ["pixels", "coordinates"])
def test_other_canvases_show_their_own_pixels(pipe, canvas):
    run = distillations.particles(pipe, "a cat", [5], canvas=canvas, **QUICK)
    start = distillations._canvas(pipe, canvas, [torch.Generator().manual_seed(5)], 5)
    moved = (run.pictures["0"] - start.picture()).abs().mean()
    assert 0.001 < moved < 0.3
    network = CoordinateNetwork((3, 32, 32))
    assert run.values["parameters"] == (3072 if canvas == "pixels" else sum(x.numel() for x in network.parameters()))


def test_a_style_joins_in_with_the_share_that_is_asked_for(pipe, picture, vgg):
    style = picture(64, 64, dtype=torch.float32)
    plain = distillations.distilled(pipe, "a cat", **QUICK)
    one, four = (distillations.balanced_weight(pipe, vgg, style, plain, share) for share in (1.0, 4.0))
    assert four == pytest.approx(4 * one, rel=0.01)
    space = pipe.denoiser("a cat", guidance_scale=1.0).space
    clean = space.encode(plain.pictures["0"]).requires_grad_()
    (loss,) = distillations.style_objective(pipe, vgg, style)(space.decode(clean))
    (gradient,) = torch.autograd.grad(one * loss, clean)
    rule = sum(plain.values["gradient_rms"]) / 3
    assert gradient.square().mean().sqrt().item() == pytest.approx(rule, rel=0.01)
    longer = {"steps": 20, "warm_up": 2}
    heavy = distillations.distilled(pipe, "a cat", style=style, style_weight=100 * one, features=vgg, **longer)
    light = distillations.distilled(pipe, "a cat", **longer)
    near, far = (distillations.style_objective(pipe, vgg, style)(run.pictures["0"]).item() for run in (heavy, light))
    assert near < 0.9 * far


def test_judgements_against_their_definitions(judge, picture):
    pictures, prompts = picture(32, 32, batch=3, dtype=torch.float32), ["a cat", "a dog"]
    pictures[0] = torch.tensor([1.0, 0.5, 0.0]).view(3, 1, 1)
    found = distillations.judged(judge, pictures, prompts)
    torch.testing.assert_close(torch.tensor(found["cosines"]), judge.scores(pictures, prompts), atol=1e-5, rtol=0)
    features = judge.image_features(pictures)
    pairs = [1 - float(features[i] @ features[j]) for i in range(3) for j in range(3) if i != j]
    assert found["diversity"] == pytest.approx(sum(pairs) / 6, abs=1e-5)
    assert distillations.judged(judge, pictures[:1], prompts)["saturation"] == pytest.approx(1.0)
    assert distillations.judged(judge, pictures[:1], prompts)["diversity"] == pytest.approx(0, abs=1e-6)


def test_edits_are_judged_by_what_they_reached_and_kept(judge, picture, offline):
    sources, edits = picture(32, 32, batch=2, dtype=torch.float32), [Edit("a cat", "a dog"), Edit("a car", "a bus")]
    edited = sources.flip(-1)
    found = distillations.judged_edits(judge, offline, edited, sources, edits)
    for i, edit in enumerate(edits):
        pair = edited[i : i + 1], sources[i : i + 1]
        after, before = (float(judge.scores(x, [edit.target])) for x in pair)
        assert (found["after"][i], found["before"][i]) == (
            pytest.approx(after, abs=1e-5),
            pytest.approx(before, abs=1e-5),
        )
        assert found["ssim"][i] == pytest.approx(measures.ssim(*pair), rel=1e-4)
        assert found["lpips"][i] == pytest.approx(measures.perceptual_distance(offline, *pair), rel=1e-4)
        way = judge.text_features([edit.target]) - judge.text_features([edit.source])
        moved = judge.image_features(pair[0]) - judge.image_features(pair[1])
        assert found["direction"][i] == pytest.approx(torch.cosine_similarity(moved, way).item(), abs=1e-3)


def test_the_hand_in_holds_these_pictures_alone(judge, picture, tmp_path):
    distillations.graded(tmp_path, {"a boat in a river": picture(dtype=torch.float32)}, judge, name="mini-judge")
    one = picture(dtype=torch.float32)
    found = distillations.graded(tmp_path, {"A car on the road": one}, judge, name="mini-judge")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["A_car_on_the_road.png", "eval.json"]
    assert json.loads((tmp_path / "eval.json").read_text()) == found
    assert found["scores"] == {
        "A car on the road": pytest.approx(float(judge.scores(one, ["A car on the road"])), abs=2e-3)
    }
    torch.testing.assert_close(images.load(tmp_path / "A_car_on_the_road.png"), one, atol=1 / 255, rtol=0)


def test_the_literal_coefficient_is_one_over_the_tweedie_forms(pipe):
    for t in range(20, 981, 80):
        _, chi = tweedie_coefficients(pipe.scheduler, t)
        assert literal_coefficient(pipe.scheduler, t) * chi == pytest.approx(1, rel=1e-6)


def test_wrong_input_is_refused(pipe, picture):
    with pytest.raises(ValueError, match="loss must be sds or vsd"):
        distillations.particles(pipe, "a cat", [0], loss="pds", **QUICK)
    with pytest.raises(ValueError, match="2 prompts and 1 seeds"):
        distillations.particles(pipe, ["a cat", "a dog"], [0], **QUICK)
    with pytest.raises(ValueError, match="do not fit a canvas of coordinates"):
        distillations.particles(pipe, "a cat", [0, 1], canvas="coordinates", **QUICK)
    with pytest.raises(ValueError, match="a style needs features"):
        distillations.distilled(pipe, "a cat", style=picture(dtype=torch.float32), **QUICK)
    with pytest.raises(ValueError, match="pds needs a source"):
        distillations.distilled(pipe, "a cat", loss="pds", **QUICK)


def test_costs_are_of_every_loss_and_leave_the_unet_as_it_was(pipe, tmp_path, monkeypatch):
    monkeypatch.setenv("EX4_FIGURES", str(tmp_path))
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    found = distillations.costs(pipe, "a cat", torch.rand(1, 3, 32, 32), "a dog", rounds=2, updates=1).values
    assert found.keys() == ASSIGNMENT.keys() and all(seconds > 0 for seconds in found.values())
    after = pipe.unet.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
