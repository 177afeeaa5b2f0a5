"""The skewed weight banks with the addresses and the rotation of Operands: one arbitrary weight, written and read."""

import pytest
from amaranth.hdl import Cat, DomainRenamer, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from bench.proof import holds

from espalier.arch.machine import Machine
from espalier.gateware.memories import WeightBanks
from espalier.gateware.operands import Operands
from espalier.program.words import Opcode, bits_for

WORD_BITS = 2


class Bench(wiring.Component):
    """Writes, then steps of FP or BP, one a cycle. Element (``i``, ``j``) of the block at ``column`` is watched.

    FP's step of term j has column j of the block, so the weight is operand i; BP's of term i has row i, so it is
    operand j.
    """

    def __init__(self, rows: int, trees: int = 1):
        self.rows = rows
        self.machine = Machine(rows=rows, lanes=1, trees=trees, word_bits=WORD_BITS, acc_bits=8, activation_depth=2,
                               gradient_depth=2, weight_depth=2 * rows, index_depth=2, table_depth=2)
        place, term, column = bits_for(2 * rows * rows), bits_for(rows), bits_for(2 * rows)
        super().__init__({
            "i": In(term), "j": In(term), "column": In(column), "backward": In(1), "write_en": In(1),
            "place": In(place), "word": In(WORD_BITS), "step": In(1), "step_column": In(column), "step_term": In(term),
            "gradients": In(rows * (WORD_BITS + 2)), "allowed": Out(1), "bad": Out(1), "reached": Out(1)})

    def elaborate(self, platform):
        m = Module()
        rows, bank_bits = self.rows, (self.rows - 1).bit_length()
        m.submodules.banks = banks = WeightBanks(self.machine)
        m.submodules.operands = operands = DomainRenamer("data")(Operands(self.machine))
        home = self.column + self.j << bank_bits | (self.i + self.j)[:bank_bits]
        constants = Cat(self.i, self.j, self.column, self.backward)
        before, later, reading, known, word = (
            Signal.like(constants), Signal(), Signal(), Signal(), Signal(WORD_BITS))
        m.d.sync += [before.eq(constants), later.eq(1), reading.eq(reading | self.step)]
        with m.If(self.write_en & (self.place == home)):
            m.d.sync += [known.eq(1), word.eq(self.word)]
        m.d.comb += [
            banks.read_addresses.eq(operands.weight_addresses), operands.weights.eq(banks.read_data),
            operands.gradients.eq(self.gradients),
            operands.command.opcode.eq(Mux(self.backward, Opcode.BACKWARD, Opcode.FORWARD)),
            operands.step.valid.eq(self.step), operands.step.column.eq(self.step_column),
            operands.step.term.eq(self.step_term)]
        own = (self.machine.tree_rows - 1).bit_length()
        for port in range(self.machine.trees):
            m.d.comb += banks.write[port].eq(Cat(self.write_en & (self.place[own:bank_bits] == port), self.place[:own],
                                                 self.place[bank_bits:], self.word))
        meets = self.step & (self.step_column == self.column) & (self.step_term == Mux(self.backward, self.i, self.j))
        for cycle in range(Operands.latency_cycles):
            now, meets = meets, Signal(name=f"meets_{cycle}")
            m.d.sync += meets.eq(now)
        met = Signal(WORD_BITS)
        with m.Switch(Mux(self.backward, self.j, self.i)):
            for row in range(rows):
                with m.Case(row):
                    m.d.comb += met.eq(operands.b[row][0])
        m.d.comb += [
            self.allowed.eq((~later | (before == constants)) & (self.i < rows) & (self.j < rows)
                            & (self.column <= rows) & (later | ~self.step) & ~(self.write_en & (reading | self.step))),
            self.bad.eq(meets & known & (met != word)), self.reached.eq(meets & known & (word == 2))]
        return m


#: A write, two idle cycles, two steps one after another, and the latency.
CYCLES = 5 + Operands.latency_cycles


@pytest.mark.parametrize(("rows", "trees"), [(1, 1), (2, 1), (4, 2), pytest.param(8, 4, marks=pytest.mark.slow)])
def test_a_weight_is_met_by_column_and_by_row(tmp_path, rows, trees):
    assert holds(tmp_path, Bench(rows, trees), CYCLES)


@pytest.mark.parametrize("fault", [(r"\[1:0\] == 2'h2", "[1:0] == 2'h3"),
                                   (r"rest <= turn\[0\]", "rest <= turn[1]"), ("2'h3 - step_", "2'h2 - step_")])
def test_a_fault_is_found(tmp_path, fault):
    assert not holds(tmp_path, Bench(4), CYCLES, fault=fault)
