"""The model of a pipeline against cases that a person can work out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.cost.pipelines import Link, Part, Scheme, predict
from espalier.errors import UnsupportedError

FAST = Link(1e30)
HALF = Part(1.0, 2.0, 100, 1000, 50)


def test_equal_parts_and_no_link() -> None:
    found = predict([HALF, HALF, HALF], FAST, Scheme.STALE)
    assert (found.batch_seconds, found.speed_up, found.idle) == (3.0, 3.0, (0.0, 0.0, 0.0))
    assert found.activation_bytes == (5000, 3000, 1000)
    assert found.weight_bytes == (50, 50, 50)
    assert predict([HALF, HALF, HALF], FAST, Scheme.STASHED).weight_bytes == (250, 150, 50)


def test_the_slowest_part_or_link_sets_the_pace() -> None:
    slow = Part(2.0, 4.0, 0, 0, 0)
    found = predict([HALF, slow], FAST, Scheme.STALE)
    assert (found.batch_seconds, found.speed_up, found.idle) == (6.0, 1.5, (0.5, 0.0))
    assert predict([HALF, slow], Link(10.0, 1.0), Scheme.STALE).batch_seconds == 11.0
    assert predict([HALF], Link(1e-9), Scheme.STALE).batch_seconds == 3.0, "nothing is sent"


@pytest.mark.parametrize("micro_batches", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_synchronous_pipeline_fills_and_empties(count: int, micro_batches: int) -> None:
    """(M + S - 1) / M of what a part computes; and 2 (S - 1 - s) + 1 micro-batches under way, or all."""
    found = predict([HALF] * count, FAST, Scheme.SYNCHRONOUS, micro_batches)
    assert found.batch_seconds == pytest.approx(3.0 * (micro_batches + count - 1) / micro_batches)
    assert found.activation_bytes == tuple(1000 * min(2 * left + 1, micro_batches) // micro_batches
                                           for left in reversed(range(count)))
    assert found.weight_bytes == (50,) * count


def test_a_synchronous_pipeline_waits_for_messages() -> None:
    found = predict([HALF, HALF], Link(100.0, 0.5), Scheme.SYNCHRONOUS)
    assert found.batch_seconds == 1 + 1.5 + 1 + 2 + 1.5 + 2


def test_a_stretch_fills_and_empties() -> None:
    """Of parts that are not even, all but the slowest do so beside it."""
    slow, fast = Part(2.0, 4.0, 0, 0, 0), Part(1.0, 1.0, 0, 0, 0)
    assert predict([slow, fast], FAST, Scheme.STALE, stretch=10).batch_seconds == 6.0
    assert predict([fast, slow], FAST, Scheme.STALE, stretch=10).batch_seconds == pytest.approx((1 + 60 + 1) / 10)
    assert predict([HALF], FAST, Scheme.STALE, stretch=1).batch_seconds == 3.0


def test_the_whole_can_take_longer_than_its_parts() -> None:
    assert predict([HALF, HALF], FAST, Scheme.STALE, alone=9.0).speed_up == 3.0


@given(st.lists(st.tuples(st.floats(0.01, 10), st.floats(0.01, 10)), min_size=1, max_size=6), st.integers(1, 8))
def test_nothing_is_faster_than_its_parts(seconds: list[tuple[float, float]], micro_batches: int) -> None:
    parts = [Part(forward, backward, 10, 0, 0) for forward, backward in seconds]
    for scheme in Scheme:
        found = predict(parts, Link(1e3), scheme, micro_batches)
        assert found.speed_up <= len(parts) * (1 + 1e-9)
        assert all(-1e-9 <= idle < 1 for idle in found.idle)
    stale, synchronous = (predict(parts, Link(1e9), scheme, micro_batches) for scheme in (Scheme.STALE,
                                                                                          Scheme.SYNCHRONOUS))
    assert stale.batch_seconds <= synchronous.batch_seconds * (1 + 1e-9)


def test_links_and_parts_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^A link carries more than 0 bytes a second, after 0 seconds or more, "
                                               r"not 0 after 0$"):
        Link(0)
    with pytest.raises(UnsupportedError, match=r"^A pipeline has at least 1 part and 1 micro-batch, and a stretch at "
                                               r"least 1 batch, not 0, 1 and None$"):
        predict([], FAST, Scheme.STALE)
