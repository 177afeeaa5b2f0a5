"""What the front of the engine works off in FP and BP: tiles, their live blocks, and the empty segments between.

This is the order, without any time: :mod:`espalier.cost.issue` adds that. :mod:`espalier.cost.tiles` makes it from a
command. Most tiles of a map see the same taps, so it is a nest of loops over few different tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Blocks of a tile that are fetched in successive cycles, after empty segments that cost a cycle each.

    Members
    -------
    empty : int
        Segments without a block before the first.
    blocks, steps : int
        Of the run.
    begins : tuple of int
        Steps of the run before each of its blocks.
    """

    empty: int
    blocks: int
    steps: int
    begins: tuple[int, ...]

    @property
    def last_term(self) -> int:
        """Which channel of its block the last step is for."""
        return self.steps - self.begins[-1] - 1

    @classmethod
    def of(cls, empty: int, counts: Sequence[int]) -> Run:
        """The run of blocks with so many steps each."""
        *begins, steps = accumulate(counts, initial=0)
        return cls(empty=empty, blocks=len(counts), steps=steps, begins=tuple(begins))


@dataclass(frozen=True, eq=False)
class Tile:
    """The work of one tile: the runs of each processing element, and the rows of its results.

    ``issued``: the steps of each that multiply; ``entries``: of the index lists that it meets.
    """

    runs: tuple[tuple[Run, ...], ...]
    rows: int
    issued: tuple[int, ...]
    entries: int

    @classmethod
    def of(cls, rows: int, *elements: Sequence[Sequence[int]]) -> Tile:
        """The tile of segments, of each processing element, of blocks with so many steps each.

        The last one ends the tile: where it is empty, with a step of nothing.
        """
        return cls(tuple(map(_runs, elements)), rows, tuple(sum(map(sum, segments)) for segments in elements),
                   sum(len(segment) for segments in elements for segment in segments))


def _runs(segments: Sequence[Sequence[int]]) -> tuple[Run, ...]:
    runs: list[Run] = []
    counts: list[int] = []
    empty = 0
    for segment in (*segments[:-1], segments[-1] or [1]):
        if counts and not segment:
            runs.append(Run.of(empty, counts))
            empty, counts = 0, []
        empty += not segment
        counts += segment
    return *runs, Run.of(empty, counts)


@dataclass(frozen=True, eq=False)
class Loop:
    """What it holds, one after the other, and all of that ``times`` over."""

    body: tuple[Loop | Tile, ...]
    times: int = 1

    @cached_property
    def issued(self) -> tuple[int, ...]:
        """Steps of each processing element that multiply."""
        return tuple(self.times * sum(steps) for steps in zip(*(part.issued for part in self.body), strict=True))

    @cached_property
    def entries(self) -> int:
        """Index entries met."""
        return self.times * sum(part.entries for part in self.body)
