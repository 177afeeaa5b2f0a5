"""LandingQueue behind a pipeline of any latency, with one arbitrary item watched."""

import pytest
from amaranth.hdl import Module, Mux, Signal, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from bench.proof import holds

from espalier.gateware.landing_queue import DEPTH_BITS, LandingQueue

DEPTH, BITS, WORD_BITS = 1 << DEPTH_BITS, DEPTH_BITS + 1, 2
INSIDE = {"head": "queue.head", "tail": "queue.tail", "owed": "queue.owed", "gone": "queue.left",
          "items": ",".join(f"queue.items[{place}]" for place in reversed(range(DEPTH)))}
CYCLES = 20  #: enough to fill the queue


class Bench(wiring.Component):
    """Items set out when there is room, land in any later cycle and leave at will; one in 32 is watched.

    ``bad`` says what a user must not see, and for the induction that the registers are what they should be.
    """

    def __init__(self):
        super().__init__({
            "set_out": In(1), "land": In(1), "word": In(WORD_BITS), "ready": In(1), "watched": In(BITS),
            "head": In(BITS), "tail": In(BITS), "owed": In(BITS), "gone": In(1), "items": In(DEPTH * WORD_BITS),
            "allowed": Out(1), "bad": Out(1), "reached": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.queue = queue = LandingQueue(unsigned(WORD_BITS))
        sent, landed, left, watched, travelling, here = (
            Signal(BITS, name=name) for name in ("sent", "landed", "left", "watched_before", "travelling", "here"))
        word, later, went = Signal(WORD_BITS), Signal(), Signal()
        leaves = queue.o.valid & queue.o.ready
        m.d.comb += [
            travelling.eq(sent - landed), here.eq(landed - left),
            queue.launch.eq(self.set_out & queue.room), queue.i.valid.eq(self.land & (travelling != 0)),
            queue.i.payload.eq(self.word), queue.o.ready.eq(self.ready)]
        m.d.sync += [sent.eq(sent + queue.launch), landed.eq(landed + queue.i.valid), left.eq(left + leaves),
                     watched.eq(self.watched), later.eq(1), went.eq(leaves)]
        with m.If(queue.i.valid & (landed == self.watched)):
            m.d.sync += word.eq(self.word)
        watched_here = (self.watched - left)[:BITS] < here
        stored = self.items.word_select(self.watched[:DEPTH_BITS], WORD_BITS)
        seen_wrong = ((queue.o.valid != (here != 0)) | (travelling + here > DEPTH)
                      | (queue.room != (travelling + here + went < DEPTH))
                      | (leaves & (left == self.watched) & (queue.o.payload != word)))
        wrong_inside = ((self.head != left) | (self.tail != landed) | (self.gone != went)
                        | (self.owed != travelling + here + went) | (watched_here & (stored != word)))
        m.d.comb += [
            self.allowed.eq(~later | (self.watched == watched)), self.bad.eq(seen_wrong | wrong_inside),
            self.reached.eq(Mux(self.watched == DEPTH - 1, watched_here, 0) & (here == DEPTH))]
        return m


def test_nothing_is_lost_doubled_or_overtaken(tmp_path):
    """In all cycles."""
    assert holds(tmp_path, Bench(), CYCLES, inductive=True, inside=INSIDE)


@pytest.mark.parametrize("fault", [(r"room = ~ owed\[4\]", "room = ~ owed[3]"),
                                   (r"items\[tail\[3:0\]\] <=", "items[head[3:0]] <="),
                                   ("o__valid = head != tail", "o__valid = head != tail || i__valid")])
def test_a_fault_is_found(tmp_path, fault):
    assert not holds(tmp_path, Bench(), CYCLES, fault=fault, inductive=True, inside=INSIDE)
