"""Which operations share a kernel."""

from __future__ import annotations

import pytest
from bench.normed import normed

from espalier.errors import UnsupportedError
from espalier.ir.graph import Graph
from espalier.ir.ops import Add, Conv2d, Linear, Op, Relu, Reshape
from espalier.ir.types import FLOAT, TensorType, Value
from espalier.ir.verify import verify
from espalier.numerics.window import Window
from espalier.opencl.plan import plan

SAME = Window((3, 3), pad=(1, 1, 1, 1))


def value(name: str, *shape: int) -> Value:
    return Value(name, TensorType(shape, FLOAT))


def residual(*, shared: bool = False) -> Graph:
    """Two convolutions and a shortcut around the second; ``shared``: the sum reads one value twice."""
    x, w1, w2, w3 = value("x", 2, 4, 4), value("w1", 2, 2, 3, 3), value("w2", 2, 2, 3, 3), value("w3", 5, 32)
    y, z, s, r, f, o = (value("y", 2, 4, 4), value("z", 2, 4, 4), value("s", 2, 4, 4), value("r", 2, 4, 4),
                        value("f", 32), value("o", 5))
    ops: tuple[Op, ...] = (Conv2d(y, x, w1, None, SAME), Conv2d(z, y, w2, None, SAME),
                           Add(s, z, z if shared else y), Relu(r, s), Reshape(f, r), Linear(o, f, w3, None))
    return verify(Graph("residual", (x,), (w1, w2, w3), ops, (o,)))


def kernels(graph: Graph, *, fusion: bool) -> list[str]:
    return [" ".join(op.out.name if not isinstance(op, Value) else f"({op.name})" for op in (work.op, *work.followers))
            for work in plan(graph, fusion=fusion)]


def test_sums_and_rectifiers_follow_their_layer() -> None:
    assert kernels(residual(), fusion=True) == ["y", "z s r", "o"]


def test_without_fusion_each_is_a_kernel() -> None:
    assert kernels(residual(), fusion=False) == ["y", "z", "(z) s", "(s) r", "o"]


def test_a_sum_of_one_value_twice_stays_its_own() -> None:
    assert kernels(residual(shared=True), fusion=True) == ["y", "z", "(z) s r", "o"]


def test_each_operation_once() -> None:
    """Where a sum could follow either of two layers, it follows one, and that comes after the other."""
    x, w1, w2 = value("x", 2, 4, 4), value("w1", 2, 2, 3, 3), value("w2", 2, 2, 3, 3)
    y, z, s = value("y", 2, 4, 4), value("z", 2, 4, 4), value("s", 2, 4, 4)
    graph = Graph("two", (x,), (w1, w2), (Conv2d(y, x, w1, None, SAME), Conv2d(z, x, w2, None, SAME), Add(s, y, z)),
                  (s,))
    assert kernels(verify(graph), fusion=True) == ["z", "y s"]


def test_batch_norms_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"^There is no OpenCL kernel for BatchNorm \(.*\): kernels are for "
                                               r"inference, and batch norms are folded before$"):
        plan(normed()[0], fusion=True)
