"""Lattices of few rows that share the work of a layer, against one of as many rows: how busy, and how idle, they are.

    python benchmarks/elements.py

Blocks of sparsity have the rows of a lattice as edge: a small edge costs less accuracy (``locality.py``), but leaves a
machine of many multipliers with as many more lanes, so that a step takes more images at once, and each of its memories
is as much wider. Processing elements keep the lanes: each has its own weights, index lists and part of the
activations, and of the gradients a copy. All wait for the slowest of them at each tile of FP and BP, and at each layer
of WU.

Every network of the zoo on 1,024 multipliers, 64 lanes: dense, with a tenth of the blocks of every layer between the
first and the last at random, and with as many that are balanced (``compress/balanced.py``). Busy is useful MACs over
multipliers times cycles, idle is the time without a step of a lattice. All is predicted by the model whose cycles are
those of the simulated Verilog (``cost_model.py``); every tensor is on chip, whatever that takes. Then CNN 1X in
simulation of the Verilog, in which one element may idle more than another.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
from harness import write_found
from utilisation_at_scale import NETWORKS, PHASES, SEED, Network, Setting, balanced_live, on_chip_mb

from espalier.cost.cycles import PhaseCycles, predict
from espalier.engines import base
from espalier.engines.rtl import RtlEngine
from espalier.records import Bar, Figure, Provenance

LATTICES = ((16, 1), (8, 2), (4, 4), (2, 8))  #: rows of each, and how many
LANES, DENSITY = 64, 0.1
LARGE = 4_000_000  #: weights of a network whose lists by 2 × 2 blocks take too long to make here
SIMULATED, SIMULATED_LANES = ("cnn1x", 4, 4), 2
AT_RANDOM, BALANCED = "at random", "balanced"


def networks(name: str) -> Iterator[tuple[str, Network]]:
    """Each lattice with each pattern of live blocks."""
    for rows, elements in LATTICES:
        dense = Network(name, Setting(rows, 1.0, 95, elements))
        if rows < 4 and sum(mask.size for mask in dense.live.values()) > LARGE:
            continue
        yield "dense", dense
        sparse = Network(name, Setting(rows, DENSITY, 90, elements))
        yield AT_RANDOM, sparse
        sparse.keep(balanced_live(sparse.step, sparse.setting))
        yield BALANCED, sparse


def idle(phases: tuple[PhaseCycles, ...]) -> dict[str, list[float]]:
    """Percent of each phase in which an element makes no step, for each element."""
    found = {}
    for opcode, name in PHASES.items():
        own = [phase for phase in phases if phase.opcode == opcode]
        cycles = sum(phase.cycles for phase in own)
        found[name] = [100 * (1 - sum(steps) / cycles) for steps in zip(*(phase.steps for phase in own), strict=True)]
    return found


def predicted(name: str) -> Iterator[Figure | Bar]:
    for pattern, network in networks(name):
        program = network.program(LANES)
        step = predict(program)[: program.entries_at["infer"]]
        busy, waits = network.busy(step), idle(step)
        head = f"{name}, {network.setting}" + ("" if pattern == "dense" else f", {pattern}")
        yield from (Figure(f"{head}: {phase}", round(percent, 2), "% of multipliers", Provenance.ESTIMATED)
                    for phase, percent in busy.items())
        yield from (Figure(f"{head}: {phase}, idle", round(sum(parts) / len(parts), 2), "% of the time",
                           Provenance.ESTIMATED) for phase, parts in waits.items())
        yield Figure(f"{head}: on-chip memory", round(on_chip_mb(program), 2), "MB", Provenance.ESTIMATED)
        yield from (Bar(f"{head}: {phase}", round(busy[phase], 2), ">=", network.setting.least)
                    for phase in PHASES.values())
        print(head, {phase: round(percent, 1) for phase, percent in busy.items()}, flush=True)


def simulated() -> Iterator[Figure | Bar]:
    """A step of one network, of each pattern, on the Verilog."""
    name, rows, elements = SIMULATED
    for pattern in (AT_RANDOM, BALANCED):
        network = Network(name, Setting(rows, DENSITY, 90, elements))
        if pattern == BALANCED:
            network.keep(balanced_live(network.step, network.setting))
        program = network.program(SIMULATED_LANES)
        engine = RtlEngine(base.Network(graph=network.step, program=program, rules={}, live=network.live))
        rng = np.random.default_rng(SEED)
        engine.train(rng.integers(-200, 200, (SIMULATED_LANES, *program.image)),
                     rng.integers(0, 10, SIMULATED_LANES), SIMULATED_LANES)
        end = program.entries_at["infer"]
        counted = engine.phase_cycles()[:end]
        engine.close()
        head = f"{name}, {network.setting}, {pattern}, simulated"
        for phase, parts in idle(counted).items():
            for which, value in (("busiest", min(parts)), ("idlest", max(parts))):
                yield Figure(f"{head}: {phase}, idle, {which} element", round(value, 2), "% of the time",
                             Provenance.SIMULATED)
        yield Bar(f"{head}: commands other than predicted",
                  sum(a != b for a, b in zip(counted, predict(program)[:end], strict=True)), "==", 0)


def main() -> int:
    found: list[Figure | Bar] = []
    for name in NETWORKS:
        found += predicted(name)
    found += simulated()
    write_found("elements", found, seeds=[SEED],
                notes=f"{LANES} lanes; of a step the loss is a part. Live blocks are of random weights.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
