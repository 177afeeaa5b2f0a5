"""LandingQueue behind a pipeline of any latency, one arbitrary item watched."""

import pytest
from amaranth.hdl import Module, Signal, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from bench.proof import holds

from espalier.gateware import landing_queue
from espalier.gateware.landing_queue import LandingQueue

COUNT_BITS = 6


class Bench(wiring.Component):
    """Items set out when there is room and land in any later cycle; they leave at will. Item ``watched`` is followed."""

    def __init__(self, bits: int):
        self.bits = bits
        super().__init__({"set_out": In(1), "land": In(1), "word": In(2), "ready": In(1), "watched": In(COUNT_BITS),
                          "allowed": Out(1), "bad": Out(1), "reached": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.queue = queue = LandingQueue(unsigned(2))
        depth = 1 << self.bits
        sent, landed, left = (Signal(COUNT_BITS, name=name) for name in ("sent", "landed", "left"))
        before, word, late, full = Signal(COUNT_BITS), Signal(2), Signal(), Signal()
        leaves = queue.o.valid & queue.o.ready
        m.d.comb += [
            queue.launch.eq(self.set_out & queue.room), queue.i.valid.eq(self.land & (sent != landed)),
            queue.i.payload.eq(self.word), queue.o.ready.eq(self.ready)]
        m.d.sync += [sent.eq(sent + queue.launch), landed.eq(landed + queue.i.valid), left.eq(left + leaves),
                     before.eq(self.watched), late.eq(1), full.eq(full | (landed - left == depth))]
        with m.If(queue.i.valid & (landed == self.watched)):
            m.d.sync += word.eq(self.word)
        inside = (sent - left)[:COUNT_BITS]
        freed = Signal()  # room is known a cycle after an item left
        m.d.sync += freed.eq(leaves)
        m.d.comb += [
            self.allowed.eq(~late | (self.watched == before)),
            self.bad.eq((queue.o.valid != (landed != left)) | (inside > depth)
                        | (queue.room != (inside + freed < depth))
                        | (leaves & (left == self.watched) & (queue.o.payload != word))),
            self.reached.eq(full & leaves & (left == self.watched) & (left == depth))]
        return m


@pytest.fixture
def depth_of_four(monkeypatch):
    monkeypatch.setattr(landing_queue, "DEPTH_BITS", 2)


def test_order_and_room_of_a_small_queue(tmp_path, depth_of_four):
    assert holds(tmp_path, Bench(2), 16)


def test_order_and_room(tmp_path):
    assert holds(tmp_path, Bench(landing_queue.DEPTH_BITS), 36)
