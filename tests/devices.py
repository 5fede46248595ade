"""A device that does not exist, so that code which mixes devices fails on a machine that has one only.

Tensors of `FAR` hold a tensor of the CPU. As with CUDA, an operation on tensors of both devices is an error, unless the
one on the CPU is a single number, an index, or the source or the destination of a copy.
"""

import contextlib

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

FAR = torch.device("meta")  # autograd knows this device everywhere; here its tensors have values
MIXING = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default, torch.ops.aten.set_.source_Tensor}
INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default}


class FarTensor(torch.Tensor):
    """A tensor that says it is on `FAR`."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near):
        options = {"strides": near.stride(), "storage_offset": near.storage_offset(), "dtype": near.dtype}
        wrapper = torch.Tensor._make_wrapper_subclass(cls, near.size(), **options, device=FAR)
        wrapper.near = near
        return wrapper

    def tolist(self):
        return self.near.tolist()

    def __repr__(self):
        return f"FarTensor({self.near})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return computed(function, args, kwargs or {})


class FarDevice(TorchDispatchMode):
    """Factories and copies to `FAR`."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return computed(function, args, kwargs or {})


class FromNumbers(TorchFunctionMode):
    """``torch.tensor(numbers, device=FAR)``, which no dispatch sees."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor) and is_far(kwargs.get("device")):
            return function(*args, **kwargs | {"device": "cpu"}).to(FAR)
        return function(*args, **kwargs)


@contextlib.contextmanager
def far_device():
    """`FAR` is usable inside."""
    with FarDevice(), FromNumbers():
        yield FAR


def is_far(device):
    return device is not None and torch.device(device).type == FAR.type


def computed(function, args, kwargs):
    """The result of an operation, on the device that CUDA would give it."""
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    far = [tensor for tensor in tensors if isinstance(tensor, FarTensor)]
    near = [tensor for tensor in tensors if not isinstance(tensor, FarTensor) and tensor.ndim]
    if far and near and function not in MIXING and not (function in INDEXING and near[0] is not args[0]):
        shapes = [tuple(tensor.shape) for tensor in near]
        raise RuntimeError(f"{function} on two devices: shapes {shapes} are on the CPU")
    wraps = is_far(kwargs["device"]) if kwargs.get("device") is not None else bool(far)
    if function is torch.ops.aten.copy_.default:
        wraps = isinstance(args[0], FarTensor)
    plain = {name: value for name, value in kwargs.items() if name != "device" or not is_far(value)}
    if len(plain) < len(kwargs):
        plain["device"] = torch.device("cpu")
    inner, inner_options = tree_map(lambda x: x.near if isinstance(x, FarTensor) else x, (args, plain))
    found = function(*inner, **inner_options)
    if function is torch.ops.aten._to_copy.default and not wraps and found is inner[0]:
        found = found.clone()
    if wraps:
        found = tree_map(lambda x: FarTensor(x) if isinstance(x, torch.Tensor) else x, found)
    return return_and_correct_aliasing(function, args, kwargs, found) if far and wraps else found
