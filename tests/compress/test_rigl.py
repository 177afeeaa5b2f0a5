"""Exchanges keep the number of live blocks, drop the smallest and grow where the gradient is largest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.compress.magnitude import Magnitude
from espalier.compress.ranking import mean_saliency
from espalier.compress.rigl import ExchangeSchedule, exchange
from espalier.errors import UnsupportedError
from espalier.numerics.live import expand_blocks, live_blocks

SHAPE = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 3), st.integers(1, 3))


def row(*values: float) -> dict[str, np.ndarray]:
    return {"w": np.array(values).reshape(1, -1, 1, 1)}


def test_exchange_by_hand() -> None:
    live = {"w": np.array([1, 1, 1, 1, 0, 0, 0], dtype=np.bool_).reshape(1, 7, 1, 1)}
    after = exchange(row(3, -1, 2, 4, 0, 0, 0), row(9, 9, 9, 9, 0.1, -0.3, 0.2), live, 0.5)
    assert after["w"].reshape(-1).tolist() == [True, False, False, True, False, True, True]


def test_block_exchange_by_hand() -> None:
    """Two of four 2×2 blocks live; the one of mean 1 dies, the one of mean gradient 2 is born."""
    weights = {"w": np.kron(np.array([[1.0, 3.0], [0.0, 0.0]]), np.ones((2, 2))).reshape(4, 4, 1, 1)}
    gradients = {"w": np.kron(np.array([[9.0, 9.0], [1.0, -2.0]]), np.ones((2, 2))).reshape(4, 4, 1, 1)}
    after = exchange(weights, gradients, {"w": weights["w"] != 0}, 0.5, rows=2)["w"]
    assert live_blocks(after, 2)[..., 0, 0].tolist() == [[False, True], [False, True]] and after.sum() == 8


def test_ties_keep_and_grow_the_earlier() -> None:
    live = {"w": np.array([0, 1, 1, 0, 0], dtype=np.bool_).reshape(1, 5, 1, 1)}
    after = exchange(row(0, 1, 1, 0, 0), row(1, 1, 1, 1, 1), live, 0.5)
    assert after["w"].reshape(-1).tolist() == [True, True, False, False, False]


@settings(deadline=None, max_examples=80, derandomize=True)
@given(SHAPE, st.sampled_from([1, 2, 4]), st.floats(0, 1), st.floats(0.05, 1), st.integers(0, 999))
def test_as_many_are_born_as_die(shape: tuple[int, int, int, int], rows: int, fraction: float, density: float,
                                 seed: int) -> None:
    random = np.random.RandomState(seed)
    weights, gradients = {"w": random.randn(*shape)}, {"w": random.randn(*shape)}
    live = Magnitude(density=density, rows=rows)(weights)
    after = exchange(weights, gradients, live, fraction, rows)["w"]
    old, new = live_blocks(live["w"], rows), live_blocks(after, rows)
    moved = min(int(fraction * old.sum()), (~old).sum())
    assert new.sum() == old.sum() and (new & ~old).sum() == (old & ~new).sum() == moved
    assert np.array_equal(after, expand_blocks(new, rows, shape))
    size, slope = (mean_saliency(np.abs(each["w"]), rows) for each in (weights, gradients))
    if moved:
        assert size[old & ~new].max() <= size[old & new].min(initial=np.inf)
        assert slope[new & ~old].min() >= slope[~new & ~old].max(initial=0)
    assert np.array_equal(after, exchange(weights, gradients, live, fraction, rows)["w"])


def test_the_fraction_falls_along_a_cosine() -> None:
    schedule = ExchangeSchedule(1, 5, 0.4, frequency=2)
    assert [schedule.fraction_at(time) for time in (0.5, 1, 5, 9)] == [0, 0.4, 0, 0]
    assert schedule.fraction_at(3) == pytest.approx(0.2) and schedule.fraction_at(2) == pytest.approx(
        0.2 * (1 + 0.5 ** 0.5))
    assert schedule.due_steps(4) == {4: 1.0, 6: 1.5, 8: 2.0, 10: 2.5, 12: 3.0, 14: 3.5, 16: 4.0, 18: 4.5}


def test_schedule_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^A schedule of exchanges starts at 0 or later and ends after it "
                                               r"starts, not 2\.\.2 epochs$"):
        ExchangeSchedule(2, 2)
    with pytest.raises(UnsupportedError, match=r"^The fraction of blocks that is exchanged is above 0 and at most 1, "
                                               r"not 0$"):
        ExchangeSchedule(0, 2, 0)
    with pytest.raises(UnsupportedError, match=r"^Blocks are exchanged at least once per epoch, not 0 times$"):
        ExchangeSchedule(0, 2, frequency=0)


def test_rows_of_an_exchange_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^The edge of a block is at least 1, not 0$"):
        exchange({}, {}, {}, 0.5, rows=0)
