"""The port to external memory keeps the rules of AXI4 (Arm IHI 0022, A3.2 and A3.4), whatever memory and engine do."""

from dataclasses import replace

import pytest
from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from bench.proof import holds

from espalier.arch.machine import BURST_BYTES, Machine
from espalier.gateware.external import Bursts, Refetcher, Spiller
from espalier.gateware.layouts import struct
from espalier.gateware.panels import PanelMover
from espalier.program.words import run_fields

MACHINE = Machine(rows=1, lanes=1, word_bits=2, acc_bits=4, activation_depth=8, gradient_depth=2, weight_depth=2,
                  index_depth=2, table_depth=2, port_bits=32)
PANELS = replace(MACHINE, panel_depth=4, state_depth=4, run_depth=2)
UNDER_WAY = 1


def waits(m, name, valid, ready, payload):
    """Whether an offer that was not taken in the cycle before is gone or another one."""
    waiting, before = Signal(name=f"{name}_waiting"), Signal(len(payload), name=f"{name}_before")
    m.d.sync += [waiting.eq(valid & ~ready), before.eq(payload)]
    return waiting & (~valid | (payload != before))


class BurstsBench(wiring.Component):
    """Runs at any address, of any length: no burst crosses a boundary, none is longer than what is left.

    For the induction ``bad`` says, too, that the registers are what they should be.
    """

    def __init__(self):
        super().__init__({"start": In(1), "beat": In(30), "beats": In(30), "go": In(1), "ready": In(1),
                          "left": In(30), "allowed": Out(1), "bad": Out(1), "reached": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.bursts = dut = Bursts(MACHINE)
        owed = Signal(30)  # beats of the tensor that nobody has asked for
        m.d.comb += [dut.start.eq(self.start & dut.done), dut.address.eq(self.beat << 2),
                     dut.total.eq(self.beats), dut.go.eq(self.go), dut.ready.eq(self.ready)]
        with m.If(dut.start):
            m.d.sync += owed.eq(self.beats)
        with m.Elif(dut.asked):
            m.d.sync += owed.eq(owed - dut.beats)
        first = dut.addr[:(BURST_BYTES - 1).bit_length()]
        end = first + (dut.len + 1) * (MACHINE.port_bits // 8)
        m.d.comb += [
            self.allowed.eq(1),
            self.bad.eq(dut.valid & ((end > BURST_BYTES) | (dut.beats > owed) | (dut.beats == 0)
                                     | (dut.len + 1 != dut.beats))
                        | (self.left != owed) | first[:2].any()),
            self.reached.eq(dut.asked & (dut.beats == 5) & (dut.addr != 0))]
        return m


class SpillerBench(wiring.Component):
    """Tensors of one or two beats and their vectors at any time; a memory that answers when it likes."""

    def __init__(self):
        super().__init__({"start": In(1), "beats": In(2), "valid": In(1), "word": In(4), "awready": In(1),
                          "wready": In(1), "bvalid": In(1), "allowed": Out(1), "bad": Out(1), "reached": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.spiller = dut = Spiller(MACHINE, UNDER_WAY)
        owed, sent, ended, answered = (Signal(8, name=name) for name in ("owed", "sent", "ended", "answered"))
        left = Signal(8)  # beats of the burst that were asked for and not sent
        starts, comes = self.start & dut.ready, self.valid & (owed != 0) & ~dut.hold
        m.d.comb += [
            dut.start.eq(starts), dut.place.beats.eq(self.beats), dut.valid.eq(comes),
            Cat(*(word.as_value() for word in dut.vector)).eq(self.word),
            dut.awready.eq(self.awready), dut.wready.eq(self.wready), dut.bvalid.eq(self.bvalid)]
        written = dut.wvalid & dut.wready
        m.d.sync += [owed.eq(owed + Mux(starts, self.beats, 0) - comes), sent.eq(sent + written),
                     ended.eq(ended + (written & dut.wlast)), answered.eq(answered + dut.bvalid)]
        with m.If(dut.awvalid & dut.awready):
            m.d.sync += left.eq(dut.awlen + 1)
        with m.Elif(written):
            m.d.sync += left.eq(left - 1)
        m.d.comb += [
            self.allowed.eq((self.beats != 0) & (self.beats != 3) & (~self.bvalid | (ended != answered))),
            self.bad.eq(waits(m, "aw", dut.awvalid, dut.awready, Cat(dut.awaddr, dut.awlen))
                        | waits(m, "w", dut.wvalid, dut.wready, Cat(dut.wdata, dut.wlast))
                        | (dut.wvalid & ((left == 0) | (dut.wlast != (left == 1)))) | ((owed != 0) & ~dut.busy)
                        | ((ended != answered) & ~dut.busy)),
            self.reached.eq((sent == 3) & (answered == 2) & ~dut.busy)]
        return m


class RefetcherBench(wiring.Component):
    """Tensors of one block at any time; a memory that answers, and a write port that is free, when they like."""

    def __init__(self):
        super().__init__({"start": In(1), "plane": In(2), "arready": In(1), "rvalid": In(1), "taken": In(1),
                          "written": In(1), "allowed": Out(1), "bad": Out(1), "reached": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.refetcher = dut = Refetcher(MACHINE)
        asked, came, stored, wanted = (Signal(8, name=name) for name in ("asked", "came", "stored", "wanted"))
        starts = self.start & dut.ready
        m.d.comb += [
            dut.start.eq(starts), dut.tensor.beats.eq(self.plane), dut.tensor.out_plane.eq(self.plane),
            dut.tensor.blocks.eq(1), dut.tensor.last_rows.eq(1), dut.written.eq(self.written),
            dut.arready.eq(self.arready), dut.rvalid.eq(self.rvalid), dut.taken.eq(self.taken),
            dut.rlast.eq(came + 1 == asked)]
        m.d.sync += [
            wanted.eq(wanted + Mux(starts, self.plane, 0)), came.eq(came + (dut.rvalid & dut.rready)),
            asked.eq(asked + Mux(dut.arvalid & dut.arready, dut.arlen + 1, 0)),
            stored.eq(stored + (dut.valid & dut.taken))]
        m.d.comb += [
            self.allowed.eq((self.plane != 0) & (~self.rvalid | (asked != came))),
            self.bad.eq(waits(m, "ar", dut.arvalid, dut.arready, Cat(dut.araddr, dut.arlen))
                        | waits(m, "vector", dut.valid, dut.taken, dut.address) | (asked > wanted) | (stored > came)
                        | ((wanted != stored) & ~dut.busy)),
            self.reached.eq((stored == 2) & (wanted == 2) & ~dut.busy)]
        return m


class MoverBench(wiring.Component):
    """A panel of one run, anywhere, in or out; a memory that answers when it likes. The run is written first."""

    def __init__(self):
        super().__init__({"column": In(8), "state": In(1), "store": In(1), "start": In(1), "arready": In(1),
                          "rvalid": In(1), "awready": In(1), "wready": In(1), "bvalid": In(1), "allowed": Out(1),
                          "bad": Out(1), "reached": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.mover = dut = PanelMover(PANELS)
        written, state, started = Signal(), Signal(), Signal()
        asked, came, items, left, sent, ended, answered = (
            Signal(8, name=name) for name in ("asked", "came", "items", "left", "sent", "ended", "answered"))
        columns = Mux(state, 1, PANELS.beat_columns)
        beats = Mux(state, PANELS.column_beats(1, state=True), 1)
        with m.If(~written):
            m.d.sync += [written.eq(1), state.eq(self.state)]
        run = data.View(struct(run_fields(PANELS)), dut.write_data)
        m.d.comb += [
            dut.write_en.eq(~written), run.column.eq(self.column << 2),
            run.columns.eq(Mux(self.state, 1, PANELS.beat_columns)), dut.start.eq(self.start & written & ~started),
            dut.move.state.eq(state), dut.move.store.eq(self.store), dut.move.runs.eq(1), dut.move.beats.eq(beats),
            dut.arready.eq(self.arready & dut.active), dut.rvalid.eq(self.rvalid & dut.active),
            dut.rlast.eq(came + 1 == asked), dut.awready.eq(self.awready & dut.active), dut.wready.eq(self.wready),
            dut.bvalid.eq(self.bvalid)]
        moved = dut.wvalid & dut.wready
        m.d.sync += [
            started.eq(started | dut.start), came.eq(came + (dut.rvalid & dut.rready)),
            asked.eq(asked + Mux(dut.arvalid & dut.arready, dut.arlen + 1, 0)), sent.eq(sent + moved),
            items.eq(items + (dut.weight_en | dut.state_en)), ended.eq(ended + (moved & dut.wlast)),
            answered.eq(answered + dut.bvalid)]
        with m.If(dut.awvalid & dut.awready):
            m.d.sync += left.eq(dut.awlen + 1)
        with m.Elif(moved):
            m.d.sync += left.eq(left - 1)
        whole = (came == beats) & (items == columns) | (sent == beats) & (ended == answered)
        m.d.comb += [
            self.allowed.eq((~self.rvalid | (asked != came)) & (~self.bvalid | (ended != answered))),
            self.bad.eq(waits(m, "ar", dut.arvalid, dut.arready | ~dut.active, Cat(dut.araddr, dut.arlen))
                        | waits(m, "aw", dut.awvalid, dut.awready | ~dut.active, Cat(dut.awaddr, dut.awlen))
                        | waits(m, "w", dut.wvalid, dut.wready, Cat(dut.wdata, dut.wlast))
                        | (dut.wvalid & ((left == 0) | (dut.wlast != (left == 1)))) | (asked > beats)
                        | (dut.weight_en & state) | (dut.state_en & ~state) | (dut.done & ~whole)),
            self.reached.eq(dut.done & (sent != 0) & ~state)]
        return m


@pytest.mark.parametrize("fault", [None, (r"(wlast = .*) == 1'h1", r"\1 == 1'h0")])
def test_panels_move_whole_and_their_offers_stay(tmp_path, fault):
    assert holds(tmp_path, MoverBench(), 20, fault=fault) == (fault is None)


def test_no_burst_crosses_a_boundary(tmp_path):
    """In all cycles."""
    assert holds(tmp_path, BurstsBench(), 8, inductive=True, inside={"left": "bursts.left"})


@pytest.mark.parametrize(("bench", "cycles"), [(SpillerBench, 12), (RefetcherBench, 14)])
def test_offers_stay_until_they_are_taken(tmp_path, bench, cycles):
    assert holds(tmp_path, bench(), cycles)


@pytest.mark.parametrize("fault", [(r"(wlast = .*) == 1'h1", r"\1 == 1'h0"),
                                   (r"assign go = .* & (.*);", r"assign go = \1;")])
def test_a_fault_is_found(tmp_path, fault):
    assert not holds(tmp_path, SpillerBench(), 12, fault=fault)
