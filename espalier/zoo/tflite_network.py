"""Networks of TFLite operators, as the files of published ImageNet networks describe them, in floating point.

The operators are JSON, the weights arrays: ``wN`` of unsigned bytes (out, in / groups, height, width), whose
real value is ``scale * (byte - zero_point)``, and ``bN`` of floats. The 8-bit scales of the activations
(``q``) are not used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, assert_never

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional

from espalier.errors import DataError
from espalier.zoo.weights_file import Arrays, numbers

Pair = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
Padding = Annotated[int, Field(ge=0)]
Activation = Literal["none", "relu", "relu6"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=False, allow_inf_nan=False)


class Operator(_Record):
    """What every operator has: the value it reads, and the name of its result."""

    x: str
    y: str


class WeightScale(_Record):
    """One scale and zero point, or one for each output channel."""

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]


class Convolution(Operator):
    """``p``: the number of its weight and bias. Its padding may differ on each side, as TFLite's SAME does."""

    op: Literal["conv"]
    p: Annotated[int, Field(ge=0)]
    stride: Pair
    pad_lrtb: tuple[Padding, Padding, Padding, Padding]
    groups: Annotated[int, Field(ge=1)]
    act: Activation
    wq: WeightScale


class Addition(Operator):
    op: Literal["add"]
    x2: str
    act: Activation


class AveragePool(Operator):
    op: Literal["avgpool"]
    kernel: Pair
    stride: Pair


class Reshape(Operator):
    """To a vector: the only use these networks make of it."""

    op: Literal["reshape"]


class Softmax(Operator):
    """Left out: the network ends in its logits."""

    op: Literal["softmax"]


class GraphInput(_Record):
    """The image: ``scale * (pixel - zero_point)``, and its shape (1, H, W, C)."""

    name: str
    shape_nhwc: tuple[Literal[1], Padding, Padding, Padding]
    scale: Annotated[float, Field(gt=0)]
    zero_point: int


AnyOperator = Annotated[Convolution | Addition | AveragePool | Reshape | Softmax, Field(discriminator="op")]


class TfliteGraph(_Record):
    """The operators in the order in which they run; the last one's result is the network's."""

    input: GraphInput
    ops: Annotated[tuple[AnyOperator, ...], Field(min_length=1)]


class TfliteNetwork(nn.Module):
    """Runs the operators of ``graph`` in floating point, convolution ``p`` being the child ``conv{p}``."""

    def __init__(self, graph: TfliteGraph, arrays: Arrays, path: Path) -> None:
        super().__init__()
        self.graph = graph
        for operator in graph.ops:
            if isinstance(operator, Convolution):
                self.add_module(f"conv{operator.p}", _convolution(operator, arrays, path))

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits (N, outputs)."""
        values = {self.graph.input.name: x}
        for operator in self.graph.ops:
            x = values[operator.y] = self._result(operator, values)
        return x

    def _result(self, operator: AnyOperator, values: dict[str, Tensor]) -> Tensor:
        x = values[operator.x]
        match operator:
            case Convolution():
                padded = functional.pad(x, operator.pad_lrtb)
                return activated(self.get_submodule(f"conv{operator.p}")(padded), operator.act)
            case Addition():
                return activated(x + values[operator.x2], operator.act)
            case AveragePool():
                return functional.avg_pool2d(x, operator.kernel, operator.stride)
            case Reshape():
                return x.flatten(1)
            case Softmax():
                return x
            case _:
                assert_never(operator)


def activated(x: Tensor, activation: Activation) -> Tensor:
    match activation:
        case "none":
            return x
        case "relu":
            return functional.relu(x)
        case "relu6":
            return functional.relu6(x)
        case _:
            assert_never(activation)


def tflite_network(arrays: Arrays, path: Path) -> TfliteNetwork:
    """The network under ``graph``, its weights set. Raises DataError where graph and arrays are not as they must be."""
    try:
        graph = TfliteGraph.model_validate_json(str(arrays["graph"]))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise DataError(f"The graph of {path} must be JSON of known operators, and {place} is not ({first['msg']}): "
                        f"get the file again") from error
    known = {graph.input.name}
    for operator in graph.ops:
        read = (operator.x, operator.x2) if isinstance(operator, Addition) else (operator.x,)
        unknown = [name for name in read if name not in known]
        if unknown:
            raise DataError(f"The graph of {path} reads {unknown[0]!r} before anything computes it: get the file again")
        known.add(operator.y)
    return TfliteNetwork(graph, arrays, path)


def _convolution(operator: Convolution, arrays: Arrays, path: Path) -> nn.Conv2d:
    name = f"w{operator.p}"
    quantised = arrays.get(name)
    if quantised is None or quantised.dtype != np.uint8 or quantised.ndim != 4 or len(quantised) % operator.groups:
        have = "is missing" if quantised is None else f"is {quantised.dtype} of shape {quantised.shape}"
        raise DataError(f"{name!r} of {path} must be unsigned bytes (out, in / groups, height, width) in "
                        f"{operator.groups} groups, and it {have}: get the file again")
    outputs, inputs, height, width = quantised.shape
    if {len(operator.wq.scale), len(operator.wq.zero_point)} - {1, outputs}:
        raise DataError(f"{name!r} of {path} must have one scale and zero point, or {outputs}, not "
                        f"{len(operator.wq.scale)} and {len(operator.wq.zero_point)}: get the file again")
    scale, zero = (np.array(values, np.float64).reshape(-1, 1, 1, 1)
                   for values in (operator.wq.scale, operator.wq.zero_point))
    bias = numbers(arrays, f"b{operator.p}", (outputs,), path)
    layer = nn.Conv2d(inputs * operator.groups, outputs, (height, width), operator.stride, groups=operator.groups,
                      device="meta")  # draws no random numbers
    layer.weight = nn.Parameter(torch.from_numpy(scale * (quantised.astype(np.float64) - zero)).float())
    layer.bias = nn.Parameter(torch.from_numpy(bias))
    return layer
