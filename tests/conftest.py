"""Fixtures that tests share: small networks, pictures, a device, and an environment that touches nothing outside."""

import importlib

import pytest
import torch
from torchvision.models import vgg

from ex4lib import models
from tests.devices import far_device
from tests.random_models import random_network

torch.set_num_threads(1)  # one count for all machines, and no waiting for each other on busy ones


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="device of the tests in test_devices.py")


@pytest.fixture
def device(request, monkeypatch):
    """CUDA with ``--device cuda``; else a device that does not exist, on which the mixing of devices shows."""
    if request.config.getoption("--device") == "cuda":
        yield torch.device("cuda")
        return
    module = importlib.import_module("torch.optim.optimizer")
    kinds = module._get_fused_kernels_supported_devices()
    monkeypatch.setattr(module, "_get_fused_kernels_supported_devices", lambda: [*kinds, far.type])
    with far_device() as far:
        yield far


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """Every test starts in the mini profile, with an empty figures folder of its own."""
    for name in ("EX4_FAST", "EX4_MODELS", "EX4_STORE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EX4_PROFILE", "mini")
    monkeypatch.setenv("EX4_FIGURES", str(tmp_path / "figures"))


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


@pytest.fixture(scope="session")
def offline():
    """The offline VGG-16 with its real weights."""
    return models.features("vgg16-hed", device="cpu")


@pytest.fixture
def small():
    """A narrow random VGG-19 in float64, for exact comparisons."""
    return random_network()


@pytest.fixture
def picture(generator):
    """Makes smooth random pictures in [0, 1]: noise on a coarse grid, enlarged."""

    def make(height=32, width=32, batch=1, dtype=torch.float64):
        coarse = torch.rand(batch, 3, 6, 6, generator=generator, dtype=torch.float64)
        image = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
        image = image + 0.05 * torch.rand(batch, 3, height, width, generator=generator, dtype=torch.float64)
        return (image / 1.05).to(dtype).contiguous()

    return make


@pytest.fixture(scope="session")
def torchvision_features(tmp_path_factory):
    """torchvision's own feature stacks with random weights, and a folder that holds them as weight files."""
    folder, stacks = tmp_path_factory.mktemp("models"), {}
    draw = torch.Generator().manual_seed(3)
    for name, configuration in (("vgg16", "D"), ("vgg19", "E")):
        with torch.device("meta"):
            stack = vgg.make_layers(vgg.cfgs[configuration])
        stack = stack.to_empty(device="cpu").requires_grad_(False).eval()
        for module in stack:
            if isinstance(module, torch.nn.Conv2d):
                fan = 9 * module.in_channels
                module.weight.copy_(torch.randn(module.weight.shape, generator=draw) * (2 / fan) ** 0.5)
                module.bias.copy_(0.1 * torch.randn(module.bias.shape, generator=draw))
            elif isinstance(module, torch.nn.ReLU):
                module.inplace = False
        torch.save({f"features.{key}": value for key, value in stack.state_dict().items()}, folder / f"{name}.pth")
        stacks[name] = stack
    return folder, stacks
