"""The host's side: one 32-bit write port and one 32-bit read port onto every memory."""

from __future__ import annotations

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from espalier.arch.machine import CHANNEL_SCALARS, EXTERNAL_BITS, SCALAR_BITS, Machine
from espalier.gateware.layouts import command_layout, entry_layout, struct, vector_layout
from espalier.gateware.operands import Operands, probe_layout
from espalier.program.words import (
    BUS_BITS,
    SPACE_SHIFT,
    Space,
    Status,
    bits_for,
    host_words,
    lane_stride,
    run_fields,
    start_fields,
    vector_words,
)

READ_CYCLES = Operands.probe_cycles + 4  #: cycles from a new read address to its data, at most

NEIGHBOURS = 4   #: lanes that a read chooses among in one cycle

WRITE = data.StructLayout({"address": 32, "data": BUS_BITS})


def spaces_of(address: Value, machine: Machine) -> Value:
    """For each :class:`Space` that the machine has a bit, which says whether the address is in it."""
    return Cat(address[SPACE_SHIFT:] == space for space in _spaces(machine))


def _spaces(machine: Machine) -> tuple[Space, ...]:
    there = {Space.RUNS: machine.panel_depth, Space.SCALARS: machine.norm_depth, Space.ELEMENTS: machine.elements > 1}
    return tuple(space for space in Space if there.get(space, True))


class HostWriter(wiring.Component):
    """Decodes writes. An item of several words is put together and written with its last word.

    Images and labels may be written at any time: an image vector waits (``ready`` low) while the
    engine writes the activation memory itself. All else only while the machine is not busy.

    ``spaces`` is what :func:`spaces_of` says of the address; ``elements`` has a bit for each processing element that
    writes to what each of them has go to.
    """

    def __init__(self, machine: Machine):
        self.machine = machine
        self.command_bits, self.entry_bits = command_layout(machine).size, entry_layout(machine).size
        self.bits = bits_for(machine.max_classes)
        self.run_bits = sum(run_fields(machine).values()) if machine.panel_depth else 0
        runs = {"run_en": Out(1), "run": Out(self.run_bits)} if machine.panel_depth else {}
        scalars = {"scalar_en": Out(1)} if machine.norm_depth else {}
        elements = {"elements": Out(machine.elements)} if machine.elements > 1 else {}
        super().__init__({
            **runs, **scalars, **elements, "valid": In(1), "ready": Out(1), "write": In(WRITE),
            "spaces": In(len(_spaces(machine))), "blocked": In(1), "start": Out(1),
            "start_word": Out(struct(start_fields())),
            "program_en": Out(1), "table_en": Out(1), "index_en": Out(1), "weight_en": Out(1), "master_en": Out(1),
            "momentum_en": Out(1), "activation_en": Out(1), "write_any": Out(1),
            "offset": Out(SPACE_SHIFT), "item": Out(SPACE_SHIFT),
            "command": Out(self.command_bits), "entry": Out(self.entry_bits), "vector": Out(vector_layout(machine)),
            "labels": Out(data.ArrayLayout(self.bits, 2 * machine.images)), "external": Out(EXTERNAL_BITS)})

    def _in(self, space: Space) -> Value:
        """Whether the write is to a space."""
        return self.spaces[_spaces(self.machine).index(space)]

    def elaborate(self, platform: object) -> Module:
        m = Module()
        offset = self.offset
        m.d.comb += [offset.eq(self.write.address), self.ready.eq(~(self.activation_en & self.blocked))]
        words = {Space.PROGRAM: host_words(self.command_bits), Space.INDEX: host_words(self.entry_bits),
                 Space.ACTIVATIONS: vector_words(self.machine)}
        enables = {Space.PROGRAM: self.program_en, Space.TABLE: self.table_en, Space.INDEX: self.index_en,
                   Space.WEIGHTS: self.weight_en, Space.MASTERS: self.master_en, Space.MOMENTA: self.momentum_en,
                   Space.ACTIVATIONS: self.activation_en}
        if self.run_bits:
            words[Space.RUNS], enables[Space.RUNS] = host_words(self.run_bits), self.run_en
        if self.machine.norm_depth:
            enables[Space.SCALARS] = self.scalar_en
        before = [Signal(BUS_BITS, name=f"before_{k}") for k in range(max(words.values()) - 1)]  # the last word
        item: Value = C(0)
        for target, enable in enables.items():
            count = words.get(target, 1)
            stride_bits, here = (count - 1).bit_length(), self.valid & self._in(target)
            for k in range(count - 1):
                with m.If(here & (offset[:stride_bits] == k)):
                    m.d.sync += before[k].eq(self.write.data)
            m.d.comb += enable.eq(here & (offset[:stride_bits] == count - 1))
            item |= Mux(self._in(target), offset >> stride_bits, 0)
        with m.If(self.valid & self._in(Space.LABELS)):
            m.d.sync += self.labels[offset[: bits_for(2 * self.machine.images)]].eq(self.write.data)
        with m.If(self.valid & self._in(Space.EXTERNAL)):
            m.d.sync += self.external.eq(self.write.data)
        if self.machine.elements > 1:
            with m.If(self.valid & self._in(Space.ELEMENTS)):
                m.d.sync += self.elements.eq(self.write.data)
        command, entry, vector = (Cat(before[:words[space] - 1], self.write.data)
                                  for space in (Space.PROGRAM, Space.INDEX, Space.ACTIVATIONS))
        m.d.comb += [
            self.start.eq(self.valid & self._in(Space.CONTROL)), self.start_word.eq(self.write.data),
            self.item.eq(item), self.command.eq(command), self.entry.eq(entry), self.write_any.eq(self.valid)]
        if self.run_bits:
            m.d.comb += self.run.eq(Cat(before[:words[Space.RUNS] - 1], self.write.data))
        for lane in range(self.machine.lanes):
            m.d.comb += self.vector[lane].value.eq(vector[16 * lane: 16 * lane + self.machine.word_bits].as_signed())
        return m


class HostReader(wiring.Component):
    """Serves reads while the machine is idle, :data:`READ_CYCLES` after the address; status at any time."""

    def __init__(self, machine: Machine):
        self.machine = machine
        scalars = {"scalar_address": Out(bits_for(machine.norm_depth * CHANNEL_SCALARS)),
                   "scalar": In(SCALAR_BITS)} if machine.norm_depth else {}
        super().__init__({
            **scalars, "address": In(32), "data": Out(BUS_BITS), "busy": In(1), "probe": Out(probe_layout(machine)),
            "vector": In(vector_layout(machine)), "weight": In(signed(machine.word_bits)),
            "update_address": Out(bits_for(machine.master_depth)), "update_momentum": Out(1),
            "update_word": In(BUS_BITS), "correct": In(32), "loss": In(signed(48)), "cycles": In(32), "errors": In(2)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        machine = self.machine
        space, offset = Signal(4), Signal(SPACE_SHIFT)
        m.d.sync += Cat(offset, space).eq(self.address)
        lane_bits, bank_bits = lane_stride(machine).bit_length() - 1, (machine.rows - 1).bit_length()
        lane, vector = offset[:lane_bits], offset[lane_bits:]
        word = self._chosen(m, lane)
        m.d.comb += [self.probe.active.eq(~self.busy), self.probe.column.eq(offset[bank_bits:]),
                     self.probe.gradient.eq(space == Space.GRADIENTS),
                     self.update_address.eq(offset), self.update_momentum.eq(space == Space.MOMENTA)]
        if machine.norm_depth:
            m.d.comb += self.scalar_address.eq(offset)
        with m.If(space == Space.GRADIENTS):
            m.d.comb += [self.probe.bank.eq(vector[:bank_bits]), self.probe.address.eq(vector[bank_bits:])]
        with m.Else():
            m.d.comb += [self.probe.bank.eq(offset[:bank_bits]), self.probe.address.eq(vector)]
        status = {Status.BUSY: self.busy, Status.CORRECT: self.correct, Status.LOSS_LOW: self.loss[:32],
                  Status.LOSS_HIGH: self.loss[32:], Status.CYCLES: self.cycles, Status.ERRORS: self.errors}
        state = Signal(BUS_BITS)
        with m.Switch(offset[:3]):
            for name, value in status.items():
                with m.Case(name):
                    m.d.sync += state.eq(value)
        with m.Switch(space):
            with m.Case(Space.CONTROL):
                m.d.sync += self.data.eq(state)
            with m.Case(Space.ACTIVATIONS, Space.GRADIENTS):
                m.d.sync += self.data.eq(word)
            with m.Case(Space.WEIGHTS):
                m.d.sync += self.data.eq(self.weight)
            with m.Case(Space.MASTERS, Space.MOMENTA):
                m.d.sync += self.data.eq(self.update_word)
            if machine.norm_depth:
                with m.Case(Space.SCALARS):
                    m.d.sync += self.data.eq(self.scalar)
        return m

    def _chosen(self, m: Module, lane: Value) -> Signal:
        """The lane's word of ``vector``, two cycles later: first one of each few neighbours, then one of those."""
        bits = vector_layout(self.machine).elem_shape.size
        lanes, word = self.vector.as_value(), Signal(bits)
        groups = [lanes[first: first + NEIGHBOURS * bits] for first in range(0, len(lanes), NEIGHBOURS * bits)]
        few = Signal(bits * len(groups))
        m.d.sync += [few.eq(Cat(group.word_select(lane[:2], bits) for group in groups)),
                     word.eq(few.word_select(lane[2:], bits))]
        return word
