"""Equalised channels: the same network, ranges alike, and no clip reached that was not reached before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.compress.equalise import (
    ROOM,
    ChannelStatistics,
    bias_shift,
    by_group,
    equalise,
    groups_of,
    passages,
    scaled_inside,
)
from espalier.ir.graph import Graph
from espalier.ir.interpret import interpret
from espalier.ir.ops import Add, AveragePool, ClippedRelu, Concat, Conv2d, GlobalAveragePool, Linear, Op, Relu, Reshape
from espalier.ir.types import FLOAT, TensorType, Value
from espalier.ir.verify import verify
from espalier.numerics.window import Window

CHANNELS, SIZE = 4, 6
CLOSE = 1e-4  #: of the largest logit: sums in float32 of numbers that were scaled


def value(name: str, *shape: int) -> Value:
    return Value(name, TensorType(shape, FLOAT))


def conv(x: Value, name: str, out: int, kernel: int, groups: int = 1) -> Conv2d:
    pad = (kernel // 2,) * 4
    return Conv2d(value(name, out, *x.shape[1:]), x, value(f"{name}.w", out, x.shape[0] // groups, kernel, kernel),
                  value(f"{name}.b", out), Window((kernel, kernel), (1, 1), pad), groups)


def graph_of(*ops: Op) -> Graph:
    image = value("image", 3, SIZE, SIZE)
    parameters = tuple(read for op in ops if isinstance(op, Conv2d | Linear) for read in op.inputs[1:])
    return verify(Graph("net", (image,), tuple(dict.fromkeys(parameters)), ops, (ops[-1].out,)))


def separable(clipped: bool = False) -> Graph:
    """Convolution, depthwise convolution, pool, linear layer, with rectifiers between."""
    def rectified(x: Value) -> Relu | ClippedRelu:
        out = value(f"{x.name}.relu", *x.shape)
        return ClippedRelu(out, x, 6) if clipped else Relu(out, x)
    a = conv(value("image", 3, SIZE, SIZE), "a", CHANNELS, 3)
    b = rectified(a.out)
    c = conv(b.out, "c", CHANNELS, 3, CHANNELS)
    d = rectified(c.out)
    e = AveragePool(value("e", CHANNELS, 1, 1), d.out, Window((SIZE, SIZE), (1, 1)))
    f = Reshape(value("f", CHANNELS), e.out)
    g = Linear(value("g", 5), f.out, value("g.w", 5, CHANNELS), value("g.b", 5))
    return graph_of(a, b, c, d, e, f, g)


def drawn(graph: Graph, seed: int, spread: float = 3.0) -> dict[str, np.ndarray]:
    """Weights whose channels differ in range by orders of magnitude."""
    random = np.random.default_rng(seed)
    found = {}
    for parameter in graph.parameters:
        scales = np.exp(spread * random.normal(size=(parameter.shape[0], *[1] * (len(parameter.shape) - 1))))
        found[parameter.name] = (random.normal(size=parameter.shape) * scales).astype(np.float32)
    return found


def run(graph: Graph, parameters: dict[str, np.ndarray], images: np.ndarray) -> dict[str, np.ndarray]:
    return interpret(graph, {"image": images, **{name: array.astype(np.float32) for name, array in parameters.items()}})


def seen_by(values: dict[str, np.ndarray], graph: Graph) -> dict[str, ChannelStatistics]:
    return {op.out.name: ChannelStatistics(*(np.zeros(op.out.shape[0]),) * 2,
                                           values[op.out.name].max(axis=(0, 2, 3)).astype(np.float64))
            for op in graph.ops if isinstance(op, ClippedRelu)}


@settings(deadline=None, max_examples=10, derandomize=True)
@given(seed=st.integers(0, 1000), clipped=st.booleans())
def test_the_network_computes_the_same(seed, clipped):
    graph = separable(clipped)
    parameters = drawn(graph, seed, 1.0)
    images = np.random.default_rng(seed + 1).uniform(-1, 1, (4, 3, SIZE, SIZE)).astype(np.float32)
    before = run(graph, parameters, images)
    after = run(graph, equalise(graph, parameters, seen_by(before, graph)), images)
    assert np.abs(after["g"] - before["g"]).max() <= CLOSE * np.abs(before["g"]).max()


def test_channels_have_equal_ranges_before_and_behind():
    graph = separable()
    parameters = drawn(graph, 3)
    found = equalise(graph, parameters, {}, rounds=200)
    for way in passages(graph):
        before = np.abs(found[way.layer.w.name]).reshape(CHANNELS, -1).max(axis=1)
        reader, = way.readers
        behind = np.abs(by_group(found[reader.w.name], reader)).max(axis=(1, 3)).reshape(-1)
        assert np.allclose(before, behind, rtol=1e-6)  # of float64, after rounds that converge geometrically


def test_a_channel_at_the_clip_stays_and_no_other_is_scaled_to_it():
    graph = separable(clipped=True)
    parameters = drawn(graph, 5)
    images = np.random.default_rng(6).uniform(-1, 1, (8, 3, SIZE, SIZE)).astype(np.float32)
    before = run(graph, parameters, images)
    seen = seen_by(before, graph)
    found = equalise(graph, parameters, seen)
    after = seen_by(run(graph, found, images), graph)
    for way in passages(graph):
        largest, scaled = (each[way.clipped[0].out.name].largest for each in (seen, after))
        reached = largest == 6
        assert reached.any() and not reached.all()
        assert np.array_equal(found[way.layer.b.name][reached], parameters[way.layer.b.name][reached])
        assert (scaled[~reached] <= np.maximum(6 * ROOM, largest[~reached]) * (1 + CLOSE)).all()


def test_dead_channels_and_the_dead_weights_of_others_stay_zero():
    graph = separable()
    parameters = drawn(graph, 7)
    parameters["a.w"][1] = 0
    parameters["c.w"][2] = 0
    parameters["a.w"][0, 0] = 0
    found = equalise(graph, parameters, {})
    assert not found["a.w"][1].any() and not found["c.w"][2].any() and not found["a.w"][0, 0].any()
    assert all(np.isfinite(array).all() for array in found.values())


def test_sums_concatenations_outputs_and_shared_weights_are_left_alone():
    image = value("image", 3, SIZE, SIZE)
    a = conv(image, "a", CHANNELS, 1)
    b = conv(a.out, "b", CHANNELS, 1)
    added = Add(value("sum", CHANNELS, SIZE, SIZE), a.out, b.out)
    c = conv(added.out, "c", CHANNELS, 1)
    d = conv(c.out, "d", CHANNELS, 1)
    both = Concat(value("both", 2 * CHANNELS, SIZE, SIZE), d.out, added.out)
    e = conv(both.out, "e", CHANNELS, 1)
    again = Conv2d(value("again", CHANNELS, SIZE, SIZE), e.out, d.w, d.b, d.window)
    out = GlobalAveragePool(value("out", CHANNELS, 1, 1), again.out)
    assert [(way.layer, way.readers) for way in passages(graph_of(a, b, added, c, d, both, e, again, out))] == []
    alone = passages(graph_of(a, b, added, c, d, both, replace(out, x=both.out, out=value("out", 2 * CHANNELS, 1, 1))))
    assert [(way.layer.out.name, [reader.out.name for reader in way.readers]) for way in alone] == [("c", ["d"])]


def test_a_network_is_scaled_inside_by_a_power_of_two_exactly():
    graph = separable()
    parameters = drawn(graph, 9, 1.0)
    images = np.random.default_rng(10).uniform(-1, 1, (4, 3, SIZE, SIZE)).astype(np.float32)
    scaled = scaled_inside(graph, parameters, 1 / 8)
    assert scaled is not None
    before, after = run(graph, parameters, images), run(graph, scaled, images)
    for op in graph.ops:
        assert np.array_equal(after[op.out.name], before[op.out.name] * (1.0 if op.out.name == "g" else 1 / 8))


def test_a_network_with_a_clip_or_a_way_around_its_last_layer_is_not_scaled():
    assert scaled_inside(separable(clipped=True), drawn(separable(), 1), 0.5) is None
    a = conv(value("image", 3, SIZE, SIZE), "a", CHANNELS, 1)
    b = conv(a.out, "b", CHANNELS, 1)
    around = graph_of(a, b, Add(value("sum", CHANNELS, SIZE, SIZE), a.out, b.out))
    assert scaled_inside(around, drawn(around, 1), 0.5) is None
    alone = graph_of(a)
    assert np.array_equal(scaled_inside(alone, same := drawn(alone, 1), 0.5)["a.w"], same["a.w"])


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_bias_makes_up_for_the_mean_of_what_rounding_adds(groups):
    random = np.random.default_rng(groups)
    layer = conv(value("x", CHANNELS, SIZE, SIZE), "y", CHANNELS, 3, groups)
    weight, change = random.integers(-9, 9, (2, *layer.w.shape))
    mean = random.integers(0, 9, CHANNELS)
    def result(weights):  # of a constant image, without padding
        spread = np.repeat(mean.reshape(groups_of(layer), -1)[:, None], CHANNELS // groups, axis=1)
        return (by_group(weights, layer).sum(axis=3) * spread).sum(axis=2).reshape(-1)
    assert np.array_equal(result(weight + change) + bias_shift(layer, change, mean), result(weight))
