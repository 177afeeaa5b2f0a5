"""When the scalars of a batch norm are done: each channel when both its sums are there and the one before is done."""

from __future__ import annotations

from collections.abc import Iterator

from espalier.arch.machine import Machine
from espalier.cost.latencies import FILL_CYCLES, LATTICE_CYCLES, LAUNCH_CYCLES, OPERAND_CYCLES, lane_levels
from espalier.program.norm import NormMode
from espalier.program.norm_schedule import CHANNEL_CYCLES
from espalier.program.program import Command
from espalier.program.words import Opcode

SUM_CYCLES = 4    #: from a sum's leaving its lane tree to the cycle in which its channel can be gone through
NORM_CYCLES = 2   #: of a command behind its last channel


def norm_cycles(command: Command, machine: Machine) -> int:
    """The cycles of a command until the last channel of its batch norm is done."""
    done, each = LAUNCH_CYCLES, CHANNEL_CYCLES[NormMode(command.norm_mode)]
    for arrival in _arrivals(command, machine) if command.opcode == Opcode.UPDATE else [0] * command.norm_count:
        done = max(done, arrival) + each
    return done + NORM_CYCLES


def _arrivals(command: Command, machine: Machine) -> Iterator[int]:
    """When the second sum of each channel is there: that of its column, behind that of the block's constant one.

    A column takes its pixels, and at least as many cycles as the rows of the column before it take to leave.
    """
    pixels, at, leaving = command.out_y * command.out_x, FILL_CYCLES, 0
    behind = OPERAND_CYCLES + LATTICE_CYCLES + lane_levels(machine) + SUM_CYCLES
    for block in range(command.blocks):
        rows = command.last_rows if block + 1 == command.blocks else machine.rows
        at += max(pixels, leaving)
        leaving = min(rows, machine.tree_rows)
        for row in range(rows):
            at += max(pixels, leaving)
            yield at + behind + row % machine.tree_rows
