"""The rules of batch norm: shapes of its operations, and that it is float."""

from __future__ import annotations

from math import isfinite
from typing import assert_never

from espalier.errors import GraphError
from espalier.ir.ops import (
    BatchMean,
    BatchNorm,
    BatchNormInputGrad,
    BatchNormOp,
    BatchNormScaleGrad,
    BatchVariance,
    FrozenBatchNormInputGrad,
    RunningMean,
    RunningVariance,
)
from espalier.ir.types import Value


def verify_batch_norm(op: BatchNormOp) -> None:
    """Raise GraphError unless the shapes of a batch norm's values fit together and its epsilon is of use."""
    match op:
        case BatchNorm(out=out, x=x, scale=scale, shift=shift, mean=mean, variance=variance, epsilon=epsilon):
            _same(op, "result", out, x)
            _channels(op, x, scale=scale, shift=shift, mean=mean, variance=variance)
            _epsilon(op, epsilon)
        case BatchMean(out=out, x=x):
            _channels(op, x, result=out)
        case BatchVariance(out=out, x=x, mean=mean):
            _channels(op, x, result=out, mean=mean)
        case RunningMean(out=out, running=running, batch=batch):
            _channels(op, out, running=running, batch=batch)
        case RunningVariance(out=out, running=running, batch=batch, x=x):
            _channels(op, x, result=out, running=running, batch=batch)
        case BatchNormInputGrad(out=out, g=g, x=x, scale=scale, mean=mean, variance=variance, epsilon=epsilon):
            _same(op, "result", out, x)
            _same(op, "gradient", g, x)
            _channels(op, x, scale=scale, mean=mean, variance=variance)
            _epsilon(op, epsilon)
        case FrozenBatchNormInputGrad(out=out, g=g, scale=scale, variance=variance, epsilon=epsilon):
            _same(op, "result", out, g)
            _channels(op, g, scale=scale, variance=variance)
            _epsilon(op, epsilon)
        case BatchNormScaleGrad(out=out, g=g, x=x, mean=mean, variance=variance, epsilon=epsilon):
            _same(op, "gradient", g, x)
            _channels(op, x, result=out, mean=mean, variance=variance)
            _epsilon(op, epsilon)
        case _:
            assert_never(op)


def fold_first(op: BatchNormOp) -> GraphError:
    """The error for a batch norm in fixed point."""
    return _fail(op, "a batch norm is defined in float only, and this one is in fixed point; fold it into the layer "
                     "before it first (fold_batch_norm)")


def _fail(op: BatchNormOp, rule: str) -> GraphError:
    return GraphError(f"{type(op).__name__} {op.out}: {rule}")


def _same(op: BatchNormOp, role: str, value: Value, x: Value) -> None:
    if value.shape != x.shape:
        raise _fail(op, f"{role} {value} must have shape [{','.join(map(str, x.shape))}]")


def _channels(op: BatchNormOp, x: Value, **numbers: Value) -> None:
    """``x`` has channels, and of each of ``numbers`` one for each channel."""
    if len(x.shape) not in (1, 3):
        raise _fail(op, f"{x} must have shape [C] or [C,H,W]")
    for role, value in numbers.items():
        if value.shape != x.shape[:1]:
            raise _fail(op, f"{role} {value} must have shape [{x.shape[0]}]")


def _epsilon(op: BatchNormOp, epsilon: float) -> None:
    if not (isfinite(epsilon) and epsilon >= 0):
        raise _fail(op, f"epsilon must be a number of at least 0, not {epsilon}")
