"""The width search on networks of which the answer is known."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.compress.precision import HEADROOM, Precision, cheapest_widths
from espalier.errors import UnsupportedError

SIZES = {"small": 10, "large": 1000, "middle": 100}


def needs(widths: Mapping[str, int], needed: Mapping[str, int]) -> float:
    """Full accuracy where every layer has the bits that it needs, and 0.1 less for each bit that is missing."""
    return 1.0 - sum(max(0, needed[name] - width) for name, width in widths.items()) / 10


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.tuples(st.integers(2, 16), st.integers(2, 16), st.integers(2, 16)))
def test_each_layer_gets_what_it_needs(needed: tuple[int, int, int]) -> None:
    by_name = dict(zip(SIZES, needed, strict=True))
    found = cheapest_widths(SIZES, lambda widths: needs(widths, by_name), 1.0)
    assert found.widths == by_name and found.accuracy == 1.0
    assert found.bits == sum(SIZES[name] * width for name, width in by_name.items())


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)), st.integers(0, 9))
def test_close_to_the_best_of_all_widths(prices: tuple[int, int, int], loss: int) -> None:
    """Each bit below 6 costs a layer its price, and more the lower it is."""
    def accuracy(widths: Mapping[str, int]) -> float:
        lost = sum(price * max(0, 6 - width) ** 2 for price, width in zip(prices, widths.values(), strict=True))
        return 1.0 - lost / 100

    floor = 1.0 - loss / 100
    found = cheapest_widths(SIZES, accuracy, floor, widest=8)
    assert accuracy(found.widths) == found.accuracy >= floor
    every = [dict(zip(SIZES, widths, strict=True)) for widths in product(range(2, 9), repeat=3)]
    good = [sum(SIZES[name] * width for name, width in widths.items())
            for widths in every if accuracy(widths) >= floor]
    shared = min(width for width in range(2, 9) if accuracy(dict.fromkeys(SIZES, width)) >= floor)
    assert min(good) <= found.bits <= min(shared * sum(SIZES.values()), 1.35 * min(good))


def test_a_bit_goes_where_it_is_cheap() -> None:
    """All lose the same accuracy by a bit, so the largest layer gives the bits."""
    found = cheapest_widths(SIZES, lambda widths: needs(widths, dict.fromkeys(SIZES, 8)), 0.8)
    assert found.widths == {"small": 8, "large": 6, "middle": 8}


def test_the_same_question_is_asked_once() -> None:
    asked: list[tuple[int, ...]] = []

    def accuracy(widths: Mapping[str, int]) -> float:
        asked.append(tuple(widths.values()))
        return needs(widths, {"small": 9, "large": 4, "middle": 6})

    found = cheapest_widths(SIZES, accuracy, 1.0)
    assert found.evaluations == len(asked) == len(set(asked)) <= 45
    again = cheapest_widths(SIZES, accuracy, 1.0)
    assert again == found and asked[: len(asked) // 2] == asked[len(asked) // 2:]


def test_the_search_stops_at_its_limit() -> None:
    needed = {"small": 9, "large": 4, "middle": 6}
    found = [cheapest_widths(SIZES, lambda widths: needs(widths, needed), 1.0, limit=limit) for limit in (1, 8, 99)]
    assert found[0] == Precision(dict.fromkeys(SIZES, 16), 1.0, 16 * 1110, 1)
    assert found[1].evaluations == 8 and found[1].accuracy == 1.0
    assert found[0].bits > found[1].bits >= found[2].bits == 90 + 4000 + 600


def test_narrowest_and_widest_bound_the_widths() -> None:
    asked: list[int] = []

    def accuracy(widths: Mapping[str, int]) -> float:
        asked.extend(widths.values())
        return 1.0

    assert cheapest_widths(SIZES, accuracy, 1.0, narrowest=4, widest=8).widths == dict.fromkeys(SIZES, 4)
    assert min(asked) == 4 and max(asked) == 8 and HEADROOM == 2


def test_a_floor_out_of_reach_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^The network reaches an accuracy of 50.00% with 8 bits in every "
                                               r"layer, and at least 60.00% was asked for: allow a larger loss$"):
        cheapest_widths(SIZES, lambda widths: 0.5, 0.6, widest=8)


def test_widths_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^Widths are in 2\.\.16 bits, the narrowest first, not 8\.\.4$"):
        cheapest_widths(SIZES, lambda widths: 1.0, 0.5, narrowest=8, widest=4)


def test_limit_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^A search for widths takes at least 1 evaluation, not 0$"):
        cheapest_widths(SIZES, lambda widths: 1.0, 0.5, limit=0)
