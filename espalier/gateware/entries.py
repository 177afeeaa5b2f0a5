"""From segments to index entries, and from entries to the cycles of the lattice."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from espalier.arch.machine import COORDINATE_BITS, Machine
from espalier.gateware.layouts import address_bits, command_layout, entry_layout, tile_layout
from espalier.gateware.ram import Ram
from espalier.gateware.tiles import segment_layout
from espalier.program.words import Opcode, bits_for

OFFSET = signed(COORDINATE_BITS + 2)


def task_layout(machine: Machine) -> data.StructLayout:
    """One live block to work off for a tile. ``none``: the tile has no block here, only an end."""
    return data.StructLayout({"entry": entry_layout(machine), "none": unsigned(1), "last": unsigned(1),
                              "tile": tile_layout(machine)})


def span_layout(machine: Machine) -> data.StructLayout:
    """A task with its tap's offset, and the pixels (WU) at which the tap is inside the map; ``never``: at none."""
    size = unsigned(COORDINATE_BITS)
    return data.StructLayout({
        "task": task_layout(machine), "offset_y": OFFSET, "offset_x": OFFSET,
        "y_low": size, "y_high": size, "x_low": size, "x_high": size, "never": unsigned(1)})


def step_layout(machine: Machine) -> data.StructLayout:
    """One cycle of the lattice: where to read, and what becomes of it.

    ``channel``: source vector at map position (0, 0); ``y, x``: position in the source map; ``tile.y,
    tile.x``: position in the output map. ``term``: which channel of the block (the skew of the
    banks). ``zero``: multiply nothing. ``last``: the tile's sums are complete.
    """
    return data.StructLayout({
        "valid": unsigned(1), "channel": unsigned(address_bits(machine)), "y": OFFSET, "x": OFFSET,
        "column": unsigned(bits_for(machine.weight_depth)), "term": unsigned((machine.rows - 1).bit_length()),
        "one": unsigned(1), "last": unsigned(1), "tile": tile_layout(machine)})


class EntryFetcher(wiring.Component):
    """Reads the index entries of segments.

    An empty segment costs one cycle and gives nothing, unless it ends a tile: then a task marked
    ``none`` carries the end. Throughput one entry per cycle, latency 2 cycles, a queue of four.
    """

    def __init__(self, machine: Machine):
        self.machine = machine
        super().__init__({
            "i": In(stream.Signature(segment_layout(machine))), "o": Out(stream.Signature(task_layout(machine))),
            "write_en": In(1), "write_address": In(bits_for(machine.index_depth)),
            "write_data": In(entry_layout(machine).size)})

    def elaborate(self, platform):
        m = Module()
        layout, machine = task_layout(self.machine), self.machine
        m.submodules.queue = queue = SyncFIFO(width=layout.size, depth=4)
        m.submodules.lists = lists = Ram(unsigned(entry_layout(machine).size), machine.index_depth)
        m.d.comb += [lists.write_en.eq(self.write_en), lists.write_address.eq(self.write_address),
                     lists.write_data.eq(self.write_data)]

        segment = self.i.p
        inside, position, here = Signal(), Signal.like(segment.low), Signal.like(segment.low)
        room, work, empty, done = Signal(), Signal(), Signal(), Signal()
        coming, found = Signal(), Signal(layout)
        m.d.comb += [here.eq(Mux(inside, position, segment.low)), lists.read_address.eq(here),
                     room.eq(queue.level + coming < 4), work.eq(self.i.valid & room),
                     empty.eq(segment.low == segment.high), done.eq(empty | (here + 1 == segment.high)),
                     self.i.ready.eq(room & done)]
        with m.If(work):
            m.d.sync += [position.eq(here + 1), inside.eq(~done)]
        m.d.sync += [coming.eq(work & (~empty | segment.last)), found.none.eq(empty),
                     found.last.eq(done & segment.last), found.tile.eq(segment.tile)]
        entering = Signal(layout)
        m.d.comb += [entering.eq(found), entering.entry.eq(lists.read_data), queue.w_data.eq(entering),
                     queue.w_en.eq(coming), self.o.valid.eq(queue.r_rdy), self.o.payload.eq(queue.r_data),
                     queue.r_en.eq(self.o.ready)]
        return m


class SpanFinder(wiring.Component):
    """Finds the pixels at which a tap lies inside the source map. One task per cycle, latency 1."""

    def __init__(self, machine: Machine):
        self.machine = machine
        super().__init__({"command": In(command_layout(machine)),
                          "i": In(stream.Signature(task_layout(machine))),
                          "o": Out(stream.Signature(span_layout(machine)))})

    def elaborate(self, platform):
        m = Module()
        command, task, p = self.command, self.i.p, self.o.p
        m.d.comb += self.i.ready.eq(~self.o.valid | self.o.ready)
        with m.If(self.i.ready):
            m.d.sync += [self.o.valid.eq(self.i.valid), p.task.eq(task)]
            outside = 0
            for axis in "yx":
                offset, room = Signal(OFFSET, name=f"offset_{axis}"), Signal(OFFSET, name=f"room_{axis}")
                out, source = command[f"out_{axis}"], command[f"source_{axis}"]
                m.d.comb += [offset.eq(Mux(task.entry.one, 0, task.entry[f"k{axis}"] - command[f"pad_{axis}"])),
                             room.eq(source - 1 - offset)]
                cut = (room < out - 1) & ~task.entry.one
                m.d.sync += [p[f"offset_{axis}"].eq(offset), p[f"{axis}_low"].eq(Mux(offset < 0, -offset, 0)),
                             p[f"{axis}_high"].eq(Mux(cut, room, out - 1))]
                outside |= ((offset + out <= 0) | (room < 0)) & ~task.entry.one
            m.d.sync += p.never.eq(outside)
        return m


class Issuer(wiring.Component):
    """Issues one step of the lattice per cycle: the innermost loops of all three phases.

    FP and BP: for each source channel of the block. WU: for each source channel, for each pixel.
    A tap that is never inside the map (a kernel larger than the map) has one step there, of nothing.
    Ends of tiles (``last``) are at least ``tile.rows`` cycles apart, so that the results of one tile
    leave before those of the next arrive; nothing else ever waits.

    Members
    -------
    step : Out(step_layout)
        Registered; marked ``valid`` for one cycle.
    finished : Out(1)
        One cycle, with the last step of the phase or after it.
    """

    def __init__(self, machine: Machine):
        self.machine = machine
        super().__init__({"command": In(command_layout(machine)),
                          "i": In(stream.Signature(span_layout(machine))),
                          "step": Out(step_layout(machine)), "finished": Out(1)})

    def elaborate(self, platform):
        m = Module()
        command, span, step = self.command, self.i.p, self.step
        task = span.task
        entry = task.entry
        update = command.opcode == Opcode.UPDATE
        term, channel = Signal.like(entry.count), Signal.like(step.channel)
        begun, y, x = Signal(), Signal.like(span.y_low), Signal.like(span.x_low)
        here_y, here_x, here_channel = Signal.like(y), Signal.like(x), Signal.like(channel)
        terms_done, pixels_done, tile_end, go = Signal(), Signal(), Signal(), Signal()
        spacing = Signal.like(task.tile.rows)

        m.d.comb += [
            here_y.eq(Mux(begun, y, span.y_low)), here_x.eq(Mux(begun, x, span.x_low)),
            here_channel.eq(Mux(term == 0, entry.channel, channel)),
            terms_done.eq(task.none | (term + 1 == entry.count)),
            pixels_done.eq(~update | task.none | span.never | ((here_y == span.y_high) & (here_x == span.x_high))),
            tile_end.eq(Mux(update, pixels_done & ~task.none, task.last & terms_done)),
            go.eq(self.i.valid & ~(tile_end & (spacing != 0))),
            self.i.ready.eq(go & terms_done & pixels_done),
        ]
        with m.If(go & tile_end):
            m.d.sync += spacing.eq(task.tile.rows - 1)
        with m.Elif(spacing != 0):
            m.d.sync += spacing.eq(spacing - 1)
        with m.If(go):
            with m.If(pixels_done):
                m.d.sync += [begun.eq(0), term.eq(Mux(terms_done, 0, term + 1)),
                             channel.eq(here_channel + Mux(command.opcode == Opcode.BACKWARD, 0,
                                                           command.source_plane))]
            with m.Else():
                row_done = here_x == span.x_high
                m.d.sync += [begun.eq(1), x.eq(Mux(row_done, span.x_low, here_x + 1)), y.eq(here_y + row_done)]
        self._issue(m, go, tile_end, here_channel, here_y, here_x, term)
        m.d.sync += self.finished.eq(self.i.valid & self.i.ready & task.last & task.tile.final)
        return m

    def _issue(self, m: Module, go, tile_end, channel, y, x, term) -> None:
        span, step, task = self.i.p, self.step, self.i.p.task
        update = self.command.opcode == Opcode.UPDATE
        tile_y, tile_x = Mux(update, y, task.tile.y), Mux(update, x, task.tile.x)
        m.d.sync += [
            step.valid.eq(go & ~task.none & ~(update & span.never)), step.last.eq(go & tile_end),
            step.channel.eq(channel), step.column.eq(task.entry.column), step.term.eq(term),
            step.one.eq(task.entry.one),
            step.y.eq(tile_y + span.offset_y), step.x.eq(tile_x + span.offset_x),
            step.tile.eq(task.tile), step.tile.y.eq(tile_y), step.tile.x.eq(tile_x)]
