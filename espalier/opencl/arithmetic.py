"""The exact arithmetic of the graph as TensorIR expressions; the definition is in ``ir/interpret.py``.

Words are integers as wide as no sum can leave (:func:`sum_type`), real numbers are float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, assert_never

from tvm import tirx

from espalier.errors import UnsupportedError
from espalier.ir.interpret import frac_of, units
from espalier.ir.ops import Add, ClippedRelu, Relu
from espalier.ir.types import Fixed, Format, Value
from espalier.opencl.plan import Follower

Expr = Any  #: of TensorIR, which has no types

REAL = "float32"
INT32_MAX = (1 << 31) - 1
REAL_MAX = 1 << 24  #: whole numbers up to here are exact in float32


def element_type(format_: Format) -> str:
    """What an element is in a buffer."""
    match format_:
        case Fixed(width=width):
            return "int8" if width <= 8 else "int16" if width <= 16 else "int32"
        case _:
            return REAL


def word_limit(value: Value) -> int:
    """The largest magnitude of a word; 0 for real numbers, which have no end to keep to."""
    return 1 << value.format.width - 1 if isinstance(value.format, Fixed) else 0


def sum_type(value: Value, largest: int) -> str:
    """Of sums no larger than ``largest``, that end up in ``value``."""
    if not isinstance(value.format, Fixed):
        return REAL
    if largest >= 1 << 63:
        raise UnsupportedError(f"Sums for {value} can need more than 64 bits: give it narrower formats")
    return "int32" if largest <= INT32_MAX else "int64"


def product_sum_type(largest: int, words: str) -> str:
    """Of sums of products, all of whose terms together are no larger than ``largest``, of ``words`` when they are done.

    Multiply-adds of float32 are faster than those of integers, and exact while no sum can leave its whole numbers.
    """
    return REAL if largest <= REAL_MAX else words


@dataclass(frozen=True, slots=True)
class Number:
    """An expression of type ``type`` with ``frac`` fraction bits (None: real)."""

    expr: Expr
    type: str
    frac: int | None

    def rounded(self, out: Value) -> Number:
        """In the format of ``out``: half up, limited."""
        if self.frac is None or not isinstance(out.format, Fixed):
            return self
        shift, found = self.frac - out.format.frac, self.expr
        if shift > 0:
            found = found + self._constant(1 << shift - 1) >> self._constant(shift)
        elif shift < 0:
            found = found << self._constant(-shift)
        least, most = out.format.low, out.format.high
        found = tirx.max(tirx.min(found, self._constant(most)), self._constant(least))
        return Number(found, self.type, out.format.frac)

    def followed(self, op: Follower, other: Number | None) -> Number:
        """What ``op`` makes of it; ``other`` is the second value of a sum."""
        match op:
            case Relu():
                return Number(tirx.max(self.expr, self._constant(0)), self.type, self.frac).rounded(op.out)
            case ClippedRelu(bound=bound):
                end = units(bound, op.x)
                most = self._constant(min(end, op.x.format.high) if isinstance(op.x.format, Fixed) else end)
                found = tirx.max(tirx.min(self.expr, most), self._constant(0))
                return Number(found, self.type, self.frac).rounded(op.out)
            case Add():
                assert other is not None, "a sum has two values"
                return self._plus(other).rounded(op.out)
            case _:
                assert_never(op)

    def _plus(self, other: Number) -> Number:
        if self.frac is None or other.frac is None:
            return Number(self.expr + other.expr, self.type, None)
        frac = max(self.frac, other.frac)
        return Number(self._moved(self.expr, frac - self.frac) + self._moved(other.expr, frac - other.frac), self.type,
                      frac)

    def _moved(self, expr: Expr, shift: int) -> Expr:
        return expr << self._constant(shift) if shift else expr

    def _constant(self, value: int) -> Expr:
        return tirx.const(value, self.type)


def largest_rounding(largest: int, frac: int | None, out: Value) -> int:
    """The largest magnitude on the way of a number no larger than ``largest`` into the format of ``out``."""
    if frac is None or not isinstance(out.format, Fixed):
        return largest
    shift = frac - out.format.frac
    return largest + (1 << shift >> 1) if shift >= 0 else largest << -shift


def largest_following(op: Follower, value: Value, other: Value | None) -> int:
    """The same of what ``op`` makes of ``value``."""
    if other is None:
        return largest_rounding(word_limit(value), frac_of(value), op.out)
    frac, theirs = frac_of(value), frac_of(other)
    if frac is None or theirs is None:
        return 0
    most = max(frac, theirs)
    return largest_rounding((word_limit(value) << most - frac) + (word_limit(other) << most - theirs), most, op.out)
