"""The proof that float64 carries an operation exactly: bounds from formats and shapes alone.

A float64 holds every whole number of magnitude up to 2**53. If the magnitudes of all terms of a sum add
up to no more, every partial sum, in any order, is exact.
"""

from __future__ import annotations

from math import prod
from typing import assert_never

from espalier.errors import FormatError
from espalier.ir.interpret import fixed, reads_words
from espalier.ir.ops import (
    Add,
    AveragePool,
    AveragePoolGrad,
    BatchMean,
    BatchNorm,
    BatchNormInputGrad,
    BatchNormOp,
    BatchNormScaleGrad,
    BatchVariance,
    BiasGrad,
    ClippedRelu,
    ClippedReluGrad,
    Concat,
    ConcatGrad,
    Conv2d,
    Conv2dInputGrad,
    Conv2dWeightGrad,
    FrozenBatchNormInputGrad,
    GlobalAveragePool,
    GlobalAveragePoolGrad,
    Linear,
    LinearInputGrad,
    LinearWeightGrad,
    MaxPool,
    MaxPoolGrad,
    Op,
    Relu,
    ReluGrad,
    Reshape,
    RunningMean,
    RunningVariance,
    SoftmaxCrossEntropy,
    SoftmaxCrossEntropyGrad,
    SquareHinge,
    SquareHingeGrad,
)
from espalier.ir.types import Value
from espalier.numerics.activation import AVERAGE_FRAC, average_reciprocal
from espalier.numerics.fixed import Fixed
from espalier.numerics.window import Window

EXACT = 1 << 53  #: float64 holds every whole number up to here


def check_exact(op: Op, batch: int) -> None:
    """Raise FormatError unless float64 carries ``op`` on ``batch`` images exactly (float values always pass)."""
    if not reads_words(op) or isinstance(
            op, SoftmaxCrossEntropy | SquareHinge | SoftmaxCrossEntropyGrad | SquareHingeGrad):
        return  # losses are computed in int64
    total, frac = accumulator(op, batch)
    shift = frac - op.out.format.frac if isinstance(op.out.format, Fixed) else 0  # scalars are rounded by themselves
    half = 1 << shift - 1 if 0 < shift <= 53 else 0  # beyond 53 the result is zero, without a sum
    if total + half > EXACT:
        raise FormatError(f"The training path carries sums of up to 53 bits, and {type(op).__name__} {op.out} of "
                          f"{batch} images needs {(total + half - 1).bit_length()}: take smaller batches or narrower "
                          f"formats")


def accumulator(op: Op, batch: int) -> tuple[int, int]:
    """The largest possible sum of magnitudes, and its fraction bits, before the rounding of a fixed-point ``op``."""
    match op:
        case Conv2d(x=x, w=w, b=b) | Linear(x=x, w=w, b=b):
            frac = _frac(x) + _frac(w)
            bias = 0 if b is None else _largest(b) << frac - _frac(b)
            return prod(w.shape[1:]) * _largest(x) * _largest(w) + bias, frac
        case Conv2dInputGrad(g=g, w=w, groups=groups):
            taps = w.shape[0] // groups * prod(w.shape[2:])
            return taps * _largest(g) * _largest(w), _frac(g) + _frac(w)
        case LinearInputGrad(g=g, w=w):
            return w.shape[0] * _largest(g) * _largest(w), _frac(g) + _frac(w)
        case Conv2dWeightGrad(x=x, g=g) | LinearWeightGrad(x=x, g=g):
            return batch * prod(g.shape[1:]) * _largest(x) * _largest(g), _frac(x) + _frac(g)
        case BiasGrad(g=g):
            return batch * prod(g.shape[1:]) * _largest(g), _frac(g)
        case AveragePool(x=x, window=window) | AveragePoolGrad(g=x, window=window):
            return _mean(x, prod(window.kernel))
        case GlobalAveragePool(x=x):
            return _mean(x, prod(x.shape[1:]))
        case GlobalAveragePoolGrad(g=x):
            return _mean(x, prod(op.out.shape[1:]))
        case Concat(a=a, b=b):  # each part is rounded by itself
            frac = max(_frac(a), _frac(b))
            return max(_largest(value) << frac - _frac(value) for value in (a, b)), frac
        case Add(a=a, b=b):
            frac = max(_frac(a), _frac(b))
            return (_largest(a) << frac - _frac(a)) + (_largest(b) << frac - _frac(b)), frac
        case MaxPoolGrad(g=g, window=window):
            return _overlap(window) * _largest(g), _frac(g)
        case (Relu(x=x) | ClippedRelu(x=x) | MaxPool(x=x) | Reshape(x=x) | ReluGrad(g=x) | ClippedReluGrad(g=x)
              | ConcatGrad(g=x)):
            return _largest(x), _frac(x)
        case (BatchNorm() | BatchMean() | BatchVariance() | RunningMean() | RunningVariance() | BatchNormInputGrad()
              | FrozenBatchNormInputGrad() | BatchNormScaleGrad()):
            return _batch_norm(op, batch)
        case SoftmaxCrossEntropy() | SquareHinge() | SoftmaxCrossEntropyGrad() | SquareHingeGrad():
            return _largest(op.out), _frac(op.out)
        case _:
            assert_never(op)


def _batch_norm(op: BatchNormOp, batch: int) -> tuple[int, int]:
    match op:
        case BatchNorm(x=x):
            factor = fixed(op.factor)
            return _magnitude(factor) * (_largest(x) + (1 << _frac(x))), _frac(x) + factor.frac
        case BatchMean(x=x):
            return batch * prod(x.shape[1:]) * _largest(x), _frac(x)
        case BatchVariance(x=x):
            return batch * prod(x.shape[1:]) * _largest(x) ** 2, 2 * _frac(x)
        case RunningMean() | RunningVariance():
            return 0, 0
        case BatchNormInputGrad(g=g, x=x):  # of several sums the largest, after which each is rounded by itself
            factor, slope = fixed(op.factor), fixed(op.slope)
            products = batch * prod(x.shape[1:]) * _largest(x) * _largest(g)
            affine = _magnitude(slope) * (_largest(x) + (1 << _frac(x)))
            return (max(products, affine, _largest(g) * _magnitude(factor)),
                    max(_frac(x) + slope.frac, _frac(g) + factor.frac))
        case FrozenBatchNormInputGrad(g=g):
            factor = fixed(op.factor)
            return _largest(g) * _magnitude(factor), _frac(g) + factor.frac
        case BatchNormScaleGrad(x=x, g=g):
            return batch * prod(x.shape[1:]) * _largest(x) * _largest(g), _frac(x) + _frac(g)
        case _:
            assert_never(op)


def _format(value: Value) -> Fixed:
    assert isinstance(value.format, Fixed), f"{value} is not in fixed point"
    return value.format


def _frac(value: Value) -> int:
    return _format(value).frac


def _largest(value: Value) -> int:
    return _magnitude(_format(value))


def _magnitude(format_: Fixed) -> int:
    return max(-format_.low, format_.high)


def _mean(x: Value, count: int) -> tuple[int, int]:
    return count * _largest(x) * average_reciprocal(count), _frac(x) + AVERAGE_FRAC


def _overlap(window: Window) -> int:
    """How many windows can cover one position."""
    return prod(-(-(d * (k - 1) + 1) // s)
                for k, s, d in zip(window.kernel, window.stride, window.dilation, strict=True))
