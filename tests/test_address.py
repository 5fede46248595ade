"""The repository's address stands in one place, and everything that needs it agrees."""

import shutil

import address
import pytest


@pytest.fixture
def house(tmp_path):
    """A copy of what holds the address."""
    (tmp_path / "notebooks").mkdir()
    for path in [address.ROOT / "pyproject.toml", address.ROOT / "README.md"]:
        shutil.copy(path, tmp_path)
    for path in (address.ROOT / "notebooks").glob("*.ipynb"):
        shutil.copy(path, tmp_path / "notebooks")
    return tmp_path


def move(house, to):
    path = house / "pyproject.toml"
    path.write_text(path.read_text().replace(f"https://github.com/{address.repository()}", to))


def test_the_committed_files_hold_the_address(house):
    assert address.spread(house) == []


def test_another_address_reaches_badges_and_setup_cells_and_nothing_else(house):
    notebooks = sorted((house / "notebooks").glob("*.ipynb"))
    before = {path: path.read_text() for path in notebooks}
    move(house, "https://github.com/someone/style.lab")
    assert address.spread(house) == [house / "README.md", *notebooks]
    assert "git clone https://github.com/someone/style.lab ex4lib" in (house / "README.md").read_text()
    for path, text in before.items():
        moved = path.read_text()
        assert f"github/someone/style.lab/blob/main/notebooks/{path.name}" in moved
        assert "git+https://github.com/someone/style.lab" in moved
        assert moved.replace("someone/style.lab", address.repository()) == text
    assert address.spread(house) == []


def test_an_address_that_colab_cannot_open_is_refused(house):
    move(house, "https://example.org/someone/ex4")
    with pytest.raises(ValueError, match=r"must be https://github\.com/OWNER/NAME, got 'https://example"):
        address.spread(house)
