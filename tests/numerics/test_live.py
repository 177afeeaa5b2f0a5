"""The live set in blocks."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.numerics.live import block_grid, block_sums, expand_blocks, live_blocks


def test_blocks_by_hand():
    """A 3×5 linear layer as 1×1 taps in 2×2 blocks: the last row and column of blocks are partly outside."""
    weights = np.arange(15).reshape(3, 5, 1, 1)
    assert block_grid(weights.shape, 2) == (2, 3, 1, 1)
    assert block_sums(weights, 2)[:, :, 0, 0].tolist() == [[0 + 1 + 5 + 6, 2 + 3 + 7 + 8, 4 + 9], [21, 25, 14]]
    live = np.zeros((3, 5, 1, 1), dtype=bool)
    live[2, 4] = live[0, 1] = True
    blocks = live_blocks(live, 2)
    assert blocks[:, :, 0, 0].tolist() == [[True, False, False], [False, False, True]]
    assert expand_blocks(blocks, 2, live.shape)[:, :, 0, 0].tolist() == [
        [True, True, False, False, False], [True, True, False, False, False], [False, False, False, False, True]]


@st.composite
def live_sets(draw) -> np.ndarray:
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3)))
    return np.random.default_rng(draw(st.integers(0, 2 ** 32 - 1))).random(shape) < draw(st.floats(0, 1))


@settings(deadline=None, derandomize=True)
@given(live_sets(), st.sampled_from([1, 2, 4, 8, 16]))
def test_a_block_lives_if_any_of_its_weights_does(live, rows):
    blocks = live_blocks(live, rows)
    assert blocks.shape == block_grid(live.shape, rows)
    for o, i, y, x in np.ndindex(blocks.shape):
        assert blocks[o, i, y, x] == live[o * rows:(o + 1) * rows, i * rows:(i + 1) * rows, y, x].any()
    expanded = expand_blocks(blocks, rows, live.shape)
    assert expanded.shape == live.shape
    assert not (live & ~expanded).any()
    assert np.array_equal(live_blocks(expanded, rows), blocks)
    assert rows > 1 or np.array_equal(expanded, live)
