"""Two products with a common operand from one hard multiplier, for a pair of rows of the lattice."""

from __future__ import annotations

from amaranth.hdl import ClockSignal, Instance, Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from espalier.gateware.target import VerilogTarget


class PairMultiplier(wiring.Component):
    """``low_product`` and ``high_product`` are ``low * x`` and ``high * x`` of two cycles before.

    As Verilog one multiplication of operands of ``3 * bits + 1`` and ``bits`` bits, exact for all operands.

    Parameters
    ----------
    bits : int
        Of an operand, at most :data:`~espalier.arch.machine.PAIR_BITS`.
    """

    def __init__(self, bits: int):
        self.bits = bits
        operand, product = signed(bits), signed(2 * bits)
        super().__init__({"x": In(operand), "low": In(operand), "high": In(operand), "low_product": Out(product),
                          "high_product": Out(product)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        if isinstance(platform, VerilogTarget):
            m.submodules.hard = Instance(
                "espalier_pair_multiplier", p_WIDTH=self.bits, i_clk=ClockSignal(), i_x=self.x, i_low=self.low,
                i_high=self.high, o_low_product=self.low_product, o_high_product=self.high_product)
            return m
        x, low, high = (Signal(signed(self.bits), name=name) for name in ("x_held", "low_held", "high_held"))
        m.d.sync += [x.eq(self.x), low.eq(self.low), high.eq(self.high), self.low_product.eq(low * x),
                     self.high_product.eq(high * x)]
        return m
