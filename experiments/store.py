"""Config -> result, computed once: a store of finished runs, so that figures and report are rebuilt in seconds.

A run is a function of its configuration, its input pictures and the networks it uses. Its key hashes those and a
recipe number that is raised by hand when the method changes; library versions and hardware are recorded, not hashed.

A finished run is one line of ``figures/runs/KIND.jsonl``, sorted by key, and one JPEG file with all its pictures,
``figures/runs/KIND/KEY.jpg``. The line holds a hash of itself and of the picture file: where either is missing,
damaged or does not belong to the other, the run is computed again. The picture file is written first, both are written
whole, and a lock orders the writers, so that interrupted and concurrent sweeps leave nothing half done.

``EX4_STORE=ignore`` computes every run afresh once per process. ``EX4_FIGURES=DIR`` moves figures and store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock  # torch and huggingface_hub require it
from PIL import Image
from torch import Tensor

from ex4lib import checks, images
from ex4lib.files import environment, figures_folder, picture_sha256, write_bytes

STORED_SIZE = 256
#: Pictures of a sheet begin at multiples of JPEG's block, so that none of them blurs into its neighbour.
_BLOCK = 8
#: Width in pixels at which a sheet begins a new row.
_SHEET_WIDTH = 2048
_LEFTOVER_SECONDS = 3600  # a file in the making that is older was left by a process that was killed
_computed: set[tuple[Path, str]] = set()


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: numbers, lists and strings in ``values``; ``(1, 3, H, W)`` tensors in ``pictures``."""

    values: dict[str, Any]
    pictures: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)


def stored(
    kind: str,
    config: Mapping[str, Any],
    compute: Callable[[], Run],
    *,
    inputs: Mapping[str, Tensor] | None = None,
    weights: Mapping[str, Any] | None = None,
    recipe: int = 1,
) -> Run:
    """The run of this configuration, from the store or else computed and kept.

    Arguments:
        kind: a name for runs that belong together.
        config: everything that decides the result and is plain JSON.
        compute: called when the store has no such run.
        inputs: pictures the result depends on, hashed at 8 bits, which is what files hold.
        weights: the identity of every network by its part in the run: `VGG.identity` or the SHA-256 of its weights.
            It holds the precision that was asked for, never the one that this machine chose.
        recipe: raise it when the code's meaning changes under an unchanged configuration.

    What is returned has been through the store, so that a first and a second call give the same pictures (8 bits,
    JPEG, at most 256 px) and numbers (six digits; None for what is not finite, such as the loss of a failed step).
    """
    identity = {
        "config": dict(config),
        "inputs": {name: picture_sha256(picture) for name, picture in (inputs or {}).items()},
        "weights": dict(weights or {}),
        "recipe": recipe,
    }
    key, table = key_of(identity), figures_folder() / "runs" / f"{checks.name(kind, 'kind')}.jsonl"
    sys.audit("experiments.store.stored", f"{kind}/{key}")  # heard by who wants to know what is used: see `prune`
    fresh = os.environ.get("EX4_STORE") == "ignore" and (table, key) not in _computed
    run = None if fresh else _recalled(table, key)
    if run is None:
        started = time.perf_counter()
        result = compute()
        run = _keep(table, key, identity, result, time.perf_counter() - started)
        _computed.add((table, key))
    return run


def key_of(identity: Mapping[str, Any]) -> str:
    """The key of a run's ``config``, ``inputs``, ``weights`` and ``recipe``."""
    decisive = {name: identity[name] for name in ("config", "inputs", "weights", "recipe")}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def rows(table: Path) -> dict[str, dict]:
    """The rows of a table by key, in order; lines that are damaged are left out."""
    try:
        state = table.stat()
    except FileNotFoundError:
        return {}
    return _parsed(table, state.st_mtime_ns, state.st_size, state.st_ino)


def write_rows(table: Path, found: Mapping[str, dict]) -> None:
    """Write a table whole: a line for each run, sorted by key; each line ends with a hash of itself."""
    lines = []
    for key in sorted(found):
        row = {"key": key, **{name: value for name, value in found[key].items() if name not in ("key", "check")}}
        lines.append(_line(row | {"check": _check(row)}))
    write_bytes(table, "".join(f"{line}\n" for line in lines).encode())


def prune(used: Iterable[str]) -> list[str]:
    """Delete the runs whose ``KIND/KEY`` is not among ``used``, and picture files without a row; their names."""
    folder, kept, deleted = figures_folder() / "runs", set(used), []
    for table in sorted(folder.glob("*.jsonl")):
        with _locked(table):
            found = rows(table)
            left = {key: row for key, row in found.items() if f"{table.stem}/{key}" in kept}
            deleted += [f"{table.stem}/{key}" for key in found if key not in left]
            if left:
                write_rows(table, left)
            else:
                table.unlink()
            for path in table.with_suffix("").glob("*.jpg"):
                if path.stem not in left:
                    path.unlink()
    return deleted


def sheet(pictures: Mapping[str, Tensor]) -> tuple[bytes, dict[str, list[int]]]:
    """A JPEG file with all pictures side by side, and where each is: ``[left, top, width, height]``.

    Pictures larger than `STORED_SIZE` are reduced to it.
    """
    levels = {}
    for name, picture in pictures.items():
        smaller = picture if max(picture.shape[-2:]) <= STORED_SIZE else images.resize(picture, STORED_SIZE)
        levels[name] = np.asarray(images.to_pil(smaller))
    places, (width, height) = layout({name: (x.shape[1], x.shape[0]) for name, x in levels.items()})
    canvas = np.full((height, width, 3), 128, np.uint8)
    for name, (left, top, w, h) in places.items():
        padded = np.pad(levels[name], ((0, -h % _BLOCK), (0, -w % _BLOCK), (0, 0)), mode="edge")
        canvas[top : top + padded.shape[0], left : left + padded.shape[1]] = padded
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue(), places


def layout(sizes: Mapping[str, Sequence[int]]) -> tuple[dict[str, list[int]], tuple[int, int]]:
    """Places ``[left, top, width, height]`` for pictures of these widths and heights, and the size of their sheet."""
    places, left, top, below, right = {}, 0, 0, 0, 0
    for name, (width, height) in sizes.items():
        if left and left + width > _SHEET_WIDTH:
            left, top = 0, below
        places[name] = [left, top, width, height]
        left += width + -width % _BLOCK
        right, below = max(right, left), max(below, top + height + -height % _BLOCK)
    return places, (right, below)


def _keep(table: Path, key: str, identity: dict, run: Run, seconds: float) -> Run:
    row = {**identity, "values": _rounded(run.values), "sheet": None}
    row |= {"seconds": round(seconds, 2), "environment": environment()}
    path = _sheet_path(table, key)
    if run.pictures:
        content, places = sheet(run.pictures)
        row["sheet"] = {"sha256": hashlib.sha256(content).hexdigest(), "pictures": places}
    with _locked(table):
        _remove_leftovers(table.parent)
        if run.pictures:
            _remove_leftovers(path.parent)
            write_bytes(path, content)
        write_rows(table, rows(table) | {key: row})
        return _found(table, key)


def _remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed while writing have left in a folder an hour ago or earlier."""
    for path in folder.glob(".*.part"):
        with contextlib.suppress(OSError):  # another process may remove it too
            if time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS:
                path.unlink()


def _recalled(table: Path, key: str) -> Run | None:
    """The stored run, or None where there is none that is whole."""
    found = _found(table, key)
    if found is None and key in rows(table):  # another process may be between the picture file and the table
        with _locked(table):
            found = _found(table, key)
    return found


def _found(table: Path, key: str) -> Run | None:
    row = rows(table).get(key)
    if row is None:
        return None
    pictures = {}
    if row["sheet"]:
        try:
            content = _sheet_path(table, key).read_bytes()
        except OSError:
            return None
        if hashlib.sha256(content).hexdigest() != row["sheet"]["sha256"]:
            return None
        whole = images.load(Image.open(io.BytesIO(content)))
        for name, (left, top, width, height) in row["sheet"]["pictures"].items():
            pictures[name] = whole[..., top : top + height, left : left + width].clone()
    row = json.loads(json.dumps(row))  # callers may change what they get
    provenance = {name: row[name] for name in ("config", "inputs", "weights", "recipe", "seconds", "environment")}
    return Run(row["values"], pictures, provenance)


def _sheet_path(table: Path, key: str) -> Path:
    return table.with_suffix("") / f"{key}.jpg"


def _locked(table: Path) -> FileLock:
    table.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(table.parent / ".lock")


@functools.lru_cache(maxsize=64)
def _parsed(table: Path, *state: int) -> dict[str, dict]:
    """`rows` of a file in this state: size and time of its last change."""
    found = {}
    for line in table.read_bytes().splitlines():
        try:
            row = json.loads(line)
            check = row.pop("check")
            if check == _check(row) and row["key"] == key_of(row):
                found[row["key"]] = row
        except (ValueError, KeyError, TypeError, AttributeError):  # no JSON, or no row of a table
            continue
    return found


def _check(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(_line(row).encode()).hexdigest()[:16]


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _rounded(value: Any) -> Any:
    """Six significant digits, all that a figure or table shows, keep committed curves small."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _rounded(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(part) for part in value]
    return value
