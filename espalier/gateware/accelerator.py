"""The accelerator: where everything is joined."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from itertools import pairwise
from operator import add, or_

from amaranth.hdl import Array, C, Cat, Const, DomainRenamer, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from espalier.arch.machine import REGION_BITS, Machine
from espalier.gateware.arithmetic import delay_line
from espalier.gateware.drain import Drain, bank_of
from espalier.gateware.element import Element, places
from espalier.gateware.external import (
    Refetcher,
    Spiller,
    axi_channels,
    place_fields,
    read_channels,
    refetch_fields,
    write_channels,
)
from espalier.gateware.host import WRITE, HostReader, HostWriter, spaces_of
from espalier.gateware.lattice import Lattice
from espalier.gateware.layouts import command_layout, element_bits, vector_layout
from espalier.gateware.loss_unit import LossUnit
from espalier.gateware.norm_unit import NormUnit
from espalier.gateware.operands import Operands
from espalier.gateware.panels import PanelMover
from espalier.gateware.sequencer import Sequencer
from espalier.gateware.update_unit import READ_CYCLES as UPDATE_READ_CYCLES
from espalier.gateware.update_unit import UpdateUnit
from espalier.numerics.update import GRADIENT_BITS
from espalier.program.words import BUS_BITS, Opcode, bits_for

WRITE_CYCLES = 1   #: from what writes a memory to the memory's port
HOLD_CYCLES = 4    #: from a vector's coming to a queue to the step that it holds up
RESET_CYCLES = 128  #: how long to hold reset, for what is in flight to run out


class Accelerator(wiring.Component):
    """One training accelerator: lattice, memories, control, loss and update; a host port.

    With several processing elements each has its own lattice and memories (:class:`Element`); commands, drain and loss
    are there once.

    Reset, held for :data:`RESET_CYCLES`, stops a program; memories keep their words. It reaches what decides, not the
    thousands of registers of the pipelines that obey (clock domain ``data``): those run empty by themselves.

    Members
    -------
    write_valid, write_ready, write : host writes, see program.words.Space
    read_address, read_data : host reads, data gateware.host.READ_CYCLES later
    busy : a program is running; from the third cycle after its start word was taken
    position : number of the command in force (for measuring)
    issuing : whether a step left the issuer in the cycle before, for each processing element (for measuring)
    m_axi_* : an AXI4 master, where the machine has a port to external memory
    gradient_valid, gradient_address, gradient : each weight's gradient as it meets its master (for verifying), a bit
        and 32 bits of each for every update unit
    """

    def __init__(self, machine: Machine):
        self.machine, units = machine, machine.elements * machine.trees
        super().__init__({
            "write_valid": In(1), "write_ready": Out(1), "write": In(WRITE), "read_address": In(32),
            "read_data": Out(32), "busy": Out(1), "position": Out(bits_for(machine.program_depth)),
            "issuing": Out(machine.elements),
            "gradient_valid": Out(units), "gradient_address": Out(BUS_BITS * units),
            "gradient": Out(GRADIENT_BITS * units),
            **{f"m_axi_{name}": member for name, member in axi_channels(machine).items()}})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        machine = self.machine
        gathers = int(machine.elements > 1)  # cycles of adding up what the elements have
        sums = Operands.latency_cycles + Lattice.latency_cycles + WRITE_CYCLES  # cycles to the first row, and to write
        self.drain = Drain(machine)
        self.elements = [Element(machine, number, Lattice.latency_cycles + self.drain.add_cycles + gathers)
                         for number in range(machine.elements)]
        self.first = first = self.elements[0]  # for what is there only where there is no other, or the same in all
        self.sequencer = Sequencer(
            machine, drain_cycles=sums + gathers + machine.all_rows - 1 + Drain.latency_cycles,
            update_cycles=(sums + machine.tree_rows - 1 + first.trees[0].latency_cycles
                           + first.updates[0].latency_cycles))
        self.writer, self.reader = HostWriter(machine), HostReader(machine)
        self.loss = LossUnit(lanes=machine.images, word_bits=machine.word_bits, max_classes=machine.max_classes,
                             read_latency=3)
        if machine.port_bits:
            under_way = sums + gathers + Drain.latency_cycles + 2 * machine.all_rows + HOLD_CYCLES
            self.spiller = Spiller(machine, under_way)
            self.refetcher = Refetcher(machine)
        if machine.panel_depth:
            self.mover = PanelMover(machine)
        if machine.norm_depth:
            self.norm = NormUnit(machine)
        assert self.sequencer.update_cycles <= RESET_CYCLES and self.sequencer.drain_cycles <= RESET_CYCLES
        for name in ("sequencer", "writer", "reader", "loss"):
            m.submodules[name] = getattr(self, name)
        m.submodules.drain = DomainRenamer("data")(self.drain)
        for element in self.elements:
            element.join(m, f"_{element.number}" if gathers else "")
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
        if machine.port_bits:
            self._external(m)
        if machine.panel_depth:
            self._panels(m)
        if machine.norm_depth:
            self._norm(m)
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
            m.d.sync += [writer.valid.eq(came), writer.write.eq(coming),
                         writer.spaces.eq(spaces_of(coming.address, self.machine))]
        m.d.comb += [
            self.write_ready.eq(~came | follows),
            sequencer.start.eq(writer.start), sequencer.word.eq(writer.start_word),
            sequencer.write_en.eq(writer.program_en), sequencer.write_address.eq(writer.item),
            sequencer.write_data.eq(writer.command), self.busy.eq(sequencer.busy),
            self.position.eq(sequencer.position),
            reader.address.eq(self.read_address), self.read_data.eq(reader.data), reader.busy.eq(sequencer.busy),
            reader.vector.eq(self._asked(element.operands.source.as_value() for element in self.elements)),
            reader.weight.eq(self._asked(element.operands.probed_weight for element in self.elements).as_signed()),
            reader.correct.eq(self.loss.correct),
            reader.loss.eq(self.loss.loss_sum), reader.cycles.eq(cycles), self.loss.clear_counters.eq(clear)]
        for element in self.elements:
            m.d.comb += [element.operands.probe.eq(reader.probe), element.operands.parity.eq(sequencer.parity)]

    def _asked(self, values: Iterable[Value]) -> Value:
        """What the processing element has of which the host reads: one value of each."""
        if self.machine.elements == 1:
            return next(iter(values))
        return reduce(or_, (value & chosen.replicate(len(value))
                            for value, chosen in zip(values, self.writer.elements, strict=True)))

    def _to(self, element: Element, en: Value) -> Value:
        """Whether what the host writes where ``en`` goes to ``element``."""
        return en & self.writer.elements[element.number] if self.machine.elements > 1 else en

    def _of_owner(self, owner: str, values: Iterable[Value]) -> Value:
        """What the processing element has that the drain's ``owner`` names: one value of each."""
        found = [*values]
        return found[0] if len(found) == 1 else Array(found)[getattr(self.drain, owner)]

    def _front(self, m: Module) -> None:
        """From the command to the steps of the lattice, and their operands."""
        writer, first = self.writer, self.first
        m.d.comb += self.drain.command.eq(self.command)
        for element in self.elements:
            front = element.front
            for part in (front, element.operands, element.rows):
                m.d.comb += part.command.eq(self.command)
            m.d.comb += [
                front.start.eq(self.sequencer.launch), element.operands.step.eq(front.step),
                self.issuing[element.number].eq(front.step.valid),
                front.table_en.eq(self._to(element, writer.table_en)),
                front.index_en.eq(self._to(element, writer.index_en)),
                front.address.eq(writer.item), front.pointer.eq(writer.write.data), front.entry.eq(writer.entry)]
        self.held = Signal()  # no tile may end, because results do not leave
        if self.machine.elements == 1:
            m.d.comb += [self.sequencer.finished.eq(first.front.finished), first.front.hold.eq(self.held)]
            return
        together, done, finished = Signal(), Signal(self.machine.elements), Signal(self.machine.elements)
        fronts = [element.front for element in self.elements]
        m.d.sync += [together.eq(self.command.opcode != Opcode.UPDATE),
                     done.eq(Mux(self.sequencer.launch, 0, done | finished))]
        m.d.comb += [finished.eq(Cat(front.finished for front in fronts)),
                     self.sequencer.finished.eq(finished.any() & (done | finished).all()),
                     *(front.hold.eq(self.held | together & ~Cat(other.ready for other in fronts).all())
                       for front in fronts)]

    def _lattice(self, m: Module) -> None:
        """Operands into each lattice; sums of a row, of one lattice behind the other or of all together, to the drain.
        """
        for element in self.elements:
            element.connect(m, self.command)
        if self.machine.sums:
            m.d.comb += self.drain.addend.eq(self._of_owner("addend_owner", (
                element.operands.addend.as_value() for element in self.elements)))
        first, drain = self.first, self.drain
        if self.machine.elements == 1:
            m.d.comb += [drain.item.eq(first.rows.item), drain.row.eq(first.lattice.row),
                         drain.kept.eq(first.lattice.kept)]
            return
        for element, following in pairwise(self.elements):
            m.d.comb += [element.lattice.chain.eq(following.lattice.row),
                         element.lattice.chain_kept.eq(following.lattice.kept)]
        kept = reduce(or_, (element.lattice.kept for element in self.elements[1:]))  # one of them has a block's bias
        m.d.data += [drain.item.eq(first.rows.item), drain.kept.eq(first.lattice.kept | Mux(self.command.own, 0, kept))]
        for lane in range(self.machine.lanes):
            others = (element.lattice.row[lane] for element in self.elements[1:])
            m.d.data += drain.row[lane].eq(
                first.lattice.row[lane] + Mux(self.command.own, 0, reduce(add, others)))

    def _activation_memory(self, m: Module) -> None:
        """Read by the operands, by the drain (BP), by the loss, by the host; written by the drain, else by the host.

        With a register before its address.
        """
        drain, writer, machine = self.drain, self.writer, self.machine
        engine, place = drain.activation_write, drain.write.out
        if machine.copies:
            place = Mux(self.command.target[0], drain.write.mask, place)
        fetched, address, vector = self._fetched()
        logits, _ = self._logit_place()
        for element in self.elements:
            memory, owns, comes, writes = element.activations, engine, fetched, writer.activation_en
            if machine.elements > 1:  # what comes waits for all of them, what the host writes for that, too
                owns = engine & (drain.write.owner == element.number)
                comes = self._comes(element, fetched & ~engine)
                writes = self._to(element, writes & ~engine & ~fetched)
            with m.Switch(self.command.opcode):
                with m.Case(Opcode.BACKWARD):
                    m.d.sync += memory.read_address.eq(drain.mask_address)
                with m.Case(Opcode.LOSS):
                    m.d.sync += memory.read_address.eq(self.command.mask_base + logits)
                with m.Default():
                    m.d.sync += memory.read_address.eq(element.operands.activation_address)
            m.d.comb += element.operands.activation.eq(memory.read_data)
            m.d.data += [
                memory.write_en.eq(owns | comes | writes),
                memory.write_address.eq(Mux(engine, place, Mux(fetched, address, writer.item))),
                memory.write_data.eq(Mux(engine, drain.write_data.as_value(),
                                         Mux(fetched, vector, writer.vector.as_value())))]
        m.d.comb += [writer.blocked.eq(engine | fetched), drain.mask.eq(self._of_owner("mask_owner", (
            element.activations.read_data.as_value() for element in self.elements)))]

    def _logit_place(self) -> tuple[Value, Value]:
        """Where, in vectors, the logit is that the loss asks for, and in which processing element."""
        low, high = (self.machine.rows - 1).bit_length(), element_bits(self.machine)
        number = self.loss.logit_class
        return (Cat(number[:low], number[low + high:]) if high else number), number[low: low + high]

    def _fetched(self) -> tuple[Value, Value, Value]:
        """What comes from external memory for the activation memory: whether, where to, and the vector."""
        if not self.machine.port_bits:
            return C(0), C(0), C(0)
        return self.refetcher.valid, self.refetcher.address, self.refetcher.vector.as_value()

    def _comes(self, element: Element, fetched: Value) -> Value:
        """Whether what is ``fetched`` from external memory goes to ``element``."""
        if not self.machine.port_bits:
            return C(0)
        return fetched & (self.refetcher.everywhere | (self.refetcher.owner == element.number))

    def _external(self, m: Module) -> None:
        """The port to external memory."""
        machine, sequencer, drain, command = self.machine, self.sequencer, self.drain, self.command
        spiller, refetcher = self.spiller, self.refetcher
        m.submodules.spiller, m.submodules.refetcher = spiller, refetcher
        spills, errors = Signal(), Signal(2)
        m.d.sync += [spills.eq(command.spill & (command.opcode == Opcode.FORWARD)),
                     errors.eq(Mux(self.writer.start & self.writer.start_word.clear, 0,
                                   errors | Cat(refetcher.error, spiller.error)
                                   | (self.mover.error if machine.panel_depth else 0)))]
        m.d.comb += [
            spiller.start.eq(sequencer.launch & command.spill), spiller.base.eq(self.writer.external),
            spiller.valid.eq(drain.activation_write & spills), spiller.vector.eq(drain.write_data),
            refetcher.start.eq(sequencer.launch_refetch), refetcher.base.eq(self.writer.external),
            refetcher.written.eq(~spiller.busy), refetcher.taken.eq(~drain.activation_write),
            sequencer.external_ready.eq(Mux(command.opcode == Opcode.FORWARD, spiller.ready, refetcher.ready)),
            sequencer.external_busy.eq(spiller.busy | refetcher.busy), self.held.eq(spiller.hold & spills),
            self.reader.errors.eq(errors)]
        for fields, target in ((place_fields(machine), spiller.place), (refetch_fields(machine), refetcher.tensor)):
            m.d.comb += [target[name].eq(command[name]) for name in fields
                         if name not in ("external", "moves", "store")]
        m.d.comb += [
            spiller.place.external.eq(command.external),
            refetcher.tensor.external.eq(command.external + Mux(sequencer.parity, command.alternate, 0))]
        for part, channels in ((spiller, write_channels(machine)), (refetcher, read_channels(machine))):
            for name, member in channels.items():
                self._channel(m, part, name, member)

    def _channel(self, m: Module, part: wiring.Component, name: str, member: wiring.Member) -> None:
        """A signal of the port: the mover's where that is at work, else that of ``part``."""
        inside, outside = getattr(part, name), getattr(self, f"m_axi_{name}")
        if not self.machine.panel_depth:
            m.d.comb += outside.eq(inside) if member.flow is Out else inside.eq(outside)
            return
        others, moves = getattr(self.mover, name), self.mover.active if part is self.refetcher else self.mover.storing
        if member.flow is Out:
            m.d.comb += outside.eq(Mux(moves, others, inside))
        else:
            gate = len(outside) == 1 and not name.endswith("last")  # a handshake is with one of them
            m.d.comb += [inside.eq(outside & ~moves if gate else outside),
                         others.eq(outside & moves if gate else outside)]

    def _panels(self, m: Module) -> None:
        """Panels of weights in external memory: what moves takes the port's channels for itself."""
        machine, mover, refetcher, command = self.machine, self.mover, self.refetcher, self.command
        m.submodules.mover = mover
        region, launch, weights = Signal(REGION_BITS), self.sequencer.launch, self.first.weights
        if machine.norm_depth:
            launch = launch | self.sequencer.launch_norm
        with m.If(launch):  # not before: until then the panel may be on its way
            m.d.sync += region.eq(command.panel)
        with m.Elif(self.sequencer.launch_refetch | ~self.sequencer.busy):
            m.d.sync += region.eq(0)
        m.d.comb += [
            refetcher.tensor.moves.eq(command.opcode != Opcode.REFETCH),
            refetcher.tensor.store.eq(command.opcode == Opcode.STORE), mover.start.eq(refetcher.moving),
            mover.move.eq(refetcher.move), refetcher.moved.eq(mover.done), mover.base.eq(self.writer.external),
            mover.write_en.eq(self.writer.run_en), mover.write_address.eq(self.writer.item),
            mover.write_data.eq(self.writer.run), weights.region.eq(region),
            weights.far_panel.eq(mover.panel), weights.far_address.eq(mover.address),
            weights.far_en.eq(mover.weight_en)]
        for bank in range(machine.rows):
            m.d.comb += [weights.far_write[bank].eq(mover.weights[bank]),
                         mover.weights_read[bank].eq(weights.far_read[bank])]
        for number, update in enumerate(self.first.updates):
            m.d.comb += [
                update.region.eq(region), update.far_panel.eq(mover.panel), update.far_address.eq(mover.address),
                update.far_en.eq(mover.state_en), update.far_write.eq(mover.state[number]),
                mover.state_read[number].eq(update.far_read)]

    def _gradient_memory(self, m: Module) -> None:
        """Read by the operands; written by the drain in BP and, before batch norms and sums, in FP, and by the loss.

        Every processing element has a copy.
        """
        drain, loss = self.drain, self.loss
        bank_bits = (self.machine.rows - 1).bit_length()
        losing = Signal()
        m.d.sync += losing.eq(self.command.opcode == Opcode.LOSS)
        for element in self.elements:
            memory = element.gradients
            m.d.comb += [memory.read_addresses.eq(element.operands.gradient_addresses),
                         element.operands.gradients.eq(memory.read_data)]
            with m.If(losing):
                m.d.data += [memory.write_en.eq(loss.out_valid), memory.write_bank.eq(loss.out_class[:bank_bits]),
                             memory.write_address.eq(self.command.out_base + (loss.out_class >> bank_bits))]
                for lane in range(self.machine.lanes):
                    word = memory.write_data[lane]
                    image, tile = divmod(lane, self.machine.tiles)  # the first lane of an image holds its logits
                    m.d.data += [word.value.eq(0 if tile else loss.out_vector[image]), word.code.eq(0)]
            with m.Else():
                m.d.data += [
                    memory.write_en.eq(drain.gradient_write),
                    memory.write_bank.eq(bank_of(self.machine, drain.write.row)),
                    memory.write_address.eq(drain.write.out), memory.write_data.eq(drain.write_data)]

    def _weight_memory(self, m: Module) -> None:
        """Read by the operands; written by the updates, else by a batch norm's scalars, else by the host."""
        writer = self.writer
        en, place, word = writer.weight_en, writer.item, writer.write.data.as_signed()
        if self.machine.norm_depth:
            made = self.norm.word_valid
            en, place, word = en | made, Mux(made, self._word_place(m), place), Mux(made, self.norm.word, word)
        own, group, column = places(self.machine, place)
        for element in self.elements:
            memory, writes = element.weights, self._to(element, en)
            m.d.comb += [memory.read_addresses.eq(element.operands.weight_addresses),
                         element.operands.weights.eq(memory.read_data)]
            for number, update in enumerate(element.updates):
                write, ours = memory.write[number], update.out_valid
                m.d.data += [
                    write.en.eq(ours | writes & (group == number)),
                    write.bank.eq(Mux(ours, update.out_address[:len(own)], own)),
                    write.address.eq(Mux(ours, update.out_address[len(own):], column)),
                    write.data.eq(Mux(ours, update.out_weight, word))]

    def _word_place(self, m: Module) -> Value:
        """Where a word that was made of scalars goes: blocks of ``rows`` channels, each an offset's column and those of
        its factors, whose diagonal alone is read. Channels come in order, of each the offset last."""
        norm, rows = self.norm, self.machine.rows
        bits = (rows - 1).bit_length()
        base, row = Signal.like(self.command.norm_column), norm.word_channel[:bits]
        with m.If(self.sequencer.launch_norm):
            m.d.sync += base.eq(self.command.norm_column)
        with m.Elif(norm.word_valid & ~norm.word_which & (row == rows - 1)):
            m.d.sync += base.eq(base + rows + 1)
        column, bank = Signal.like(base), Signal(bits)
        m.d.comb += [column.eq(base + Mux(norm.word_which, 1 + row, 0)), bank.eq(Mux(norm.word_which, row << 1, row))]
        return Cat(bank, column)

    def _update(self, m: Module) -> None:
        for element in self.elements:
            element.sum_weights(m, self.command)
            for number, update in enumerate(element.updates):
                self._update_unit(m, element, number, update)
        self._host_of_updates(m)

    def _norm(self, m: Module) -> None:
        """WU's sums of a batch norm into scalars, and words of those into the weight banks (:meth:`_word_place`)."""
        norm, command, trees, first = self.norm, self.command, self.machine.trees, self.first
        m.submodules.norm = norm
        second = Signal()  # that of products, behind that of the constant one
        with m.If(first.lattice.loaded):
            m.d.sync += second.eq(~first.ending.one)
        which = delay_line(m, second, first.trees[0].latency_cycles, "second")[-1]
        m.d.comb += [
            norm.start.eq(self.sequencer.launch_norm), self.sequencer.norm_busy.eq(norm.busy),
            norm.sum_valid.eq(first.summed & command.norm.replicate(trees)), norm.sum_which.eq(which.replicate(trees)),
            norm.host_write.eq(self.writer.scalar_en), norm.host_data.eq(self.writer.write.data),
            norm.host_address.eq(Mux(self.writer.write_any, self.writer.item, self.reader.scalar_address)),
            self.reader.scalar.eq(norm.host_read),
            *(total.eq(tree.o) for total, tree in zip(norm.sum, first.trees, strict=True)),
            *(norm.rule[field].eq(command[field]) for field, _ in norm.rule.shape())]

    def _update_unit(self, m: Module, element: Element, number: int, update: UpdateUnit) -> None:
        machine = self.machine
        own, group, _ = places(self.machine, Const(0, (machine.rows - 1).bit_length()))
        place = Cat(update.gradient_address[:len(own)], Const(number, len(group)), update.gradient_address[len(own):],
                    self.command.panel if machine.panel_depth else ())
        if machine.elements > 1:
            place = Cat(place[:machine.place_bits], Const(element.number, element_bits(machine)))
        unit = element.number * machine.trees + number
        m.d.comb += [
            update.first.eq(self.sequencer.first), update.last.eq(self.sequencer.last),
            self.gradient_valid[unit].eq(update.gradient_valid),
            self.gradient_address.word_select(unit, BUS_BITS).eq(place),
            self.gradient.word_select(unit, GRADIENT_BITS).eq(update.gradient)]
        for field, _ in update.rule.shape():
            m.d.comb += update.rule[field].eq(self.command[field])

    def _host_of_updates(self, m: Module) -> None:
        """The host's way to masters and momenta."""
        writer, reader = self.writer, self.reader
        place = Mux(writer.write_any, writer.item, reader.update_address)
        own, group, column = places(self.machine, place)
        for element in self.elements:
            writes = self._to(element, writer.master_en | writer.momentum_en)
            for number, update in enumerate(element.updates):
                m.d.data += [
                    update.host_write.eq(writes & (group == number)), update.host_data.eq(writer.write.data),
                    update.host_momentum.eq(Mux(writer.write_any, writer.momentum_en, reader.update_momentum)),
                    update.host_address.eq(Cat(own, column))]
        asked = delay_line(m, group, UPDATE_READ_CYCLES + 1, "asked")[-1]
        m.d.comb += reader.update_word.eq(self._asked(
            Array(update.host_read for update in element.updates)[asked] for element in self.elements))

    def _loss(self, m: Module) -> None:
        loss, command, machine = self.loss, self.command, self.machine
        firsts = range(0, machine.lanes, machine.tiles)
        found = [element.activations.read_data for element in self.elements]
        read = found[0]
        if machine.elements > 1:
            owner = delay_line(m, self._logit_place()[1], loss.read_latency, "owner")[-1]
            read = data.View(vector_layout(machine), Array(vector.as_value() for vector in found)[owner])
        m.d.comb += [
            loss.start.eq(self.sequencer.launch_loss), self.sequencer.loss_done.eq(loss.done),
            loss.logit_vector.eq(Cat(*(read[lane].value for lane in firsts)))]
        for field, _ in loss.rule.shape():
            m.d.comb += loss.rule[field].eq(command[field])
        for image in range(machine.images):
            m.d.comb += loss.labels[image].eq(Mux(self.sequencer.parity, self.writer.labels[machine.images + image],
                                                  self.writer.labels[image]))
