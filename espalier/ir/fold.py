"""Batch norms as other operations: folded into the layers before them, or, of words, as convolutions of channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from espalier.errors import GraphError
from espalier.ir.graph import Graph
from espalier.ir.interpret import fixed
from espalier.ir.ops import BatchNorm, Conv2d, Linear, Op, Reshape
from espalier.ir.types import TensorType, Value
from espalier.ir.verify import verify
from espalier.numerics import batch_norm, fixed_batch_norm
from espalier.numerics.window import Window


def has_batch_norm(graph: Graph) -> bool:
    """Whether any operation is a batch norm."""
    return any(isinstance(op, BatchNorm) for op in graph.ops)


def normed_layers(graph: Graph) -> dict[str, tuple[BatchNorm, ...]]:
    """The batch norms of each layer that has any, in order, by the name of its weight.

    Raises GraphError for one that does not directly follow a layer (or another batch norm) which nothing else reads.
    """
    found: dict[str, tuple[BatchNorm, ...]] = {}
    layers: dict[Value, str] = {}  # the layer of each result that may be normalised
    for op in graph.ops:
        match op:
            case Conv2d(w=w) | Linear(w=w):
                layers[op.out] = w.name
            case BatchNorm(x=x):
                if x not in layers or len(graph.users(x)) != 1 or x in graph.outputs:
                    raise GraphError(f"BatchNorm {op.out}: it can be folded only into a layer that it alone reads, and "
                                     f"{x} is none; put it directly after a Conv2d or Linear")
                layers[op.out] = layers[x]
                found[layers[x]] = (*found.get(layers[x], ()), op)
            case _:
                pass
    return found


def fold_batch_norm(graph: Graph, parameters: Mapping[str, NDArray]) -> tuple[Graph, dict[str, NDArray]]:
    """The inference graph without batch norms, and its parameters (float64 where they were folded).

    rewrite:
        y = conv2d(x, w, b); z = batch_norm(y, scale, shift, mean, variance)   ->   y = conv2d(x, w', b')

    A layer without bias gets one, named as its weight (``"conv1.weight"`` → ``"conv1.bias"``), or where that cannot
    be as the shift. Parameters of layers without batch norm are left as they are.

    Raises
    ------
    GraphError
        A batch norm does not directly follow a layer that nothing else reads.
    DataError
        A variance and its epsilon are not positive together.
    """
    norms = normed_layers(graph)
    names = {value.name for value in graph.values()}
    dropped = {value.name for chain in norms.values() for op in chain for value in op.inputs[1:]}
    renamed = {op.out: op.x for chain in norms.values() for op in chain}
    state = {name: array for name, array in parameters.items() if name not in dropped}
    given: dict[str, tuple[Value, ...]] = {}  # new biases, by the weight that they come after
    ops: list[Op] = []
    for op in graph.ops:
        if isinstance(op, Conv2d | Linear) and op.w.name in norms:
            bias = op.b or _bias(op.w, norms[op.w.name][0], names)
            given[op.w.name] = (bias,) if op.b is None else ()
            state[op.w.name], state[bias.name] = _folded(op, norms[op.w.name], parameters)
            op = replace(op, b=bias)
        if not isinstance(op, BatchNorm):
            ops.append(op.map_values(lambda value: _source(value, renamed)))
    kept = tuple(value for parameter in graph.parameters if parameter.name not in dropped
                 for value in (parameter, *given.get(parameter.name, ())))
    outputs = tuple(_source(value, renamed) for value in graph.outputs)
    return (verify(Graph(graph.name, graph.inputs, kept, tuple(ops), outputs)),
            {value.name: state[value.name] for value in kept})


def as_convolutions(graph: Graph, parameters: Mapping[str, NDArray]) -> tuple[Graph, dict[str, NDArray]]:
    """The inference graph with each batch norm of words as a convolution, and its parameters; the same words.

    rewrite:
        y = batch_norm(x, scale, shift, mean, variance)   ->   y = conv2d(x, y.factor, y.offset), a group a channel

    A vector is a map of one pixel on the way.
    """
    norms = [op for op in graph.ops if isinstance(op, BatchNorm) and op.factor is not None]
    dropped = {value for op in norms for value in op.inputs[1:]}
    state = {value.name: parameters[value.name] for value in graph.parameters if value not in dropped}
    made = tuple(value for op in norms for value in _factors(op))
    for op in norms:
        weight, bias = _factors(op)
        scale, shift, mean, variance = (np.asarray(parameters[value.name], np.float32) for value in op.inputs[1:])
        factors = fixed_batch_norm.factor(scale, variance, op.epsilon, fixed(op.factor))
        state[bias.name] = fixed_batch_norm.offset(shift, mean, factors, fixed(op.factor))
        state[weight.name] = factors.reshape(weight.shape)
    ops = tuple(new for op in graph.ops for new in (_convolution(op) if op in norms else (op,)))
    kept = tuple(value for value in graph.parameters if value not in dropped)
    return verify(Graph(graph.name, graph.inputs, (*kept, *made), ops, graph.outputs)), state


def _factors(op: BatchNorm) -> tuple[Value, Value]:
    """The weight and the bias of the convolution that a batch norm is."""
    channels, format_ = op.x.shape[0], fixed(op.factor)
    return (Value(f"{op.out.name}.factor", TensorType((channels, 1, 1, 1), format_)),
            Value(f"{op.out.name}.offset", TensorType((channels,), format_)))


def _convolution(op: Op) -> tuple[Op, ...]:
    assert isinstance(op, BatchNorm), op
    convolution = Conv2d(_map(op.out), _map(op.x), *_factors(op), Window((1, 1)), op.x.shape[0])
    if len(op.x.shape) == 3:
        return (convolution,)
    return Reshape(convolution.x, op.x), convolution, Reshape(op.out, convolution.out)


def _map(value: Value) -> Value:
    """A map itself; of a vector the map of one pixel."""
    if len(value.shape) == 3:
        return value
    return Value(f"{value.name}.map", TensorType((*value.shape, 1, 1), value.format))


def _source(value: Value, renamed: Mapping[Value, Value]) -> Value:
    """What a value is now: the result of the layer that the batch norm of it was folded into."""
    while value in renamed:
        value = renamed[value]
    return value


def _bias(weight: Value, norm: BatchNorm, names: set[str]) -> Value:
    own = weight.name.removesuffix(".weight")
    name = f"{own}.bias"
    return Value(norm.shift.name if own == weight.name or name in names else name, norm.shift.type)


def _folded(layer: Conv2d | Linear, norms: tuple[BatchNorm, ...], parameters: Mapping[str, NDArray]
            ) -> tuple[NDArray, NDArray]:
    weight = parameters[layer.w.name]
    bias = None if layer.b is None else parameters[layer.b.name]
    for op in norms:
        batch_norm.check_variance(f"BatchNorm {op.out}", parameters[op.variance.name], op.epsilon)
        weight, bias = batch_norm.folded(weight, bias, *(parameters[value.name] for value in op.inputs[1:]),
                                         epsilon=op.epsilon)
    assert bias is not None, "a layer is in the list for its batch norms"
    return weight, bias
