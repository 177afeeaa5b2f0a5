"""Late gradients made up for: against the recurrences written out in real numbers, and without delay as ever."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.errors import FormatError
from espalier.numerics.compensation import Compensation, compensated, predicted
from espalier.numerics.fixed import Fixed
from espalier.numerics.update import BufferedSgd, master_format

WEIGHT = Fixed.of(8, 6)


def rule(momentum: float = 0.9, decay: float = 1e-3) -> BufferedSgd:
    return BufferedSgd.of(weight=WEIGHT, grad_frac=20, learning_rate=0.05, batch=4, momentum=momentum,
                          weight_decay=decay)


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.99))
def test_without_delay_it_is_the_rule_itself(seed: int, momentum: float) -> None:
    rng, wide = np.random.default_rng(seed), master_format(WEIGHT)
    words = [rng.integers(wide.low, wide.high, 20, endpoint=True) for _ in range(3)]
    for got, want in zip(compensated(rule(momentum), Compensation.of(momentum, 0), *words), rule(momentum)(*words),
                         strict=True):
        assert np.array_equal(got, want)


@pytest.mark.parametrize("delay", [1, 2, 6])
def test_a_gradient_counts_for_as_much_as_ever(delay: int) -> None:
    """One gradient, then none: the weight ends where momentum alone would take it, and is ahead by the delay."""
    plain, late = ([np.array([0]), np.array([0])] for _ in range(2))
    sgd, how = rule(decay=0.0), Compensation.of(0.9, delay)
    for step in range(300):
        gradient = np.array([-1 << 22 if step == 0 else 0])
        plain = list(sgd(*plain, gradient)[:2])
        late = list(compensated(sgd, how, *late, gradient)[:2])
        if step == 0:
            start, first = plain[0].item(), late[0].item()
    assert late[0] == pytest.approx(plain[0], rel=1e-3)
    assert first == pytest.approx(start * sum(0.9 ** k for k in range(delay + 1)), rel=1e-3)


def test_predicted_weights_go_on_as_they_do() -> None:
    master, velocity = np.array([100 << 16, -3 << 16, 127 << 16]), np.array([-5 << 16, 1 << 15, -1 << 16])
    assert predicted(WEIGHT, master, velocity, 3).tolist() == [115, -4, 127]
    assert predicted(WEIGHT, master, velocity, 0).tolist() == [100, -3, 127]


@pytest.mark.parametrize(("momentum", "delay"), [(1.0, 2), (-0.1, 2), (0.9, -1)])
def test_only_what_can_be_made_up_for(momentum: float, delay: int) -> None:
    with pytest.raises(FormatError, match="^Momentum is at least 0 and below 1, and a delay at least 0, not "
                                          f"{momentum} and {delay}$"):
        Compensation.of(momentum, delay)
