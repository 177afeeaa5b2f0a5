"""Cuts against every choice there is."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.errors import UnsupportedError
from espalier.train.balance import balanced_cuts, settled_cuts


def slowest(seconds: list[float], crossing: list[float], cuts: tuple[int, ...]) -> float:
    ends = [0, *(cut + 1 for cut in cuts), len(seconds)]
    return max(sum(seconds[first:last]) + sum(crossing[k - 1] for k in (first, last) if 0 < k < len(seconds))
               for first, last in zip(ends, ends[1:], strict=False))


@given(st.data(), st.lists(st.integers(0, 20), min_size=1, max_size=8))
def test_no_other_cuts_are_better(data: st.DataObject, times: list[int]) -> None:
    seconds = [float(time) for time in times]
    crossing = [float(data.draw(st.integers(0, 5))) for _ in times[1:]]
    parts = data.draw(st.integers(1, len(times)))
    every = [slowest(seconds, crossing, cuts) for cuts in combinations(range(len(times) - 1), parts - 1)]
    cuts = balanced_cuts(seconds, crossing, parts)
    assert len(cuts) == parts - 1 and list(cuts) == sorted(set(cuts))
    assert slowest(seconds, crossing, cuts) == min(every)


def wholes(segments: list[float], cuts: tuple[int, ...]) -> list[float]:
    """What parts take of which nothing is known but their segments."""
    ends = [0, *(cut + 1 for cut in cuts), len(segments)]
    return [sum(segments[first:last]) for first, last in zip(ends, ends[1:], strict=False)]


def test_cuts_stay_where_parts_take_what_their_segments_do() -> None:
    asked = []

    def seconds(cuts: tuple[int, ...]) -> list[float]:
        asked.append(cuts)
        return wholes([4.0, 1.0, 1.0, 1.0, 1.0], cuts)
    assert settled_cuts(seconds, [0.0] * 4, 2) == (0,)
    assert asked == [(0, 1, 2, 3), (0,)]


def test_a_cut_moves_where_the_whole_part_takes_longer() -> None:
    """Alone each layer takes 1 s; the first two, and those alone, take twice as long when others follow."""
    def seconds(cuts: tuple[int, ...]) -> list[float]:
        return [1.0] * 6 if len(cuts) == 5 else wholes([2.0, 2.0, 1.0, 1.0, 1.0, 1.0], cuts)
    assert balanced_cuts([1.0] * 6, [0.0] * 5, 2) == (2,)
    assert settled_cuts(seconds, [0.0] * 5, 2) == (1,)


def test_a_segment_moves_where_the_scaled_ones_would_not() -> None:
    """By what its part takes as a whole, the fourth segment would make the first part slower than it does."""
    wholes = {(2,): [6.0, 6.5], (3,): [6.2, 5.4]}
    asked = []

    def seconds(cuts: tuple[int, ...]) -> list[float]:
        asked.append(cuts)
        return [2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0] if len(cuts) == 8 else wholes[cuts]
    assert settled_cuts(seconds, [0.0] * 8, 2) == (3,)
    assert asked[1:] == [(2,), (3,)]


@given(st.data(), st.lists(st.integers(1, 20), min_size=2, max_size=8))
def test_settled_cuts_are_no_worse(data: st.DataObject, times: list[int]) -> None:
    """Whatever parts take as wholes, none tried twice, and the same whenever the times are."""
    alone, crossing = [float(time) for time in times], [float(data.draw(st.integers(0, 5))) for _ in times[1:]]
    together = [float(data.draw(st.integers(1, 40))) for _ in times]
    parts, asked = data.draw(st.integers(2, len(times))), []

    def seconds(cuts: tuple[int, ...]) -> list[float]:
        asked.append(cuts)
        return alone if len(asked) == 1 else wholes(together, cuts)
    found = settled_cuts(seconds, crossing, parts)
    assert len(asked) == len({*asked[1:]}) + 1 and found in asked[1:]
    assert all(slowest(together, crossing, found) <= slowest(together, crossing, cuts) for cuts in asked[1:])
    asked.clear()
    assert settled_cuts(seconds, crossing, parts) == found


@pytest.mark.parametrize("parts", [0, 4])
def test_as_many_parts_as_there_can_be(parts: int) -> None:
    with pytest.raises(UnsupportedError, match=f"^This network is cut in 1..3 parts, not {parts}$"):
        balanced_cuts([1.0, 2.0, 3.0], [0.0, 0.0], parts)
