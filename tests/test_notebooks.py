"""Every notebook runs to its end in the full profile, on random weights of the real architectures, in its fast mode."""

import importlib.util
import json
import os
from pathlib import Path

import nbformat
import pytest
import torch
import torchvision

from tests.random_models import save_ddpm, save_deepfloyd, save_judge, save_stable_diffusion, save_upsampler

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


def builder():
    spec = importlib.util.spec_from_file_location("build", ROOT / "report" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def random_models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name in ("vgg16", "vgg19"):
        torch.save(
            getattr(torchvision.models, name)(weights=None).features.state_dict(prefix="features."),
            folder / f"{name}.pth",
        )
    save_ddpm(folder / "ddpm-celebahq-256")
    save_stable_diffusion(folder / "stable-diffusion-v1-5")
    save_stable_diffusion(folder / "stable-diffusion-2-1-base")
    save_deepfloyd(folder / "IF-I-XL-v1.0")
    save_upsampler(folder / "IF-II-L-v1.0")
    save_judge(folder / "clip-vit-base-patch32")
    return folder


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), "not executed"
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type in ("error",)]
    assert "colab" not in notebook.cells[0].source and "git+" not in code[0].source  # nobody else's code is installed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_is_followed_by_words(path):
    cells = nbformat.read(path, as_version=4).cells
    for index, cell in enumerate(cells):
        if cell.cell_type == "code" and "figures.save(" in cell.source:
            assert any("image/jpeg" in output.get("data", {}) for output in cell.outputs), "the figure is not shown"
            words = next((each.source for each in cells[index + 1 :] if each.cell_type == "markdown"), "")
            assert len(words) > 80, f"no words after the figure of {cell.source[-80:]!r}"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_in_the_full_profile(path, random_models, tmp_path, monkeypatch):
    monkeypatch.setenv("EX4_PROFILE", "full")
    monkeypatch.setenv("EX4_FAST", "1")
    monkeypatch.setenv("EX4_MODELS", str(random_models))
    monkeypatch.setenv("EX4_FIGURES", str(tmp_path))
    monkeypatch.setenv("EX4_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    builder().execute(path)
    assert list(tmp_path.glob("*.png")) or list(tmp_path.glob("*.jpg"))


def test_a_copy_is_executed_again_only_when_something_changed(tmp_path, monkeypatch):
    figures = tmp_path / "figures"
    monkeypatch.setenv("EX4_FIGURES", str(figures))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    source = (
        "from matplotlib.figure import Figure\nfrom ex4lib import figures\n"
        'figures.save(Figure((1, 1)), "97_nothing", caption="Nothing.")'
    )
    path, copy = tmp_path / "97_notebook.ipynb", tmp_path / "copies" / "97_notebook.ipynb"

    def run(code=source):
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), path)
        return builder().copied(path, copy)

    assert run() and (figures / "97_nothing.png").is_file() and nbformat.read(copy, 4).cells[0].outputs
    assert not run()
    (figures / "97_nothing.png").unlink()
    assert run() and not run()
    assert run(source + "\n# again") and not run(source + "\n# again")
    made = json.loads(copy.with_suffix(".made").read_text())
    assert made["runs"] == []
    assert "ex4lib/figures.py" in made["files"] and "ex4lib/transfer.py" not in made["files"]
    made["files"]["ex4lib/figures.py"] = "another"
    copy.with_suffix(".made").write_text(json.dumps(made))
    assert run(source + "\n# again") and not run(source + "\n# again")
    monkeypatch.setenv("EX4_PROFILE", "auto")
    assert run(source + "\n# again") and not run(source + "\n# again")
    monkeypatch.setenv("EX4_STORE", "ignore")
    assert run(source + "\n# again")


def test_comments_and_docstrings_execute_nothing_again(tmp_path, monkeypatch):
    module = builder()
    monkeypatch.setattr(module, "ROOT", tmp_path)
    path = tmp_path / "one.py"

    def digest(text):
        path.write_text(text)
        return module.digests(["one.py"])["one.py"]

    first = digest('"""A."""\ndef f():\n    """B."""\n    return 1  # C\n')
    assert digest('"""D."""\ndef f():\n    """E."""\n    return 1\n') == first
    assert digest('"""A."""\ndef f():\n    """B."""\n    return 2  # C\n') != first
    assert module.digests(["nowhere.py"]) == {"nowhere.py": None}


def test_a_model_counts_with_all_its_files_and_other_files_do_not():
    module = builder()
    names = [str(ROOT / "ex4lib/assets/models/mini-judge/config.json"), str(ROOT / "README.md"), "/etc/hosts"]
    found = module.used_files([*names, str(ROOT / "experiments/store.py")])
    assert {path.split("/")[3] for path in found if "assets" in path} == {"mini-judge"}
    assert any(path.endswith(".safetensors") for path in found)
    assert {path for path in found if "assets" not in path} == {"experiments/store.py"}


def test_a_failing_cell_is_named(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1"), nbformat.v4.new_code_cell("1 / 0")])
    nbformat.write(notebook, tmp_path / "broken.ipynb")
    with pytest.raises(RuntimeError, match=r"broken.ipynb, cell 1: ZeroDivisionError"):
        builder().execute(tmp_path / "broken.ipynb", timeout=120)


def test_a_failing_widget_callback_is_noticed(tmp_path):
    source = (
        "import ipywidgets\n"
        "def fail(x):\n    raise ValueError('no')\n"
        "ipywidgets.interactive_output(fail, {'x': ipywidgets.IntSlider()})"
    )
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), tmp_path / "broken.ipynb")
    with pytest.raises(RuntimeError, match="a widget callback failed: ValueError"):
        builder().execute(tmp_path / "broken.ipynb", timeout=120)


def test_pdfs_are_made_of_whole_runs_only_and_a_failure_leaves_the_figures(monkeypatch, capsys):
    module, published = builder(), []
    monkeypatch.setattr("sys.argv", ["build.py", "no notebook is called so"])
    monkeypatch.setattr(module, "publish", published.append)
    monkeypatch.setenv("EX4_FAST", "1")
    module.main()
    assert not published and "PDFs stay as they are" in capsys.readouterr().out
    monkeypatch.delenv("EX4_FAST")
    module.main()
    assert published == list(module.DOCUMENTS)

    def fail(document):
        raise RuntimeError("ex4.typ needs figures that are not there: 01_brightness")

    monkeypatch.setattr(module, "publish", fail)
    with pytest.raises(SystemExit, match=r"a PDF is not: ex4\.typ needs figures"):
        module.main()
