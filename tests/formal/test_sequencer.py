"""Sequencer with any program, while phases end when they like."""

import pytest
from amaranth.hdl import Array, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from bench.proof import holds

from espalier.arch.machine import Machine
from espalier.gateware.sequencer import FETCH_CYCLES, Sequencer
from espalier.program.words import Opcode

DRAIN, UPDATE = FETCH_CYCLES, FETCH_CYCLES + 1
LONGEST = 2  #: cycles from the launch of a phase to its end, at most


class Bench(wiring.Component):
    """Any commands are written, and END; then starts at any time, at any command, of all that follow or of one."""

    def __init__(self, commands: int):
        self.commands = commands
        self.machine = Machine(rows=1, lanes=1, word_bits=2, acc_bits=4, activation_depth=2, gradient_depth=2,
                               weight_depth=2, index_depth=2, table_depth=2, program_depth=commands + 1)
        self.run_cycles = commands * (4 + LONGEST + UPDATE - 2) + 5  #: in which it is busy, at most
        self.cycles = commands + self.run_cycles + 5
        super().__init__({"opcode": In(3), "start": In(1), "entry": In(2), "single": In(1), "finish": In(1),
                          "allowed": Out(1), "bad": Out(1), "reached": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.sequencer = dut = Sequencer(self.machine, drain_cycles=DRAIN, update_cycles=UPDATE)
        written, busy_cycles, age, rest = (Signal(8, name=name) for name in ("written", "busy_cycles", "age", "rest"))
        program = Array(Signal(3, name=f"opcode_{k}") for k in range(self.commands + 1))
        expected, single, running, done, busy = Signal(2), Signal(), Signal(), Signal(), Signal()
        current, launch, finished = Signal(3), Signal(), Signal()
        writing, losing = written <= self.commands, current == Opcode.LOSS
        m.d.comb += [
            dut.write_en.eq(writing), dut.write_address.eq(written), launch.eq(dut.launch | dut.launch_loss),
            dut.write_data.eq(Mux(written == self.commands, Opcode.END, self.opcode)), current.eq(program[expected]),
            dut.start.eq(self.start & ~writing), dut.word.entry.eq(self.entry), dut.word.single.eq(self.single),
            finished.eq(running & self.finish), dut.finished.eq(finished & ~losing),
            dut.loss_done.eq(finished & losing)]
        with m.If(writing):
            m.d.sync += [written.eq(written + 1), program[written[:2]].eq(dut.write_data[:3])]
        m.d.sync += [busy.eq(dut.busy), busy_cycles.eq(Mux(dut.busy, busy_cycles + 1, 0)), age.eq(age + 1),
                     rest.eq(rest - (rest != 0))]
        with m.If(dut.start & ~dut.busy):
            m.d.sync += [expected.eq(self.entry), single.eq(self.single), done.eq(0)]
        with m.If(launch):
            m.d.sync += [running.eq(1), age.eq(1)]
        with m.If(finished):  # for so many cycles more the command stays in force
            m.d.sync += [running.eq(0), done.eq(1),
                         rest.eq(Mux(losing, 0, Mux(current == Opcode.UPDATE, UPDATE, DRAIN)))]
        with m.If((finished & losing) | (done & (rest == 1))):
            m.d.sync += expected.eq(expected + 1)
        in_force, over = running | (rest != 0), busy & ~dut.busy
        m.d.comb += [
            self.allowed.eq((self.opcode <= Opcode.LOSS) & (self.entry <= self.commands)
                            & (~running | (age < LONGEST) | self.finish)),
            self.bad.eq((dut.launch & dut.launch_loss) | (busy_cycles > self.run_cycles)
                        | (launch & (in_force | ~dut.busy | (single & done) | (current == Opcode.END)
                                     | (dut.launch_loss != losing)))
                        | (in_force & (~dut.busy | (dut.command.opcode != current)))
                        | (over & ~(single & done) & (current != Opcode.END))),
            self.reached.eq(over & (busy_cycles == self.run_cycles))]
        return m


@pytest.mark.parametrize("commands", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_commands_run_in_order_one_at_a_time_up_to_end(tmp_path, commands):
    bench = Bench(commands)
    assert holds(tmp_path, bench, bench.cycles)


@pytest.mark.parametrize("fault", [(r"finished \| loss_done", "finished & loss_done"), (r"= ! \\wait ", "= 1'h1 "),
                                   (r"read_address \+ 1'h1", "read_address + 2'h2")])
def test_a_fault_is_found(tmp_path, fault):
    bench = Bench(1)
    assert not holds(tmp_path, bench, bench.cycles, fault=fault)
