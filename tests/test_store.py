"""The store: computed once, never half kept."""

import importlib.metadata
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import experiments.store as store_module
from ex4lib import files, images, models
from experiments.files import write_json
from experiments.store import Run, stored


@pytest.fixture
def store(tmp_path):
    return tmp_path / "figures" / "runs"


@pytest.fixture
def compute():
    """A run that counts how often it is computed."""

    def run():
        run.calls += 1
        return Run({"loss": 1 / 3, "curve": [1.0, 2], "name": "a"}, {"image": run.image})

    run.calls, run.image = 0, images.load("chelsea", 64)
    return run


def key(store: Path) -> str:
    """The key of the only run."""
    (row,) = store_module.rows(store / "kind.jsonl")
    return row


def file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_the_second_call_does_not_compute(store, compute):
    first = stored("kind", {"seed": 1}, compute)
    second = stored("kind", {"seed": 1}, compute)
    assert compute.calls == 1
    assert first.values == second.values == {"loss": 0.333333, "curve": [1.0, 2], "name": "a"}
    assert torch.equal(first.pictures["image"], second.pictures["image"])
    assert first.provenance == second.provenance
    assert file_names(store) == [".lock", f"{key(store)}.jpg", "kind.jsonl"]


def test_pictures_survive(compute):
    got = stored("kind", {}, compute).pictures["image"]
    assert got.shape == compute.image.shape
    assert (got - compute.image).abs().mean() < 0.02


def test_large_pictures_are_kept_small(compute):
    compute.image = images.load("coffee", 400)
    got = stored("kind", {}, compute).pictures["image"]
    assert max(got.shape[2:]) == store_module.STORED_SIZE
    assert (got - images.resize(compute.image, store_module.STORED_SIZE)).abs().mean() < 0.03


def test_provenance(compute):
    inputs = {"content": torch.full((1, 3, 2, 2), 0.5)}
    provenance = stored("kind", {"seed": 1}, compute, inputs=inputs, weights={"vgg": "abc"}, recipe=3).provenance
    assert (provenance["config"], provenance["weights"], provenance["recipe"]) == ({"seed": 1}, {"vgg": "abc"}, 3)
    assert provenance["environment"]["torch"] == importlib.metadata.version("torch")
    assert len(provenance["inputs"]["content"]) == 64 and provenance["seconds"] >= 0


BASE = {"kind": "kind", "config": {"a": 1}, "inputs": {"x": torch.full((1, 3, 2, 2), 0.5)}, "weights": {"n": "1"}}


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"a": 2}},
        {"config": {"a": 1, "b": None}},
        {"inputs": {"x": torch.full((1, 3, 2, 2), 0.6)}},
        {"inputs": {"y": torch.full((1, 3, 2, 2), 0.5)}},
        {"inputs": {"x": torch.full((1, 3, 1, 4), 0.5)}},
        {"weights": {"n": "2"}},
        {"recipe": 2},
        {"kind": "other"},
    ],
)
def test_what_makes_another_run(store, compute, change):
    stored(compute=compute, **BASE)
    stored(compute=compute, **(BASE | change))
    assert compute.calls == 2
    stored(compute=compute, **BASE)
    assert compute.calls == 2
    assert sum(len(store_module.rows(table)) for table in store.glob("*.jsonl")) == 2


def test_what_makes_no_other_run(compute):
    stored(compute=compute, **BASE)
    same = {"config": dict(reversed(BASE["config"].items())), "inputs": {"x": BASE["inputs"]["x"] + 1e-4}}
    stored(compute=compute, **(BASE | same))
    assert compute.calls == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_leaves_nothing_and_resumes(store, compute, error):
    def interrupted():
        raise error

    with pytest.raises(error):
        stored("kind", {}, interrupted)
    assert file_names(store) == []
    stored("kind", {}, compute)
    assert compute.calls == 1


def test_what_is_not_finite_is_kept_as_none():
    """A loop that rolled back has a loss that is no number; that must not cost the run."""
    run = stored("kind", {}, lambda: Run({"losses": [1.0, float("nan"), float("inf"), 0.5]}))
    assert run.values == {"losses": [1.0, None, None, 0.5]}


def test_ignoring_the_store_computes_once_per_process(compute, monkeypatch):
    stored("kind", {}, compute)
    monkeypatch.setattr(store_module, "_computed", set())  # a new process
    monkeypatch.setenv("EX4_STORE", "ignore")
    stored("kind", {}, compute)
    assert compute.calls == 2
    stored("kind", {}, compute)
    assert compute.calls == 2


def test_a_process_killed_while_writing(store, compute):
    """Processes die with half of a file on disk; the next one computes anew and reads nothing of it."""
    script = """
        import os
        import pathlib
        import torch
        from experiments import store

        run = store.Run({"loss": 1.0}, {"image": torch.zeros(1, 3, 8, 8)})
        real = pathlib.Path.write_bytes

        def die_at(turn):
            opened = []

            def dying(path, content):
                opened.append(path)
                if len(opened) == turn:
                    real(path, b"half a")
                    os._exit(9)
                return real(path, content)

            pathlib.Path.write_bytes = dying
            store.stored("kind", {}, lambda: run)

        for turn in (1, 2):  # the picture file, the table
            child = os.fork()
            if child == 0:
                die_at(turn)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    """
    environment = os.environ | {"PYTHONPATH": str(Path(store_module.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment, timeout=300, check=True)
    left = list(store.rglob("*.part"))
    assert len(left) == 2 and not (store / "kind.jsonl").exists()
    for path in left:
        os.utime(path, (0, 0))
    got = stored("kind", {}, compute)
    assert compute.calls == 1 and got.values["name"] == "a"
    assert got.pictures["image"].shape == compute.image.shape
    assert file_names(store) == [".lock", f"{key(store)}.jpg", "kind.jsonl"]  # leftovers are gone


def images_path(name):
    return images.ASSETS / "content" / f"{name}.jpg"


def damaged_table(store, change):
    path = store / "kind.jsonl"
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    "damage",
    [
        lambda store: next(store.glob("kind/*.jpg")).unlink(),
        lambda store: next(store.glob("kind/*.jpg")).write_bytes(b""),
        lambda store: next(store.glob("kind/*.jpg")).write_bytes(images_path("coffee").read_bytes()),
        lambda store: (store / "kind.jsonl").unlink(),
        lambda store: damaged_table(store, lambda content: content[: len(content) // 2]),
        lambda store: damaged_table(store, lambda content: content.replace(b"0.333333", b"0.333334")),
        lambda store: damaged_table(store, lambda content: b"[]\n7\n" + content.replace(b'"key"', b'"kay"')),
        lambda store: damaged_table(store, lambda content: b"\xff\x00" + content),
    ],
)  # fmt: skip
def test_what_is_damaged_is_computed_again(store, compute, damage):
    """Numbers never stand beside pictures that they do not belong to."""
    stored("kind", {}, compute)
    damage(store)
    compute.image = images.load("coffee", 64)
    got = stored("kind", {}, compute)
    assert compute.calls == 2 and (got.pictures["image"] - compute.image).abs().mean() < 0.02
    assert torch.equal(stored("kind", {}, compute).pictures["image"], got.pictures["image"])
    assert compute.calls == 2


def test_a_sheet_holds_pictures_of_any_size_apart():
    """Every picture is what it would be alone in a JPEG file: no neighbour blurs into it."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(1, 1), (8, 8), (7, 31), (256, 256), (9, 256), *[(100, 200)] * 12]
    pictures = {str(i): torch.rand(1, 3, *size, generator=generator) for i, size in enumerate(sizes)}
    got = stored("kind", {}, lambda: Run({}, pictures)).pictures
    assert {name: x.shape for name, x in got.items()} == {name: x.shape for name, x in pictures.items()}
    for name, picture in pictures.items():
        alone = stored("alone", {"name": name}, lambda x=picture: Run({}, {"x": x})).pictures["x"]
        assert torch.equal(got[name], alone)


def test_what_a_caller_changes_stays_his(compute):
    stored("kind", {"a": [1]}, compute).values["curve"].append(9)
    assert stored("kind", {"a": [1]}, compute).values["curve"] == [1.0, 2]


def test_the_key_holds_what_was_asked_for_not_what_the_machine_chose(monkeypatch):
    """A clone on another processor finds its runs; networks that differ in anything have runs of their own."""
    found = []
    for native in (False, True):
        monkeypatch.setattr(models, "native_bfloat16", lambda *_, native=native: native)
        found.append(models.features("vgg16-hed", precision="auto").identity)
    assert found[0] == found[1] and found[0]["precision"] == "auto"
    network = models.features("vgg16-hed")
    identities = [network.identity, network.variant(pooling="average", padding="zeros").identity]
    identities += [network.variant(pooling="max", padding="replicate").identity, found[0]]
    assert len({json.dumps(identity) for identity in identities}) == 4


def test_processes_side_by_side_lose_no_run(store):
    script = """
        import sys
        import torch
        from experiments import store

        for number in range(12):
            picture = torch.full((1, 3, 8, 8), number / 12)
            run = store.stored("kind", {"number": number}, lambda: store.Run({"number": number}, {"x": picture}))
            assert run.values["number"] == number and abs(run.pictures["x"].mean().item() - number / 12) < 0.01
    """
    environment = os.environ | {"PYTHONPATH": str(Path(store_module.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    processes = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [process.wait(300) for process in processes] == [0, 0, 0]
    rows = store_module.rows(store / "kind.jsonl")
    assert sorted(row["config"]["number"] for row in rows.values()) == list(range(12)) and list(rows) == sorted(rows)
    assert {path.stem for path in store.glob("kind/*.jpg")} == set(rows)


def test_the_figures_folder(monkeypatch, tmp_path):
    assert files.figures_folder() == tmp_path / "figures"
    monkeypatch.delenv("EX4_FIGURES")
    assert files.figures_folder() == Path(store_module.__file__).resolve().parents[1] / "figures"


def test_json_is_written_the_same_way(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": "größer"})
    write_json(tmp_path / "b.json", {"a": "größer", "b": 1})
    content = (tmp_path / "a.json").read_bytes()
    assert content == (tmp_path / "b.json").read_bytes() == '{\n "a": "größer",\n "b": 1\n}\n'.encode()


def test_runs_that_nothing_asks_for_are_deleted(store, compute):
    for number in range(3):
        stored("kind", {"number": number}, compute)
    stored("other", {}, compute)
    kept, *_ = store_module.rows(store / "kind.jsonl")
    (store / "kind" / "orphan.jpg").write_bytes(b"left by a process that was killed before it wrote the row")
    assert len(store_module.prune([f"kind/{kept}"])) == 3
    assert file_names(store) == [".lock", f"{kept}.jpg", "kind.jsonl"] and key(store) == kept


@pytest.mark.parametrize("kind", ["../x", "a/../../x", "/x", "", "..", "a\0"])
def test_no_run_is_kept_outside_of_the_store(store, compute, kind):
    with pytest.raises(ValueError, match="kind must be of letters"):
        store_module.stored(kind, {}, compute)
    assert not compute.calls
