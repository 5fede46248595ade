"""The cache for what is made once and used again, and JSON files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ex4lib.files import write_bytes


def cache_dir() -> Path:
    """The user's cache for artwork, pictures and checkpoints: `$EX4_CACHE`, else `~/.cache/ex4lib`."""
    root = os.environ.get("EX4_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ex4lib"
    return Path(root)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, the same bytes for the same content."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())
