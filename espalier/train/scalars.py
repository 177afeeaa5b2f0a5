"""``numerics/scalar.py`` on torch tensors, bit for bit, on a CPU or a GPU: nothing here waits for the device."""

from __future__ import annotations

from functools import lru_cache
from math import ldexp

import torch
from torch import Tensor

from espalier.numerics.fixed import Fixed
from espalier.numerics.scalar import LARGEST, TINIEST


def scalar(exact: Tensor) -> Tensor:
    """Finite float64 numbers as scalars, float32."""
    return exact.masked_fill(exact.abs() < TINIEST, 0.0).clamp_(-LARGEST, LARGEST).float()


@lru_cache
def number(real: float) -> float:
    """The scalar nearest to a real number, for those functions that take one for all channels."""
    return float(scalar(torch.tensor(real, dtype=torch.float64)))


def add(a: Tensor, b: Tensor | float) -> Tensor:
    """``a + b``."""
    return scalar(a.double() + _wide(b))


def sub(a: Tensor, b: Tensor | float) -> Tensor:
    """``a - b``."""
    return scalar(a.double() - _wide(b))


def mul(a: Tensor, b: Tensor | float) -> Tensor:
    """``a * b``."""
    return scalar(a.double() * _wide(b))


def inverse_root(a: Tensor) -> Tensor:
    """``1 / sqrt(a)``, the root rounded before it is inverted; ``a`` is above zero."""
    return scalar(1.0 / scalar(a.double().sqrt()).double())


def of_sum(total: Tensor, frac: int) -> Tensor:
    """Whole numbers of up to 53 bits in float64, ``frac`` of them fraction bits, as scalars."""
    return scalar(total * ldexp(1.0, -frac))


def to_words(a: Tensor, format_: Fixed) -> Tensor:
    """The nearest words, in float64, of a format that rounds half up and saturates."""
    return a.double().mul_(ldexp(1.0, format_.frac)).add_(0.5).floor_().clamp_(format_.low, format_.high)


def of_words(words: Tensor, format_: Fixed) -> Tensor:
    """Words of up to 24 bits as scalars, exactly."""
    return of_sum(words, format_.frac)


def _wide(b: Tensor | float) -> Tensor | float:
    return b.double() if isinstance(b, Tensor) else b
