"""Blocks are kept in the order of their saliency."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.compress.ranking import (
    all_live,
    block_counts,
    check_density,
    check_rows,
    keep_layer,
    keep_network,
    mean_saliency,
    rank,
)
from espalier.errors import UnsupportedError
from espalier.numerics.live import live_blocks


def test_edge_blocks_count_their_real_weights() -> None:
    values = np.arange(9, dtype=np.int64).reshape(3, 3, 1, 1)
    assert block_counts(values.shape, 2)[..., 0, 0].tolist() == [[4, 2], [2, 1]]
    assert mean_saliency(values, 2)[..., 0, 0].tolist() == [[2.0, 3.5], [6.5, 8.0]]


def test_keep_by_hand() -> None:
    layers = {name: rank(np.array(scores).reshape(1, 3, 1, 1), np.ones((1, 3, 1, 1), dtype=np.bool_), 1)
              for name, scores in {"a": [5.0, 4.0, 3.0], "b": [0.2, 0.1, 0.3]}.items()}
    assert keep_layer(layers["a"], 2).reshape(-1).tolist() == [True, True, False]
    kept = keep_network(layers, 3)  # the best of b lives, or b would die as a whole
    assert {name: mask.reshape(-1).tolist() for name, mask in kept.items()} == {
        "a": [True, True, False], "b": [False, False, True]}
    assert keep_network({}, 3) == {}


def test_the_dead_are_never_kept() -> None:
    live = np.array([True, False, True]).reshape(1, 3, 1, 1)
    assert keep_layer(rank(np.array([1.0, 9.0, 2.0]).reshape(1, 3, 1, 1), live, 1), 3).tolist() == live.tolist()


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 4), st.floats(0, 70), st.data())
def test_the_first_of_a_stable_order_that_fit(scores: list[int], rows: int, budget: float, data: st.DataObject) -> None:
    """Whatever the ties, and whether or not the block at the edge is smaller than the others."""
    dead = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    inputs = len(scores) * rows - data.draw(st.integers(0, rows - 1))
    live = np.repeat(~np.array(dead), rows)[np.newaxis, :inputs, np.newaxis, np.newaxis]
    kept = live_blocks(keep_layer(rank(np.array(scores, dtype=np.float64).reshape(1, -1, 1, 1), live, rows), budget),
                       rows)
    ranked = sorted(range(len(scores)), key=lambda block: (dead[block], -scores[block], block))
    expected, held = ({ranked[0]} if not all(dead) else set()), 0
    for block in ranked:
        held += min(rows, inputs - block * rows)
        if held > budget + 0.5 or dead[block]:
            break
        expected.add(block)
    assert set(np.flatnonzero(kept).tolist()) == expected


def test_a_dead_layer_stays_dead() -> None:
    nothing, everything = np.zeros((1, 2, 1, 1), dtype=np.bool_), np.ones((1, 2, 1, 1), dtype=np.bool_)
    layers = {name: rank(np.ones((1, 2, 1, 1)), live, 1) for name, live in {"a": nothing, "b": everything}.items()}
    assert not keep_layer(layers["a"], 2).any()
    assert {name: int(mask.sum()) for name, mask in keep_network(layers, 4).items()} == {"a": 0, "b": 2}


def test_all_live() -> None:
    assert all_live({"w": np.zeros((1, 2, 1, 1))})["w"].reshape(-1).tolist() == [True, True]


def test_density_and_rows_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^A density is above 0 and at most 1, and that of conv is 1.5$"):
        check_density(1.5, "conv")
    with pytest.raises(UnsupportedError, match=r"^The edge of a block is at least 1, not -1$"):
        check_rows(-1)
