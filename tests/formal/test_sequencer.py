"""Sequencer with any program, while phases end when they like."""

import pytest
from amaranth.hdl import Array, C, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from bench.proof import holds

from espalier.arch.machine import Machine
from espalier.gateware.layouts import command_layout
from espalier.gateware.sequencer import FETCH_CYCLES, Sequencer
from espalier.program.words import Opcode

DRAIN, UPDATE = FETCH_CYCLES, FETCH_CYCLES + 1
LONGEST = 2  #: cycles from the launch of a phase to its end, at most
STALLS = 2   #: cycles, at most, in which the port to external memory does not take a tensor, or has not answered


class Bench(wiring.Component):
    """Any commands are written, and END; then starts at any time, at any command, of all that follow or of one.

    With a port to external memory there are fences, phases that spill and REFETCH, which is over when it is launched.
    """

    def __init__(self, commands: int, port_bits: int = 0):
        self.commands = commands
        self.machine = Machine(rows=1, lanes=1, word_bits=2, acc_bits=4, activation_depth=2, gradient_depth=2,
                               weight_depth=2, index_depth=2, table_depth=2, program_depth=commands + 1,
                               port_bits=port_bits)
        stalls = STALLS if port_bits else 0
        self.run_cycles = commands * (4 + LONGEST + UPDATE - 2) + 5 + stalls  #: in which it is busy, at most
        self.cycles = commands + self.run_cycles + 5
        super().__init__({"opcode": In(3), "spill": In(1), "fence": In(1), "start": In(1), "entry": In(2),
                          "single": In(1), "finish": In(1), "ready": In(1), "waiting": In(1), "allowed": Out(1),
                          "bad": Out(1), "reached": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.sequencer = dut = Sequencer(self.machine, drain_cycles=DRAIN, update_cycles=UPDATE)
        written, busy_cycles, age, rest, stalls = (Signal(8, name=name) for name in (
            "written", "busy_cycles", "age", "rest", "stalls"))
        word = Signal(command_layout(self.machine))
        program = Array(Signal.like(word, name=f"command_{k}") for k in range(self.commands + 1))
        expected, single, running, done, busy = Signal(2), Signal(), Signal(), Signal(), Signal()
        current, launch, finished = Signal.like(word), Signal(), Signal()
        writing, losing, fetching = (written <= self.commands, current.opcode == Opcode.LOSS,
                                     current.opcode == Opcode.REFETCH)
        m.d.comb += [
            dut.write_en.eq(writing), dut.write_address.eq(written), dut.write_data.eq(word),
            launch.eq(dut.launch | dut.launch_loss | dut.launch_refetch),
            word.opcode.eq(Mux(written == self.commands, Opcode.END, self.opcode)),
            current.eq(Array(command.as_value() for command in program)[expected]),
            dut.start.eq(self.start & ~writing), dut.word.entry.eq(self.entry), dut.word.single.eq(self.single),
            finished.eq(running & self.finish), dut.finished.eq(finished & ~losing),
            dut.loss_done.eq(finished & losing), dut.external_ready.eq(self.ready),
            dut.external_busy.eq(self.waiting)]
        kept = C(0)
        if self.machine.port_bits:
            m.d.comb += [word.spill.eq(self.spill), word.fence.eq(self.fence)]
            kept = current.fence & self.waiting | (current.spill | fetching) & ~self.ready
        for number, command in enumerate(program):
            with m.If(writing & (written == number)):
                m.d.sync += command.eq(word)
        m.d.sync += [busy.eq(dut.busy), busy_cycles.eq(Mux(dut.busy, busy_cycles + 1, 0)), age.eq(age + 1),
                     rest.eq(rest - (rest != 0)), written.eq(written + writing),
                     stalls.eq(Mux(dut.busy, stalls + (self.waiting | ~self.ready), 0))]
        with m.If(dut.start & ~dut.busy):
            m.d.sync += [expected.eq(self.entry), single.eq(self.single), done.eq(0)]
        with m.If(dut.launch_refetch):
            m.d.sync += [expected.eq(expected + 1), done.eq(1)]
        with m.Elif(launch):
            m.d.sync += [running.eq(1), age.eq(1)]
        with m.If(finished):  # for so many cycles more the command stays in force
            m.d.sync += [running.eq(0), done.eq(1),
                         rest.eq(Mux(losing, 0, Mux(current.opcode == Opcode.UPDATE, UPDATE, DRAIN)))]
        with m.If((finished & losing) | (done & (rest == 1))):
            m.d.sync += expected.eq(expected + 1)
        in_force, over = running | (rest != 0), busy & ~dut.busy
        last = Opcode.REFETCH if self.machine.port_bits else Opcode.LOSS
        m.d.comb += [
            self.allowed.eq((self.opcode <= last) & (self.entry <= self.commands)
                            & (~running | (age < LONGEST) | self.finish)
                            & ((stalls < STALLS) | self.ready & ~self.waiting)),
            self.bad.eq((dut.launch & dut.launch_loss) | (busy_cycles > self.run_cycles)
                        | (launch & (in_force | ~dut.busy | kept | (single & done) | (current.opcode == Opcode.END)
                                     | (dut.launch_loss != losing) | (dut.launch_refetch != fetching)))
                        | (in_force & (~dut.busy | (dut.command != current)))
                        | (over & ~(single & done) & (current.opcode != Opcode.END))),
            self.reached.eq(over & (busy_cycles == self.run_cycles))]
        return m


@pytest.mark.parametrize(("commands", "port_bits"), [
    (1, 0), (1, 32), *(pytest.param(2, port_bits, marks=pytest.mark.slow) for port_bits in (0, 32))])
def test_commands_run_in_order_one_at_a_time_up_to_end(tmp_path, commands, port_bits):
    bench = Bench(commands, port_bits)
    assert holds(tmp_path, bench, bench.cycles)


@pytest.mark.parametrize("fault", [(r"& external_busy;", "& 1'h0;"), (r"= ~ external_ready;", "= 1'h0;")])
def test_a_fault_of_waiting_is_found(tmp_path, fault):
    bench = Bench(1, 32)
    assert not holds(tmp_path, bench, bench.cycles, fault=fault)


@pytest.mark.parametrize("fault", [(r"finished \| loss_done", "finished & loss_done"), (r"= ! \\wait ", "= 1'h1 "),
                                   (r"read_address \+ 1'h1", "read_address + 2'h2")])
def test_a_fault_is_found(tmp_path, fault):
    bench = Bench(1)
    assert not holds(tmp_path, bench, bench.cycles, fault=fault)
