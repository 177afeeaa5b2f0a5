"""Weights, masters and momenta on their way between external memory and the panels on chip."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from espalier.arch.machine import EXTERNAL_BITS, STATE_BITS, Machine
from espalier.gateware.arithmetic import delay_line
from espalier.gateware.external import (
    INCREMENTING,
    OKAY,
    OUTSTANDING,
    Bursts,
    move_fields,
    read_channels,
    write_channels,
)
from espalier.gateware.landing_queue import LandingQueue
from espalier.gateware.layouts import struct
from espalier.gateware.ram import Ram
from espalier.program.words import PAGE_SHIFT, bits_for, run_fields

SOURCE_CYCLES = 3  #: from an address to the words of a panel behind a register


def column_layout(machine: Machine) -> data.ArrayLayout:
    """A column of weights, in the order of the banks."""
    return data.ArrayLayout(signed(machine.slot_bits), machine.rows)


def state_layout(machine: Machine) -> data.ArrayLayout:
    """Of each update unit a master and a momentum."""
    half = signed(STATE_BITS // 2)
    return data.ArrayLayout(data.StructLayout({"master": half, "momentum": half}), machine.trees)


class Unpacker(wiring.Component):
    """Beats to items, the lowest first. Items cannot wait; of those wider than a beat the last beat makes one."""

    def __init__(self, beat_bits: int, item_bits: int):
        self.beat_bits, self.item_bits = beat_bits, item_bits
        super().__init__({"i": In(stream.Signature(beat_bits)),
                          "o": Out(stream.Signature(item_bits, always_ready=True))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        packed = Signal(max(self.beat_bits, self.item_bits), reset_less=True)
        count, came = max(self.beat_bits, self.item_bits) // min(self.beat_bits, self.item_bits), Signal()
        parts = Signal(range(count + 1))
        m.d.comb += [came.eq(self.i.valid & self.i.ready), self.o.payload.eq(packed)]
        if self.item_bits >= self.beat_bits:
            m.d.comb += [self.i.ready.eq(1), self.o.valid.eq(parts == count)]
            m.d.sync += parts.eq(Mux(self.o.valid, 0, parts) + came)
            with m.If(came):
                m.d.sync += packed.eq(Cat(packed, self.i.payload)[self.beat_bits:])
        else:
            m.d.comb += [self.i.ready.eq(parts <= 1), self.o.valid.eq(parts != 0)]
            with m.If(came):
                m.d.sync += [packed.eq(self.i.payload), parts.eq(count)]
            with m.Elif(self.o.valid):
                m.d.sync += [packed.eq(packed >> self.item_bits), parts.eq(parts - 1)]
        return m


class Packer(wiring.Component):
    """Items to beats, the lowest first."""

    def __init__(self, item_bits: int, beat_bits: int):
        self.item_bits, self.beat_bits = item_bits, beat_bits
        super().__init__({"i": In(stream.Signature(item_bits)), "o": Out(stream.Signature(beat_bits))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        packed = Signal(max(self.beat_bits, self.item_bits), reset_less=True)
        count = max(self.beat_bits, self.item_bits) // min(self.beat_bits, self.item_bits)
        parts, came, left = Signal(range(count + 1)), Signal(), Signal()
        m.d.comb += [came.eq(self.i.valid & self.i.ready), left.eq(self.o.valid & self.o.ready),
                     self.o.payload.eq(packed)]
        if self.item_bits >= self.beat_bits:
            m.d.comb += [self.o.valid.eq(parts != 0), self.i.ready.eq((parts == 0) | left & (parts == 1))]
            with m.If(came):
                m.d.sync += [packed.eq(self.i.payload), parts.eq(count)]
            with m.Elif(left):
                m.d.sync += [packed.eq(packed >> self.beat_bits), parts.eq(parts - 1)]
        else:
            m.d.comb += [self.o.valid.eq(parts == count), self.i.ready.eq(~self.o.valid | left)]
            m.d.sync += parts.eq(Mux(left, 0, parts) + came)
            with m.If(came):
                m.d.sync += packed.eq(Cat(packed, self.i.payload)[self.item_bits:])
        return m


class PanelMover(wiring.Component):
    """Brings a panel from external memory, run of columns by run, or takes it there. One at a time.

    Weights take :attr:`Machine.slot_bits` each, in the order of their places; masters and momenta half of STATE_BITS
    each, in the order in which the update units take them: column, bank of a unit, unit. Every run begins and ends with
    a beat.

    Members
    -------
    start, move : In
        Begin. Only while not ``active``.
    base : In(EXTERNAL_BITS)
    active : Out(1)
        From the cycle after ``start`` to that of ``done``.
    storing : Out(1)
        It takes something there.
    done : Out(1)
        All is written.
    panel, address : Out
        Which word of the panel is read, or written if ``weight_en`` or ``state_en``.
    weights, state, weights_read, state_read
        The words: those read come two cycles after the address.
    error : Out(2)
        For one cycle: an answer was not OKAY, to a read (bit 0) or a write (bit 1).
    write_en, write_address, write_data : In
        Runs.
    aw*, w*, b*, ar*, r*
        Channels of AXI4; what comes on them is for this component while it is ``active``.
    """

    def __init__(self, machine: Machine):
        self.machine = machine
        self.items = max(machine.panel_depth, machine.state_depth * machine.tree_rows)  # of a panel, at most
        self.address_bits = bits_for(self.items)
        super().__init__({
            "start": In(1), "move": In(struct(move_fields(machine))), "base": In(EXTERNAL_BITS), "active": Out(1),
            "storing": Out(1), "done": Out(1), "panel": Out(1), "address": Out(self.address_bits),
            "weight_en": Out(1), "state_en": Out(1),
            "weights": Out(column_layout(machine)), "state": Out(state_layout(machine)),
            "weights_read": In(column_layout(machine)), "state_read": In(state_layout(machine)), "error": Out(2),
            "write_en": In(1), "write_address": In(bits_for(machine.run_depth)),
            "write_data": In(struct(run_fields(machine)).size), **write_channels(machine), **read_channels(machine)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        machine = self.machine
        m.submodules.bursts = bursts = Bursts(machine)
        self.task = task = Signal(struct(move_fields(machine)))
        self.left = Signal.like(task.beats)  # beats that are not moved yet
        self.burst, self.unanswered = Signal.like(bursts.beats), Signal(range(OUTSTANDING + 1))
        self.moved, answered, idle = Signal(), Signal(), Signal()
        with m.If(self.start):
            m.d.sync += [task.eq(self.move), self.left.eq(self.move.beats), self.active.eq(1)]
        with m.Elif(self.done):
            m.d.sync += self.active.eq(0)
        with m.If(self.moved):
            m.d.sync += self.left.eq(self.left - 1)
        self._runs(m, bursts)
        landed, words = self._landing(m), self._source(m)
        size = (machine.port_bits // 8).bit_length() - 1
        m.d.comb += [
            bursts.go.eq((self.unanswered != OUTSTANDING) & (~task.store | (self.burst == 0))),
            bursts.ready.eq(Mux(task.store, self.awready, self.arready)),
            self.arvalid.eq(bursts.valid & ~task.store), self.awvalid.eq(bursts.valid & task.store),
            self.wstrb.eq(~0), self.wlast.eq(self.burst == 1), self.bready.eq(1),
            self.wvalid.eq(words.valid & (self.burst != 0)), self.wdata.eq(words.payload),
            words.ready.eq(self.wready & (self.burst != 0)),
            self.moved.eq(self.rvalid & self.rready | self.wvalid & self.wready),
            answered.eq(Mux(task.store, self.bvalid, self.rvalid & self.rready & self.rlast)),
            self.error.eq(Cat(self.rvalid & self.rready & (self.rresp != OKAY), self.bvalid & (self.bresp != OKAY))),
            idle.eq((self.left == 0) & (self.unanswered == 0) & ~landed),
            self.storing.eq(self.active & task.store), self.done.eq(self.active & idle)]
        for channel in ("aw", "ar"):
            m.d.comb += [getattr(self, f"{channel}addr").eq(bursts.addr), getattr(self, f"{channel}len").eq(bursts.len),
                         getattr(self, f"{channel}size").eq(size), getattr(self, f"{channel}burst").eq(INCREMENTING)]
        m.d.sync += self.unanswered.eq(self.unanswered + bursts.asked - answered)
        with m.If(bursts.asked & task.store):
            m.d.sync += self.burst.eq(bursts.beats)
        with m.Elif(self.wvalid & self.wready):
            m.d.sync += self.burst.eq(self.burst - 1)
        return m

    def _runs(self, m: Module, bursts: Bursts) -> None:
        """One run after another, each as soon as all bursts of the one before are asked for."""
        machine, task = self.machine, self.task
        layout = struct(run_fields(machine))
        m.submodules.runs = runs = Ram(layout.size, machine.run_depth)
        run, left, settling, area = (data.View(layout, runs.read_data), Signal.like(task.runs), Signal(),
                                     Signal(EXTERNAL_BITS))
        index = Signal.like(task.runs_at)
        weight_bits, state_bits = machine.rows * machine.slot_bits, machine.rows * STATE_BITS
        m.d.comb += [
            runs.write_en.eq(self.write_en), runs.write_address.eq(self.write_address),
            runs.write_data.eq(self.write_data), runs.read_address.eq(index),
            bursts.start.eq(bursts.done & (left != 0) & ~settling),
            bursts.address.eq(area + Mux(task.state, _scaled(run.column, state_bits, 8),
                                         _scaled(run.column, weight_bits, 8))),
            bursts.total.eq(Mux(task.state, _scaled(run.columns, state_bits, machine.port_bits),
                                _scaled(run.columns, weight_bits, machine.port_bits)))]
        m.d.sync += settling.eq(self.start | bursts.start)
        with m.If(self.start):
            m.d.sync += [index.eq(self.move.runs_at), left.eq(self.move.runs),
                         area.eq(self.base + (self.move.external << PAGE_SHIFT))]
        with m.Elif(bursts.start):
            m.d.sync += [index.eq(index + 1), left.eq(left - 1)]

    def _landing(self, m: Module) -> Value:
        """Beats into the panel; returns whether one is not written yet."""
        machine, task = self.machine, self.task
        landed, ready = [], []
        for name, target, wanted, en in (("columns", self.weights, ~task.state, self.weight_en),
                                         ("states", self.state, task.state, self.state_en)):
            m.submodules[name] = unpacker = Unpacker(machine.port_bits, len(Value.cast(target)))
            m.d.comb += [unpacker.i.payload.eq(self.rdata), unpacker.i.valid.eq(self.rvalid & wanted & self.active),
                         Value.cast(target).eq(unpacker.o.payload), en.eq(unpacker.o.valid)]
            landed.append(unpacker.o.valid)
            ready.append(unpacker.i.ready & wanted)
        m.d.comb += self.rready.eq(Cat(ready).any() & self.active)
        return Cat(landed).any()

    def _source(self, m: Module) -> stream.Interface:
        """The panel's words as beats, read ahead; and the address for either way."""
        machine, task = self.machine, self.task
        items = Signal(range(self.items + 1))
        launch, room = Signal(), Signal()
        beats = stream.Signature(machine.port_bits).create(path=("beats",))
        for name, words, wanted in (("columns", self.weights_read, ~task.state),
                                    ("states", self.state_read, task.state)):
            bits = len(Value.cast(words))
            m.submodules[f"{name}_queue"] = queue = LandingQueue(bits)
            m.submodules[f"{name}_packer"] = packer = Packer(bits, machine.port_bits)
            wiring.connect(m, queue.o, packer.i)
            arrived = delay_line(m, launch & wanted, SOURCE_CYCLES, f"{name}_launched")[-1]
            word = Signal(bits, name=f"{name}_word", reset_less=True)
            m.d.sync += word.eq(Value.cast(words))
            m.d.comb += [queue.launch.eq(launch & wanted), queue.i.valid.eq(arrived), queue.i.payload.eq(word),
                         packer.o.ready.eq(beats.ready & wanted)]
            with m.If(wanted):
                m.d.comb += [room.eq(queue.room), beats.valid.eq(packer.o.valid), beats.payload.eq(packer.o.payload)]
        m.d.comb += [launch.eq(room & (items != 0)), self.panel.eq(task.panel)]
        with m.If(self.start):
            total = Mux(self.move.state, _scaled(self.move.beats, machine.port_bits, len(Value.cast(self.state))),
                        _scaled(self.move.beats, machine.port_bits, len(Value.cast(self.weights))))
            m.d.sync += [self.address.eq(0), items.eq(Mux(self.move.store, total, 0))]
        with m.Elif(launch | self.weight_en | self.state_en):
            m.d.sync += self.address.eq(self.address + 1)
            with m.If(launch):
                m.d.sync += items.eq(items - 1)
        return beats


def _scaled(count: Value, bits: int, unit: int) -> Value:
    """How many units as many items of ``bits`` are; both are powers of two."""
    shift = bits.bit_length() - unit.bit_length()
    return count << shift if shift >= 0 else count >> -shift
