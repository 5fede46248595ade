"""Figures: saved with what made them, the same bytes twice."""

import io
import itertools
import json

import numpy as np
import pytest
import torch
from documents import saved_rows
from matplotlib.colors import to_hex
from PIL import Image

from ex4lib import figures, images
from experiments import charts


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "figures"


@pytest.fixture
def plot():
    return charts.curves({"a": ([1, 2, 3], [1.0, 4.0, 9.0])}, xlabel="x", ylabel="y")


@pytest.mark.filterwarnings("error")
def test_a_figure_carries_its_provenance(folder, plot):
    returned = figures.save(plot, "07_name", caption="Größe", values={"loss": [1, 2.5]}, config={"seed": 3})
    assert returned.path.name == "07_name.png" and repr(returned) == "Größe"
    assert returned._repr_jpeg_().startswith(b"\xff\xd8")
    table = json.loads((folder / "metrics" / "07.json").read_text("utf-8"))
    (row,) = table["figures"].values()
    assert row["caption"] == "Größe" and row["values"] == {"loss": [1, 2.5]} and row["config"] == {"seed": 3}
    assert {"torch", "python", "device"} <= set(table["environment"])
    assert saved_rows() == {"07_name": row | {"environment": table["environment"]}}


def test_a_lossless_figure_holds_its_row(folder, plot):
    path = figures.save(plot, "exported/name", caption="c", lossless=True, config={"seed": 3}).path
    with Image.open(path) as picture:
        row = json.loads(picture.text["ex4lib"])
    assert row["config"] == {"seed": 3} and "torch" in row["environment"]
    assert {"exported/name": row} == saved_rows() and (folder / "metrics" / "exported.json").is_file()


def test_saving_twice_gives_the_same_bytes(folder, plot):
    def content():
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*.*g*")}

    figures.save(plot, "01_name", caption="c", values=[1])
    before = content()
    again = charts.curves({"a": ([1, 2, 3], [1.0, 4.0, 9.0])}, xlabel="x", ylabel="y")
    figures.save(again, "01_name", caption="c", values=[1])
    assert "01_name.png" in before and content() == before


def test_another_machine_leaves_an_equal_figure_as_it_is(folder, monkeypatch):
    """Versions, devices and last digits differ from machine to machine; the files of an equal figure do not."""
    picture = images.load("chelsea", 64)

    def saved(values, picture, dots=1.0):
        made = figures.grid([[picture]], captions=[["a cat"]])
        figures.save(made, "01_grid", caption="c", values=values)
        drawn = charts.curves({"a": ([1, 2], [dots, 4.0])}, xlabel="x", ylabel="y")
        figures.save(drawn, "01_curve", caption="c", values=values)
        return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    first = saved({"loss": [0.123456789]}, picture)
    monkeypatch.setattr(figures, "environment", lambda: {"torch": "another"})
    monkeypatch.setitem(figures.STYLE, "font.size", 10)  # draws other pixels of the same figure
    assert saved({"loss": [0.123456788]}, picture, 1.0000001) == first
    changed = picture.clone()
    changed[..., 0, 0] = 1 - changed[..., 0, 0].round()
    for again in (({"loss": [0.1236]}, picture), ({"loss": [0.123456789]}, changed), ({"loss": [0.1]}, picture, 1.1)):
        before, after = first, saved(*again)
        assert after.keys() == before.keys() and after["01.json"] != before["01.json"]
    assert json.loads(after["01.json"])["environment"] == {"torch": "another"}


def test_a_missing_picture_or_row_is_written_again(folder, plot):
    path = figures.save(plot, "01_name", caption="c").path
    content = path.read_bytes()
    path.unlink()
    figures.save(plot, "01_name", caption="c")
    assert path.read_bytes() == content
    (folder / "metrics" / "01.json").unlink()
    figures.save(plot, "01_name", caption="c")
    assert set(saved_rows()) == {"01_name"}


def test_a_notebook_shows_no_figure_larger_than_it_is_seen(folder):
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    saved = figures.save(figures.grid([[noise] * 9], cell=2.0), "01_wide", caption="c")
    with Image.open(saved.path) as whole, Image.open(io.BytesIO(saved._repr_jpeg_())) as shown:
        assert whole.width > shown.width == figures.SHOWN_WIDTH


def test_rows_of_other_figures_are_kept(folder, plot):
    figures.save(plot, "first", caption="1")
    figures.save(plot, "second", caption="2")
    figures.save(plot, "first", caption="3")
    rows = saved_rows()
    assert {name: row["caption"] for name, row in rows.items()} == {"first": "3", "second": "2"}


@pytest.mark.parametrize("caption", ["s", "a caption that is rather long\nand has two lines", "MMMMMMMMMMMMMMMMMM"])
def test_cells_are_as_wide_as_their_labels_need_and_no_wider(caption):
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    made = figures.grid([[picture] * 3] * 2, captions=[[caption] * 3] * 2, column_labels=["t = 250"] * 3)
    made.draw_without_rendering()
    for row in np.array(made.axes).reshape(2, 3):
        for label in (lambda ax: ax.xaxis.label, lambda ax: ax.title):
            boxes = [label(ax).get_window_extent() for ax in row]
            assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
            assert boxes[0].x0 >= -1 and boxes[-1].x1 <= made.bbox.width + 1
    widest = max(box.width for box in (ax.xaxis.label.get_window_extent() for ax in made.axes))
    cell = made.bbox.width / 3
    assert cell < max(0.9 * made.dpi, widest) + 0.25 * made.dpi


def test_a_grid_has_as_many_pixels_as_its_pictures_within_reason():
    low, high = figures.DENSITY
    for side, density in ((32, low), (150, 150 / 0.9), (1000, high)):
        assert figures.grid([[torch.zeros(1, 3, side, side)]]).dpi == pytest.approx(density)


@pytest.mark.parametrize("values", [float("nan"), object()])
def test_values_that_are_no_json_leave_the_old_figure(folder, plot, values):
    figures.save(plot, "name", caption="old")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises((ValueError, TypeError)):
        figures.save(plot, "name", caption="new", values=values)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_grid(folder):
    red = torch.zeros(1, 3, 8, 8)
    red[:, 0] = 1
    made = figures.grid(
        [[red, None], [1 - red]],
        row_labels=["r1", "r2"],
        column_labels=["c1", "c2"],
        captions=[["one", ""], ["two\nlines"]],
    )
    axes = np.array(made.axes).reshape(2, 2)
    assert [ax.get_title() for ax in axes[0]] == ["c1", "c2"]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["r1", "r2"]
    assert [ax.get_xlabel() for ax in axes.ravel()] == ["one", "", "two\nlines", ""]
    assert [len(ax.images) for ax in axes.ravel()] == [1, 0, 1, 0]
    assert (axes[0, 0].images[0].get_array() == [255, 0, 0]).all()
    figures.save(made, "grid", caption="c")
    with Image.open(folder / "grid.jpg") as picture:
        levels = np.asarray(picture.convert("RGB"), dtype=int)
    for colour in ([255, 0, 0], [0, 255, 255]):
        assert (abs(levels - colour) < 4).all(-1).sum() > 1000


def test_curves_are_told_apart_by_colour_and_marker():
    series = {f"line {i}": ([1, 2], [i, 2 * i]) for i in range(1, 9)}
    made = charts.curves(series, xlabel="evaluations", ylabel="loss", log="y")
    (ax,) = made.axes
    assert len({to_hex(line.get_color()) for line in ax.lines}) == len({line.get_marker() for line in ax.lines}) == 8
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "log")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("evaluations", "loss")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(series)
    assert ax.lines[2].get_ydata().tolist() == [3, 6]


def test_panels():
    part = {"series": {"a": ([0, 1], [1, 2])}, "xlabel": "x", "ylabel": "y", "ticks": ["p", "q"]}
    made = charts.panels([part | {"title": str(i)} for i in range(3)], columns=2)
    assert [ax.get_title() for ax in made.axes] == ["0", "1", "2", ""]
    assert [ax.get_visible() for ax in made.axes] == [True, True, True, False]
    assert [tick.get_text() for tick in made.axes[0].get_xticklabels()] == ["p", "q"]


def test_matrix():
    made = charts.matrix([[1, 10, 100], [0.1, 1, 1000]], row_labels="ab", column_labels="xyz", xlabel="j", ylabel="i")
    (ax,) = made.axes
    assert [text.get_text() for text in ax.texts] == ["1", "10", "1e+02", "0.1", "1", "1e+03"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b"]


def test_a_matrix_with_zeros_is_still_shaded():
    """The diagonal of a distance matrix is 0, whose logarithm is none."""
    made = charts.matrix([[0, 1], [10, 0]], row_labels="ab", column_labels="ab", xlabel="j", ylabel="i")
    assert np.isfinite(np.asarray(made.axes[0].images[0].get_array(), dtype=float)).all()
    assert {text.get_color() for text in made.axes[0].texts} == {"black", "white"}


def test_a_logarithmic_axis_labels_the_few_values_that_were_measured():
    few = charts.curves({"a": ([0.5, 2.0], [1, 2]), "b": ([4.0], [3])}, xlabel="x", ylabel="y", log="x").axes[0]
    assert [label.get_text() for label in few.get_xticklabels()] == ["0.5", "2", "4"]
    many = charts.curves({"a": (range(1, 30), range(1, 30))}, xlabel="x", ylabel="y", log="x").axes[0]
    assert len(many.get_xticks()) < 29


def test_markers_can_stand_without_lines():
    (line,) = charts.curves({"a": ([0, 1], [1, 2])}, xlabel="x", ylabel="y", lines=False).axes[0].lines
    assert line.get_linestyle() == "None" and line.get_marker() == "o"


def test_long_row_labels_do_not_shrink_the_pictures():
    pictures = [[torch.zeros(1, 3, 8, 8)] * 3]
    for label in ("x", "a label of very many letters"):
        figure = figures.grid(pictures, row_labels=[label], cell=1.5)
        figure.draw_without_rendering()
        width = figure.axes[0].get_window_extent().width / figure.dpi
        assert width == pytest.approx(1.5, abs=0.1)


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/x", "", ".", "..", ".hidden", "a//b", "a/", "a\\b", "a\n", None]
)
def test_no_figure_is_written_outside_of_its_folder(folder, plot, name):
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(ValueError, match="name must be of letters"):
        figures.save(plot, name, caption="a")
    assert sorted(folder.parent.rglob("*")) == before
