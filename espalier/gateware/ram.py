"""A synchronous RAM whose Verilog does not grow with its depth."""

from __future__ import annotations

from importlib import resources

from amaranth.hdl import Array, ClockSignal, Instance, Module, Shape, ShapeCastable, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from espalier.program.words import bits_for

RAM_MODULE = "espalier_ram"
BANK_BITS = 10  #: of the address inside one bank of a deep memory: hard RAMs need no multiplexer for so few words


class VerilogTarget:
    """The platform under which memories become instances of :data:`RAM_MODULE`.

    Amaranth writes one line for each word of a memory, into Verilog and before it; a memory that the
    host fills needs none. Simulation in Python keeps Amaranth's own memories.
    """


def ram_verilog() -> str:
    """The source of :data:`RAM_MODULE`."""
    return resources.files("espalier.gateware").joinpath("ram.v").read_text()


def _ports(shape: Shape | ShapeCastable, depth: int) -> dict[str, wiring.Member]:
    address = bits_for(depth)
    return {"read_address": In(address), "read_data": Out(shape), "write_en": In(1), "write_address": In(address),
            "write_data": In(shape)}


class Ram(wiring.Component):
    """One read and one write per cycle; read data one cycle after the address.

    A word that is read in the cycle in which it is written is undefined (in simulation: as it was). Contents
    are undefined until written (zero in Python simulation).

    Parameters
    ----------
    shape : ShapeLike
        Of a word.
    depth : int
        Words, at least 2.
    """

    def __init__(self, shape: Shape | ShapeCastable, depth: int):
        self.shape, self.depth = shape, depth
        super().__init__(_ports(shape, depth))

    def elaborate(self, platform):
        m = Module()
        if isinstance(platform, VerilogTarget):
            m.submodules.ram = Instance(
                RAM_MODULE, p_WIDTH=Shape.cast(self.shape).width, p_DEPTH=self.depth, p_ADDRESS=bits_for(self.depth),
                i_clk=ClockSignal(), i_read_address=self.read_address, o_read_data=self.read_data,
                i_write_en=self.write_en, i_write_address=self.write_address, i_write_data=self.write_data)
            return m
        m.submodules.memory = memory = Memory(shape=self.shape, depth=self.depth, init=[])
        read, write = memory.read_port(), memory.write_port()
        m.d.comb += [read.addr.eq(self.read_address), self.read_data.eq(read.data), write.en.eq(self.write_en),
                     write.addr.eq(self.write_address), write.data.eq(self.write_data)]
        return m


class BankedRam(wiring.Component):
    """A deep :class:`Ram`, read data two cycles after the address, so that no path goes through RAM and multiplexer.

    Banks of 1024 words, each with a register behind it; the word is chosen from those registers.

    Parameters
    ----------
    shape, depth
        As of a :class:`Ram`.
    """

    def __init__(self, shape: Shape | ShapeCastable, depth: int):
        self.shape, self.depth = shape, depth
        super().__init__(_ports(shape, depth))

    def elaborate(self, platform):
        m = Module()
        words = []
        for bank, base in enumerate(range(0, self.depth, 1 << BANK_BITS)):
            m.submodules[f"bank_{bank}"] = ram = Ram(self.shape, max(2, min(1 << BANK_BITS, self.depth - base)))
            words.append(Signal(Shape.cast(self.shape), name=f"word_{bank}"))
            m.d.sync += words[-1].eq(ram.read_data)
            m.d.comb += [ram.read_address.eq(self.read_address), ram.write_address.eq(self.write_address),
                         ram.write_data.eq(self.write_data),
                         ram.write_en.eq(self.write_en & (self.write_address[BANK_BITS:] == bank))]
        asked, chosen = Signal(self.read_address[BANK_BITS:].shape()), Signal(self.read_address[BANK_BITS:].shape())
        m.d.sync += [asked.eq(self.read_address[BANK_BITS:]), chosen.eq(asked)]
        m.d.comb += self.read_data.eq(Array(words)[chosen] if len(words) > 1 else words[0])
        return m
