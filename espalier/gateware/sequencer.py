"""Runs a program: fetches commands, starts phases, and waits for them to finish."""

from __future__ import annotations

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from espalier.arch.machine import Machine
from espalier.gateware.layouts import command_layout, struct
from espalier.gateware.ram import Ram
from espalier.program.words import Opcode, bits_for, start_fields

FETCH_CYCLES = 3  #: from the end of waiting to the last cycle of the command before


class Sequencer(wiring.Component):
    """Executes commands from ``entry`` up to END (or one only, with ``single``).

    A command stays in force until its last step has been issued and the pipelines behind that have had the
    time to empty: ``drain_cycles`` in FP and BP, ``update_cycles`` in WU. The loss ends with ``loss_done``, and what
    computes with scalars not before ``norm_busy`` falls.
    Fetching a command takes 4 cycles, in the last two of which it is in force but not yet launched.

    Parameters
    ----------
    drain_cycles, update_cycles : int
        Cycles from ``finished`` to the last in which something is written; at least :data:`FETCH_CYCLES`.

    Members
    -------
    start : In(1), word : In(start)
        Begin; ignored while busy.
    command : Out
        The command in force. Opcode END while idle.
    position : Out
        Its number.
    launch, launch_loss : Out(1)
        One cycle at the beginning of a phase.
    launch_refetch : Out(1)
        One cycle for a REFETCH, FETCH or STORE, which is over at once.
    launch_norm : Out(1), norm_busy : In(1)
        One cycle at the beginning of what computes with scalars, which is busy from the next on.
    external_ready, external_busy : In(1)
        Of the port to external memory: it takes one more tensor; something is on the way. The first holds up what
        asks, and FP that spills, the second a fence.
    parity, first, last : Out(1)
        Of the group in work, from ``word``.
    """

    def __init__(self, machine: Machine, *, drain_cycles: int, update_cycles: int):
        self.machine = machine
        self.drain_cycles, self.update_cycles = drain_cycles, update_cycles
        self.position_bits = bits_for(machine.program_depth)
        super().__init__({
            "start": In(1), "word": In(struct(start_fields())), "command": Out(command_layout(machine)),
            "position": Out(self.position_bits), "busy": Out(1), "launch": Out(1), "launch_loss": Out(1),
            **({"launch_norm": Out(1), "norm_busy": In(1)} if machine.norm_depth else {}),
            "launch_refetch": Out(1), "external_ready": In(1), "external_busy": In(1), "finished": In(1),
            "loss_done": In(1), "parity": Out(1), "first": Out(1), "last": Out(1),
            "write_en": In(1), "write_address": In(self.position_bits),
            "write_data": In(command_layout(machine).size)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        layout = command_layout(self.machine)
        m.submodules.program = program = Ram(unsigned(layout.size), self.machine.program_depth)
        m.d.comb += [program.write_en.eq(self.write_en), program.write_address.eq(self.write_address),
                     program.write_data.eq(self.write_data), program.read_address.eq(self.position)]
        wait = Signal(range(max(self.drain_cycles, self.update_cycles)))
        single, kept = Signal(), self._kept()
        with m.FSM():
            with m.State("IDLE"), m.If(self.start):
                m.d.sync += [self.position.eq(self.word.entry), self.parity.eq(self.word.parity),
                             self.first.eq(self.word.first), self.last.eq(self.word.last),
                             single.eq(self.word.single), self.busy.eq(1)]
                m.next = "FETCH"
            with m.State("FETCH"):
                m.next = "LOAD"
            with m.State("LOAD"):
                m.d.sync += self.command.eq(program.read_data)
                m.next = "SETTLE"
            with m.State("SETTLE"):  # values derived from the command are registered
                m.next = "LAUNCH"
            with m.State("LAUNCH"):
                with m.If(self.command.opcode == Opcode.END), m.If(~kept):
                    m.next = "STOP"
                with m.Elif(self._asks()):
                    m.d.comb += self.launch_refetch.eq(~kept)
                    with m.If(~kept):
                        self._go_on(m, single)
                with m.Elif(~kept):
                    m.d.comb += [self.launch.eq(self.command.opcode != Opcode.LOSS),
                                 self.launch_loss.eq(self.command.opcode == Opcode.LOSS)]
                    if self.machine.norm_depth:
                        m.d.comb += self.launch_norm.eq(self.command.norm)
                        with m.If(self.command.opcode == Opcode.NORM):
                            m.d.comb += self.launch.eq(0)
                    m.next = "RUN"
            with m.State("RUN"):
                with m.Switch(self.command.opcode):
                    with m.Case(Opcode.UPDATE):
                        m.d.sync += wait.eq(self.update_cycles - FETCH_CYCLES)
                    with m.Case(*((Opcode.LOSS, Opcode.NORM) if self.machine.norm_depth else (Opcode.LOSS,))):
                        m.d.sync += wait.eq(0)
                    with m.Default():
                        m.d.sync += wait.eq(self.drain_cycles - FETCH_CYCLES)
                done = self.finished | self.loss_done
                with m.If(done | (self.command.opcode == Opcode.NORM) if self.machine.norm_depth else done):
                    m.next = "DRAIN"
            with m.State("DRAIN"):
                over = wait == 0
                if self.machine.norm_depth:
                    m.d.sync += wait.eq(Mux(over, 0, wait - 1))
                    over &= ~self.norm_busy
                else:
                    m.d.sync += wait.eq(wait - 1)
                with m.If(over):
                    self._go_on(m, single)
            with m.State("HOLD"):  # in place of a fetch: the last word is written now
                m.next = "STOP"
            with m.State("STOP"):
                m.d.sync += [self.busy.eq(0), self.command.opcode.eq(Opcode.END)]
                m.next = "IDLE"
        return m

    def _go_on(self, m: Module, single: Signal) -> None:
        m.d.sync += self.position.eq(self.position + 1)
        m.next = "HOLD"
        with m.If(~single):
            m.next = "FETCH"

    def _kept(self) -> Value:
        """Whether the command may not be launched yet."""
        if not self.machine.port_bits:
            return C(0)
        asks = self.command.spill | self._asks()
        return self.command.fence & self.external_busy | asks & ~self.external_ready

    def _asks(self) -> Value:
        """Whether the command asks the port for something, and is over then."""
        opcodes = (Opcode.REFETCH, Opcode.FETCH, Opcode.STORE) if self.machine.panel_depth else (Opcode.REFETCH,)
        return Cat(self.command.opcode == opcode for opcode in opcodes).any()
