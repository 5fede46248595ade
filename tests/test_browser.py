"""An explorer as a person meets it: a notebook in a browser, found by what is seen, used by keyboard and clicks."""

import json
import re
import shutil
import time

import nbformat
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from tests.lab import ROOT, browsed, served

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


def picture(page: Page) -> bytes:
    """The file of the picture under the title "Now"."""
    slot = page.locator("div").filter(has=page.get_by_text("Now", exact=True)).filter(has=page.get_by_role("img")).last
    read = "async image => Array.from(new Uint8Array(await (await fetch(image.src)).arrayBuffer()))"
    return bytes(slot.get_by_role("img").evaluate(read))


def require_no_traceback(page: Page) -> None:
    shown = page.get_by_text("Traceback (most recent call last)")
    assert shown.count() == 0, shown.first.inner_text()


def open_and_run_all(page: Page) -> None:
    """Choose Run All Cells in the menu, and wait for the explorer that the last cell shows."""
    page.get_by_role("button", name=re.compile(r"\| Idle$")).wait_for(timeout=1000 * ANSWER)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
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
    with served(NOTEBOOK, tmp_path) as (address, copy), browsed(address, tmp_path) as (page, errors):
        page.set_default_timeout(1000 * ANSWER)
        expect.set_options(timeout=1000 * ANSWER)

        open_and_run_all(page)
        page.keyboard.press("Control+s")
        saved = executed(copy)
        assert not [output for cell in saved for output in cell.outputs if output.output_type == "error"]

        # The slider moves by keyboard, and what is run is what it was moved to.
        before, handle = picture(page), slider(page, SLIDER)
        start = float(handle.get_attribute("aria-valuetext"))
        for _ in range(4):
            handle.press("ArrowRight")
        value = float(handle.get_attribute("aria-valuetext"))
        assert value > start
        seen = pictures_of_a_run(page) - {before}
        assert picture(page) in seen and len(seen) > 2, f"{len(seen)} new pictures were seen in the run"
        expect(page.get_by_text(re.compile(f"{SLIDER} {value:g}"))).to_be_visible()

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


def executed(path) -> list[nbformat.NotebookNode]:
    """The code cells of a notebook file, once it was saved with all of them run."""
    ending = time.monotonic() + ANSWER
    while time.monotonic() < ending:
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        if all(cell.execution_count for cell in cells):
            return cells
        time.sleep(0.2)
    raise AssertionError(f"{path.name} was not saved with all its cells run")
