"""How long spilled tensors take to leave and to come back, and who waits for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from espalier.arch.machine import Machine
from espalier.arch.memory import MemoryTiming
from espalier.cost.cycles import PhaseCycles
from espalier.cost.issue import Stopwatch
from espalier.cost.latencies import (
    CONTROL_CYCLES,
    DESCRIPTORS,
    FILL_CYCLES,
    LAUNCH_CYCLES,
    OUTSTANDING,
    STORE_CYCLES,
    drain_cycles,
)
from espalier.cost.moving import Moved, Mover
from espalier.cost.spilling import LONG_AGO, NOTHING, WritePort
from espalier.cost.tiles import Lists, work_of
from espalier.errors import DataError
from espalier.program.program import Command, Program
from espalier.program.words import Opcode


def last_beat(machine: Machine, beats: int, timing: MemoryTiming, beat: int) -> int:
    """When the last of so many beats is read, counted from the cycle in which the port takes the tensor up.

    ``beat`` is when the one before the first was moved, in either direction.
    """
    taken = 0
    under_way: deque[int] = deque()  # when each burst that the memory holds ends
    for first in range(0, beats, machine.burst_beats):
        taken += 1
        if len(under_way) == min(timing.queue, OUTSTANDING):
            taken = max(taken, under_way.popleft() + 1)
        beat = max(beat + timing.beat_cycles, taken + max(1, timing.latency))
        beat += (min(machine.burst_beats, beats - first) - 1) * timing.beat_cycles
        under_way.append(beat)
    return beat


def with_memory(program: Program, phases: Iterable[PhaseCycles], timing: MemoryTiming) -> tuple[PhaseCycles, ...]:
    """The cycles of each command, as :func:`espalier.cost.cycles.predict` has them, with its waits for external memory.

    Equal to the simulated ones: at fences for what was asked for, and in FP for spilled results to leave, where a run
    of the Program begins with nothing under way. Raises DataError for a memory that is not steady.
    """
    if not timing.steady:
        raise DataError("Cycles are predicted for a memory without refresh, stalls and errors")
    if not program.machine.port_bits:
        return tuple(phases)
    found, timeline = [], _Timeline(program, timing)
    for command, phase in zip(program.commands, phases, strict=True):
        found.append(timeline.after(command, phase))
        if command.opcode == Opcode.END:
            timeline = _Timeline(program, timing)
    return tuple(found)


class _Asked:
    """The tensors that one direction of the port was asked for."""

    def __init__(self) -> None:
        self.left = [LONG_AGO] * DESCRIPTORS  # when each left the queue to be the next to be taken up
        self.taken = LONG_AGO                 # when the last was taken up

    @property
    def room(self) -> int:
        """The first cycle in which one more can be asked for."""
        return self.left[-DESCRIPTORS] + 1

    def ask(self, launch: int, free: int) -> int:
        """The cycle in which a tensor is taken up by a port that is free then."""
        self.left.append(max(launch + 1, self.taken))
        self.taken = max(self.left[-1] + 1, free)
        return self.taken


class _Timeline:
    """One command after another, and what external memory does meanwhile.

    Members
    -------
    now : int
        The cycle in which the next command begins.
    backlog, since : Backlog, int
        What is on its way to memory, in cycles from then.
    read, there : int
        When the last beat of what was asked for moved, and the first cycle in which all of that is there.
    """

    def __init__(self, program: Program, timing: MemoryTiming) -> None:
        self.machine, self.timing, self.runs = program.machine, timing, program.runs
        self.lists, self.port = Lists(program), WritePort.of(program.machine, timing)
        self.now, self.backlog, self.since = 0, NOTHING, 0
        self.read, self.there = LONG_AGO, 0
        self.spills, self.refetches = _Asked(), _Asked()

    def after(self, command: Command, phase: PhaseCycles) -> PhaseCycles:
        """The cycles of the next command, of which ``phase`` is without memory."""
        early = self.now + LAUNCH_CYCLES
        launch = max(early, self.there, self._written) if command.fence else early
        if command.opcode in (Opcode.REFETCH, Opcode.FETCH, Opcode.STORE):
            launch = max(launch, self.refetches.room)
            self._move(command, launch)
        if command.spill:
            launch = max(launch, self.spills.room)
            phase = replace(phase, cycles=self._spill(command, launch))
        phase = replace(phase, cycles=phase.cycles + launch - early)
        self.now += phase.cycles
        return phase

    @property
    def _written(self) -> int:
        """The first cycle in which nothing is on its way to memory."""
        return self.since + self.backlog.idle

    def _move(self, command: Command, launch: int) -> None:
        """What is asked of the port, one after another."""
        begin = self.refetches.ask(launch, max(self.there, self._written))
        before = max(self.read, self.since + self.backlog.beat) - begin
        if command.opcode == Opcode.REFETCH:
            beat = last_beat(self.machine, command.beats, self.timing, before)
            moved = Moved(beat, beat + STORE_CYCLES)
        else:
            mover = Mover(self.machine, self.timing, bool(command.state))
            runs = self.runs[command.runs_at: command.runs_at + command.runs]
            moved = (mover.fetched if command.opcode == Opcode.FETCH else mover.stored)(runs, before)
        self.read, self.there = begin + moved.beat, begin + moved.idle

    def _spill(self, command: Command, launch: int) -> int:
        """The cycles of FP that spills, without those before its launch."""
        self.spills.ask(launch, self.since + self.backlog.asked + 1)
        first = launch + FILL_CYCLES
        backlog = self.backlog._replace(beat=max(self.backlog.beat, self.read - self.since))
        watch = Stopwatch(port=self.port, pooled=bool(command.pool_out), elements=self.machine.elements)
        self.backlog, steps = watch.spilled(work_of(command, self.lists), self.port.since(backlog, first - self.since))
        self.since = first + steps
        return FILL_CYCLES + CONTROL_CYCLES + steps + drain_cycles(self.machine)
