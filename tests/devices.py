"""A device that does not exist, so that code which mixes devices fails on a machine that has one only.

Tensors of `FAR` hold a tensor of the CPU. As with CUDA, an operation on tensors of both devices is an error, unless the
one on the CPU is a single number, an index, or the source or the destination of a copy.
"""

import contextlib
import sys
import warnings
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

FAR = torch.device("meta")  # autograd knows this device everywhere; here its tensors have values
MIXING = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default, torch.ops.aten.set_.source_Tensor}
INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default}
#: Operations whose result the processor needs before it can go on, beside copies between the devices. Factorisations
#: read from the device whether they have failed.
WAITING = {
    "_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "repeat_interleave",
    "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_cholesky", "linalg_inv", "linalg_pinv", "_linalg_solve_ex",
}  # fmt: skip
UNCHECKED = {"_linalg_solve_ex", "linalg_inv_ex", "linalg_cholesky_ex"}  # they wait only if they are to check
ROOT = Path(__file__).parents[1]

#: Code that counts, as against torch's, diffusers' and the tests'.
OURS = {ROOT / "ex4lib", ROOT / "experiments"}

#: Lists to which every place is added where the processor waits for the device.
_LISTENERS: list[list[str]] = []


def _is_ours(file: str) -> bool:
    return bool(OURS & set(Path(file).parents))


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
        _wait()
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


@contextlib.contextmanager
def waits(device):
    """A list of the places in this library, as ``file:line``, at which the processor waits for the device.

    On CUDA they are those of which torch warns.
    """
    places = []
    if device.type == "cuda":
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield places
            finally:
                torch.cuda.set_sync_debug_mode("default")
        where = [(warning.filename, warning.lineno) for warning in caught if "synchronizing" in str(warning.message)]
        places += [f"{Path(name).name}:{line}" for name, line in where if _is_ours(name)]
        return
    _LISTENERS.append(places)
    try:
        yield places
    finally:
        _LISTENERS.remove(places)


def _wait():
    """Tell the listeners, if the innermost frame that is not torch's or of this file is in the library."""
    frame = sys._getframe(1)
    while frame is not None and ("/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
        frame = frame.f_back
    if frame is not None and _is_ours(frame.f_code.co_filename):
        for places in _LISTENERS:
            places.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")


def must_wait(function, args, kwargs, wraps, far, near):
    """Whether the processor waits, given an operation with tensors of the far device or a result there."""
    name = function._schema.name.removeprefix("aten::")
    if name in UNCHECKED:
        return bool(far) and bool(kwargs.get("check_errors"))
    if name in ("_to_copy", "copy_"):
        crosses = (bool(far) != wraps) if name == "_to_copy" else bool(far) and len(far) < 2
        blocking = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        return crosses and (blocking or not wraps)
    if name in ("index", "index_put_", "index_put"):
        places = [place for place in args[1] if place is not None]
        return bool(far) and any(not isinstance(place, FarTensor) or place.dtype == torch.bool for place in places)
    return bool(far) and name in WAITING


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
    if _LISTENERS and must_wait(function, args, kwargs, wraps, far, near):
        _wait()
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
