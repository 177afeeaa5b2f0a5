"""From segments to index entries, and from entries to the cycles of the lattice."""

from __future__ import annotations

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from espalier.arch.machine import COORDINATE_BITS, Machine
from espalier.gateware.arithmetic import delay_line
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
    """A task with its tap's offset, and its pixels; ``never``: the tap is inside the map at none.

    WU: the pixels at which the tap is inside. FP, BP: the tile's own. ``y_single, x_single``: there is one row,
    one column of them (also where there is none).
    """
    size = unsigned(COORDINATE_BITS)
    return data.StructLayout({
        "task": task_layout(machine), "offset_y": OFFSET, "offset_x": OFFSET,
        "y_low": size, "y_high": size, "x_low": size, "x_high": size,
        "y_single": unsigned(1), "x_single": unsigned(1), "never": unsigned(1)})


def step_layout(machine: Machine) -> data.StructLayout:
    """One cycle of the lattice: where to read, and what becomes of it.

    ``channel``: source vector at map position (0, 0); ``y, x``: position in the source map; ``tile.y,
    tile.x``: position in the output map. ``term``: which channel of the block (the skew of the
    banks). Not ``valid``: multiply nothing. ``last``: the tile's sums are complete. ``add``: beside all that, what is
    added to a result is at ``add_address`` of the gradient bank ``add_row``.
    """
    sums = {"add": unsigned(1), "add_address": unsigned(bits_for(machine.gradient_depth)),
            "add_row": unsigned((machine.rows - 1).bit_length())} if machine.sums else {}
    return data.StructLayout({
        "valid": unsigned(1), "channel": unsigned(address_bits(machine)), "y": OFFSET, "x": OFFSET,
        "column": unsigned(bits_for(machine.column_depth)), "term": unsigned((machine.rows - 1).bit_length()),
        "one": unsigned(1), "last": unsigned(1), "tile": tile_layout(machine), **sums})


class EntryFetcher(wiring.Component):
    """Reads the index entries of segments, one per cycle when there is ``room``; latency 2 cycles.

    An empty segment costs one cycle and gives nothing, unless it ends a tile: then a task marked
    ``none`` carries the end.

    Members
    -------
    launch : Out(1)
        A task will leave in the next cycle.
    """

    def __init__(self, machine: Machine):
        self.machine = machine
        super().__init__({
            "room": In(1), "launch": Out(1), "i": In(stream.Signature(segment_layout(machine))),
            "o": Out(stream.Signature(task_layout(machine), always_ready=True)),
            "write_en": In(1), "write_address": In(bits_for(machine.index_depth)),
            "write_data": In(entry_layout(machine).size)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        machine, segment = self.machine, Signal(segment_layout(self.machine))  # what is left of the one in work
        m.submodules.lists = lists = Ram(unsigned(entry_layout(machine).size), machine.index_depth)
        held, empty, work, done = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            lists.write_en.eq(self.write_en), lists.write_address.eq(self.write_address),
            lists.write_data.eq(self.write_data), lists.read_address.eq(segment.low),
            empty.eq(segment.count == 0), work.eq(held & self.room), done.eq(work & (segment.count <= 1)),
            self.i.ready.eq(~held | done), self.launch.eq(work & (~empty | segment.last))]
        with m.If(self.i.ready):
            m.d.sync += [segment.eq(self.i.p), held.eq(self.i.valid)]
        with m.Elif(work):
            m.d.sync += [segment.low.eq(segment.low + 1), segment.count.eq(segment.count - 1)]
        m.d.sync += [self.o.valid.eq(self.launch), self.o.p.none.eq(empty), self.o.p.last.eq(done & segment.last),
                     self.o.p.tile.eq(segment.tile)]
        m.d.comb += self.o.p.entry.eq(lists.read_data)
        return m


class SpanFinder(wiring.Component):
    """Finds the pixels of a task. One task per cycle, latency 3 cycles, never stalls.

    Where lanes hold tiles, every tap is inside at every pixel.
    Cycle 1: the task, out of its memory; 2: the tap's distances to the borders; 3: the pixels.
    """

    def __init__(self, machine: Machine):
        self.machine = machine
        super().__init__({"command": In(command_layout(machine)),
                          "i": In(stream.Signature(task_layout(machine), always_ready=True)),
                          "o": Out(stream.Signature(span_layout(machine), always_ready=True))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p, update = self.o.p, Signal()
        tasks = [data.View(task_layout(self.machine), value)
                 for value in delay_line(m, self.i.p.as_value(), 3, "task")]
        m.d.sync += update.eq(self.command.opcode == Opcode.UPDATE)
        outside = Signal(2)
        for k, axis in enumerate("yx"):
            m.d.comb += outside[k].eq(self._axis(m, axis, tasks[1], tasks[2], update))
        if self.machine.tiles == 1:
            m.d.sync += p.never.eq(update & outside.any() & ~tasks[2].entry.one)
        nothing = p.never | p.task.none
        m.d.comb += [self.o.valid.eq(delay_line(m, self.i.valid, 3, "valid")[-1]), p.task.eq(tasks[3]),
                     p.y_single.eq(nothing | (p.y_low == p.y_high)), p.x_single.eq(nothing | (p.x_low == p.x_high))]
        return m

    def _axis(self, m: Module, axis: str, task: data.View, then: data.View, update: Signal) -> Value:
        """The pixels along one axis; returns, a cycle early, that the tap is outside the map at all of them."""
        command, p = self.command, self.o.p
        source, out, pad, stride = (command[f"{name}_{axis}"] for name in ("source", "out", "pad", "stride"))
        border, edge, last, ahead, offset, first, room, reach = (
            Signal(OFFSET, name=f"{name}_{axis}")
            for name in ("border", "edge", "last", "ahead", "offset", "first", "room", "reach"))
        tap, one = task.entry[f"k{axis}"], task.entry.one
        m.d.sync += [border.eq(source + pad - 1), edge.eq(((out - 1) << stride) - pad), last.eq(out - 1),
                     ahead.eq(pad + (C(1) << stride) - 1)]
        m.d.sync += [offset.eq(Mux(one, 0, tap - pad)), first.eq(Mux(one, 0, (ahead - tap) >> stride)),
                     room.eq((border - tap) >> stride), reach.eq(edge + tap)]
        cut, tiled = (room < last) & ~then.entry.one, C(self.machine.tiles > 1, 1)
        own = then.tile[axis]
        m.d.sync += [p[f"offset_{axis}"].eq(offset),
                     p[f"{axis}_low"].eq(Mux(update, Mux((first < 0) | tiled, 0, first), own)),
                     p[f"{axis}_high"].eq(Mux(update, Mux(cut & ~tiled, room, last), own))]
        return (reach < 0) | (room < 0)


class Issuer(wiring.Component):
    """Issues one step of the lattice per cycle: the innermost loops of all three phases. Latency 2 cycles.

    FP and BP: for each source channel of the block. WU: for each source channel, for each pixel.
    A tap that is never inside the map (a kernel larger than the map) has one step there, of nothing.
    Ends of tiles (``last``) are at least ``tile.rows`` cycles apart (WU: a tree's share of them), so that the results
    of one tile leave before those of the next arrive; of several processing elements all end a tile at once. Where
    something is added to results, it is read from the gradient banks when they come to the drain, one after the other,
    ``add_cycles`` after the tile's end. In BP the steps read those banks, too, one after the other: a step that would
    read the same bank in the same cycle waits. Nothing else ever does.

    Parameters
    ----------
    add_cycles : int
        From the last step of a tile to the one beside which what is added to its first result is read.
    number : int
        Of the processing element. In BP each reads what is added to the gradients of its own activations.

    Members
    -------
    hold : In(1)
        No tile may end.
    ready : Out(1)
        This step ends a tile, if nothing holds it (of a machine with several processing elements).
    step : Out(step_layout)
        Registered; marked ``valid`` for one cycle.
    finished : Out(1)
        One cycle, with the last step of the phase or after it.
    """

    def __init__(self, machine: Machine, add_cycles: int, number: int = 0):
        self.machine, self.add_cycles, self.number = machine, add_cycles, number
        super().__init__({"command": In(command_layout(machine)),
                          "i": In(stream.Signature(span_layout(machine))), "hold": In(1),
                          "step": Out(step_layout(machine)), "finished": Out(1),
                          **({"ready": Out(1)} if machine.elements > 1 else {})})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        span, task = Signal(span_layout(self.machine)), self.i.p.task
        self.span, held = span, Signal()
        self.update, self.terms_done = Signal(), Signal()
        self.y, self.x, self.y_done, self.x_done = (Signal.like(span[name])
                                                    for name in ("y_low", "x_low", "y_single", "x_single"))
        self.channel, self.term = Signal.like(self.step.channel), Signal.like(task.entry.count)
        pixels_done, tile_end, go, done = Signal(), Signal(), Signal(), Signal()
        spacing, waiting = Signal.like(task.tile.rows), Signal()  # cycles until a tile may end, and whether any
        clash = Signal()  # this step would read the bank from which something is read that is added
        ends = Signal()  # the task's last pixel (WU), its last step (FP, BP) is the end of a tile
        self.advance = Signal.like(self.channel)  # from one channel of a block to the next
        m.d.sync += [self.update.eq(self.command.opcode == Opcode.UPDATE),
                     self.advance.eq(Mux(self.command.opcode == Opcode.BACKWARD, 0, self.command.source_plane))]
        m.d.comb += [
            pixels_done.eq(self.y_done & self.x_done),
            tile_end.eq(ends & pixels_done & (self.update | self.terms_done)),
            go.eq(held & ~clash & ~(tile_end & (waiting | self.hold))),
            done.eq(held & ~clash & pixels_done & self.terms_done & ~(ends & (waiting | self.hold))),
            self.i.ready.eq(~held | done)]
        if self.machine.elements > 1:
            m.d.comb += self.ready.eq(held & ~clash & tile_end & ~waiting)
        rows, most = span.task.tile.rows, self.machine.tree_rows
        turns = Signal.like(rows)  # cycles in which a tile's rows leave
        m.d.comb += turns.eq(Mux(self.update & (rows > most), most, rows))
        with m.If(go & tile_end):
            m.d.sync += [spacing.eq(turns - 1), waiting.eq(turns != 1)]
        with m.Elif(waiting):
            m.d.sync += [spacing.eq(spacing - 1), waiting.eq(spacing != 1)]
        with m.If(self.i.ready):
            m.d.sync += [held.eq(self.i.valid), span.eq(self.i.p), self.channel.eq(task.entry.channel),
                         ends.eq(Mux(self.update, ~task.none, task.last)),
                         self.term.eq(0), self.terms_done.eq(task.none | (task.entry.count == 1))]
            self._first_pixel(m, self.i.p)
        with m.Elif(go):
            self._next(m, pixels_done)
        self._issue(m, go, tile_end)
        if self.machine.sums:
            self._add(m, go & tile_end, clash)
        m.d.sync += self.finished.eq(done & span.task.last & span.task.tile.final)
        return m

    def _first_pixel(self, m: Module, span: data.View) -> None:
        m.d.sync += [self.y.eq(span.y_low), self.x.eq(span.x_low), self.y_done.eq(span.y_single),
                     self.x_done.eq(span.x_single)]

    def _next(self, m: Module, pixels_done: Signal) -> None:
        """The next pixel, or the first one of the next channel. What is done is known a cycle before it is needed."""
        span = self.span
        with m.If(pixels_done):
            m.d.sync += [self.term.eq(self.term + 1), self.channel.eq(self.channel + self.advance),
                         self.terms_done.eq(self.term + 2 == span.task.entry.count)]
            self._first_pixel(m, span)
        with m.Elif(self.x_done):
            m.d.sync += [self.y.eq(self.y + 1), self.y_done.eq(self.y + 1 == span.y_high),
                         self.x.eq(span.x_low), self.x_done.eq(span.x_single)]
        with m.Else():
            m.d.sync += [self.x.eq(self.x + 1), self.x_done.eq(self.x + 1 == span.x_high)]

    def _issue(self, m: Module, go: Signal, tile_end: Signal) -> None:
        span, step, task = self.span, self.step, self.span.task
        m.d.sync += [
            step.valid.eq(go & ~task.none & ~span.never), step.last.eq(go & tile_end),
            step.channel.eq(self.channel), step.column.eq(task.entry.column), step.term.eq(self.term),
            step.one.eq(task.entry.one), step.y.eq((self.y << self.command.stride_y) + span.offset_y),
            step.x.eq((self.x << self.command.stride_x) + span.offset_x),
            step.tile.eq(task.tile), step.tile.y.eq(self.y), step.tile.x.eq(self.x)]

    def _add(self, m: Module, ended: Value, clash: Signal) -> None:
        """Beside the steps, in order of the rows, what reads what is added to the results of a tile that ``ended``."""
        command, step, tile, machine = self.command, self.step, self.span.task.tile, self.machine
        ends = delay_line(m, ended & command.add, self.add_cycles - 1, "ended")
        places = delay_line(m, Cat(tile.out, tile.rows), self.add_cycles - 1, "ended_tile")
        out, rows = places[-1][:len(tile.out)], places[-1][len(tile.out):]
        address, left, ours = Signal.like(step.add_address), Signal.like(tile.rows), Signal()
        row, backward = Signal((machine.all_rows - 1).bit_length()), Signal()
        own, element = row[:len(step.add_row)], row[len(step.add_row):]
        m.d.sync += backward.eq(command.opcode == Opcode.BACKWARD)
        m.d.comb += [ours.eq((left != 0) & (~backward | (element == self.number))),
                     clash.eq(ours & backward & (own == self.term[:len(own)]))]
        with m.If(ends[-1]):
            m.d.sync += [address.eq(out + command.add_offset), row.eq(0), left.eq(rows)]
        with m.Elif(left != 0):
            m.d.sync += [row.eq(row + 1), left.eq(left - 1)]
            if machine.elements > 1:  # behind the last row of one comes the first of the next
                with m.If(own == machine.rows - 1):
                    m.d.sync += address.eq(address + command.out_block)
        m.d.sync += [step.add.eq(ours), step.add_address.eq(address), step.add_row.eq(own)]
