"""How busy the multipliers of large machines are, by phase: the cycles of every command, predicted.

    python benchmarks/utilisation_at_scale.py

The model's cycles are those of the simulated Verilog (``cost_model.py``), so what is estimated here is what would be
simulated. A step is of one group, so of as many images as the machine has lanes; every tensor is on chip, whatever
that takes: the memory is a figure, too. Lattices have 16 rows and as many lane trees; those of pruned networks 4 rows
as well. Live blocks are random, a tenth of each layer's, and all of the first and of the last one's. Utilisation is
useful MACs over multipliers times cycles, all of a phase's commands with their fill and drain; the step has the loss,
too.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace

import numpy as np
from harness import LOSS, fitted_machine, plain_rules, write_results
from numpy.typing import NDArray

from espalier.compiler.legalise import legalise
from espalier.compiler.lists import weight_numbers
from espalier.compiler.pipeline import compile_program
from espalier.cost.cycles import predict
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
    """Rows of the lattice, and the part of the blocks that lives, and the bar."""

    rows: int
    density: float
    least: float

    def __str__(self) -> str:
        return f"{'dense' if self.density == 1 else f'{1 - self.density:.0%} pruned'}, {self.rows} rows"


SETTINGS = (Setting(16, 1.0, 95), Setting(16, 0.1, 90), Setting(4, 0.1, 90))


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


def measured(name: str, setting: Setting) -> list[tuple[int, dict[str, float], Program]]:
    """For each number of multipliers: percent of them busy in each phase and in the step, and the Program."""
    graph, gradients = in_fixed_point(name)
    step = differentiate(graph, LOSS, gradients)
    live = random_live(step, setting)
    machine = replace(fitted_machine(step, live, setting.rows, 1)[0], trees=setting.rows)
    program = compile_program(graph, loss=LOSS, gradient_formats=gradients, live=live,
                              rules=plain_rules(graph.parameters), machine=machine)
    useful = {layer.name: layer_macs(layer, live) for layer in legalise(step)[0]}
    found = []
    for multipliers in MULTIPLIERS:
        sized = replace(program, machine=replace(machine, lanes=multipliers // setting.rows))
        found.append((multipliers, busy(sized, useful), sized))
    return found


def busy(program: Program, useful: dict[str, int]) -> dict[str, float]:
    rows = program.machine.rows
    phases = by_phase(predict(program)[: program.entries_at["infer"]])
    macs, cycles = dict.fromkeys(PHASES, 0), dict.fromkeys(PHASES, 0)
    for phase in phases:
        if phase.opcode in PHASES:
            macs[phase.opcode] += useful[phase.layer]
            cycles[phase.opcode] += phase.cycles
    found = {PHASES[opcode]: 100 * macs[opcode] / (rows * cycles[opcode]) for opcode in PHASES}
    return found | {"step": 100 * sum(macs.values()) / (rows * sum(phase.cycles for phase in phases))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    figures, bars = [], []
    for name in parser.parse_args().networks:
        for setting in SETTINGS:
            for multipliers, percent, program in measured(name, setting):
                head = f"{name}, {setting}, {multipliers} multipliers"
                figures += [Figure(f"{head}: {phase}", round(value, 2), "% of multipliers", Provenance.ESTIMATED)
                            for phase, value in percent.items()]
                bits = sum(words * width for words, width in program.machine.memories().values())
                figures.append(Figure(f"{head}: on-chip memory", round(bits / 8e6, 2), "MB", Provenance.ESTIMATED))
                bars += [Bar(f"{head}: {phase}", round(percent[phase], 2), ">=", setting.least)
                         for phase in PHASES.values()]
            print(name, setting, {phase: round(value, 1) for phase, value in percent.items()}, flush=True)
    write_results("utilisation_at_scale", seeds=[SEED], figures=figures, bars=bars,
                  notes="All tensors on chip: with external memory these are the limits that its bandwidth allows.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
