"""The accelerator's RTL in compiled simulation, as an engine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from espalier.arch.machine import CHANNEL_SCALARS, MAX_GROUPS, REGION_BITS, STATE_BITS, Machine
from espalier.arch.memory import MemoryTiming
from espalier.cost.cycles import PhaseCycles
from espalier.engines import host
from espalier.engines.base import Network, State, Totals
from espalier.engines.verilator import SLOW, WAIT_IDLE, Simulation, build_simulator
from espalier.errors import DataError, ToolError
from espalier.gateware.accelerator import RESET_CYCLES
from espalier.gateware.host import READ_CYCLES
from espalier.gateware.verilog import verilog
from espalier.ir.differentiate import gradient_name
from espalier.program.program import Command, Program
from espalier.program.words import PAGE_SHIFT, Opcode, Space, Status, region_of

MEMORY_ERRORS = {1: "a read", 2: "a write", 3: "reads and writes"}
GROUPS_AT_ONCE = 64          #: groups of images sent to the simulation in one call


class RtlEngine:
    """Runs the Program on the Verilated RTL; see :class:`espalier.engines.base.Engine`.

    Parameters
    ----------
    netlist : str, optional
        What synthesis made of the machine, with models of its cells, to be run in place of the RTL.
    timing : MemoryTiming, optional
        Of external memory, for a machine with a port to it.

    Raises ToolError where the simulator cannot be built.
    """

    def __init__(self, network: Network, netlist: str | None = None, timing: MemoryTiming | None = None) -> None:
        self.network = network
        self.program: Program = network.program
        machine = self.program.machine
        library = build_simulator(verilog(machine)) if netlist is None else build_simulator(netlist, SLOW)
        self.simulation = Simulation(library, machine.program_depth, machine.elements)
        self.timing = timing or MemoryTiming()
        if self.simulation.external:
            self.simulation.time_memory(self.timing)
        self.gradients = self.simulation.trace_gradients(machine.trace_depth)
        self.reset()
        self._send(host.program_writes(self.program))

    def reset(self) -> None:
        """Stop what runs; memories keep their words."""
        self.simulation.reset(RESET_CYCLES)

    def _send(self, writes: host.Writes) -> None:
        waits = int((writes[0] == WAIT_IDLE).sum())
        self.simulation.write(*writes, 2 * len(writes[0]) + (1 + waits) * self._cycles_limit)

    def _read(self, addresses: NDArray[np.uint32], element: int | None = None) -> NDArray[np.uint32]:
        """Words at addresses; of a processing element."""
        if element is not None:
            self._send(host.to_elements(self.machine, element))
            try:
                return self._read(addresses)
            finally:
                self._send(host.to_elements(self.machine))
        found = self.simulation.read(addresses.ravel(), READ_CYCLES)
        return found.reshape(addresses.shape)

    @property
    def _cycles_limit(self) -> int:
        """More cycles than the program can take: every entry at every pixel, and slack for memory and constants."""
        program, limit = self.program, 100_000
        tables = [lists.table for lists in program.lists]
        for command in program.commands:
            slots = command.blocks * (command.kernel_y * command.kernel_x + 1)
            entries = sum(table[command.table + slots] - table[command.table] for table in tables)
            pixels = max(command.out_y * command.out_x, self.machine.all_rows)
            limit += 2 * (entries + 2 * slots) * pixels * self.machine.rows + command.beats * self.timing.slowest
        return limit

    @property
    def machine(self) -> Machine:
        return self.program.machine

    def reprogram(self, program: Program) -> None:
        """Load the commands of a Program that differs in them only (another learning rate)."""
        self.program = program
        self._send(host.command_writes(program))

    def load(self, state: State) -> None:
        self._send(host.state_writes(self.program, state))
        for place, data in host.state_bytes(self.program, state) if self.program.external_columns else ():
            self.simulation.write_memory(place, data)

    def state(self) -> dict[str, NDArray]:
        places = np.arange(self.machine.master_depth)
        bits = {"weights": (Space.WEIGHTS, self.machine.word_bits), "masters": (Space.MASTERS, 32),
                "momenta": (Space.MOMENTA, 32)}
        images = {}
        for name, (space, width) in bits.items():
            raw = [self._read(host.address(space, places), element) for element in range(self.machine.elements)]
            images[name] = host.signed(np.concatenate(raw).astype(np.int64), width)
        if self.program.external_columns:
            for name, image in self._external_images().items():
                images[name] = np.concatenate([images[name], image])
        return {**self.program.state_of(images), **self._scalars()}

    def _scalars(self) -> dict[str, NDArray[np.float32]]:
        """Scale, shift and statistics of batch norms."""
        slots = np.arange(self.machine.norm_depth * CHANNEL_SCALARS)
        if not self.program.scalars:
            return {}
        return self.program.scalars_of(self._read(host.address(Space.SCALARS, slots)).reshape(-1, CHANNEL_SCALARS))

    def _external_images(self) -> dict[str, NDArray[np.int64]]:
        """Weights, masters and momenta in external memory."""
        program, machine = self.program, self.machine
        count = program.external_columns * machine.rows
        return host.state_images(program, *(
            self.simulation.read_memory(page << PAGE_SHIFT, count * bits // 8)
            for page, bits in ((program.weight_page, machine.slot_bits), (program.state_page, STATE_BITS))))

    def train(self, images: NDArray[np.int64], labels: NDArray[np.int64], batch: int) -> Totals:
        return self._groups(images, labels, "train", batch)

    def infer(self, images: NDArray[np.int64], labels: NDArray[np.int64]) -> Totals:
        return self._groups(images, labels, "infer", self.machine.images)

    def _groups(self, images: NDArray[np.int64], labels: NDArray[np.int64], entry: str, batch: int) -> Totals:
        """Run groups one after another; the next group's images are written while one is in work."""
        size = self.machine.images
        per_batch, left = divmod(batch, size)
        if left or len(images) % batch or (per_batch > 1 and not self.machine.groups):
            raise DataError(f"{len(images)} images do not make whole batches of {batch} in groups of {size}"
                            + ("" if self.machine.groups else ", one group a batch"))
        if per_batch > MAX_GROUPS:
            raise DataError(f"A batch may have at most {MAX_GROUPS} groups of {size} images, not {per_batch}")
        self._check(images, labels)
        count = len(images) // size
        idle = (np.array([WAIT_IDLE], dtype=np.uint32), np.zeros(1, dtype=np.uint32))
        if count:
            self._send(self._image_writes(images[:size], labels[:size], 0))
        pending: list[host.Writes] = []
        for group in range(count):
            position = group % per_batch
            pending.append(host.start_write(self.program.entries_at[entry], parity=group % 2, first=position == 0,
                                            last=position == per_batch - 1, clear=group == 0))
            if group + 1 < count:
                chosen = slice((group + 1) * size, (group + 2) * size)
                pending.append(self._image_writes(images[chosen], labels[chosen], (group + 1) % 2))
            pending.append(idle)
            if len(pending) >= 3 * GROUPS_AT_ONCE or group + 1 == count or self.program.image_pages:
                self._send(host.joined(*pending))
                pending = []
        return self._totals()

    def _image_writes(self, images: NDArray[np.int64], labels: NDArray[np.int64], parity: int) -> host.Writes:
        """What the host writes; images in external memory are there now."""
        if self.program.image_pages:
            self.simulation.write_memory(*host.image_bytes(self.program, images, parity))
        return host.image_writes(self.program, images, labels, parity)

    def _check(self, images: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
        """Raise DataError for words or labels that the machine would misread."""
        words, classes = self.program.image_format, self.network.graph.outputs[1].shape[0]
        if images.size and not words.low <= images.min() <= images.max() <= words.high:
            raise DataError(f"Images must be words of {words}, {words.low}..{words.high}, and reach from "
                            f"{images.min()} to {images.max()}")
        if labels.size and not 0 <= labels.min() <= labels.max() < classes:
            raise DataError(f"Labels must be in 0..{classes - 1}, and reach from {labels.min()} to {labels.max()}")

    def _totals(self) -> Totals:
        low, high, correct, errors = (
            int(self._read(host.address(Space.CONTROL, status))[0])
            for status in (Status.LOSS_LOW, Status.LOSS_HIGH, Status.CORRECT, Status.ERRORS))
        if errors:
            raise ToolError(f"External memory answered with an error to {MEMORY_ERRORS[errors]}: what the machine "
                            f"computed since is not to be used")
        loss = host.signed(np.array([high << 32 | low]), 48)
        return Totals(loss=int(loss[0]), correct=correct)

    def read_tensor(self, name: str) -> NDArray[np.int64]:
        """A stored tensor (N, C, H, W) by its name, as it is in memory now."""
        return self._tensor(name)[0]

    def _tensor(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        placement = next(p for p in self.program.placements if p.value == name)
        addresses, elements = host.tensor_addresses(self.program, placement)
        data = np.empty(addresses.shape, dtype=np.uint32)
        for element in np.unique(elements):
            data[:, elements == element] = self._read(addresses[:, elements == element], element)
        found = host.lane_words(self.program, data)
        words, codes = (host.of_lanes(self.machine, part, placement.apart) for part in found)
        return words, codes

    def traced_step(self, images: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        if len(images) != self.machine.images:
            raise DataError(f"A traced step takes one group of {self.machine.images} images, not {len(images)}")
        self._check(images, labels)
        found: dict[str, NDArray[np.int64]] = {}
        self._send(self._image_writes(images, labels, 0))
        graph = self.network.graph
        gradients = np.zeros(self.program.places, dtype=np.int64)
        for position, command in enumerate(self.program.commands):
            self._send(host.start_write(position, single=True, clear=position == 0))
            self._send((np.array([WAIT_IDLE], dtype=np.uint32), np.zeros(1, dtype=np.uint32)))
            if command.opcode == Opcode.END:
                break
            if command.opcode == Opcode.STORE:
                gradients[self._moved(command)] = self._panel_gradients(command)
            for placement in self.program.placements:
                if placement.command == position:
                    words, codes = self._tensor(placement.value)
                    if placement.pooled and placement.memory == "activations":
                        found[f"{placement.value}.code"] = codes
                    elif placement.pooled:
                        words = host.unpooled(words, codes)
                    found[placement.value] = words.reshape(len(images), *graph.value(placement.value).shape)
        traced = self.gradients.reshape(self.machine.elements, -1)[:, : self.machine.master_depth]
        gradients[: self.program.chip_places] = traced.ravel()
        totals = self._totals()
        found["loss"], found["correct"] = np.array(totals.loss), np.array(totals.correct)
        for name in self.network.rules.keys() & self.program.addresses.keys():
            places = self.program.addresses[name]
            found[gradient_name(name)] = np.where(places >= 0, gradients[places], 0)
        return {**found, **self.state()}

    def _moved(self, command: Command) -> NDArray[np.int64]:
        """The places of the weights that a STORE takes to external memory."""
        rows = self.machine.rows
        columns = [np.arange(first, first + count) for first, count in
                   self.program.runs[command.runs_at: command.runs_at + command.runs]]
        return self.program.chip_places + (np.concatenate(columns)[:, None] * rows + np.arange(rows)).ravel()

    def _panel_gradients(self, command: Command) -> NDArray[np.int32]:
        """The gradients that WU had of them, in the same order."""
        base = region_of(command.panel) * (self.machine.trace_depth >> REGION_BITS)
        return self.gradients[base: base + len(self._moved(command))]

    def phase_cycles(self) -> tuple[PhaseCycles, ...]:
        """Cycles by command since the engine was made or :meth:`clear_cycles` called."""
        simulation = self.simulation
        return tuple(PhaseCycles(layer=command.layer, opcode=command.phase, cycles=int(simulation.cycles_at[k]),
                                 steps=tuple(map(int, simulation.issued_at[k])))
                     for k, command in enumerate(self.program.commands))

    def clear_cycles(self) -> None:
        """Count cycles from here."""
        self.simulation.cycles_at[:] = 0
        self.simulation.issued_at[:] = 0

    def close(self) -> None:
        """Free the simulation."""
        self.simulation.close()
