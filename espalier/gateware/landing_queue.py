"""A queue behind a pipeline that cannot stall."""

from __future__ import annotations

from amaranth.hdl import Module, ShapeLike, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

DEPTH_BITS = 4  #: of a queue: the depth of a distributed RAM


class LandingQueue(wiring.Component):
    """Where the items of a pipeline land that has no way to wait; a source sends only what finds room here.

    So no path goes through a chain of ``ready`` from the end of the pipeline to its beginning. One item per
    cycle, through a pipeline of up to 12 cycles; an item can leave in the cycle after it came.

    Parameters
    ----------
    shape : ShapeLike
        Of an item.

    Members
    -------
    room : Out(1)
        One more item may set out in this cycle.
    launch : In(1)
        One does. Each is followed by one ``i``, any time later; at most 16 are on the way or here.
    i : In(stream)
        What arrives.
    o : Out(stream)
        What has arrived, in order.
    """

    def __init__(self, shape: ShapeLike):
        self.shape = shape
        super().__init__({"room": Out(1), "launch": In(1), "i": In(stream.Signature(shape, always_ready=True)),
                          "o": Out(stream.Signature(shape))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.items = items = Memory(shape=self.shape, depth=1 << DEPTH_BITS, init=[])
        read, write = items.read_port(domain="comb"), items.write_port()
        head, tail = (Signal(DEPTH_BITS + 1, name=name) for name in ("head", "tail"))  # one bit more: full is not empty
        owed, left = Signal(DEPTH_BITS + 1, name="owed"), Signal()  # items on the way or here; one left a cycle ago
        m.d.comb += [
            write.addr.eq(tail), write.data.eq(self.i.payload), write.en.eq(self.i.valid),
            read.addr.eq(head), self.o.payload.eq(read.data), self.o.valid.eq(head != tail),
            self.room.eq(~owed[-1])]
        m.d.sync += left.eq(self.o.valid & self.o.ready)
        with m.If(self.i.valid):
            m.d.sync += tail.eq(tail + 1)
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += head.eq(head + 1)
        with m.If(self.launch & ~left):
            m.d.sync += owed.eq(owed + 1)
        with m.Elif(~self.launch & left):
            m.d.sync += owed.eq(owed - 1)
        return m
