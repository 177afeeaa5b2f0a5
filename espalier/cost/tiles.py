"""From an FP or BP command and its index lists to the work of the front: which segments each tile has.

Tiles that see the same taps of the same block are one, and so are blocks whose lists have the same shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, product
from typing import NamedTuple, TypeVar

from espalier.arch.machine import Machine
from espalier.cost.work import Loop, Tile
from espalier.program.program import Command, Program

Item = TypeVar("Item")
Taps = tuple[int, int]  #: of one axis: the first that is inside the map, and the one after the last
Windows = tuple[tuple[Taps, ...], int]  #: the tiles of one or of a pool along an axis, and how often they come


class Lists:
    """The index lists of a Program, as far as cycles depend on them.

    Members
    -------
    counts : list of list of int
        Of each processing element, the steps of each entry at one pixel.
    tables : list of sequences of int
        Segment pointers into ``counts``.
    """

    def __init__(self, program: Program) -> None:
        self.machine: Machine = program.machine
        self.counts = [[entry.count for entry in part.entries] for part in program.lists]
        self.tables = [part.table for part in program.lists]

    def pointers(self, command: Command, block: int, element: int) -> tuple[int, ...]:
        """An element's segment pointers of one block of a command: the bias, each tap, and the end."""
        slots = command.kernel_y * command.kernel_x + 1
        start = command.table + block * slots
        return tuple(self.tables[element][start: start + slots + 1])

    def rows(self, command: Command, block: int) -> int:
        """Valid rows of the results of a block."""
        whole = self.machine.all_rows if command.own else self.machine.rows
        return command.last_rows if block + 1 == command.blocks else whole


def work_of(command: Command, lists: Lists) -> Loop:
    """All tiles of an FP or BP command in the order of the TileCounter: by block, then by pixel or by pool window."""
    size = 2 if command.pool_out else 1
    find = taps_inside if lists.machine.tiles == 1 else all_taps
    ys, xs = ([*_runs(_windows(find(command, axis), size))] for axis in "yx")
    known: dict[tuple[object, ...], Loop] = {}
    blocks = []
    for block in range(command.blocks):
        rows, parts = lists.rows(command, block), []
        for element, found in enumerate(lists.counts):
            pointers = lists.pointers(command, block, element)
            parts.append(_Part(tuple(pointer - pointers[0] for pointer in pointers),
                               tuple(found[pointers[0]: pointers[-1]])))
        key = (rows, *parts)
        if key not in known:
            known[key] = _BlockTiles(command, parts, rows).in_order(ys, xs)
        blocks.append(known[key])
    return Loop(tuple(Loop((block,), times) for block, times in _runs(blocks)))


def taps_inside(command: Command, axis: str) -> list[Taps]:
    """The taps that stay inside the source map, for each row (``"y"``) or column (``"x"``) of tiles."""
    source, kernel, pad, stride, out = (getattr(command, f"{name}_{axis}")
                                        for name in ("source", "kernel", "pad", "stride", "out"))
    return [(max(0, pad - at), max(0, min(kernel, source + pad - at))) for at in range(0, out << stride, 1 << stride)]


def all_taps(command: Command, axis: str) -> list[Taps]:
    """The same where lanes hold tiles: what one has not another has, or it is zero."""
    return [(0, getattr(command, f"kernel_{axis}"))] * int(getattr(command, f"out_{axis}"))


class _Part(NamedTuple):
    """What a processing element has of a block: segment pointers from its first entry on, and steps of its entries."""

    pointers: tuple[int, ...]
    counts: tuple[int, ...]

    def between(self, low: int, high: int) -> Sequence[int]:
        """The steps of a segment."""
        return self.counts[self.pointers[low]: self.pointers[high]]


class _BlockTiles(dict[tuple[Taps, Taps], Tile]):
    """The tiles of one block by the taps they see, each made when it is first asked for."""

    def __init__(self, command: Command, parts: Sequence[_Part], rows: int) -> None:
        self.command, self.parts, self.rows = command, parts, rows

    def __missing__(self, taps: tuple[Taps, Taps]) -> Tile:
        self[taps] = tile = self._tile(*taps)
        return tile

    def in_order(self, ys: Sequence[Windows], xs: Sequence[Windows]) -> Loop:
        """All of them; the very first one meets the bias, too."""
        rows = [(Loop(tuple(Loop(tuple(self[at] for at in product(y, x)), across) for x, across in xs)), down)
                for y, down in ys]
        if not any(part.between(0, 1) for part in self.parts):
            return Loop(tuple(Loop(row.body, down) for row, down in rows))
        (row, down), *others = rows
        (window, *after) = row.body
        assert isinstance(window, Loop), "of windows"
        first = Loop((self._tile(ys[0][0][0], xs[0][0][0], fresh=True), *window.body[1:]))
        top = Loop((first, Loop(window.body, window.times - 1), *after))
        return Loop((top, Loop(row.body, down - 1), *(Loop(row.body, down) for row, down in others)))

    def _tile(self, y: Taps, x: Taps, *, fresh: bool = False) -> Tile:
        return Tile.of(self.rows, *([*self._segments(part, y, x, fresh)] for part in self.parts))

    def _segments(self, part: _Part, y: Taps, x: Taps, fresh: bool) -> Iterator[Sequence[int]]:
        """As the SegmentCutter cuts: whole; or the bias, then the rest in one piece or by rows of taps."""
        height, width = self.command.kernel_y, self.command.kernel_x
        if (y, x) == ((0, height), (0, width)):
            yield part.between(0 if fresh else 1, 1 + height * width)
            return
        if self.command.bias and fresh:
            yield part.between(0, 1)
        if x == (0, width) or y[0] == y[1]:
            yield part.between(1 + y[0] * width, 1 + y[1] * width)
        else:
            for row in range(*y):
                yield part.between(1 + row * width + x[0], 1 + row * width + x[1])


def _windows(taps: Sequence[Taps], size: int) -> Iterator[tuple[Taps, ...]]:
    """The tiles of one axis, ``size`` at a time."""
    for at in range(0, len(taps) - size + 1, size):
        yield tuple(taps[at: at + size])


def _runs(items: Iterable[Item]) -> Iterator[tuple[Item, int]]:
    """Items and how often each comes in a row."""
    for item, group in groupby(items):
        yield item, len([*group])
