"""From accumulators back to words: requantise, rectify, pool, mask; and the sum over the lanes."""

from __future__ import annotations

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from espalier.arch.machine import CODE_BITS, Machine
from espalier.gateware.arithmetic import delay_line, saturate_later
from espalier.gateware.layouts import (
    address_bits,
    command_layout,
    element_bits,
    tile_layout,
    values_layout,
    vector_layout,
    word_layout,
)
from espalier.gateware.round_shift import FINE_BITS
from espalier.program.words import Opcode, bits_for


def item_layout(machine: Machine) -> data.StructLayout:
    """What travels with one row of results: its row among those of the tile, and where it goes.

    ``owner``: whose activations it, or what it is the gradient of, is among.
    """
    owner = {"owner": element_bits(machine)} if machine.elements > 1 else {}
    return data.StructLayout({
        "valid": 1, "row": (machine.all_rows - 1).bit_length(), "out": address_bits(machine),
        "mask": bits_for(machine.activation_depth), "window": unsigned(CODE_BITS), **owner})


def bank_of(machine: Machine, row: Value) -> Value:
    """The row of a result within its block."""
    return row[:(machine.rows - 1).bit_length()]


class RowCounter(wiring.Component):
    """Names the rows of a tile's sums as they leave the lattice, one per cycle after ``loaded``.

    In WU those that leave through the first tree; the others' are as far from theirs.
    """

    def __init__(self, machine: Machine):
        self.machine = machine
        super().__init__({"command": In(command_layout(machine)), "loaded": In(1), "tile": In(tile_layout(machine)),
                          "item": Out(item_layout(machine))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        command, item = self.command, self.item
        left = Signal.like(self.tile.rows)
        turns = Mux((command.opcode == Opcode.UPDATE) & (self.tile.rows > self.machine.tree_rows),
                    self.machine.tree_rows, self.tile.rows)
        m.d.comb += item.valid.eq(left != 0)
        with m.If(self.loaded):
            m.d.sync += [left.eq(turns), item.row.eq(0), item.out.eq(self.tile.out),
                         item.mask.eq(self.tile.mask), item.window.eq(Cat(self.tile.x[0], self.tile.y[0]))]
        with m.Elif(item.valid):
            m.d.sync += [left.eq(left - 1), item.row.eq(item.row + 1), item.mask.eq(item.mask + command.out_plane)]
            forward = command.opcode == Opcode.FORWARD
            with m.If(forward & ~command.target[0] if self.machine.copies else forward):
                m.d.sync += item.out.eq(item.out + command.out_plane)
        if self.machine.elements > 1:
            self._owners(m)
        return m

    def _owners(self, m: Module) -> None:
        """Behind the last row of a processing element comes the first of the next one."""
        command, item = self.command, self.item
        first_out, first_mask = Signal.like(item.out), Signal.like(item.mask)
        own = command.opcode == Opcode.FORWARD  # each has its activations at the same addresses
        if self.machine.copies:
            own = own & ~command.target[0]
        with m.If(self.loaded):
            m.d.sync += [first_out.eq(self.tile.out), first_mask.eq(self.tile.mask), item.owner.eq(self.tile.owner)]
        with m.Elif(item.valid & (bank_of(self.machine, item.row) == self.machine.rows - 1)):
            m.d.sync += [item.owner.eq(item.owner + 1), item.mask.eq(first_mask),
                         item.out.eq(Mux(own, first_out, item.out + command.out_block))]


class VectorRequantizer(wiring.Component):
    """:class:`espalier.numerics.requantize.Requantize` on a vector. Latency 5, one vector per cycle.

    The shift has two stages, and after the first no more bits are kept than a word and the second shift need.

    Members
    -------
    shift : In(6)
    limit : In
        The largest word; the smallest is its complement.
    """

    latency_cycles = 5

    def __init__(self, machine: Machine):
        self.machine = machine
        super().__init__({"i": In(data.ArrayLayout(signed(machine.acc_bits), machine.lanes)), "shift": In(6),
                          "limit": In(machine.word_bits), "o": Out(values_layout(machine))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for lane in range(self.machine.lanes):
            self._lane(m, lane)
        return m

    def _lane(self, m: Module, lane: int) -> None:
        doubled = Signal(signed(self.machine.acc_bits + 1), name=f"doubled_{lane}")
        width = min(len(doubled), self.machine.word_bits + (1 << FINE_BITS))
        coarse, fine, rounded = (Signal(signed(width), name=f"{name}_{lane}") for name in ("coarse", "fine", "rounded"))
        m.d.comb += doubled.eq(self.i[lane] << 1)  # (2*acc >> shift) + 1 >> 1 rounds half up
        coarse_shift, fine_shift = self.shift[FINE_BITS:], self.shift[:FINE_BITS]
        sign, shifted = coarse[-1], coarse >> fine_shift
        beyond = self._beyond(m, doubled, width, coarse_shift, lane)
        m.d.sync += [
            coarse.eq(Cat((doubled >> Cat(C(0, FINE_BITS), coarse_shift))[:width - 1], doubled[-1])),
            fine.eq(Cat(shifted[:width - 2], Mux(beyond, ~sign, shifted[width - 2]), sign)),
            rounded.eq((fine + 1) >> 1),
            self.o[lane].eq(saturate_later(m, rounded, self.limit[:self.machine.word_bits - 1], self.machine.word_bits,
                                           f"lane_{lane}"))]

    def _beyond(self, m: Module, doubled: Signal, width: int, coarse_shift: Value, lane: int) -> Value:
        """Whether the coarse shift of ``doubled``, one cycle ago, needed more than ``width`` bits.

        Its result is an end of the range then, and so is that of any number with this sign and the bit after it
        inverted. Bits of one value differ from no neighbour.
        """
        lows = range(width - 1, len(doubled) - 1, 1 << FINE_BITS)
        if not lows:
            return C(0)
        differ = Signal(len(lows), name=f"differ_{lane}")
        for group, low in enumerate(lows):
            bits = doubled[low: min(len(doubled), low + (1 << FINE_BITS) + 1)]
            m.d.sync += differ[group].eq((bits[1:] ^ bits[:-1]).any())
        return Cat(differ[group] & (coarse_shift <= group) for group in range(len(lows))).any()


class Drain(wiring.Component):
    """The drain pipeline of FP and BP. Latency :attr:`latency_cycles` from ``item`` to a write.

    FP: add the bias that was kept, requantise, add, rectify (and clip, where the machine does), 2×2 maximum with the
    position of the first largest. BP: requantise, add, pass where the activation that the gradient belongs to is
    positive (and not clipped), attach that activation's code. A sum is limited as words are.

    Members
    -------
    row, kept, item : In
        A row of sums, what is yet to be added to each of them, and where it goes.
    addend : In
        What is added to the row of ``add_cycles`` ago, where the command says so; ``addend_owner`` says who has it
        (of a machine with ``sums``).
    mask_address : Out
        Activation to read (BP); ``mask`` is its vector three cycles later, when ``mask_owner`` says whose.
    activation_write, gradient_write : Out(1)
    write : Out
        Where (``out``, and bank ``row`` of the gradients; ``mask``, where results go to both memories, among the
        activations).
    write_data : Out
    """

    latency_cycles = 1 + VectorRequantizer.latency_cycles + 4

    def __init__(self, machine: Machine):
        self.machine = machine
        #: From a row of sums to what is added to it. On one element a cycle before that is needed: read a multiple of
        #: ``rows`` steps behind a tile's first, it would meet steps of whole blocks in the same gradient banks.
        self.add_cycles = VectorRequantizer.latency_cycles + (machine.elements > 1)
        super().__init__({
            "command": In(command_layout(machine)), "item": In(item_layout(machine)),
            "row": In(data.ArrayLayout(signed(machine.acc_bits), machine.lanes)),
            "kept": In(signed(2 * machine.word_bits)),
            "mask_address": Out(bits_for(machine.activation_depth)), "mask": In(vector_layout(machine)),
            "activation_write": Out(1), "gradient_write": Out(1), "write": Out(item_layout(machine)),
            "write_data": Out(vector_layout(machine)),
            **({"addend": In(vector_layout(machine))} if machine.sums else {}),
            **dict.fromkeys(("addend_owner", "mask_owner") if machine.elements > 1 else (),
                            Out(element_bits(machine)))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        command = self.command
        m.submodules.requantizer = requantizer = VectorRequantizer(self.machine)
        m.d.sync += [total.eq(row + self.kept) for total, row in zip(requantizer.i, self.row, strict=True)]
        m.d.comb += [requantizer.shift.eq(command.shift),
                     requantizer.limit.eq(command.limit)]
        ready = self.latency_cycles - 2  # words are
        items = [data.View(item_layout(self.machine), value)
                 for value in delay_line(m, self.item.as_value(), ready + 1, "item")]
        m.d.comb += self.mask_address.eq(items[ready - 3].mask)
        if self.machine.elements > 1:
            m.d.comb += [self.addend_owner.eq(items[self.add_cycles].owner), self.mask_owner.eq(items[ready].owner)]
        result, forward = Signal(vector_layout(self.machine)), Signal()
        m.d.sync += forward.eq(command.opcode == Opcode.FORWARD)
        for lane in range(self.machine.lanes):
            word, seen = self._sum(m, requantizer.o[lane], lane), self.mask[lane]
            shown = Mux(forward, word, seen.value)
            dead = command.rectify & (shown <= 0)
            if self.machine.clips:
                above = command.rectify & (shown > command.bound.as_signed())
                word = Mux(above, Mux(forward, command.bound, 0), word)
            m.d.sync += [result[lane].value.eq(Mux(dead, 0, word)), result[lane].code.eq(Mux(forward, 0, seen.code))]
        self._pool(m, items[ready - 1:], result, forward)
        return m

    def _sum(self, m: Module, word: Value, lane: int) -> Signal:
        """``word`` of two cycles ago, and what is added to it."""
        bits = self.machine.word_bits
        addend, total = Signal(signed(bits), name=f"addend_{lane}"), Signal(signed(bits), name=f"total_{lane}")
        if self.machine.sums:
            domain = m.d.comb if self.machine.elements > 1 else m.d.sync
            domain += addend.eq(Mux(self.command.add, self.addend[lane].value, 0))
        m.d.sync += total.eq(saturate_later(m, word + addend, self.command.limit[:bits - 1], bits, f"sum_{lane}"))
        return total

    def _pool(self, m: Module, items: list[data.View], result: data.View, forward: Signal) -> None:
        """Keep the largest of a window's four vectors; write with the fourth.

        What is kept of a row is read while its next ``result`` is ``coming``, and the winner written a cycle after
        it is known; a result that follows at once on one of the same row meets that one's winner. What an item is
        there for is found out a cycle before it is there.
        """
        command, machine = self.command, self.machine
        before_coming, coming, item = items
        m.submodules.best = best = Memory(shape=vector_layout(machine), depth=max(2, machine.all_rows), init=[])
        read, write = best.read_port(domain="comb"), best.write_port()
        kept = Signal(vector_layout(machine))
        pooling, at_once, meets, begins, complete = (
            Signal(name=name) for name in ("pooling", "at_once", "meets", "begins", "complete"))
        m.d.sync += [
            pooling.eq(command.pool_out & forward), at_once.eq(item.valid & (item.row == coming.row)),
            meets.eq(item.valid & pooling & (item.row == before_coming.row)),
            begins.eq(~pooling | (coming.window == 0)),
            complete.eq(coming.valid & (~pooling | (coming.window == 3))),
            kept.eq(Mux(meets, self.write_data.as_value(), read.data.as_value()))]
        for lane in range(machine.lanes):
            word, old, late = result[lane], kept[lane], self.write_data[lane]
            before = Signal(word_layout(machine), name=f"before_{lane}")
            wins = begins | Mux(at_once, word.value > late.value, word.value > old.value)
            code = Mux(pooling, item.window, word.code)
            m.d.comb += before.eq(Mux(at_once, late.as_value(), old.as_value()))
            m.d.sync += [late.value.eq(Mux(wins, word.value, before.value)),
                         late.code.eq(Mux(wins, code, before.code))]
        m.d.comb += [read.addr.eq(coming.row), write.addr.eq(self.write.row), write.data.eq(self.write_data),
                     write.en.eq(self.write.valid & pooling)]
        activations, gradients = forward, command.opcode == Opcode.BACKWARD
        if machine.copies:
            activations, gradients = forward & ~command.target[1], gradients | forward & command.target[0]
        m.d.sync += [self.activation_write.eq(complete & activations), self.write.eq(item),
                     self.gradient_write.eq(complete & gradients)]


class LaneTree(wiring.Component):
    """Sums a vector of ``lanes`` accumulators, one vector per cycle, a register after each level."""

    def __init__(self, machine: Machine):
        self.machine = machine
        super().__init__({"i": In(data.ArrayLayout(signed(machine.acc_bits), machine.lanes)),
                          "o": Out(signed(machine.sum_bits))})

    @property
    def latency_cycles(self) -> int:
        return max(1, (self.machine.lanes - 1).bit_length())

    def elaborate(self, platform: object) -> Module:
        m = Module()
        terms = [self.i[lane] for lane in range(self.machine.lanes)]
        bits = self.machine.acc_bits
        for level in range(self.latency_cycles):
            bits += 1
            pairs = [terms[k: k + 2] for k in range(0, len(terms), 2)]
            terms = [Signal(signed(bits), name=f"sum_{level}_{k}") for k in range(len(pairs))]
            m.d.sync += [term.eq(sum(pair[1:], pair[0])) for term, pair in zip(terms, pairs, strict=True)]
        m.d.comb += self.o.eq(terms[0])
        return m
