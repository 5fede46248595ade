"""Reports compile offline, to the same bytes, and show what the figures' folder holds."""

import importlib.util
import json
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("typst", reason="of the extra 'report'")

ROOT = Path(__file__).resolve().parent.parent
ASSIGNMENT = ROOT / "report" / "assignment4.typ"


@pytest.fixture(scope="module")
def compile_report():
    spec = importlib.util.spec_from_file_location("build", ROOT / "report" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.compile_report


@pytest.fixture
def folder(tmp_path):
    """A folder of figures as notebook 09 leaves it, in small."""
    folder = tmp_path / "figures"
    folder.mkdir()
    evaluation = {"scores": {"A car on the road": 0.31}, "score": 0.31, "judge": "mini-judge", "points": None}
    common = {"eval": evaluation, "guidance_scale": 25.0, "updates": 500}
    row = {"score": 0.31, "right": 0.4, "wrong": 0.1, "free": 0.12, "found": 1.0, "place": 0.7, "points": None}
    edit = {"source": "a cat sitting on a table", "target": "a squirrel sitting on a table", "seed": 1}
    kept = {"edits": [edit], "before": [-0.2], "after": [0.3], "ssim": [0.8], "lpips": [0.1]}
    options = {"t_range": [0.02, 0.98], "learning_rate": 0.1, "warm_up": 100}
    coefficients = {"timesteps": [21, 979], "psi": {"2": [1.6, 0.004]}, "chi": {"1": [0.2, 0.1]}, "c": [4.4, 9.2]}
    values = {
        "09_sds": common | options | {"model": "mini-sd", "negative_prompt": "", "seed": 0},
        "09_pds": common | kept | {"left_out": {"An ancient villa close to the pool": ["ancient"]}},
        "09_vsd": common | {"updates": 150, "row": row},
        "09_scores": {"task 1, SDS": row, "task 2, PDS": row, "judge": "mini-judge"},
        "09_coefficients": coefficients | {"largest_psi_of_stride_1": 2e-13},
    }
    extra = ("sds_evolution", "pds_evolution", "variants", "cost", "canvases")
    metrics = {
        name: {
            "caption": f"Caption of {name}.",
            "values": values.get(name),
            "environment": {"torch": "2"},
            "weights": {"pipeline": "0123456789abcdef-0123456789abcdef"},
        }
        for name in (*values, *(f"09_{each}" for each in extra))
    }
    for name in metrics:
        Image.new("RGB", (40, 30), "teal").save(folder / f"{name}.png")
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_the_same_figures_give_the_same_bytes(compile_report, folder, tmp_path):
    for name in ("one.pdf", "two.pdf"):
        compile_report(ASSIGNMENT, tmp_path / name)
    content = (tmp_path / "one.pdf").read_bytes()
    assert content.startswith(b"%PDF-") and content == (tmp_path / "two.pdf").read_bytes()


@pytest.mark.parametrize(("name", "key", "value"), [("09_pds", "after", [0.29]), ("09_sds", "learning_rate", 0.2)])
def test_numbers_come_from_the_metrics(compile_report, folder, tmp_path, name, key, value):
    compile_report(ASSIGNMENT, tmp_path / "before.pdf")
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics[name]["values"][key] = value
    (folder / "metrics.json").write_text(json.dumps(metrics))
    compile_report(ASSIGNMENT, tmp_path / "after.pdf")
    assert (tmp_path / "before.pdf").read_bytes() != (tmp_path / "after.pdf").read_bytes()


def test_a_missing_figure_is_named_and_nothing_is_written(compile_report, folder, tmp_path):
    (folder / "09_vsd.png").unlink()
    with pytest.raises(RuntimeError, match=r"assignment4.typ: .*09_vsd.png"):
        compile_report(ASSIGNMENT, tmp_path / "report.pdf")
    assert not (tmp_path / "report.pdf").exists()
