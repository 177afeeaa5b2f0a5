"""From steps to operands: addresses, memory reads, rotation and unpooling."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from espalier.arch.machine import Machine
from espalier.gateware.entries import step_layout
from espalier.gateware.layouts import address_bits, command_layout, values_layout, vector_layout
from espalier.program.words import Opcode, bits_for


def probe_layout(machine: Machine) -> data.StructLayout:
    """A read by the host: which memory, where, and which bank."""
    return data.StructLayout({"active": 1, "gradient": 1, "address": address_bits(machine),
                              "column": bits_for(machine.weight_depth), "bank": (machine.rows - 1).bit_length()})


class Operands(wiring.Component):
    """Fetches the operands of each step. Latency 4 cycles from ``step`` to ``x``, ``b`` and ``last``.

    FP and BP broadcast one source vector ``x`` and one weight a row. WU broadcasts ``x`` and gives each
    row its own gradient vector. A gradient that is stored pooled is unpooled on the way: a lane
    counts only at the position that its code names.

    Members
    -------
    step : In
    probe : In
        A read by the host while no step is valid.
    activation_address, gradient_address, weight_addresses : Out
        To the memories, whose data come one cycle later.
    x, b, last : Out
        To the lattice.
    done : Out
        The step whose operands these are.
    probed_vector, probed_weight : Out
        What ``probe`` found, 4 cycles later.
    """

    def __init__(self, machine: Machine):
        self.machine = machine
        vector = vector_layout(machine)
        super().__init__({
            "command": In(command_layout(machine)), "parity": In(1), "step": In(step_layout(machine)),
            "probe": In(probe_layout(machine)),
            "activation_address": Out(bits_for(machine.activation_depth)), "activation": In(vector),
            "gradient_address": Out(bits_for(machine.gradient_depth)),
            "gradients": In(data.ArrayLayout(vector, machine.rows)),
            "weight_addresses": Out(data.ArrayLayout(bits_for(machine.weight_depth), machine.rows)),
            "weights": In(data.ArrayLayout(signed(machine.word_bits), machine.rows)),
            "x": Out(values_layout(machine)), "b": Out(data.ArrayLayout(values_layout(machine), machine.rows)),
            "last": Out(1), "done": Out(step_layout(machine)),
            "probed_vector": Out(vector), "probed_weight": Out(signed(machine.word_bits))})

    def elaborate(self, platform):
        m = Module()
        stages = [self.step]
        for stage in range(1, 5):
            stages.append(Signal(step_layout(self.machine), name=f"step_{stage}"))
            m.d.sync += stages[-1].eq(stages[-2])
        backward = Signal()
        m.d.sync += backward.eq((self.command.opcode == Opcode.BACKWARD) | (self.probe.active & self.probe.gradient))
        self._addresses(m, backward)
        self._weights(m, stages[1], stages[3], backward)
        source = Signal(vector_layout(self.machine))
        m.d.sync += source.eq(self.activation)
        bank = Mux(self.probe.active, self.probe.bank, stages[3].term) if self.machine.rows > 1 else 0
        with m.If(backward):
            m.d.sync += source.eq(self.gradients[bank])
        self._operands(m, stages[4], source, backward)
        m.d.comb += [self.done.eq(stages[4]), self.last.eq(stages[4].last), self.probed_vector.eq(source)]
        return m

    def _addresses(self, m: Module, backward: Signal) -> None:
        command, step = self.command, self.step
        update = command.opcode == Opcode.UPDATE
        halve_source = (command.opcode == Opcode.BACKWARD) & command.pool_source
        row, gradient_row = Signal(address_bits(self.machine)), Signal(address_bits(self.machine))
        column, gradient_column = Signal.like(row), Signal.like(row)
        address, gradient_address = Signal.like(row), Signal.like(row)
        late = Signal.like(row)
        y, x = Mux(halve_source, step.y >> 1, step.y), Mux(halve_source, step.x >> 1, step.x)
        tile_y = Mux(command.pool_source, step.tile.y >> 1, step.tile.y)
        tile_x = Mux(command.pool_source, step.tile.x >> 1, step.tile.x)
        m.d.sync += [
            row.eq(y * Mux(command.opcode == Opcode.BACKWARD, command.gradient_x, command.source_x)),
            column.eq(step.channel + x + Mux(self.parity, command.alternate, 0)),
            gradient_row.eq(tile_y * command.gradient_x), gradient_column.eq(step.tile.out + tile_x),
            address.eq(Mux(self.probe.active, self.probe.address, row + column)),
            gradient_address.eq(gradient_row + gradient_column), late.eq(gradient_address)]
        m.d.comb += [self.activation_address.eq(address),
                     self.gradient_address.eq(Mux(update & ~backward, late, address))]

    def _weights(self, m: Module, early, ready, backward: Signal) -> None:
        """Banks' addresses a cycle after ``early``, and the words turned into place for ``ready``."""
        rows = self.machine.rows
        term = Mux(self.probe.active, self.probe.bank, ready.term)
        turned = Signal(data.ArrayLayout(signed(self.machine.word_bits), rows))
        for bank in range(rows):
            offset = Signal(max(1, (rows - 1).bit_length()), name=f"offset_{bank}")
            if rows > 1:
                m.d.comb += offset.eq(Mux(self.command.opcode == Opcode.BACKWARD, bank - early.term, early.term))
            m.d.sync += self.weight_addresses[bank].eq(
                Mux(self.probe.active, self.probe.column, early.column + offset))
            choice = (bank + term)[: (rows - 1).bit_length()]
            m.d.sync += turned[bank].eq(self.weights[choice] if rows > 1 else self.weights[0])
        self.turned = turned
        m.d.comb += self.probed_weight.eq(turned[0])

    def _operands(self, m: Module, step, source, backward: Signal) -> None:
        command = self.command
        position, tile_position = Cat(step.x[0], step.y[0]), Cat(step.tile.x[0], step.tile.y[0])
        unpool = command.pool_source & (command.opcode == Opcode.BACKWARD)
        update = Signal()
        m.d.sync += update.eq(command.opcode == Opcode.UPDATE)
        for lane in range(self.machine.lanes):
            passes = step.valid & (~unpool | (source[lane].code == position))
            m.d.comb += self.x[lane].eq(Mux(step.one & step.valid, command.one.as_signed(),
                                            Mux(passes, source[lane].value, 0)))
            for row in range(self.machine.rows):
                gradient = self.gradients[row][lane]
                counts = ~command.pool_source | (gradient.code == tile_position)
                m.d.comb += self.b[row][lane].eq(Mux(update, Mux(counts, gradient.value, 0), self.turned[row]))
