"""The command line: pictures out, one sentence when something is wrong."""

import inspect
import json
import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image

from ex4lib import cli, images, models, transfer
from experiments.__main__ import app as experiments_app
from experiments.__main__ import distil, evaluate, sweep

COMMANDS = {"stylize": transfer.stylize_steps, "invert": transfer.invert_steps, "texture": transfer.synthesize_steps}


@pytest.fixture
def run(monkeypatch, capsys, offline):
    """Run ``python -m ex4lib ARGUMENTS`` in this process; returns exit code, stdout and stderr."""
    monkeypatch.setattr(models, "features", lambda name=None, **_: offline)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["ex4lib", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    return call


def options(command):
    """The options of a command by name."""
    return {parameter.name: parameter for parameter in typer.main.get_command(cli.app).commands[command].params}


# --- help ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [*COMMANDS, "stylize-video"])
def test_help_lists_every_option(run, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    code, out, _ = run(command, "--help")
    assert code == 0 and "Example: python -m ex4lib" in " ".join(out.split())
    for name, parameter in options(command).items():
        assert parameter.help, f"{name} has no help"
        if parameter.param_type_name == "option":
            assert all(flag in out for flag in parameter.opts)


def test_help_of_all(run):
    code, out, _ = run("--help")
    assert code == 0 and all(command in out for command in COMMANDS)
    assert "hokusai-great-wave" in out.replace("\n", "").replace("-\u2502", "-") or "hokusai" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_defaults_are_the_library_s(command):
    library = inspect.signature(COMMANDS[command]).parameters
    recipe = transfer.DEFAULT
    compared = 0
    for name, parameter in options(command).items():
        if command == "stylize" and hasattr(recipe, name):
            assert parameter.default == getattr(recipe, name), name
        elif name != "layers" and name in library and library[name].default not in (inspect.Parameter.empty, None):
            assert parameter.default == library[name].default, name
        else:
            continue
        compared += 1
    assert compared >= 4
    assert options("texture")["layers"].default.split(",") == list(recipe.style_layers)


# --- pictures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        (["stylize", "chelsea", "hokusai-great-wave"], (64, 43)),
        (
            [
                "stylize",
                "chelsea",
                *("--style", "hokusai-great-wave", "--style", "hokusai-poppies"),
                "--keep-colour",
                "match",
            ],
            (64, 43),
        ),
        (["invert", "chelsea", "--layer", "conv_5"], (64, 43)),
        (["texture", "hokusai-poppies", "--layers", "relu1_1,relu2_1", "--style-loss", "meanvar"], (64, 64)),
    ],
)
def test_a_picture_comes_out(run, tmp_path, arguments, shape):
    output = tmp_path / "new" / "out.png"
    code, out, err = run(*arguments, "--size", 64, "--evaluations", 2, "-o", output)
    assert code == 0, err
    assert f"{output}: 2 evaluations in" in out and "Traceback" not in err
    with Image.open(output) as picture:
        assert picture.size == shape
        settings = json.loads(picture.text["ex4lib"])
    assert settings["evaluations"] == 2 and settings["network"] == "vgg16-hed" and len(settings["weights"]) == 64


def test_the_command_line_paints_what_the_library_paints(run, tmp_path, offline):
    run("stylize", "coffee", "hokusai-poppies", "--size", 48, "--evaluations", 3, "-o", tmp_path / "out.png")
    style, content = images.load("hokusai-poppies"), images.load("coffee")
    expected = transfer.stylize(offline, content, style, size=48, evaluations=3).image
    got = images.load(tmp_path / "out.png")
    assert (got - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_seeds_and_starts(run, tmp_path):
    arguments = ["invert", "chelsea", "--layer", "relu1_1", "--size", 32, "--evaluations", 1]
    for name, more in {"a": [], "b": [], "c": ["--seed", 1], "d": ["--start", "grey"]}.items():
        assert run(*arguments, *more, "-o", tmp_path / f"{name}.png")[0] == 0
    a, b, c, d = (images.load(tmp_path / f"{name}.png") for name in "abcd")
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert (d - 0.5).abs().max() < 0.01


def test_as_a_module(tmp_path):
    """A process of its own, with the real weights loaded by name."""
    root = Path(cli.__file__).parents[2]
    (tmp_path / "text.png").write_text("not a picture")
    script = (
        "import sys, runpy\n"
        "for arguments in (['texture', 'hokusai-poppies', '--layers', 'relu1_1', '--size', '48', '--evaluations',"
        " '2', '-o', 'out.png'], ['invert', 'text.png', '-o', 'other.png']):\n"
        "    sys.argv = ['ex4lib', *arguments]\n"
        "    try: runpy.run_module('ex4lib', run_name='__main__')\n"
        "    except SystemExit as end: print('exit', end.code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert [line for line in done.stdout.splitlines() if line.startswith("exit")] == ["exit 0", "exit 1"]
    assert "Traceback" not in done.stderr
    assert "ex4lib: 'text.png' cannot be read as a picture" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["out.png", "text.png"]


# --- what goes wrong ----------------------------------------------------------------------------------------------

STYLIZE, INVERT = ["stylize", "chelsea", "hokusai-poppies"], ["invert", "chelsea", "--size", 32]
TEXTURE = ["texture", "hokusai-poppies", "--size", 32]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*INVERT, "--layer", "relu9_1"], "vgg16 has no layer 'relu9_1'"),
        ([*INVERT, "--layer", "pool5", "--size", 16], "needs at least 32 x 32 pixels"),
        ([*INVERT, "--size", 0], "size must be at least 1"),
        ([*INVERT, "--tv-weight", "-1"], "tv_weight must be a finite number of at least 0"),
        ([*INVERT, "--evaluations", 0], "evaluations must be at least 1"),
        ([*INVERT, "--start", "nothing.png"], "there is no file 'nothing.png'"),
        ([*TEXTURE, "--layers", "relu1_1,relu_99"], "vgg16 has no layer 'relu_99'"),
        ([*TEXTURE, "--style-loss", "grams"], "style_loss must be gram"),
        ([*TEXTURE, "--size", "-1"], "size must be at least 1"),
        ([*STYLIZE, "--size", 64, "--style-weight", "-1"], "must be a finite number of at least 0, got"),
        ([*STYLIZE, "--size", 64, "--style-weight", "nan"], "must be a finite number of at least 0, got nan"),
        ([*STYLIZE, "--style-weights", "1,2"], "style_weights must be 1 finite weights"),
        ([*STYLIZE, "--style-weights", "0"], "style_weights must be 1 finite weights of at least 0, not all 0"),
        ([*STYLIZE, "--size", 64, "--keep-colour", "yes"], "keep_colour must be"),
        ([*STYLIZE, "--size", 64, "--optimiser", "sgd"], "optimiser must be lbfgs or adam"),
        ([*STYLIZE, "--size", 64, "--stroke-scale", "0"], "stroke_scale must be a finite number above 0"),
        (["stylize", "missing.jpg", "chelsea"], "there is no file 'missing.jpg'"),
        (["stylize", "chelsea", "TEXT"], "cannot be read as a picture"),
    ],
)
def test_a_mistake_is_one_sentence_and_changes_nothing(run, tmp_path, arguments, message):
    (tmp_path / "text.png").write_text("not a picture")
    output = tmp_path / "out.png"
    output.write_bytes(b"what was here before")
    arguments = [tmp_path / "text.png" if each == "TEXT" else each for each in arguments]
    code, out, err = run(*arguments, "-o", output)
    assert code == 1
    assert err.startswith("ex4lib: ") and message in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""
    assert output.read_bytes() == b"what was here before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.png", "text.png"]


@pytest.mark.parametrize("output", ["out.txt", "out", "folder.png", "text.txt/out.png"])
def test_an_output_that_cannot_be_written_is_refused_before_any_work(run, tmp_path, output, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("work was begun")

    monkeypatch.setattr(models, "features", refuse)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.txt").write_text("")
    code, _, err = run(*INVERT, "-o", tmp_path / output)
    assert code == 1 and err.startswith("ex4lib: the output") and len(err.strip().splitlines()) == 1


def numeric_options():
    for app, commands in ((cli.app, cli.COMMANDS), (experiments_app, (distil, evaluate, sweep))):
        for command in commands:
            for name, kind in typing.get_type_hints(command).items():
                for number in {int, float} & {kind, *typing.get_args(kind)}:
                    yield app, command.__name__.replace("_", "-"), name, number


def test_there_are_numeric_options():
    assert len(list(numeric_options())) >= 25


@pytest.mark.parametrize(("app", "command", "name", "kind"), numeric_options())
def test_a_number_outside_its_range_is_refused_before_any_work(monkeypatch, capsys, app, command, name, kind):
    """A number outside its range ends every command with one sentence that names the option."""

    def refuse(*_, **__):
        raise AssertionError("work was begun")

    for begun in ("features", "source"):
        monkeypatch.setattr(models, begun, refuse)
    monkeypatch.setattr(images, "load", refuse)
    needed = {"distil": ["--prompt", "a cat", "-o", "no/folder"], "guide": ["a cat", "chelsea", "-o", "no/a.png"]}
    needed |= {"stylize": ["a.png", "b.png", "-o", "no/a.png"]}
    needed |= {"stylize-video": ["a.mp4", "b.png", "-o", "no/a.mp4"]}
    arguments = needed.get(command, ["a.png", "-o", "no/a.png"])
    values = ["-1", "99999999999999999999999"] if kind is int else ["nan", "inf", "-inf", "1e400"]
    bounded = {"stroke_scale": "0", "strength": "1.5", "eta": "2", "steps": "0", "step": "0", "seconds": "-5"}
    values += [bounded[name]] if name in bounded else []
    values = (
        values[:1] + values[2:] if name in ("evaluations", "first_evaluations", "tile", "every", "step") else values
    )
    for value in values:
        option = f"--{name.replace('_', '-')}={value}"
        monkeypatch.setattr(sys, "argv", ["program", command, *arguments, option])
        with pytest.raises(SystemExit) as end:
            cli.main(app)
        err = capsys.readouterr().err
        assert end.value.code == 1 and f"{name} must be" in err and err.count("\n") == 1, (option, err)


def test_an_interrupted_folder_loses_no_picture_and_computes_none_twice(run, tmp_path, monkeypatch):
    for number in range(4):
        images.save(torch.full((1, 3, 8, 8), number / 4), tmp_path / "in" / f"{number}.png")
    painted = []

    def stylize(network, photo, style, **options):
        painted.append(photo.mean().item())
        return transfer.Result(photo, 1.0, [1.0], {}, 0.1, [], interrupted=len(painted) == 2)

    monkeypatch.setattr(transfer, "stylize", stylize)
    arguments = ["stylize", tmp_path / "in", "hokusai-poppies", "-o", tmp_path / "out", "--size", 8]
    assert run(*arguments)[0] == 130
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "1.png"]
    first = (tmp_path / "out" / "0.png").stat().st_mtime_ns
    code, out, _ = run(*arguments)
    assert code == 0 and out.count("finished before") == 1 and len(painted) == 2 + 3
    assert (tmp_path / "out" / "0.png").stat().st_mtime_ns == first
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{number}.png" for number in range(4)]


def test_an_error_of_the_system_is_a_sentence():
    error = FileNotFoundError(2, "No such file or directory", "a.yaml")
    assert cli.batch.reason(error) == "'a.yaml' cannot be read or written: no such file or directory"


def test_missing_weights_are_one_sentence(run, tmp_path, monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("the offline VGG-16 is not installed")

    monkeypatch.setattr(models, "features", missing)
    assert run(*INVERT, "-o", tmp_path / "out.png") == (1, "", "ex4lib: the offline VGG-16 is not installed\n")


@pytest.mark.parametrize(
    "arguments", [["paint"], ["invert"], ["invert", "chelsea"], [*INVERT, "-o", "a.png", "--sise", 3]]
)
def test_wrong_usage(run, arguments):
    code, _, err = run(*arguments)
    assert code == 2 and "Usage" in err and "Traceback" not in err


def test_a_note_about_a_failed_step_is_shown(run, tmp_path, monkeypatch):
    result = transfer.Result(torch.full((1, 3, 4, 4), 0.5), 1.0, [1.0], {}, 0.1, ["evaluation 1: went back"])
    monkeypatch.setattr(transfer, "invert", lambda *_, **__: result)
    code, _, err = run(*INVERT, "-o", tmp_path / "out.png")
    assert code == 0 and "evaluation 1: went back" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["invert", "IN", "-o", "IN"],
        ["texture", "IN", "-o", "IN"],
        ["stylize", "IN", "hokusai-poppies", "-o", "IN"],
        ["stylize", "chelsea", "IN", "-o", "IN"],
        ["stylize", "chelsea", "hokusai-poppies", "--start", "IN", "-o", "IN"],
        ["stylize", "chelsea", "hokusai-poppies", "--regions", "IN", "-o", "IN"],
        ["stylize", "IN", "hokusai-poppies", "-o", "OUT", "--preview", "IN"],
        ["guide", "a cat", "IN", "-o", "IN"],
        ["guide", "a cat", "chelsea", "--image", "IN", "-o", "IN"],
    ],
)
def test_no_picture_that_is_read_is_replaced(run, tmp_path, arguments):
    source = images.save(torch.rand(1, 3, 40, 40), tmp_path / "in.png")
    before = source.read_bytes()
    code, _, err = run(*({"IN": source, "OUT": tmp_path / "out.png"}.get(part, part) for part in arguments))
    assert code == 1 and "would replace a file that is read" in err and len(err.strip().splitlines()) == 1
    assert source.read_bytes() == before
