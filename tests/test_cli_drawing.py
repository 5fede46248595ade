"""The commands of guided drawing, distillation and grading, on models of random weights."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from ex4lib import cli, models
from ex4lib.cli import guide
from ex4lib.diffusion.guidance import PRESETS
from experiments import grading
from experiments.__main__ import main as experiments_main
from experiments.judge import Judge
from tests.random_models import random_network, save_judge, save_stable_diffusion


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture
def run(monkeypatch, capsys):
    features = models.features
    monkeypatch.setattr(
        models, "features", lambda name=None, **_: features(name) if name else random_network("vgg16").float()
    )

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["ex4lib", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            (experiments_main if arguments[0] in ("distil", "evaluate", "sweep") else cli.main)()
        return end.value.code, *capsys.readouterr()

    return call


def test_guide_draws_and_remembers_how(run, folder, tmp_path):
    output, preview = tmp_path / "cat.png", tmp_path / "preview.png"
    command = ["guide", "a cat", "hokusai-great-wave", "-o", output, "--model", folder, "--steps", "3"]
    code, out, _ = run(*command, "--window", "0,0.9", "--ramp", "late", "--preview", preview)
    assert code == 0 and "3 guided steps" in out
    with Image.open(output) as picture:
        settings = json.loads(picture.text["ex4lib"])
        assert picture.size == (32, 32)
    assert settings["guidance"]["window"] == [0, 0.9] and settings["guidance"]["ramp"] == "late"
    assert Image.open(preview).size == (32, 32)
    first = output.read_bytes()
    run(*command, "--window", "0,0.9", "--ramp", "late")
    assert output.read_bytes() == first
    run(*command, "--style-scale", "0")
    assert output.read_bytes() != first


def test_an_empty_prompt_draws_a_picture_of_anything(run, folder, tmp_path):
    code, out, err = run(
        "guide", "", "chelsea", "-o", tmp_path / "x.png", "--model", folder, "--preset", "full", "--steps", "2"
    )
    assert code == 0 and "2 guided steps" in out, err


def test_a_sweep_looks_at_the_folder_of_runs_before_it_draws(run, tmp_path, monkeypatch):
    (tmp_path / "figures").write_text("no folder")
    monkeypatch.setenv("EX4_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setattr("ex4lib.diffusion.pipelines.stable_diffusion", lambda *_: pytest.fail("loaded"))
    (tmp_path / "sweep.yaml").write_text("prompts: [a cat]\nstyles: [chelsea]\n")
    code, _, err = run("sweep", tmp_path / "sweep.yaml", "-o", tmp_path / "x.csv")
    assert code == 1 and "drawn.jsonl' cannot be written there" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("extra", "shape"),
    [
        (["--size", "40x24", "--scheduler", "EulerDiscrete", "--negative-prompt", "fog"], (40, 24)),
        (["--image", "chelsea", "--size", "32x24", "--strength", "0.7"], (32, 24)),
        (["--image", "chelsea", "--size", "32", "--strength", "1", "--mask", "MASK", "--scheduler", "DDIM"], (32, 32)),
    ],
)
def test_guide_takes_sizes_schedulers_and_pictures(run, folder, tmp_path, extra, shape):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    mask.save(tmp_path / "mask.png")
    extra = [str(tmp_path / "mask.png") if part == "MASK" else part for part in extra]
    command = ["guide", "a cat", "hokusai-great-wave", "-o", tmp_path / "cat.png", "--model", folder, "--steps", "3"]
    code, out, err = run(*command, *extra, "--count", "2")
    assert code == 0 and "guided steps" in out, err
    first, second = (Image.open(tmp_path / f"cat-{number}.png") for number in (1, 2))
    assert first.size == second.size == shape and first.tobytes() != second.tobytes()
    assert not (tmp_path / "cat.png").exists()
    if "--mask" in extra:  # diffusers encodes the picture once for all, with the first generator
        return
    run(*command, *extra, "--seed", "1")
    with Image.open(tmp_path / "cat.png") as alone:  # a picture does not depend on those drawn with it
        levels = abs(np.asarray(alone).astype(int) - np.asarray(second))
    assert levels.mean() < 1


@pytest.mark.parametrize(
    ("loss", "extra"),
    [("sds", []), ("vsd", []), ("pds", ["--edit-prompt", "a dog", "--src-img", "chelsea"])],
)
def test_distil_names_the_picture_after_its_prompt(run, folder, tmp_path, loss, extra):
    command = ["distil", "--prompt", "a cat on a table", "--loss", loss, *extra, "-o", tmp_path, "--model", folder]
    code, out, err = run(*command, "--step", "3", "--every", "2")
    assert code == 0, err
    name = "a_dog" if extra else "a_cat_on_a_table"
    assert f"{name}.png: 3 updates" in out
    assert Image.open(tmp_path / f"{name}.png").size == (32, 32)
    assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == [f"{name}-0000.png", f"{name}-0002.png"]


def test_evaluate_scores_every_picture_by_its_name(run, folder, tmp_path):
    judge = save_judge(tmp_path / "judge")
    pictures = tmp_path / "drawn"
    pictures.mkdir()
    for prompt, colour in (("a cat", "red"), ("A car on the road", "blue")):
        Image.new("RGB", (40, 40), colour).save(pictures / grading.file_name(prompt))
    code, out, _ = run("evaluate", pictures, "--judge", judge)
    found = json.loads((pictures / "eval.json").read_text())
    assert code == 0 and "no points" in out and set(found["scores"]) == {"a cat", "A car on the road"}
    assert found["score"] == pytest.approx(sum(found["scores"].values()) / 2, abs=1e-4) and found["points"] is None


@pytest.mark.parametrize(
    ("score", "expected"), [(0.3, 10), (0.28, 5), (0.26, 5), (0.2599, 0), (0.24, 0), (0.2, 0), (-0.1, 0)]
)
def test_points_are_the_assignments(score, expected):
    assert grading.points(score) == expected


def test_only_the_assignments_judge_gives_points(folder, tmp_path):
    judge = Judge.load(save_judge(tmp_path / "clip-vit-base-patch32"), device="cpu")
    Image.new("RGB", (40, 40)).save(tmp_path / "a_cat.png")
    assert grading.evaluate_folder(tmp_path, judge, name="openai/clip-vit-base-patch32")["points"] in (0, 5, 10)


GUIDE = ["guide", "a cat", "hokusai-great-wave", "-o", "x.png"]
#: A pipeline that cannot be loaded: what is refused before is refused without it.
UNUSED = ["--model", "no/such/folder"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["guide", "a cat", "hokusai-great-wave", "-o", "x.png", "--preset", "best"],
            "preset must be default, in-pixels",
        ),
        (
            ["guide", "a cat", "hokusai-great-wave", "-o", "x.png", "--window", "0.2"],
            "window must be fractions 0 <=",
        ),
        (["guide", "a cat", "no-such-style", "-o", "x.png"], "no shipped picture of that name"),
        (["guide", "a cat", "hokusai-great-wave", "-o", "x.txt"], "must end in .png"),
        ([*GUIDE, "--size", "36"], "size must be a multiple of 8, got 36"),
        ([*GUIDE, "--size", "-5"], "size must be a side or WIDTHxHEIGHT"),
        ([*GUIDE, "--steps", "0"], "steps must be at least 1, got 0"),
        ([*GUIDE, "--count", "0"], "count must be at least 1, got 0"),
        ([*GUIDE, "--seed", "99999999999999999999"], "seed must be at most"),
        ([*GUIDE, "--eta", "3"], "eta must be a finite number from 0 to 1, got 3.0"),
        ([*GUIDE, "--style-scale", "1e400"], "style_scale must be a finite number"),
        ([*GUIDE, "--style-scale", "1e30"], "style_scale must be a finite number from 0 to 1000, got 1e+30"),
        ([*GUIDE, "--style-weights", "1,2"], "style_weights must be 1 finite weights"),
        ([*GUIDE, "--style-loss", "grams"], "style_loss must be gram"),
        ([*GUIDE, "--regions", "a.png,b.png"], "regions must be one per style: 1 styles, 2 masks"),
        (["guide", " ", *GUIDE[2:]], "prompt must hold words, or be empty for a picture of anything, got ' '"),
        ([*GUIDE, "--guidance-scale", "nan"], "guidance_scale must be a finite number"),
        ([*GUIDE, "--mask", "x.png"], "--mask needs --image"),
        ([*GUIDE, "--image", "chelsea", "--strength", "0"], "strength must be a finite number above 0"),
        ([*GUIDE, "--model", "no/such/folder"], "no/such/folder"),
        ([*GUIDE, *UNUSED, "--network", "foo"], "must be vgg19, vgg16 or vgg16-hed, got 'foo'"),
        ([*GUIDE, *UNUSED, "--scheduler", "Foo"], "scheduler must be DDPMScheduler, DDIM"),
        (
            [*GUIDE, *UNUSED, "--preset", "freedom"],
            "in-pixels, full, cheap, algorithm-1 or mpgd, got",
        ),
        (
            [*GUIDE, *UNUSED, "--seed", "18446744073709551615", "--count", "2"],
            "seed must be at most 18446744073709551614",
        ),
        (["distil", "--prompt", "a/b", "-o", "x"], "must not be empty nor hold '/'"),
        (["distil", "--prompt", "a cat", "-o", "x", "--loss", "pds"], "pds needs a source, a prompt for the source"),
        (
            ["distil", "--prompt", "a cat", "-o", "x", "--src-img", "chelsea", "--edit-prompt", "a dog"],
            "takes no source",
        ),
        (["distil", "--prompt", "a cat", "-o", "x", "--loss", "xds"], "loss must be sds, vsd, pds or dds, got 'xds'"),
        (["evaluate", "."], "there are no .png pictures"),
        (["evaluate", "taken"], "cannot be written there"),
        (["distil", "--prompt", "a cat", "-o", "x", "--step", "0"], "step must be at least 1, got 0"),
        (["distil", "--prompt", "a cat", "-o", "x", "--guidance-scale", "inf"], "guidance_scale must be a finite"),
        (["distil", "--prompt", "a" * 249, "-o", "x", "--every", "1"], "file systems take at most 255"),
        (["distil", "--prompt", "a cat", "-o", "sweep.yaml"], "cannot be written there"),
        (["sweep", "missing.yaml", "-o", "x.csv"], "there is no file 'missing.yaml'"),
        (["sweep", "taken", "-o", "x.csv"], "'taken' cannot be read or written: is a directory"),
        (["sweep", "sweep.yaml", "-o", "sweep.yaml/x.csv"], "cannot be written there"),
    ],
)
def test_a_mistake_is_one_sentence(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ex4lib.diffusion.pipelines.stable_diffusion", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr(Judge, "load", lambda *_: pytest.fail("loaded"))
    (tmp_path / "taken" / "eval.json").mkdir(parents=True)
    (tmp_path / "taken" / "a cat.png").write_bytes(b"")
    (tmp_path / "sweep.yaml").write_text("prompts: [a cat]\nstyles: [chelsea]\n")
    code, _, err = run(*arguments)
    assert code == 1 and message in err and err.count("\n") == 1, err


def test_without_guidance_there_is_a_preview_and_ctrl_c_keeps_the_picture(run, folder, tmp_path, monkeypatch):
    preview, output, written = tmp_path / "preview.png", tmp_path / "cat.png", []

    def interrupt(step):
        written.append(step.index)
        if step.index == 1:
            raise KeyboardInterrupt

    command = ["guide", "a cat", "chelsea", "--style-scale", "0", "--model", folder, "--steps", "3", "-o", output]
    code, _, err = run(*command, "--preview", preview)
    assert code == 0 and Image.open(preview).size == (32, 32), err
    output.unlink()
    monkeypatch.setattr("ex4lib.cli.options.preview_callback", lambda *_, **__: interrupt)
    code, out, _ = run(*command)
    assert code == 130 and written == [0, 1] and "interrupted" in out and output.exists()


def test_the_presets_of_guide_are_those_that_a_pipeline_can_follow():
    possible = [name for name, chosen in PRESETS.items() if chosen.recurrence == 1 and chosen.clipping == "scheduler"]
    assert list(guide.PRESETS) == possible
