"""When the blocks of FP and BP are fetched and worked off: the time of :mod:`espalier.cost.work`.

The front is three sources (tiles, segments, blocks), each with a pipeline and a landing queue behind it, then the
Issuer. A source sends one item per cycle while its queue has credit::

    sent[k]  = max(sent[k-1] + 1, when what it is made of was taken + 1, taken[k-16] + 2)
    taken[k] = max(sent[k] + pipeline, when the item before was done)

A tile makes at least one segment, and a segment costs the EntryFetcher at least one cycle. So each item of the first
two queues occupies whoever takes it for a cycle or more, and a credit comes back after at most 7 cycles, less than 16:
once filled, these queues neither run empty nor want credit, and no time depends on them.

The last queue can run empty, since an empty segment costs a cycle and gives no block. What remains is, for a block
of ``steps`` (at least 1) that ``empty`` segments precede::

    fetched = max(fetched[-1] + 1, taken[-16] + 2) + empty
    taken   = max(fetched + 5, done[-1])
    done    = taken + steps,  and for the last of a tile at least the end before + the rows of that tile

Where ``empty`` is 0 the Issuer does not wait: with ``fetched[-1] + 5 <= taken[-1]``, both ``fetched[-1] + 6`` and
``taken[-16] + 7`` are at most ``taken[-1] + 1 <= done[-1]``. So of a run of blocks without an empty segment between
only the first can wait; the last is fetched at ``max(fetched of the first + blocks - 1, taken[-16] + 2)``.

Where something is added to results of BP, it is read from one gradient bank after the other, from
:func:`~espalier.cost.latencies.add_cycles` after the tile's end on, and a step that would read the same bank in the
same cycle waits for a cycle. The steps of a block read one bank after the other, too, from the first on, so that can
only be a block's first step, in the cycle in which the first bank is read, or a tile's last, where that had to wait. It
only puts off what is done, so all of the above holds.

Where results are spilled, a tile may have to wait with its end (:mod:`espalier.cost.spilling`), which puts off all
that follows likewise.

Of several processing elements each has a queue, and all end a tile at once: when the last of them can.

A tile changes the state of the queues, which look back over 16 blocks, and takes some cycles. Both depend on nothing
but the tile and the state, relative to the end of the tile before, and are computed once for each pair.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple, assert_never

from espalier.arch.machine import ROWS
from espalier.cost.latencies import CREDIT_CYCLES, FETCH_CYCLES, QUEUE_DEPTH, add_cycles
from espalier.cost.spilling import NOTHING, Backlog, WritePort
from espalier.cost.work import Loop, Run, Tile

Reading = tuple[int, int]  #: of a bank a cycle, for what is added: the first cycle, and the one after the last


class Queue(NamedTuple):
    """The queue before an Issuer at the end of a tile, in cycles from then.

    Members
    -------
    fetched : int
        When the last block (or empty segment) was fetched.
    taken : tuple of int
        When each of the last ``QUEUE_DEPTH`` blocks was taken, the oldest first; later where that makes no
        difference, so that equal behaviour is an equal state.
    """

    fetched: int
    taken: tuple[int, ...]

    @classmethod
    def at(cls, fetched: int, taken: list[int]) -> Queue:
        """The state, with times that make no difference moved to the latest that make none."""
        full = taken[0] + CREDIT_CYCLES - 1  # there is no credit until then
        if fetched > full:
            taken = [max(time, fetched + 1 + ahead - CREDIT_CYCLES) for ahead, time in enumerate(taken)]
        return cls(max(fetched, full), tuple(taken))


EMPTY = Queue.at(-FETCH_CYCLES - 1, [-FETCH_CYCLES - QUEUE_DEPTH] * QUEUE_DEPTH)  #: the first block is there at 0


class State(NamedTuple):
    """The queues of all processing elements at the end of a tile, and what is under way, in cycles from then.

    Members
    -------
    queues : tuple of Queue
    spacing : int
        Until when the next tile may not end.
    readings : tuple of Reading
        To come or under way, in order.
    backlog : Backlog
        What is on the way to external memory.
    """

    queues: tuple[Queue, ...]
    spacing: int = 0
    readings: tuple[Reading, ...] = ()
    backlog: Backlog = NOTHING


class Stopwatch:
    """Cycles from when the first block can be taken to the end of the last tile.

    Parameters
    ----------
    adds : bool
        Whether something is added to results of BP.
    port : WritePort, optional
        Where results are spilled to.
    pooled : bool
        Whether four tiles make a result.
    elements, rows : int
        Processing elements, and the rows of each.
    """

    def __init__(self, *, adds: bool = False, port: WritePort | None = None, pooled: bool = False, elements: int = 1,
                 rows: int = ROWS[-1]) -> None:
        self.adds, self.port, self.pooled, self.rows = adds, port, pooled, rows
        self.start = State((EMPTY,) * elements)
        self.add_cycles = add_cycles(elements)
        self.known: dict[tuple[Loop | Tile, State], tuple[State, int]] = {}

    def cycles(self, work: Loop) -> int:
        """Of a whole phase."""
        return self._after(work, self.start)[1]

    def spilled(self, work: Loop, backlog: Backlog) -> tuple[Backlog, int]:
        """What is on the way at the end of the last tile, in cycles from then, and the cycles of the phase.

        ``backlog`` is what is on the way when the first block can be taken.
        """
        assert self.port, "there is a port"
        state, cycles = self._after(work, self.start._replace(backlog=backlog))
        return self.port.closed(state.backlog), cycles

    def _after(self, part: Loop | Tile, state: State) -> tuple[State, int]:
        """The state after a part of the work, and the cycles it takes."""
        key = part, state
        found = self.known.get(key)
        if found is None:
            match part:
                case Tile():
                    found = self._tile_after(part, state)
                case Loop():
                    found = self._looped(part, state)
                case _:
                    assert_never(part)
            self.known[key] = found
        return found

    def _looped(self, loop: Loop, state: State) -> tuple[State, int]:
        """As soon as a state comes again, so does all that followed it."""
        total, turn = 0, 0
        seen: dict[State, tuple[int, int]] = {}
        while turn < loop.times:
            if state in seen:
                before, then = seen[state]
                rounds, rest = divmod(loop.times - turn, turn - before)
                total += rounds * (total - then)
                turn, seen = loop.times - rest, {}
                continue
            seen[state] = turn, total
            for part in loop.body:
                state, more = self._after(part, state)
                total += more
            turn += 1
        return state, total

    def _tile_after(self, tile: Tile, state: State) -> tuple[State, int]:
        """The state at the end of a tile, and the cycles from the end of the one before to that."""
        own = [[_part(reading, number * self.rows, self.rows) for reading in state.readings]
               for number in range(len(state.queues))]
        worked = [_worked(runs, queue, readings)
                  for runs, queue, readings in zip(tile.runs, state.queues, own, strict=True)]
        end = max(state.spacing, *(now for _, _, now in worked))
        while any(_meets(runs[-1].last_term, end, readings) for runs, readings in zip(tile.runs, own, strict=True)):
            end += 1
        backlog = state.backlog
        if self.port:
            while (free := self.port.may_end(backlog, end)) > end:
                end = free
            backlog = self.port.after(backlog, end, tile.rows, pooled=self.pooled)
        readings = [(start - end, stop - end) for start, stop in state.readings if stop > end + 1]
        if self.adds:
            readings.append((self.add_cycles, self.add_cycles + tile.rows))
        queues = tuple(Queue.at(fetched - end, [time - end for time in taken]) for fetched, taken, _ in worked)
        return State(queues, tile.rows, tuple(readings), backlog), end


def _part(reading: Reading, first: int, rows: int) -> Reading:
    """What an element whose rows begin there has of a reading for all."""
    start, stop = reading
    return start + first, min(stop, start + first + rows)


def _meets(term: int, time: int, readings: Sequence[Reading]) -> bool:
    """Whether a step would read, at a time, the bank that is read for what is added."""
    return any(start <= time < stop and time - start == term for start, stop in readings)


def _worked(runs: Sequence[Run], queue: Queue, readings: Sequence[Reading]) -> tuple[int, list[int], int]:
    """An element's part of a tile: when the last block was fetched, the last were taken, and the last was done."""
    fetched, taken, now = queue.fetched, [*queue.taken], 0
    for run in runs:
        first = max(fetched + 1, taken[0] + CREDIT_CYCLES) + run.empty
        begin = max(first + FETCH_CYCLES, now)
        late = _late(begin, run, readings)
        last = range(max(0, run.blocks - QUEUE_DEPTH - 1), run.blocks)
        taken += [begin + run.begins[block] + bisect_left(late, block) for block in last]
        credit = taken[-QUEUE_DEPTH - 1] if run.blocks > QUEUE_DEPTH else taken[run.blocks - 1]
        fetched = max(first + run.blocks - 1, credit + CREDIT_CYCLES)
        taken, now = taken[-QUEUE_DEPTH:], begin + run.steps + len(late)
    return fetched, taken, now


def _late(begin: int, run: Run, readings: Sequence[Reading]) -> list[int]:
    """The blocks of a run, the first of which is taken at ``begin``, whose first step waits; one for each cycle."""
    late: list[int] = []
    for start, stop in readings:
        steps = start - begin - 1 - len(late)  # before the one that would meet it
        block = bisect_left(run.begins, steps)
        if start < stop and block < run.blocks and run.begins[block] == steps:
            late.append(block)
    return late
