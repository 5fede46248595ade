"""Execute the notebooks, copies in build/notebooks or with ``--in-place`` the committed ones, and compile the PDFs.

Figures are written by the notebooks themselves, through ``ex4lib.figures``. A notebook that fails is named with its
cell and error, also when the error happened in a widget's callback, where the runner alone would not notice. A copy is
not executed again while its cells, its settings, the modules it imported, the pictures and models it opened are what
they were and its figures are there.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import nbformat
from documents import DOCUMENTS, MODELS, picture_path, publish
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from ex4lib import files, images, models
from experiments.files import write_json

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
#: Folders of what decides the results of a notebook.
PARTS = ("ex4lib", "experiments", "training")
#: Run in a kernel before the first cell: writes the names of all modules and opened files when the kernel ends.
RECORDER = """
import atexit, json, sys
_opened = set()
def _heard(event, values):
    if event == "open":
        _opened.add(str(values[0]))
    elif event == "experiments.store.stored":
        _opened.add("run:" + values[0])
sys.addaudithook(_heard)
def _write():
    modules = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    names = sorted({str(name) for name in [*_opened, *modules] if name})
    with open(TARGET, "w") as file:
        json.dump(names, file)
atexit.register(_write)
"""


def execute(path: Path, timeout: int | None = None, record: Path | None = None) -> nbformat.NotebookNode:
    """Run all cells of a notebook in its own folder and return it, without widget state.

    Arguments:
        timeout: seconds that a cell may take.
        record: where the names of the files that the kernel used are written, as JSON.

    Raises:
        RuntimeError: a cell or a widget callback failed.
    """
    notebook = nbformat.read(path, as_version=4)
    line = f"exec({RECORDER!r}, {{'TARGET': {str(record)!r}}})"
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        extra_arguments=[] if record is None else [f"--IPKernelApp.exec_lines={[line]!r}"],
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

    Beside the copy lies what it was made from: its cells and settings, and each file of the project that the execution
    imported or opened. ``EX4_STORE=ignore`` executes it always.

    Raises:
        RuntimeError: see `execute`.
    """
    mark = copy.with_suffix(".made")
    if os.environ.get("EX4_STORE") != "ignore" and copy.is_file() and mark.is_file():
        made = json.loads(mark.read_text())
        unchanged = made["cells"] == cells_sha256(path) and made["files"] == digests(made["files"])
        if unchanged and all(map(picture_path, made["figures"])):
            return False
    mark.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder, "used")
        write(execute(path, record=record), copy)
        names = json.loads(record.read_text()) if record.is_file() else None
    if names is not None:
        made = {"cells": cells_sha256(path), "files": digests(used_files(names)), "figures": sorted(figures_of(path))}
        made["runs"] = [name.removeprefix("run:") for name in names if name.startswith("run:")]
        write_json(mark, made)
    return True


def cells_sha256(path: Path) -> str:
    """SHA-256 of a notebook's cells and of the ``EX4_`` variables."""
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells]
    settings = {name: value for name, value in os.environ.items() if name.startswith("EX4_")}
    return hashlib.sha256(json.dumps([cells, settings], sort_keys=True).encode()).hexdigest()


def used_files(names: Iterable[str]) -> set[str]:
    """Of the files that a process used those that decide its results, relative to the project.

    Modules, pictures, and whole folders of models, whose weights are read past Python.
    """
    found = set()
    for name in names:
        path = Path(name).resolve()
        if path.is_relative_to(MODELS):
            folder = MODELS / path.relative_to(MODELS).parts[0]
            found |= {part for part in folder.rglob("*") if part.is_file()}
        elif path.is_file() and any(path.is_relative_to(ROOT / part) for part in PARTS) and path.suffix != ".pyc":
            found.add(path)
    return {path.relative_to(ROOT).as_posix() for path in found}


def digests(names: Iterable[str]) -> dict[str, str | None]:
    """SHA-256 of files of the project, of modules without comments and docstrings; None where there is none."""
    return {name: _digest(ROOT / name) if (ROOT / name).is_file() else None for name in names}


def _digest(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".py":
        tree = ast.parse(content)
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        content = ast.dump(tree).encode()
    return hashlib.sha256(content).hexdigest()


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
    parser.add_argument("--prune", action="store_true", help="delete the finished runs that no notebook asks for")
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
    if options.prune and not options.in_place and not options.names:
        sys.path.insert(0, str(ROOT))
        from experiments import store  # not installed by pip

        marks = [json.loads((target / path.name).with_suffix(".made").read_text()) for path in paths]
        deleted = store.prune(run for mark in marks for run in mark["runs"])
        print(f"deleted {len(deleted)} runs that no notebook asks for")
    print(f"notebooks in {target}, figures in {files.figures_folder()}")
    if models.budget(fast=True, mini=False, full=False):
        print("EX4_FAST: its few steps draw no figures worth a report; the PDFs stay as they are")
        return
    try:
        for document in DOCUMENTS:
            changed = publish(document)
            print(document.target if changed else f"{document.target}: as it was")
    except RuntimeError as error:
        sys.exit(f"notebooks and figures are there, a PDF is not: {error}")


def _failed(cell: nbformat.NotebookNode) -> bool:
    return any(output.get("output_type") == "error" for output in cell.get("outputs", []))


if __name__ == "__main__":
    main()
