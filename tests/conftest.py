"""Fixtures shared by all rooms: small networks, pictures, and an environment that touches nothing outside a test."""

import pytest
import torch
from torchvision.models import vgg

from ex4lib import models
from tests.random_models import random_network

torch.set_num_threads(1)  # one count for all machines, and no waiting for each other on busy ones


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
    return models.features("vgg16-hed", where="cpu")


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
