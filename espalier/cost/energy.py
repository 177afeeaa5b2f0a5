"""What a training step on the lattice would cost in energy: an estimate, to compare machines and blocks.

Energies of single operations are those of Horowitz, "Computing's Energy Problem (and what we can do about it)", ISSCC
2014, 45 nm, 0.9 V: 32-bit integer add 0.1 pJ; 32-bit integer multiply 3.1 pJ, 8-bit 0.2 pJ; 64 bits from a cache of
8 KB 10 pJ; 64 bits from DRAM 1.3 to 2.6 nJ. Taken from these:

- a 16-bit multiply: 0.8 pJ, a quarter of the 32-bit one and four times the 8-bit one, which agree;
- the accumulator's add: 0.1 pJ; a 16-bit word of an on-chip memory: a quarter of 10 pJ, whatever the memory's depth;
- a 16-bit word of DRAM: a quarter of 1.95 nJ, the middle of the range.

Words count as 16 bits, whatever they hold. Activity is that of the Program, command by command, for one group of images
(one a lane); its steps are those that the simulated machine issues:

- Each step is ``rows × lanes`` multiply-adds. In FP and BP it reads ``lanes`` words of activations or gradients and
  ``rows`` weights, in WU ``lanes`` activations and ``rows × lanes`` gradients. Each index entry is read whenever a tile
  meets it.
- Each result of FP and BP is written once, ``lanes`` words; BP reads the activation that it belongs to, and where
  something is added, that is read. Each live weight is updated once a step: 32-bit master and momentum are read and
  written, the weight is written.
- What goes to external memory and comes back costs DRAM's energy there, and an on-chip word when it comes. Images that
  the host writes come from DRAM, 8 bits a pixel. Weights and lists stay on chip. Idle cycles, clock, control, loss and
  leakage are not counted, and no FPGA is like an ASIC: the ratios mean something, the joules little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from espalier.cost.cycles import PhaseCycles, predict
from espalier.cost.tiles import Lists, work_of
from espalier.program.program import Command, Program
from espalier.program.words import Opcode, entry_fields

MULTIPLY_PJ, ADD_PJ = 0.8, 0.1
WORD_PJ = 10 / 4
DRAM_WORD_PJ = 1950 / 4
WORD_BITS = 16
UPDATE_WORDS = 9  #: of 16 bits, for each weight


@dataclass(frozen=True, slots=True)
class Activity:
    """Multiply-adds, and 16-bit words moved, of a training step. They add up.

    Members
    -------
    macs : float
    operands : float
        Words read for them.
    index : float
        Words of index entries read.
    others : float
        Words of results and updates, read or written.
    dram : float
        Words from and to what is off chip.
    """

    macs: float = 0.0
    operands: float = 0.0
    index: float = 0.0
    others: float = 0.0
    dram: float = 0.0

    def __add__(self, other: Activity) -> Activity:
        return Activity(*(ours + theirs for ours, theirs in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> Activity:
        return Activity(*(times * number for number in astuple(self)))

    def microjoules(self) -> dict[str, float]:
        """Energy by what it is spent on."""
        return {"multiply-adds": self.macs * (MULTIPLY_PJ + ADD_PJ) / 1e6, "operands": self.operands * WORD_PJ / 1e6,
                "index": self.index * WORD_PJ / 1e6, "results and updates": self.others * WORD_PJ / 1e6,
                "off chip": self.dram * DRAM_WORD_PJ / 1e6}


def step_activity(program: Program, groups: int = 1, phases: Sequence[PhaseCycles] | None = None) -> Activity:
    """That of a training step of so many groups of images.

    ``phases``: the cycles of the step's commands, for one group, where they have been counted; else they are predicted.
    """
    lists, commands = Lists(program), program.commands[: program.entries_at["infer"]]
    group = _images(program)
    for command, phase in zip(commands, predict(program) if phases is None else phases, strict=False):
        group += _command(command, phase.issued, lists)
    updates = sum(_weights(command, lists) for command in commands if command.opcode == Opcode.UPDATE)
    return group * groups + Activity(others=UPDATE_WORDS * updates)


def _images(program: Program) -> Activity:
    """From the host: a byte for each pixel of an image."""
    return Activity() if program.image_pages else Activity(dram=program.image_size * program.machine.lanes / 2)


def _command(command: Command, issued: int, lists: Lists) -> Activity:
    machine = lists.machine
    rows, lanes = machine.rows, machine.lanes
    beats = command.beats * machine.port_bits / WORD_BITS
    match command.opcode:
        case Opcode.FORWARD | Opcode.BACKWARD:
            results = _channels(command, lists) * command.out_y * command.out_x * lanes
            copied = command.opcode == Opcode.BACKWARD or command.target & 1
            copies = machine.elements * copied + (command.opcode == Opcode.FORWARD and not command.target & 2)
            written = results * copies / (4 if command.pool_out else 1)
            read = results * (command.add + (command.opcode == Opcode.BACKWARD))
            return Activity(macs=issued * rows * lanes, operands=issued * (lanes + rows), others=written + read,
                            index=work_of(command, lists).entries * _entry_words(lists), dram=beats)
        case Opcode.UPDATE:
            return Activity(macs=issued * rows * lanes, operands=issued * (lanes + rows * lanes),
                            index=len(_counts(command, lists)) * _entry_words(lists))
        case Opcode.REFETCH | Opcode.FETCH | Opcode.STORE:
            return Activity(dram=beats, others=beats)
    return Activity()


def _channels(command: Command, lists: Lists) -> int:
    return (command.blocks - 1) * lists.rows(command, -1) + command.last_rows


def _entry_words(lists: Lists) -> float:
    return sum(entry_fields(lists.machine).values()) / WORD_BITS


def _counts(command: Command, lists: Lists) -> list[int]:
    """Of all entries that a command walks, those of all processing elements."""
    return [count for element, counts in enumerate(lists.counts) for count in counts[
        lists.pointers(command, 0, element)[0]: lists.pointers(command, command.blocks - 1, element)[-1]]]


def _weights(command: Command, lists: Lists) -> int:
    """Places of weights that a command updates."""
    return sum(_counts(command, lists)) * (1 if command.diagonal else lists.machine.rows)
