"""An explorer as a person meets it: a notebook in a browser, found by what is seen, used by keyboard and clicks."""

import base64
import contextlib
import json
import os
import re
import shutil
import time

import nbformat
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from ex4lib import widgets
from tests.lab import LAPTOP, ROOT, browsed, copied, served

NOTEBOOK = ROOT / "notebooks" / "05_guided_stable_diffusion.ipynb"
#: A setting to move, by its label on the page, and the one that makes a run long.
SLIDER, LENGTH = "style scale", "steps"
#: Seconds for all cells, which find their runs in the store, and for all else.
CELLS, ANSWER = 600, 120


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def slider(page: Page, label: str) -> Locator:
    """The handle in the row that a label begins."""
    return page.locator("label").filter(has_text=re.compile(f"^{label}$")).locator("..").get_by_role("slider")


def status(page: Page, text: str) -> Locator:
    return page.get_by_role("status").filter(has_text=re.compile(text))


def after(page: Page) -> Locator:
    return page.get_by_role("img", name="After", exact=True)


def before(page: Page) -> Locator:
    return page.get_by_role("img", name=re.compile("^Before"))


def picture(page: Page) -> bytes:
    """The file of the picture that a screen reader calls "After"."""
    return base64.b64decode(after(page).get_attribute("src").split(",")[1])


def require_no_traceback(page: Page) -> None:
    shown = page.get_by_text("Traceback (most recent call last)")
    assert shown.count() == 0, shown.first.inner_text()


def open_and_run_all(page: Page) -> None:
    """Choose Run All Cells in the menu, and wait for the explorer that the last cell shows."""
    page.get_by_role("button", name=re.compile(r"\| Idle$")).wait_for(timeout=1000 * ANSWER)
    begun = page.locator(".jp-InputPrompt").filter(has_text=re.compile(r"\[(\*|\d+)\]"))
    for _ in range(3):  # a menu that the page redraws in between loses the click
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        with contextlib.suppress(PlaywrightTimeout):
            begun.first.wait_for(timeout=20_000)
            break
    failed = page.get_by_text("Traceback (most recent call last)")
    button(page, "Run").or_(failed).first.wait_for(timeout=1000 * CELLS)
    require_no_traceback(page)


def pictures_of_a_run(page: Page) -> set[bytes]:
    """Press Run, and look until it has finished."""
    button(page, "Run").click()
    seen, finished, ending = set(), status(page, r"^finished, [\d.]+ s$"), time.monotonic() + ANSWER
    while not finished.is_visible():
        require_no_traceback(page)
        assert time.monotonic() < ending, f"the run had not finished after {ANSWER} s"
        seen.add(picture(page))
        time.sleep(0.1)
    return seen | {picture(page)}


@pytest.mark.slow
def test_an_explorer_in_a_browser(tmp_path):
    """Run all, move a slider, Run, see the picture change, Cancel a long run, Export, find the file."""
    figures = tmp_path / "figures"
    shutil.copytree(ROOT / "figures" / "runs", figures / "runs")
    copy = copied(NOTEBOOK, tmp_path)
    with served(tmp_path) as address, browsed(address(copy), tmp_path) as (page, errors):
        page.set_default_timeout(1000 * ANSWER)
        expect.set_options(timeout=1000 * ANSWER)

        open_and_run_all(page)
        page.keyboard.press("Control+s")
        saved = executed(copy)
        assert not [output for cell in saved for output in cell.outputs if output.output_type == "error"]

        # The slider moves by keyboard, and what is run is what it was moved to.
        first, handle = picture(page), slider(page, SLIDER)
        start = float(handle.get_attribute("aria-valuetext"))
        for _ in range(4):
            handle.press("ArrowRight")
        value = float(handle.get_attribute("aria-valuetext"))
        assert value > start
        seen = pictures_of_a_run(page) - {first}
        assert picture(page) in seen and len(seen) > 2, f"{len(seen)} new pictures were seen in the run"
        expect(page.get_by_text(re.compile(f"{SLIDER} {value:g}"))).to_be_visible()

        button(page, "More").press("Enter")
        slider(page, LENGTH).press("End")
        total = int(slider(page, LENGTH).get_attribute("aria-valuetext"))
        button(page, "Run").click()
        status(page, rf"^step \d+ of {total}").wait_for()
        expect(button(page, "Run")).to_be_disabled()
        button(page, "Cancel").click()
        cancelled = status(page, rf"^cancelled after step \d+ of {total}")
        cancelled.wait_for()
        expect(button(page, "Run")).to_be_enabled()
        expect(button(page, "Cancel")).to_be_disabled()
        done = int(re.search(r"step (\d+)", cancelled.inner_text())[1])
        assert 1 <= done < total

        page.get_by_role("textbox", name="name", exact=True).fill("from-the-browser")
        button(page, "Export").click()
        exported = figures / "exported" / "from-the-browser.png"
        expect(status(page, f"^written to {re.escape(str(exported))}$")).to_be_visible()
        expect(page.get_by_text('#figure(image("exported/from-the-browser.png"')).to_be_visible()
        with Image.open(exported) as file:
            row = json.loads(file.text["ex4lib"])
        config = row["config"]
        assert config[SLIDER.replace(" ", "_")] == value and config["total"] == config[LENGTH] == total
        assert 1 <= config["step"] <= done and len(row["values"]["losses"]) == config["step"]
        (table,) = json.loads((figures / "metrics" / "exported.json").read_text())["figures"].values()
        assert table.items() <= row.items()

        require_no_traceback(page)
        assert not errors


#: A call of each explorer, a slider to move in it, and the one that makes a run long, if there is one.
EXPLORERS = {
    "style_transfer": ("size=48, evaluations=8", "style weight", "evaluations"),
    "inversion": ("size=48, evaluations=8", "tv weight", "evaluations"),
    "guided_stable_diffusion": ("steps=4", "style scale", "steps"),
    "guided_ddpm": ("steps=4", "style scale", "steps"),
    "sdedit": ("start=24", "start", None),
    "anagram_explorer": ("", "guidance scale", None),
}
#: Collects what the status says in ``window.heard``, and with it whether a run has begun since the list was emptied.
LISTEN = """() => {
    window.heard = [];
    const hear = () => document.querySelectorAll('[role=status], [role=alert]').forEach(line => {
        if (line.textContent && window.heard.at(-1) !== line.textContent) window.heard.push(line.textContent);
    });
    new MutationObserver(hear).observe(document.body, {childList: true, subtree: true, characterData: true});
}"""


def wait_for_kernel(page: Page) -> None:
    """Wait until a value has arrived: it waits for the answer to the value before it, and a click does not."""
    page.wait_for_timeout(500)
    page.get_by_role("button", name=re.compile(r"\| Idle$")).wait_for()


def run_until(page: Page, text: str) -> list[str]:
    """Press Run, and wait until the status says ``text`` after it said that models are loaded; all that it said."""
    page.evaluate("window.heard = []")
    button(page, "Run").click()
    page.wait_for_function(
        "text => { const start = window.heard.indexOf('loading ...');"
        " return start >= 0 && window.heard.slice(start).some(line => new RegExp(text).test(line)); }",
        arg=text,
    )
    return page.evaluate("window.heard")


def require_on_one_screen(page: Page) -> None:
    """Controls, both pictures and export are seen at once, after beside before and both beside the controls."""
    parts = [button(page, "Run"), before(page), after(page), button(page, "Keep"), button(page, "Export")]
    page.locator(".jp-OutputArea-output").first.evaluate("output => output.scrollIntoView()")
    run, left, right, *rest = boxes = [part.bounding_box() for part in parts]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= LAPTOP["width"] for box in boxes), boxes
    assert all(box["y"] >= 0 and box["y"] + box["height"] <= LAPTOP["height"] for box in boxes), boxes
    assert run["x"] + run["width"] <= left["x"] and left["x"] + left["width"] <= right["x"], boxes
    assert abs(left["y"] - right["y"]) < 2 and right["y"] < run["y"] < max(box["y"] for box in rest), boxes


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab with a notebook for each explorer."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    for name, (arguments, _, _) in EXPLORERS.items():
        module = "ex4lib.widgets" if hasattr(widgets, name) else "experiments.anagram_explorer"
        cell = nbformat.v4.new_code_cell(f"from {module} import {name}\n\n{name}({arguments})")
        notebook = nbformat.v4.new_notebook(cells=[cell])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("EX4_PROFILE", "mini")
        environment.setenv("EX4_FIGURES", str(folder / "figures"))
        with served(folder) as address:
            yield folder, address


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPLORERS)
def test_each_explorer_in_a_browser(lab, name):
    """Run, change a setting, run again, scrub, cancel, export: on the screen of a small laptop.

    They share their controls, so one of them is driven always, and the others, which take minutes each, when asked for.
    """
    if name != "style_transfer" and os.environ.get("EX4_BROWSER") != "all":
        pytest.skip("EX4_BROWSER=all drives this explorer, too")
    folder, address = lab
    _, moved, length = EXPLORERS[name]
    with browsed(address(folder / "notebooks" / f"{name}.ipynb"), folder) as (page, errors):
        page.set_default_timeout(1000 * ANSWER)
        expect.set_options(timeout=1000 * ANSWER)
        open_and_run_all(page)
        page.evaluate(LISTEN)

        heard = run_until(page, "^finished")
        assert sum(bool(re.match(r"step \d+ of", line)) for line in heard) >= 3
        expect(button(page, "Run")).to_be_enabled()
        first = picture(page)

        # What is folded away is opened by keyboard.
        expect(page.get_by_text("picture width", exact=True)).to_be_hidden()
        button(page, "More").press("Enter")
        expect(page.get_by_text("picture width", exact=True)).to_be_visible()
        for _ in range(4):
            slider(page, moved).press("ArrowRight")
            wait_for_kernel(page)
        run_until(page, "^finished")
        expect(button(page, "Run")).to_be_enabled()
        second = picture(page)
        assert second != first
        expect(page.get_by_role("img", name="Before: the previous run", exact=True)).to_be_visible()
        assert base64.b64decode(before(page).get_attribute("src").split(",")[1]) == first
        bold = page.locator("b").filter(has_text=re.compile(f"^{moved} "))
        assert bold.count() == 2, "the setting that differs is shown below both pictures"
        setting = bold.last.inner_text()
        assert setting != bold.first.inner_text()
        button(page, "More").press("Enter")
        require_on_one_screen(page)

        slider(page, "look at").press("Home")
        expect(page.get_by_text(re.compile("^step 1 of "))).to_be_visible()
        assert picture(page) not in (first, second)

        if length:
            button(page, "More").press("Enter")
            slider(page, length).press("End")
        run_until(page, r"^step \d+ of")
        expect(button(page, "Run")).to_be_disabled()
        button(page, "Cancel").click()
        cancelled = status(page, r"^cancelled after step \d+ of")
        cancelled.wait_for()
        expect(button(page, "Run")).to_be_enabled()

        page.get_by_role("textbox", name="name", exact=True).fill(f"from-{name}")
        button(page, "Export").click()
        exported = folder / "figures" / "exported" / f"from-{name}.png"
        expect(status(page, f"^written to {re.escape(str(exported))}$")).to_be_visible()
        with Image.open(exported) as file:
            config = json.loads(file.text["ex4lib"])["config"]
        assert f"{moved} {config[moved.replace(' ', '_')]:.4g}" == setting and config["step"] < config["total"]
        require_no_traceback(page)
        assert not errors


def executed(path) -> list[nbformat.NotebookNode]:
    """The code cells of a notebook file, once it was saved with all of them run."""
    ending = time.monotonic() + ANSWER
    while time.monotonic() < ending:
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        if all(cell.execution_count for cell in cells):
            return cells
        time.sleep(0.2)
    raise AssertionError(f"{path.name} was not saved with all its cells run")
