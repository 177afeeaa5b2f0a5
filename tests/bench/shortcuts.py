"""A network for OpenCL kernels in which two layers read one map at stride 2."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from espalier.ir.graph import Graph
from espalier.ir.ops import Add, Conv2d
from espalier.ir.types import Fixed, TensorType, Value
from espalier.numerics.window import Window


def strided_shortcut(rows: int, columns: int, density: float) -> tuple[Graph, dict[str, NDArray]]:
    """A stem, a convolution of stride 2 and another, the shortcut around these, and the sum; some weights live."""
    half = (rows + 1) // 2, (columns + 1) // 2
    x, a = value("x", 4, rows, columns), value("a", 4, rows, columns)
    b, c, d, y = (value(name, 8, *half) for name in "bcdy")
    w1, w2, w3, w4 = (value(name, *shape) for name, shape in (
        ("w1", (4, 4, 3, 3)), ("w2", (8, 4, 3, 3)), ("w3", (8, 8, 3, 3)), ("w4", (8, 4, 1, 1))))
    pad = (1, 1, 1, 1)
    graph = Graph("shortcut", (x,), (w1, w2, w3, w4), (
        Conv2d(a, x, w1, None, Window((3, 3), pad=pad)), Conv2d(b, a, w2, None, Window((3, 3), (2, 2), pad)),
        Conv2d(c, b, w3, None, Window((3, 3), pad=pad)), Conv2d(d, a, w4, None, Window((1, 1), (2, 2))),
        Add(y, c, d)), (y,))
    random = np.random.RandomState(0)
    return graph, {found.name: np.where(random.rand(*found.shape) < density, random.randint(-100, 100, found.shape), 0)
                   for found in graph.parameters}


def value(name: str, *shape: int) -> Value:
    """Of 8-bit words."""
    return Value(name, TensorType(shape, Fixed.of(8, 4)))
