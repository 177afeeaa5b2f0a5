"""The multiplier of a cell of the lattice, with registers that the hard multipliers of FPGAs have inside."""

from __future__ import annotations

from amaranth.hdl import ClockSignal, Instance, Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from espalier.gateware.target import VerilogTarget


class Multiplier(wiring.Component):
    """``product`` is ``x * y`` of two cycles before.

    Parameters
    ----------
    bits : int
        Of an operand, at most 18.
    """

    def __init__(self, bits: int):
        self.bits = bits
        super().__init__({"x": In(signed(bits)), "y": In(signed(bits)), "product": Out(signed(2 * bits))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        if isinstance(platform, VerilogTarget):
            m.submodules.hard = Instance("espalier_multiplier", p_WIDTH=self.bits, i_clk=ClockSignal(), i_x=self.x,
                                         i_y=self.y, o_product=self.product)
            return m
        x, y = Signal(signed(self.bits)), Signal(signed(self.bits))
        m.d.sync += [x.eq(self.x), y.eq(self.y), self.product.eq(x * y)]
        return m
