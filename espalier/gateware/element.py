"""A processing element: a lattice with what feeds it, what it is multiplied by, and what its sums become."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, DomainRenamer, Module, ResetSignal, Signal, Value
from amaranth.lib import data

from espalier.arch.machine import Machine
from espalier.gateware.arithmetic import delay_line
from espalier.gateware.drain import LaneTree, RowCounter, bank_of
from espalier.gateware.entries import step_layout
from espalier.gateware.front import Front
from espalier.gateware.lattice import Lattice
from espalier.gateware.layouts import vector_layout
from espalier.gateware.memories import GradientBanks, WeightBanks
from espalier.gateware.operands import Operands
from espalier.gateware.ram import BankedRam
from espalier.gateware.update_unit import UpdateUnit
from espalier.program.words import Opcode


def places(machine: Machine, place: Value) -> tuple[Value, Value, Value]:
    """A place ``column * rows + bank`` in parts: which of an update unit's banks, which unit, and the column."""
    low, high = (machine.tree_rows - 1).bit_length(), (machine.rows - 1).bit_length()
    return place[:low], place[low:high], place[high:]


class Element:
    """A processing element: its parts, under their names, and what is between them.

    Members
    -------
    ending : data.View
        The step whose products are in the lattice, from :meth:`connect` on.
    summed : Value
        For each lane tree whether a weight's sum, or one of a batch norm, leaves it, from :meth:`sum_weights` on.
    """

    def __init__(self, machine: Machine, number: int, add_cycles: int):
        self.machine, self.number = machine, number
        self.trees = [LaneTree(machine) for _ in range(machine.trees)]
        self.updates = [UpdateUnit(word_bits=machine.word_bits, depth=machine.master_depth // machine.trees,
                                   sum_bits=machine.sum_bits, groups=machine.groups,
                                   panel_depth=machine.state_depth * machine.tree_rows) for _ in range(machine.trees)]
        self.front = Front(machine, add_cycles, number)
        self.operands, self.rows = Operands(machine), RowCounter(machine)
        self.activations = BankedRam(vector_layout(machine), machine.activation_depth)
        self.gradients, self.weights = GradientBanks(machine), WeightBanks(machine)
        self.lattice = Lattice(machine, chained=number + 1 < machine.elements)
        self.ending: data.View
        self.summed: Value

    def join(self, m: Module, name: str) -> None:
        """Make its parts submodules, their names ending in ``name``."""
        for part in ("front", "activations", "gradients", "weights", "rows"):
            m.submodules[part + name] = getattr(self, part)
        for part in ("operands", "lattice"):
            m.submodules[part + name] = DomainRenamer("data")(getattr(self, part))
        for number, (tree, update) in enumerate(zip(self.trees, self.updates, strict=True)):
            m.submodules[f"tree{name}_{number}"] = DomainRenamer("data")(tree)
            m.submodules[f"update{name}_{number}"] = DomainRenamer("data")(update)

    def connect(self, m: Module, command: data.View) -> None:
        """Operands into the lattice, and its rows of sums to their counter and to the lane trees."""
        operands, lattice, forward = self.operands, self.lattice, Signal()
        m.d.sync += forward.eq(command.opcode == Opcode.FORWARD)
        m.d.comb += lattice.keep.eq(operands.done.one & operands.done.valid & forward)
        m.d.comb += [lattice.x.eq(operands.x), lattice.b.eq(operands.b), lattice.last.eq(operands.last),
                     lattice.fresh.eq(operands.done.tile.fresh), lattice.clear.eq(ResetSignal())]
        steps = [operands.done]
        for stage in range(2):  # along with the products
            steps.append(Signal(step_layout(self.machine), name=f"ending_{stage}"))
            m.d.sync += steps[-1].eq(steps[-2])
        self.ending = data.View(step_layout(self.machine), steps[-1])
        m.d.comb += [self.rows.loaded.eq(lattice.loaded), self.rows.tile.eq(self.ending.tile),
                     *(tree.i.eq(row) for tree, row in zip(self.trees, lattice.tree_rows, strict=True))]

    def sum_weights(self, m: Module, command: data.View) -> None:
        """WU: rows of partial sums through the lane trees into the update units, with the place of each weight.

        At once leave rows that lie ``tree_rows`` apart, so their weights are in banks of different units: tree ``t``
        sums for unit ``t + turn``.
        """
        machine, rows, ending, trees = self.machine, self.rows, self.ending, self.trees
        column, term, every, count = (Signal.like(ending.column), Signal.like(ending.term), Signal(),
                                      Signal.like(ending.tile.rows))
        place = ending.column + ending.term
        with m.If(self.lattice.loaded):
            m.d.sync += [column.eq(place - command.first_column if machine.panel_depth else place),
                         term.eq(ending.term), count.eq(ending.tile.rows),
                         every.eq(~command.diagonal | ending.one)]
        valid, row = rows.item.valid & (command.opcode == Opcode.UPDATE), bank_of(machine, rows.item.row)
        ours = [row + tree * machine.tree_rows for tree in range(machine.trees)]
        bank = Signal((machine.rows - 1).bit_length())
        m.d.comb += bank.eq(row + term)
        own, turn, _ = places(machine, bank)
        summed = delay_line(m, Cat(*(valid & (row < count) & (every | (row == term)) for row in ours)),
                            trees[0].latency_cycles, "summed")[-1]
        self.summed = summed
        if machine.norm_depth:
            summed = summed & ~command.norm.replicate(machine.trees)
        turned = delay_line(m, turn, trees[0].latency_cycles, "turned")[-1]
        address = delay_line(m, Cat(own, column), trees[0].latency_cycles, "summed_address")[-1]
        for number, update in enumerate(self.updates):
            tree = Signal(range(machine.trees), name=f"tree_of_{number}")
            m.d.comb += [tree.eq(number - turned), update.valid.eq(summed.bit_select(tree, 1)),
                         update.total.eq(Array(tree.o for tree in trees)[tree]), update.address.eq(address)]
