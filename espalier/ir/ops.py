"""The closed set of operations.

Every operation computes exactly and rounds once, into the format of its result (`Requantize`); on
``float`` values it computes in floating point. The meaning of each is in ``interpret.py``.

A batch norm of words has float values beside them: what each channel has one of, its scale, shift and statistics and
their gradients. These are scalars (``numerics/scalar.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

from espalier.ir.types import Fixed, Value
from espalier.numerics.window import Window


@dataclass(frozen=True, slots=True)
class _Op:
    out: Value

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The values that this operation reads, in field order."""
        found = (getattr(self, field.name) for field in fields(self) if field.name != "out")
        return tuple(value for value in found if isinstance(value, Value))

    def map_values(self, change: Callable[[Value], Value]) -> Self:
        """This operation with ``change`` applied to the value that it writes and to those that it reads."""
        found = ((field.name, getattr(self, field.name)) for field in fields(self))
        return replace(self, **{name: change(value) for name, value in found if isinstance(value, Value)})


@dataclass(frozen=True, slots=True)
class Conv2d(_Op):
    """FP of a convolution: ``x`` (I, H, W), ``w`` (O, I/groups, KH, KW), ``b`` (O,) → (O, OH, OW)."""

    x: Value
    w: Value
    b: Value | None
    window: Window
    groups: int = 1


@dataclass(frozen=True, slots=True)
class Linear(_Op):
    """FP of a fully connected layer: ``x`` (I,), ``w`` (O, I), ``b`` (O,) → (O,)."""

    x: Value
    w: Value
    b: Value | None


@dataclass(frozen=True, slots=True)
class Relu(_Op):
    """``max(x, 0)``."""

    x: Value


@dataclass(frozen=True, slots=True)
class ClippedRelu(_Op):
    """``min(max(x, 0), bound)``; the bound, 6 for ReLU6, is a real number that is whole, at least 1."""

    x: Value
    bound: int


@dataclass(frozen=True, slots=True)
class BatchNorm(_Op):
    """``(x - mean) / sqrt(variance + epsilon) * scale + shift`` of each channel.

    ``x`` (C, H, W) or (C,), the others (C,). In an inference graph ``mean`` and ``variance`` are parameters, the
    running statistics; in a training graph they are those of the batch. On words ``x`` is multiplied by a word and
    another is added (``numerics/fixed_batch_norm.py``), both of the format ``factor``; in float that is None.
    """

    x: Value
    scale: Value
    shift: Value
    mean: Value
    variance: Value
    epsilon: float
    factor: Fixed | None = None


@dataclass(frozen=True, slots=True)
class MaxPool(_Op):
    """Maximum under a window; the first of equal maxima wins."""

    x: Value
    window: Window


@dataclass(frozen=True, slots=True)
class AveragePool(_Op):
    """Mean under a window, padding counted as zeros."""

    x: Value
    window: Window


@dataclass(frozen=True, slots=True)
class GlobalAveragePool(_Op):
    """Mean over each whole channel: (C, H, W) → (C, 1, 1)."""

    x: Value


@dataclass(frozen=True, slots=True)
class Add(_Op):
    """Sum of two values of one shape: a residual connection, or gradients meeting at a branch."""

    a: Value
    b: Value


@dataclass(frozen=True, slots=True)
class Concat(_Op):
    """The channels of ``a`` (A, H, W), then those of ``b`` (B, H, W) → (A + B, H, W); or (A,), (B,) → (A + B,)."""

    a: Value
    b: Value


@dataclass(frozen=True, slots=True)
class Reshape(_Op):
    """The same elements in row-major order under another shape (Flatten, and its gradient)."""

    x: Value


@dataclass(frozen=True, slots=True)
class SoftmaxCrossEntropy(_Op):
    """Softmax cross-entropy loss per image: logits (classes,), labels () → ()."""

    logits: Value
    labels: Value


@dataclass(frozen=True, slots=True)
class SoftmaxCrossEntropyGrad(_Op):
    """Gradient of :class:`SoftmaxCrossEntropy` with respect to the logits."""

    logits: Value
    labels: Value


@dataclass(frozen=True, slots=True)
class SquareHinge(_Op):
    """Square hinge loss with ±1 targets per image: logits (classes,), labels () → ()."""

    logits: Value
    labels: Value


@dataclass(frozen=True, slots=True)
class SquareHingeGrad(_Op):
    """Gradient of :class:`SquareHinge` with respect to the logits."""

    logits: Value
    labels: Value


@dataclass(frozen=True, slots=True)
class Conv2dInputGrad(_Op):
    """BP of a convolution: ``g`` (O, OH, OW), ``w`` → (I, H, W)."""

    g: Value
    w: Value
    window: Window
    groups: int = 1


@dataclass(frozen=True, slots=True)
class Conv2dWeightGrad(_Op):
    """WU of a convolution, summed over the batch: ``x``, ``g`` → (O, I/groups, KH, KW)."""

    x: Value
    g: Value
    window: Window
    groups: int = 1


@dataclass(frozen=True, slots=True)
class LinearInputGrad(_Op):
    """BP of a fully connected layer: ``g`` (O,), ``w`` (O, I) → (I,)."""

    g: Value
    w: Value


@dataclass(frozen=True, slots=True)
class LinearWeightGrad(_Op):
    """WU of a fully connected layer, summed over the batch: ``x`` (I,), ``g`` (O,) → (O, I)."""

    x: Value
    g: Value


@dataclass(frozen=True, slots=True)
class BiasGrad(_Op):
    """WU of a bias, summed over batch and pixels: ``g`` (O, OH, OW) or (O,) → (O,)."""

    g: Value


@dataclass(frozen=True, slots=True)
class BatchMean(_Op):
    """The mean of each channel over batch and pixels: ``x`` (C, H, W) or (C,) → (C,)."""

    x: Value


@dataclass(frozen=True, slots=True)
class BatchVariance(_Op):
    """The variance of each channel around its ``mean`` over batch and pixels, of all values: ``x`` → (C,)."""

    x: Value
    mean: Value


@dataclass(frozen=True, slots=True)
class RunningMean(_Op):
    """The next running mean: a tenth of the way from the last one to that of the batch, ``batch``, of ``x``."""

    running: Value
    batch: Value
    x: Value


@dataclass(frozen=True, slots=True)
class RunningVariance(_Op):
    """The next running variance, likewise; that of the batch, of the values of ``x``, counts as an estimate (n - 1)."""

    running: Value
    batch: Value
    x: Value


@dataclass(frozen=True, slots=True)
class BatchNormInputGrad(_Op):
    """BP of a batch norm by the statistics of the batch, through which the gradient passes, too.

    On words ``g`` is multiplied by words of the format ``factor``, ``x`` by words of the format ``slope``.
    """

    g: Value
    x: Value
    scale: Value
    mean: Value
    variance: Value
    epsilon: float
    factor: Fixed | None = None
    slope: Fixed | None = None


@dataclass(frozen=True, slots=True)
class FrozenBatchNormInputGrad(_Op):
    """BP of a batch norm by running statistics, on which its input has no influence; ``factor`` as of the norm."""

    g: Value
    scale: Value
    variance: Value
    epsilon: float
    factor: Fixed | None = None


@dataclass(frozen=True, slots=True)
class BatchNormScaleGrad(_Op):
    """WU of a batch norm's scale, summed over batch and pixels; that of its shift is :class:`BiasGrad`."""

    g: Value
    x: Value
    mean: Value
    variance: Value
    epsilon: float


@dataclass(frozen=True, slots=True)
class ReluGrad(_Op):
    """``g`` where the rectifier's output ``y`` is positive, else zero."""

    g: Value
    y: Value


@dataclass(frozen=True, slots=True)
class ClippedReluGrad(_Op):
    """``g`` where the clipped rectifier's output ``y`` is above zero and below ``bound``, else zero."""

    g: Value
    y: Value
    bound: int


@dataclass(frozen=True, slots=True)
class ConcatGrad(_Op):
    """The gradient of one part of a concatenation: the channels of ``g`` (C, H, W) from ``first`` on."""

    g: Value
    first: int


@dataclass(frozen=True, slots=True)
class MaxPoolGrad(_Op):
    """Each gradient to the input position that won: ``g`` (C, OH, OW), ``x`` (C, H, W) → (C, H, W)."""

    g: Value
    x: Value
    window: Window


@dataclass(frozen=True, slots=True)
class AveragePoolGrad(_Op):
    """Each gradient, divided by the window's size, to every position of its window."""

    g: Value
    window: Window


@dataclass(frozen=True, slots=True)
class GlobalAveragePoolGrad(_Op):
    """Each gradient, divided by the number of pixels, to every pixel: (C, 1, 1) → (C, H, W)."""

    g: Value


Op = (Conv2d | Linear | BatchNorm | Relu | ClippedRelu | MaxPool | AveragePool | GlobalAveragePool | Add | Concat
      | Reshape
      | SoftmaxCrossEntropy | SoftmaxCrossEntropyGrad | SquareHinge | SquareHingeGrad
      | Conv2dInputGrad | Conv2dWeightGrad | LinearInputGrad | LinearWeightGrad | BiasGrad
      | BatchMean | BatchVariance | RunningMean | RunningVariance
      | BatchNormInputGrad | FrozenBatchNormInputGrad | BatchNormScaleGrad
      | ReluGrad | ClippedReluGrad | ConcatGrad | MaxPoolGrad | AveragePoolGrad | GlobalAveragePoolGrad)
BatchNormOp = (BatchNorm | BatchMean | BatchVariance | RunningMean | RunningVariance | BatchNormInputGrad
               | FrozenBatchNormInputGrad | BatchNormScaleGrad)
LossOp = SoftmaxCrossEntropy | SquareHinge
LossGradOp = SoftmaxCrossEntropyGrad | SquareHingeGrad
