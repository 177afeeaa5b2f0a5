"""Batch norm on words, trained: what is done to each word in fixed point, what is done once a channel in scalars.

With ``x`` and ``g`` words of ``fx`` and ``fg`` fraction bits, ``n`` values a channel (images times pixels) and all
other operations those of ``scalar.py``:

    mean      = S(x) * (1/n)                                     S: the exact sum over images and pixels
    variance  = max(S(x*x) * (1/n) - mean * mean, 0)
    inverse   = 1 / sqrt(variance + epsilon)
    factor    = word(scale * inverse)                            a word; below, its value
    offset    = word(shift - mean * factor)
    y         = round(factor * x + offset)                       as a convolution rounds

    shift'    = S(g)
    scale'    = (S(g*x) - mean * shift') * inverse
    slope     = word(-(((factor * inverse) * scale') * (1/n)))   a word; below, its value
    intercept = word(-((factor * shift') * (1/n) + slope * mean))
    x'        = limit(limit(round(factor * g)) + limit(round(slope * x + intercept)))

Offset has the format of factor, and intercept that of slope. After Ioffe and Szegedy, "Batch Normalization" (ICML
2015): with exact arithmetic this is their step. Maps are (N, C, H, W) or (N, C), everything else is (C,).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from espalier.numerics.batch_norm import FOLLOWING
from espalier.numerics.fixed import Fixed
from espalier.numerics.scalar import Scalars, add, inverse_root, mul, of_sum, of_words, scalar, sub, to_words

Words = NDArray[np.int64]


def count(x: NDArray) -> int:
    """How many values each channel has."""
    return x.size // x.shape[1]


def share(values: int) -> Scalars:
    """``1/n``."""
    return scalar(1 / values)


def batch_mean(x: Words, x_frac: int) -> Scalars:
    """The mean of each channel."""
    return mul(of_sum(_summed(x), x_frac), share(count(x)))


def batch_variance(x: Words, x_frac: int, mean: Scalars) -> Scalars:
    """The variance of each channel, of all values: not an estimate."""
    return np.maximum(sub(mul(of_sum(_summed(x * x), 2 * x_frac), share(count(x))), mul(mean, mean)), np.float32(0))


def following(values: int | None = None) -> Scalars:
    """What a statistic of the batch counts; a variance of so many ``values`` as an estimate (n - 1)."""
    return scalar(FOLLOWING * (1.0 if values is None else values / max(1, values - 1)))


def followed(running: Scalars, batch: Scalars, values: int | None = None) -> Scalars:
    """The next running statistic; that of a variance has so many ``values``."""
    return add(mul(running, scalar(1 - FOLLOWING)), mul(batch, following(values)))


def inverse(variance: Scalars, epsilon: float) -> Scalars:
    """``1 / sqrt(variance + epsilon)``."""
    return inverse_root(add(variance, scalar(epsilon)))


def factor(scale: Scalars, variance: Scalars, epsilon: float, format_: Fixed) -> Words:
    """What each channel is multiplied by."""
    return to_words(mul(scale, inverse(variance, epsilon)), format_)


def offset(shift: Scalars, mean: Scalars, factors: Words, format_: Fixed) -> Words:
    """What is added to each channel then."""
    return to_words(sub(shift, mul(mean, of_words(factors, format_))), format_)


def shift_grad(g: Words, g_frac: int) -> Scalars:
    """The gradient of the shift, summed over the batch."""
    return of_sum(_summed(g), g_frac)


def scale_grad(g: Words, g_frac: int, x: Words, x_frac: int, mean: Scalars, variance: Scalars, epsilon: float
               ) -> Scalars:
    """The gradient of the scale, summed over the batch."""
    products = of_sum(_summed(g * x), g_frac + x_frac)
    return mul(sub(products, mul(mean, shift_grad(g, g_frac))), inverse(variance, epsilon))


def slope(factors: Scalars, variance: Scalars, epsilon: float, scale_gradient: Scalars, values: int, format_: Fixed
          ) -> Words:
    """What the input is multiplied by in its gradient; ``factors`` are the values of the words."""
    through = mul(mul(factors, inverse(variance, epsilon)), scale_gradient)
    return to_words(-mul(through, share(values)), format_)


def intercept(factors: Scalars, slopes: Scalars, mean: Scalars, shift_gradient: Scalars, values: int, format_: Fixed
              ) -> Words:
    """What is added in the input's gradient; ``factors`` and ``slopes`` are the values of the words."""
    return to_words(-add(mul(mul(factors, shift_gradient), share(values)), mul(slopes, mean)), format_)


def _summed(words: Words) -> Words:
    return words.sum(axis=(0, *range(2, words.ndim)))
