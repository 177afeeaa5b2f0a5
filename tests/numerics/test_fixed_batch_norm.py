"""Batch norm on words: sums and factors within their rounding of the float one, and the ends of ranges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.numerics import batch_norm
from espalier.numerics import fixed_batch_norm as words_norm
from espalier.numerics.fixed import Fixed
from espalier.numerics.scalar import LARGEST, of_words, scalar

CASES = settings(deadline=None, derandomize=True, max_examples=60)
EPSILON = 1e-5
ROUNDING = 2.0 ** -20  #: relative: some roundings to 24 bits, one after another


def drawn(seed: int, shape: tuple[int, ...], format_: Fixed, spread: float) -> np.ndarray:
    """Words of a normal distribution, each channel with its own mean."""
    random = np.random.default_rng(seed)
    means = random.uniform(-1, 1, (1, shape[1], *(1,) * (len(shape) - 2))) * format_.high / 2
    return format_.limit(np.rint(random.normal(means, spread * format_.high, shape)).astype(np.int64))


shapes = st.sampled_from([(2, 3), (5, 1), (4, 3, 2, 5), (1, 2, 4, 4)])
spreads = st.sampled_from([0.0, 0.002, 0.1, 0.5])


@CASES
@given(st.integers(0, 2 ** 32 - 1), shapes, st.integers(4, 16), st.integers(-4, 14), spreads)
def test_statistics_are_those_of_float(seed: int, shape: tuple[int, ...], width: int, frac: int, spread: float) -> None:
    """A variance is off by the rounding of the mean of squares, which may be much larger than it is."""
    format_ = Fixed.of(width, frac)
    x = drawn(seed, shape, format_, spread)
    mean = words_norm.batch_mean(x, frac)
    variance = words_norm.batch_variance(x, frac, mean)
    real = format_.values(x)
    squares = batch_norm.batch_mean(real ** 2)
    exact = batch_norm.batch_mean(real)
    assert (np.abs(mean - exact) <= ROUNDING * np.abs(exact)).all()
    assert (np.abs(variance - batch_norm.batch_variance(real, exact)) <= ROUNDING * squares).all()
    assert (variance >= 0).all() and mean.dtype == variance.dtype == np.float32


@CASES
@given(st.integers(0, 2 ** 32 - 1), shapes, spreads.filter(bool))
def test_factors_and_gradients_are_those_of_float(seed: int, shape: tuple[int, ...], spread: float) -> None:
    """``factor * x + offset`` and ``factor * g + slope * x + intercept``, but for the words' last bits."""
    random, x_format, g_format = np.random.default_rng(seed), Fixed.of(16, 12), Fixed.of(16, 14)
    x, g = drawn(seed, shape, x_format, spread), drawn(seed + 1, shape, g_format, 0.2)
    channels, n = shape[1], x.size // shape[1]
    scale, shift = scalar(random.uniform(-2, 2, channels)), scalar(random.normal(size=channels))
    mean = words_norm.batch_mean(x, 12)
    variance = scalar(words_norm.batch_variance(x, 12, mean) + np.float32(0.01))
    real_x, real_g = x_format.values(x), g_format.values(g)

    factor = Fixed.of(40, 24)  # so wide that words lose next to nothing
    factors = words_norm.factor(scale, variance, EPSILON, factor)
    offsets = words_norm.offset(shift, mean, factors, factor)
    y = real_x * batch_norm.spread(factor.values(factors), x) + batch_norm.spread(factor.values(offsets), x)
    near(y, batch_norm.normalised(real_x, scale, shift, mean, variance, epsilon=EPSILON),
         np.abs(real_x * batch_norm.spread(factor.values(factors), x)).max() + np.abs(shift).max())

    shift_grad = words_norm.shift_grad(g, 14)
    scale_grad = words_norm.scale_grad(g, 14, x, 12, mean, variance, EPSILON)
    expected = batch_norm.scale_grad(real_g, real_x, mean, variance, epsilon=EPSILON)
    size = np.abs(batch_norm.spread(1 / np.sqrt(variance), x) * real_x * real_g).sum()
    near(shift_grad, real_g.sum(axis=(0, *range(2, x.ndim))), np.abs(real_g).sum())
    near(scale_grad, expected, size)

    slope, values = Fixed.of(40, 24), of_words(factors, factor)
    slopes = words_norm.slope(values, variance, EPSILON, scale_grad, n, slope)
    intercepts = words_norm.intercept(values, of_words(slopes, slope), mean, shift_grad, n, slope)
    found = (real_g * batch_norm.spread(values, x) + real_x * batch_norm.spread(slope.values(slopes), x)
             + batch_norm.spread(slope.values(intercepts), x))
    expected = batch_norm.input_grad(real_g, real_x, scale, mean, variance, epsilon=EPSILON)
    near(found, expected, np.abs(batch_norm.spread(values, x)).max() * (1 + size))


def near(found: np.ndarray, expected: np.ndarray, size: float) -> None:
    """``size``: of the largest number on the way."""
    assert np.abs(found - expected).max() <= ROUNDING * size


def test_words_by_hand() -> None:
    """Two values a channel, of 4 fraction bits: 1 and 3, then 2 and 2."""
    x = np.array([[16, 32], [48, 32]])
    mean = words_norm.batch_mean(x, 4)
    variance = words_norm.batch_variance(x, 4, mean)
    assert (mean.tolist(), variance.tolist()) == ([2.0, 2.0], [1.0, 0.0])
    factor = Fixed.of(8, 4)
    scale, shift = scalar([1.5, 0.25]), scalar([0.5, -1.0])
    factors = words_norm.factor(scale, variance, 0.0625, factor)
    assert factors.tolist() == [23, 16]  # 1.4552 and 1
    assert words_norm.offset(shift, mean, factors, factor).tolist() == [-38, -48]  # 0.5 - 2 * 1.4375, -1 - 2
    g = np.array([[8, 4], [24, -4]])
    assert words_norm.shift_grad(g, 4).tolist() == [2.0, 0.0]
    gradient = words_norm.scale_grad(g, 4, x, 4, mean, variance, 0.0625)
    assert gradient.tolist() == [1 / np.float32(1.0625 ** 0.5), 0.0]  # (5 - 2 * 2) / sqrt(1.0625)
    slopes = words_norm.slope(of_words(factors, factor), variance, 0.0625, gradient, 2, factor)
    assert slopes.tolist() == [-11, 0]  # -1.4375 / 1.0625 / 2 = -0.6765
    assert words_norm.intercept(of_words(factors, factor), of_words(slopes, factor), mean, scalar([2.0, 0.0]), 2,
                                factor).tolist() == [-1, 0]  # -(1.4375 - 0.6875 * 2)


def test_running_statistics_follow_as_in_float() -> None:
    running, batch = scalar([1.0, -3.0]), scalar([2.0, 5.0])
    assert np.allclose(words_norm.followed(running, batch), batch_norm.followed(running, batch), rtol=ROUNDING)
    expected = batch_norm.followed(running, batch * batch_norm.unbiased(4))
    assert np.allclose(words_norm.followed(running, batch, 4), expected, rtol=ROUNDING)
    assert words_norm.followed(running, batch, 1).tolist() == words_norm.followed(running, batch).tolist()


@pytest.mark.parametrize(("scale", "variance", "words"), [
    (1.0, 0.0, 127), (-1.0, 0.0, -128), (0.0, 0.0, 0), (LARGEST, LARGEST, 127), (1.0, LARGEST, 0), (-1e-20, 1.0, 0)])
def test_factors_saturate_at_the_ends(scale: float, variance: float, words: int) -> None:
    assert words_norm.factor(scalar([scale]), scalar([variance]), EPSILON, Fixed.of(8, 4)).tolist() == [words]


def test_largest_sums() -> None:
    """2**15 words at the end of 16 bits: their squares sum to 2**45."""
    x = np.full((2, 1, 128, 128), -32768)
    mean = words_norm.batch_mean(x, 0)
    assert mean.tolist() == [-32768.0] and words_norm.batch_variance(x, 0, mean).tolist() == [0.0]
    assert words_norm.scale_grad(x, 0, x, 0, mean, scalar([1.0]), 0.25).tolist() == [0.0]
