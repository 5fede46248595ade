"""Digits, the training loop, recipes, scores and studies of the from-scratch chapter."""

import contextlib
import gzip
import math
import struct

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import load_file

from ex4lib import models
from experiments import measures
from experiments.digits import digits, loop, methods, mnist, scores, studies
from experiments.digits.loop import Recipe, Training, read_weights, snapshot_path, train, write_weights

pytest.importorskip("sklearn")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EX4_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def data():
    return digits.load("digits", epoch=48)[0]


def idx(values, dimensions):
    """An IDX file's bytes."""
    shape = values.shape
    return bytes((0, 0, 8, dimensions)) + struct.pack(f">{dimensions}I", *shape) + values.astype(np.uint8).tobytes()


@pytest.fixture
def mnist_folder(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 10)):
        images, labels = digits.MNIST_FILES[split]
        (tmp_path / images).write_bytes(idx(rng.integers(0, 256, (count, 28, 28)), 3))
        (tmp_path / labels).write_bytes(idx(np.arange(count) % 10, 1))
    return tmp_path


# Digits ----------------------------------------------------------------------------------------------------------


def test_splits_share_no_picture_and_keep_the_classes():
    train, test = digits.load("digits")
    assert (len(train), len(test), train.epoch) == (1437, 360, digits.DRAWN_PER_EPOCH)
    assert torch.bincount(test.labels).min() >= 34
    from sklearn.datasets import load_digits

    all_pictures = np.sort(np.round(load_digits().images * (255 / 16)).reshape(1797, -1), 0)
    both = np.concatenate([train.pictures.numpy(), test.pictures.numpy()]).reshape(1797, -1)
    assert np.array_equal(np.sort(both, 0), all_pictures)


def test_digits_fill_the_frame_and_stay_inside_when_moved(data):
    still, labels = data.take(torch.arange(200))
    moved, _ = data.take(torch.arange(200), torch.Generator().manual_seed(0))
    again, _ = data.take(torch.arange(200), torch.Generator().manual_seed(0))
    assert still.shape == (200, 1, 28, 28) and still.min() >= 0 and 0.9 < still.max() <= 1
    assert torch.equal(moved, again) and not torch.equal(moved, still)
    assert abs(moved.mean() / still.mean() - 1) < 0.02  # nothing is cut off
    assert (moved - still).abs().max() > 0.3 and torch.equal(labels, data.labels[:200])


def test_a_small_digit_is_enlarged_by_three():
    """One bright pixel of 8 x 8 becomes a bump of its own place and of three times its size."""
    small = torch.zeros(1, 1, 8, 8)
    small[..., 2, 5] = 1
    large = digits.draw(small)[0, 0]
    rows, columns = large.sum(1), large.sum(0)
    places = torch.arange(28.0)
    assert (rows @ places / rows.sum()).item() == pytest.approx(2 + 2.5 * 3 - 0.5, abs=0.2)
    assert (columns @ places / columns.sum()).item() == pytest.approx(2 + 5.5 * 3 - 0.5, abs=0.2)
    assert large.sum().item() == pytest.approx(9, rel=0.25)


def test_an_epoch_is_made_of_permutations(data):
    order = data.order(0, seed=1, count=3000)
    assert torch.equal(order[:1437].sort().values, torch.arange(1437)) and len(order) == 3000
    assert not torch.equal(order, data.order(1, seed=1, count=3000))


@pytest.mark.parametrize("below", ["", "raw", "MNIST/raw"])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_local_folder_is_read(mnist_folder, below, zipped):
    inside = mnist_folder / "set" / below
    inside.mkdir(parents=True)
    for path in mnist_folder.glob("*ubyte"):
        target = inside / (path.name + (".gz" if zipped else ""))
        target.write_bytes(gzip.compress(path.read_bytes()) if zipped else path.read_bytes())
    train, test = digits.load(str(mnist_folder / "set"))
    pictures, labels = train.take(torch.tensor([3]), torch.Generator())
    raw = (mnist_folder / "train-images-idx3-ubyte").read_bytes()[16:]
    assert pictures.flatten()[:5].mul(255).round().tolist() == list(raw[3 * 784 : 3 * 784 + 5]) and labels.item() == 3
    assert (len(train), len(test), train.epoch) == (30, 10, 30)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-7], "train-images-idx3-ubyte announces .* bytes and holds"),
        (lambda content: content[:3], "train-images-idx3-ubyte is no MNIST file"),
        (lambda content: b"<html>" + content, "train-images-idx3-ubyte is no MNIST file"),
    ],
)
def test_a_damaged_file_is_named(mnist_folder, damage, message):
    path = mnist_folder / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        digits.load(str(mnist_folder))


def test_a_half_downloaded_archive_and_a_missing_file_are_named(mnist_folder):
    path = mnist_folder / "t10k-images-idx3-ubyte"
    archive = path.with_name(path.name + ".gz")
    archive.write_bytes(gzip.compress(path.read_bytes())[:-100])
    path.unlink()
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte.gz is damaged or half-downloaded"):
        digits.load(str(mnist_folder))
    archive.unlink()
    with pytest.raises(FileNotFoundError, match="t10k-images-idx3-ubyte is missing"):
        digits.load(str(mnist_folder))


def test_pictures_and_labels_must_agree(mnist_folder):
    (mnist_folder / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(7), 1))
    with pytest.raises(ValueError, match="train-images-idx3-ubyte holds pictures"):
        digits.load(str(mnist_folder))


def test_unknown_source_and_failed_download(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match="it must be auto, mnist, digits or a folder"):
        digits.load(str(tmp_path / "nothing"))

    def offline(*_, **__):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr("torchvision.datasets.MNIST", offline)
    with pytest.raises(FileNotFoundError, match="MNIST could not be fetched"):
        digits.load("mnist")
    with pytest.warns(RuntimeWarning, match="scikit-learn's digits are used instead"):
        assert digits.load("auto")[0].name == "digits"


def test_a_damaged_file_in_the_cache_is_named(mnist_folder, cache):
    raw = cache / "mnist" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in mnist_folder.glob("*ubyte"):
        (raw / path.name).write_bytes(path.read_bytes())
    assert len(digits.load("mnist")[0]) == 30
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"")
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte is no MNIST file"):
        digits.load("auto")


# The loop --------------------------------------------------------------------------------------------------------

RECIPES = {
    "denoise": Recipe("denoise", "denoise", width=4, epochs=4, batch=16, keep=(1, 4)),
    "ddpm": Recipe("ddpm", "ddpm", width=4, epochs=4, batch=16, classes=10, keep=(1, 4)),
    "flow": Recipe("flow", "flow", width=4, epochs=4, batch=16, classes=10, keep=(1, 4)),
    "classify": Recipe("classify", "classify", width=4, epochs=4, batch=16, classes=10, keep=(4,)),
}


def same(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("name", RECIPES)
def test_interrupted_training_equals_uninterrupted(data, tmp_path, name):
    """Bit for bit, with a fall of the learning rate between the two parts, in the machine's own precision."""
    recipe = RECIPES[name]
    whole = train(Training(recipe, data), tmp_path / "whole")
    for until in (2, 5, 7):
        train(Training(recipe, data), tmp_path / "parts", until=until)
    parts = train(Training(recipe, data), tmp_path / "parts")
    assert whole.step == parts.step == 12 and whole.losses == parts.losses
    assert same(whole.net, parts.net) and same(whole.average, parts.average)
    assert whole.optimizer.param_groups[0]["lr"] == parts.optimizer.param_groups[0]["lr"]
    for epoch in recipe.keep:
        one, other = (snapshot_path(tmp_path / each, name, epoch).read_bytes() for each in ("whole", "parts"))
        assert one == other


def test_learning_rate_falls_to_a_tenth_once_per_epoch(data):
    training = Training(RECIPES["ddpm"], data)
    rates = []
    while training.step < training.total:
        rates.append(training.optimizer.param_groups[0]["lr"])
        training.one_step()
    assert rates[0] == rates[2] == 1e-3 and rates[3] == pytest.approx(1e-3 * 0.1**0.25)
    assert training.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)


def test_average_is_the_written_out_mean(data):
    training = Training(RECIPES["denoise"], data)
    name, expected = "last.1.weight", None
    for n in range(5):
        training.one_step()
        now = training.net.state_dict()[name].clone()
        share = 1 - min(0.998, (1 + n) / (10 + n))
        expected = now if n == 0 else expected + share * (now - expected)
    assert torch.allclose(training.average.module.state_dict()[name], expected, atol=1e-7)


def test_one_batch_is_learnt_by_heart(data, monkeypatch):
    """The same eight pictures, the same noise: the denoiser's loss falls to a fraction of its start."""
    monkeypatch.setattr(loop, "precision", lambda device: contextlib.nullcontext())
    training = Training(Recipe("one", "denoise", width=8, epochs=1, batch=8, lr=3e-3, decay=False), data)
    monkeypatch.setattr(Training, "batch", lambda self, step, batch=training.batch: batch(0))
    for _ in range(120):
        training.one_step()
    assert training.losses[-1] < 0.1 * training.losses[0] and training.losses[-1] < 0.02


def test_checkpoint_is_never_half_written(data, tmp_path, monkeypatch):
    training = Training(RECIPES["denoise"], data)
    path = tmp_path / "denoise.pt"
    training.save(path)
    before = path.read_bytes()

    def break_off(state, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", break_off)
    with pytest.raises(KeyboardInterrupt):
        training.save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_foreign_and_damaged_checkpoints_are_refused(data, tmp_path):
    train(Training(RECIPES["denoise"], data), tmp_path, until=1)
    path = tmp_path / "denoise.pt"
    with pytest.raises(ValueError, match="belongs to another recipe or other pictures"):
        Training(Recipe("denoise", "denoise", width=4, epochs=9, batch=16), data).load(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="is no whole checkpoint"):
        Training(RECIPES["denoise"], data).load(path)


def test_a_loss_that_is_not_finite_stops_the_training(data, monkeypatch):
    training = Training(RECIPES["denoise"], data)
    monkeypatch.setattr(Recipe, "loss", lambda *_: torch.tensor(math.nan))
    with pytest.raises(FloatingPointError, match="step 1: lower lr"):
        training.one_step()


def test_impossible_recipes_are_refused(data):
    with pytest.raises(ValueError, match="method must be one of"):
        Recipe("x", "gan")
    with pytest.raises(ValueError, match="a training needs"):
        Recipe("x", "ddpm", batch=1)
    with pytest.raises(ValueError, match="holds no batch of 128"):
        Training(Recipe("x", "ddpm"), data)


def test_weights_survive_the_file_at_half_precision(data, tmp_path):
    training = train(Training(RECIPES["ddpm"], data), tmp_path)
    path = tmp_path / "w.safetensors"
    write_weights(training.average.module, path, training.identity())
    net = read_weights(training.recipe.build(), path)
    assert {value.dtype for value in load_file(path).values()} == {torch.float16}
    for key, value in training.average.module.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(net.state_dict()[key], value, rtol=1e-3, atol=1e-6)
    assert not net.training
    with pytest.raises(ValueError, match="another architecture"):
        read_weights(RECIPES["denoise"].build(), path)


# Recipes ---------------------------------------------------------------------------------------------------------


def test_recipes_are_the_courses():
    course = {name: (r.width, r.batch, r.epochs, r.lr, r.decay) for name, r in mnist.RECIPES.items()}
    assert course["one-step"] == (128, 256, 5, 1e-4, False) and mnist.RECIPES["one-step"].sigma == 0.5
    assert course["time"] == course["class"] == (64, 128, 20, 1e-3, True)
    assert course["flow"] == (64, 64, 10, 1e-2, True)
    assert (mnist.RECIPES["class"].classes, mnist.RECIPES["class"].drop) == (10, 0.1)


def test_only_short_epochs_change_the_batch(data):
    assert mnist.recipe("time", data).batch == mnist.SMALL_BATCHES[128]
    assert mnist.recipe("time", digits.load("digits", epoch=60_000)[0]) == mnist.RECIPES["time"]
    with pytest.raises(ValueError, match="name must be one of"):
        mnist.recipe("gan", data)


def test_trained_networks_come_from_the_cache_or_the_package(data, tmp_path, monkeypatch):
    recipe = RECIPES["ddpm"]
    monkeypatch.setattr(mnist, "device", lambda: torch.device("cpu"))
    net = mnist.trained(recipe, data)
    monkeypatch.setattr(mnist, "finished", lambda *_, **__: pytest.fail("trained again"))
    assert same(net, mnist.trained(recipe, data))
    own = snapshot_path(mnist.folder(recipe, data), "ddpm", 4)
    monkeypatch.setattr(mnist, "ASSETS", tmp_path)
    (tmp_path / own.name).write_bytes(own.read_bytes())
    own.unlink()
    assert same(net, mnist.trained(recipe, data))
    with pytest.raises(ValueError, match="epoch must be one of"):
        mnist.trained(recipe, data, 3)


@pytest.mark.parametrize("name", mnist.SHIPPED)
def test_shipped_weights_are_of_the_recipes_that_ask_for_them(name):
    train_split, _ = digits.load("digits")
    train_split = mnist.pictures(name, train_split)
    recipe = mnist.recipe(name, train_split)
    path = snapshot_path(mnist.ASSETS, name, recipe.epochs)
    assert mnist.shipped_identity(path) == loop.identity(recipe, train_split)


# Scores ----------------------------------------------------------------------------------------------------------


def test_frechet_distance_of_gaussians(generator):
    a = torch.randn(400, 5, generator=generator, dtype=torch.float64)
    b = torch.randn(300, 5, generator=generator, dtype=torch.float64) @ torch.randn(5, 5, generator=generator).double()
    first, second = np.cov(a.numpy().T), np.cov(b.numpy().T)
    cross = np.trace(scipy.linalg.sqrtm(first @ second).real)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum().item() + np.trace(first) + np.trace(second) - 2 * cross
    assert scores.frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert scores.frechet_distance(a, a) == pytest.approx(0, abs=1e-8)
    assert scores.frechet_distance(a, a + 2) == pytest.approx(20)  # 5 features moved by 2


def test_kernel_distance_needs_two_pictures():
    with pytest.raises(ValueError, match="at least two pictures on each side, got 1 and 3"):
        measures.kernel_distance(torch.zeros(1, 2), torch.zeros(3, 2))


def test_kernel_distance_is_unbiased(generator):
    """Of two samples of one distribution its mean over draws is 0 within its error, whatever the size."""
    draws = [measures.kernel_distance(*torch.randn(2, 12, 3, generator=generator)) for _ in range(300)]
    assert abs(np.mean(draws)) < 3 * np.std(draws) / math.sqrt(300)


def test_nearest_and_copies(data):
    classifier = scores.Classifier(4).eval()
    test = scores.several(digits.load("digits")[1], 60, 1)
    judge = scores.Judge(classifier, test, scores.several(data, 300, 2))
    distances, places = scores.nearest(judge.pool[0][[7, 3]], judge.pool[0])
    assert places.tolist() == [7, 3] and distances.max() < 0.02
    assert judge.scores(judge.pool[0][:20])["copies"] == 1 and judge.scores(test[0])["copies"] < 0.05
    assert judge.scores(test[0])["distance"] == pytest.approx(1)
    assert "accuracy" not in judge.scores(test[0]) and 0 <= judge.scores(*test)["accuracy"] <= 1


def test_sheets_are_cut_into_what_they_were_made_of():
    pictures = torch.rand(12, 1, 28, 28)
    assert scores.sheet(pictures, 4).shape == (1, 3, 84, 112)
    assert torch.equal(scores.cut(scores.sheet(pictures, 4)), pictures)
    with pytest.raises(ValueError, match="do not fill rows of 5"):
        scores.sheet(pictures, 5)


# Studies ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def study(monkeypatch):
    for module in (mnist, studies):
        monkeypatch.setattr(module, "device", lambda: torch.device("cpu"))
    train_split, test = digits.load("digits", epoch=32)
    return studies.Study(train_split, test, changes=(("width", 2), ("schedule", methods.Schedule(steps=3))))


def test_studies_are_stored_and_come_back_without_a_network(study, monkeypatch, cache):
    runs = {
        "curve": lambda: studies.curve(study, "time"),
        "noising": lambda: studies.noising(study),
        "denoising": lambda: studies.denoising(study, 5, count=4),
        "noise": lambda: studies.answer_to_noise(study, 5),
        "class": lambda: studies.samples(study, "class", 5, count=10),
        "flow": lambda: studies.samples(study, "flow", count=10, steps=2),
        "mismatch": lambda: studies.mismatch(study, count=10),
        "real": lambda: studies.real(study, 10),
    }
    first = {name: compute() for name, compute in runs.items()}
    monkeypatch.setattr(mnist, "trained", lambda *_, **__: pytest.fail("a network was asked for"))
    monkeypatch.setattr(mnist, "finished", lambda *_, **__: pytest.fail("a training was asked for"))
    for name, compute in runs.items():
        again = compute()
        assert again.values == first[name].values
        assert all(torch.equal(again.pictures[key], first[name].pictures[key]) for key in again.pictures)
    assert first["curve"].values["steps"][-1] == 20 * study.pictures("time").epoch // 16
    assert first["class"].values["evaluations"] == 6
    assert first["flow"].values["evaluations"] == 4 and first["denoising"].values["denoised"][0] > 0
    assert max(max(p.shape) for run in first.values() for p in run.pictures.values()) <= 256  # stored as they are


def test_samples_lie_in_rows_of_classes():
    labels = torch.arange(40) % 10
    rows = labels[studies._by_class(labels)].view(8, 5)
    assert (rows[:4] == torch.arange(5)).all() and (rows[4:] == torch.arange(5, 10)).all()


@pytest.mark.skipif(not models.native_bfloat16(), reason="no matrix units for bfloat16")
def test_bfloat16_predicts_as_float32_does(data):
    training = Training(RECIPES["ddpm"], data)
    for _ in range(5):
        training.one_step()
    net, x, t = training.net.eval(), torch.randn(8, 1, 28, 28), torch.rand(8)
    with torch.no_grad():
        exact = net(x, t, torch.eye(10)[:8])
        with methods.precision("cpu"):
            half = net(x, t, torch.eye(10)[:8]).float()
    assert (half - exact).square().mean() < 1e-3 * exact.square().mean()
