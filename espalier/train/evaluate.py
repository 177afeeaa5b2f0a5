"""The exact equivalent of ``ir/interpret.py`` on torch tensors, on a CPU or a GPU.

Fixed-point words are carried in float64, which is exact here (``exact.py`` proves it for each
operation); float values and scalars in float32; labels in int64. Nothing waits for the device (hence no
``torch.where`` with plain numbers, which copies them there), so that a whole training step can be
captured as one CUDA graph. On a CPU ``native_step.py`` does a step in fixed point much faster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import ldexp, prod
from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from espalier.errors import GraphError
from espalier.ir.graph import Graph
from espalier.ir.interpret import frac_of, product_frac, reads_words, units
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
from espalier.ir.types import Float, Format, Index, Value
from espalier.numerics.activation import AVERAGE_FRAC, average_reciprocal
from espalier.numerics.batch_norm import FOLLOWING, unbiased
from espalier.numerics.fixed import Fixed, Overflow
from espalier.numerics.window import Window
from espalier.train import fixed_batch_norm, loss_unit
from espalier.train.convolve import (
    Rounding,
    conv2d,
    conv2d_input_grad,
    conv2d_weight_grad,
    linear,
    linear_input_grad,
    linear_weight_grad,
    windows,
)
from espalier.train.exact import check_exact


def run(graph: Graph, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Run ``graph`` on ``tensors`` (inputs with a batch axis first, and parameters, by name).

    Returns every value by name: inputs, parameters and all results.

    Raises
    ------
    GraphError
        A tensor is missing or has the wrong shape.
    FormatError
        An operation's sums could leave the range in which float64 is exact.
    """
    known: dict[str, Tensor] = {}
    for value in (*graph.inputs, *graph.parameters):
        if value.name not in tensors:
            raise GraphError(f"Graph {graph.name!r} needs a tensor for {value}")
        tensor = tensors[value.name]
        shape = tuple(tensor.shape[1:] if value in graph.inputs else tensor.shape)
        if shape != value.shape:
            raise GraphError(f"The tensor for {value} has shape {shape}")
        known[value.name] = tensor
    run_ops(graph.ops, known)
    return known


def run_ops(ops: Iterable[Op], known: dict[str, Tensor]) -> None:
    """Add the results of ``ops``, in order, to the values known by name."""
    for op in ops:
        known[op.out.name] = evaluate(op, *(known[value.name] for value in op.inputs))


def element_type(format_: Format) -> torch.dtype:
    """The torch type that carries elements of a format."""
    match format_:
        case Fixed():
            return torch.float64
        case Float():
            return torch.float32
        case Index():
            return torch.int64
        case _:
            assert_never(format_)


def to_tensor(array: NDArray, format_: Format, device: torch.device | str = "cpu") -> Tensor:
    """A tensor on ``device`` that carries the words (or numbers) of ``array``; it shares no memory with it."""
    return torch.tensor(np.ascontiguousarray(array), dtype=element_type(format_), device=device)


def to_array(tensor: Tensor, format_: Format) -> NDArray:
    """The words as int64, or float32 numbers, of a tensor on any device."""
    array = tensor.detach().cpu().numpy()
    return array.astype(np.int64) if isinstance(format_, Fixed | Index) else array


def evaluate(op: Op, *args: Tensor) -> Tensor:
    """The result of one operation on the tensors of its inputs, batch axis first.

    The result may be a view of an argument: neither may be changed in place.
    """
    check_exact(op, len(args[0]))
    match op:
        case Conv2d(window=window, groups=groups):
            bias = None if op.b is None else _aligned_bias(op, args[2])
            return conv2d(args[0], args[1], bias, window, groups, _rounding(product_frac(op.x, op.w), op.out))
        case Linear():
            bias = None if op.b is None else _aligned_bias(op, args[2])
            return linear(args[0], args[1], bias, _rounding(product_frac(op.x, op.w), op.out))
        case Relu():
            return _moved(args[0].clamp(min=0), op.x, op.out)
        case ClippedRelu(bound=bound):
            return _moved(args[0].clamp(min=0, max=units(bound, op.x)), op.x, op.out)
        case MaxPool(window=window):
            return _moved(_max_pool(args[0], window)[0], op.x, op.out)
        case AveragePool(window=window):
            seen = windows(_padded(args[0], window), window, window.out_size(*args[0].shape[2:]))
            return _mean(seen.sum(dim=(4, 5)), prod(window.kernel), op.x, op.out)
        case GlobalAveragePool():
            total = args[0].sum(dim=(2, 3), keepdim=True)
            return _mean(total, args[0].shape[2] * args[0].shape[3], op.x, op.out)
        case Add():
            return _sum(op, *args)
        case Concat():
            return torch.cat([_moved(args[0], op.a, op.out), _moved(args[1], op.b, op.out)], dim=1)
        case Reshape():
            return _moved(args[0].reshape(-1, *op.out.shape), op.x, op.out)
        case SoftmaxCrossEntropy() | SquareHinge() | SoftmaxCrossEntropyGrad() | SquareHingeGrad():
            return _float_loss(op, *args) if isinstance(op.out.format, Float) else _loss(op, *args)
        case Conv2dInputGrad(window=window, groups=groups):
            _, height, width = op.out.shape
            return conv2d_input_grad(args[0], args[1], window, (height, width), groups,
                                     _rounding(product_frac(op.g, op.w), op.out))
        case Conv2dWeightGrad(window=window, groups=groups):
            return _rounded(conv2d_weight_grad(args[0], args[1], window, groups), product_frac(op.x, op.g),
                            op.out)
        case LinearInputGrad():
            return linear_input_grad(args[0], args[1], _rounding(product_frac(op.g, op.w), op.out))
        case LinearWeightGrad():
            return _rounded(linear_weight_grad(args[0], args[1]), product_frac(op.x, op.g), op.out)
        case BiasGrad(out=Value(format=Float())) if reads_words(op):
            return fixed_batch_norm.evaluate(op, *args)
        case BiasGrad():
            return _rounded(args[0].flatten(2).sum(dim=(0, 2)) if args[0].ndim > 2 else args[0].sum(dim=0),
                            frac_of(op.g), op.out)
        case (BatchNorm() | BatchMean() | BatchVariance() | RunningMean() | RunningVariance() | BatchNormInputGrad()
              | FrozenBatchNormInputGrad() | BatchNormScaleGrad()):
            return fixed_batch_norm.evaluate(op, *args) if reads_words(op) else _batch_norm(op, *args)
        case ReluGrad():
            passed = torch.ops.aten.threshold_backward(args[0], args[1].to(args[0].dtype), 0)
            return _moved(passed, op.g, op.out)
        case ClippedReluGrad(bound=bound):
            passed = (args[1] > 0) & (args[1] < units(bound, op.y))
            return _moved(args[0] * passed, op.g, op.out)
        case ConcatGrad(first=first):
            return _moved(args[0][:, first: first + op.out.shape[0]], op.g, op.out)
        case MaxPoolGrad(window=window):
            return _rounded(_max_pool_grad(args[0], args[1], window), frac_of(op.g), op.out)
        case AveragePoolGrad(window=window):
            _, height, width = op.out.shape
            return _mean(_sum_pool_grad(args[0], window, (height, width)), prod(window.kernel), op.g, op.out)
        case GlobalAveragePoolGrad():
            spread = args[0].expand(-1, *op.out.shape)
            return _mean(spread, op.out.shape[1] * op.out.shape[2], op.g, op.out)
        case _:
            assert_never(op)


def _rounding(frac: int | None, out: Value) -> Rounding | None:
    """How sums with ``frac`` fraction bits become words of ``out``; None for float values."""
    if not isinstance(out.format, Fixed) or frac is None:
        return None
    assert out.format.overflow is Overflow.AP_SAT, f"results saturate, but {out} does not"
    return Rounding(frac - out.format.frac, out.format.low, out.format.high)


def _rounded(acc: Tensor, frac: int | None, out: Value) -> Tensor:
    """``acc`` with ``frac`` fraction bits, rounded half up and saturated into the format of ``out``."""
    rounding = _rounding(frac, out)
    return acc if rounding is None else rounding(acc)


def _moved(x: Tensor, source: Value, out: Value) -> Tensor:
    """Words of ``source``, unsummed, in the format of ``out``: nothing to do where the format is the same."""
    return x if source.format == out.format else _rounded(x, frac_of(source), out)


def _aligned_bias(op: Conv2d | Linear, bias: Tensor) -> Tensor:
    acc_frac = product_frac(op.x, op.w)
    if acc_frac is None or op.b is None or not isinstance(op.b.format, Fixed):
        return bias
    return bias * ldexp(1.0, acc_frac - op.b.format.frac)


def _mean(total: Tensor, count: int, x: Value, out: Value) -> Tensor:
    frac = frac_of(x)
    if frac is None:
        return total / count
    return _rounded(total * average_reciprocal(count), frac + AVERAGE_FRAC, out)


def _sum(op: Add, a: Tensor, b: Tensor) -> Tensor:
    frac_a, frac_b = frac_of(op.a), frac_of(op.b)
    if frac_a is None or frac_b is None:
        return a + b
    frac = max(frac_a, frac_b)
    return _rounded(a * ldexp(1.0, frac - frac_a) + b * ldexp(1.0, frac - frac_b), frac, op.out)


def _batch_norm(op: BatchNormOp, *args: Tensor) -> Tensor:
    """By torch's own kernels where they take the statistics that there are."""
    match op:
        case BatchNorm(epsilon=epsilon):
            x, scale, shift, mean, variance = args
            return torch.native_batch_norm(x, scale, shift, mean, variance, False, FOLLOWING, epsilon)[0]
        case BatchMean():
            return _channel_mean(args[0])
        case BatchVariance():
            x, mean = args
            return _channel_mean((x - _spread(mean, x)).square_())
        case RunningMean():
            running, batch, _ = args
            return running.lerp(batch, FOLLOWING)
        case RunningVariance():
            running, batch, x = args
            return running.lerp(batch * unbiased(x.numel() // len(running)), FOLLOWING)
        case BatchNormInputGrad(epsilon=epsilon):
            g, x, scale, mean, variance = args
            return _batch_norm_backward(g, x, scale, mean, variance, epsilon, 0)
        case FrozenBatchNormInputGrad(epsilon=epsilon):
            g, scale, variance = args
            return g * _spread(scale * torch.rsqrt(variance + epsilon), g)
        case BatchNormScaleGrad(epsilon=epsilon):
            g, x, mean, variance = args
            return _batch_norm_backward(g, x, torch.ones_like(mean), mean, variance, epsilon, 1)


def _channel_mean(x: Tensor) -> Tensor:
    return x.mean(dim=(0, *range(2, x.ndim)))


def _spread(channels: Tensor, x: Tensor) -> Tensor:
    """One number a channel, as ``x`` takes it."""
    return channels.view(-1, *(1,) * (x.ndim - 2))


def _batch_norm_backward(g: Tensor, x: Tensor, scale: Tensor, mean: Tensor, variance: Tensor, epsilon: float,
                         which: int) -> Tensor:
    """The gradient of the input (0) or of the scale (1) where the statistics are those of the batch."""
    wanted = [which == 0, which == 1, False]
    inverse = torch.rsqrt(variance + epsilon)
    gradients = torch.ops.aten.native_batch_norm_backward(g, x, scale, None, None, mean, inverse, True, epsilon,
                                                          wanted)
    found: Tensor = gradients[which]
    return found


def _padded(x: Tensor, window: Window, fill: float = 0.0) -> Tensor:
    top, left, bottom, right = window.pad
    return functional.pad(x, (left, right, top, bottom), value=fill) if any(window.pad) else x


def _max_pool(x: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """The maxima, and the first position of each in the padded map, row-major."""
    return functional.max_pool2d(_padded(x, window, -torch.inf), window.kernel, window.stride,
                                 dilation=window.dilation, return_indices=True)


def _max_pool_grad(g: Tensor, x: Tensor, window: Window) -> Tensor:
    _, position = _max_pool(x, window)
    top, left, bottom, right = window.pad
    height, width = x.shape[2:]
    padded = g.new_zeros(*g.shape[:2], (height + top + bottom) * (width + left + right))
    padded.scatter_add_(2, position.flatten(2), g.flatten(2))
    padded = padded.unflatten(2, (height + top + bottom, width + left + right))
    return padded[:, :, top: top + height, left: left + width]


def _sum_pool_grad(g: Tensor, window: Window, in_size: tuple[int, int]) -> Tensor:
    top, left, bottom, right = window.pad
    padded = g.new_zeros(*g.shape[:2], in_size[0] + top + bottom, in_size[1] + left + right)
    for ky in range(window.kernel[0]):
        for kx in range(window.kernel[1]):
            y, x = ky * window.dilation[0], kx * window.dilation[1]
            padded[:, :, y: y + window.stride[0] * (g.shape[2] - 1) + 1: window.stride[0],
                   x: x + window.stride[1] * (g.shape[3] - 1) + 1: window.stride[1]] += g
    return padded[:, :, top: top + in_size[0], left: left + in_size[1]]


def _loss(op: SoftmaxCrossEntropy | SquareHinge | SoftmaxCrossEntropyGrad | SquareHingeGrad,
          logits: Tensor, labels: Tensor) -> Tensor:
    frac, out = frac_of(op.logits), op.out.format
    assert frac is not None and isinstance(out, Fixed), f"{op.out} and its logits are in fixed point"
    words = logits.long()
    match op:
        case SoftmaxCrossEntropy():
            return loss_unit.softmax_cross_entropy(words, labels, frac).double()
        case SoftmaxCrossEntropyGrad():
            return loss_unit.softmax_cross_entropy_grad(words, labels, frac, out).double()
        case SquareHinge():
            return loss_unit.square_hinge(words, labels, frac).double()
        case SquareHingeGrad():
            return loss_unit.square_hinge_grad(words, labels, frac, out).double()


def _float_loss(op: SoftmaxCrossEntropy | SquareHinge | SoftmaxCrossEntropyGrad | SquareHingeGrad,
                logits: Tensor, labels: Tensor) -> Tensor:
    onehot = torch.arange(logits.shape[1], device=logits.device) == labels[:, None]
    target = onehot.to(logits.dtype) * 2 - 1
    hinge = (logits - target) * (target * logits < 1)
    match op:
        case SoftmaxCrossEntropy():
            return -torch.log_softmax(logits, dim=1).gather(1, labels[:, None])[:, 0]
        case SoftmaxCrossEntropyGrad():
            return torch.softmax(logits, dim=1) - onehot.to(logits.dtype)
        case SquareHinge():
            return (hinge ** 2).sum(dim=1) / 2
        case SquareHingeGrad():
            return hinge
