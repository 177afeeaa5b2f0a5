"""Magnitude pruning keeps the largest, as many as asked for, in whole blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.compress.magnitude import Magnitude, Norm, Scope, block_density
from espalier.compress.schedule import CubicSchedule
from espalier.errors import UnsupportedError
from espalier.numerics.live import expand_blocks, live_blocks


def weights(seed: int, *shapes: tuple[int, int, int, int]) -> dict[str, np.ndarray]:
    random = np.random.RandomState(seed)
    return {f"w{index}": random.randn(*shape) * (index + 1) for index, shape in enumerate(shapes)}


@settings(deadline=None, max_examples=80, derandomize=True)
@given(st.integers(0, 1000), st.sampled_from([1, 2, 4, 8]), st.floats(0.01, 1.0), st.sampled_from(list(Scope)),
       st.sampled_from(list(Norm)))
def test_whole_blocks_within_the_density(seed: int, rows: int, density: float, scope: Scope, norm: Norm) -> None:
    layers = weights(seed, (6, 3, 3, 3), (10, 12, 1, 1), (16, 16, 2, 1))
    masks = Magnitude(density=density, rows=rows, scope=scope, norm=norm)(layers)
    total = sum(w.size for w in layers.values())
    largest = rows * rows
    for name, live in masks.items():
        assert live.any() and live.shape == layers[name].shape and live.dtype == np.bool_
        assert np.array_equal(live, expand_blocks(live_blocks(live, rows), rows, live.shape))
        assert block_density(live, rows) == live.mean()
        if scope is Scope.LAYER:
            assert live.sum() <= max(density * live.size + 0.5, largest)
            assert live.sum() >= density * live.size - largest
    if scope is Scope.NETWORK:
        alive = sum(live.sum() for live in masks.values())
        assert density * total - largest <= alive <= density * total + 3 * largest


def test_single_weights_by_hand() -> None:
    layer = np.array([3.0, -1.0, 2.0, -4.0]).reshape(2, 2, 1, 1)
    live = Magnitude(density=0.5)({"w": layer})["w"]
    assert live.reshape(-1).tolist() == [True, False, False, True]


def test_blocks_by_hand() -> None:
    """A 3×3 layer in 2×2 blocks: means are over the real weights, so the lone corner counts fully."""
    layer = np.array([[1, 1, 3], [1, 1, 0], [0, 5, 2]], dtype=np.float64).reshape(3, 3, 1, 1)
    live = Magnitude(density=4 / 9, rows=2)({"w": layer})["w"][:, :, 0, 0]
    assert live.astype(int).tolist() == [[0, 0, 0], [0, 0, 0], [1, 1, 1]]
    live = Magnitude(density=5 / 9, rows=2)({"w": layer})["w"][:, :, 0, 0]
    assert live.astype(int).tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 1]]


def test_norms_differ_by_hand() -> None:
    layer = np.array([[4.0, 0.0, 2.5, 2.5]] * 2).reshape(2, 4, 1, 1)  # means 2 and 2.5, mean squares 8 and 6.25
    by_sum = Magnitude(density=0.5, rows=2)({"w": layer})["w"]
    by_square = Magnitude(density=0.5, rows=2, norm=Norm.L2)({"w": layer})["w"]
    assert by_sum[0, :, 0, 0].tolist() == [False, False, True, True]
    assert by_square[0, :, 0, 0].tolist() == [True, True, False, False]


def test_ties_keep_the_earlier() -> None:
    live = Magnitude(density=0.5)({"w": np.zeros((2, 4, 1, 1))})["w"]
    assert live.reshape(-1).tolist() == [True] * 4 + [False] * 4


def test_the_dead_stay_dead() -> None:
    layer = weights(3, (8, 8, 3, 3))["w0"]
    magnitude = Magnitude(density=0.2, rows=2)
    live = magnitude({"w": layer}, progress=0.5)
    grown = {"w": np.where(live["w"], layer, 100.0)}
    later = magnitude(grown, live)
    assert not (later["w"] & ~live["w"]).any() and later["w"].any()


def test_exceptions_leave_the_network_density() -> None:
    layers = weights(4, (8, 4, 3, 3), (16, 16, 3, 3))
    for scope in Scope:
        masks = Magnitude(density=0.3, scope=scope, exceptions={"w0": 1.0})(layers)
        assert masks["w0"].all()
        alive, total = sum(m.sum() for m in masks.values()), sum(m.size for m in masks.values())
        assert abs(alive - 0.3 * total) <= 1


def test_progress_goes_from_dense_to_final() -> None:
    layers = weights(5, (8, 4, 3, 3))
    schedule = CubicSchedule(1, 3)
    magnitude = Magnitude(density=0.1)
    densities = [magnitude(layers, progress=schedule.progress(time))["w0"].mean() for time in (0, 1, 1.5, 2, 3, 4)]
    assert densities[0] == densities[1] == 1 and densities == sorted(densities, reverse=True)
    assert abs(densities[-1] - 0.1) < 0.01 and densities[-2] == densities[-1]


def test_cubic_schedule_by_hand() -> None:
    schedule = CubicSchedule(2, 4, frequency=2)
    assert [schedule.progress(time) for time in (0, 2, 3, 4, 9)] == [0, 0, 0.875, 1, 1]
    assert schedule.density(3, 0.2) == pytest.approx(0.3)
    assert schedule.due_steps(10) == {20: 2.0, 25: 2.5, 30: 3.0, 35: 3.5, 40: 4}
    assert CubicSchedule(1, 1).due_steps(10) == {10: 1}


def test_density_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^A density is above 0 and at most 1, and that of the network is 0$"):
        Magnitude(density=0)


def test_rows_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^The edge of a block is at least 1, not 0$"):
        Magnitude(density=0.5, rows=0)


def test_unknown_exception_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^There is no layer 'x' to give a density of its own: the weights are "
                                               r"w0$"):
        Magnitude(density=0.5, exceptions={"x": 1.0})(weights(1, (2, 2, 1, 1)))


def test_exceptions_hold_too_much_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^The layers with a density of their own hold 50.0% of the network's "
                                               r"weights, and only 10.0% may stay: give them less$"):
        Magnitude(density=0.1, exceptions={"w0": 1.0})(weights(1, (2, 2, 1, 1), (2, 2, 1, 1)))


def test_schedule_order_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^A pruning schedule starts at 0 or later and ends no earlier than it "
                                               r"starts, not 3..2 epochs$"):
        CubicSchedule(3, 2)


def test_schedule_frequency_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^A pruning schedule prunes at least once per epoch, not 0 times$"):
        CubicSchedule(1, 2, 0)
