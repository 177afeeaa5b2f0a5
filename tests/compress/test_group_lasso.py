"""The proximal operator by hand, and as the minimum that it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.compress.group_lasso import penalty, shrink
from espalier.compress.ranking import mean_saliency
from espalier.errors import UnsupportedError
from espalier.numerics.live import expand_blocks

SHAPE = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(1, 2))
ROWS = st.sampled_from([1, 2, 4])


def test_single_weights_are_soft_thresholded() -> None:
    assert shrink(np.array([3.0, -1.0, 0.5, -2.5]).reshape(2, 2, 1, 1), 1.0).reshape(-1).tolist() == [2, 0, 0, -1.5]


def test_blocks_by_hand() -> None:
    """Blocks of root mean square 5 and, at the edge, 2: the first shrinks to 3/5, the second dies."""
    layer = np.array([[7.0, 5.0, 2.0], [-5.0, 1.0, 2.0]]).reshape(2, 3, 1, 1)
    assert np.allclose(shrink(layer, 2.0, rows=2)[..., 0, 0], [[4.2, 3.0, 0], [-3.0, 0.6, 0]], rtol=1e-15, atol=0)
    assert penalty(layer, rows=2) == pytest.approx(4 * 5 + 2 * 2)


def test_whole_words_are_taken_too() -> None:
    assert shrink(np.array([[[[300]], [[-20]]]]), 25).reshape(-1).tolist() == [275, 0]


@settings(deadline=None, max_examples=80, derandomize=True)
@given(SHAPE, ROWS, st.floats(0, 2), st.integers(0, 999))
def test_blocks_lose_the_strength_or_die(shape: tuple[int, int, int, int], rows: int, strength: float, seed: int
                                         ) -> None:
    weights = np.random.RandomState(seed).randn(*shape)
    shrunk = shrink(weights, strength, rows)
    before, after = (np.sqrt(mean_saliency(w ** 2, rows)) for w in (weights, shrunk))
    assert np.allclose(after, np.maximum(before - strength, 0), rtol=0, atol=1e-12)
    dead = expand_blocks(before <= strength, rows, shape)
    assert np.array_equal(shrunk == 0, dead)
    assert np.array_equal(np.sign(shrunk[~dead]), np.sign(weights[~dead]))


@settings(deadline=None, max_examples=30, derandomize=True)
@given(SHAPE, ROWS, st.floats(0.05, 1.5), st.integers(0, 999))
def test_it_minimises_distance_and_penalty(shape: tuple[int, int, int, int], rows: int, strength: float, seed: int
                                           ) -> None:
    random = np.random.RandomState(seed)
    weights = random.randn(*shape)

    def objective(v: np.ndarray) -> float:
        return ((v - weights) ** 2).sum() / 2 + strength * penalty(v, rows)

    best = shrink(weights, strength, rows)
    for size in (1e-3, 0.1, 1.0):
        assert objective(best) <= objective(best + size * random.randn(*shape)) + 1e-12


def test_strength_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^The strength of a group lasso is at least 0, not -1$"):
        shrink(np.ones((1, 1, 1, 1)), -1)
    with pytest.raises(UnsupportedError, match=r"^The strength of a group lasso is at least 0, not nan$"):
        shrink(np.ones((1, 1, 1, 1)), float("nan"))


def test_rows_of_a_lasso_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^The edge of a block is at least 1, not 0$"):
        shrink(np.ones((1, 1, 1, 1)), 1.0, rows=0)
