"""HostWriter while the engine writes the activation memory at will: any mix of writes, vectors of two words."""

import pytest
from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from bench.proof import holds

from espalier.arch.machine import Machine
from espalier.gateware.host import HostWriter, spaces_of
from espalier.program.words import SPACE_SHIFT, Space

MACHINE = Machine(rows=1, lanes=4, word_bits=2, acc_bits=4, activation_depth=4, gradient_depth=2, weight_depth=2,
                  index_depth=2, table_depth=2, program_depth=2, max_classes=2)
CYCLES = 8


class Bench(wiring.Component):
    """The host holds a write until it is taken. The memory takes the engine's word before the host's."""

    def __init__(self):
        super().__init__({"valid": In(1), "space": In(4), "offset": In(3), "word": In(32), "engine": In(1),
                          "allowed": Out(1), "bad": Out(1), "reached": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.writer = dut = HostWriter(MACHINE)
        request, before, waited, low, fresh = (Signal(40), Signal(40), Signal(), Signal(32), Signal())
        m.d.comb += [
            request.eq(Cat(self.valid, self.space, self.offset, self.word)), dut.valid.eq(self.valid),
            dut.write.address.eq(Cat(self.offset, Signal(SPACE_SHIFT - 3), self.space)), dut.write.data.eq(self.word),
            dut.spaces.eq(spaces_of(dut.write.address, MACHINE)), dut.blocked.eq(self.engine)]
        taken, ours = self.valid & dut.ready, self.space == Space.ACTIVATIONS
        m.d.sync += [before.eq(request), waited.eq(self.valid & ~dut.ready)]
        with m.If(taken):  # ``fresh``: the first word of a vector has just come
            m.d.sync += fresh.eq(ours & ~self.offset[0])
            with m.If(ours & ~self.offset[0]):
                m.d.sync += low.eq(self.word)
        whole = taken & ours & self.offset[0]
        words = Cat(low, self.word)
        vector = Cat(words.word_select(lane, 16)[:2] for lane in range(4))
        found = Cat(lane.value for lane in dut.vector)
        others = Cat(dut.program_en, dut.table_en, dut.index_en, dut.weight_en, dut.master_en, dut.momentum_en,
                     dut.start)
        once = Mux(others.any(), (others & (others - 1)) == 0, 1)
        m.d.comb += [
            self.allowed.eq(~waited | (request == before)),
            self.bad.eq(((dut.activation_en & ~self.engine) != whole)
                        | (self.valid & ~dut.ready & ~(ours & self.engine))
                        | (whole & fresh & ((found != vector) | (dut.item != self.offset[1:])))
                        | (others.any() & (~taken | ours)) | ~once
                        | (dut.start != (taken & (self.space == Space.CONTROL)))),
            self.reached.eq(waited & whole & fresh)]
        return m


def test_what_is_taken_is_written_once(tmp_path):
    assert holds(tmp_path, Bench(), CYCLES)


@pytest.mark.parametrize("fault", [(r"assign ready = [^;]*", "assign ready = 1'h1"),
                                   (r"before_0 <= ", "before_0 <= ~")])
def test_a_fault_is_found(tmp_path, fault):
    assert not holds(tmp_path, Bench(), CYCLES, fault=fault)
