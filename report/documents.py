"""Typst sources to PDFs, and a manifest of what each was made from.

A source shows a figure by ``shown("NAME")``, reads its numbers by ``of("NAME")`` and what was measured of an embedded
model by ``card("NAME")``, all of ``common.typ``: so it is known what a PDF depends on, and when it is stale.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ex4lib import figures, files, images
from experiments.files import write_json

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = ROOT / "report" / "manifest.json"
MODELS = ROOT / "ex4lib" / "assets" / "models"
_USES = re.compile(r"\b(shown|of|card)\(\s*\"([\w-]+)\"")
_IMPORTS = re.compile(r"\b(?:import|include) \"([\w./-]+\.typ)\"|(?:bibliography|toml)\(\"([\w./-]+)\"")
_COMMENT = re.compile(r"(?m)^\s*//.*$")


@dataclass(frozen=True)
class Document:
    """A Typst source and the PDF made of it."""

    source: Path
    target: Path


EX4 = Document(ROOT / "report" / "ex4.typ", ROOT / "ex4.pdf")
CS180 = Document(ROOT / "report" / "cs180.typ", ROOT / "report" / "cs180.pdf")
ASSIGNMENT4 = Document(ROOT / "report" / "assignment4.typ", ROOT / "report" / "assignment4.pdf")
DOCUMENTS = (EX4, CS180, ASSIGNMENT4)


def saved_rows() -> dict[str, dict]:
    """The rows of all figures by name: ``caption``, ``values``, ``sha256`` and provenance, also ``environment``."""
    found = {}
    for table in sorted((files.figures_folder() / "metrics").glob("*.json")):
        content = json.loads(table.read_text("utf-8"))
        rows = content["figures"].items()
        found |= {name: row | {"environment": content["environment"]} for name, row in rows}
    return found


def picture_path(name: str) -> Path | None:
    """The picture file of a figure, or None."""
    paths = (files.figures_folder() / f"{name}{suffix}" for suffix in figures.SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def used(source: Path) -> tuple[set[str], set[str]]:
    """Names of the figures that a source and its parts show, and of those whose numbers they read."""
    found = _uses(source)
    shown = {name for use, name in found if use == "shown"}
    return shown, shown | {name for use, name in found if use == "of"}


def inputs(source: Path) -> dict[str, str]:
    """SHA-256 of all that a PDF is made from: sources, figures and their rows, cards of models, exported figures.

    Raises:
        RuntimeError: a figure, a row or a card is missing.
    """
    rows = saved_rows()
    shown, read = used(source)
    cards = _cards(source)
    missing = {name for name in shown if not picture_path(name)} | (read - rows.keys())
    missing |= {name for name, card in cards.items() if not card.is_file()}
    if missing:
        raise RuntimeError(f"{source.name} needs figures that are not there: {', '.join(sorted(missing))}")
    found = {name: part.read_bytes() for name, part in _parts(source).items()}
    found |= {name: picture_path(name).read_bytes() for name in shown}
    found |= {f"row of {name}": json.dumps(_lasting(rows[name]), sort_keys=True).encode() for name in read}
    if _shows_gallery(source):
        found |= {f"exported/{path.name}": path.read_bytes() + caption.encode() for path, caption in exported()}
    found |= {f"evaluation.json: {name}": card.read_bytes() for name, card in cards.items()}
    return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(found.items())}


def exported() -> list[tuple[Path, str]]:
    """Figures that a user exported, with their captions, by name; what is no readable picture is left out."""
    rows, found = saved_rows(), []
    folder = files.figures_folder() / "exported"
    for path in sorted(path for path in folder.glob("*") if path.suffix in figures.SUFFIXES):
        try:
            with Image.open(path) as picture:
                picture.load()
        except (OSError, SyntaxError):  # the latter is what a torn PNG raises
            continue
        found.append((path, rows.get(f"exported/{path.stem}", {}).get("caption") or path.stem))
    return found


def compile_report(source: Path, target: Path) -> None:
    """Compile a Typst source to a PDF, offline; the same figures give the same bytes.

    What it is made from is copied into a folder of its own, and nothing else can be read.

    Raises:
        RuntimeError: the source has a mistake, or a figure or number it shows is missing.
    """
    import typst  # of the extra "report"

    suffixes, gallery = {}, []
    with tempfile.TemporaryDirectory() as place:
        for name, part in _parts(source).items():
            _lay(part, Path(place, name))
        for name, card in _cards(source).items():
            if card.is_file():
                _lay(card, Path(place, "models", name, card.name))
        write_json(Path(place, "metrics.json"), saved_rows())
        for name in sorted(used(source)[0]):
            if path := picture_path(name):
                _lay(path, Path(place, path.name))
                suffixes[name] = path.suffix
        for i, (path, caption) in enumerate(exported()):
            _lay(path, Path(place, f"exported-{i}{path.suffix}"))
            gallery.append({"file": f"exported-{i}{path.suffix}", "caption": caption})
        options = {"figures": ".", "models": "models"}
        options |= {"suffixes": json.dumps(suffixes), "exported": json.dumps(gallery)}
        try:
            pdf = typst.compile(Path(place, source.name), root=place, sys_inputs=options)
        except typst.TypstError as error:
            raise RuntimeError(f"{source.name}: {error}") from error
    images.write_bytes(target, pdf)


def _parts(source: Path) -> dict[str, Path]:
    """The source and what it imports, includes or reads, by their paths beside it."""
    found, waiting = {}, [source.resolve()]
    while waiting:
        part = waiting.pop()
        name = part.relative_to(source.resolve().parent).as_posix()
        if name not in found:
            found[name] = part
            if part.suffix == ".typ" and part.is_file():
                waiting += [(part.parent / (a or b)).resolve() for a, b in _IMPORTS.findall(_code(part))]
    return found


def _code(part: Path) -> str:
    """A source without the lines that are comments."""
    return _COMMENT.sub("", part.read_text())


def _uses(source: Path) -> list[tuple[str, str]]:
    parts = [part for part in _parts(source).values() if part.suffix == ".typ" and part.is_file()]
    return [use for part in parts for use in _USES.findall(_code(part))]


def _cards(source: Path) -> dict[str, Path]:
    """Evaluations of the embedded models that a source reads."""
    return {name: MODELS / name / "evaluation.json" for use, name in _uses(source) if use == "card"}


def _lay(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, target)


def _lasting(row: dict) -> dict:
    """A row without its environment: where numbers were computed is no reason to compile them again."""
    return {key: value for key, value in row.items() if key != "environment"}


def _shows_gallery(source: Path) -> bool:
    parts = [part for part in _parts(source).values() if part.suffix == ".typ" and part.is_file()]
    return any("in exported" in _code(part) for part in parts)


def publish(document: Document, manifest: Path = MANIFEST) -> bool:
    """Compile a document and write down what it was made from, the manifest last; whether that was needed.

    A PDF whose inputs have not changed keeps its bytes, whatever version of Typst is installed.
    """
    if not stale(document, manifest):
        return False
    made_from = inputs(document.source)
    compile_report(document.source, document.target)
    rows = json.loads(manifest.read_text()) if manifest.is_file() else {}
    pdf = hashlib.sha256(document.target.read_bytes()).hexdigest()
    write_json(manifest, rows | {document.target.name: {"pdf": pdf, "inputs": made_from}})
    return True


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
