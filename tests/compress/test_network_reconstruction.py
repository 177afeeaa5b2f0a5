"""Whole networks rebuilt: every layer in its groups and blocks, on what it reads in the network pruned so far."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from numpy.typing import NDArray

from espalier.compress.lamp import Lamp
from espalier.compress.moments import columns, moments
from espalier.compress.network_reconstruction import (
    Arrays,
    LayerInputs,
    RebuiltNetwork,
    layer_moments,
    rebuild_layer,
    reconstruct_network,
)
from espalier.compress.ranking import all_live
from espalier.compress.reconstruction import reconstruct, refit
from espalier.errors import UnsupportedError
from espalier.ir.graph import Graph
from espalier.ir.interpret import interpret
from espalier.ir.ops import Add, Conv2d, Linear, Relu, Reshape
from espalier.ir.types import FLOAT, Fixed, TensorType, Value
from espalier.ir.verify import verify
from espalier.ir.view import conv_shape
from espalier.numerics.live import expand_blocks, live_blocks
from espalier.numerics.window import Window

THREE = Window((3, 3), pad=(1, 1, 1, 1))
CLOSE = 1e-4  #: of values that went through float32


def value(name: str, *shape: int) -> Value:
    return Value(name, TensorType(shape, FLOAT))


def residual() -> Graph:
    """Convolutions with a residual connection, in two groups, depthwise and without a bias, and a linear layer."""
    image = value("image", 4, 5, 5)
    weights = {"a": (8, 4, 3, 3), "b": (8, 4, 3, 3), "c": (8, 1, 3, 3), "d": (6, 200)}
    w = {name: value(f"{name}.weight", *shape) for name, shape in weights.items()}
    b = {name: value(f"{name}.bias", weights[name][0]) for name in "abd"}
    a, ra, grouped, joined, deep, flat, out = (value(name, *shape) for name, shape in (
        ("a", (8, 5, 5)), ("ra", (8, 5, 5)), ("b", (8, 5, 5)), ("sum", (8, 5, 5)), ("c", (8, 5, 5)), ("flat", (200,)),
        ("d", (6,))))
    ops = (Conv2d(a, image, w["a"], b["a"], THREE), Relu(ra, a), Conv2d(grouped, ra, w["b"], b["b"], THREE, groups=2),
           Add(joined, grouped, ra), Conv2d(deep, joined, w["c"], None, THREE, groups=8), Reshape(flat, deep),
           Linear(out, flat, w["d"], b["d"]))
    return verify(Graph("residual", (image,), tuple(v for n in weights for v in (w[n], *([b[n]] if n in b else []))),
                        ops, (out,)))


GRAPH = residual()


def parameters(seed: int = 0) -> dict[str, NDArray[np.float64]]:
    random = np.random.RandomState(seed)
    return {p.name: random.randn(*p.shape) / np.sqrt(max(1, prod(p.shape[1:]))) for p in GRAPH.parameters}


def images(count: int = 40) -> NDArray[np.float32]:
    """Smooth, so that what is read is correlated."""
    random = np.random.RandomState(7)
    coarse = random.randn(count, 4, 3, 3).repeat(2, axis=2).repeat(2, axis=3)[:, :, :5, :5]
    return (coarse + 0.2 * random.randn(count, 4, 5, 5)).astype(np.float32)


def evaluate(part: Graph, values: Arrays) -> dict[str, NDArray]:
    found = interpret(part, values)
    return {output.name: found[output.name].astype(np.float32) for output in part.outputs}


def live() -> dict[str, NDArray[np.bool_]]:
    return {layer.w.name: np.ones(conv_shape(GRAPH, layer), dtype=np.bool_) for layer in GRAPH.layers()}


def rebuilt(density: float, rows: int = 1, now: dict[str, NDArray[np.bool_]] | None = None) -> RebuiltNetwork:
    return reconstruct_network(GRAPH, parameters(), now or live(), density, images(), evaluate, rows)


def logits(tensors: Arrays) -> NDArray:
    return evaluate(GRAPH, {**tensors, "image": images()})["d"]


def by_lamp(density: float) -> dict[str, NDArray]:
    found = parameters()
    masks = Lamp(density=density)({layer.w.name: found[layer.w.name].reshape(conv_shape(GRAPH, layer))
                                   for layer in GRAPH.layers()}, live())
    return {**found, **{name: found[name] * mask.reshape(found[name].shape) for name, mask in masks.items()}}


@pytest.mark.parametrize(("kept_bytes", "chunk_bytes"), [(1 << 30, 1 << 30), (0, 1 << 30), (1 << 30, 1), (0, 1),
                                                         (60_000, 300_000)])
def test_inputs_are_those_of_both_networks_however_little_memory_there_is(kept_bytes: int, chunk_bytes: int) -> None:
    inputs = LayerInputs(GRAPH, parameters(), images(), evaluate, kept_bytes=kept_bytes, chunk_bytes=chunk_bytes)
    now = parameters()
    for number, layer in enumerate(GRAPH.layers()):
        found = inputs.moments(layer, now)
        x, original = (interpret(GRAPH, {**own, "image": images()})[layer.x.name] for own in (now, parameters()))
        for got, expected in zip(found, layer_moments(layer, x, original), strict=True):
            assert got.count == expected.count
            for name in ("total", "total_original", "gram", "cross"):
                assert np.allclose(getattr(got, name), getattr(expected, name), rtol=CLOSE, atol=CLOSE)
        now[layer.w.name] = now[layer.w.name] * (number + 2)


def test_each_operation_runs_once_in_each_network_where_memory_suffices() -> None:
    seen: list[str] = []

    def counted(part: Graph, values: Arrays) -> dict[str, NDArray]:
        seen.extend(op.out.name for op in part.ops)
        return evaluate(part, values)

    inputs = LayerInputs(GRAPH, parameters(), images(), counted)
    for layer in GRAPH.layers():
        inputs.moments(layer, parameters())
    assert sorted(seen) == sorted(2 * [op.out.name for op in GRAPH.ops[:-1]])


def test_words_are_read_as_the_values_they_stand_for() -> None:
    graph = GRAPH.map_values(lambda v: Value(v.name, TensorType(v.shape, Fixed.of(16, 9))))
    words = Fixed.of(16, 9).quantise(images()).astype(np.int16)
    (found,) = LayerInputs(graph, {}, words, lambda part, values: {"image": values["image"]}).moments(
        graph.layers()[0], {})
    expected = moments(columns(words / 512, THREE))
    assert np.array_equal(found.gram, expected.gram) and np.array_equal(found.total, expected.total)


def test_groups_read_their_own_channels() -> None:
    layer = GRAPH.layers()[1]
    x, original = images(3).repeat(2, axis=1), images(3)[::-1].repeat(2, axis=1)
    first, second = layer_moments(layer, x, original)
    assert np.array_equal(first.gram, moments(columns(x[:, :4], THREE)).gram)
    assert np.array_equal(second.cross, moments(columns(x[:, 4:], THREE), columns(original[:, 4:], THREE)).cross)


def test_nothing_changes_where_everything_lives() -> None:
    found = rebuilt(1.0)
    for name, array in parameters().items():
        assert np.allclose(found.parameters[name], array, rtol=0, atol=CLOSE)
    assert all(mask.all() for mask in found.live.values())


@pytest.mark.parametrize("density", [0.5, 0.3, 0.15])
def test_far_nearer_to_the_original_than_lamp(density: float) -> None:
    found, whole = rebuilt(density), logits(parameters())
    lost, lost_by_lamp = (((logits(own) - whole) ** 2).sum() for own in (found.parameters, by_lamp(density)))
    assert lost < 0.35 * lost_by_lamp


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_whole_blocks_at_the_density_and_zeros_elsewhere(rows: int) -> None:
    found = rebuilt(0.3, rows)
    for layer in GRAPH.layers():
        mask = found.live[layer.w.name]
        assert np.array_equal(mask, expand_blocks(live_blocks(mask, rows), rows, mask.shape))
        assert not found.parameters[layer.w.name].reshape(mask.shape)[~mask].any()
    size = sum(mask.size for mask in found.live.values())
    assert sum(mask.sum() for mask in found.live.values()) / size == pytest.approx(0.3, abs=0.02)


def test_the_dead_stay_dead() -> None:
    now = live()
    now["b.weight"][:, 1] = False
    before = {**parameters(), "b.weight": parameters()["b.weight"] * now["b.weight"]}
    found = reconstruct_network(GRAPH, before, now, 0.4, images(), evaluate)
    assert not found.live["b.weight"][:, 1].any()


def test_a_group_alone_is_a_layer_and_cut_blocks_keep_their_mask() -> None:
    random = np.random.RandomState(3)
    weights, seen = random.randn(4, 2, 1, 1), [moments(random.randn(50, 2)) for _ in range(2)]
    wanted, everything = np.array([1, 0, 0, 1, 0, 1, 0, 0], dtype=np.bool_).reshape(4, 2, 1, 1), np.ones(
        (4, 2, 1, 1), dtype=np.bool_)
    found = rebuild_layer(weights, seen, wanted, live=everything)
    alone = reconstruct(weights[2:], seen[1], 0.25, live=everything[2:])
    assert np.array_equal(found.weights[2:], alone.weights) and np.array_equal(found.bias_shift[2:], alone.bias_shift)
    cut = rebuild_layer(weights, seen, wanted, 3, live=everything)
    assert np.array_equal(cut.live, wanted)
    assert np.array_equal(cut.weights[:2], refit(weights[:2], seen[0], wanted[:2]).weights)


def test_a_group_that_is_to_die_dies() -> None:
    weights, seen = np.ones((4, 2, 1, 1)), [moments(np.eye(2)), moments(np.eye(2))]
    wanted = all_live({"w": weights})["w"]
    wanted[:2] = False
    found = rebuild_layer(weights, seen, wanted, live=np.ones_like(wanted))
    assert not found.weights[:2].any() and not found.live[:2].any() and found.live[2:].all()
    assert found.bias_shift[:2].tolist() == [1.0, 1.0]  # the mean of what the group made


@pytest.mark.parametrize(("density", "rows", "sentence"), [
    (0.0, 1, r"^A density is above 0 and at most 1, and that of the network is 0.0$"),
    (0.5, 0, r"^The edge of a block is at least 1, not 0$"),
])
def test_numbers_of_a_network_reconstruction_wrong(density: float, rows: int, sentence: str) -> None:
    with pytest.raises(UnsupportedError, match=sentence):
        rebuilt(density, rows)
