"""From a command to the segments of its index lists, tile by tile."""

from __future__ import annotations

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from espalier.arch.machine import COORDINATE_BITS, KERNEL_BITS, Machine
from espalier.gateware.arithmetic import delay_line
from espalier.gateware.counted_loop import CountedLoop
from espalier.gateware.layouts import command_layout, element_bits, tile_layout
from espalier.gateware.ram import BankedRam
from espalier.program.words import Opcode, bits_for

TAP = unsigned(KERNEL_BITS + 1)


def place_layout(machine: Machine) -> data.StructLayout:
    """A tile, and where the segment pointers of its output block begin."""
    return data.StructLayout({"tile": tile_layout(machine), "table": unsigned(bits_for(machine.table_depth))})


def reach_layout(machine: Machine) -> data.StructLayout:
    """A tile, and which segment pointers name the taps that stay inside the source map there.

    ``bias``: the entry of ``table`` comes first, a segment of its own. Then ``low .. high-1``; or, ``by_rows``, one
    segment for each tap row: ``low + x_low .. low + x_end - 1``, and ``more`` rows after the first (otherwise 0).
    """
    pointer = unsigned(bits_for(machine.table_depth))
    return data.StructLayout({
        "tile": tile_layout(machine), "table": pointer, "low": pointer, "high": pointer, "bias": unsigned(1),
        "by_rows": unsigned(1), "x_low": TAP, "x_end": TAP, "more": TAP})


def lookup_layout(machine: Machine) -> data.StructLayout:
    """Two segment pointers to look up: a segment's first entry, and the one after its last."""
    pointer = unsigned(bits_for(machine.table_depth))
    return data.StructLayout({"low": pointer, "high": pointer, "last": unsigned(1), "tile": tile_layout(machine)})


def segment_layout(machine: Machine) -> data.StructLayout:
    """A run of ``count`` index entries from ``low`` on for a tile; ``last`` of the tile."""
    entry = unsigned(bits_for(machine.index_depth + 1))
    return data.StructLayout({"low": entry, "count": entry, "last": unsigned(1), "tile": tile_layout(machine)})


class TileCounter(wiring.Component):
    """Walks the tiles of a command: every pixel of each output block, a pool's four pixels together.

    Where every processing element makes results of its own, a block of all of them is a tile's.
    WU has one tile per output block: the whole list of the block. A block's first tile is ``fresh``. Throughput one
    tile per cycle, when there is ``room``. After ``start`` it works until it has sent the tile marked ``final``.
    """

    def __init__(self, machine: Machine):
        self.machine = machine
        super().__init__({"command": In(command_layout(machine)), "start": In(1), "room": In(1),
                          "o": Out(stream.Signature(place_layout(machine), always_ready=True))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        command, o = self.command, self.o.p
        m.submodules.blocks = blocks = CountedLoop(len(command.blocks))
        m.submodules.rows = rows = CountedLoop(COORDINATE_BITS)
        m.submodules.columns = columns = CountedLoop(COORDINATE_BITS)
        m.submodules.window = window = CountedLoop(3)  # the four pixels of a pool, row-major
        pool, active, fresh, step, block_done = Signal(), Signal(), Signal(), Signal(), Signal()
        single = command.opcode == Opcode.UPDATE
        m.d.sync += pool.eq(command.pool_out)
        m.d.comb += [
            step.eq(active & self.room), block_done.eq(window.done & columns.done & rows.done),
            blocks.count.eq(command.blocks), window.count.eq(Mux(command.pool_out & ~single, 4, 1)),
            window.step.eq(step), columns.step.eq(step & window.done), rows.step.eq(step & window.done & columns.done),
            blocks.step.eq(step & block_done),
            o.tile.y.eq(Mux(pool, Cat(window.value[1], rows.value), rows.value)),
            o.tile.x.eq(Mux(pool, Cat(window.value[0], columns.value), columns.value)),
            o.tile.rows.eq(Mux(blocks.done, command.last_rows, self._whole_rows())),
            o.tile.fresh.eq(fresh), o.tile.final.eq(block_done & blocks.done), self.o.valid.eq(step),
        ]
        for loop, size in ((rows, command.out_y), (columns, command.out_x)):
            m.d.comb += loop.count.eq(Mux(single, 1, Mux(command.pool_out, size >> 1, size)))
        for loop in (blocks, rows, columns, window):
            m.d.comb += loop.reset.eq(self.start)
        with m.If(self.start):
            m.d.sync += [active.eq(1), fresh.eq(1)]
        with m.Elif(step):
            m.d.sync += [active.eq(~o.tile.final), fresh.eq(block_done)]
        self._addresses(m, step, window.done, columns.done, block_done)
        return m

    def _whole_rows(self) -> Value:
        """Results of a tile of a block that is whole."""
        machine = self.machine
        return Mux(self.command.own, machine.all_rows, machine.rows) if machine.elements > 1 else C(machine.rows)

    def _addresses(self, m: Module, step: Signal, window_done: Signal, row_done: Signal, block_done: Signal) -> None:
        """Where a tile's results go: further with each window, with each row, and with each block.

        In FP the blocks of a result go to the processing elements in turn, or one to each.
        """
        command, o = self.command, self.o.p
        table, slots = Signal.like(o.table), Signal.like(o.table)
        out, mask, block_out, block_mask = (Signal.like(field) for field in (o.tile.out, o.tile.mask) * 2)
        m.d.comb += [o.table.eq(table), o.tile.out.eq(out), o.tile.mask.eq(mask)]
        m.d.sync += slots.eq(command.kernel_y * command.kernel_x + 1)
        further_block, further_mask = self._block_step(m, step & block_done)
        with m.If(self.start):
            m.d.sync += [table.eq(command.table), out.eq(command.out_base), block_out.eq(command.out_base),
                         mask.eq(command.mask_base), block_mask.eq(command.mask_base)]
        with m.Elif(step & block_done):
            next_out = block_out + further_block
            next_mask = block_mask + Mux(further_mask, command.out_plane * self.machine.rows, 0)
            m.d.sync += [table.eq(table + slots), out.eq(next_out), block_out.eq(next_out),
                         mask.eq(next_mask), block_mask.eq(next_mask)]
        with m.Elif(step & window_done):
            further = Mux(row_done, command.out_skip, command.out_step)
            m.d.sync += [out.eq(out + further), mask.eq(mask + further)]

    def _block_step(self, m: Module, done: Value) -> tuple[Value, Value]:
        """From where a block's results go to where the next one's do, and whether their activations have others."""
        command, bits = self.command, element_bits(self.machine)
        if not bits:
            return command.out_block, C(1)
        owner, turns, copies = self.o.p.tile.owner, Signal(), Signal()
        m.d.sync += [turns.eq((command.opcode == Opcode.FORWARD) & ~command.own),
                     copies.eq((command.opcode == Opcode.BACKWARD) | (command.target[0] if self.machine.copies else 0))]
        with m.If(self.start):
            m.d.sync += owner.eq(0)
        with m.Elif(done & turns):
            m.d.sync += owner.eq(owner + 1)
        each = Mux(copies & ~turns, command.out_block << bits, command.out_block)
        stays = turns & ~owner.all()
        return Mux(stays & ~copies, 0, each), ~stays


class ReachFinder(wiring.Component):
    """Finds which taps stay inside the source map. Latency 4 cycles, one tile per cycle, never stalls.

    Where lanes hold tiles, all of them do. A bias is met by the first tile of its block alone, and kept for the others
    (:class:`~espalier.gateware.lattice.Lattice`).
    Cycle 1: distances of a tile to the borders; 2: taps; 3: products with the kernel's width; 4: pointers.
    """

    def __init__(self, machine: Machine):
        self.machine = machine
        super().__init__({"command": In(command_layout(machine)),
                          "i": In(stream.Signature(place_layout(machine), always_ready=True)),
                          "o": Out(stream.Signature(reach_layout(machine), always_ready=True))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        command, o = self.command, self.o.p
        places = delay_line(m, self.i.p.as_value(), 4, "place")
        place = [data.View(place_layout(self.machine), value) for value in places]
        low, end, inside = {}, {}, {}
        for axis in "yx":
            low[axis], end[axis], inside[axis] = self._taps(m, axis, place[0].tile[axis])
        update, whole, by_rows = Signal(), Signal(2), Signal(2)  # one bit for each of cycles 3 and 4
        m.d.sync += [update.eq(command.opcode == Opcode.UPDATE),
                     whole.eq(Cat(update | inside["y"] & inside["x"], whole[0])),
                     by_rows.eq(Cat(~update & ~inside["x"] & (low["y"] != end["y"]), by_rows[0]))]
        more = Signal(TAP)
        m.d.sync += [more.eq(end["y"] - low["y"] - 1), o.more.eq(Mux(by_rows[0], more, 0))]
        self._pointers(m, low["y"], end["y"], place[3], whole[0])
        m.d.sync += o.bias.eq(command.bias & ~whole[0] & place[3].tile.fresh)
        m.d.comb += [
            self.o.valid.eq(delay_line(m, self.i.valid, 4, "valid")[-1]), o.tile.eq(place[4].tile),
            o.table.eq(place[4].table), o.by_rows.eq(by_rows[1]),
            o.x_low.eq(delay_line(m, low["x"], 2, "x_low")[-1]), o.x_end.eq(delay_line(m, end["x"], 2, "x_end")[-1])]
        return m

    def _taps(self, m: Module, axis: str, tile: Value) -> tuple[Value, Value, Value]:
        """The first tap inside, the one after the last, and whether all are; two cycles after ``tile``."""
        source, kernel, pad, stride = (self.command[f"{name}_{axis}"] for name in ("source", "kernel", "pad", "stride"))
        at = (tile << stride)[:COORDINATE_BITS]
        distance = signed(COORDINATE_BITS + 2)
        border, slack = Signal(distance), Signal(distance)  # beyond which tiles lack their last taps
        origin, after, room = Signal(distance), Signal(distance), Signal(distance)
        low, end, inside = Signal(TAP), Signal(TAP), Signal()
        m.d.sync += [border.eq(source + pad), slack.eq(source + pad - kernel), origin.eq(at - pad),
                     after.eq(border - at), room.eq(slack - at)]
        m.d.sync += [low.eq(Mux(origin < 0, -origin, 0)), end.eq(Mux(after < 0, 0, Mux(room < 0, after, kernel))),
                     inside.eq((origin >= 0) & (room >= 0) | (self.machine.tiles > 1))]
        return low, end, inside

    def _pointers(self, m: Module, low: Value, end: Value, place: data.View, whole: Value) -> None:
        command, o, table = self.command, self.o.p, place.table
        slots, begin = Signal.like(table), Signal.like(table)
        before, through = Signal(2 * len(low)), Signal(2 * len(low))
        m.d.sync += [
            slots.eq(command.kernel_y * command.kernel_x + 1),
            before.eq(low * command.kernel_x), through.eq(end * command.kernel_x)]
        m.d.comb += begin.eq(table + 1)
        m.d.sync += [o.low.eq(Mux(whole, Mux(place.tile.fresh, table, begin), begin + before)),
                     o.high.eq(Mux(whole, table + slots, begin + through))]


class SegmentCutter(wiring.Component):
    """Cuts a tile's list into segments that hold only taps inside the map.

    Lists are ordered by tap row, then tap column. A tile away from the border is one segment; at the
    top or bottom also one; at the left or right border one for each tap row. A bias entry heads
    the list of a block's first tile and is a segment of its own where the list is cut. Latency 1 cycle, one segment
    per cycle when there is ``room``.
    """

    def __init__(self, machine: Machine):
        self.machine = machine
        super().__init__({"command": In(command_layout(machine)), "room": In(1),
                          "i": In(stream.Signature(reach_layout(machine))),
                          "o": Out(stream.Signature(lookup_layout(machine), always_ready=True))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        reach, p = Signal(reach_layout(self.machine)), self.o.p  # what is left of the tile in work
        held, advance, done = Signal(), Signal(), Signal()
        m.d.comb += [advance.eq(held & self.room), done.eq(self.room & ~reach.bias & (reach.more == 0)),
                     self.i.ready.eq(~held | done), self.o.valid.eq(advance), p.tile.eq(reach.tile),
                     p.last.eq(~reach.bias & (reach.more == 0))]
        with m.If(reach.bias):
            m.d.comb += [p.low.eq(reach.table), p.high.eq(reach.table + 1)]
        with m.Elif(reach.by_rows):
            m.d.comb += [p.low.eq(reach.low + reach.x_low), p.high.eq(reach.low + reach.x_end)]
        with m.Else():
            m.d.comb += [p.low.eq(reach.low), p.high.eq(reach.high)]
        with m.If(self.i.ready):
            m.d.sync += [reach.eq(self.i.p), held.eq(self.i.valid)]
        with m.Elif(advance):
            m.d.sync += reach.bias.eq(0)
            with m.If(~reach.bias):
                m.d.sync += [reach.low.eq(reach.low + self.command.kernel_x), reach.more.eq(reach.more - 1)]
        return m


class SegmentTable(wiring.Component):
    """Looks segment pointers up: the memory of pointers into the index lists.

    Throughput one segment per cycle, latency 2 cycles, never stalls.
    """

    def __init__(self, machine: Machine):
        self.machine = machine
        super().__init__({
            "i": In(stream.Signature(lookup_layout(machine), always_ready=True)),
            "o": Out(stream.Signature(segment_layout(machine), always_ready=True)),
            "write_en": In(1), "write_address": In(bits_for(machine.table_depth)),
            "write_data": In(bits_for(machine.index_depth + 1))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        found = {}
        for name in ("low", "high"):
            m.submodules[name] = copy = BankedRam(self.write_data.shape(), self.machine.table_depth)
            found[name] = copy.read_data
            m.d.comb += [copy.read_address.eq(self.i.p[name]), copy.write_en.eq(self.write_en),
                         copy.write_address.eq(self.write_address), copy.write_data.eq(self.write_data)]
        m.d.comb += [
            self.o.p.low.eq(found["low"]), self.o.p.count.eq(found["high"] - found["low"]),
            self.o.p.last.eq(delay_line(m, self.i.p.last, 2, "last")[-1]),
            self.o.p.tile.eq(delay_line(m, self.i.p.tile.as_value(), 2, "tile")[-1]),
            self.o.valid.eq(delay_line(m, self.i.valid, 2, "valid")[-1])]
        return m
