"""``numerics/fixed_batch_norm.py`` on torch tensors, bit for bit: words and sums in float64, scalars in float32."""

from __future__ import annotations

from math import ldexp

from torch import Tensor

from espalier.ir.interpret import fixed
from espalier.ir.ops import (
    BatchMean,
    BatchNorm,
    BatchNormInputGrad,
    BatchNormOp,
    BatchNormScaleGrad,
    BatchVariance,
    BiasGrad,
    FrozenBatchNormInputGrad,
    RunningMean,
    RunningVariance,
)
from espalier.ir.types import Value
from espalier.numerics.batch_norm import FOLLOWING, unbiased
from espalier.numerics.fixed import Fixed
from espalier.train.convolve import Rounding
from espalier.train.scalars import add, inverse_root, mul, number, of_sum, of_words, sub, to_words

Affine = tuple[Tensor, Tensor]  #: the words that each channel is multiplied by, and those that are added then


def evaluate(op: BatchNormOp | BiasGrad, *args: Tensor) -> Tensor:
    """The result of one operation of a batch norm on words; a bias gradient is that of its shift."""
    match op:
        case BatchNorm(x=x):
            words, scale, shift, mean, variance = args
            affine = normalising(op, scale, shift, mean, inverse(variance, op.epsilon))
            return _affine(words, x, *affine, fixed(op.factor), op.out)
        case BatchMean(x=x):
            return batch_mean(x, _summed(args[0]), count(args[0]))
        case BatchVariance(x=x):
            words, mean = args
            return batch_variance(x, _summed(words.square()), mean, count(words))
        case RunningMean():
            return followed(args[0], args[1])
        case RunningVariance():
            return followed(args[0], args[1], count(args[2]))
        case BatchNormInputGrad():
            return _input_grad(op, *args)
        case FrozenBatchNormInputGrad(g=g):
            words, scale, variance = args
            times = factors(op, scale, inverse(variance, op.epsilon))
            return _affine(words, g, times, None, fixed(op.factor), op.out)
        case BiasGrad(g=g):
            return shift_grad(g, _summed(args[0]))
        case BatchNormScaleGrad(g=g):
            words_g, words_x, mean, variance = args
            return scale_grad(op, shift_grad(g, _summed(words_g)), _summed(words_g * words_x), mean,
                              inverse(variance, op.epsilon))


def count(x: Tensor) -> int:
    """How many values each channel has."""
    return x.numel() // x.shape[1]


def batch_mean(x: Value, total: Tensor, values: int) -> Tensor:
    """The mean of each channel, from the sum of its words."""
    return mul(of_sum(total, fixed(x.format).frac), number(1 / values))


def batch_variance(x: Value, squares: Tensor, mean: Tensor, values: int) -> Tensor:
    """The variance of each channel, from the sum of the squares of its words."""
    return sub(mul(of_sum(squares, 2 * fixed(x.format).frac), number(1 / values)), mul(mean, mean)).clamp_(min=0)


def followed(running: Tensor, batch: Tensor, values: int | None = None) -> Tensor:
    """The next running statistic; that of a variance of so many ``values`` counts as an estimate."""
    estimate = 1.0 if values is None else unbiased(values)
    return add(mul(running, number(1 - FOLLOWING)), mul(batch, number(FOLLOWING * estimate)))


def inverse(variance: Tensor, epsilon: float) -> Tensor:
    """``1 / sqrt(variance + epsilon)``."""
    return inverse_root(add(variance, number(epsilon)))


def factors(op: BatchNorm | BatchNormInputGrad | FrozenBatchNormInputGrad, scale: Tensor, inverted: Tensor) -> Tensor:
    """The words that each channel is multiplied by; ``inverted`` is the :func:`inverse`, here and below."""
    return to_words(mul(scale, inverted), fixed(op.factor))


def normalising(op: BatchNorm, scale: Tensor, shift: Tensor, mean: Tensor, inverted: Tensor) -> Affine:
    """The words of the forward pass."""
    words, factor = factors(op, scale, inverted), fixed(op.factor)
    return words, to_words(sub(shift, mul(mean, of_words(words, factor))), factor)


def shift_grad(g: Value, total: Tensor) -> Tensor:
    """The gradient of the shift, from the sum of each channel's words of ``g``."""
    return of_sum(total, fixed(g.format).frac)


def scale_grad(op: BatchNormScaleGrad | BatchNormInputGrad, shift_gradient: Tensor, products: Tensor, mean: Tensor,
               inverted: Tensor) -> Tensor:
    """The gradient of the scale, from that of the shift and the sum of each channel's products of ``g`` and ``x``."""
    whole = of_sum(products, fixed(op.g.format).frac + fixed(op.x.format).frac)
    return mul(sub(whole, mul(mean, shift_gradient)), inverted)


def through_statistics(op: BatchNormInputGrad, direct: Tensor, shift_gradient: Tensor, scale_gradient: Tensor,
                       mean: Tensor, inverted: Tensor, values: int) -> Affine:
    """The words that ``x`` is multiplied by in its gradient, and those added; ``direct``: the words of ``g``."""
    share, slope, factor = number(1 / values), fixed(op.slope), of_words(direct, fixed(op.factor))
    slopes = to_words(-mul(mul(mul(factor, inverted), scale_gradient), share), slope)
    flat = add(mul(mul(factor, shift_gradient), share), mul(of_words(slopes, slope), mean))
    return slopes, to_words(-flat, slope)


def _input_grad(op: BatchNormInputGrad, g: Tensor, x: Tensor, scale: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    inverted, shift_gradient = inverse(variance, op.epsilon), shift_grad(op.g, _summed(g))
    direct = factors(op, scale, inverted)
    scale_gradient = scale_grad(op, shift_gradient, _summed(g * x), mean, inverted)
    words = through_statistics(op, direct, shift_gradient, scale_gradient, mean, inverted, count(x))
    found = _affine(x, op.x, *words, fixed(op.slope), op.out)
    found += _affine(g, op.g, direct, None, fixed(op.factor), op.out)
    return found.clamp_(fixed(op.out.format).low, fixed(op.out.format).high)


def _affine(words: Tensor, x: Value, times: Tensor, plus: Tensor | None, factor: Fixed, out: Value) -> Tensor:
    """``words`` of ``x`` times one word a channel, plus another, rounded as a convolution rounds."""
    frac, format_ = fixed(x.format).frac, fixed(out.format)
    acc = words * _spread(times, words)
    if plus is not None:
        acc += _spread(plus * ldexp(1.0, frac), words)
    return Rounding(frac + factor.frac - format_.frac, format_.low, format_.high)(acc)


def _summed(words: Tensor) -> Tensor:
    return words.sum(dim=(0, *range(2, words.ndim)))


def _spread(channels: Tensor, x: Tensor) -> Tensor:
    return channels.view(-1, *(1,) * (x.ndim - 2))
