"""The norm unit: sums over the batch in, words and new state of each channel of a batch norm out."""

from __future__ import annotations

from itertools import accumulate

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from espalier.arch.machine import CHANNEL_SCALARS, Machine
from espalier.gateware.arithmetic import delay_line
from espalier.gateware.ram import BankedRam
from espalier.gateware.scalar_round import SCALAR
from espalier.gateware.scalar_unit import ScalarUnit
from espalier.numerics.batch_norm import FOLLOWING
from espalier.numerics.scalar import binary32
from espalier.program.norm import NormMode
from espalier.program.norm_schedule import ROW_FIELDS, ROWS, Source
from espalier.program.words import BUS_BITS, NORM_SCALARS, bits_for, command_fields, pack

READ_CYCLES = 3     #: from a memory's address to its word in a register beside the logic
RULE = ("norm_mode", "norm_base", "norm_count", "sum_frac", "word_frac", "word_limit", *NORM_SCALARS)


def norm_rule(machine: Machine) -> data.StructLayout:
    """What the norm unit does to one layer: some fields of the command."""
    fields = command_fields(machine)
    return data.StructLayout({name: signed(fields[name]) if name in ("sum_frac", "word_frac") else fields[name]
                              for name in RULE})


class SumStore(wiring.Component):
    """The sums of one layer's channels, as they come from the lane trees.

    Members
    -------
    clear : In(1)
        A layer begins.
    valid, which, sum : In
        For each tree: a sum.
    next : In(1)
        Go on to the next channel.
    ready : Out(1)
        Both sums of the channel are there.
    chosen, total : In, Out
        A sum of the channel, READ_CYCLES later.
    """

    def __init__(self, machine: Machine):
        self.tree_rows, self.trees = machine.tree_rows, machine.trees
        self.depth = -(-machine.norm_depth // machine.rows) * machine.tree_rows  #: channels of a tree
        total = signed(machine.sum_bits)
        super().__init__({
            "clear": In(1), "valid": In(machine.trees), "which": In(machine.trees),
            "sum": In(data.ArrayLayout(total, machine.trees)),
            "next": In(1), "ready": Out(1), "chosen": In(1), "total": Out(total)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        row, tree = Signal(bits_for(self.tree_rows)), Signal(bits_for(self.trees))
        place = Signal(bits_for(self.depth + 1))  # among the channels of the tree
        ends, last_tree = row == self.tree_rows - 1, tree == self.trees - 1
        with m.If(self.clear):
            m.d.sync += [row.eq(0), tree.eq(0), place.eq(0)]
        with m.Elif(self.next):
            m.d.sync += [row.eq(Mux(ends, 0, row + 1)), tree.eq(Mux(ends, Mux(last_tree, 0, tree + 1), tree)),
                         place.eq(Mux(ends & ~last_tree, place - (self.tree_rows - 1), place + 1))]
        stores = [self._store(m, number, place) for number in range(self.trees)]
        m.d.comb += self.ready.eq(Array(ready for ready, _ in stores)[tree])
        m.d.sync += self.total.eq(Array(total for _, total in stores)[tree])
        return m

    def _store(self, m: Module, number: int, place: Value) -> tuple[Value, Value]:
        """One tree's memory: whether both sums of the channel at ``place`` are there, and the chosen one."""
        ram = BankedRam(self.total.shape(), 2 * self.depth)
        m.submodules[f"sums_{number}"] = ram
        valid, which = self.valid[number], self.which[number]
        counts = [Signal(bits_for(self.depth + 1), name=f"count_{number}_{kind}") for kind in range(2)]
        for kind, count in enumerate(counts):
            with m.If(self.clear):
                m.d.sync += count.eq(0)
            with m.Elif(valid & (which == kind)):
                m.d.sync += count.eq(count + 1)
        bits = bits_for(self.depth)
        m.d.comb += [
            ram.write_en.eq(valid), ram.write_data.eq(self.sum[number]),
            ram.write_address.eq(Cat(which, Mux(which, counts[1], counts[0])[:bits])),
            ram.read_address.eq(Cat(self.chosen, place[:bits]))]
        return counts[1] > place, ram.read_data


class NormUnit(wiring.Component):
    """What is done once a batch for each channel of a trained batch norm, on a :class:`ScalarUnit`.

    After ``start`` the sums of the layer's channels come, in blocks of as many as the machine has rows, through each
    lane tree its own, in order; and channel after channel is gone through as soon as its sums are there, CHANNEL_CYCLES
    each. The formulas are in ``program/norm.py``, what is done in which cycle in ``program/norm_schedule.py``.

    Members
    -------
    start, rule : In
        Begin a layer. The rule is quasi-static: stable until ``busy`` falls.
    busy : Out(1)
        From the cycle after ``start`` until the last channel is done.
    sum_valid, sum_which, sum : In
        For each tree, after ``start``: the next channel's :class:`~espalier.program.norm.Sum`, the first before the
        second.
    word_valid, word_channel, word_which, word : Out
        A :class:`~espalier.program.norm.Word` of a channel, counted from the layer's first.
    host_write, host_address, host_data : In
        Write a scalar at ``channel * CHANNEL_SCALARS + slot``, only while not ``busy``, as is reading.
    host_read : Out(32)
        The scalar at the address of READ_CYCLES ago.
    """

    def __init__(self, machine: Machine):
        self.machine = machine
        super().__init__({
            "start": In(1), "rule": In(norm_rule(machine)), "busy": Out(1),
            "sum_valid": In(machine.trees), "sum_which": In(machine.trees),
            "sum": In(data.ArrayLayout(signed(machine.sum_bits), machine.trees)),
            "word_valid": Out(1), "word_channel": Out(bits_for(machine.norm_depth)), "word_which": Out(1),
            "word": Out(signed(machine.word_bits)),
            "host_write": In(1), "host_address": In(bits_for(machine.norm_depth * CHANNEL_SCALARS)),
            "host_data": In(BUS_BITS), "host_read": Out(BUS_BITS)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.unit = unit = ScalarUnit(word_bits=self.machine.word_bits, sum_bits=self.machine.sum_bits)
        m.submodules.sums = sums = SumStore(self.machine)
        m.d.comb += [sums.clear.eq(self.start), sums.valid.eq(self.sum_valid), sums.which.eq(self.sum_which),
                     sums.sum.eq(self.sum)]
        place = Signal(range(self.machine.norm_depth))
        row = self._sequence(m, sums, place)
        scalar_read = self._memory(m, unit, row, place)
        read_before, constant = Signal(SCALAR), Signal(SCALAR)
        m.d.sync += [read_before.eq(scalar_read), constant.eq(self._constants()[row.constant]),
                     unit.frac.eq(self._fracs()[row.frac])]
        m.d.comb += [
            sums.chosen.eq(row.sum), unit.limit.eq(self.rule.word_limit),
            unit.start.eq(row.start), unit.operation.eq(row.operation),
            unit.a.eq(Mux(row.a_result, unit.o, read_before)),
            unit.b.eq(Mux(row.b_source == Source.RESULT, unit.o,
                          Mux(row.b_source == Source.CONSTANT, constant, scalar_read))),
            unit.total.eq(Mux(row.of_word, unit.word, sums.total)),
            self.word_valid.eq(unit.word_done), self.word_which.eq(row.which), self.word.eq(unit.word)]
        return m

    def _memory(self, m: Module, unit: ScalarUnit, row: data.View, place: Value) -> Signal:
        """The scalars of all channels; the host has the memory while no layer does."""
        m.submodules.scalars = ram = BankedRam(BUS_BITS, self.machine.norm_depth * CHANNEL_SCALARS)
        word = Signal(SCALAR)
        m.d.sync += word.eq(ram.read_data)
        m.d.comb += [
            ram.read_address.eq(Mux(self.busy, Cat(row.read, place), self.host_address)),
            ram.write_address.eq(Mux(self.busy, Cat(row.slot, place), self.host_address)),
            ram.write_data.eq(Mux(self.busy, unit.o, self.host_data)),
            ram.write_en.eq(row.write | self.host_write), self.host_read.eq(word)]
        return word

    def _constants(self) -> Array:
        return Array((*(self.rule[name] for name in NORM_SCALARS),
                      *(Const(binary32(real), BUS_BITS) for real in (FOLLOWING, 1 - FOLLOWING))))

    def _fracs(self) -> Array:
        return Array((self.rule.sum_frac, self.rule.word_frac))

    def _sequence(self, m: Module, sums: SumStore, place: Signal) -> data.View:
        """Goes through the rows of each channel, at ``place``; the row that acts now."""
        rule, layout = self.rule, data.StructLayout(ROW_FIELDS)
        table = [pack(ROW_FIELDS, row) for mode in NormMode for row in ROWS[mode]]
        ends = [*accumulate(len(ROWS[mode]) for mode in NormMode)]
        m.submodules.rows = memory = Memory(shape=layout.size, depth=len(table), init=table)
        port = memory.read_port()
        row, fetching = Signal(layout), Signal()
        number, channel, waits = Signal(range(len(table))), self.word_channel, rule.norm_mode != NormMode.RUNNING
        begin, last = Signal.like(number), Signal.like(number)
        m.d.comb += port.addr.eq(number)
        m.d.sync += [begin.eq(Array((0, *ends[:-1]))[rule.norm_mode]),
                     last.eq(Array(end - 1 for end in ends)[rule.norm_mode])]
        m.d.sync += row.eq(Mux(delay_line(m, fetching, 1, "fetching")[-1], port.data, 0))
        with m.FSM() as states:
            m.d.comb += self.busy.eq(~states.ongoing("IDLE"))
            with m.State("IDLE"), m.If(self.start):
                m.d.sync += [channel.eq(0), place.eq(rule.norm_base)]
                m.next = "WAIT"
            with m.State("WAIT"):
                m.d.sync += number.eq(begin)
                with m.If(sums.ready | ~waits):
                    m.next = "ROWS"
            with m.State("ROWS"):
                m.d.comb += fetching.eq(1)
                m.d.sync += number.eq(number + 1)
                with m.If(number == last):
                    m.next = "DRAIN"
            with m.State("DRAIN"):
                m.next = "LEAVE"
            with m.State("LEAVE"):  # the last row acts now
                m.d.comb += sums.next.eq(1)
                m.d.sync += [channel.eq(channel + 1), place.eq(place + 1)]
                m.next = "WAIT"
                with m.If(channel + 1 == rule.norm_count):
                    m.next = "IDLE"
        return row
