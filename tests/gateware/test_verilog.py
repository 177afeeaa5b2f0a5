"""Verilog that every tool reads alike."""

import re

from amaranth.hdl import Module
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from espalier.gateware.verilog import component_verilog


class Swap(wiring.Component):
    """Two elements of an array change places."""

    i: In(data.ArrayLayout(data.StructLayout({"value": 4}), 2))
    o: Out(data.ArrayLayout(data.StructLayout({"value": 4}), 2))

    def elaborate(self, platform):
        m = Module()
        m.d.comb += [self.o[0].eq(self.i[1]), self.o[1].eq(self.i[0])]
        return m


def test_no_name_looks_like_a_bit_of_another():
    """The technology mapper of Yosys takes a wire called ``i[1]`` for bit 1 of ``i``."""
    text = component_verilog(Swap(), "swap")
    assert "i.1.value" in text
    assert not re.findall(r"\\\S*\[\S*", text)
