"""Bytes through the port to external memory."""

from __future__ import annotations

from dataclasses import dataclass

from espalier.program.program import Program
from espalier.program.words import Opcode


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes that one group of images moves in a training step, whole beats of the port counted."""

    read: int
    written: int


def traffic(program: Program) -> Traffic:
    """What a training step of ``program`` reads and writes: every spilled activation once each, the image read for FP
    and again for WU; weights in external memory read for FP and BP and written in WU, masters and momenta both in WU.

    Equal to what the simulated port counts. Inference reads the image and the weights once.
    """
    machine = program.machine
    step = program.commands[program.entries_at["train"]: program.entries_at["infer"]]
    read = sum(command.beats for command in step if command.opcode in (Opcode.REFETCH, Opcode.FETCH))
    written = sum(command.beats for command in step if command.spill or command.opcode == Opcode.STORE)
    return Traffic(read=read * machine.port_bits // 8, written=written * machine.port_bits // 8)
