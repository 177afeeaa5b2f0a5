"""Cycles of every command of a Program, exactly as the RTL takes them, without simulation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import numpy as np

from espalier.arch.machine import Machine
from espalier.cost.issue import Stopwatch
from espalier.cost.latencies import (
    CONTROL_CYCLES,
    END_CYCLES,
    FILL_CYCLES,
    LOSS_CONTROL_CYCLES,
    REFETCH_CYCLES,
    drain_cycles,
    loss_cycles,
    update_cycles,
)
from espalier.cost.macs import ConvolutionSize
from espalier.cost.norms import norm_cycles
from espalier.cost.tiles import Lists, work_of
from espalier.program.program import Command, Program
from espalier.program.words import Opcode


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseCycles:
    """Cycles of one command, and in how many of them each processing element multiplied (``steps``)."""

    layer: str
    opcode: Opcode
    cycles: int
    steps: tuple[int, ...]

    @property
    def issued(self) -> int:
        """Steps of all elements together."""
        return sum(self.steps)


def predict(program: Program) -> tuple[PhaseCycles, ...]:
    """The cycles of each command when it runs once, for one group of images; in the order of ``program.commands``.

    Equal to what ``RtlEngine.phase_cycles`` counts, whatever the weights and images are. A training step runs the
    commands from ``entries_at["train"]`` to the next END, once for each group.
    """
    lists = Lists(program)
    return tuple(_command(command, lists) for command in program.commands)


def _command(command: Command, lists: Lists) -> PhaseCycles:
    machine, around = lists.machine, FILL_CYCLES + CONTROL_CYCLES
    multiplied = (0,) * machine.elements
    match command.opcode:
        case Opcode.FORWARD | Opcode.BACKWARD:
            work = work_of(command, lists)
            steps = Stopwatch(adds=bool(command.add) and command.opcode == Opcode.BACKWARD,
                              elements=machine.elements, rows=machine.rows).cycles(work)
            cycles, multiplied = around + steps + drain_cycles(machine), work.issued
        case Opcode.UPDATE:
            worked = [_update(command, lists, element) for element in range(machine.elements)]
            cycles, multiplied = max(steps for steps, _ in worked), tuple(steps for _, steps in worked)
            cycles = max(cycles + around + update_cycles(machine), norm_cycles(command, machine) if command.norm else 0)
        case Opcode.NORM:
            cycles = norm_cycles(command, machine)
        case Opcode.LOSS:
            cycles = loss_cycles(machine, command.classes, hinge=bool(command.hinge)) + LOSS_CONTROL_CYCLES
        case Opcode.REFETCH | Opcode.FETCH | Opcode.STORE:
            cycles = REFETCH_CYCLES
        case Opcode.END:
            cycles = END_CYCLES
        case _:
            assert_never(command.opcode)
    return PhaseCycles(layer=command.layer, opcode=command.phase, cycles=cycles, steps=multiplied)


def _update(command: Command, lists: Lists, element: int) -> tuple[int, int]:
    """Steps and waits of a processing element in WU, and its steps that multiply.

    A tile is a column: its pixels, and at least as many cycles as the rows of the column before it take to leave. The
    list of a block is one segment, and where it is empty a step of nothing, so the Issuer is never kept waiting
    (:mod:`espalier.cost.issue`).
    """
    blocks = range(command.blocks)
    pointers = np.array([lists.pointers(command, block, element) for block in blocks])
    entries = pointers[:, -1] - pointers[:, 0]
    nothing = np.cumsum(entries == 0)  # steps of nothing up to each block
    if not entries.any():
        return int(nothing[-1]), 0
    counts = np.array(lists.counts[element][pointers[0, 0]: pointers[-1, -1]])
    inside = np.repeat(np.tile(_pixels(command, lists.machine), command.blocks), np.diff(pointers, axis=1).ravel())
    pixels = np.maximum(inside, 1)  # a tap that is inside nowhere takes a step of nothing
    rows = np.repeat([min(lists.rows(command, block), lists.machine.tree_rows) for block in blocks], entries)
    before = np.repeat(nothing, entries)
    first = np.maximum(pixels + np.diff(before, prepend=0), np.concatenate([[0], rows[:-1]]))
    others = (counts - 1) * np.maximum(pixels, rows)
    return int((first + others).sum() + nothing[-1] - before[-1]), int((counts * inside).sum())


def _pixels(command: Command, machine: Machine) -> list[int]:
    """For each segment pointer of a block, the pixels at which its entries are inside the map."""
    if machine.tiles > 1:
        return [command.out_y * command.out_x] * (1 + command.kernel_y * command.kernel_x)
    size = ConvolutionSize(
        in_shape=(0, command.source_y, command.source_x), out_shape=(0, command.out_y, command.out_x),
        kernel=(command.kernel_y, command.kernel_x), pad=(command.pad_y, command.pad_x),
        stride=(1 << command.stride_y, 1 << command.stride_x))
    taps = [size.positions(ky, kx) for ky in range(command.kernel_y) for kx in range(command.kernel_x)]
    return [command.out_y * command.out_x, *taps]
