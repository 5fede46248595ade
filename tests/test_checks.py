"""The input gate: what is a number, a size, a list; everything else is refused in one sentence with its name."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from ex4lib import checks

THREES = [3, np.int64(3), np.uint8(3), torch.tensor(3), np.array(3), torch.tensor([3])]


@pytest.mark.parametrize("value", THREES)
def test_whole_numbers(value):
    for found in (checks.integer(value, "steps"), checks.size(value), checks.seed(value)):
        assert found == 3 and type(found) is int
    assert checks.grid(value) == (3, 3)


@pytest.mark.parametrize("value", [*THREES, 3.0, np.float32(3), np.float16(3), torch.tensor(3.0), Fraction(3)])
def test_numbers(value):
    found = checks.number(value, "style_scale")
    assert found == 3 and type(found) is float


NAN = float("nan")
NOT_NUMBERS = [True, np.bool_(True), torch.tensor(True), "3", None, [3], 3j, NAN, float("inf"), -np.inf, object()]
NOT_NUMBERS += [torch.tensor(NAN), torch.ones(3), np.ones((2, 2)), np.array(["3"])]


@pytest.mark.parametrize("value", [*NOT_NUMBERS, 10**400])
def test_what_is_not_a_number(value):
    with pytest.raises(ValueError, match=r"^eta must be a finite number, got ") as caught:
        checks.number(value, "eta")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 160


@pytest.mark.parametrize("value", NOT_NUMBERS)
def test_what_is_none_of_the_others(value):
    for gate in (checks.integer, checks.fraction, checks.size, checks.seed, checks.interval, checks.choice):
        with pytest.raises(ValueError, match=r"eta must be ") as caught:
            gate(value, "eta", *([["a", "b"]] if gate is checks.choice else []))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [3.0, 2.5, np.float64(3)])
def test_a_float_is_not_a_whole_number(value):
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1, got"):
        checks.integer(value, "steps", low=1)


def test_ranges():
    assert checks.number(0, "x", low=0) == 0 and checks.fraction(1, "x") == 1
    for call, message in [
        (lambda: checks.number(-1, "x", low=0), "x must be a finite number of at least 0, got -1"),
        (lambda: checks.number(2, "x", high=1), "x must be a finite number of at most 1, got 2"),
        (lambda: checks.number(0, "x", above=0), "x must be a finite number above 0, got 0"),
        (lambda: checks.fraction(1.5, "x"), "x must be a finite number from 0 to 1, got 1.5"),
        (lambda: checks.integer(0, "x", low=1), "x must be at least 1, got 0"),
        (lambda: checks.seed(2**64), "seed must be at most 18446744073709551615, got 18446744073709551616"),
        (lambda: checks.size(10**6), "size must be at most 20000, got 1000000"),
        (lambda: checks.size(60, multiple=8), "size must be a multiple of 8, got 60; 64 is the nearest"),
        (lambda: checks.interval((1, 0), "w"), r"w must be fractions 0 <= start <= stop <= 1, got \(1, 0\)"),
        (lambda: checks.choice("b ", "x", "abc"), "x must be a, b or c, got 'b '"),
        (lambda: checks.weights([0, 0], 2, "w"), "w must be 2 finite weights of at least 0, not all 0, got"),
        (lambda: checks.weights([1], 2, "w"), "w must be 2 finite weights"),
        (lambda: checks.values([], "v"), "v must be one or more numbers, got 0"),
        (lambda: checks.finite(torch.tensor([1, float("nan")]), "x"), "x must be finite, got 1 of 2 values"),
        (lambda: checks.device("gpu"), "device must be a device of this machine such as cpu, got 'gpu'"),
        (lambda: checks.device(torch.ones(3)), "device must be"),
        (lambda: checks.prompts([]), r"prompt must be a text or a list of texts, got \[\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_lists():
    assert checks.values(torch.tensor([1.0, 2]), "v") == [1, 2] == checks.values(np.array([1, 2]), "v")
    assert checks.values(0.5, "v") == [0.5] == checks.values(torch.tensor(0.5), "v")
    assert checks.weights(None, 2, "w") == [1, 1]
    assert checks.interval((np.float32(0), torch.tensor(1)), "w") == (0, 1)
    assert checks.grid((2, np.int64(3))) == (2, 3) == checks.grid(np.array([2, 3])) == checks.grid(torch.Size([2, 3]))
    assert checks.prompts("a cat") == ["a cat"] and checks.device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("value", ["relu1_1, 21", ("relu1_1", 21), ["relu1_1 ", "21"], iter(["relu1_1", np.int64(21)])])
def test_layers(value):
    assert checks.names(value, "layers") == ["relu1_1", 21]


@pytest.mark.parametrize("value", ["", "a,,b", [], None, 1.5, [1.5], [None], torch.ones(2), b"a"])
def test_bad_layers(value):
    with pytest.raises(ValueError, match="layers"):
        checks.names(value, "layers")
