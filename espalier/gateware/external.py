"""The port to external memory: activations spilled as they are made, and brought back before they are needed."""

from __future__ import annotations

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from espalier.arch.machine import EXTERNAL_BITS, Machine
from espalier.gateware.layouts import element_bits, struct, vector_layout
from espalier.program.words import PAGE_SHIFT, bits_for, command_fields

DESCRIPTORS = 4           #: tensors that wait for their turn, in each direction
OUTSTANDING = 8           #: bursts asked for and not answered, in each direction
INCREMENTING = 1          #: AXI's code of a burst whose addresses rise
OKAY = 0                  #: AXI's answer to what went well


def write_channels(machine: Machine) -> dict[str, wiring.Member]:
    """The channels of an AXI4 master (Arm IHI 0022) that write, without optional signals.

    Transactions have no identifiers, so answers come in order.
    """
    return {**_address_channel("aw"), "wdata": Out(machine.port_bits), "wstrb": Out(machine.port_bits // 8),
            "wlast": Out(1), "wvalid": Out(1), "wready": In(1), "bresp": In(2), "bvalid": In(1), "bready": Out(1)}


def read_channels(machine: Machine) -> dict[str, wiring.Member]:
    """Those that read."""
    return {**_address_channel("ar"), "rdata": In(machine.port_bits), "rresp": In(2), "rlast": In(1), "rvalid": In(1),
            "rready": Out(1)}


def axi_channels(machine: Machine) -> dict[str, wiring.Member]:
    """All of them; none without a port."""
    return {**write_channels(machine), **read_channels(machine)} if machine.port_bits else {}


def _address_channel(name: str) -> dict[str, wiring.Member]:
    ports = {"addr": Out(EXTERNAL_BITS), "len": Out(8), "size": Out(3), "burst": Out(2), "valid": Out(1),
             "ready": In(1)}
    return {f"{name}{port}": member for port, member in ports.items()}


def place_fields(machine: Machine) -> dict[str, int]:
    """Where a tensor lies in external memory, and how long it is."""
    fields = command_fields(machine)
    return {name: fields[name] for name in ("external", "beats")}


def refetch_fields(machine: Machine) -> dict[str, int]:
    """The same, and where it goes on chip; whether instead a panel ``moves``, and how."""
    fields = command_fields(machine)
    panel = {"moves": 1, **move_fields(machine)} if machine.panel_depth else {}
    elements = {"own": 1, "everywhere": 1} if machine.elements > 1 else {}
    return {**place_fields(machine),
            **{name: fields[name] for name in ("out_base", "out_block", "out_plane", "blocks", "last_rows")}, **panel,
            **elements}


def move_fields(machine: Machine) -> dict[str, int]:
    """Which panel is moved, whether masters and momenta, whether out of the chip; how much, and where it lies."""
    fields = command_fields(machine)
    return {**place_fields(machine), **{name: fields[name] for name in ("runs_at", "runs")},
            "panel": 1, "state": 1, "store": 1}


class Bursts(wiring.Component):
    """Cuts a run of beats into bursts and asks for them, one after another.

    Each ends at a multiple of ``machine.burst_beats`` or with the run, so that none crosses a boundary.

    Members
    -------
    start, address, total : In
        Take up a run of so many beats, while ``done``.
    go : In(1)
        A burst may be asked for. Once high it stays so until one was.
    addr, len, valid, ready
        Of an address channel; ``len`` is one less than the beats.
    asked : Out(1)
        A burst was accepted.
    beats : Out
        The beats of the burst that is asked for.
    done : Out(1)
        The run's last burst was accepted.
    """

    def __init__(self, machine: Machine):
        self.machine = machine
        super().__init__({
            "start": In(1), "address": In(EXTERNAL_BITS), "total": In(place_fields(machine)["beats"]), "go": In(1),
            "addr": Out(EXTERNAL_BITS), "len": Out(8), "valid": Out(1), "ready": In(1), "asked": Out(1),
            "beats": Out(bits_for(machine.burst_beats + 1)), "done": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        machine, whole = self.machine, self.machine.burst_beats
        left, room = Signal.like(self.total, name="left"), Signal.like(self.beats, name="room")
        size, bits = (machine.port_bits // 8).bit_length() - 1, (whole - 1).bit_length()
        m.d.comb += [self.done.eq(left == 0), room.eq(whole - self.addr[size: size + bits]),
                     self.beats.eq(Mux(left > room, room, left)),
                     self.len.eq(self.beats - 1), self.valid.eq(~self.done & self.go),
                     self.asked.eq(self.valid & self.ready)]
        with m.If(self.start):
            m.d.sync += [left.eq(self.total), self.addr.eq(self.address)]
        with m.Elif(self.asked):
            m.d.sync += [left.eq(left - self.beats), self.addr.eq(self.addr + (self.beats << size))]
        return m


class Spiller(wiring.Component):
    """Writes vectors to external memory in the order in which they come. One vector per cycle, for a while.

    Parameters
    ----------
    under_way : int
        Vectors that may still come after ``hold``.

    Members
    -------
    start, place : In
        A tensor's vectors will come, behind those of the tensors before. Only while ``ready``.
    base : In(EXTERNAL_BITS)
    ready : Out(1)
    valid, vector : In
        One of them comes. There is no way to wait; but when ``hold`` rises, as many may still come as were on the way.
    hold : Out(1)
        No more vectors, please.
    busy : Out(1)
        Something that was started is not answered yet.
    error : Out(1)
        For one cycle: an answer was not OKAY.
    aw*, w*, b*
        Channels of AXI4.
    """

    def __init__(self, machine: Machine, under_way: int):
        self.machine, self.depth, self.spare = machine, 2 * under_way, under_way
        super().__init__({
            "start": In(1), "place": In(struct(place_fields(machine))), "base": In(EXTERNAL_BITS), "ready": Out(1),
            "valid": In(1), "vector": In(vector_layout(machine)), "hold": Out(1), "busy": Out(1), "error": Out(1),
            **write_channels(machine)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        machine = self.machine
        m.submodules.places = places = SyncFIFOBuffered(width=len(Value.cast(self.place)), depth=DESCRIPTORS)
        m.submodules.vectors = vectors = SyncFIFOBuffered(width=machine.vector_bits, depth=self.depth)
        m.submodules.bursts = bursts = Bursts(machine)
        m.d.comb += [places.w_data.eq(self.place), places.w_en.eq(self.start), self.ready.eq(places.w_rdy),
                     vectors.w_data.eq(self.vector), vectors.w_en.eq(self.valid)]
        m.d.sync += self.hold.eq(vectors.w_level > self.depth - self.spare)
        packed = Signal(machine.vector_beats * machine.port_bits, reset_less=True)
        place = data.View(struct(place_fields(machine)), places.r_data)
        parts, burst, unanswered = (Signal(range(machine.vector_beats + 1)), Signal.like(bursts.beats),
                                    Signal(range(OUTSTANDING + 1)))
        written, answered, take = Signal(), Signal(), Signal()
        m.d.comb += [
            bursts.address.eq(self.base + (place.external << PAGE_SHIFT)), bursts.total.eq(place.beats),
            bursts.start.eq(places.r_rdy & bursts.done),
            places.r_en.eq(bursts.done), bursts.go.eq((burst == 0) & (parts != 0) & (unanswered != OUTSTANDING)),
            bursts.ready.eq(self.awready), self.awvalid.eq(bursts.valid), self.awaddr.eq(bursts.addr),
            self.awlen.eq(bursts.len), self.awsize.eq((machine.port_bits // 8).bit_length() - 1),
            self.awburst.eq(INCREMENTING), self.wstrb.eq(~0), self.wdata.eq(packed), self.wlast.eq(burst == 1),
            self.wvalid.eq((parts != 0) & (burst != 0)), written.eq(self.wvalid & self.wready),
            take.eq((parts == 0) | written & (parts == 1)), vectors.r_en.eq(take),
            self.bready.eq(1), answered.eq(self.bvalid), self.error.eq(answered & (self.bresp != OKAY)),
            self.busy.eq(places.r_rdy | (places.w_level != 0) | ~bursts.done | (burst != 0) | (unanswered != 0))]
        with m.If(take):
            m.d.sync += [packed.eq(vectors.r_data), parts.eq(Mux(vectors.r_rdy, machine.vector_beats, 0))]
        with m.Elif(written):
            m.d.sync += [packed.eq(packed >> machine.port_bits), parts.eq(parts - 1)]
        with m.If(bursts.asked):
            m.d.sync += burst.eq(bursts.beats)
        with m.Elif(written):
            m.d.sync += burst.eq(burst - 1)
        m.d.sync += unanswered.eq(unanswered + bursts.asked - answered)
        return m


class Refetcher(wiring.Component):
    """Reads tensors from external memory into the activation memory, in the order in which they were written there.

    That is block by block of ``rows`` channels, in each pixel by pixel, and there channel by channel. Panels wait for
    their turn among them; who moves them is told.

    Members
    -------
    start, tensor : In
        Fetch it, after those before. Only while ``ready``.
    base : In(EXTERNAL_BITS)
    ready : Out(1)
    written : In(1)
        What was spilled has arrived: nothing is read before.
    valid, address, vector : Out
        A vector, and where it goes; until it is ``taken``. Of several processing elements it goes to the ``owner``, or
        ``everywhere``.
    taken : In(1)
        May be high without ``valid``.
    busy : Out(1)
        Something that was started is not all there yet.
    error : Out(1)
        For one cycle: a beat came with an answer that is not OKAY.
    moving, move, moved
        Where the machine has panels: one begins to move; and is there.
    ar*, r*
        Channels of AXI4.
    """

    def __init__(self, machine: Machine):
        self.machine = machine
        panels = {"moving": Out(1), "move": Out(struct(move_fields(machine))),
                  "moved": In(1)} if machine.panel_depth else {}
        elements = {"owner": Out(element_bits(machine)), "everywhere": Out(1)} if machine.elements > 1 else {}
        super().__init__({
            **panels, **elements, "start": In(1), "tensor": In(struct(refetch_fields(machine))),
            "base": In(EXTERNAL_BITS), "ready": Out(1), "written": In(1), "valid": Out(1),
            "address": Out(bits_for(machine.activation_depth)),
            "vector": Out(vector_layout(machine)), "taken": In(1), "busy": Out(1), "error": Out(1),
            **read_channels(machine)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        machine = self.machine
        m.submodules.tensors = tensors = SyncFIFOBuffered(width=len(Value.cast(self.tensor)), depth=DESCRIPTORS)
        m.submodules.bursts = bursts = Bursts(machine)
        following = data.View(struct(refetch_fields(machine)), tensors.r_data)
        tensor = Signal(struct(refetch_fields(machine)))  # in work
        active, begin, last, moves = Signal(), Signal(), Signal(), Signal()
        unanswered, ended = Signal(range(OUTSTANDING + 1)), Signal()
        m.d.comb += [
            tensors.w_data.eq(self.tensor), tensors.w_en.eq(self.start), self.ready.eq(tensors.w_rdy),
            begin.eq(tensors.r_rdy & ~active & self.written), tensors.r_en.eq(begin),
            bursts.start.eq(begin & ~moves), bursts.address.eq(self.base + (following.external << PAGE_SHIFT)),
            bursts.total.eq(following.beats), bursts.go.eq(unanswered != OUTSTANDING),
            bursts.ready.eq(self.arready), self.arvalid.eq(bursts.valid), self.araddr.eq(bursts.addr),
            self.arlen.eq(bursts.len), self.arsize.eq((machine.port_bits // 8).bit_length() - 1),
            self.arburst.eq(INCREMENTING), ended.eq(self.rvalid & self.rready & self.rlast),
            self.error.eq(self.rvalid & self.rready & (self.rresp != OKAY)),
            self.busy.eq(active | tensors.r_rdy | (tensors.w_level != 0))]
        m.d.sync += unanswered.eq(unanswered + bursts.asked - ended)
        with m.If(begin):
            m.d.sync += [tensor.eq(following), active.eq(1)]
        with m.Elif(last):
            m.d.sync += active.eq(0)
        if machine.panel_depth:
            m.d.comb += [moves.eq(following.moves), self.moving.eq(begin & moves)]
            m.d.comb += [self.move[name].eq(following[name]) for name in move_fields(machine)]
            with m.If(self.moved):
                m.d.sync += active.eq(0)
        self._unpack(m)
        self._walk(m, tensor, begin, following, last)
        return m

    def _unpack(self, m: Module) -> None:
        """Beats to vectors: one is whole when as many have come as it takes."""
        beats = self.machine.vector_beats
        packed = Signal(beats * self.machine.port_bits, reset_less=True)
        parts, came = Signal(range(beats + 1)), Signal()
        m.d.comb += [self.valid.eq(parts == beats), self.rready.eq(~self.valid | self.taken),
                     came.eq(self.rvalid & self.rready), self.vector.eq(packed)]
        with m.If(came):
            m.d.sync += packed.eq(Cat(packed, self.rdata)[self.machine.port_bits:])
        with m.If(self.valid & self.taken):
            m.d.sync += parts.eq(came)
        with m.Elif(came):
            m.d.sync += parts.eq(parts + 1)

    def _walk(self, m: Module, tensor: Signal, begin: Signal, following: data.View, last: Signal) -> None:
        """Where the next vector goes: channels of a block, then pixels, then blocks."""
        block, pixel_base = Signal.like(self.address), Signal.like(self.address)
        row, pixel, number = Signal.like(tensor.last_rows), Signal.like(tensor.out_plane), Signal.like(tensor.blocks)
        row_done, pixel_done, block_done = Signal(), Signal(), Signal()
        step: Value = tensor.out_block
        whole: Value = C(self.machine.rows)
        if self.machine.elements > 1:
            whole = Mux(tensor.own, self.machine.all_rows, self.machine.rows)
            step = self._owners(m, tensor, begin, row, row_done, row_done & pixel_done)
        m.d.comb += [
            block_done.eq(number + 1 == tensor.blocks), pixel_done.eq(pixel + 1 == tensor.out_plane),
            row_done.eq(row + 1 == Mux(block_done, tensor.last_rows, whole)),
            last.eq(self.valid & self.taken & row_done & pixel_done & block_done)]
        with m.If(begin):
            m.d.sync += [self.address.eq(following.out_base), block.eq(following.out_base),
                         pixel_base.eq(following.out_base), row.eq(0), pixel.eq(0), number.eq(0)]
        with m.Elif(self.valid & self.taken):
            m.d.sync += [row.eq(row + 1), self.address.eq(self.address + tensor.out_plane)]
            if self.machine.elements > 1:
                with m.If(_last_of(self.machine, row)):
                    m.d.sync += self.address.eq(pixel_base)
            with m.If(row_done):
                m.d.sync += [row.eq(0), pixel.eq(pixel + 1), self.address.eq(pixel_base + 1),
                             pixel_base.eq(pixel_base + 1)]
            with m.If(row_done & pixel_done):
                after = block + step
                m.d.sync += [pixel.eq(0), number.eq(number + 1), self.address.eq(after), pixel_base.eq(after),
                             block.eq(after)]

    def _owners(self, m: Module, tensor: data.View, begin: Signal, row: Signal, row_done: Signal, done: Value) -> Value:
        """Whose the vectors are; and how far behind a block, ``done`` now, the next one lies.

        Blocks are those of one element after the other, or of all together.
        """
        first = Signal.like(self.owner)  # of the block
        with m.If(begin):
            m.d.sync += [first.eq(0), self.owner.eq(0)]
        with m.Elif(self.valid & self.taken):
            with m.If(_last_of(self.machine, row)):
                m.d.sync += self.owner.eq(self.owner + 1)
            with m.If(row_done):
                m.d.sync += self.owner.eq(first)
            with m.If(done & ~tensor.own):
                m.d.sync += [first.eq(first + 1), self.owner.eq(first + 1)]
        m.d.comb += self.everywhere.eq(tensor.everywhere)
        return Mux(tensor.own | first.all(), tensor.out_block, 0)


def _last_of(machine: Machine, row: Value) -> Value:
    """Whether a row is the last of those of a processing element."""
    return row[:(machine.rows - 1).bit_length()] == machine.rows - 1
