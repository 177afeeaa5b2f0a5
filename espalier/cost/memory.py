"""How long spilled tensors take to come back, and who waits for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

from espalier.arch.machine import Machine
from espalier.arch.memory import MemoryTiming
from espalier.cost.cycles import PhaseCycles
from espalier.cost.latencies import DESCRIPTOR_CYCLES, LAUNCH_CYCLES, STORE_CYCLES
from espalier.errors import DataError
from espalier.program.program import Command, Program
from espalier.program.words import Opcode


def refetch_cycles(machine: Machine, beats: int, timing: MemoryTiming) -> int:
    """From the cycle in which the port takes a tensor up to that in which all of it is in the activation memory."""
    taken, done, beat = 0, 0, -timing.beat_cycles
    under_way: deque[int] = deque()  # when each burst that the memory holds ends
    for first in range(0, beats, machine.burst_beats):
        taken += 1
        if len(under_way) == timing.queue:
            taken = max(taken, under_way.popleft() + 1)
        beat = max(beat + timing.beat_cycles, taken + max(1, timing.latency))
        beat += (min(machine.burst_beats, beats - first) - 1) * timing.beat_cycles
        under_way.append(beat)
        done = beat
    return done + STORE_CYCLES


def with_memory(program: Program, phases: Iterable[PhaseCycles], timing: MemoryTiming) -> tuple[PhaseCycles, ...]:
    """The cycles of each command, as :func:`espalier.cost.cycles.predict` has them, and its wait for external memory.

    Equal to the simulated ones where FP never has to wait for its spilled results to leave. That it has to is not
    predicted; where :func:`spill_load` is below a half it has not been seen. Raises DataError for a memory that is not
    steady.
    """
    if not timing.steady:
        raise DataError("Cycles are predicted for a memory without refresh, stalls and errors")
    return tuple(_waits(program, phases, timing))


def _waits(program: Program, phases: Iterable[PhaseCycles], timing: MemoryTiming) -> Iterator[PhaseCycles]:
    now = there = 0  # the cycle at which a command begins, and that in which all that was asked back is there
    for command, phase in zip(program.commands, phases, strict=True):
        launch = now + LAUNCH_CYCLES
        wait = max(0, there - launch) if command.fence else 0
        if command.opcode == Opcode.REFETCH:
            begin = max(launch + wait + DESCRIPTOR_CYCLES, there)
            there = begin + refetch_cycles(program.machine, command.beats, timing)
        now += phase.cycles + wait
        yield replace(phase, cycles=phase.cycles + wait)


def spill_load(command: Command, phase: PhaseCycles, timing: MemoryTiming) -> float:
    """The time that the port takes to write what an FP command spills, as a part of the time in which that is made."""
    return command.beats * command.spill * timing.beat_cycles / phase.cycles
