"""The repository's address, written once in ``pyproject.toml``, spread to the badges and setup cells that need it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from ex4lib import images

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
_PLACES = re.compile(r"(colab\.research\.google\.com/github/|git(?:\+| clone )https://github\.com/)[\w.-]+/[\w.-]+")


def repository(root: Path = ROOT) -> str:
    """``OWNER/NAME`` of the address in ``[project.urls]``.

    Raises:
        ValueError: the address is not one of GitHub, where Colab opens notebooks from.
    """
    address = tomllib.loads((root / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", address)
    if not found:
        raise ValueError(f"Repository in pyproject.toml must be https://github.com/OWNER/NAME, got {address!r}")
    return found[1]


def spread(root: Path = ROOT) -> list[Path]:
    """Write the address into README and notebooks; the files that held another one."""
    changed, name = [], repository(root)
    for path in [root / "README.md", *sorted((root / "notebooks").glob("*.ipynb"))]:
        before = path.read_text()
        after = _PLACES.sub(rf"\g<1>{name}", before)
        if after != before:
            images.write_bytes(path, after.encode())
            changed.append(path)
    return changed


if __name__ == "__main__":
    try:
        for path in spread():
            print(f"{path.relative_to(ROOT)}: the notebooks are at {repository()}")
    except ValueError as error:
        sys.exit(str(error))
