"""How long panels of weights take between external memory and the chip, in cycles from when the port takes them up.

Bursts are asked for one after another, those of a run in successive cycles, and of the next run a cycle later. Beats
move as fast as the memory, or as items of the panel can be cut from beats or beats be made of them::

    read:    asked[n] = max(asked[n-1] + 1, end of burst n-queue + 1)
             beat     = max(beat before + gap, asked of its burst + latency)
    written: asked[n] = max(asked[n-1] + 1, last beat before + 1, answered[n-8] + 1)
             beat     = max(beat before + gap, asked of its burst + 1)
             answered = max(last beat + latency, answered before + 1)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from espalier.arch.machine import STATE_BITS, Machine
from espalier.arch.memory import MemoryTiming
from espalier.cost.latencies import (
    ANSWER_CYCLES,
    LANDING_CYCLES,
    OUTSTANDING,
    RUN_CYCLES,
    SOURCE_CYCLES,
)
from espalier.program.program import Run


class Moved(NamedTuple):
    """When the last beat of a panel moves, and the first cycle in which the port is not busy with it any more."""

    beat: int
    idle: int


@dataclass(frozen=True, slots=True)
class Mover:
    """What moves masters and momenta (``state``), or weights."""

    machine: Machine
    timing: MemoryTiming
    state: bool

    @property
    def items(self) -> int:
        """Of a panel in a beat: columns of weights, or what the update units take at once; 1 where they are wider."""
        machine = self.machine
        bits = machine.trees * STATE_BITS if self.state else machine.rows * machine.slot_bits
        return max(1, machine.port_bits // bits)

    @property
    def gap(self) -> int:
        """Cycles from one beat to the next."""
        return max(self.timing.beat_cycles, self.items)

    def fetched(self, runs: Sequence[Run], before: int) -> Moved:
        """Into the chip; ``before`` is when the last beat moved, in either direction."""
        beat, asked, latency = before + self.timing.beat_cycles - self.gap, RUN_CYCLES - 1, max(1, self.timing.latency)
        most = min(self.timing.queue, OUTSTANDING)
        under_way: deque[int] = deque()
        for late, beats in self._bursts(runs):
            asked += 1 + late
            if len(under_way) == most:
                asked = max(asked, under_way.popleft() + 1)
            beat = max(beat + self.gap, asked + latency) + (beats - 1) * self.gap
            under_way.append(beat)
        return Moved(beat, beat + self.items + LANDING_CYCLES)

    def stored(self, runs: Sequence[Run], before: int) -> Moved:
        """Out of the chip."""
        asked, latency = RUN_CYCLES - 1, max(1, self.timing.latency)
        beat = max(before + self.timing.beat_cycles, SOURCE_CYCLES + self.items) - self.gap
        last = asked  # after which the next burst can be asked for
        answered: list[int] = []
        for late, beats in self._bursts(runs):
            full = answered[-OUTSTANDING] if len(answered) >= OUTSTANDING else 0
            asked = max(asked + 1 + late, last + 1, full + 1)
            beat = max(beat + self.gap, asked + 1) + (beats - 1) * self.gap
            last = beat
            answered.append(max(beat + latency, answered[-1] + 1 if answered else 0))
        return Moved(beat, answered[-1] + ANSWER_CYCLES)

    def _bursts(self, runs: Sequence[Run]) -> Iterator[tuple[bool, int]]:
        """Whether each burst is a later run's first, and its beats."""
        whole = self.machine.burst_beats
        for number, (column, columns) in enumerate(runs):
            at, left = (self.machine.column_beats(count, state=self.state) for count in (column, columns))
            late = number > 0
            while left:
                beats = min(left, whole - at % whole)
                yield late, beats
                at, left, late = at + beats, left - beats, False
