"""Cuts against every choice there is."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.errors import UnsupportedError
from espalier.train.balance import balanced_cuts


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


@pytest.mark.parametrize("parts", [0, 4])
def test_as_many_parts_as_there_can_be(parts: int) -> None:
    with pytest.raises(UnsupportedError, match=f"^This network is cut in 1..3 parts, not {parts}$"):
        balanced_cuts([1.0, 2.0, 3.0], [0.0, 0.0], parts)
