"""The definition of a graph's meaning: slow, obvious, exact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from espalier.errors import GraphError
from espalier.ir.graph import Graph
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
    LossGradOp,
    LossOp,
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
from espalier.ir.types import Fixed, Float, Format, Value
from espalier.numerics import activation, batch_norm, convolution, fixed_batch_norm, loss
from espalier.numerics.activation import AVERAGE_FRAC, average_reciprocal
from espalier.numerics.scalar import of_words
from espalier.numerics.window import Window

UNIT = Window((1, 1))


def interpret(graph: Graph, tensors: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """Run ``graph`` on ``tensors`` (inputs with a batch axis first, and parameters, by name).

    Returns every value by name: inputs, parameters and all results. Fixed-point values are int64
    words, float values float64, the scalars of a batch norm of words float32. Raises GraphError when a
    tensor is missing or has the wrong shape.
    """
    known: dict[str, NDArray] = {}
    for value in (*graph.inputs, *graph.parameters):
        if value.name not in tensors:
            raise GraphError(f"Graph {graph.name!r} needs a tensor for {value}")
        array = np.asarray(tensors[value.name])
        shape = array.shape[1:] if value in graph.inputs else array.shape
        if shape != value.shape:
            raise GraphError(f"The tensor for {value} has shape {shape}")
        known[value.name] = array
    for op in graph.ops:
        known[op.out.name] = evaluate(op, *(known[value.name] for value in op.inputs))
    return known


def rounded(acc: NDArray, frac: int | None, out: Value) -> NDArray:
    """``acc`` with ``frac`` fraction bits, rounded half up and limited into the format of ``out``.

    ``frac`` is None for float, which stays as it is.
    """
    if not isinstance(out.format, Fixed) or frac is None:
        return acc
    shift = frac - out.format.frac
    return out.format.limit((acc + ((1 << shift) >> 1)) >> shift if shift >= 0 else acc << -shift)


def product_frac(a: Value, b: Value) -> int | None:
    """Fraction bits of a product of two values; None in float."""
    match a.format, b.format:
        case Fixed() as fa, Fixed() as fb:
            return fa.frac + fb.frac
        case _:
            return None


def frac_of(value: Value) -> int | None:
    """Fraction bits of a value; None in float."""
    return value.format.frac if isinstance(value.format, Fixed) else None


def fixed(format_: Format | None) -> Fixed:
    """The format of words, which it is."""
    assert isinstance(format_, Fixed), f"{format_} is not fixed point"
    return format_


def units(bound: int, value: Value) -> int:
    """The whole number ``bound`` in units of ``value``: the word of that number, or in float the number."""
    frac = frac_of(value) or 0
    return bound << frac if frac >= 0 else bound >> -frac


def aligned_bias(op: Conv2d | Linear, bias: NDArray) -> NDArray:
    """The bias at the scale of the layer's accumulator."""
    acc_frac = product_frac(op.x, op.w)
    if acc_frac is None or op.b is None:
        return bias
    assert isinstance(op.b.format, Fixed), "a fixed-point layer has a fixed-point bias"
    return bias << (acc_frac - op.b.format.frac)


def evaluate(op: Op, *args: NDArray) -> NDArray:
    """The result of one operation on the arrays of its inputs, batch axis first."""
    match op:
        case Conv2d(window=window, groups=groups):
            acc = convolution.conv2d(args[0], args[1], window, groups)
            if op.b is not None:
                acc = acc + aligned_bias(op, args[2])[:, None, None]
            return rounded(acc, product_frac(op.x, op.w), op.out)
        case Linear():
            acc = args[0] @ args[1].T
            if op.b is not None:
                acc = acc + aligned_bias(op, args[2])
            return rounded(acc, product_frac(op.x, op.w), op.out)
        case Relu():
            return rounded(activation.relu(args[0]), frac_of(op.x), op.out)
        case ClippedRelu(bound=bound):
            return rounded(activation.clipped_relu(args[0], units(bound, op.x)), frac_of(op.x), op.out)
        case MaxPool(window=window):
            return rounded(activation.max_pool(args[0], window)[0], frac_of(op.x), op.out)
        case AveragePool(window=window):
            return _mean(activation.sum_pool(args[0], window), window.kernel[0] * window.kernel[1], op.x, op.out)
        case GlobalAveragePool():
            return _mean(args[0].sum(axis=(2, 3), keepdims=True), args[0].shape[2] * args[0].shape[3], op.x, op.out)
        case Add():
            return _sum(op, *args)
        case Concat():
            return activation.concat(rounded(args[0], frac_of(op.a), op.out), rounded(args[1], frac_of(op.b), op.out))
        case Reshape():
            return rounded(args[0].reshape(-1, *op.out.shape), frac_of(op.x), op.out)
        case SoftmaxCrossEntropy() | SquareHinge() | SoftmaxCrossEntropyGrad() | SquareHingeGrad():
            return _loss(op, *args)
        case Conv2dInputGrad(window=window, groups=groups):
            acc = convolution.conv2d_input_grad(args[0], args[1], window, op.out.map_shape[1:], groups)
            return rounded(acc, product_frac(op.g, op.w), op.out)
        case Conv2dWeightGrad(window=window, groups=groups):
            acc = convolution.conv2d_weight_grad(args[0], args[1], window, groups)
            return rounded(acc, product_frac(op.x, op.g), op.out)
        case LinearInputGrad():
            return rounded(args[0] @ args[1], product_frac(op.g, op.w), op.out)
        case LinearWeightGrad():
            return rounded(args[1].T @ args[0], product_frac(op.x, op.g), op.out)
        case BiasGrad(g=Value(format=Fixed(frac=frac)), out=Value(format=Float())):
            return fixed_batch_norm.shift_grad(args[0], frac)
        case BiasGrad():
            return rounded(args[0].reshape(*args[0].shape[:2], -1).sum(axis=(0, 2)), frac_of(op.g), op.out)
        case (BatchNorm() | BatchMean() | BatchVariance() | RunningMean() | RunningVariance() | BatchNormInputGrad()
              | FrozenBatchNormInputGrad() | BatchNormScaleGrad()):
            return _batch_norm_of_words(op, *args) if reads_words(op) else _batch_norm(op, *args)
        case ReluGrad():
            return rounded(activation.relu_grad(*args), frac_of(op.g), op.out)
        case ClippedReluGrad(bound=bound):
            return rounded(activation.clipped_relu_grad(args[0], args[1], units(bound, op.y)), frac_of(op.g), op.out)
        case ConcatGrad(first=first):
            return rounded(activation.concat_grad(args[0], first, op.out.shape[0]), frac_of(op.g), op.out)
        case MaxPoolGrad(window=window):
            argmax = activation.max_pool(args[1], window)[1]
            scattered = activation.max_pool_grad(args[0], argmax, window, op.out.map_shape[1:])
            return rounded(scattered, frac_of(op.g), op.out)
        case AveragePoolGrad(window=window):
            scattered = activation.sum_pool_grad(args[0], window, op.out.map_shape[1:])
            return _mean(scattered, window.kernel[0] * window.kernel[1], op.g, op.out)
        case GlobalAveragePoolGrad():
            _, height, width = op.out.map_shape
            return _mean(np.broadcast_to(args[0], (len(args[0]), *op.out.shape)), height * width, op.g, op.out)
        case _:
            assert_never(op)


def _mean(total: NDArray, count: int, x: Value, out: Value) -> NDArray:
    frac = frac_of(x)
    if frac is None:
        return total / count
    return rounded(total * average_reciprocal(count), frac + AVERAGE_FRAC, out)


def _sum(op: Add, a: NDArray, b: NDArray) -> NDArray:
    frac_a, frac_b = frac_of(op.a), frac_of(op.b)
    if frac_a is None or frac_b is None:
        return a + b
    frac = max(frac_a, frac_b)
    return rounded((a << (frac - frac_a)) + (b << (frac - frac_b)), frac, op.out)


def reads_words(op: Op) -> bool:
    """Whether any value that the operation reads is in fixed point."""
    return any(isinstance(value.format, Fixed) for value in op.inputs)


def _batch_norm(op: BatchNormOp, *args: NDArray) -> NDArray:
    match op:
        case BatchNorm(epsilon=epsilon):
            return batch_norm.normalised(*args, epsilon=epsilon)
        case BatchMean():
            return batch_norm.batch_mean(args[0])
        case BatchVariance():
            return batch_norm.batch_variance(*args)
        case RunningMean():
            running, batch, _ = args
            return batch_norm.followed(running, batch)
        case RunningVariance():
            running, batch, x = args
            return batch_norm.followed(running, batch * batch_norm.unbiased(x.size // len(running)))
        case BatchNormInputGrad(epsilon=epsilon):
            return batch_norm.input_grad(*args, epsilon=epsilon)
        case FrozenBatchNormInputGrad(epsilon=epsilon):
            return batch_norm.frozen_input_grad(*args, epsilon=epsilon)
        case BatchNormScaleGrad(epsilon=epsilon):
            return batch_norm.scale_grad(*args, epsilon=epsilon)


def _batch_norm_of_words(op: BatchNormOp, *args: NDArray) -> NDArray:
    match op:
        case BatchNorm(x=x, epsilon=epsilon):
            words, scale, shift, mean, variance = args
            factor = fixed(op.factor)
            factors = fixed_batch_norm.factor(scale, variance, epsilon, factor)
            offsets = fixed_batch_norm.offset(shift, mean, factors, factor)
            return _affine(words, x, factors, offsets, factor, op.out)
        case BatchMean(x=x):
            return fixed_batch_norm.batch_mean(args[0], fixed(x.format).frac)
        case BatchVariance(x=x):
            return fixed_batch_norm.batch_variance(args[0], fixed(x.format).frac, args[1])
        case RunningMean():
            return fixed_batch_norm.followed(args[0], args[1])
        case RunningVariance():
            return fixed_batch_norm.followed(args[0], args[1], fixed_batch_norm.count(args[2]))
        case BatchNormInputGrad():
            return _input_grad_of_words(op, *args)
        case FrozenBatchNormInputGrad(g=g, epsilon=epsilon):
            factor = fixed(op.factor)
            return _affine(args[0], g, fixed_batch_norm.factor(args[1], args[2], epsilon, factor), None, factor, op.out)
        case BatchNormScaleGrad(g=g, x=x, epsilon=epsilon):
            words_g, words_x, mean, variance = args
            return fixed_batch_norm.scale_grad(words_g, fixed(g.format).frac, words_x, fixed(x.format).frac, mean,
                                               variance, epsilon)


def _input_grad_of_words(op: BatchNormInputGrad, g: NDArray, x: NDArray, scale: NDArray, mean: NDArray,
                         variance: NDArray) -> NDArray:
    factor, slope, g_frac, x_frac = fixed(op.factor), fixed(op.slope), fixed(op.g.format).frac, fixed(op.x.format).frac
    count = fixed_batch_norm.count(x)
    factors = fixed_batch_norm.factor(scale, variance, op.epsilon, factor)
    values = of_words(factors, factor)
    shift_grad = fixed_batch_norm.shift_grad(g, g_frac)
    scale_grad = fixed_batch_norm.scale_grad(g, g_frac, x, x_frac, mean, variance, op.epsilon)
    slopes = fixed_batch_norm.slope(values, variance, op.epsilon, scale_grad, count, slope)
    intercepts = fixed_batch_norm.intercept(values, of_words(slopes, slope), mean, shift_grad, count, slope)
    through = _affine(x, op.x, slopes, intercepts, slope, op.out)
    return fixed(op.out.format).limit(_affine(g, op.g, factors, None, factor, op.out) + through)


def _affine(words: NDArray, x: Value, factors: NDArray, offsets: NDArray | None, factor: Fixed, out: Value) -> NDArray:
    """``words`` of ``x`` times one word a channel, plus another, rounded as a convolution rounds."""
    frac = fixed(x.format).frac
    acc = words * batch_norm.spread(factors, words)
    if offsets is not None:
        acc = acc + (batch_norm.spread(offsets, words) << frac)
    return rounded(acc, frac + factor.frac, out)


def _loss(op: LossOp | LossGradOp, logits: NDArray, labels: NDArray) -> NDArray:
    frac = frac_of(op.logits)
    if frac is None:
        return _float_loss(op, logits, labels)
    grad = op.out.format
    assert isinstance(grad, Fixed)
    match op:
        case SoftmaxCrossEntropy():
            return loss.SoftmaxCrossEntropy(logit_frac=frac, grad_width=2, grad_frac=0).loss(logits, labels)
        case SoftmaxCrossEntropyGrad():
            return loss.SoftmaxCrossEntropy(
                logit_frac=frac, grad_width=grad.width, grad_frac=grad.frac).grad(logits, labels)
        case SquareHinge():
            return loss.SquareHinge(logit_frac=frac, grad_width=2, grad_frac=0).loss(logits, labels)
        case SquareHingeGrad():
            return loss.SquareHinge(
                logit_frac=frac, grad_width=grad.width, grad_frac=grad.frac).grad(logits, labels)


def _float_loss(op: LossOp | LossGradOp, logits: NDArray, labels: NDArray) -> NDArray:
    onehot = np.arange(logits.shape[1]) == labels[:, None]
    match op:
        case SoftmaxCrossEntropy() | SoftmaxCrossEntropyGrad():
            shifted = logits - logits.max(axis=1, keepdims=True)
            log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
            return -log_p[onehot] if isinstance(op, SoftmaxCrossEntropy) else np.exp(log_p) - onehot
        case _:
            target = np.where(onehot, 1.0, -1.0)
            difference = np.where(target * logits < 1, logits - target, 0)
            return (difference ** 2).sum(axis=1) / 2 if isinstance(op, SquareHinge) else difference
