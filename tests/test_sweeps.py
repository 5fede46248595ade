"""Sweeps: the grid, the store, mistakes in the file, and two processes against one."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ex4lib import models
from experiments import drawings, sweeps
from experiments.judge import Judge
from tests.random_models import random_network, save_judge, save_stable_diffusion

GRID = {
    "prompts": ["a cat", "a dog"],
    "styles": ["look-mosaic", "look-engraving"],
    "style_scales": [0, 0.2],
    "seeds": [0, 1],
    "steps": 2,
}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    folder, judge = save_stable_diffusion(tmp_path / "sd"), Judge(save_judge(tmp_path / "judge"))
    monkeypatch.setattr(models, "features", lambda name=None, **_: random_network("vgg16").float())
    monkeypatch.setattr(Judge, "load", lambda *_, **__: judge)
    return str(folder)


def test_the_grid_spans_its_lists_and_draws_what_is_unguided_once():
    grid = sweeps.Sweep(**GRID | {"style_losses": ["gram", "meanvar"]})
    cells = grid.cells()
    assert len(cells) == len(set(cells)) == 2 * 2 * 2 * (2 + 1)  # prompts, styles, seeds, guided by loss and unguided
    assert {cell.style_loss for cell in cells if cell.style_scale == 0} == {""}


def test_rows_are_the_library_s_scores_and_a_second_sweep_draws_only_what_is_new(tiny, monkeypatch):
    grid = sweeps.Sweep(**GRID | {"prompts": ["a cat"], "styles": ["look-mosaic"], "model": tiny})
    rows = sweeps.sweep(grid)
    assert [(row["style_scale"], row["seed"]) for row in rows] == [(0, 0), (0, 1), (0.2, 0), (0.2, 1)]
    assert rows[0]["content"] == 0 < rows[2]["content"] and rows[0]["style"] > 0

    counted, original = [], drawings.stored
    monkeypatch.setattr(
        drawings, "stored", lambda kind, config, compute, **k: original(kind, config, _counted(counted, compute), **k)
    )
    more = sweeps.sweep(sweeps.Sweep(**GRID | {"styles": ["look-mosaic"], "model": tiny}))
    assert more[:4] == rows
    assert len(counted) == 4 + 4  # the dog's pictures, and their scores


def _counted(counted, compute):
    def wrapped():
        counted.append(1)
        return compute()

    return wrapped


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ["a cat"]}, "unknown entry 'prompt'; did you mean prompts"),
        ({"styles": None}, "styles must be a list"),
        ({"seeds": []}, "seeds must be a list with at least one entry"),
        ({"prompts": "a cat"}, "prompts must be a list"),
        ({"style_scales": [-1]}, "at least 0, got -1"),
        ({"style_losses": ["grams"]}, "got 'grams'"),
        ({"preset": "best"}, "preset must be default"),
        ({"scheduler": "TCDScheduler"}, "scheduler must be DDPMScheduler"),
        ({"steps": 0}, "at least 1, got 0"),
        ({"steps": True}, "steps must be a whole number"),
        ({"seeds": ["x"]}, "each of seeds must be a whole number"),
        ({"seeds": [-1]}, "each of seeds must be at least 0"),
        ({"styles": [["a"]]}, "styles must be a text or a list of texts"),
        ({"prompts": [1]}, "prompts must be a text or a list of texts"),
        ({"guidance_scale": "x"}, "guidance_scale must be a finite number"),
        ({"style_scales": [float("nan")]}, "style_scales must be a finite number"),
        ({"style_losses": [["gram"]]}, "each of style_losses must be"),
        ({"model": 3}, "model must be a name"),
        ({"style_scales": [0, 1e30]}, r"style_scale must be a finite number from 0 to 1000, got 1e\+30"),
        ({"prompts": ["a cat", " "]}, "prompts must hold words"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(tmp_path, change, message):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(GRID | change))
    with pytest.raises(ValueError, match=message):
        sweeps.read(path)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@a", " =1", "\t=1", "\uff1d1", "-a cat"])
def test_no_text_of_a_table_is_a_formula(text):
    row = {"prompt": text, "style": "chelsea", "style_scale": -0.5, "seed": -1}
    (read,) = csv.DictReader(io.StringIO(sweeps.table([row])))
    assert read == {"prompt": f"'{text}", "style": "chelsea", "style_scale": "-0.5", "seed": "-1"}


@pytest.mark.parametrize(
    "text", ["- a cat", "styles: [look-mosaic]", "a: [", "", "a: " + "[" * 3000, "prompts: [caf\xe9]"]
)
def test_what_is_no_sweep_is_refused(tmp_path, text):
    path = tmp_path / "sweep.yaml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"sweep\.yaml"):
        sweeps.read(path)


#: As ``python -m experiments``, but with a store for each process: machines that share no disk.
APART = """
import os
os.environ["EX4_FIGURES"] = os.path.join(os.environ["EX4_FIGURES"], os.environ.get("RANK", "alone"))
from experiments.__main__ import main
main()
"""


@pytest.mark.slow
def test_two_processes_give_one_s_table_and_draw_nothing_twice(tmp_path):
    config, script = tmp_path / "sweep.yaml", tmp_path / "apart.py"
    config.write_text(yaml.safe_dump(GRID | {"styles": ["look-mosaic"]}))
    script.write_text(APART)
    # --cpu would ask for mpirun: the launcher of several GPUs starts the processes, and they are told to do without.
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    tables = []
    for name, prefix in (("one", []), ("two", launch)):
        command = [sys.executable, *prefix, str(script), "sweep", str(config), "-o", str(tmp_path / f"{name}.csv")]
        environment = os.environ | {
            "EX4_FIGURES": str(tmp_path / name),
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "PYTHONPATH": str(Path(sweeps.__file__).parents[1]),  # experiments are not installed
        }
        subprocess.run(command, check=True, env=environment, timeout=600)
        with open(tmp_path / f"{name}.csv") as file:
            tables.append([{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)])
    assert tables[0] == tables[1] and len(tables[0]) == 2 * 2 * 2  # prompts, scales, seeds
    shares = [{path.name for path in (tmp_path / "two" / rank / "runs" / "drawn").glob("*.jpg")} for rank in "01"]
    assert all(shares) and not shares[0] & shares[1]
    assert shares[0] | shares[1] == {path.name for path in (tmp_path / "one").glob("alone/runs/drawn/*.jpg")}
