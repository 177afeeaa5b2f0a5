"""The range of every value of a float network on data: what formats are chosen from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from espalier.errors import DataError
from espalier.ir.differentiate import slope_name
from espalier.ir.graph import Graph
from espalier.ir.ops import BatchNorm, BatchNormInputGrad
from espalier.ir.types import FLOAT, INDEX
from espalier.train.evaluate import run, to_tensor

Ranges = dict[str, tuple[float, float]]  #: smallest and largest number seen, by name of the value


def check_numbers(parameters: Mapping[str, NDArray]) -> None:
    """Raise DataError if a weight is NaN or infinite."""
    for name, array in parameters.items():
        bad = int(np.size(array) - np.isfinite(np.asarray(array, dtype=np.float64)).sum())
        if bad:
            raise DataError(f"Weights must be finite numbers, and {bad} of the {np.size(array)} in {name!r} are not: "
                            f"train the network again, or with a lower learning rate")


def observe(step: Graph, parameters: Mapping[str, NDArray], images: NDArray, labels: NDArray[np.int64], batch: int,
            device: str = "cpu") -> Ranges:
    """Run the float training graph ``step`` over all whole batches and return the range of each value.

    Images (N, C, H, W) are real numbers; a last batch that is not full is left out, unless it is the only one.
    """
    tensors = {name: to_tensor(array, FLOAT, device) for name, array in parameters.items()}
    ranges: Ranges = {}
    for start in range(0, max(1, len(images) - batch + 1), batch):
        seen = run(step, {**tensors, step.inputs[0].name: to_tensor(images[start: start + batch], FLOAT, device),
                          step.inputs[1].name: to_tensor(labels[start: start + batch], INDEX, device)})
        ranges = merged(ranges, of_step(step, seen))
    return ranges


def factor_name(name: str) -> str:
    """The name that the range of the batch norm ``name``'s factors and offsets has."""
    return f"{name}.factor"


def of_step(step: Graph, values: Mapping[str, Tensor]) -> Ranges:
    """The range of each value of a float training graph, and of what its batch norms multiply and add by.

    Of the forward pass under :func:`factor_name`, of the gradient's slopes and intercepts under :func:`slope_name`.
    """
    norms = {(op.x, op.scale): op.out for op in step.ops if isinstance(op, BatchNorm)}
    found = dict(values)
    for op in step.ops:
        match op:
            case BatchNorm(out=out):
                found[factor_name(out.name)] = _forward(op, values)
            case BatchNormInputGrad(x=x, scale=scale):
                found[slope_name(norms[x, scale].name)] = _backward(op, values)
            case _:
                pass
    return of_tensors(found)


def _forward(op: BatchNorm, values: Mapping[str, Tensor]) -> Tensor:
    """Factors and offsets (2, C)."""
    scale, shift, mean, variance = (values[value.name] for value in (op.scale, op.shift, op.mean, op.variance))
    factor = scale * torch.rsqrt(variance + op.epsilon)
    return torch.stack((factor, shift - mean * factor))


def _backward(op: BatchNormInputGrad, values: Mapping[str, Tensor]) -> Tensor:
    """Slopes and intercepts (2, C)."""
    g, x, scale, mean, variance = (values[value.name].double() for value in op.inputs)
    axes = (0, *range(2, x.ndim))
    inverse, share = torch.rsqrt(variance + op.epsilon), len(mean) / x.numel()
    shift_grad = g.sum(dim=axes)
    slope = -scale * inverse ** 3 * ((g * x).sum(dim=axes) - mean * shift_grad) * share
    return torch.stack((slope, -scale * inverse * shift_grad * share - slope * mean))


def of_tensors(tensors: Mapping[str, Tensor]) -> Ranges:
    """The range of each tensor; one wait for the device in all."""
    ends = torch.stack([torch.stack((tensor.min().float(), tensor.max().float())) for tensor in tensors.values()])
    return {name: (low, high) for name, (low, high) in zip(tensors, ends.tolist(), strict=True)}


def merged(a: Ranges, b: Ranges) -> Ranges:
    """The smallest ranges that hold both."""
    both = {name: (a.get(name, b.get(name)), b.get(name, a.get(name))) for name in {**a, **b}}
    return {name: (min(x[0], y[0]), max(x[1], y[1])) for name, (x, y) in both.items() if x and y}
