"""Any component in the place of an accelerator, so that Verilator runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from amaranth.hdl import Cat, Module, Mux, Signal, Value, unsigned
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

from espalier.engines.verilator import Simulation, build_simulator
from espalier.gateware.verilog import TOP, component_verilog

RESULTS = 1 << 15   #: that one run may have
PULSE = 1 << 16     #: a write at this address, with a bit for each pulsed port, is a cycle in which those are high
NOTHING = PULSE     #: a cycle without any
OUTPUTS = 1 << 20   #: from here on the outputs are read
READ_CYCLES = 2
MAX_CYCLES = 10_000_000


class Ported(wiring.Component):
    """Writes set the inputs of a component, 32 bits each, or pulse some of them; reads give what it put out.

    Parameters
    ----------
    unit : wiring.Component
    pulses : sequence of str
        Inputs that are high for one cycle at a time; together at most 16 bits.
    results : mapping of str to sequence of str
        For outputs that are high for one cycle, the outputs that are stored then, 32 bits at most. No two at once.
    """

    def __init__(self, unit: wiring.Component, pulses: Sequence[str], results: Mapping[str, Sequence[str]]):
        self.unit, self.pulses, self.results = unit, pulses, results
        ports = [(name, member.flow) for name, member in unit.signature.members.items() if name not in pulses]
        self.inputs = [name for name, flow in ports if flow is In]
        self.outputs = [name for name, flow in ports if flow is Out]
        super().__init__({
            "write_valid": In(1), "write": In(64), "write_ready": Out(1), "read_address": In(32),
            "read_data": Out(32), "busy": Out(1), "position": Out(1), "issuing": Out(1), "gradient_valid": Out(1),
            "gradient_address": Out(1), "gradient": Out(32)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.unit = self.unit
        m.submodules.results = memory = Memory(shape=unsigned(32), depth=RESULTS, init=[])
        read, write = memory.read_port(), memory.write_port()
        address, value = self.write[:32], self.write[32:]
        inputs, outputs = ([self._port(name) for name in names] for names in (self.inputs, self.outputs))
        registers = Signal(32 * sum(map(_pieces, inputs)))
        with m.If(self.write_valid & (address < PULSE)):
            m.d.sync += registers.word_select(address[:10], 32).eq(value)
        pulses, count, late = Cat(map(self._port, self.pulses)), Signal(range(RESULTS)), Signal(32)
        m.d.comb += [
            _aligned(inputs).eq(registers), self.write_ready.eq(1), self.busy.eq(getattr(self.unit, "busy", 0)),
            pulses.eq(Mux(self.write_valid & (address >= PULSE), address[:16], 0)),
            write.addr.eq(count), read.addr.eq(self.read_address),
            self.read_data.eq(Mux(late >= OUTPUTS, _aligned(outputs).word_select(late[:10], 32), read.data))]
        for valid, names in self.results.items():
            with m.If(self._port(valid)):
                m.d.comb += [write.en.eq(1), write.data.eq(Cat(map(self._port, names)))]
        m.d.sync += [count.eq(count + write.en), late.eq(self.read_address)]
        return m

    def _port(self, name: str) -> Value:
        return Value.cast(getattr(self.unit, name))

    def piece(self, name: str) -> int:
        """The address of the first 32 bits of a port."""
        names = self.inputs if name in self.inputs else self.outputs
        before = sum(_pieces(self._port(other)) for other in names[:names.index(name)])
        return before if name in self.inputs else OUTPUTS + before

    def sets(self, name: str, value: int) -> list[tuple[int, int]]:
        """The writes that give an input its value."""
        return [(self.piece(name) + k, value >> 32 * k & 0xffffffff) for k in range(_pieces(self._port(name)))]

    def pulse(self, name: str, bits: int = 1) -> list[tuple[int, int]]:
        """The write that pulses (some bits of) an input."""
        before = sum(len(self._port(other)) for other in self.pulses[:self.pulses.index(name)])
        return [(PULSE | bits << before, 0)]

    @cached_property
    def library(self) -> Path:
        """The compiled simulator."""
        return build_simulator(component_verilog(self, TOP))


def _pieces(port: Value) -> int:
    return -(-len(port) // 32)


def _aligned(ports: Sequence[Value]) -> Value:
    """Ports as one number, the first lowest, each from a multiple of 32 bits on."""
    return Cat(Cat(port, Signal(-len(port) % 32, name="unused")) for port in ports)


class Running:
    """A simulation of a component; a context that frees it."""

    def __init__(self, ported: Ported):
        self.ported, self.simulation = ported, Simulation(ported.library, 2)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error: object) -> None:
        self.simulation.close()

    def write(self, addresses: NDArray, data: NDArray) -> None:
        """One write a cycle; WAIT_IDLE among the addresses waits for ``busy`` to fall."""
        self.simulation.write(np.asarray(addresses, np.uint32), np.asarray(data, np.uint32), MAX_CYCLES)

    def read(self, addresses: NDArray) -> NDArray[np.uint32]:
        """Results by number, outputs by their piece."""
        return self.simulation.read(np.asarray(addresses, np.uint32), READ_CYCLES)
