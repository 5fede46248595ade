"""VGG features under the papers' layer names; normalisation happens inside, the image stays in [0, 1].

A VGG is a chain of 3x3 convolutions, ReLUs and five 2x2 poolings (Simonyan & Zisserman, arXiv:1409.1556). Layers
are called ``conv3_1``, ``relu3_1``, ``pool3`` everywhere; the PyTorch tutorial's sequential names (``conv_5``,
``relu_5``, ``pool_4``) and torchvision's indices are accepted as input.
"""

import copy
import difflib
import numbers
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ex4lib import checks, images

#: Convolutions per block.
BLOCKS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}

#: What a pooled activation is multiplied by, so that the layers above see the scale they were trained on with max
#: pooling; 2.0 is the value of crowsonkb's style-transfer-pytorch.
POOLING_SCALE = {"max": 1.0, "average": 2.0}


def layer_names(architecture: str) -> list[str]:
    """Canonical layer names in order; the position is torchvision's index into ``vgg.features``."""
    names = []
    for block, depth in enumerate(BLOCKS[architecture], start=1):
        for position in range(1, depth + 1):
            names += [f"conv{block}_{position}", f"relu{block}_{position}"]
        names.append(f"pool{block}")
    return names


def tutorial_names(architecture: str) -> dict[str, str]:
    """The PyTorch tutorial's name of each layer -> the canonical one; the number is that of the last convolution."""
    table, convolutions = {}, 0
    for name in layer_names(architecture):
        kind = name.rstrip("0123456789_")
        convolutions += kind == "conv"
        table[f"{kind}_{convolutions}"] = name
    return table


def resolve(layer: str | int, architecture: str) -> str:
    """The canonical name of a layer given by canonical name, tutorial name or torchvision index."""
    names = layer_names(architecture)
    layer = layer.strip() if isinstance(layer, str) else layer
    index = int(layer) if isinstance(layer, numbers.Integral) or (isinstance(layer, str) and layer.isdecimal()) else -1
    if 0 <= index < len(names) and not isinstance(layer, bool):
        return names[index]
    known = tutorial_names(architecture) | {name: name for name in names}
    if isinstance(layer, str) and layer in known:
        return known[layer]
    near = difflib.get_close_matches(str(layer)[:40], known, n=4, cutoff=0.5) or names
    raise ValueError(f"{architecture} has no layer {checks.describe(layer)}; did you mean {', '.join(near)}?")


class VGG(nn.Module):
    """A frozen VGG that returns the layers asked for and stops at the deepest of them.

    Arguments:
        architecture: ``"vgg16"`` or ``"vgg19"``.
        convolutions: weight ``(C_out, C_in, 3, 3)`` and bias ``(C_out,)`` of each convolution, in order, for RGB.
        mean, std: the normalisation the weights were trained with, for RGB in [0, 1].
        pooling: ``"max"`` or ``"average"`` (rescaled by `POOLING_SCALE`).
        padding: ``"zeros"`` as trained, or ``"replicate"``: the first convolution repeats the border, so that the
            frame of the picture is not seen as an edge.
        name: what figures and errors call the network.
    """

    def __init__(
        self,
        architecture: str,
        convolutions: Sequence[tuple[Tensor, Tensor]],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        pooling: str = "max",
        padding: str = "zeros",
        name: str | None = None,
    ):
        super().__init__()
        _check_options(pooling, padding)
        if len(convolutions) != sum(BLOCKS[architecture]):
            raise ValueError(f"{architecture} has {sum(BLOCKS[architecture])} convolutions, got {len(convolutions)}")
        self.architecture, self.name, self.pooling, self.padding = architecture, name or architecture, pooling, padding
        self.layers = layer_names(architecture)
        self.sha256: str | None = None  # of the weights, filled in by whoever loaded them
        self.precision = "float32"  # as asked for: "auto" leaves the choice to the machine
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.convolutions = nn.ModuleDict()
        names = [layer for layer in self.layers if layer.startswith("conv")]
        for layer, (weight, bias) in zip(names, convolutions, strict=True):
            convolution = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, device="meta")
            convolution.weight, convolution.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
            self.convolutions[layer] = convolution
        # Channels last is what CPU and GPU convolutions run fastest on.
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @property
    def identity(self) -> dict[str, str | None]:
        """What decides the features, the same on every machine; the precision is the one that was asked for."""
        names = ("name", "pooling", "padding", "precision")
        return {name: getattr(self, name) for name in names} | {"weights": self.sha256}

    def variant(self, *, pooling: str, padding: str) -> "VGG":
        """The same weights, not copied, with other pooling and padding."""
        _check_options(pooling, padding)
        variant = copy.copy(self)
        variant.pooling, variant.padding = pooling, padding
        return variant

    def names(self, layers: str | int | Iterable[str | int]) -> list[str]:
        """The canonical names of layers, which may also be one, or several in a string as ``"relu1_1, relu2_1"``."""
        return [resolve(layer, self.architecture) for layer in checks.names(layers, "layers")]

    def minimum_size(self, layers: Iterable[str | int]) -> int:
        """The smallest image side for which every layer in ``layers`` has at least one position."""
        return 2 ** sum(layer.startswith("pool") for layer in self._until(layers))

    def forward(self, image: Tensor, layers: Iterable[str | int]) -> dict[str, Tensor]:
        """Features ``(B, C_l, H_l, W_l)`` of each layer, by canonical name, in the network's dtype.

        The image ``(B, 3, H, W)`` in [0, 1] is not clamped, so that gradients reach values outside.
        """
        return dict(self.walk(image, layers))

    def walk(self, image: Tensor, layers: Iterable[str | int]) -> Iterator[tuple[str, Tensor]]:
        """The same features one by one, each as soon as the pass through the network has reached its layer."""
        wanted = self.names(layers)
        chain, minimum = self._until(wanted), self.minimum_size(wanted)
        if min(image.shape[-2:]) < minimum:
            sides = f"at least {minimum} x {minimum} pixels for layer {chain[-1]}"
            raise ValueError(f"{self.name} needs {sides}, got {image.shape[-2]} x {image.shape[-1]}")
        weight = self.convolutions["conv1_1"].weight
        x = ((image - self.mean.to(image)) / self.std.to(image)).to(weight.dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        for layer in chain:
            if layer == "conv1_1" and self.padding == "replicate":
                x = F.pad(x, (1, 1, 1, 1), mode="replicate").contiguous(memory_format=torch.channels_last)
                x = F.conv2d(x, weight, self.convolutions[layer].bias)
            elif layer.startswith("conv"):
                x = self.convolutions[layer](x)
            elif layer.startswith("relu"):
                x = F.relu(x, inplace=layer.replace("relu", "conv") not in wanted)  # never over a captured layer
            else:
                x = F.max_pool2d(x, 2) if self.pooling == "max" else F.avg_pool2d(x, 2) * POOLING_SCALE["average"]
            if layer in wanted:
                yield layer, x

    def masks(self, mask: Tensor, layers: Iterable[str | int]) -> dict[str, Tensor]:
        """A mask, as `images.mask` takes it, on each layer's grid ``(B, 1, H_l, W_l)``: the shares that it covers."""
        mask = images.mask(mask, "mask")
        wanted = self.names(layers)
        guides: dict[str, Tensor] = {}
        for layer in self._until(wanted):
            if layer.startswith("pool"):
                mask = F.avg_pool2d(mask, 2)
            if layer in wanted:
                if mask.sum((1, 2, 3)).min() < 1:
                    raise ValueError(f"the masked region is empty at layer {layer}: enlarge the mask")
                guides[layer] = mask
        return guides

    def _until(self, layers: Iterable[str | int]) -> list[str]:
        return self.layers[: max(map(self.layers.index, self.names(layers))) + 1]


def _check_options(pooling: str, padding: str) -> None:
    checks.choice(pooling, "pooling", POOLING_SCALE)
    checks.choice(padding, "padding", ("zeros", "replicate"))


def rescaled(convolutions: Sequence[tuple[Tensor, Tensor]], scales: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
    """Fold per-layer factors into weights and biases: layer l's feature maps come out multiplied by ``scales[l]``.

    ``W_l' = W_l S_l / S_{l-1}``, ``b_l' = b_l S_l`` with S_0 = 1; ReLU and pooling commute with positive factors.
    """
    layers = zip(convolutions, scales, [1.0, *scales[:-1]], strict=True)
    return [(weight * (scale / before), bias * scale) for (weight, bias), scale, before in layers]
