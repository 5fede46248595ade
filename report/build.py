"""Execute the notebooks, copies in build/notebooks or with ``--in-place`` the committed ones, and compile the PDFs.

Figures are written by the notebooks themselves, through ``ex4lib.figures``. A notebook that fails is named with its
cell and error, also when the error happened in a widget's callback, where the runner alone would not notice. A copy is
not executed again while its cells, the package and the settings are what they were and its figures are there.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from documents import ASSIGNMENT4, EX4, publish
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from ex4lib import files, images, models

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"


def execute(path: Path, timeout: int | None = None) -> nbformat.NotebookNode:
    """Run all cells of a notebook in its own folder and return it, without widget state.

    Arguments:
        timeout: seconds that a cell may take.

    Raises:
        RuntimeError: a cell or a widget callback failed.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    try:
        client.execute()
    except CellExecutionError as error:
        number = next((i for i, cell in enumerate(notebook.cells) if _failed(cell)), "?")
        raise RuntimeError(f"{path.name}, cell {number}: {error.ename}: {error.evalue}") from error
    failures = callback_errors(notebook)
    if failures:
        raise RuntimeError(f"{path.name}: a widget callback failed: {', '.join(failures)}")
    return cleaned(notebook)


def callback_errors(notebook: nbformat.NotebookNode) -> list[str]:
    """Names of the errors that widget callbacks raised."""
    state = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {})
    return [
        output["ename"]
        for widget in state.get("state", {}).values()
        for output in widget.get("state", {}).get("outputs", [])
        if output.get("output_type") == "error"
    ]


def cleaned(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop widget state, which breaks rendering on GitHub, and what changes from run to run."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    return notebook


def copied(path: Path, copy: Path) -> bool:
    """Execute a notebook into a copy, unless that is there already; whether it was executed.

    ``EX4_STORE=ignore`` executes it always.

    Raises:
        RuntimeError: see `execute`.
    """
    mark, made_from = copy.with_suffix(".made"), fingerprint(path)
    if os.environ.get("EX4_STORE") != "ignore" and copy.is_file() and mark.is_file():
        names = figures_of(path)
        rows = json.loads((files.figures_folder() / "metrics.json").read_text()) if names else {}
        there = all(name in rows and (files.figures_folder() / f"{name}.png").is_file() for name in names)
        if there and mark.read_text() == made_from:
            return False
    write(execute(path), copy)
    images.write_bytes(mark, made_from.encode())
    return True


def fingerprint(path: Path) -> str:
    """SHA-256 of what decides a notebook's results: its cells, the package with its weights, the ``EX4_`` variables."""
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells]
    settings = {name: value for name, value in os.environ.items() if name.startswith("EX4_")}
    return hashlib.sha256(json.dumps([cells, settings, package_sha256()], sort_keys=True).encode()).hexdigest()


@functools.cache
def package_sha256() -> str:
    """SHA-256 over the package's files."""
    digest, package = hashlib.sha256(), Path(files.__file__).parent
    for file in sorted(each for each in package.rglob("*") if each.is_file() and each.suffix != ".pyc"):
        digest.update(file.relative_to(package).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


def figures_of(path: Path) -> set[str]:
    """Names of the figures that a notebook saves."""
    code = (cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    return set(re.findall(rf"\"({path.name[:2]}_\w+)\"", "\n".join(code)))


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write a notebook, whole or not at all."""
    images.write_bytes(path, (nbformat.writes(notebook) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--in-place", action="store_true", help="rewrite the committed notebooks")
    parser.add_argument("names", nargs="*", help="parts of notebook names; default all")
    options = parser.parse_args()
    paths = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    paths = [path for path in paths if not options.names or any(name in path.name for name in options.names)]
    target = NOTEBOOKS if options.in_place else ROOT / "build" / "notebooks"
    target.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(paths, start=1):
        started = time.perf_counter()
        print(f"[{number}/{len(paths)}] {path.name} ...", end=" ", flush=True)
        try:
            if options.in_place:
                write(execute(path), path)
            elif not copied(path, target / path.name):
                print("as it was")
                continue
        except RuntimeError as error:
            sys.exit(f"\n{error}")
        print(f"{time.perf_counter() - started:.0f} s")
    print(f"notebooks in {target}, figures in {files.figures_folder()}")
    if models.budget(fast=True, mini=False, full=False):
        print("EX4_FAST: its few steps draw no figures worth a report; the PDFs stay as they are")
        return
    try:
        for document in (EX4, ASSIGNMENT4):
            publish(document)
            print(document.target)
    except RuntimeError as error:
        sys.exit(f"notebooks and figures are there, a PDF is not: {error}")


def _failed(cell: nbformat.NotebookNode) -> bool:
    return any(output.get("output_type") == "error" for output in cell.get("outputs", []))


if __name__ == "__main__":
    main()
