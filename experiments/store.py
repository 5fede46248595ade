"""Config -> result, computed once: a store of finished runs, so that figures and report are rebuilt in seconds.

A run is a function of its configuration, its input pictures and the weights it uses. Its key hashes those and a
recipe number that is bumped by hand when the method changes; library versions and hardware are recorded, not hashed.
A finished run is a JSON file with its numbers beside JPEG files with its pictures, in ``figures/runs/KIND/``; both
appear atomically, the JSON last, so an interrupted sweep goes on where it stopped.

``EX4_STORE=ignore`` computes every run afresh once per process. ``EX4_FIGURES=DIR`` moves figures and store.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ex4lib import images
from ex4lib.files import environment, figures_folder, picture_sha256, write_json

STORED_SIZE = 256
_computed: set[Path] = set()


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
    weights: Mapping[str, str] | None = None,
    recipe: int = 1,
) -> Run:
    """The run of this configuration, from the store or else computed and kept.

    Arguments:
        kind: a folder name for runs that belong together.
        config: everything that decides the result and is plain JSON.
        compute: called when the store has no such run.
        inputs: pictures the result depends on, hashed at 8 bits, which is what files hold.
        weights: SHA-256 by network name.
        recipe: bump it when the code's meaning changes under an unchanged configuration.

    What is returned has been through the store, so that a first and a second call give the same pictures (8 bits,
    JPEG, at most 256 px) and numbers (six digits; None for what is not finite, such as the loss of a failed step).
    """
    identity = {
        "config": dict(config),
        "inputs": {name: picture_sha256(picture) for name, picture in (inputs or {}).items()},
        "weights": dict(weights or {}),
        "recipe": recipe,
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    path = figures_folder() / "runs" / kind / f"{key}.json"
    fresh = os.environ.get("EX4_STORE") == "ignore" and path not in _computed
    if fresh or not path.is_file():
        started = time.perf_counter()
        _keep(path, identity, compute(), time.perf_counter() - started)
        _computed.add(path)
    return _recall(path)


def _keep(path: Path, identity: dict, run: Run, seconds: float) -> None:
    files = {}
    for name, picture in run.pictures.items():
        buffer = io.BytesIO()
        smaller = picture if max(picture.shape[-2:]) <= STORED_SIZE else images.resize(picture, STORED_SIZE)
        images.to_pil(smaller).save(buffer, "JPEG", quality=92, subsampling=0)
        files[name] = f"{path.stem}-{name}.jpg"
        images.write_bytes(path.with_name(files[name]), buffer.getvalue())
    row = {
        **identity,
        "values": _rounded(run.values),
        "pictures": files,
        "seconds": round(seconds, 2),
        "environment": environment(),
    }
    write_json(path, row)


def _recall(path: Path) -> Run:
    row = json.loads(path.read_text())
    pictures = {name: images.load(path.with_name(file)) for name, file in row["pictures"].items()}
    provenance = {key: row[key] for key in ("config", "inputs", "weights", "recipe", "seconds", "environment")}
    return Run(row["values"], pictures, provenance)


def _rounded(value: Any) -> Any:
    """Six significant digits, all that a figure or table shows, keep committed curves small."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(each) for each in value]
    return value
