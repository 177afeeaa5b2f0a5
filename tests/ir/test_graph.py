"""Questions to a graph, and the rewriting of its values."""

from __future__ import annotations

import pytest

from espalier.errors import GraphError
from espalier.ir.graph import Graph
from espalier.ir.ops import Add, Linear, Relu
from espalier.ir.types import FLOAT, INDEX, Fixed, TensorType, Value

X, W, H, R, Y = (Value(name, TensorType(shape, FLOAT)) for name, shape in
                 (("x", (4,)), ("w", (4, 4)), ("h", (4,)), ("r", (4,)), ("y", (4,))))
GRAPH = Graph("net", (X,), (W,), (Linear(H, X, W, None), Relu(R, H), Add(Y, R, H)), (Y,))


def test_questions():
    assert GRAPH.value("r") == R
    assert GRAPH.values() == (X, W, H, R, Y)
    assert GRAPH.producer(R) == GRAPH.ops[1]
    assert GRAPH.producer(X) is None
    assert GRAPH.users(H) == GRAPH.ops[1:]
    assert GRAPH.layers() == GRAPH.ops[:1]
    assert GRAPH.ops[0].inputs == (X, W)


def test_values_print_with_their_types():
    assert str(W) == "%w: float[4,4]"
    assert str(Value("labels", TensorType((), INDEX))) == "%labels: index[]"
    assert str(Value("q", TensorType((1, 2), Fixed.of(8, 7)))) == "%q: fixed<8,1,AP_RND,AP_SAT>[1,2]"


def test_with_formats_changes_every_use():
    changed = GRAPH.with_formats({"h": Fixed.of(8, 4)})
    new = Value("h", TensorType((4,), Fixed.of(8, 4)))
    assert changed.ops == (Linear(new, X, W, None), Relu(R, new), Add(Y, R, new))
    assert changed.with_formats({"h": FLOAT}) == GRAPH


def test_unknown_value_wrong():
    with pytest.raises(GraphError, match=r"^Graph 'net' has no value named 'z'$"):
        GRAPH.value("z")
    with pytest.raises(GraphError, match=r"^Graph 'net' has no value named 'a'$"):
        GRAPH.with_formats({"z": FLOAT, "a": FLOAT, "h": FLOAT})
