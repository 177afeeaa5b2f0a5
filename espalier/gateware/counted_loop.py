"""A counter for one loop of a nest."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out


class CountedLoop(wiring.Component):
    """Counts 0..count-1, again and again; which turn is the last is known from a register.

    Parameters
    ----------
    bits : int
        Width of the count.

    Members
    -------
    count : In(bits)
        Turns, at least 1; quasi-static from two cycles before ``reset``.
    reset : In(1)
        Take up a new ``count``, before the first turn.
    step : In(1)
        Go to the next turn, after the last to the first.
    value : Out(bits)
        The turn.
    done : Out(1)
        It is the last one.
    """

    def __init__(self, bits: int):
        super().__init__({"count": In(bits), "reset": In(1), "step": In(1), "value": Out(bits), "done": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        single, last_but_one = Signal(), Signal.like(self.value)
        m.d.sync += [single.eq(self.count == 1), last_but_one.eq(self.count - 2)]
        with m.If(self.reset):
            m.d.sync += self.done.eq(single)
        with m.Elif(self.step):
            m.d.sync += [self.value.eq(Mux(self.done, 0, self.value + 1)),
                         self.done.eq(Mux(self.done, single, self.value == last_but_one))]
        return m
