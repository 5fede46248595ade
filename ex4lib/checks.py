"""The input gate: every argument of a public function is converted here, or refused in one sentence.

Each function returns the plain Python value (or tensor) that the rest of the library works with, and raises
``ValueError("ARGUMENT must be ..., got ...")``. Numbers may be Python's, numpy's, or arrays and tensors with one
element; True and False are not numbers, and nothing that is not finite passes. Pictures and masks have their gate in
`ex4lib.images` (`picture` and `mask`).
"""

import math
import numbers
import re
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: The longest side that is accepted for a result, in pixels: a typing error must not fill the memory.
MAX_SIDE = 20_000
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


def describe(value: Any) -> str:
    """What came, in a few words, for an error message."""
    if isinstance(value, (Tensor, np.ndarray)):
        kind = "tensor" if isinstance(value, Tensor) else "array"
        content = f"values {value.tolist()}" if math.prod(value.shape) <= 4 else f"shape {tuple(value.shape)}"
        return f"a {kind} of {str(value.dtype).removeprefix('torch.')} with {content}"
    return " ".join(_short.repr(value).split())


def _scalar(value: Any) -> Any:
    """The number inside a numpy scalar, an array or a tensor with one element; anything else as it is."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)) and math.prod(value.shape) == 1:
        return value.item()
    return value


def number(
    value: Any, argument: str, *, low: float = -math.inf, high: float = math.inf, above: float | None = None
) -> float:
    """A finite real number with ``low <= value <= high``, or ``value > above``, as a float."""
    found = _scalar(value)
    if isinstance(found, numbers.Real) and not isinstance(found, bool):
        try:
            found = float(found)
        except OverflowError:
            found = math.inf
        if math.isfinite(found) and low <= found <= high and (above is None or found > above):
            return found
    if above is not None:
        bounds = f" above {above:g}" + (f" and at most {high:g}" if high < math.inf else "")
    elif low > -math.inf and high < math.inf:
        bounds = f" from {low:g} to {high:g}"
    else:
        bounds = f" of at least {low:g}" if low > -math.inf else f" of at most {high:g}" if high < math.inf else ""
    raise ValueError(f"{argument} must be a finite number{bounds}, got {describe(value)}")


def integer(value: Any, argument: str, *, low: int | None = None, high: int | None = None) -> int:
    """A whole number with ``low <= value <= high`` as an int. A float is refused, even 3.0."""
    found = _scalar(value)
    if isinstance(found, numbers.Integral) and not isinstance(found, bool):
        found = int(found)
        if low is not None and found < low:
            raise ValueError(f"{argument} must be at least {low}, got {describe(value)}")
        if high is not None and found > high:
            raise ValueError(f"{argument} must be at most {high}, got {describe(value)}")
        return found
    bounds = "" if low is None else f" of at least {low}"
    raise ValueError(f"{argument} must be a whole number{bounds}, got {describe(value)}")


def fraction(value: Any, argument: str) -> float:
    """A number between 0 and 1."""
    return number(value, argument, low=0, high=1)


def seed(value: Any, argument: str = "seed") -> int:
    """A whole number that ``torch.Generator.manual_seed`` accepts: from 0 to 2⁶⁴ - 1."""
    return integer(value, argument, low=0, high=2**64 - 1)


def interval(value: Any, argument: str) -> tuple[float, float]:
    """Two fractions ``0 <= start <= stop <= 1``."""
    pair = values(value, argument)
    if len(pair) == 2 and 0 <= pair[0] <= pair[1] <= 1:
        return pair[0], pair[1]
    raise ValueError(f"{argument} must be fractions 0 <= start <= stop <= 1, got {describe(value)}")


def values(
    value: Any, argument: str, *, count: int | None = None, low: float = -math.inf, high: float = math.inf
) -> list[float]:
    """A non-empty list of finite numbers, ``count`` of them if that is given; one number is a list of one."""
    if isinstance(value, (str, bytes, dict, set)) or not isinstance(value, (Iterable, numbers.Real)):
        raise ValueError(f"{argument} must be a list of numbers, got {describe(value)}")
    if isinstance(value, numbers.Real) or (isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0):
        value = [value]
    value = list(value)
    name = argument if len(value) == 1 else f"each of {argument}"
    found = [number(element, name, low=low, high=high) for element in value]
    if not found or (count is not None and len(found) != count):
        raise ValueError(f"{argument} must be {count or 'one or more'} numbers, got {len(found)}")
    return found


def weights(value: Sequence[float] | None, count: int, argument: str) -> list[float]:
    """``count`` finite weights of at least 0, not all 0; None is equal weights of 1."""
    found = [1.0] * count if value is None else values(value, argument, low=0)
    if len(found) != count or not 0 < sum(found) < math.inf:
        raise ValueError(f"{argument} must be {count} finite weights of at least 0, not all 0, got {describe(value)}")
    return found


def choice(value: Any, argument: str, accepted: Iterable[str]) -> str:
    """One of the accepted names."""
    accepted = list(accepted)
    if isinstance(value, str) and value in accepted:
        return value
    names = f"{', '.join(accepted[:-1])} or {accepted[-1]}" if len(accepted) > 1 else accepted[0]
    raise ValueError(f"{argument} must be {names}, got {describe(value)}")


def size(value: Any, argument: str = "size", *, multiple: int = 1) -> int:
    """A length in pixels: at least 1, at most `MAX_SIDE`, and a multiple of ``multiple``."""
    found = integer(value, argument, low=multiple, high=MAX_SIDE)
    if found % multiple:
        near = max(multiple, round(found / multiple) * multiple)
        raise ValueError(f"{argument} must be a multiple of {multiple}, got {found}; {near} is the nearest")
    return found


def grid(value: Any, argument: str = "size", *, multiple: int = 1) -> tuple[int, int]:
    """Height and width ``(H, W)`` in pixels; one number is a square's side."""
    if isinstance(value, (tuple, list, torch.Size, np.ndarray)) and len(np.shape(value)) == 1 and len(value) == 2:
        return size(value[0], argument, multiple=multiple), size(value[1], argument, multiple=multiple)
    if isinstance(_scalar(value), numbers.Integral):
        return (size(value, argument, multiple=multiple),) * 2
    raise ValueError(f"{argument} must be a length in pixels or a pair (height, width), got {describe(value)}")


def names(value: Any, argument: str) -> list[str | int]:
    """A non-empty list of names or indices, such as layers; a string is split at its commas, blanks are removed."""
    if isinstance(value, str):
        value = value.split(",")
    elif isinstance(value, numbers.Integral):
        value = [value]
    elif not isinstance(value, Iterable) or isinstance(value, (bytes, Tensor)) or getattr(value, "ndim", 1) == 0:
        raise ValueError(f"{argument} must be one or more names, got {describe(value)}")
    found = []
    for name in value:
        name = name.strip() if isinstance(name, str) else integer(name, f"each of {argument} that is not a name")
        found.append(int(name) if isinstance(name, str) and name.isdecimal() else name)
    if not found or "" in found:
        raise ValueError(f"{argument} must be one or more names, got {describe(value)}")
    return found


def prompts(value: Any, argument: str = "prompt") -> list[str]:
    """A non-empty list of texts; one text is a list of one. An empty text is a picture of anything, blanks a slip."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, (list, tuple)) or not found or not all(isinstance(text, str) for text in found):
        raise ValueError(f"{argument} must be a text or a list of texts, got {describe(value)}")
    if any(text.isspace() for text in found):
        raise ValueError(f"{argument} must hold words, or be empty for a picture of anything, got {describe(value)}")
    return list(found)


def name(value: Any, argument: str = "name") -> str:
    """The name of a file of ours, which may begin with folders: no part of it leads out of the folder it is for."""
    if isinstance(value, str) and len(value) <= 200 and re.fullmatch(r"\w[\w. -]*(/\w[\w. -]*)*", value):
        return value
    raise ValueError(f"{argument} must be of letters, digits, dots and dashes, with / between, got {describe(value)}")


def device(value: Any, argument: str = "device") -> torch.device:
    """A device that torch reaches on this machine."""
    try:
        found = torch.device(value)
        torch.empty(0, device=found)
    except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError):
        raise ValueError(f"{argument} must be a device of this machine such as cpu, got {describe(value)}") from None
    return found


def finite(tensor: Tensor, argument: str) -> Tensor:
    """``tensor`` itself if all its values are finite numbers."""
    if not torch.isfinite(tensor).all():
        count = int((~torch.isfinite(tensor)).sum())
        raise ValueError(f"{argument} must be finite, got {count} of {tensor.numel()} values that are not")
    return tensor
