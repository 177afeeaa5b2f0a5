"""From steps to operands: addresses, memory reads, rotation and unpooling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_

from amaranth.hdl import Array, C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from espalier.arch.machine import CODE_BITS, COORDINATE_BITS, Machine
from espalier.gateware.arithmetic import delay_line
from espalier.gateware.entries import step_layout
from espalier.gateware.layouts import (
    address_bits,
    command_layout,
    values_layout,
    vector_layout,
    word_layout,
)
from espalier.program.words import Opcode, bits_for


def probe_layout(machine: Machine) -> data.StructLayout:
    """A read by the host: which memory, where, and which bank."""
    return data.StructLayout({"active": 1, "gradient": 1, "address": address_bits(machine),
                              "column": bits_for(machine.column_depth), "bank": (machine.rows - 1).bit_length()})


class Operands(wiring.Component):
    """Fetches the operands of each step. Latency :attr:`latency_cycles` from ``step`` to ``x``, ``b`` and ``last``.

    FP and BP broadcast one source vector ``x`` and one weight a row. WU broadcasts ``x`` and gives each
    row its own gradient vector. A gradient that is stored pooled is unpooled on the way: a lane
    counts only at the position that its code names.

    Cycle 1: coordinates; 2: products; 3 and 4: addresses; 5: the memories' address registers; 6: in the memories; 7:
    their data registers; 8: one bank. WU's gradients skip the last and are read a cycle later; weights are read a cycle
    earlier and rotated in two, 7 and 8. What is added to results is read from the gradients beside a step, from a bank
    of its own.

    Members
    -------
    step : In
    probe : In
        A read by the host while no step is valid.
    activation_address : Out
        To the activation memory, whose data come three cycles later.
    gradient_addresses, weight_addresses : Out
        To the banks, whose data come two cycles later.
    x, b, last : Out
        To the lattice.
    done : Out
        The step whose operands these are.
    source : Out
        The vector that the step read, whether it counts or not.
    addend : Out
        What was read beside it (of a machine with ``sums``).
    probed_weight : Out
        What ``probe`` found (as ``source`` is), from :attr:`probe_cycles` after it came; it has to be held so long.
    """

    latency_cycles = 8
    probe_cycles = 6

    def __init__(self, machine: Machine):
        self.machine = machine
        vector = vector_layout(machine)
        super().__init__({
            "command": In(command_layout(machine)), "parity": In(1), "step": In(step_layout(machine)),
            "probe": In(probe_layout(machine)),
            "activation_address": Out(bits_for(machine.activation_depth)), "activation": In(vector),
            "gradient_addresses": Out(data.ArrayLayout(bits_for(machine.gradient_depth), machine.rows)),
            "gradients": In(data.ArrayLayout(vector, machine.rows)),
            "weight_addresses": Out(data.ArrayLayout(bits_for(machine.column_depth), machine.rows)),
            "weights": In(data.ArrayLayout(signed(machine.word_bits), machine.rows)),
            "x": Out(values_layout(machine)), "b": Out(data.ArrayLayout(values_layout(machine), machine.rows)),
            "last": Out(1), "done": Out(step_layout(machine)),
            "source": Out(vector), "probed_weight": Out(signed(machine.word_bits)),
            **({"addend": Out(vector)} if machine.sums else {})})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        steps = [data.View(step_layout(self.machine), value)
                 for value in delay_line(m, self.step.as_value(), self.latency_cycles, "step")]
        self.update, self.backward, from_gradients = Signal(), Signal(), Signal()
        m.d.sync += [self.update.eq(self.command.opcode == Opcode.UPDATE),
                     self.backward.eq(self.command.opcode == Opcode.BACKWARD),
                     from_gradients.eq(self.backward | (self.probe.active & self.probe.gradient))]
        self._addresses(m, steps)
        turn, bank = (Signal((self.machine.rows - 1).bit_length(), name=name) for name in ("turn", "bank"))
        m.d.sync += [turn.eq(Mux(self.probe.active, self.probe.bank, steps[5].term)), bank.eq(turn)]
        turned = self._weights(m, steps[3], turn)
        self._distances(m, steps[5])
        source, passes = self._source(m, steps[7], bank, from_gradients)
        self._operands(m, steps[7], source, passes, turned)
        if self.machine.sums:
            m.d.sync += self.addend.eq(self._gradient(steps[7].add_row))
        m.d.comb += [self.done.eq(steps[8]), self.last.eq(steps[8].last), self.source.eq(source),
                     self.probed_weight.eq(turned[0])]
        return m

    def _addresses(self, m: Module, steps: list[data.View]) -> None:
        """Channel, row and column make an address; pooled maps have half the coordinates."""
        command, step, then = self.command, self.step, steps[1]
        bits = address_bits(self.machine)
        halve_source, pitch, alternate = Signal(), Signal.like(command.source_x), Signal.like(command.alternate)
        m.d.sync += [halve_source.eq(self.backward & command.pool_source),
                     alternate.eq(Mux(self.parity, command.alternate, 0)),
                     pitch.eq(Mux(self.backward, command.gradient_x, command.source_x))]
        at_y, at_x = self._in_tile(m, "y"), self._in_tile(m, "x")
        y, x, tile_y, tile_x = (Signal(COORDINATE_BITS, name=name) for name in ("y", "x", "tile_y", "tile_x"))
        base, row, column, gradient_row, gradient_column, address, source, gradient_address, late, later = (
            Signal(bits, name=name) for name in ("base", "row", "column", "gradient_row", "gradient_column", "address",
                                                 "source_address", "gradient_address", "late", "later"))
        m.d.sync += [
            y.eq(Mux(halve_source, at_y >> 1, at_y)), x.eq(Mux(halve_source, at_x >> 1, at_x)),
            tile_y.eq(step.tile.y >> command.pool_source), tile_x.eq(step.tile.x >> command.pool_source),
            base.eq(step.channel + alternate)]
        m.d.sync += [
            row.eq(y * pitch), column.eq(base + x),
            gradient_row.eq(tile_y * command.gradient_x), gradient_column.eq(then.tile.out + tile_x),
            address.eq(Mux(self.probe.active, self.probe.address, row + column)),
            gradient_address.eq(gradient_row + gradient_column), late.eq(gradient_address),
            later.eq(late), source.eq(address)]
        m.d.comb += self.activation_address.eq(source)
        for bank in range(self.machine.rows):
            read = Mux(self.update, later, source)
            if self.machine.sums:
                adds = Signal(name=f"adds_{bank}")
                m.d.sync += adds.eq(steps[3].add & (steps[3].add_row == bank))
                read = Mux(adds, steps[4].add_address, read)
            m.d.sync += self.gradient_addresses[bank].eq(read)

    def _in_tile(self, m: Module, axis: str) -> Value:
        """Where in its lane's tile the pixel is that a step reads."""
        if self.machine.tiles == 1:
            return self.step[axis]
        inside = Signal(COORDINATE_BITS, name=f"inside_{axis}")
        m.d.sync += inside.eq((C(1, COORDINATE_BITS) << self.command[f"tile_{axis}"]) - 1)
        return self.step[axis] & inside

    def _distances(self, m: Module, step: data.View) -> None:
        """How many tiles further, down and across, the pixel is that a step reads; ``step`` is in cycle 5.

        One signal is high: of ``down`` in cycle 7, of ``across`` in 8; none where it is in no tile of any lane.
        """
        self.down: dict[int, Value] = {}
        self.across: dict[int, Value] = {}
        for axis, size, found, cycles in (("y", self.machine.grid_y, self.down, 2),
                                          ("x", self.machine.grid_x, self.across, 3)):
            tiles = Signal(signed(COORDINATE_BITS + 2), name=f"tiles_{axis}")
            if self.machine.tiles > 1:
                inside, reach = self.command[f"tile_{axis}"], self.command[f"reach_{axis}"]
                m.d.sync += tiles.eq(Mux(step.valid, step[axis].as_signed() >> inside << reach, 0))
                for distance in range(1 - size, size):
                    found[distance] = delay_line(m, tiles == distance, cycles - 1, f"{axis}_{distance + size}")[-1]

    def _moved(self, lanes: Sequence[Value], distances: Mapping[int, Value], pitch: int, size: int) -> list[Value]:
        """To each lane what the one so many tiles further along an axis has; zero where the grid ends.

        Lanes of ``size`` tiles that are neighbours along the axis are ``pitch`` apart.
        """
        if self.machine.tiles == 1:
            return [*lanes]
        found = []
        for lane, word in enumerate(lanes):
            own = lane // pitch % size
            found.append(reduce(or_, (
                lanes[lane + (other - own) * pitch] & distances[other - own].replicate(len(word))
                for other in range(size))))
        return found

    def _weights(self, m: Module, early: data.View, turn: Signal) -> data.View:
        """Banks' addresses a cycle after ``early``, and the words turned by ``turn`` places in two cycles."""
        rows, bits = self.machine.rows, (self.machine.rows - 1).bit_length()
        nearly, turned = (Signal(data.ArrayLayout(signed(self.machine.word_bits), rows), name=name)
                          for name in ("nearly_turned", "turned"))
        rest = Signal(max(0, bits - 1))
        m.d.sync += rest.eq(turn)
        for bank in range(rows):
            offset = Signal(max(1, bits), name=f"offset_{bank}")
            if rows > 1:
                m.d.comb += offset.eq(Mux(self.backward, bank - early.term, early.term))
            m.d.sync += self.weight_addresses[bank].eq(
                Mux(self.probe.active, self.probe.column, early.column + offset))
            across = self.weights[(bank + rows // 2) % rows]
            near = Array(nearly[(bank + places) % rows] for places in range(max(1, rows // 2)))
            m.d.sync += [nearly[bank].eq(Mux(turn[-1], across, self.weights[bank]) if bits else self.weights[bank]),
                         turned[bank].eq(near[rest])]
        with m.If(self.update & ~self.probe.active):  # no weight is an operand then
            m.d.sync += turned.eq(0)
        return turned

    def _source(self, m: Module, step: data.View, bank: Signal, from_gradients: Signal) -> tuple[data.View, Signal]:
        """The source vector in cycle 8, and the lanes in which it counts; ``step`` and ``bank`` are in cycle 7."""
        vector = vector_layout(self.machine)
        found, source, passes, unpool = Signal(vector), Signal(vector), Signal(self.machine.lanes), Signal()
        m.d.comb += found.eq(self.activation)
        with m.If(from_gradients):
            m.d.comb += found.eq(self._gradient(bank))
        machine = self.machine
        moved = self._moved([word.as_value() for word in found], self.down, machine.grid_x, machine.grid_y)
        m.d.sync += [source.eq(Cat(*moved)), unpool.eq(self.command.pool_source & self.backward)]
        position = Cat(step.x[0], step.y[0])
        for lane, word in enumerate(moved):
            code = data.View(word_layout(machine), word).code
            m.d.sync += passes[lane].eq(step.valid & (~unpool | (code == position)))
        return source, passes

    def _gradient(self, bank: Value) -> Value:
        """What comes from a bank of the gradients."""
        return (self.gradients[bank] if self.machine.rows > 1 else self.gradients[0]).as_value()

    def _operands(self, m: Module, coming: data.View, source: data.View, passes: Signal, turned: data.View) -> None:
        """``coming`` is in cycle 7, all else in 8. Of gradients and weights one is zero, so that nothing selects."""
        one, accepted = Signal(), Signal(1 << CODE_BITS)  # which codes' gradients count
        position = Cat(coming.tile.x[0], coming.tile.y[0])
        m.d.sync += [one.eq(coming.one & coming.valid),
                     accepted.eq(Cat(self.update & (~self.command.pool_source | (position == code))
                                     for code in range(1 << CODE_BITS)))]
        words = self._moved([Mux(passes[lane], source[lane].value, 0) for lane in range(self.machine.lanes)],
                            self.across, 1, self.machine.grid_x)
        for lane, word in enumerate(words):
            m.d.comb += self.x[lane].eq(Mux(one, self.command.one.as_signed(), word.as_signed()))
            for row in range(self.machine.rows):
                gradient = self.gradients[row][lane]
                m.d.comb += self.b[row][lane].eq(
                    Mux(accepted.bit_select(gradient.code, 1), gradient.value, 0) | turned[row])
