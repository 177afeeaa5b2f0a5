"""Layers seen as convolutions."""

from __future__ import annotations

from espalier.ir import ops
from espalier.ir.graph import Graph
from espalier.ir.types import FLOAT, TensorType, Value
from espalier.ir.view import conv_shape
from espalier.numerics.window import Window


def value(name: str, *shape: int) -> Value:
    return Value(name, TensorType(shape, FLOAT))


def test_conv_shape() -> None:
    image, c, flat = value("image", 2, 5, 4), value("c", 6, 5, 4), value("flat", 120)
    f1, f2 = value("f1", 7), value("f2", 3)
    w1, w2, w3 = value("c.w", 6, 1, 3, 3), value("f1.w", 7, 120), value("f2.w", 3, 7)
    graph = Graph("g", (image,), (w1, w2, w3), (
        ops.Conv2d(c, image, w1, None, Window((3, 3), pad=(1, 1, 1, 1)), 2), ops.Reshape(flat, c),
        ops.Linear(f1, flat, w2, None), ops.Linear(f2, f1, w3, None)), (f2,))
    assert [conv_shape(graph, layer) for layer in graph.layers()] == [(6, 1, 3, 3), (7, 6, 5, 4), (3, 7, 1, 1)]
