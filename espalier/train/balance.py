"""Where to cut a network so that the parts of a pipeline take equally long."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from espalier.errors import UnsupportedError


def balanced_cuts(seconds: Sequence[float], crossing: Sequence[float], parts: int) -> tuple[int, ...]:
    """The cut points, by number, between which the slowest of so many parts is the fastest possible.

    Of equal ones, those that come first. By dynamic programming over the segments.

    Parameters
    ----------
    seconds : sequence of float
        What each segment of the network takes, forward and back; segments lie between neighbouring cut points.
    crossing : sequence of float
        What each cut costs either of its parts, in seconds; one fewer than segments.
    parts : int

    Raises
    ------
    UnsupportedError
        There are fewer segments than parts.
    """
    count = len(seconds)
    assert len(crossing) == count - 1, "cut points lie between segments"
    if not 1 <= parts <= count:
        raise UnsupportedError(f"This network is cut in 1..{count} parts, not {parts}")

    def part(first: int, last: int) -> float:
        return (sum(seconds[first:last]) + (crossing[first - 1] if first else 0.0)
                + (crossing[last - 1] if last < count else 0.0))

    @cache
    def best(first: int, left: int) -> tuple[float, tuple[int, ...]]:
        """The slowest of ``left`` parts from segment ``first`` on, and their cuts."""
        if left == 1:
            return part(first, count), ()
        found = []
        for last in range(first + 1, count - left + 2):
            slowest, cuts = best(last, left - 1)
            found.append((max(part(first, last), slowest), (last - 1, *cuts)))
        return min(found)

    return best(0, parts)[1]
