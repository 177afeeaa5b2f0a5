"""Arithmetic on the few real numbers of a channel: IEEE 754 binary32 without what hardware pays dearly for.

Each result is the exact one, rounded to nearest, ties to even, but for both ends of the range: below 2**-126 in
magnitude it is zero, and what would be infinite is the largest number. So there are no subnormal numbers, no infinities
and no NaN. Arrays are float32 throughout.

Rounding once to float64 and then to float32 gives the correctly rounded float32, for each of these operations
(Figueroa, "When is double rounding innocuous?", SIGNUM 1995: 53 >= 2 * 24 + 2); sums and products next to 2**-126 are
exact in float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from espalier.numerics.fixed import Fixed

Scalars = NDArray[np.float32]
TINIEST = 2.0 ** -126                          #: the least magnitude but zero
SUM_BITS = 53                                  #: of whole numbers that scalars are made of
LARGEST = float(np.finfo(np.float32).max)


def scalar(real: ArrayLike) -> Scalars:
    """Finite real numbers as scalars."""
    exact = np.asarray(real, np.float64)
    return np.clip(np.where(np.abs(exact) < TINIEST, 0.0, exact), -LARGEST, LARGEST).astype(np.float32)


def add(a: ArrayLike, b: ArrayLike) -> Scalars:
    """``a + b``."""
    return scalar(_wide(a) + _wide(b))


def sub(a: ArrayLike, b: ArrayLike) -> Scalars:
    """``a - b``."""
    return scalar(_wide(a) - _wide(b))


def mul(a: ArrayLike, b: ArrayLike) -> Scalars:
    """``a * b``."""
    return scalar(_wide(a) * _wide(b))


def inverse_root(a: ArrayLike) -> Scalars:
    """``1 / sqrt(a)``, the root rounded before it is inverted; ``a`` is above zero."""
    return scalar(1.0 / _wide(scalar(np.sqrt(_wide(a)))))


def of_sum(total: NDArray[np.int64], frac: int) -> Scalars:
    """Whole numbers of magnitude up to ``2**SUM_BITS``, ``frac`` of them fraction bits, as scalars."""
    return scalar(np.ldexp(total.astype(np.float64), -frac))


def to_words(a: ArrayLike, format_: Fixed) -> NDArray[np.int64]:
    """The nearest words of a format that rounds half up and saturates."""
    return format_.quantise(_wide(a))


def of_words(words: NDArray[np.int64], format_: Fixed) -> Scalars:
    """Words of up to 24 bits as scalars, exactly."""
    return of_sum(words, format_.frac)


def binary32(a: ArrayLike) -> int:
    """The bits of one scalar."""
    return int(scalar(a).view(np.uint32))


def _wide(a: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(a, np.float32).astype(np.float64)
