"""Reports compile offline, to the same bytes, and show what the figures' folder holds."""

import json
from pathlib import Path

import pytest
import torch
from documents import CS180, DOCUMENTS, EX4, Document, compile_report, inputs, publish, stale, used
from PIL import Image

from ex4lib.figures import SUFFIXES
from tests.test_widgets import Loop, explorer_of, run

pytest.importorskip("typst", reason="of the extra 'report'")

ROOT = Path(__file__).resolve().parent.parent
ASSIGNMENT = ROOT / "report" / "assignment4.typ"

#: Figures that only the notebooks show.
IN_NOTEBOOKS_ONLY = (
    # One run of an explorer: what it explores is in the report, from the experiments.
    *("01_explorer", "03_explorer", "04_explorer", "05_explorer", "07_explorer"),
    # Steps towards a figure of the report, which has the same in it and more.
    *("01_filmstrip", "01_one_layer", "01_prior", "02_statistics", "04_guided", "07_hybrid_pictures"),
    # Further settings of what the report shows; their tiles would be too small in print.
    *("03_choices", "03_extras", "03_sweep", "04_scales", "04_traces", "04_windows"),
    *("05_calibration", "05_methods", "05_schedulers"),
    # Curves and tables whose numbers the report gives in its text or in tables of its own.
    *("01_brightness", "02_matrix", "04_raw_shift", "05_anchors", "05_confusion", "06_b_numbers"),
    *("07_style_transfer_numbers", "08_guidance_scores"),
    # A guess for the reader; its tiles would be too small in print.
    "06_forced_choice",
)


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
    seeded = {"score": 0.3, "diversity": 0.1}
    losses = ("SDS, γ = 7.5", "VSD, γ = 7.5", "VSD, quicker φ")
    values = {
        "09_sds": common | options | {"model": "mini-sd", "negative_prompt": "", "seed": 0},
        "09_pds": common | kept | {"left_out": {"An ancient villa close to the pool": ["ancient"]}},
        "09_vsd": common | {"updates": 150, "row": row, "seeds": {loss: seeded for loss in losses}},
        "09_scores": {"task 1, SDS": row, "task 2, PDS": row | {"before": 0.2}, "judge": "mini-judge"},
        "09_coefficients": coefficients | {"largest_psi_of_stride_1": 2e-13},
    }
    extra = ("sds_evolution", "pds_evolution", "variants", "cost", "canvases")
    metrics = {
        name: {
            "caption": f"Caption of {name}.",
            "values": values.get(name),
            "weights": {"pipeline": "0123456789abcdef-0123456789abcdef"},
        }
        for name in (*values, *(f"09_{each}" for each in extra))
    }
    for name in metrics:
        Image.new("RGB", (40, 30), "teal").save(folder / f"{name}.png")
    _write_rows(folder, metrics)
    return folder


def _write_rows(folder, rows):
    (folder / "metrics").mkdir(exist_ok=True)
    (folder / "metrics" / "all.json").write_text(json.dumps({"environment": {"torch": "2"}, "figures": rows}))


def _rows(folder):
    return json.loads((folder / "metrics" / "all.json").read_text())["figures"]


def _committed_rows():
    tables = (ROOT / "figures" / "metrics").glob("[0-9]*.json")
    return {name: row for table in tables for name, row in json.loads(table.read_text("utf-8"))["figures"].items()}


def _committed_figures():
    return {path.stem: path for path in (ROOT / "figures").glob("*.*") if path.suffix in SUFFIXES}


def _linked(folder, metrics):
    """A folder with the committed figures and other rows."""
    folder.mkdir()
    for path in _committed_figures().values():
        (folder / path.name).symlink_to(path)
    _write_rows(folder, metrics)
    return folder


def test_the_same_figures_give_the_same_bytes(folder, tmp_path):
    for name in ("one.pdf", "two.pdf"):
        compile_report(ASSIGNMENT, tmp_path / name)
    content = (tmp_path / "one.pdf").read_bytes()
    assert content.startswith(b"%PDF-") and content == (tmp_path / "two.pdf").read_bytes()


@pytest.mark.parametrize(("name", "key", "value"), [("09_pds", "after", [0.29]), ("09_sds", "learning_rate", 0.2)])
def test_numbers_come_from_the_metrics(folder, tmp_path, name, key, value):
    compile_report(ASSIGNMENT, tmp_path / "before.pdf")
    metrics = _rows(folder)
    metrics[name]["values"][key] = value
    _write_rows(folder, metrics)
    compile_report(ASSIGNMENT, tmp_path / "after.pdf")
    assert (tmp_path / "before.pdf").read_bytes() != (tmp_path / "after.pdf").read_bytes()


def test_a_jpeg_goes_in_as_it_is(folder, tmp_path):
    grain = torch.randint(0, 256, (400, 400, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    (folder / "09_sds.png").unlink()
    Image.fromarray(grain.numpy()).save(folder / "09_sds.jpg")
    compile_report(ASSIGNMENT, tmp_path / "report.pdf")
    content = (folder / "09_sds.jpg").read_bytes()
    assert content[len(content) // 2 : len(content) // 2 + 1000] in (tmp_path / "report.pdf").read_bytes()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.target.name)
def test_the_committed_pdf_is_what_the_committed_figures_make(document, monkeypatch):
    monkeypatch.setenv("EX4_FIGURES", str(ROOT / "figures"))
    assert [name for name in stale(document) if not name.startswith("exported/")] == []  # those are a user's own


def test_a_missing_figure_is_named_and_nothing_is_written(folder, tmp_path):
    (folder / "09_vsd.png").unlink()
    with pytest.raises(RuntimeError, match=r"assignment4.typ: .*09_vsd"):
        compile_report(ASSIGNMENT, tmp_path / "report.pdf")
    assert not (tmp_path / "report.pdf").exists()


def test_a_report_is_stale_when_anything_it_was_made_from_changes(folder, tmp_path):
    document, manifest = Document(ASSIGNMENT, tmp_path / "report.pdf"), tmp_path / "manifest.json"
    assert stale(document, manifest) == ["report.pdf was not made yet"]
    publish(document, manifest)
    assert stale(document, manifest) == []

    metrics = _rows(folder)
    _write_rows(folder, metrics | {"elsewhere": {"values": 1}})
    assert stale(document, manifest) == []  # no row of this report
    metrics["09_pds"]["values"]["after"] = [0.29]
    _write_rows(folder, metrics)
    Image.new("RGB", (40, 30), "red").save(folder / "09_vsd.png")
    assert stale(document, manifest) == ["09_vsd", "row of 09_pds"]

    assert publish(document, manifest)
    made = document.target.stat().st_mtime_ns
    assert not publish(document, manifest) and document.target.stat().st_mtime_ns == made  # nothing to do
    document.target.write_bytes(document.target.read_bytes() + b" ")
    assert stale(document, manifest) == ["report.pdf is not the one that was made"]


def test_what_a_report_uses_is_read_from_its_source(tmp_path, folder):
    source = tmp_path / "some.typ"
    source.write_text('#shown("09_sds")\n#let x = of("09_pds").after\n#shown("nowhere", width: 50%) #of( "elsewhere")')
    assert used(source) == ({"09_sds", "nowhere"}, {"09_sds", "09_pds", "nowhere", "elsewhere"})
    with pytest.raises(RuntimeError, match="needs figures that are not there: elsewhere, nowhere"):
        publish(Document(source, tmp_path / "some.pdf"), tmp_path / "manifest.json")
    assert not (tmp_path / "some.pdf").exists()


def test_parts_and_cards_are_read_from_their_sources_and_comments_are_not(tmp_path, folder):
    source, part = tmp_path / "some.typ", tmp_path / "parts" / "one.typ"
    part.parent.mkdir()
    source.write_text('#include "parts/one.typ"\n// #include "parts/two.typ"\n  // #shown("nowhere")\n#card("mini-sd")')
    part.write_text('#import "../names.typ": x\n#shown("09_sds")')
    (tmp_path / "names.typ").write_text('#let x = of("09_pds").after')
    assert used(source) == ({"09_sds"}, {"09_sds", "09_pds"})
    parts = ["some.typ", "parts/one.typ", "names.typ"]
    rows = ["row of 09_sds", "row of 09_pds", "evaluation.json: mini-sd"]
    assert inputs(source).keys() == {*parts, "09_sds", *rows}
    source.write_text('#card("mini-nothing")')
    with pytest.raises(RuntimeError, match="not there: mini-nothing"):
        inputs(source)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.target.name)
def test_every_figure_of_a_report_is_there_and_has_a_caption(document):
    shown, read = used(document.source)
    metrics = _committed_rows()
    assert sorted(shown - _committed_figures().keys()) == []
    assert sorted(read - metrics.keys()) == []
    assert [name for name in shown if not metrics[name]["caption"]] == []


def test_every_figure_is_shown():
    figures = set(_committed_figures())
    shown = set().union(*(used(document.source)[0] for document in DOCUMENTS))
    assert sorted(figures - shown - set(IN_NOTEBOOKS_ONLY)) == []
    assert sorted(shown & set(IN_NOTEBOOKS_ONLY)) == []
    assert sorted(set(IN_NOTEBOOKS_ONLY) - figures) == []


def test_no_figure_is_drawn_past_common_typ():
    for source in (ROOT / "report").rglob("*.typ"):
        drawn = [line for line in source.read_text().splitlines() if "image(" in line]
        assert all("folder +" in line and "alt:" in line for line in drawn), source


def test_the_report_compiles_on_figures_of_the_full_profile(monkeypatch, tmp_path):
    metrics = _committed_rows()
    for found in metrics["07_inpainting"]["values"].values():
        found["10"] = found.pop("5")
    for name in ("07_anagrams", "07_hybrids"):
        metrics[name]["values"] = {f"course's {key}": each for key, each in metrics[name]["values"].items()}
        if name == "07_anagrams":
            metrics[name]["values"]["control"] = metrics[name]["values"].pop("course's control")
    metrics["09_pds"]["values"]["left_out"] = {}
    metrics["05_guided"]["weights"] = {"vgg19": "0123", "pipeline": "4567-89ab"}
    monkeypatch.setenv("EX4_FIGURES", str(_linked(tmp_path / "figures", metrics)))
    for document in (EX4, CS180):
        compile_report(document.source, tmp_path / document.target.name)
        assert (tmp_path / document.target.name).read_bytes().startswith(b"%PDF-")


def test_exported_figures_are_appended_as_a_gallery(monkeypatch, tmp_path):
    plain = _committed_rows()
    folder = _linked(tmp_path / "figures", plain)
    monkeypatch.setenv("EX4_FIGURES", str(folder))
    document, manifest = Document(EX4.source, tmp_path / "ex4.pdf"), tmp_path / "manifest.json"
    publish(document, manifest)
    without = document.target.read_bytes()

    (folder / "exported").mkdir()
    Image.new("RGB", (40, 30), "teal").save(folder / "exported" / "my-cat.png")
    Image.new("RGB", (40, 30), "red").save(folder / "exported" / "left over.png")
    (folder / "exported" / "broken.png").write_text("no picture")
    row = {"caption": 'SDEdit, step 3 of 30: "a #cat" *by* $night$.'}
    _write_rows(folder, plain | {"exported/my-cat": row})
    assert stale(document, manifest) == ["exported/left over.png", "exported/my-cat.png"]
    publish(document, manifest)
    assert document.target.read_bytes() != without and stale(document, manifest) == []

    for path in (folder / "exported").iterdir():
        path.unlink()
    assert len(stale(document, manifest)) == 2
    compile_report(EX4.source, tmp_path / "again.pdf")
    assert (tmp_path / "again.pdf").read_bytes() == without


def test_the_report_compiles_to_the_same_bytes_on_the_committed_figures(monkeypatch, tmp_path):
    monkeypatch.setenv("EX4_FIGURES", str(ROOT / "figures"))
    for name in ("one.pdf", "two.pdf"):
        compile_report(EX4.source, tmp_path / name)
    content = (tmp_path / "one.pdf").read_bytes()
    assert content.startswith(b"%PDF-") and content == (tmp_path / "two.pdf").read_bytes()


def test_what_an_explorer_exports_is_in_the_gallery(monkeypatch, tmp_path):
    folder = _linked(tmp_path / "figures", _committed_rows())
    monkeypatch.setenv("EX4_FIGURES", str(folder))
    document, manifest = Document(EX4.source, tmp_path / "ex4.pdf"), tmp_path / "manifest.json"
    publish(document, manifest)
    without = document.target.read_bytes()
    explorer = explorer_of(Loop(4), seed=11)
    run(explorer)
    explorer.export("from-an-explorer")
    assert publish(document, manifest) and document.target.read_bytes() != without
    assert "exported/from-an-explorer.png" in json.loads(manifest.read_text())["ex4.pdf"]["inputs"]
