"""The rules of batch norm: the shapes of its operations' values, and their formats where they are words."""

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
from espalier.ir.types import Fixed, Value
from espalier.numerics.scalar import TINIEST


def verify_batch_norm(op: BatchNormOp) -> None:
    """Raise GraphError unless the shapes of a batch norm's values fit together and its epsilon is of use."""
    match op:
        case BatchNorm(out=out, x=x, scale=scale, shift=shift, mean=mean, variance=variance, epsilon=epsilon):
            _same(op, "result", out, x)
            _channels(op, x, scale=scale, shift=shift, mean=mean, variance=variance)
            _epsilon(op, x, epsilon)
        case BatchMean(out=out, x=x):
            _channels(op, x, result=out)
        case BatchVariance(out=out, x=x, mean=mean):
            _channels(op, x, result=out, mean=mean)
        case RunningMean(out=out, running=running, batch=batch, x=x) | RunningVariance(
                out=out, running=running, batch=batch, x=x):
            _channels(op, x, result=out, running=running, batch=batch)
        case BatchNormInputGrad(out=out, g=g, x=x, scale=scale, mean=mean, variance=variance, epsilon=epsilon):
            _same(op, "result", out, x)
            _same(op, "gradient", g, x)
            _channels(op, x, scale=scale, mean=mean, variance=variance)
            _epsilon(op, x, epsilon)
        case FrozenBatchNormInputGrad(out=out, g=g, scale=scale, variance=variance, epsilon=epsilon):
            _same(op, "result", out, g)
            _channels(op, g, scale=scale, variance=variance)
            _epsilon(op, g, epsilon)
        case BatchNormScaleGrad(out=out, g=g, x=x, mean=mean, variance=variance, epsilon=epsilon):
            _same(op, "gradient", g, x)
            _channels(op, x, result=out, mean=mean, variance=variance)
            _epsilon(op, x, epsilon)
        case _:
            assert_never(op)


def scalars_of(op: BatchNormOp) -> tuple[Value, ...]:
    """The values of the operation of which each channel has one number: they are float, also where others are words."""
    match op:
        case BatchNorm(scale=scale, shift=shift, mean=mean, variance=variance):
            return scale, shift, mean, variance
        case BatchMean(out=out):
            return (out,)
        case BatchVariance(out=out, mean=mean):
            return out, mean
        case RunningMean(out=out, running=running, batch=batch) | RunningVariance(
                out=out, running=running, batch=batch):
            return out, running, batch
        case BatchNormInputGrad(scale=scale, mean=mean, variance=variance):
            return scale, mean, variance
        case FrozenBatchNormInputGrad(scale=scale, variance=variance):
            return scale, variance
        case BatchNormScaleGrad(out=out, mean=mean, variance=variance):
            return out, mean, variance
        case _:
            assert_never(op)


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


def _epsilon(op: BatchNormOp, x: Value, epsilon: float) -> None:
    least = TINIEST if isinstance(x.format, Fixed) else 0
    if not (isfinite(epsilon) and epsilon >= least):
        raise _fail(op, f"epsilon must be a number of at least {least:.3g}, not {epsilon}")
