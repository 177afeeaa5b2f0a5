"""Synchronous RAMs whose Verilog does not grow with their depth."""

from __future__ import annotations

from amaranth.hdl import ClockSignal, Instance, Module, Shape, ShapeCastable
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from espalier.gateware.target import VerilogTarget
from espalier.program.words import bits_for


class Ram(wiring.Component):
    """One read and one write per cycle; read data one cycle after the address.

    A word that is read in the cycle in which it is written is undefined (in Python simulation: as it was,
    in simulation of the Verilog: inverted). Contents are undefined until written (zero in Python simulation).

    Parameters
    ----------
    shape : ShapeLike
        Of a word.
    depth : int
        Words, at least 2.
    """

    module = "espalier_ram"
    extra_cycles = 0  #: from address to data, beside the one

    def __init__(self, shape: Shape | ShapeCastable, depth: int):
        self.shape, self.depth = shape, depth
        address = bits_for(depth)
        super().__init__({"read_address": In(address), "read_data": Out(shape), "write_en": In(1),
                          "write_address": In(address), "write_data": In(shape)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        if isinstance(platform, VerilogTarget):
            m.submodules.ram = Instance(
                self.module, p_WIDTH=Shape.cast(self.shape).width, p_DEPTH=self.depth, p_ADDRESS=bits_for(self.depth),
                i_clk=ClockSignal(), i_read_address=self.read_address, o_read_data=self.read_data,
                i_write_en=self.write_en, i_write_address=self.write_address, i_write_data=self.write_data)
            return m
        m.submodules.memory = memory = Memory(shape=self.shape, depth=self.depth, init=[])
        read, write = memory.read_port(), memory.write_port()
        m.d.comb += [read.addr.eq(self.read_address), write.en.eq(self.write_en),
                     write.addr.eq(self.write_address), write.data.eq(self.write_data)]
        m.d[("comb", "sync")[self.extra_cycles]] += self.read_data.eq(read.data)
        return m


class BankedRam(Ram):
    """A deep :class:`Ram`, read data two cycles after the address, so that no path goes through RAM and multiplexer.

    Banks of 1024 words, each with a register behind it; the word is chosen from those registers.
    """

    module = "espalier_banked_ram"
    extra_cycles = 1
