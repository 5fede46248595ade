"""What is handed in, on a small project: names, freshness, contents, and the same bytes twice."""

import subprocess
import zipfile

import pytest
import submission
from documents import Document

PEOPLE = """
[[people]]
name = "Ada Lovelace"
id = "111"
username = "ada"
[[people]]
name = "Alan Turing"
id = "222"
username = "alan"
[kaist]
name = "Grace Hopper"
student_id = "2024"
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    root = tmp_path / "project"
    for name, content in {
        "README.md": "# ex4lib\n",
        "report/people.toml": PEOPLE,
        "ex4lib/losses.py": "",
        ".venv/lib.py": "",
        "build/part.txt": "",
        "figures/03_gallery.jpg": "",
        "figures/runs/drawn.jsonl": "",
        "figures/runs/drawn/0123.jpg": "",
        ".gitignore": ".venv/\nbuild/\ndist/\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    monkeypatch.setattr(submission, "stale", lambda document: [])
    return root


@pytest.fixture
def document(root):
    (root / "ex4.pdf").write_bytes(b"%PDF-")
    return Document(root / "report" / "ex4.typ", root / "ex4.pdf")


@pytest.mark.parametrize("git", [False, True])
def test_the_zip_holds_code_report_and_names(root, document, git):
    if git:
        subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    path = submission.exercise(["111", "222"], root, document)
    first = path.read_bytes()
    assert path.name == "ex4_111_222.zip"
    with zipfile.ZipFile(path) as archive:
        names = {name.removeprefix("ex4_111_222/") for name in archive.namelist()}
        readme = archive.read("ex4_111_222/README.md").decode()
    handed_in = {"README.md", "report/people.toml", "ex4lib/losses.py", "ex4.pdf", ".gitignore"}
    assert names == handed_in | {"figures/03_gallery.jpg"}  # no finished runs
    assert "| Ada Lovelace | 111 | ada |\n| Alan Turing | 222 | alan |" in readme and readme.endswith("# ex4lib\n")
    assert submission.exercise(["111", "222"], root, document).read_bytes() == first


def test_the_kaist_form_is_named_after_its_author(root, document):
    with zipfile.ZipFile(submission.assignment(root, document)) as archive:
        assert archive.read("GraceHopper_2024/GraceHopper_2024.pdf") == b"%PDF-"
    people = root / "report" / "people.toml"
    people.write_text(PEOPLE.replace('"2024"', '""'))
    with pytest.raises(ValueError, match="both name and student_id"):
        submission.assignment(root, document)
    people.write_text(PEOPLE.split("[kaist]")[0])
    assert submission.assignment(root, document) is None


@pytest.mark.parametrize(
    ("ids", "change", "message"),
    [
        (["111"], ("", ""), "two different IDs, got 111"),
        (["111", "111"], ("", ""), "two different IDs"),
        (["111", "333"], ("", ""), "nobody .* has the ID '333'"),
        (["111", "222"], ('"alan"', '" "'), "lacks the username of 222"),
        (["111", "222"], ("Ada Lovelace", ""), "lacks the name of 111"),
        (["111", "222"], ("[[people]]", "[[people"), r"people\.toml is no TOML"),
    ],
)
def test_a_missing_name_is_one_sentence(root, document, ids, change, message):
    people = root / "report" / "people.toml"
    people.write_text(PEOPLE.replace(*change) if change[0] else PEOPLE)
    with pytest.raises(ValueError, match=message):
        submission.exercise(ids, root, document)
    assert not (root / "dist").exists()


def test_a_stale_report_is_not_handed_in(root, document, monkeypatch):
    monkeypatch.setattr(submission, "stale", lambda document: ["03_gallery.png"])
    with pytest.raises(ValueError, match=r"ex4\.pdf is stale \(03_gallery\.png\): run `make report` first"):
        submission.exercise(["111", "222"], root, document)


def test_the_shipped_file_names_nobody():
    with pytest.raises(ValueError, match=r"fill in names, IDs and usernames there"):
        submission.partners(submission.read_people(submission.ROOT / "report" / "people.toml"), ["111", "222"])
