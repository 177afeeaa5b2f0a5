"""CountedLoop against a counter that compares."""

import pytest
from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from bench.proof import holds

from espalier.gateware.counted_loop import CountedLoop

BITS, CYCLES = 3, 24


class Bench(wiring.Component):
    """Any counts, each held for two cycles before the reset that takes it up, between whole runs of the loop."""

    def __init__(self):
        super().__init__({"count": In(BITS), "reset": In(1), "step": In(1), "allowed": Out(1), "bad": Out(1),
                          "reached": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.loop = loop = CountedLoop(BITS)
        turn, before, held, taken = Signal(BITS), Signal(BITS), Signal(), Signal()
        same = self.count == before
        last = turn == self.count - 1
        m.d.sync += [before.eq(self.count), held.eq(same), taken.eq(same & (taken | self.reset))]
        with m.If(self.step & ~self.reset):
            m.d.sync += turn.eq(Mux(last, 0, turn + 1))
        m.d.comb += [
            loop.count.eq(self.count), loop.reset.eq(self.reset), loop.step.eq(self.step),
            self.allowed.eq((self.count != 0) & (~self.reset | (same & held & (turn == 0)))
                            & (~self.step | (taken & same)) & (same | (turn == 0))),
            self.bad.eq(taken & same & ((loop.value != turn) | (loop.done != last))),
            self.reached.eq(taken & last & (self.count == 7))]
        return m


def test_turns_and_the_last_one_are_known(tmp_path):
    assert holds(tmp_path, Bench(), CYCLES)


@pytest.mark.parametrize("fault", [("count - 2'h2", "count - 2'h1"), ("count == 1'h1", "count == 2'h2")])
def test_a_fault_is_found(tmp_path, fault):
    assert not holds(tmp_path, Bench(), CYCLES, fault=fault)
