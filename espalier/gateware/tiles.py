"""From a command to the segments of its index lists, tile by tile."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from espalier.arch.machine import COORDINATE_BITS, KERNEL_BITS, Machine
from espalier.gateware.layouts import command_layout, tile_layout
from espalier.gateware.ram import Ram
from espalier.program.words import Opcode, bits_for

TAP = unsigned(KERNEL_BITS + 1)


def reach_layout(machine: Machine) -> data.StructLayout:
    """A tile, and the taps that stay inside the source map there."""
    return data.StructLayout({
        "tile": tile_layout(machine), "table": unsigned(bits_for(machine.table_depth)),
        "y_low": TAP, "y_high": TAP, "x_low": TAP, "x_high": TAP, "whole": unsigned(1), "x_whole": unsigned(1)})


def lookup_layout(machine: Machine) -> data.StructLayout:
    """Two segment pointers to look up: a segment's first entry, and the one after its last."""
    pointer = unsigned(bits_for(machine.table_depth))
    return data.StructLayout({"low": pointer, "high": pointer, "last": unsigned(1), "tile": tile_layout(machine)})


def segment_layout(machine: Machine) -> data.StructLayout:
    """A run of index entries ``low..high-1`` for a tile; ``last`` of the tile."""
    entry = unsigned(bits_for(machine.index_depth + 1))
    return data.StructLayout({"low": entry, "high": entry, "last": unsigned(1), "tile": tile_layout(machine)})


class TileCounter(wiring.Component):
    """Walks the tiles of a command: every pixel of each output block, a pool's four pixels together.

    WU has one tile per output block: the whole list of the block. Throughput one tile per cycle.
    After ``start`` it works until it has sent the tile marked ``final``.
    """

    def __init__(self, machine: Machine):
        self.machine = machine
        super().__init__({"command": In(command_layout(machine)), "start": In(1),
                          "o": Out(stream.Signature(reach_layout(machine)))})

    def elaborate(self, platform):
        m = Module()
        command, machine = self.command, self.machine
        tile = Signal(tile_layout(machine))
        table, block = Signal(bits_for(machine.table_depth)), Signal.like(command.blocks)
        block_out, block_mask = Signal.like(tile.out), Signal.like(tile.mask)
        slots = Signal(2 * KERNEL_BITS + 2)
        active, step, block_done, window_done = Signal(), Signal(), Signal(), Signal()

        m.d.sync += slots.eq(command.kernel_y * command.kernel_x + 1)
        m.d.comb += [
            step.eq(active & (~self.o.valid | self.o.ready)),
            window_done.eq(~command.pool_out | (tile.x[0] & tile.y[0])),
            block_done.eq((command.opcode == Opcode.UPDATE)
                          | ((tile.x == command.out_x - 1) & (tile.y == command.out_y - 1))),
        ]
        with m.If(self.start):
            m.d.sync += [active.eq(1), block.eq(0), table.eq(command.table), tile.y.eq(0), tile.x.eq(0),
                         tile.out.eq(command.out_base), block_out.eq(command.out_base),
                         tile.mask.eq(command.mask_base), block_mask.eq(command.mask_base)]
        with m.Elif(step & block_done):
            next_out, next_mask = block_out + command.out_block, block_mask + command.out_plane * machine.rows
            m.d.sync += [block.eq(block + 1), table.eq(table + slots), tile.y.eq(0), tile.x.eq(0),
                         tile.out.eq(next_out), block_out.eq(next_out), tile.mask.eq(next_mask),
                         block_mask.eq(next_mask), active.eq(block != command.blocks - 1)]
        with m.Elif(step):
            self._next_pixel(m, tile)
            with m.If(window_done):
                m.d.sync += [tile.out.eq(tile.out + 1), tile.mask.eq(tile.mask + 1)]
        with m.If(step):
            m.d.sync += [self.o.p.tile.eq(tile), self.o.p.table.eq(table),
                         self.o.p.tile.rows.eq(Mux(block == command.blocks - 1, command.last_rows, machine.rows)),
                         self.o.p.tile.final.eq(block_done & (block == command.blocks - 1))]
            self._reach(m, tile)
        with m.If(step | self.o.ready):
            m.d.sync += self.o.valid.eq(step)
        return m

    def _next_pixel(self, m: Module, tile) -> None:
        """Raster order; with pooling, raster order of 2×2 windows, row-major inside each."""
        row_done = tile.x == self.command.out_x - 1
        with m.If(~self.command.pool_out | tile.x[0]):
            with m.If(self.command.pool_out & ~tile.y[0]):
                m.d.sync += [tile.x.eq(tile.x - 1), tile.y.eq(tile.y + 1)]
            with m.Elif(row_done):
                m.d.sync += [tile.x.eq(0), tile.y.eq(tile.y + 1)]
            with m.Else():
                m.d.sync += tile.x.eq(tile.x + 1)
                with m.If(self.command.pool_out):
                    m.d.sync += tile.y.eq(tile.y - 1)
        with m.Else():
            m.d.sync += tile.x.eq(tile.x + 1)

    def _reach(self, m: Module, tile) -> None:
        command, p = self.command, self.o.p
        whole = []
        for axis in "yx":
            source, kernel, pad = (command[f"{name}_{axis}"] for name in ("source", "kernel", "pad"))
            origin = Signal(signed(COORDINATE_BITS + 2), name=f"origin_{axis}")
            room = Signal(signed(COORDINATE_BITS + 2), name=f"room_{axis}")
            m.d.comb += [origin.eq(tile[axis] - pad), room.eq(source - 1 - origin)]
            low_ok, high_ok = origin >= 0, room >= kernel - 1
            m.d.sync += [p[f"{axis}_low"].eq(Mux(low_ok, 0, -origin)),
                         p[f"{axis}_high"].eq(Mux(high_ok, kernel - 1, room))]
            whole.append(low_ok & high_ok)
        m.d.sync += [p.x_whole.eq(whole[1]), p.whole.eq((whole[0] & whole[1]) | (command.opcode == Opcode.UPDATE))]


class SegmentCutter(wiring.Component):
    """Cuts a tile's list into segments that hold only taps inside the map.

    Lists are ordered by tap row, then tap column. A tile away from the border is one segment; at the
    top or bottom also one; at the left or right border one for each tap row. A bias entry heads
    every list and is a segment of its own where the list is cut. One segment per cycle.
    """

    def __init__(self, machine: Machine):
        self.machine = machine
        super().__init__({"command": In(command_layout(machine)),
                          "i": In(stream.Signature(reach_layout(machine))),
                          "o": Out(stream.Signature(lookup_layout(machine)))})

    def elaborate(self, platform):
        m = Module()
        command, reach, p = self.command, self.i.p, self.o.p
        advance, begun, ky = Signal(), Signal(), Signal(TAP)
        row = Signal.like(p.low)
        first_row, slots = Signal.like(p.low), Signal.like(p.low)
        m.d.sync += slots.eq(command.kernel_y * command.kernel_x + 1)
        m.d.comb += [self.o.valid.eq(self.i.valid), p.tile.eq(reach.tile), advance.eq(self.o.valid & self.o.ready),
                     first_row.eq(reach.table + 1 + reach.y_low * command.kernel_x)]
        bias_first = command.bias & ~begun
        rows_begun = Signal()  # row and ky hold this tile's state
        with m.If(reach.whole):
            m.d.comb += [p.low.eq(reach.table), p.high.eq(reach.table + slots), p.last.eq(1)]
        with m.Elif(bias_first):
            m.d.comb += [p.low.eq(reach.table), p.high.eq(reach.table + 1)]
        with m.Elif(reach.x_whole):
            m.d.comb += [p.low.eq(first_row),
                         p.high.eq(reach.table + 1 + (reach.y_high + 1) * command.kernel_x), p.last.eq(1)]
        with m.Else():
            here, now = Mux(rows_begun, row, first_row), Mux(rows_begun, ky, reach.y_low)
            m.d.comb += [p.low.eq(here + reach.x_low), p.high.eq(here + reach.x_high + 1),
                         p.last.eq(now == reach.y_high)]
            with m.If(advance):
                m.d.sync += [row.eq(here + command.kernel_x), ky.eq(now + 1), rows_begun.eq(~p.last)]
        with m.If(advance):
            m.d.comb += self.i.ready.eq(p.last)
            m.d.sync += begun.eq(~p.last)
        return m


class SegmentTable(wiring.Component):
    """Looks segment pointers up: the memory of pointers into the index lists.

    Throughput one segment per cycle, latency 2 cycles, held in a queue of four.
    """

    def __init__(self, machine: Machine):
        self.machine = machine
        super().__init__({
            "i": In(stream.Signature(lookup_layout(machine))), "o": Out(stream.Signature(segment_layout(machine))),
            "write_en": In(1), "write_address": In(bits_for(machine.table_depth)),
            "write_data": In(bits_for(machine.index_depth + 1))})

    def elaborate(self, platform):
        m = Module()
        layout = segment_layout(self.machine)
        m.submodules.queue = queue = SyncFIFO(width=layout.size, depth=4)
        m.submodules.low = low = Ram(self.write_data.shape(), self.machine.table_depth)
        m.submodules.high = high = Ram(self.write_data.shape(), self.machine.table_depth)
        for copy, pointer in ((low, self.i.p.low), (high, self.i.p.high)):
            m.d.comb += [copy.read_address.eq(pointer), copy.write_en.eq(self.write_en),
                         copy.write_address.eq(self.write_address), copy.write_data.eq(self.write_data)]
        coming, found = Signal(), Signal(layout)
        m.d.comb += self.i.ready.eq(queue.level + coming < 4)
        m.d.sync += [coming.eq(self.i.valid & self.i.ready), found.last.eq(self.i.p.last),
                     found.tile.eq(self.i.p.tile)]
        entering = Signal(layout)
        m.d.comb += [entering.eq(found), entering.low.eq(low.read_data), entering.high.eq(high.read_data),
                     queue.w_data.eq(entering), queue.w_en.eq(coming), self.o.valid.eq(queue.r_rdy),
                     self.o.payload.eq(queue.r_data), queue.r_en.eq(self.o.ready)]
        return m
