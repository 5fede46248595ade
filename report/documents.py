"""Typst sources to PDFs, and a manifest of what each was made from.

A source shows a figure by ``shown("NAME")``, reads its numbers by ``of("NAME")`` and what was measured of an embedded
model by ``card("NAME")``, all of ``common.typ``: so it is known what a PDF depends on, and when it is stale.
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

from ex4lib import files, images

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = ROOT / "report" / "manifest.json"
MODELS = ROOT / "ex4lib" / "assets" / "models"
_USES = re.compile(r"\b(shown|of|card)\(\s*\"([\w-]+)\"")
_IMPORTS = re.compile(r"\b(?:import|include) \"([\w./-]+\.typ)\"|bibliography\(\"([\w./-]+)\"")
_COMMENT = re.compile(r"(?m)^\s*//.*$")


@dataclass(frozen=True)
class Document:
    """A Typst source and the PDF made of it."""

    source: Path
    target: Path


EX4 = Document(ROOT / "report" / "ex4.typ", ROOT / "ex4.pdf")
ASSIGNMENT4 = Document(ROOT / "report" / "assignment4.typ", ROOT / "report" / "assignment4.pdf")


def used(source: Path) -> tuple[set[str], set[str]]:
    """Names of the figures that a source and its parts show, and of those whose numbers they read."""
    found = _uses(source)
    shown = {name for use, name in found if use == "shown"}
    return shown, shown | {name for use, name in found if use == "of"}


def inputs(source: Path) -> dict[str, str]:
    """SHA-256 of all that a PDF is made from: sources, figures, rows of ``metrics.json``, cards of models.

    Exported figures are not among them: they are a user's own, and no reason to call a report stale.

    Raises:
        RuntimeError: a figure, a row or a card is missing.
    """
    folder = files.figures_folder()
    metrics = json.loads((folder / "metrics.json").read_text())
    shown, read = used(source)
    cards = _cards(source)
    missing = {name for name in shown if not (folder / f"{name}.png").is_file()} | (read - metrics.keys())
    missing |= {name for name, card in cards.items() if not card.is_file()}
    if missing:
        raise RuntimeError(f"{source.name} needs figures that are not there: {', '.join(sorted(missing))}")
    found = {name: part.read_bytes() for name, part in _parts(source).items()}
    found |= {f"{name}.png": (folder / f"{name}.png").read_bytes() for name in shown}
    found |= {f"metrics.json: {name}": json.dumps(metrics[name], sort_keys=True).encode() for name in read}
    found |= {f"evaluation.json: {name}": card.read_bytes() for name, card in cards.items()}
    return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(found.items())}


def exported() -> list[tuple[Path, str]]:
    """Figures that a user exported, with their captions, by name; what is no readable picture is left out."""
    folder = files.figures_folder()
    rows = json.loads((folder / "metrics.json").read_text())
    found = []
    for path in sorted((folder / "exported").glob("*.png")):
        try:
            with Image.open(path) as picture:
                picture.load()
        except (OSError, SyntaxError):  # the latter is what a torn PNG raises
            continue
        found.append((path, rows.get(f"exported/{path.stem}", {}).get("caption") or path.stem))
    return found


def compile_report(source: Path, target: Path) -> None:
    """Compile a Typst source to a PDF, offline; the same figures give the same bytes.

    What it is made from is laid into a folder of its own, and nothing else can be read. Figures that are smaller as
    JPEG go in as such: a report of many pictures would be four times the size.

    Raises:
        RuntimeError: the source has a mistake, or a figure or number it shows is missing.
    """
    import typst  # of the extra "report"

    figures, jpegs, gallery = files.figures_folder(), [], []
    with tempfile.TemporaryDirectory() as place:
        for name, part in _parts(source).items():
            _lay(part, Path(place, name))
        for name, card in _cards(source).items():
            if card.is_file():
                _lay(card, Path(place, "models", name, card.name))
        shutil.copy(figures / "metrics.json", place)
        for name in sorted(used(source)[0]):
            if (figures / f"{name}.png").is_file() and _lay_picture(figures / f"{name}.png", Path(place, name)):
                jpegs.append(name)
        for i, (path, caption) in enumerate(exported()):
            smaller = _lay_picture(path, Path(place, f"exported-{i}"))
            gallery.append({"file": f"exported-{i}.{'jpg' if smaller else 'png'}", "caption": caption})
        options = {"figures": ".", "models": "models", "jpegs": ",".join(jpegs), "exported": json.dumps(gallery)}
        try:
            pdf = typst.compile(Path(place, source.name), root=place, sys_inputs=options)
        except typst.TypstError as error:
            raise RuntimeError(f"{source.name}: {error}") from error
    images.write_bytes(target, pdf)


def _parts(source: Path) -> dict[str, Path]:
    """The source, what it imports and includes, and its bibliography, by their paths beside it."""
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


def _lay_picture(path: Path, target: Path) -> bool:
    """Copy a figure, as JPEG if that is smaller; whether it was. The target comes without a suffix."""
    buffer = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").save(buffer, "JPEG", quality=90, subsampling=0)
    smaller = buffer.tell() < path.stat().st_size
    if smaller:
        target.with_name(f"{target.name}.jpg").write_bytes(buffer.getvalue())
    else:
        shutil.copy(path, target.with_name(f"{target.name}.png"))
    return smaller


def publish(document: Document, manifest: Path = MANIFEST) -> None:
    """Compile a document and write down what it was made from; the manifest last."""
    made_from = inputs(document.source)
    compile_report(document.source, document.target)
    rows = json.loads(manifest.read_text()) if manifest.is_file() else {}
    pdf = hashlib.sha256(document.target.read_bytes()).hexdigest()
    files.write_json(manifest, rows | {document.target.name: {"pdf": pdf, "inputs": made_from}})


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
