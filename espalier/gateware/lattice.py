"""The lattice of multipliers and its accumulators."""

from __future__ import annotations

from collections.abc import Iterator

from amaranth.hdl import Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from espalier.arch.machine import Machine
from espalier.gateware.arithmetic import delay_line
from espalier.gateware.layouts import values_layout
from espalier.gateware.multiplier import Multiplier
from espalier.gateware.pair_multiplier import PairMultiplier


class Lattice(wiring.Component):
    """``acc[r][l] += x[l] * b[r][l]`` in every cycle, with double-buffered accumulators.

    An operand of zero adds nothing. With ``last`` the sums, this cycle's products included, move to
    a second set of registers and the accumulators start again from zero; the second set then leaves
    row by row while the next tile adds up. :attr:`latency_cycles` from the operands to the first row.
    A bias is multiplied by one in the first tile of its block alone, and kept: it leaves beside the rows of the
    other tiles, to be added there.
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
    fresh : In(1)
        With ``last``: the tile is the first of its block, and what was kept before is not for it nor for those after.
    keep : In(1)
        These products of a fresh tile, the same in all lanes, are for the tiles after it, too.
    clear : In(1)
        Two cycles later the accumulators are zero, and the tile that was in work is lost.
    row : Out
        The accumulators of one row: row 0 in the cycle after ``loaded``, then the next in each cycle until the last.
    kept : Out
        What is yet to be added to ``row``, in every lane.
    tree_rows : Out
        The same for each tree, from its own first row on: ``machine.tree_rows`` times its number.
    loaded : Out(1)
        A tile's sums are moving over.
    chain, chain_kept : In
        The ``row`` of the lattice whose rows follow, and what it ``kept``.
    """

    latency_cycles = 3

    def __init__(self, machine: Machine, *, chained: bool = False):
        self.machine, self.chained = machine, chained
        sums, kept = data.ArrayLayout(signed(machine.acc_bits), machine.lanes), signed(2 * machine.word_bits)
        super().__init__({
            "x": In(values_layout(machine)), "b": In(data.ArrayLayout(values_layout(machine), machine.rows)),
            "last": In(1), "fresh": In(1), "keep": In(1), "clear": In(1), "row": Out(sums), "kept": Out(kept),
            "tree_rows": Out(data.ArrayLayout(sums, machine.trees)), "loaded": Out(1),
            **({"chain": In(sums), "chain_kept": In(kept)} if chained else {})})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        machine = self.machine
        early, last, clear = Signal(), Signal(), Signal()
        m.d.sync += [early.eq(self.last), last.eq(early), clear.eq(early | self.clear)]
        m.d.comb += self.loaded.eq(last)
        held = [[Signal(signed(machine.acc_bits), name=f"held_{row}_{lane}") for lane in range(machine.lanes)]
                for row in range(machine.rows)]
        for lane in range(machine.lanes):
            products = [*self._products(m, lane)]
            if lane == 0:
                self._keep(m, products, last, clear)
            for row, product in enumerate(products):
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

    def _keep(self, m: Module, products: list[Value], last: Signal, clear: Signal) -> None:
        """Keep the products of a block's bias, and move them to where they leave with each tile but the first."""
        fresh, keep = (delay_line(m, signal, 2, name)[-1] for signal, name in ((self.fresh, "fresh"),
                                                                                (self.keep, "keep")))
        came, valid = Signal(), Signal()  # in the tile in work; in the first one of this block
        with m.If(last & fresh):
            m.d.sync += valid.eq(came | keep)
        with m.If(clear):
            m.d.sync += came.eq(0)
        with m.Elif(keep):
            m.d.sync += came.eq(1)
        kept, leaving = ([Signal.like(self.kept, name=f"{name}_{row}") for row in range(self.machine.rows)]
                         for name in ("kept", "leaving"))
        for row, product in enumerate(products):
            after = self.chain_kept if self.chained else leaving[row]  # then no row of the tile is left
            following = leaving[row + 1] if row + 1 < self.machine.rows else after
            m.d.sync += leaving[row].eq(Mux(last, Mux(valid & ~fresh, kept[row], 0), following))
            with m.If(keep):
                m.d.sync += kept[row].eq(product)
        m.d.comb += self.kept.eq(leaving[0])

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
