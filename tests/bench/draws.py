"""Random values, their words and operations on them, for property tests of what computes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.ir import interpret, ops
from espalier.ir.types import FLOAT, INDEX, Fixed, Format, TensorType, Value
from espalier.numerics.requantize import Requantize
from espalier.numerics.scalar import LARGEST, TINIEST, scalar
from espalier.numerics.window import Window
from espalier.train.evaluate import evaluate, to_array, to_tensor

CASES = settings(deadline=None, max_examples=40, derandomize=True)


def words(random: np.random.RandomState, format_: Format, shape: tuple[int, ...], extreme: bool) -> np.ndarray:
    """Random words of a format; ``extreme`` ones lie at the ends of the range."""
    assert isinstance(format_, Fixed)
    if extreme:
        return np.where(random.randint(0, 2, shape) == 1, format_.high, format_.low).astype(np.int64)
    return random.randint(format_.low, format_.high + 1, shape).astype(np.int64)


def scalars(random: np.random.RandomState, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of a channel each, of many magnitudes, of both signs but for a variance; some zero, tiny or huge."""
    found = scalar(random.standard_normal(shape) * 2.0 ** random.randint(-12, 13, shape))
    ends = random.choice(np.array([0.0, TINIEST, LARGEST], np.float32), shape)
    found = np.where(random.rand(*shape) < 0.2, ends, found)
    return np.abs(found) if name == "variance" else found


def rounded(acc: np.ndarray, bits: int, shift: int) -> np.ndarray:
    """By the definition; a negative shift multiplies."""
    return Requantize(acc_bits=63, out_bits=bits, shift=max(shift, 0))(acc << max(-shift, 0))


@dataclass(frozen=True)
class Draw:
    """Random values and their words."""

    data: st.DataObject
    random: np.random.RandomState
    extreme: bool
    batch: int

    def integer(self, low: int, high: int) -> int:
        return self.data.draw(st.integers(low, high))

    def format(self, low_frac: int = 0, high_frac: int = 18) -> Fixed:
        return Fixed.of(self.integer(2, 16), self.integer(low_frac, high_frac))

    def value(self, name: str, *shape: int, format_: Format | None = None) -> Value:
        return Value(name, TensorType(shape, format_ or self.format()))

    def window(self, pools: bool = False) -> Window:
        pad = self.integer(0, 1) if pools else self.integer(0, 2)
        kernel = (self.integer(1 + pad, 3), self.integer(1 + pad, 3)) if pools else (self.integer(1, 3),
                                                                                   self.integer(1, 3))
        return Window(kernel, (self.integer(1, 3), self.integer(1, 3)),
                      (pad, self.integer(0, pad), self.integer(0, pad), pad), (self.integer(1, 2), self.integer(1, 2)))

    def arrays(self, op: ops.Op, labels: int | None = None) -> list[np.ndarray]:
        sums = isinstance(op, ops.Add | ops.Concat)  # whose ``b`` is no bias
        parameters = set() if sums else {getattr(op, name, None) for name in ("w", "b")}
        found = []
        for value in op.inputs:
            shape = value.shape if value in parameters else (self.batch, *value.shape)
            if value.format == FLOAT:
                found.append(scalars(self.random, value.name, value.shape))
            elif value.format == INDEX:
                assert labels is not None
                found.append(self.random.randint(0, labels, shape).astype(np.int64))
            else:
                found.append(words(self.random, value.format, shape, self.extreme))
        return found

    def check(self, op: ops.Op, labels: int | None = None) -> None:
        arrays = self.arrays(op, labels)
        expected = interpret.evaluate(op, *arrays)
        tensors = [to_tensor(array, value.format) for array, value in zip(arrays, op.inputs, strict=True)]
        got = to_array(evaluate(op, *tensors), op.out.format)
        assert got.dtype == (np.float32 if op.out.format == FLOAT else np.int64) and got.dtype == expected.dtype, op
        assert np.array_equal(got, expected), op


def draws(function: Callable[[Draw], None]) -> Callable[[], None]:
    """Run a test on random draws."""
    @CASES
    @given(st.data(), st.integers(0, 2**32 - 1), st.booleans(), st.integers(1, 3))
    def test(data: st.DataObject, seed: int, extreme: bool, batch: int) -> None:
        function(Draw(data, np.random.RandomState(seed), extreme, batch))
    return test
