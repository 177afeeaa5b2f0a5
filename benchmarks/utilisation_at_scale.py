"""How busy the multipliers of large machines are, by phase: the cycles of every command, predicted.

    python benchmarks/utilisation_at_scale.py

The model's cycles are those of the simulated Verilog (``cost_model.py``), so what is estimated here is what would be
simulated. A step is of one group, so of as many images as the machine has lanes; at first every tensor is on chip,
whatever that takes: the memory is a figure, too. Lattices have 16 and 32 rows, for pruned networks 16 and 4, for
MobileNetV1 also 2, its maps in 2 × 2 tiles, and twice 1; and as many lane trees as rows (all elements 64 at most). Live
blocks are random, a tenth of each layer's, and all of the first and of the last one's; where it says so they are
balanced.

Utilisation is useful MACs over multipliers times cycles, all of a phase's commands with their fill and drain; the step
has the loss, too.

Then, on 16 rows, with all activations and images in external memory that can be: the same with all waits; and with the
weights, masters and momenta of the largest layers there, too, so that the fewest columns are on chip. The roofline
is what bandwidth leaves: the cycles of a phase over those, or over those in which the port moves what belongs to it
(FP: all that is spilled, and weights; BP and WU together: all that comes back, and weights, masters and momenta both
ways), whichever are more. A phase has a bar where that is the bar at least. Of the largest machines also what a step
waits with half and three quarters of the activations' memory on chip. A batch of one image has its maps in tiles, a
lane each, on as many processing elements, 1 to 16, and lattices of as many rows, 4 to 64, as are busiest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from operator import itemgetter

import numpy as np
from harness import LOSS, fitted_machine, plain_rules, write_found
from numpy.typing import NDArray

from espalier.arch.machine import MAX_UPDATE_UNITS
from espalier.arch.memory import MemoryTiming
from espalier.compiler.legalise import legalise
from espalier.compiler.lists import weight_numbers
from espalier.compiler.machine_choice import MAX_LANES
from espalier.compiler.pipeline import compile_program
from espalier.compiler.tiling import WHOLE, Grid
from espalier.compress.balanced import Balanced
from espalier.cost.cycles import PhaseCycles, predict
from espalier.cost.memory import with_memory
from espalier.cost.traffic import traffic
from espalier.errors import UnsupportedError
from espalier.flow.cycles import by_phase, layer_macs
from espalier.frontend.torch_export import from_torch
from espalier.ir.differentiate import differentiate, gradient_name
from espalier.ir.graph import Graph
from espalier.ir.types import Fixed, Format
from espalier.numerics.live import block_grid, expand_blocks
from espalier.program.program import Program
from espalier.program.words import Opcode
from espalier.records import Bar, Figure, Provenance
from espalier.zoo import build, input_shape

NETWORKS = ("cnn1x", "cnn2x", "cnn4x", "vgg16", "alexnet", "mobilenetv1", "resnet20")
MULTIPLIERS = (1024, 2048, 4096)
PHASES = {Opcode.FORWARD: "FP", Opcode.BACKWARD: "BP", Opcode.UPDATE: "WU"}
ACTIVATION, WEIGHT, GRADIENT, WEIGHT_GRADIENT = Fixed.of(16, 8), Fixed.of(16, 12), Fixed.of(16, 12), Fixed.of(32, 16)
SEED = 0


@dataclass(frozen=True, slots=True)
class Setting:
    """Rows of the lattice, the part of the blocks that lives, and the bar; processing elements, and tiles of maps.

    ``balanced``: equally many blocks live for each block of results and on each element (``compress/balanced.py``).
    """

    rows: int
    density: float
    least: float
    elements: int = 1
    grid: Grid = WHOLE
    balanced: bool = False

    def __str__(self) -> str:
        shared = f"{self.elements} elements of " if self.elements > 1 else ""
        tiles = f", {self.grid[0]} × {self.grid[1]} tiles" if self.grid != WHOLE else ""
        live = "dense" if self.density == 1 else f"{1 - self.density:.0%} pruned"
        return f"{live}, {shared}{self.rows} row{'s' * (self.rows > 1)}{tiles}{', balanced' * self.balanced}"


SETTINGS = (Setting(16, 1.0, 95), Setting(32, 1.0, 95), Setting(16, 0.1, 90), Setting(4, 0.1, 90))
OF_NETWORK = {"mobilenetv1": (Setting(2, 1.0, 95, grid=(2, 2)), Setting(2, 0.1, 90, grid=(2, 2)),
                              Setting(1, 0.1, 90, 2, (2, 2), balanced=True))}  #: besides
ONE_IMAGE = 70  #: percent, at least, of the multipliers for a batch of one
ROWS_OF_ONE_IMAGE, ELEMENTS_OF_ONE_IMAGE = (4, 8, 16, 32, 64), (1, 2, 4, 8, 16)
SHARES = (0.5, 0.75)  #: of the memory that all activations take, where some are on chip and others are not
MHZ = 240  #: at which the bandwidths hold: bits / 8 × MHZ / beat_cycles
MEMORIES = {"DDR3-class, 7.7 GB/s": (512, MemoryTiming(latency=60, beat_cycles=2, queue=8)),
            "DDR4-class, 15.4 GB/s": (512, MemoryTiming(latency=60, queue=8)),
            "HBM-class port, 30.7 GB/s": (1024, MemoryTiming(latency=60, queue=8))}
IN_MEMORY = (SETTINGS[0], SETTINGS[2])


def in_fixed_point(name: str) -> tuple[Graph, dict[str, Format]]:
    """A zoo network in plain formats, which decide no cycle, and those of its gradients."""
    graph, _ = from_torch(build(name), input_shape(name), name)
    parameters = {value.name for value in graph.parameters}
    fixed = graph.with_formats({value.name: WEIGHT if value.name in parameters else ACTIVATION
                                for value in graph.values()})
    return fixed, {gradient_name(value.name): WEIGHT_GRADIENT if value.name in parameters else GRADIENT
                   for value in graph.values()}


def random_live(step: Graph, setting: Setting) -> dict[str, NDArray[np.bool_]]:
    """Whole blocks; of the first and the last layer with weights all."""
    rng = np.random.default_rng(SEED)
    live = {value.name: np.ones(value.shape, dtype=np.bool_) for value in step.parameters}
    layers = [layer for layer in legalise(step)[0] if layer.weight is not None]
    for layer in layers[1:-1]:
        assert layer.weight is not None, "constants are left out"
        blocks = rng.random(block_grid(layer.weight_shape, setting.rows)) < setting.density
        numbers = weight_numbers(layer)
        there = numbers >= 0
        live[layer.weight].reshape(-1)[numbers[there]] = expand_blocks(blocks, setting.rows, layer.weight_shape)[there]
    return live


def balanced_live(step: Graph, setting: Setting) -> dict[str, NDArray[np.bool_]]:
    """Of random weights those that live, in the layers that :func:`random_live` prunes."""
    rng = np.random.default_rng(SEED)
    rule = Balanced(density=setting.density, rows=setting.rows, elements=setting.elements)
    names = [layer.weight for layer in legalise(step)[0] if layer.weight is not None][1:-1]
    shapes = {value.name: value.shape for value in step.parameters}
    return random_live(step, setting) | rule({name: rng.standard_normal(shapes[name]) for name in names})


class Network:
    """A network of the zoo in a setting."""

    def __init__(self, name: str, setting: Setting) -> None:
        self.setting = setting
        self.graph, self.gradients = in_fixed_point(name)
        self.step = differentiate(self.graph, LOSS, self.gradients)
        self.keep((balanced_live if setting.balanced else random_live)(self.step, setting))

    def keep(self, live: dict[str, NDArray[np.bool_]]) -> None:
        """These weights live, no others."""
        self.live = live
        self.useful = {layer.name: layer_macs(layer, live) for layer in legalise(self.step)[0]}

    def program(self, lanes: int, port_bits: int = 0, *, stream: bool = False, grid: Grid = WHOLE,
                activation_depth: int = 0) -> Program:
        """For the smallest machine that holds it, but for an activation memory of that depth if it is smaller."""
        rows, elements = self.setting.rows, self.setting.elements
        machine = fitted_machine(self.step, self.live, rows, lanes, port_bits, stream=stream, grid=grid,
                                 elements=elements)[0]
        machine = replace(machine, trees=min(rows, MAX_UPDATE_UNITS // elements),
                          activation_depth=max(machine.activation_depth, activation_depth))
        return compile_program(self.graph, loss=LOSS, gradient_formats=self.gradients, live=self.live,
                               rules=plain_rules(self.graph.parameters), machine=machine)

    def busy(self, phases: Sequence[PhaseCycles]) -> dict[str, float]:
        """Percent of the multipliers in each phase and in the step, of the commands of a step.

        What moves between external memory and the chip belongs, with its waits, to the phase that follows; at the end
        to WU.
        """
        macs, cycles = dict.fromkeys(PHASES, 0), dict.fromkeys(PHASES, 0)
        waits = 0
        for phase in phases:
            if phase.opcode in PHASES:
                cycles[phase.opcode] += waits + phase.cycles
                waits = 0
            elif phase.opcode != Opcode.LOSS:
                waits += phase.cycles
        cycles[Opcode.UPDATE] += waits
        for phase in by_phase(phases):
            if phase.opcode in PHASES:
                macs[phase.opcode] += self.useful.get(phase.layer, 0)
        found = {PHASES[opcode]: macs[opcode] / cycles[opcode] for opcode in PHASES}
        found["step"] = sum(macs.values()) / cycles_of(phases)
        cells = self.setting.rows * self.setting.elements * prod(self.setting.grid)
        return {name: 100 * value / cells for name, value in found.items()}


def on_chip(name: str, network: Network) -> Iterator[Figure | Bar]:
    """Without external memory: no cycle depends on the number of lanes, but for the levels of the trees."""
    program = network.program(prod(network.setting.grid), grid=network.setting.grid)
    for multipliers in MULTIPLIERS:
        lanes = multipliers // (network.setting.rows * network.setting.elements)
        if lanes > MAX_LANES:
            continue
        sized = replace(program, machine=replace(program.machine, lanes=lanes))
        percent = network.busy(predict(sized)[: sized.entries_at["infer"]])
        head = f"{name}, {network.setting}, {multipliers} multipliers"
        yield from phase_figures(head, percent)
        yield Figure(f"{head}: on-chip memory", round(on_chip_mb(sized), 2), "MB", Provenance.ESTIMATED)
        yield from (Bar(f"{head}: {phase}", round(percent[phase], 2), ">=", network.setting.least)
                    for phase in PHASES.values())


def in_memory(name: str, network: Network, *, stream: bool) -> Iterator[Figure | Bar]:
    """With activations in external memory, and weights if they ``stream``."""
    for multipliers in MULTIPLIERS:
        lanes = multipliers // network.setting.rows
        place = f"{name}, {network.setting}, {multipliers} multipliers{', weights streaming' if stream else ''}"
        for label, (bits, timing) in MEMORIES.items():
            program = network.program(lanes, bits, stream=stream)
            base = predict(program)
            end = program.entries_at["infer"]
            alone, step = base[:end], with_memory(program, base, timing)[:end]
            head, percent, moved = f"{place}, {label}", network.busy(step), traffic(program)
            waits = cycles_of(step) / cycles_of(alone) - 1
            yield from phase_figures(head, percent)
            yield Figure(f"{head}: moved in a step", round((moved.read + moved.written) / 1e6, 2), "MB",
                         Provenance.ESTIMATED)
            yield Figure(f"{head}: waits", round(100 * waits, 3), "% of the step without", Provenance.ESTIMATED)
            for phase, roof in roofline(program, alone, timing).items():
                bound = network.busy(alone)[phase] * roof
                yield Figure(f"{head}: {phase}, roofline", round(bound, 2), "% of multipliers", Provenance.ESTIMATED)
                if bound >= network.setting.least:
                    yield Bar(f"{head}: {phase}", round(percent[phase], 2), ">=", network.setting.least)
        yield Figure(f"{place}, spilling: on-chip memory", round(on_chip_mb(program), 2), "MB", Provenance.ESTIMATED)
        if stream:
            continue
        whole = fitted_machine(network.step, network.live, network.setting.rows, lanes)[0].activation_depth
        for what, depth in (("spilling", program.machine.activation_depth), ("all on chip", whole)):
            yield Figure(f"{place}: activation memory, {what}", round(depth * program.machine.vector_bits / 8e6, 2),
                         "MB", Provenance.ESTIMATED)
        for share, (label, (bits, timing)) in product(SHARES if multipliers == MULTIPLIERS[-1] else (),
                                                      MEMORIES.items()):
            program = network.program(lanes, bits, activation_depth=int(share * whole))
            base = predict(program)
            waits = memory_waits(program, base, timing) / cycles_of(base[: program.entries_at["infer"]])
            yield Figure(f"{place}, {label}, {share:.0%} of the activation memory: waits", round(100 * waits, 3),
                         "% of the step without", Provenance.ESTIMATED)


def roofline(program: Program, phases: Sequence[PhaseCycles], timing: MemoryTiming) -> dict[str, float]:
    """The part of each phase's time, 0..1, in which the port does not hold it up, if all else overlaps."""
    spent = {name: cycles_of([phase for phase in phases if PHASES.get(phase.opcode) == name])
             for name in PHASES.values()}
    step = program.commands[: program.entries_at["infer"]]
    loss = next(number for number, command in enumerate(step) if command.opcode == Opcode.LOSS)
    out = sum(command.beats for command in step[:loss] if command.spill or command.opcode == Opcode.FETCH)
    back = sum(command.beats for command in step) - out  # images are read for FP, too: once more than they need be
    forward = min(1.0, spent["FP"] / max(1, timing.beat_cycles * out))
    backward = min(1.0, (spent["BP"] + spent["WU"]) / max(1, timing.beat_cycles * back))
    return {"FP": forward, "BP": backward, "WU": backward}


def on_chip_mb(program: Program) -> float:
    """All memories of the machine."""
    return sum(words * width for words, width in program.machine.memories().values()) / 8e6


def one_image(name: str) -> Iterator[Figure | Bar]:
    """A batch of one image, its maps in tiles, on the lattices that are busiest; and on one of them, in one lane."""
    multipliers = MULTIPLIERS[0]
    head, found = f"{name}, {multipliers} multipliers, batch 1", []
    for elements, rows in product(ELEMENTS_OF_ONE_IMAGE, ROWS_OF_ONE_IMAGE):
        lanes = multipliers // (elements * rows)
        down = 1 << (lanes.bit_length() - 1) // 2
        setting = Setting(rows, 1.0, ONE_IMAGE, elements, (down, lanes // down))
        try:
            found.append((busy_step(name, setting), setting))
        except UnsupportedError:  # no such tiles
            continue
    for elements in sorted({setting.elements for _, setting in found}):
        step, setting = max((item for item in found if item[1].elements == elements), key=itemgetter(0))
        yield Figure(f"{head}, {setting}: step", round(step, 2), "% of multipliers", Provenance.ESTIMATED)
    alone = busy_step(name, Setting(64, 1.0, ONE_IMAGE)) * 64 / multipliers
    yield Figure(f"{head}, 64 rows, without tiles: step", round(alone, 2), "% of multipliers", Provenance.ESTIMATED)
    yield Bar(f"{head}: step", round(max(step for step, _ in found), 2), ">=", ONE_IMAGE)


def busy_step(name: str, setting: Setting) -> float:
    """Percent of the multipliers in a step of a batch of one image, its tiles a lane each."""
    network = Network(name, setting)
    program = network.program(prod(setting.grid), grid=setting.grid)
    return network.busy(predict(program)[: program.entries_at["infer"]])["step"]


def memory_waits(program: Program, base: Sequence[PhaseCycles], timing: MemoryTiming) -> int:
    """Cycles that one step waits."""
    end = program.entries_at["infer"]
    return cycles_of(with_memory(program, base, timing)[:end]) - cycles_of(base[:end])


def cycles_of(phases: Sequence[PhaseCycles]) -> int:
    return sum(phase.cycles for phase in phases)


def phase_figures(head: str, percent: dict[str, float]) -> Iterator[Figure]:
    yield from (Figure(f"{head}: {phase}", round(value, 2), "% of multipliers", Provenance.ESTIMATED)
                for phase, value in percent.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    found: list[Figure | Bar] = []
    for name in parser.parse_args().networks:
        for setting in (*SETTINGS, *OF_NETWORK.get(name, ())):
            network = Network(name, setting)
            found += on_chip(name, network)
            for stream in (False, True) if setting in IN_MEMORY else ():
                found += in_memory(name, network, stream=stream)
            print(name, setting, flush=True)
        found += one_image(name)
    write_found("utilisation_at_scale", found, seeds=[SEED],
                notes=f"External memory beside machines of {MHZ} MHz. What names none has all tensors on chip.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
