"""Densities by layer: from shapes (Erdős–Rényi) and from a score that layers share (LAMP)."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.compress.erdos_renyi import erdos_renyi_densities
from espalier.compress.lamp import Lamp, lamp_scores
from espalier.compress.magnitude import Magnitude, Scope, block_density
from espalier.compress.procrustes import Procrustes
from espalier.errors import UnsupportedError
from espalier.numerics.live import expand_blocks, live_blocks

SHAPES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]), st.sampled_from([1, 3])),
                  min_size=1, max_size=5)
ROWS = st.sampled_from([1, 2, 4])


def network(shapes: list[tuple[int, int, int, int]], seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.RandomState(seed)
    return {f"w{index}": random.randn(*shape) * 10.0 ** -index for index, shape in enumerate(shapes)}


def test_kernel_rule_by_hand() -> None:
    """Weights 100 and 400 with sums of edges 20 and 40: 0.25 of 500 is 125 = 60 · 25/12."""
    found = erdos_renyi_densities({"a": (10, 10), "b": (20, 20)}, 0.25)
    assert found == {"a": pytest.approx(20 * 125 / 60 / 100), "b": pytest.approx(40 * 125 / 60 / 400)}


def test_full_layers_leave_the_rest_to_the_others() -> None:
    """At first a (5 edges, 6 weights) would have to hold 5 · 205/55 > 6; b then holds the 199 that are left."""
    found = erdos_renyi_densities({"a": (2, 3), "b": (20, 20, 1, 1)}, 205 / 406)
    assert found == {"a": 1.0, "b": pytest.approx(199 / 400)}


@settings(deadline=None, max_examples=60, derandomize=True)
@given(SHAPES, st.floats(0.01, 1.0))
def test_layers_make_up_the_density(shapes: list[tuple[int, int, int, int]], density: float) -> None:
    by_name = {f"w{index}": shape for index, shape in enumerate(shapes)}
    found = erdos_renyi_densities(by_name, density)
    assert list(found) == list(by_name) and all(0 < value <= 1 for value in found.values())
    held = sum(found[name] * prod(shape) for name, shape in by_name.items())
    assert held == pytest.approx(density * sum(map(prod, shapes)), rel=1e-9)
    sparse = [name for name, value in found.items() if value < 1]
    scales = [found[name] * prod(by_name[name]) / sum(by_name[name]) for name in sparse]
    assert np.allclose(scales, scales[:1])


def test_methods_take_the_densities() -> None:
    layers = network([(8, 3, 3, 3), (16, 8, 3, 3), (32, 16, 3, 3)])
    densities = erdos_renyi_densities({name: w.shape for name, w in layers.items()}, 0.2)
    zeros = {name: np.zeros_like(w) for name, w in layers.items()}
    for masks in (Magnitude(density=0.2, scope=Scope.ERDOS_RENYI)(layers),
                  Procrustes(density=0.2, scope=Scope.ERDOS_RENYI)(layers, zeros, 0).tracked):
        assert all(abs(mask.sum() - densities[name] * mask.size) <= 1 for name, mask in masks.items())


def test_layers_with_a_density_of_their_own_leave_the_rest_to_the_rule() -> None:
    shapes = {"a": (8, 3, 3, 3), "b": (16, 8, 3, 3), "c": (32, 16, 3, 3)}
    found = Magnitude(density=0.2, scope=Scope.ERDOS_RENYI, exceptions={"a": 0.9}).layer_densities(shapes)
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    rest = (0.2 * sum(sizes.values()) - 0.9 * sizes["a"]) / (sizes["b"] + sizes["c"])
    assert list(found) == ["a", "b", "c"] and found["a"] == pytest.approx(0.9)
    assert [found["b"], found["c"]] == pytest.approx([*erdos_renyi_densities(
        {"b": shapes["b"], "c": shapes["c"]}, rest).values()])
    half = Magnitude(density=0.2, scope=Scope.ERDOS_RENYI, exceptions={"a": 0.9}).layer_densities(shapes, 0.5)
    assert [*half.values()] == pytest.approx([(1 + density) / 2 for density in found.values()])


def test_scores_by_hand() -> None:
    """Squares 9, 1, 4, 16: 16/16, 9/25, 4/29, 1/30."""
    scores = lamp_scores(np.array([3.0, -1.0, 2.0, -4.0]).reshape(2, 2, 1, 1))
    assert scores.reshape(-1).tolist() == [9 / 25, 1 / 30, 4 / 29, 1.0]


def test_block_scores_by_hand() -> None:
    """Mean squares 4, 1 and 9 of blocks of 4, 2 and 2 weights: 9/18, 4/34, 1/36."""
    layer = np.array([[2, 2, 3], [2, 2, 3], [1, 1, 0]], dtype=np.float64).reshape(3, 3, 1, 1)
    assert lamp_scores(layer, 2)[..., 0, 0].tolist() == [[4 / 34, 9 / 18], [1 / 36, 0.0]]


def test_a_layer_of_zeros_scores_zero() -> None:
    assert lamp_scores(np.zeros((2, 2, 1, 1))).tolist() == np.zeros((2, 2, 1, 1)).tolist()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(SHAPES, ROWS, st.floats(0.02, 1.0), st.integers(0, 99))
def test_lamp_keeps_whole_blocks_to_the_density(shapes: list[tuple[int, int, int, int]], rows: int, density: float,
                                                seed: int) -> None:
    layers = network(shapes, seed)
    masks = Lamp(density=density, rows=rows)(layers)
    total, alive = sum(map(prod, shapes)), sum(mask.sum() for mask in masks.values())
    assert density * total - rows * rows <= alive <= density * total + len(shapes) * rows * rows + 0.5
    for live in masks.values():
        assert live.any() and np.array_equal(live, expand_blocks(live_blocks(live, rows), rows, live.shape))
        assert block_density(live, rows) == live.mean()


def test_lamp_does_not_mind_the_unit_of_a_layer() -> None:
    """Magnitude across the network starves a layer of small weights; the score is the same in any unit."""
    layers = network([(8, 8, 3, 3), (8, 8, 3, 3)])
    scaled = {name: w * 1024 for name, w in layers.items()} | {"w0": layers["w0"]}
    lamp = Lamp(density=0.25)
    assert all(np.array_equal(lamp(layers)[name], lamp(scaled)[name]) for name in layers)
    assert lamp(layers)["w1"].mean() > 0.2
    assert Magnitude(density=0.25, scope=Scope.NETWORK)(layers)["w1"].mean() < 0.05


def test_the_dead_stay_dead_and_do_not_count() -> None:
    layers = network([(8, 8, 3, 3), (4, 8, 3, 3)])
    lamp = Lamp(density=0.2, rows=2)
    live = lamp(layers, progress=0.5)
    grown = {name: np.where(live[name], w, 100.0) for name, w in layers.items()}
    zeroed = {name: np.where(live[name], w, 0.0) for name, w in layers.items()}
    later = lamp(grown, live)
    assert not any((later[name] & ~live[name]).any() for name in layers)
    assert all(np.array_equal(later[name], lamp(zeroed, live)[name]) for name in layers)


def test_densities_wrong() -> None:
    sentence = r"^A density is above 0 and at most 1, and that of the network is 0.0$"
    with pytest.raises(UnsupportedError, match=sentence):
        erdos_renyi_densities({"a": (2, 2)}, 0.0)
    with pytest.raises(UnsupportedError, match=sentence):
        Lamp(density=0.0)
    with pytest.raises(UnsupportedError, match=r"^The edge of a block is at least 1, not 0$"):
        Lamp(density=0.5, rows=0)
