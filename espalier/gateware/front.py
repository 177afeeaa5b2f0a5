"""The front of the accelerator: from a command to the steps of the lattice."""

from __future__ import annotations

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from espalier.arch.machine import Machine
from espalier.gateware.entries import EntryFetcher, Issuer, SpanFinder, span_layout, step_layout
from espalier.gateware.landing_queue import LandingQueue
from espalier.gateware.layouts import command_layout, entry_layout
from espalier.gateware.tiles import (
    ReachFinder,
    SegmentCutter,
    SegmentTable,
    TileCounter,
    reach_layout,
    segment_layout,
)
from espalier.program.words import bits_for


class Front(wiring.Component):
    """A chain of streams, each with one item per cycle: three sources, each with a pipeline and a queue behind it.

    Tiles (TileCounter, ReachFinder), segments (SegmentCutter, SegmentTable), blocks (EntryFetcher, SpanFinder); the
    Issuer turns blocks into steps. The first step leaves :attr:`fill_cycles` after ``start`` at the earliest.

    Parameters
    ----------
    add_cycles, number : int
        As of the :class:`Issuer`.

    Members
    -------
    command : In
        Stable from the cycle before ``start`` until the last step.
    start : In(1)
        Begin.
    hold : In
    step, finished, ready : Out
        Of the :class:`Issuer`.
    table_en, index_en, address, pointer, entry : In
        Writes to the segment table and to the index lists.
    """

    fill_cycles = 18

    def __init__(self, machine: Machine, add_cycles: int, number: int = 0):
        self.machine, self.add_cycles, self.number = machine, add_cycles, number
        super().__init__({
            "command": In(command_layout(machine)), "start": In(1), "hold": In(1),
            "step": Out(step_layout(machine)), "finished": Out(1), "table_en": In(1), "index_en": In(1),
            "address": In(max(bits_for(machine.table_depth), bits_for(machine.index_depth))),
            "pointer": In(bits_for(machine.index_depth + 1)), "entry": In(entry_layout(machine).size),
            **({"ready": Out(1)} if machine.elements > 1 else {})})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        machine = self.machine
        m.submodules.tiles = tiles = TileCounter(machine)
        m.submodules.reach = reach = ReachFinder(machine)
        m.submodules.cutter = cutter = SegmentCutter(machine)
        m.submodules.table = table = SegmentTable(machine)
        m.submodules.entries = entries = EntryFetcher(machine)
        m.submodules.spans = spans = SpanFinder(machine)
        m.submodules.issuer = issuer = Issuer(machine, self.add_cycles, self.number)
        for name, source, launch, pipeline, layout, after in (
                ("tile", tiles, tiles.o.valid, reach, reach_layout, cutter),
                ("segment", cutter, cutter.o.valid, table, segment_layout, entries),
                ("block", entries, entries.launch, spans, span_layout, issuer)):
            m.submodules[f"{name}_queue"] = queue = LandingQueue(layout(machine))
            m.d.comb += [source.room.eq(queue.room), queue.launch.eq(launch)]
            wiring.connect(m, source.o, pipeline.i)
            wiring.connect(m, pipeline.o, queue.i)
            wiring.connect(m, queue.o, after.i)
        for part in (tiles, reach, cutter, spans, issuer):
            m.d.comb += part.command.eq(self.command)
        m.d.comb += [
            tiles.start.eq(self.start), issuer.hold.eq(self.hold), self.step.eq(issuer.step),
            self.finished.eq(issuer.finished),
            table.write_en.eq(self.table_en), table.write_address.eq(self.address), table.write_data.eq(self.pointer),
            entries.write_en.eq(self.index_en), entries.write_address.eq(self.address),
            entries.write_data.eq(self.entry)]
        if machine.elements > 1:
            m.d.comb += self.ready.eq(issuer.ready)
        return m
