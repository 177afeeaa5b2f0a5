"""What has moved most is tracked; the rest goes back to what is left of the initial values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.compress.magnitude import Scope
from espalier.compress.procrustes import ZERO_BELOW, Procrustes
from espalier.errors import UnsupportedError
from espalier.numerics.live import expand_blocks, live_blocks


def row(*values: float) -> np.ndarray:
    return np.array(values).reshape(1, -1, 1, 1)


def test_a_step_by_hand() -> None:
    """d = 1/2: the changes from (2, 1, -1, 4) are 1, 3, 3.5 and 0."""
    rule = Procrustes(density=0.5, decay=0.5)
    found = rule({"w": row(3, 4, -4.5, 4)}, {"w": row(4, 2, -2, 8)}, step=1)
    assert found.weights["w"].reshape(-1).tolist() == [2, 4, -4.5, 4]
    assert found.tracked["w"].reshape(-1).tolist() == [False, True, True, False]


def test_a_large_weight_that_does_not_move_dies() -> None:
    weights = initial = {"w": row(100.0, 0.0)}
    rule = Procrustes(density=0.5, decay=1.0)
    assert rule({"w": row(100.0, 0.1)}, initial, 9).tracked["w"].reshape(-1).tolist() == [False, True]
    assert rule(weights, initial, 9).weights["w"].tolist() == weights["w"].tolist()


def test_untracked_weights_vanish() -> None:
    rule = Procrustes(density=0.5)
    parts = [rule.remaining(step) for step in range(200)]
    assert parts[:2] == [1.0, 0.9] and parts == sorted(parts, reverse=True)
    assert parts[-1] == 0.0 and min(part for part in parts if part) >= ZERO_BELOW
    assert rule({"w": row(1.0, 5.0)}, {"w": row(1.0, 1.0)}, 199).weights["w"].reshape(-1).tolist() == [0.0, 5.0]
    assert Procrustes(density=0.5, decay=1.0).remaining(10 ** 6) == 1.0


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(0, 999), st.sampled_from([1, 2, 4]), st.floats(0.02, 1), st.sampled_from(list(Scope)),
       st.integers(0, 200))
def test_exactly_the_tracked_keep_their_values(seed: int, rows: int, density: float, scope: Scope, step: int) -> None:
    random = np.random.RandomState(seed)
    shapes = {"a": (6, 3, 3, 3), "b": (10, 7, 1, 1)}
    initial = {name: random.randn(*shape) for name, shape in shapes.items()}
    weights = {name: w + random.randn(*w.shape) for name, w in initial.items()}
    rule = Procrustes(density=density, rows=rows, scope=scope)
    found = rule(weights, initial, step)
    for name, tracked in found.tracked.items():
        assert np.array_equal(tracked, expand_blocks(live_blocks(tracked, rows), rows, tracked.shape))
        assert np.array_equal(found.weights[name][tracked], weights[name][tracked])
        assert np.array_equal(found.weights[name][~tracked], rule.remaining(step) * initial[name][~tracked])
        if scope is Scope.LAYER:
            assert tracked.sum() <= max(density * tracked.size + 0.5, rows * rows)
    total = sum(w.size for w in weights.values())
    assert abs(sum(tracked.sum() for tracked in found.tracked.values()) - density * total) <= 2 * rows * rows + 0.5


def test_it_can_come_back() -> None:
    """An untracked weight that a gradient moves far is tracked again."""
    rule, initial = Procrustes(density=0.5, decay=0.0), {"w": row(1.0, 1.0)}
    first = rule({"w": row(5.0, 1.0)}, initial, 5)
    again = rule({"w": first.weights["w"] + row(-4.5, 2.0)}, initial, 6)
    assert [found.tracked["w"].reshape(-1).tolist() for found in (first, again)] == [[True, False], [False, True]]


def test_decay_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^What a step leaves of the initial weights is 0\.\.1 of them, not "
                                               r"1\.1$"):
        Procrustes(density=0.5, decay=1.1)


def test_density_of_the_tracked_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^A density is above 0 and at most 1, and that of the network is 2$"):
        Procrustes(density=2)
