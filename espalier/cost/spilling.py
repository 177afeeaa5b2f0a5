"""When spilled vectors leave the queue before the port, and when a tile may not end for them.

The Spiller takes vectors from the queue in order, cuts them into beats and these into bursts::

    taken[v] = max(came[v] + 2, taken[v-1] + 1, last beat of v-1)
    asked[n] = max(taken of the vector at its beginning + 1, last beat of n-1 + 1, answered[n-8] + 1)
    beat[k]  = max(taken of its vector + 1, asked of its burst + 1, beat[k-1] + the memory's cycles a beat)
    answered[n] = max(last beat of n + latency, answered[n-1] + 1)

Nothing of this depends on what comes later, so all of it is known as soon as a tile has ended. A tile may not end in a
cycle in which more vectors than the queue's lower half, come and not taken, were there two cycles before.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import NamedTuple

from espalier.arch.machine import Machine
from espalier.arch.memory import MemoryTiming
from espalier.cost.latencies import HOLD_CYCLES, OUTSTANDING, SPILL_CYCLES, gather_cycles

POOLED = 4       #: tiles whose results make one
LONG_AGO = -1 << 60


class Backlog(NamedTuple):
    """What is on the way to external memory, in cycles from some time on, such as the end of a tile.

    Members
    -------
    came, taken : tuple of int
        When each vector comes to the queue, and when it leaves it; of those that have not left it.
    asked, beat, left : int
        When the last burst was asked for, its last beat so far, and how many are to come.
    answered : tuple of int
        When each of the last ``OUTSTANDING`` bursts is answered.
    tiles : int
        Of a pooled result, that have ended.
    """

    came: tuple[int, ...] = ()
    taken: tuple[int, ...] = ()
    asked: int = -1
    beat: int = LONG_AGO
    left: int = 0
    answered: tuple[int, ...] = ()
    tiles: int = 0

    @property
    def idle(self) -> int:
        """The first cycle in which nothing is on the way, of those to come."""
        return max((0, *(at + 1 for at in self.answered)))


NOTHING = Backlog()


@dataclass(frozen=True, slots=True)
class WritePort:
    """The queue, the port behind it, and the memory behind that."""

    vector_beats: int
    burst_beats: int
    spare: int
    coming: int  #: cycles from a tile's end to the coming of its first vector
    timing: MemoryTiming

    @classmethod
    def of(cls, machine: Machine, timing: MemoryTiming) -> WritePort:
        """As the gateware has it."""
        coming = SPILL_CYCLES + gather_cycles(machine)
        return cls(machine.vector_beats, machine.burst_beats, coming + 2 * machine.all_rows + HOLD_CYCLES, coming,
                   timing)

    def may_end(self, backlog: Backlog, time: int) -> int:
        """The first cycle from ``time`` on in which a tile may end."""
        while bisect_left(backlog.came, time - 1) - bisect_left(backlog.taken, time - 1) > self.spare:
            time = backlog.taken[bisect_left(backlog.taken, time - 1)] + 2
        return time

    def since(self, backlog: Backlog, time: int) -> Backlog:
        """The same in cycles from ``time`` on; times before that make no difference are the latest that make none."""
        first = bisect_left(backlog.taken, time)
        return backlog._replace(
            came=tuple(max(came - time, -1) for came in backlog.came[first:]),
            taken=tuple(taken - time for taken in backlog.taken[first:]), asked=max(backlog.asked - time, -1),
            beat=max(backlog.beat - time, -self.timing.beat_cycles),
            answered=tuple(max(at - time, -1) for at in backlog.answered))

    def after(self, backlog: Backlog, end: int, rows: int, *, pooled: bool) -> Backlog:
        """What is on the way when a tile has ended at ``end``, in cycles from then."""
        backlog = self.since(backlog, end)
        if pooled and backlog.tiles + 1 < POOLED:
            return backlog._replace(tiles=backlog.tiles + 1)
        came = [self.coming + row for row in range(rows)]
        taken, state = [*backlog.taken], backlog._replace(tiles=0)
        for coming in came:
            before = taken[-1] if taken else LONG_AGO
            taken.append(max(coming + 2, before + 1, state.beat))
            state = self._sent(state, taken[-1] + 1)
        return state._replace(came=(*backlog.came, *came), taken=tuple(taken))

    def _sent(self, backlog: Backlog, ready: int) -> Backlog:
        """With a vector that is ``ready`` to be sent."""
        asked, beat, left, answered = backlog.asked, backlog.beat, backlog.left, backlog.answered
        beats = self.vector_beats
        while beats:
            if not left:
                full = answered[0] if len(answered) == OUTSTANDING else LONG_AGO
                asked = max(ready, beat + 1, full + 1)
                ready, left = asked + 1, self.burst_beats
            now = min(beats, left)
            beat = max(ready, beat + self.timing.beat_cycles) + (now - 1) * self.timing.beat_cycles
            beats, left, ready = beats - now, left - now, beat + 1
            if not left:
                answered = self._answered(answered, beat)
        return backlog._replace(asked=asked, beat=beat, left=left, answered=answered)

    def closed(self, backlog: Backlog) -> Backlog:
        """At the end of a tensor: its last burst has no more beats."""
        if not backlog.left:
            return backlog
        return backlog._replace(left=0, answered=self._answered(backlog.answered, backlog.beat))

    def _answered(self, answered: tuple[int, ...], beat: int) -> tuple[int, ...]:
        before = answered[-1] if answered else LONG_AGO
        return (*answered, max(beat + max(1, self.timing.latency), before + 1))[-OUTSTANDING:]
