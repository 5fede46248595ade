"""Pack what is handed in: ``ex4_ID1_ID2.zip`` as the exercise asks, and ``NAME_SID.zip`` as the KAIST assignment does.

Names come from ``report/people.toml``. The same files give the same bytes.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from documents import ASSIGNMENT4, EX4, ROOT, Document, stale

from ex4lib import images

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_NOT_OURS = {".git", ".venv", "build", "dist", "__pycache__", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints"}
_EPOCH = (1980, 1, 1, 0, 0, 0)


def read_people(path: Path) -> dict[str, Any]:
    """What ``people.toml`` holds: ``people``, a list, and ``kaist``.

    Raises:
        ValueError: it is no TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path.name} is no TOML: {error}") from None


def partners(found: Mapping[str, Any], ids: Sequence[str]) -> list[dict[str, str]]:
    """The two people with these IDs, every field filled in.

    Raises:
        ValueError: an ID that nobody has, the same one twice, or an empty field.
    """
    known = {str(person.get("id", "")): person for person in found.get("people", [])}
    if len(ids) != 2 or ids[0] == ids[1]:
        raise ValueError(f"a pair hands in: give two different IDs, got {' and '.join(ids) or 'none'}")
    for each in ids:
        if not each or each not in known:
            raise ValueError(
                f"nobody in report/people.toml has the ID {each!r}: fill in names, IDs and usernames there"
            )
        for field in ("name", "username"):
            if not str(known[each].get(field, "")).strip():
                raise ValueError(f"report/people.toml lacks the {field} of {each}")
    return [known[each] for each in ids]


def files(root: Path = ROOT) -> list[Path]:
    """What is handed in: what git would keep, without finished runs and the weights to continue training from.

    Without git it is everything but builds and caches.
    """
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0 and (root / ".git").exists():
        found = [root / name for name in listed.stdout.split("\0") if name]
    else:
        found = [p for p in root.rglob("*") if not _NOT_OURS & set(p.relative_to(root).parts)]
    left_out = (root / "figures" / "runs", root / "training" / "weights")
    kept = (path for path in found if path.is_file() and path.suffix != ".zip")
    return sorted(path for path in kept if not any(folder in path.parents for folder in left_out))


def packed(folder: str, contents: Mapping[str, bytes]) -> bytes:
    """A zip of one folder; names sorted, times fixed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(contents):
            entry = zipfile.ZipInfo(f"{folder}/{name}", _EPOCH)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, contents[name])
    return buffer.getvalue()


def exercise(ids: Sequence[str], root: Path = ROOT, document: Document = EX4) -> Path:
    """Write ``ex4_ID1_ID2.zip``: the code, ``ex4.pdf``, and the README with names, IDs and usernames.

    Raises:
        ValueError: see `partners`; or the report is stale.
    """
    people = partners(read_people(root / "report" / "people.toml"), ids)
    _require_fresh(document)
    contents = {path.relative_to(root).as_posix(): path.read_bytes() for path in files(root)}
    rows = "".join(f"| {person['name']} | {person['id']} | {person['username']} |\n" for person in people)
    head = f"Handed in by:\n\n| name | ID | username |\n|---|---|---|\n{rows}\n"
    contents |= {"ex4.pdf": document.target.read_bytes(), "README.md": head.encode() + contents["README.md"]}
    name = f"ex4_{ids[0]}_{ids[1]}"
    target = root / "dist" / f"{name}.zip"
    images.write_bytes(target, packed(name, contents))
    return target


def assignment(root: Path = ROOT, document: Document = ASSIGNMENT4) -> Path | None:
    """Write ``NAME_SID.zip`` with ``NAME_SID.pdf`` and the code; None if ``people.toml`` names nobody for it.

    Raises:
        ValueError: half of it is filled in, or the PDF is stale.
    """
    found = read_people(root / "report" / "people.toml").get("kaist", {})
    parts = [str(found.get(field, "")).strip() for field in ("name", "student_id")]
    if not any(parts):
        return None
    if not all(parts):
        raise ValueError("report/people.toml needs both name and student_id under [kaist], or neither")
    _require_fresh(document)
    name = re.sub(r"\W+", "", parts[0]) + "_" + parts[1]
    contents = {path.relative_to(root).as_posix(): path.read_bytes() for path in files(root)}
    target = root / "dist" / f"{name}.zip"
    images.write_bytes(target, packed(name, contents | {f"{name}.pdf": document.target.read_bytes()}))
    return target


def _require_fresh(document: Document) -> None:
    reasons = stale(document)
    if reasons:
        raise ValueError(f"{document.target.name} is stale ({', '.join(reasons[:3])}): run `make report` first")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ids", nargs="*", metavar="ID", help="the IDs of the pair")
    options = parser.parse_args()
    try:
        print(exercise([each for each in options.ids if each]))
        other = assignment()
        print(other or "no KAIST form: report/people.toml names nobody for it")
    except (ValueError, RuntimeError) as error:
        sys.exit(f"submission: {error}")


if __name__ == "__main__":
    main()
