"""What an import loads, what the package offers, and what a missing extra says."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ex4lib
from ex4lib import models
from ex4lib.files import optional

HEAVY = ("diffusers", "transformers", "matplotlib", "h5py", "skimage", "lpips", "scipy", "peft", "ipywidgets")


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import ex4lib", ("torch", "PIL", *HEAVY)),
        ("import ex4lib.transfer", HEAVY),
        ("from ex4lib import stylize, invert, synthesize, load, save, models", HEAVY),
    ],
)
def test_an_import_loads_no_more_than_it_needs(statement, absent):
    code = f"import sys; {statement}; print([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ex4lib.__all__)
def test_every_public_name_is_there(name):
    assert getattr(ex4lib, name) is not None
    assert name in dir(ex4lib)


def test_the_library_does_not_know_its_experiments():
    package = Path(ex4lib.__file__).parent
    found = [
        f"{path.name}: {line}"
        for path in package.rglob("*.py")
        if path.parent.name != "cli"
        for line in path.read_text().splitlines()
        if re.match(r"\s*(from|import) (experiments|training)\b", line)
    ]
    assert found == []


def test_a_public_name_is_what_its_module_holds():
    assert ex4lib.stylize is importlib.import_module("ex4lib.transfer").stylize
    with pytest.raises(AttributeError, match="has no attribute 'stilize'"):
        _ = ex4lib.stilize


@pytest.mark.parametrize(
    ("module", "extra", "package"), [("h5py", "mini", "h5py"), ("skimage.metrics", "metrics", "scikit-image")]
)
def test_a_missing_package_is_one_sentence(monkeypatch, module, extra, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError) as caught:
        optional(module, extra, package)
    assert str(caught.value) == f"this needs the package {package}, of the extra {extra}: run pip install {package}"


@pytest.mark.parametrize("name", ["video", "tiles", "TiledRecipe", "stylize_frames"])
def test_tiles_and_videos_are_found_in_the_package(name):
    code = (
        f"import sys, ex4lib; ex4lib.{name}; print([name for name in {(*HEAVY, 'cv2', 'av')!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_videos_say_what_they_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match="needs the package opencv-python-headless, of the extra video"):
        ex4lib.video.optical_flow(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("path", [*Path(ex4lib.__file__).parent.rglob("*.py")], ids=lambda path: path.stem)
def test_examples_use_pictures_that_ship(path):
    """Of the painters whose works are here; other names in quotes are no pictures."""
    painters = "|".join({name.split("-")[0] for name in ex4lib.images.names() if "-" in name} | {"van-gogh"})
    found = re.findall(rf'"((?:{painters})-[a-z-]+)"', path.read_text())
    assert set(found) <= set(ex4lib.images.names())


def test_the_offline_network_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match="needs the package h5py, of the extra mini: run pip install h5py"):
        models.features("vgg16-hed")
