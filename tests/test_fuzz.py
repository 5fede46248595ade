"""Random bad input: whatever comes, the answer is a result or one sentence, and no file is lost or half-written."""

import random
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from ex4lib import checks, cli, colour, images, losses, models, optimisation, tiles, transfer
from ex4lib.diffusion import guidance
from experiments import measures, metrics
from tests.random_models import random_network

PICTURE = torch.rand(1, 3, 40, 32, generator=torch.Generator().manual_seed(0))
NETWORK = random_network("vgg16").float()
SMALL = {"size": 32, "evaluations": 1}

#: Public functions with arguments that work. The positional ones are drawn, too, except for networks.
CALLS = {
    "load": (lambda **k: images.load(**k), {"source": "chelsea", "size": 16}),
    "mask": (lambda **k: images.mask(**k), {"source": PICTURE, "grid": (8, 8)}),
    "alpha": (lambda **k: images.alpha(**k), {"source": "chelsea", "size": 8}),
    "resize": (lambda size: images.resize(PICTURE, size), {"size": 16}),
    "pictures": (lambda **k: images.pictures(**k), {"source": [PICTURE]}),
    "stylize": (
        lambda content, style, **k: transfer.stylize(NETWORK, content, style, **SMALL | k),
        {"content": PICTURE, "style": PICTURE, "size": 32, "scales": [32], "evaluations": 1, "seconds": 1.0}
        | {"start": "content", "style_weights": [1], "regions": None, "style_masks": None, "stroke_scale": 1.0}
        | {"keep_colour": "no", "optimiser": "adam"},
    ),
    "invert": (
        lambda target, layer, **k: transfer.invert(NETWORK, target, layer, **{"evaluations": 1} | k),
        {"target": PICTURE, "layer": "relu1_1", "tv_weight": 0.0, "evaluations": 1, "start": "noise"},
    ),
    "synthesize": (
        lambda style, layers, **k: transfer.synthesize(NETWORK, style, layers, **SMALL | k),
        {"style": PICTURE, "layers": ["relu1_1"], "size": 32, "style_loss": "gram", "layer_weights": [1.0]}
        | {"tv_weight": 0.0, "start": "grey", "evaluations": 1},
    ),
    "tiles": (
        lambda tile: transfer.stylize(NETWORK, PICTURE, PICTURE, recipe=tiles.TiledRecipe(tile=tile), **SMALL),
        {"tile": 32},
    ),
    "optimise": (
        lambda init, **k: list(optimisation.optimise(lambda x: x.mean((1, 2, 3)), init, **{"evaluations": 2} | k)),
        {"init": PICTURE, "evaluations": 1, "learning_rate": 0.1, "history": 2, "optimiser": "lbfgs", "seconds": 1.0},
    ),
    "style_terms": (
        lambda pictures, layers, **k: losses.style_terms(NETWORK, pictures, layers, **k),
        {"pictures": PICTURE, "layers": "relu1_1", "statistic": "gram", "weight": 1.0, "layer_weights": None},
    ),
    "content_terms": (
        lambda image, layers: losses.content_terms(NETWORK, image, layers),
        {"image": PICTURE, "layers": ["relu1_1"]},
    ),
    "match_colour": (lambda **k: colour.match_colour(**k), {"image": PICTURE, "reference": PICTURE}),
    "match_luminance": (lambda **k: colour.match_luminance(**k), {"image": PICTURE, "reference": PICTURE}),
    "style_distance": (
        lambda image, style, **k: metrics.style_distance(NETWORK, image, style, **k),
        {"image": PICTURE, "style": PICTURE, "layers": ("relu1_1",), "statistic": "gram"},
    ),
    "colour_distance": (lambda **k: metrics.colour_distance(**k), {"image": PICTURE, "style": PICTURE}),
    "content_error": (
        lambda image, content, **k: metrics.content_error(NETWORK, image, content, **k),
        {"image": PICTURE, "content": PICTURE, "layer": "relu1_1"},
    ),
    "brightness": (lambda image: measures.brightness(image), {"image": PICTURE}),
    "psnr": (lambda **k: metrics.psnr(**k), {"image": PICTURE, "reference": PICTURE}),
    "Guidance": (
        lambda **k: guidance.Guidance(**k),
        {"scale": 0.1, "method": "noise", "unit": "noise", "window": (0, 1), "ramp": "constant", "inner": 1}
        | {"clean_share": 0.5, "recurrence": 1, "recurrence_window": (0, 1)},
    ),
    "VGG": (lambda image, layers: NETWORK(images.picture(image, "image"), layers), {"image": PICTURE, "layers": [1]}),
    "features": (lambda **k: models.features(**k), {"name": "vgg16-hed", "precision": "x", "device": "cpu"}),
}

NAN, INF = float("nan"), float("inf")
SCALARS = [None, True, 0, -1, -0.5, 1.5, NAN, INF, -INF, 10**30, 10**6, 2.5, 3j, "", " ", "0", "nan", "gram ", b"x", ()]
ARRAYS = [np.int64(-2), np.float32(NAN), np.zeros(0), np.zeros((2, 2)), np.full((4, 4, 3), 300.0), np.array("a")]
ARRAYS += [
    np.zeros((3, 3, 5)),
    np.ones((9, 9, 3), complex),
    np.zeros((2, 2), object),
    np.array([NAN, 1]),
    np.float64(7),
]
TENSORS = [torch.tensor(NAN), torch.zeros(0), torch.zeros(1, 3, 0, 4), -torch.ones(1, 3, 8, 8), torch.ones(2, 3, 8, 8)]
TENSORS += [torch.full((1, 3, 8, 8), NAN), torch.ones(1, 1, 8, 8), torch.ones(3, 8, 8, dtype=torch.uint8)]
TENSORS += [torch.rand(1, 3, 8, 8).half(), torch.ones(1, 3, 1, 1), torch.ones(1, 3, 2, 90), torch.tensor([1.0, 2.0])]
LISTS = [[], [None], [0], [-1, 2], [NAN], ["x"], [[1]], [1, 2, 3], (0.9, 0.1), {"a": 1}, {1, 2}, range(3), [True]]
OTHERS = [object(), int, len, Image.new("RGB", (0, 0)), Image.new("F", (3, 3), 7.0), Image.new("RGB", (3, 3)), iter([])]
NAMES = [
    "nothing.png",
    "~nobody/x.png",
    "a" * 5000,
    "a\0b",
    "http://",
    "ftp://a/b",
    "relu9_9",
    "../x",
    ".",
    "/dev/zero",
]
BAD = [*SCALARS, *ARRAYS, *TENSORS, *LISTS, *OTHERS, *NAMES]


def one_call(draw):
    """A public function with one or two of its arguments replaced; None, or what is wrong with the answer."""
    name = draw.choice(list(CALLS))
    function, arguments = CALLS[name]
    arguments = dict(arguments)
    for argument in draw.sample(list(arguments), min(len(arguments), draw.choice((1, 1, 2)))):
        value = draw.choice(BAD)
        endless = argument == "evaluations" and isinstance(value, int) and value > 1000  # allowed, but takes for ever
        arguments[argument] = arguments[argument] if endless else value
    shown = f"{name}({', '.join(f'{key}={checks.describe(value)}' for key, value in arguments.items())})"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a step that is taken back
            function(**arguments)
    except (ValueError, OSError) as error:
        text = str(error)
        if "\n" in text or not 10 < len(text) < 600:
            return f"{shown}: {type(error).__name__} {text!r} is not one sentence"
    except Exception as error:
        return f"{shown}: {type(error).__name__}: {error}"
    return None


def calls(count, seed, capfd):
    """Draw calls; every complaint, once per function and type of error."""
    draw = random.Random(seed)
    found = {}
    for _ in range(count):
        complaint = one_call(draw)
        if complaint:
            found.setdefault((complaint.split("(")[0], complaint.rsplit("): ", 1)[-1][:30]), complaint)
    assert not found, "\n".join(found.values())
    assert capfd.readouterr().err == ""


def test_300_calls(capfd):
    calls(300, 0, capfd)


@pytest.mark.fuzz
def test_10_000_calls(capfd):
    calls(10_000, 1, capfd)


# --- the command line ---------------------------------------------------------------------------------------------

OPTIONS = {
    "stylize": "--size --scales --layers --style-loss --style-weight --tv-weight --evaluations --seconds "
    "--stroke-scale --keep-colour --start --optimiser --seed --quality --ending "
    "--tile --style-weights --regions --style-masks --preview -o",
    "invert": "--layer --size --tv-weight --evaluations --start --optimiser --seed -o",
    "texture": "--layers --size --style-loss --tv-weight --start --seed --quality -o",
}
TEXTS = ["", " ", "0", "-1", "nan", "inf", "-inf", "1e400", "99999999999999999999", "0.5", "a,b", ",", "1,,2", "1;2"]
TEXTS += ["nothing.png", "a" * 300 + ".png", "/proc/x.png", "kept.png/x.png", "~", "--", "\u00e9", "chelsea", "bad.png"]


def one_command(draw, monkeypatch, capfd):
    command = draw.choice(list(OPTIONS))
    sources = {"stylize": ["chelsea", "hokusai-poppies"], "invert": ["chelsea"], "texture": ["chelsea"]}[command]
    if draw.random() < 0.3:
        sources[draw.randrange(len(sources))] = draw.choice(TEXTS)
    arguments = [command, *sources, "-o", "out.png", "--size", "32", "--evaluations", "1"]
    for option in draw.sample(OPTIONS[command].split(), draw.choice((1, 1, 2))):
        arguments += [option, draw.choice(TEXTS)]
    monkeypatch.setattr(sys, "argv", ["ex4lib", *arguments])
    try:
        cli.main()
        return f"{arguments}: it did not exit"
    except SystemExit as end:
        err = capfd.readouterr().err
        lines = [line for line in err.splitlines() if line.strip() and "evaluation/s" not in line]
        if end.code == 1 and (len(lines) != 1 or not lines[0].startswith("ex4lib: ")):
            return f"{arguments}: {err!r}"
        if end.code not in (0, 1, 2) or "Traceback" in err:
            return f"{arguments}: exit code {end.code}: {err!r}"
    except BaseException as error:
        return f"{arguments}: {type(error).__name__}: {error}"
    return None


def commands(count, seed, monkeypatch, capfd, folder):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(models, "features", lambda name=None, **_: NETWORK)
    (folder / "bad.png").write_bytes(b"not a picture")
    images.save(PICTURE, "kept.png")
    kept, draw = (folder / "kept.png").read_bytes(), random.Random(seed)
    found = [complaint for _ in range(count) if (complaint := one_command(draw, monkeypatch, capfd))]
    assert not found, "\n".join(found)
    assert (folder / "kept.png").read_bytes() == kept
    assert not [path for path in folder.rglob(".*")], "a temporary file was left"


def test_60_commands(monkeypatch, capfd, tmp_path):
    commands(60, 0, monkeypatch, capfd, tmp_path)


@pytest.mark.fuzz
def test_1_000_commands(monkeypatch, capfd, tmp_path):
    commands(1000, 1, monkeypatch, capfd, tmp_path)
