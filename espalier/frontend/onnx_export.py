"""From an inference graph and its parameters to an ONNX network in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from espalier.errors import GraphError
from espalier.ir.graph import Graph
from espalier.ir.ops import (
    Add,
    AveragePool,
    AveragePoolGrad,
    BatchMean,
    BatchNorm,
    BatchNormInputGrad,
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
from espalier.numerics.fixed import Fixed
from espalier.numerics.window import Window

EXPORT_OPSET = 19     #: the first with dilations in AveragePool
EXPORT_IR_VERSION = 9
BATCH_AXIS = "batch"


def to_onnx(graph: Graph, state: Mapping[str, NDArray]) -> onnx.ModelProto:
    """The network of an inference ``graph`` as a float32 ONNX model with an open batch size.

    Parameters in fixed point are given as words in ``state`` and exported as the numbers that they
    stand for (exact in float32 up to 24 bits); the rounding of activations is not part of the model,
    so that its results are those of the fixed-point network before rounding. Names are kept.

    Raises
    ------
    GraphError
        The graph holds a loss or a backward pass, or ``state`` lacks a parameter or has another shape.
    """
    nodes: list[onnx.NodeProto] = []
    initialisers = [numpy_helper.from_array(_numbers(value, state), value.name) for value in graph.parameters]
    for op in graph.ops:
        nodes.append(_node(op))
        if isinstance(op, Reshape):
            shape = np.array((0, *op.out.shape), dtype=np.int64)
            initialisers.append(numpy_helper.from_array(shape, _shape_name(op)))
        if isinstance(op, ClippedRelu):
            initialisers += [numpy_helper.from_array(np.array(limit, dtype=np.float32), name)
                             for name, limit in zip(_clip_names(op), (0, op.bound), strict=True)]
    for index, value in enumerate(graph.outputs):
        if graph.producer(value) is None:
            raise GraphError(f"Output {index} of graph {graph.name!r} is {value}, which no operation computes; "
                             f"add a layer")
    body = helper.make_graph(nodes, graph.name, [_info(value) for value in graph.inputs],
                             [_info(value) for value in graph.outputs], initialisers)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", EXPORT_OPSET)],
                              ir_version=EXPORT_IR_VERSION, producer_name="espalier")
    onnx.checker.check_model(model)
    return model


def _numbers(value: Value, state: Mapping[str, NDArray]) -> NDArray[np.float32]:
    if value.name not in state:
        raise GraphError(f"The export needs an array for the parameter {value}; give it in the state")
    array = np.asarray(state[value.name], dtype=np.float64)
    if array.shape != value.shape:
        raise GraphError(f"The array for the parameter {value} has shape {array.shape}; give the state of this graph")
    scale = 2.0 ** -value.format.frac if isinstance(value.format, Fixed) else 1.0
    return (array * scale).astype(np.float32)


def _info(value: Value) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(value.name, TensorProto.FLOAT, [BATCH_AXIS, *value.shape])


def _shape_name(op: Reshape) -> str:
    return f"{op.out.name}.shape"


def _clip_names(op: ClippedRelu) -> tuple[str, str]:
    return f"{op.out.name}.low", f"{op.out.name}.high"


def _node(op: Op) -> onnx.NodeProto:
    """The one ONNX node of an operation."""
    match op:
        case Conv2d(x=x, w=w, b=b, window=window, groups=groups):
            return _make("Conv", op, [x, w, b], group=groups, **_attributes(window))
        case Linear(x=x, w=w, b=b):
            return _make("Gemm", op, [x, w, b], transB=1)
        case BatchNorm(x=x, scale=scale, shift=shift, mean=mean, variance=variance, epsilon=epsilon):
            return _make("BatchNormalization", op, [x, scale, shift, mean, variance], epsilon=epsilon)
        case Relu(x=x):
            return _make("Relu", op, [x])
        case ClippedRelu(x=x):
            names = [x.name, *_clip_names(op)]
            return helper.make_node("Clip", names, [op.out.name], name=op.out.name)
        case MaxPool(x=x, window=window):
            return _make("MaxPool", op, [x], **_attributes(window))
        case AveragePool(x=x, window=window):
            return _make("AveragePool", op, [x], count_include_pad=1, **_attributes(window))
        case GlobalAveragePool(x=x):
            return _make("GlobalAveragePool", op, [x])
        case Add(a=a, b=b):
            return _make("Add", op, [a, b])
        case Concat(a=a, b=b):
            return _make("Concat", op, [a, b], axis=1)
        case Reshape(x=x):
            return helper.make_node("Reshape", [x.name, _shape_name(op)], [op.out.name], name=op.out.name)
        case (SoftmaxCrossEntropy() | SquareHinge() | SoftmaxCrossEntropyGrad() | SquareHingeGrad()
              | Conv2dInputGrad() | Conv2dWeightGrad() | LinearInputGrad() | LinearWeightGrad() | BiasGrad()
              | BatchMean() | BatchVariance() | RunningMean() | RunningVariance() | BatchNormInputGrad()
              | FrozenBatchNormInputGrad() | BatchNormScaleGrad() | ReluGrad() | ClippedReluGrad() | ConcatGrad()
              | MaxPoolGrad() | AveragePoolGrad() | GlobalAveragePoolGrad()):
            raise GraphError(f"ONNX export takes inference graphs, and {op.out} is part of a loss or a backward pass; "
                             f"export the graph from before differentiate")
        case _:
            assert_never(op)


def _make(operator: str, op: Op, inputs: list[Value | None], **attributes: int | float | list[int]) -> onnx.NodeProto:
    names = [value.name for value in inputs if value is not None]
    node = helper.make_node(operator, names, [op.out.name], name=op.out.name)
    node.attribute.extend(helper.make_attribute(name, found) for name, found in attributes.items())
    return node


def _attributes(window: Window) -> dict[str, list[int]]:
    return {"kernel_shape": list(window.kernel), "strides": list(window.stride), "pads": list(window.pad),
            "dilations": list(window.dilation)}
