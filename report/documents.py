"""Typst sources to PDFs, and a manifest of what each was made from.

A source shows a figure by ``shown("NAME")`` and reads its numbers by ``of("NAME")``, both of ``common.typ``: so it is
known what a PDF depends on, and when it is stale.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ex4lib import experiments, images

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = ROOT / "report" / "manifest.json"
_USES = re.compile(r"\b(shown|of)\(\s*\"([\w-]+)\"")
_IMPORTS = re.compile(r"#?import \"([\w.-]+\.typ)\"|bibliography\(\"([\w.-]+)\"")


@dataclass(frozen=True)
class Document:
    """A Typst source and the PDF made of it."""

    source: Path
    target: Path


EX4 = Document(ROOT / "report" / "ex4.typ", ROOT / "ex4.pdf")
ASSIGNMENT4 = Document(ROOT / "report" / "assignment4.typ", ROOT / "report" / "assignment4.pdf")


def used(source: Path) -> tuple[set[str], set[str]]:
    """Names of the figures that a source shows, and of those whose numbers it reads."""
    found = _USES.findall(source.read_text())
    return {name for use, name in found if use == "shown"}, {name for _, name in found}


def inputs(source: Path) -> dict[str, str]:
    """SHA-256 of all that a PDF is made from: the source and what it imports, figures, rows of ``metrics.json``.

    Raises:
        RuntimeError: a figure or a row is missing.
    """
    folder = experiments.figures_folder()
    metrics = json.loads((folder / "metrics.json").read_text())
    shown, read = used(source)
    missing = sorted({name for name in shown if not (folder / f"{name}.png").is_file()} | (read - metrics.keys()))
    if missing:
        raise RuntimeError(f"{source.name} needs figures that are not there: {', '.join(missing)}")
    found = {part.name: part.read_bytes() for part in _parts(source)}
    found |= {f"{name}.png": (folder / f"{name}.png").read_bytes() for name in shown}
    found |= {f"metrics.json: {name}": json.dumps(metrics[name], sort_keys=True).encode() for name in read}
    return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(found.items())}


def compile_report(source: Path, target: Path) -> None:
    """Compile a Typst source to a PDF, offline; the same figures give the same bytes.

    What it is made from is laid into a folder of its own, and nothing else can be read. Figures that are smaller as
    JPEG go in as such: a report of many pictures would be four times the size.

    Raises:
        RuntimeError: the source has a mistake, or a figure or number it shows is missing.
    """
    import typst  # of the extra "report"

    figures, jpegs = experiments.figures_folder(), []
    with tempfile.TemporaryDirectory() as place:
        for part in _parts(source):
            shutil.copy(part, place)
        shutil.copy(figures / "metrics.json", place)
        for name in sorted(used(source)[0]):
            if (figures / f"{name}.png").is_file():
                content = _as_jpeg(figures / f"{name}.png")
                if content is None:
                    shutil.copy(figures / f"{name}.png", place)
                else:
                    Path(place, f"{name}.jpg").write_bytes(content)
                    jpegs.append(name)
        try:
            options = {"figures": ".", "jpegs": ",".join(jpegs)}
            pdf = typst.compile(Path(place, source.name), root=place, sys_inputs=options)
        except typst.TypstError as error:
            raise RuntimeError(f"{source.name}: {error}") from error
    images.write_bytes(target, pdf)


def _parts(source: Path) -> list[Path]:
    """The source, what it imports, and its bibliography."""
    return [source, *(source.parent / (a or b) for a, b in _IMPORTS.findall(source.read_text()))]


def _as_jpeg(path: Path) -> bytes | None:
    """A figure as JPEG, if that is smaller."""
    buffer = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").save(buffer, "JPEG", quality=90, subsampling=0)
    return buffer.getvalue() if buffer.tell() < path.stat().st_size else None


def publish(document: Document, manifest: Path = MANIFEST) -> None:
    """Compile a document and write down what it was made from; the manifest last."""
    made_from = inputs(document.source)
    compile_report(document.source, document.target)
    rows = json.loads(manifest.read_text()) if manifest.is_file() else {}
    pdf = hashlib.sha256(document.target.read_bytes()).hexdigest()
    experiments.write_json(manifest, rows | {document.target.name: {"pdf": pdf, "inputs": made_from}})


def stale(document: Document, manifest: Path = MANIFEST) -> list[str]:
    """Why a PDF is not what its inputs would make: names of what changed, appeared or went; empty if it is fresh."""
    rows = json.loads(manifest.read_text()) if manifest.is_file() else {}
    row = rows.get(document.target.name)
    if row is None or not document.target.is_file():
        return [f"{document.target.name} was not made yet"]
    if hashlib.sha256(document.target.read_bytes()).hexdigest() != row["pdf"]:
        return [f"{document.target.name} is not the one that was made"]
    now = inputs(document.source)
    return sorted(name for name in now.keys() | row["inputs"].keys() if now.get(name) != row["inputs"].get(name))
