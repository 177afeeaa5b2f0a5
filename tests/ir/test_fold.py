"""A folded network computes what it did, and is that which the importer folds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bench.normed import normed, residual, shaken
from torch import nn

from espalier import zoo
from espalier.errors import DataError, GraphError
from espalier.frontend.torch_export import from_torch
from espalier.ir.fold import as_convolutions, fold_batch_norm, has_batch_norm, normed_layers
from espalier.ir.graph import Graph
from espalier.ir.interpret import interpret
from espalier.ir.ops import BatchNorm, Linear, Reshape
from espalier.ir.types import FLOAT, Fixed, TensorType, Value
from espalier.ir.verify import verify

FLOAT64_TOLERANCE = 1e-9  #: sums of float64 products in another order


@pytest.mark.parametrize(("make", "shape"), [
    (residual, (1, 8, 8)), (lambda: zoo.build("resnet20"), (3, 8, 8)),
    (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)), (3, 6, 6))],
    ids=["residual", "resnet20", "twice"])
def test_it_is_what_the_importer_folds(make, shape: tuple[int, int, int]) -> None:
    module = shaken(make())
    graph, state = fold_batch_norm(*from_torch(module, shape, "net", keep_batch_norm=True))
    folded, expected = from_torch(module, shape, "net")
    assert graph == folded and list(state) == list(expected)
    assert all(np.array_equal(state[name], expected[name]) for name in state)


def test_it_computes_the_same() -> None:
    graph, state = normed(shaken(residual()))
    images = np.random.default_rng(0).normal(size=(3, 1, 8, 8))
    found, folded_state = fold_batch_norm(graph, state)
    assert has_batch_norm(graph) and not has_batch_norm(found)
    before, after = (interpret(net, {**numbers, net.inputs[0].name: images})[net.outputs[0].name]
                     for net, numbers in ((graph, state), (found, folded_state)))
    np.testing.assert_allclose(after, before, rtol=0, atol=FLOAT64_TOLERANCE)
    assert folded_state["fc2.weight"] is state["fc2.weight"]


def test_without_batch_norm_nothing_changes() -> None:
    graph, state = from_torch(residual(), (1, 8, 8), "net")
    assert fold_batch_norm(graph, state) == (graph, state) and normed_layers(graph) == {}


def test_of_words_it_is_a_convolution_of_each_channel() -> None:
    """Of a map, and of a vector between layers, bit for bit."""
    random, word, fine = np.random.default_rng(0), Fixed.of(8, 5), Fixed.of(12, 9)
    image, flat = (Value(name, TensorType(shape, word)) for name, shape in (("x", (3, 4, 4)), ("flat", (48,))))
    maps, vector = (Value(name, TensorType(like.shape, word)) for name, like in (("y", image), ("z", flat)))
    scalars = [value(f"{role}{index}", channels) for index, channels in enumerate((3, 48))
               for role in ("scale", "shift", "mean", "variance")]
    graph = Graph("two", (image,), tuple(scalars), (
        BatchNorm(maps, image, *scalars[:4], 1e-5, fine), Reshape(flat, maps),
        BatchNorm(vector, flat, *scalars[4:], 1e-5, word)), (vector,))
    state = {item.name: random.uniform(0.1, 2, item.shape).astype(np.float32) for item in scalars}
    words = random.integers(-128, 128, (5, 3, 4, 4))
    found, parameters = as_convolutions(verify(graph), state)
    assert not has_batch_norm(found) and [item.name for item in found.parameters] == [
        "y.factor", "y.offset", "z.factor", "z.offset"] == sorted(parameters)
    after = interpret(found, {**parameters, "x": words})
    before = interpret(graph, {**state, "x": words})
    assert np.array_equal(after["y"], before["y"]) and np.array_equal(after["z"], before["z"])
    assert len(np.unique(after["z"])) > 50


def test_without_words_no_batch_norm_is_a_convolution() -> None:
    graph, state = normed()
    assert as_convolutions(graph, state)[0] == graph


def value(name: str, *shape: int) -> Value:
    return Value(name, TensorType(shape, FLOAT))


X, W, Y, Z, PARTS = (value("x", 3), value("w", 4, 3), value("y", 4), value("z", 4),
                     tuple(value(name, 4) for name in ("scale", "shift", "mean", "variance")))
CHAIN = Graph("chain", (X,), (W, *PARTS), (Linear(Y, X, W, None), BatchNorm(Z, Y, *PARTS, 0.0)), (Z,))
STATE = {"w": np.ones((4, 3)), "scale": np.full(4, 2.0), "shift": np.ones(4), "mean": np.full(4, 3.0),
         "variance": np.full(4, 4.0)}


def test_by_hand() -> None:
    """Scale 2 over a deviation of 2 is 1; shift 1 less mean 3 is -2. The bias has the shift's name, as no other."""
    graph, state = fold_batch_norm(CHAIN, STATE)
    assert graph == Graph("chain", (X,), (W, value("shift", 4)), (Linear(Y, X, W, value("shift", 4)),), (Y,))
    assert state["w"].tolist() == [[1.0] * 3] * 4 and state["shift"].tolist() == [-2.0] * 4


def test_a_name_that_is_taken_is_not_given() -> None:
    weight, taken = value("y.weight", 4, 3), value("y.bias", 3)
    graph = Graph("chain", (taken,), (weight, *PARTS), (Linear(Y, taken, weight, None), BatchNorm(Z, Y, *PARTS, 0.0)),
                  (Z,))
    found, _ = fold_batch_norm(graph, {"y.weight": STATE["w"], **STATE})
    assert [item.name for item in found.parameters] == ["y.weight", "shift"]


def test_variance_wrong() -> None:
    with pytest.raises(DataError, match=r"^BatchNorm %z: float\[4\]: variance and epsilon must be positive together, "
                                        r"and their least sum is 0\.0; train again or repair the file$"):
        fold_batch_norm(CHAIN, {**STATE, "variance": np.zeros(4)})


@pytest.mark.parametrize("graph", [
    replace(CHAIN, inputs=(Y,), parameters=PARTS, ops=CHAIN.ops[1:]), replace(CHAIN, outputs=(Z, Y))],
    ids=["after no layer", "read twice"])
def test_place_wrong(graph: Graph) -> None:
    with pytest.raises(GraphError, match=r"^BatchNorm %z: float\[4\]: it can be folded only into a layer that it "
                                         r"alone reads, and %y: float\[4\] is none; put it directly after a Conv2d or "
                                         r"Linear$"):
        fold_batch_norm(graph, STATE)
