"""The accelerator: where everything is joined."""

from __future__ import annotations

from amaranth.hdl import Cat, DomainRenamer, Module, Mux, ResetSignal, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from espalier.arch.machine import Machine
from espalier.gateware.drain import Drain, LaneTree, RowCounter
from espalier.gateware.entries import step_layout
from espalier.gateware.front import Front
from espalier.gateware.host import WRITE, HostReader, HostWriter, spaces_of
from espalier.gateware.lattice import Lattice
from espalier.gateware.layouts import command_layout, vector_layout
from espalier.gateware.loss_unit import LossUnit
from espalier.gateware.memories import GradientBanks, WeightBanks
from espalier.gateware.operands import Operands
from espalier.gateware.ram import BankedRam
from espalier.gateware.sequencer import Sequencer
from espalier.gateware.update_unit import UpdateUnit
from espalier.numerics.update import GRADIENT_BITS
from espalier.program.words import Opcode, bits_for

WRITE_CYCLES = 1   #: from what writes a memory to the memory's port
RESET_CYCLES = 64  #: how long to hold reset, for what is in flight to run out


class Accelerator(wiring.Component):
    """One training accelerator: lattice, memories, control, loss and update; a host port.

    Reset, held for :data:`RESET_CYCLES`, stops a program; memories keep their words. It reaches what decides, not the
    thousands of registers of the pipelines that obey (clock domain ``data``): those run empty by themselves.

    Members
    -------
    write_valid, write_ready, write : host writes, see program.words.Space
    read_address, read_data : host reads, data gateware.host.READ_CYCLES later
    busy : a program is running; from the third cycle after its start word was taken
    position : number of the command in force (for measuring)
    issuing : a step left the issuer in the cycle before (for measuring)
    gradient_valid, gradient_address, gradient : each weight's gradient as it meets its master (for verifying)
    """

    def __init__(self, machine: Machine):
        self.machine = machine
        super().__init__({
            "write_valid": In(1), "write_ready": Out(1), "write": In(WRITE), "read_address": In(32),
            "read_data": Out(32), "busy": Out(1), "position": Out(bits_for(machine.program_depth)), "issuing": Out(1),
            "gradient_valid": Out(1), "gradient_address": Out(bits_for(machine.master_depth)),
            "gradient": Out(signed(GRADIENT_BITS))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        machine = self.machine
        tree, update = LaneTree(machine), UpdateUnit(
            word_bits=machine.word_bits, depth=machine.master_depth, sum_bits=machine.sum_bits, groups=machine.groups)
        sums = Operands.latency_cycles + Lattice.latency_cycles + machine.rows - 1  # cycles to the last row
        self.sequencer = Sequencer(machine, drain_cycles=sums + Drain.latency_cycles + WRITE_CYCLES,
                                   update_cycles=sums + tree.latency_cycles + update.latency_cycles + WRITE_CYCLES)
        self.writer, self.reader = HostWriter(machine), HostReader(machine)
        self.front = Front(machine, Lattice.latency_cycles + Drain.add_cycles)
        self.operands = Operands(machine)
        self.activations = BankedRam(vector_layout(machine), machine.activation_depth)
        self.gradients, self.weights, self.lattice = GradientBanks(machine), WeightBanks(machine), Lattice(machine)
        self.rows, self.drain = RowCounter(machine), Drain(machine)
        self.loss = LossUnit(lanes=machine.lanes, word_bits=machine.word_bits, max_classes=machine.max_classes,
                             read_latency=3)
        self.tree, self.update = tree, update
        assert self.sequencer.update_cycles <= RESET_CYCLES and self.sequencer.drain_cycles <= RESET_CYCLES
        for name in ("sequencer", "writer", "reader", "front", "activations", "gradients", "weights", "rows", "loss"):
            m.submodules[name] = getattr(self, name)
        for name in ("operands", "lattice", "drain", "tree", "update"):
            m.submodules[name] = DomainRenamer("data")(getattr(self, name))
        self.command = Signal(command_layout(machine))
        m.d.comb += self.command.eq(self.sequencer.command)
        self._control(m)
        self._front(m)
        self._lattice(m)
        self._activation_memory(m)
        self._gradient_memory(m)
        self._weight_memory(m)
        self._update(m)
        self._loss(m)
        return m

    def _control(self, m: Module) -> None:
        writer, sequencer, reader = self.writer, self.sequencer, self.reader
        cycles = Signal(32)
        clear = writer.start & writer.start_word.clear
        m.d.sync += cycles.eq(Mux(clear, 0, cycles + sequencer.busy))
        came, coming = Signal(), Signal(WRITE)  # a register behind the port, and one behind the decoder
        follows = ~writer.valid | writer.ready
        with m.If(self.write_ready):
            m.d.sync += [came.eq(self.write_valid), coming.eq(self.write)]
        with m.If(follows):
            m.d.sync += [writer.valid.eq(came), writer.write.eq(coming), writer.spaces.eq(spaces_of(coming.address))]
        m.d.comb += [
            self.write_ready.eq(~came | follows),
            sequencer.start.eq(writer.start), sequencer.word.eq(writer.start_word),
            sequencer.write_en.eq(writer.program_en), sequencer.write_address.eq(writer.item),
            sequencer.write_data.eq(writer.command), self.busy.eq(sequencer.busy),
            self.position.eq(sequencer.position),
            reader.address.eq(self.read_address), self.read_data.eq(reader.data), reader.busy.eq(sequencer.busy),
            reader.vector.eq(self.operands.source), reader.weight.eq(self.operands.probed_weight),
            reader.update_word.eq(self.update.host_read), reader.correct.eq(self.loss.correct),
            reader.loss.eq(self.loss.loss_sum), reader.cycles.eq(cycles), self.loss.clear_counters.eq(clear),
            self.operands.probe.eq(reader.probe), self.operands.parity.eq(sequencer.parity)]

    def _front(self, m: Module) -> None:
        """From the command to the steps of the lattice, and their operands."""
        front, writer = self.front, self.writer
        for part in (front, self.operands, self.rows, self.drain):
            m.d.comb += part.command.eq(self.command)
        m.d.comb += [
            front.start.eq(self.sequencer.launch), self.sequencer.finished.eq(front.finished),
            self.operands.step.eq(front.step), self.issuing.eq(front.step.valid),
            front.table_en.eq(writer.table_en), front.index_en.eq(writer.index_en), front.address.eq(writer.item),
            front.pointer.eq(writer.write.data), front.entry.eq(writer.entry)]

    def _lattice(self, m: Module) -> None:
        operands, lattice = self.operands, self.lattice
        m.d.comb += [lattice.x.eq(operands.x), lattice.b.eq(operands.b), lattice.last.eq(operands.last),
                     lattice.clear.eq(ResetSignal())]
        steps = [operands.done]
        for stage in range(2):  # along with the products
            steps.append(Signal(step_layout(self.machine), name=f"ending_{stage}"))
            m.d.sync += steps[-1].eq(steps[-2])
        self.ending = steps[-1]
        m.d.comb += [self.rows.loaded.eq(lattice.loaded), self.rows.tile.eq(self.ending.tile),
                     self.drain.item.eq(self.rows.item), self.drain.row.eq(lattice.row),
                     self.drain.addend.eq(operands.source), self.tree.i.eq(lattice.row)]

    def _activation_memory(self, m: Module) -> None:
        """Read by the operands, by the drain (BP), by the loss, by the host; written by the drain, else by the host.

        With a register before its address.
        """
        memory, drain, writer = self.activations, self.drain, self.writer
        with m.Switch(self.command.opcode):
            with m.Case(Opcode.BACKWARD):
                m.d.sync += memory.read_address.eq(drain.mask_address)
            with m.Case(Opcode.LOSS):
                m.d.sync += memory.read_address.eq(self.command.mask_base + self.loss.logit_class)
            with m.Default():
                m.d.sync += memory.read_address.eq(self.operands.activation_address)
        engine = drain.activation_write
        m.d.comb += [self.operands.activation.eq(memory.read_data), drain.mask.eq(memory.read_data),
                     writer.blocked.eq(engine)]
        m.d.data += [
            memory.write_en.eq(engine | writer.activation_en),
            memory.write_address.eq(Mux(engine, drain.write.out, writer.item)),
            memory.write_data.eq(Mux(engine, drain.write_data.as_value(), writer.vector.as_value()))]

    def _gradient_memory(self, m: Module) -> None:
        """Read by the operands; written by the drain in BP, and by the loss."""
        memory, drain, loss = self.gradients, self.drain, self.loss
        bank_bits = (self.machine.rows - 1).bit_length()
        m.d.comb += [memory.read_address.eq(self.operands.gradient_address),
                     self.operands.gradients.eq(memory.read_data)]
        losing = Signal()
        m.d.sync += losing.eq(self.command.opcode == Opcode.LOSS)
        with m.If(losing):
            m.d.data += [memory.write_en.eq(loss.out_valid), memory.write_bank.eq(loss.out_class[:bank_bits]),
                         memory.write_address.eq(self.command.out_base + (loss.out_class >> bank_bits))]
            for lane in range(self.machine.lanes):
                word = memory.write_data[lane]
                m.d.data += [word.value.eq(loss.out_vector[lane]), word.code.eq(0)]
        with m.Else():
            m.d.data += [memory.write_en.eq(drain.gradient_write), memory.write_bank.eq(drain.write.row),
                         memory.write_address.eq(drain.write.out), memory.write_data.eq(drain.write_data)]

    def _weight_memory(self, m: Module) -> None:
        """Read by the operands; written by the update, else by the host."""
        memory, update, writer = self.weights, self.update, self.writer
        bank_bits = (self.machine.rows - 1).bit_length()
        place = Mux(update.out_valid, update.out_address, writer.item)
        m.d.comb += [memory.read_addresses.eq(self.operands.weight_addresses),
                     self.operands.weights.eq(memory.read_data)]
        m.d.data += [
            memory.write_en.eq(update.out_valid | writer.weight_en), memory.write_bank.eq(place[:bank_bits]),
            memory.write_address.eq(place >> bank_bits),
            memory.write_data.eq(Mux(update.out_valid, update.out_weight, writer.write.data.as_signed()))]

    def _update(self, m: Module) -> None:
        """WU: rows of partial sums through the lane tree into the update unit, with the place of each weight."""
        update, tree, rows, command, writer = self.update, self.tree, self.rows, self.command, self.writer
        bank_bits = (self.machine.rows - 1).bit_length()
        column, term, every = Signal.like(self.ending.column), Signal.like(self.ending.term), Signal()
        with m.If(self.lattice.loaded):
            m.d.sync += [column.eq(self.ending.column + self.ending.term), term.eq(self.ending.term),
                         every.eq(~command.diagonal | self.ending.one)]
        place = Signal(bits_for(self.machine.master_depth))
        m.d.comb += place.eq(Cat((rows.item.row + term)[:bank_bits], column))
        updated = rows.item.valid & (command.opcode == Opcode.UPDATE) & (every | (rows.item.row == term))
        valids, places = [updated], [place]
        for stage in range(tree.latency_cycles):
            valids.append(Signal(name=f"summing_{stage}"))
            places.append(Signal.like(place, name=f"place_{stage}"))
            m.d.sync += [valids[-1].eq(valids[-2]), places[-1].eq(places[-2])]
        m.d.comb += [
            update.valid.eq(valids[-1]), update.address.eq(places[-1]), update.total.eq(tree.o),
            update.first.eq(self.sequencer.first), update.last.eq(self.sequencer.last),
            self.gradient_valid.eq(update.gradient_valid), self.gradient_address.eq(update.gradient_address),
            self.gradient.eq(update.gradient)]
        m.d.data += [
            update.host_write.eq(writer.master_en | writer.momentum_en), update.host_data.eq(writer.write.data),
            update.host_momentum.eq(Mux(writer.write_any, writer.momentum_en, self.reader.update_momentum)),
            update.host_address.eq(Mux(writer.write_any, writer.item, self.reader.update_address))]
        for field, _ in update.rule.shape():
            m.d.comb += update.rule[field].eq(command[field])

    def _loss(self, m: Module) -> None:
        loss, command, lanes = self.loss, self.command, self.machine.lanes
        m.d.comb += [
            loss.start.eq(self.sequencer.launch_loss), self.sequencer.loss_done.eq(loss.done),
            loss.logit_vector.eq(Cat(*(word.value for word in self.activations.read_data)))]
        for field, _ in loss.rule.shape():
            m.d.comb += loss.rule[field].eq(command[field])
        for lane in range(lanes):
            m.d.comb += loss.labels[lane].eq(Mux(self.sequencer.parity, self.writer.labels[lanes + lane],
                                                 self.writer.labels[lane]))
