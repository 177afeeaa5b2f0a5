"""The lattice of multipliers and its accumulators."""

from __future__ import annotations

from collections.abc import Iterator

from amaranth.hdl import Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from espalier.arch.machine import Machine
from espalier.gateware.layouts import values_layout
from espalier.gateware.multiplier import Multiplier
from espalier.gateware.pair_multiplier import PairMultiplier


class Lattice(wiring.Component):
    """``acc[r][l] += x[l] * b[r][l]`` in every cycle, with double-buffered accumulators.

    An operand of zero adds nothing. With ``last`` the sums, this cycle's products included, move to
    a second set of registers and the accumulators start again from zero; the second set then leaves
    row by row while the next tile adds up. :attr:`latency_cycles` from the operands to the first row.
    With ``machine.pairs`` two rows share each hard multiplier.

    Parameters
    ----------
    chained : bool
        Whether rows of another lattice follow.

    Members
    -------
    x, b : In
        Operands.
    last : In(1)
        With the last operands of a tile.
    clear : In(1)
        Two cycles later the accumulators are zero, and the tile that was in work is lost.
    row : Out
        The accumulators of one row: row 0 in the cycle after ``loaded``, then the next in each cycle until the last.
    tree_rows : Out
        The same for each tree, from its own first row on: ``machine.tree_rows`` times its number.
    loaded : Out(1)
        A tile's sums are moving over.
    chain : In
        The ``row`` of the lattice whose rows follow.
    """

    latency_cycles = 3

    def __init__(self, machine: Machine, *, chained: bool = False):
        self.machine, self.chained = machine, chained
        sums = data.ArrayLayout(signed(machine.acc_bits), machine.lanes)
        super().__init__({
            "x": In(values_layout(machine)), "b": In(data.ArrayLayout(values_layout(machine), machine.rows)),
            "last": In(1), "clear": In(1), "row": Out(sums), "tree_rows": Out(data.ArrayLayout(sums, machine.trees)),
            "loaded": Out(1), **({"chain": In(sums)} if chained else {})})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        machine = self.machine
        early, last, clear = Signal(), Signal(), Signal()
        m.d.sync += [early.eq(self.last), last.eq(early), clear.eq(early | self.clear)]
        m.d.comb += self.loaded.eq(last)
        held = [[Signal(signed(machine.acc_bits), name=f"held_{row}_{lane}") for lane in range(machine.lanes)]
                for row in range(machine.rows)]
        for lane in range(machine.lanes):
            for row, product in enumerate(self._products(m, lane)):
                total = self._cell(m, row, lane, product, clear)
                after = self.chain[lane] if self.chained else total  # then no row of the tile is left
                following = held[row + 1][lane] if row + 1 < machine.rows else after
                m.d.sync += held[row][lane].eq(Mux(last, total, following))
            m.d.comb += [self.row[lane].eq(held[0][lane]),
                         *(self.tree_rows[tree][lane].eq(held[tree * machine.tree_rows][lane])
                           for tree in range(machine.trees))]
        return m

    def _products(self, m: Module, lane: int) -> Iterator[Value]:
        """Multiply; the product of each row."""
        x, bits = self.x[lane], self.machine.word_bits
        if self.machine.pairs:
            for row in range(0, self.machine.rows, 2):
                m.submodules[f"pair_{row}_{lane}"] = pair = PairMultiplier(bits)
                m.d.comb += [pair.x.eq(x), pair.low.eq(self.b[row][lane]), pair.high.eq(self.b[row + 1][lane])]
                yield from (pair.low_product, pair.high_product)
            return
        for row in range(self.machine.rows):
            m.submodules[f"multiplier_{row}_{lane}"] = multiplier = Multiplier(bits)
            m.d.comb += [multiplier.x.eq(x), multiplier.y.eq(self.b[row][lane])]
            yield multiplier.product

    def _cell(self, m: Module, row: int, lane: int, product: Value, clear: Signal) -> Signal:
        """Add up; the sum with this cycle's product."""
        name = f"{row}_{lane}"
        acc = Signal(signed(self.machine.acc_bits), name=f"acc_{name}")
        total = Signal(signed(self.machine.acc_bits), name=f"total_{name}")
        m.d.comb += total.eq(acc + product)
        m.d.sync += acc.eq(total)
        with m.If(clear):
            m.d.sync += acc.eq(0)
        return total
