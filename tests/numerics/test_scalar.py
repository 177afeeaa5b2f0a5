"""Scalars against exact fractions: correctly rounded, no subnormal numbers, nothing infinite."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.numerics import scalar
from espalier.numerics.fixed import Fixed
from espalier.numerics.scalar import LARGEST, TINIEST, Scalars

CASES = settings(deadline=None, derandomize=True, max_examples=300)


def exactly(value: Fraction) -> float:
    """The definition of a result: flushed, rounded once to 24 bits with ties to even, saturated."""
    if abs(value) < Fraction(TINIEST):
        return 0.0
    exponent = abs(value.numerator).bit_length() - value.denominator.bit_length()
    exponent -= abs(value) < Fraction(2) ** exponent  # 2**exponent <= |value| < 2**(exponent + 1)
    unit = Fraction(2) ** (exponent - 23)
    return max(-LARGEST, min(LARGEST, float(round(value / unit) * unit) if exponent < 128 else LARGEST * (
        1 if value > 0 else -1)))


def numbers() -> st.SearchStrategy[float]:
    """Scalars of all magnitudes, and ends of their range."""
    ends = [0.0, TINIEST, -TINIEST, LARGEST, -LARGEST, 1.0, 1 + 2.0 ** -23, 1 - 2.0 ** -24, 2.0 ** -24]
    return st.sampled_from(ends) | st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)


def one(real: float) -> Scalars:
    return np.array([real], np.float32)


@CASES
@given(numbers(), numbers())
def test_sums_and_products_are_rounded_once(a: float, b: float) -> None:
    for operation, value in ((scalar.add, Fraction(a) + Fraction(b)), (scalar.sub, Fraction(a) - Fraction(b)),
                             (scalar.mul, Fraction(a) * Fraction(b))):
        found = operation(one(a), one(b))
        assert found.dtype == np.float32 and found.tolist() == [exactly(value)]


@CASES
@given(st.floats(TINIEST, LARGEST, width=32))
def test_inverse_roots_are_near(a: float) -> None:
    """Two roundings: within 2**-23 of the value, which neither is too small nor too large."""
    found = float(scalar.inverse_root(one(a))[0])
    assert abs(found * np.sqrt(a) - 1) <= 2.0 ** -23


@CASES
@given(st.integers(-2 ** 53, 2 ** 53), st.integers(-62, 62))
def test_sums_of_words_are_rounded_once(total: int, frac: int) -> None:
    assert scalar.of_sum(np.array([total]), frac).tolist() == [exactly(Fraction(total) / Fraction(2) ** frac)]


@CASES
@given(numbers(), st.integers(2, 16), st.integers(-32, 40))
def test_words_are_the_nearest(a: float, width: int, frac: int) -> None:
    format_ = Fixed.of(width, frac)
    nearest = (Fraction(a) * Fraction(2) ** frac + Fraction(1, 2)).__floor__()
    [word] = scalar.to_words(one(a), format_).tolist()
    assert word == max(format_.low, min(format_.high, nearest))
    assert float(scalar.of_words(np.array([word]), format_)[0]) == word * 2.0 ** -frac


@pytest.mark.parametrize(("real", "expected"), [
    (2.0 ** -126, 2.0 ** -126), (2.0 ** -126 * (1 - 2.0 ** -30), 0.0), (-2.0 ** -127, 0.0), (1e39, LARGEST),
    (-1e300, -LARGEST), (1 + 2.0 ** -24, 1.0), (1 + 3 * 2.0 ** -24, 1 + 2.0 ** -22), (-0.0, 0.0)])
def test_by_hand(real: float, expected: float) -> None:
    [found] = scalar.scalar([real]).tolist()
    assert found == expected and not np.signbit(scalar.scalar([-0.0]))[0]
