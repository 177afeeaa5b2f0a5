"""A memory with panels beside it, which external memory fills and empties while the engine uses the rest."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Shape, ShapeCastable, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from espalier.arch.machine import REGION_BITS
from espalier.gateware.ram import BankedRam
from espalier.program.words import bits_for, region_of

PANELS = 2


class PanelRam(wiring.Component):
    """A :class:`BankedRam`, and two more beside it: a near side uses one of the three, a far side one of the others.

    Either side reads and writes a word per cycle, read data two cycles after the address.

    Parameters
    ----------
    shape : ShapeLike
        Of a word.
    depth, panel_depth : int
        Words of the first, and of each of the others.

    Members
    -------
    region : In
        Which the near side uses: 0, the first; 2 and 3, the panels. Stable from the cycle before an address until its
        data came.
    read_address, read_data, write_en, write_address, write_data
        The near side.
    far_panel, far_address, far_read, far_en, far_write
        The far side, which reads or writes a panel: never that which the near side uses.
    """

    def __init__(self, shape: Shape | ShapeCastable, depth: int, panel_depth: int):
        self.shape, self.depth, self.panel_depth = shape, depth, panel_depth
        address = bits_for(max(depth, panel_depth))
        super().__init__({
            "region": In(REGION_BITS), "read_address": In(address), "read_data": Out(shape), "write_en": In(1),
            "write_address": In(address), "write_data": In(shape), "far_panel": In(1),
            "far_address": In(bits_for(panel_depth)), "far_read": Out(shape), "far_en": In(1), "far_write": In(shape)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.resident = resident = BankedRam(self.shape, self.depth)
        read, far_read = Signal.like(Value.cast(self.read_data)), Signal.like(Value.cast(self.far_read))
        m.d.comb += [
            resident.read_address.eq(self.read_address), resident.write_address.eq(self.write_address),
            resident.write_data.eq(self.write_data), resident.write_en.eq(self.write_en & ~self.region[-1]),
            read.eq(resident.read_data), Value.cast(self.read_data).eq(read), Value.cast(self.far_read).eq(far_read)]
        for panel in range(PANELS):
            m.submodules[f"panel_{panel}"] = ram = BankedRam(self.shape, self.panel_depth)
            near = Signal(name=f"near_{panel}")
            m.d.comb += [
                near.eq(self.region == region_of(panel)),
                ram.read_address.eq(Mux(near, self.read_address, self.far_address)),
                ram.write_address.eq(Mux(near, self.write_address, self.far_address)),
                ram.write_data.eq(Mux(near, Value.cast(self.write_data), Value.cast(self.far_write))),
                ram.write_en.eq(Mux(near, self.write_en, self.far_en & (self.far_panel == panel)))]
            with m.If(near):
                m.d.comb += read.eq(ram.read_data)
            with m.If(self.far_panel == panel):
                m.d.comb += far_read.eq(ram.read_data)
        return m
