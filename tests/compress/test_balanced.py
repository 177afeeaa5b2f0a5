"""Every output block keeps as many blocks as every other, or one more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.compress.balanced import Balanced
from espalier.errors import UnsupportedError
from espalier.numerics.live import expand_blocks, live_blocks

SHAPE = st.tuples(st.integers(1, 20), st.integers(1, 12), st.integers(1, 3), st.integers(1, 3))


def test_rows_by_hand() -> None:
    layer = np.array([[9.0, 8.0, 7.0, -6.0], [1.0, -3.0, 2.0, 0.0]]).reshape(2, 4, 1, 1)
    assert Balanced(density=0.5)({"w": layer})["w"][..., 0, 0].tolist() == [[1, 1, 0, 0], [0, 1, 1, 0]]
    assert Balanced(density=3 / 8)({"w": layer})["w"][..., 0, 0].tolist() == [[1, 1, 0, 0], [0, 1, 0, 0]]


def test_ties_keep_the_earlier_block_and_the_earlier_row() -> None:
    kept = Balanced(density=0.5)({"w": np.ones((2, 3, 1, 1))})["w"]
    assert kept[..., 0, 0].astype(int).tolist() == [[1, 1, 0], [1, 0, 0]]
    assert Balanced(density=1 / 6)({"w": np.ones((2, 3, 1, 1))})["w"][..., 0, 0].tolist() == [[1, 0, 0], [0, 0, 0]]


@settings(deadline=None, max_examples=100, derandomize=True)
@given(SHAPE, st.sampled_from([1, 2, 4, 8]), st.floats(0.01, 1), st.integers(0, 999))
def test_counts_differ_by_one_at_most(shape: tuple[int, int, int, int], rows: int, density: float, seed: int) -> None:
    weights = np.random.RandomState(seed).randn(*shape)
    live = Balanced(density=density, rows=rows)({"w": weights})["w"]
    blocks = live_blocks(live, rows)
    counts = blocks.reshape(len(blocks), -1).sum(axis=1)
    assert counts.max() - counts.min() <= 1
    assert counts.sum() == max(1, round(density * blocks.size))
    assert np.array_equal(live, expand_blocks(blocks, rows, shape))


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.integers(1, 12), st.integers(1, 4), st.sampled_from([2, 4]), st.floats(0.05, 1), st.integers(0, 999))
def test_processing_elements_share_every_output_block(outs: int, groups: int, elements: int, density: float, seed: int
                                                      ) -> None:
    """Each has as many of it as the others, and, on the whole, as many as its density says."""
    weights = np.random.RandomState(seed).randn(outs, groups * elements, 3, 3)
    live = Balanced(density=density, elements=elements)({"w": weights})["w"]
    counts = live.reshape(outs, groups, elements, 9).sum(axis=(1, 3))  # by output block and element
    assert (counts == counts[:, :1]).all() and counts.max() - counts.min() <= 1
    assert counts[:, 0].sum() == max(1, round(density * outs * groups * 9))
    if density <= 0.5:  # else rows may have nothing left but blocks of sources that have enough
        sources = live.sum(axis=(0, 2, 3)).reshape(groups, elements)
        assert (sources.max(axis=0) - sources.min(axis=0) <= 2 + outs // 4).all()


def test_what_all_elements_have_is_shared_by_taps() -> None:
    """One input block: no rule but that for the output blocks."""
    weights = np.random.RandomState(2).randn(4, 1, 3, 3)
    alone, shared = (Balanced(density=0.5, elements=elements)({"w": weights})["w"] for elements in (1, 4))
    assert np.array_equal(alone, shared)


def test_the_dead_stay_dead() -> None:
    layer = np.random.RandomState(1).randn(8, 8, 3, 3)
    rule = Balanced(density=0.25, rows=2)
    half = rule({"w": layer}, progress=0.5)
    later = rule({"w": np.where(half["w"], layer, 100.0)}, half)
    assert not (later["w"] & ~half["w"]).any()
    four = replace(rule, elements=4)
    assert not (four({"w": np.where(half["w"], layer, 100.0)}, half)["w"] & ~half["w"]).any()
    assert live_blocks(later["w"], 2).reshape(4, -1).sum(axis=1).tolist() == [9] * 4


def test_a_row_of_dead_blocks_has_none_to_keep() -> None:
    live = np.array([[True, False, False], [True, True, True]]).reshape(2, 3, 1, 1)
    found = Balanced(density=2 / 3)({"w": np.ones((2, 3, 1, 1))}, {"w": live})["w"]
    assert found[..., 0, 0].tolist() == [[True, False, False], [True, True, False]]


def test_balance_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^A density is above 0 and at most 1, and that of the network is 0$"):
        Balanced(density=0)
    with pytest.raises(UnsupportedError, match=r"^The edge of a block is at least 1, not 0$"):
        Balanced(density=0.5, rows=0)
    with pytest.raises(UnsupportedError, match=r"^A network is for at least one processing element, not 0$"):
        Balanced(density=0.5, elements=0)
