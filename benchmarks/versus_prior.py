"""The engine beside published FPGA trainers, at their multipliers, clock and memory: GOPS and epoch time.

    python benchmarks/versus_prior.py

Cycles are those of the cycle model, which equal the simulated Verilog's (``cost_model.py``), with the waits for
external memory; a step has FP, BP, WU, update and loss of one group, so of as many images as there are lanes, or fewer
where lanes hold tiles of maps. Clocks are the published ones: none of these machines has been routed. Activations are
spilled as far as they can be; where all weights, masters and momenta do not fit the published part beside the rest,
those of the largest layers stream from external memory. Gradients are on chip. Whether that fits is a bar.

Three throughputs, never one: *executed* counts MACs that have a live weight and a tap inside the image, *nominal*
counts all taps of a dense network as papers do (for a pruned one it is the dense-equivalent), *peak* is multipliers ×
clock × 2.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from harness import LOSS, fitted_machine, plain_rules, write_results
from numpy.typing import NDArray
from utilisation_at_scale import SEED, Setting, in_fixed_point, memory_waits, random_live

from espalier.arch.machine import Machine
from espalier.arch.memory import MemoryTiming
from espalier.compiler.legalise import legalise
from espalier.compiler.pipeline import compile_program
from espalier.compiler.tiling import WHOLE, Grid
from espalier.cost.cycles import predict
from espalier.cost.traffic import traffic
from espalier.flow.cycles import layer_macs, nominal_macs
from espalier.ir.differentiate import differentiate
from espalier.ir.graph import Graph
from espalier.records import Bar, Figure, Provenance

EPOCH_IMAGES = 50_000
DDR = MemoryTiming(latency=60, queue=8)  #: a beat in each cycle
STRATIX10_GX_2800 = 28.6  #: MB of M20K (229 Mb, Intel's product table)
ZCU102 = 4.0              #: MB of block RAM (32.1 Mb, AMD DS891)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """A published trainer: what it ran, with what, and how fast it was. ``source`` tells how sure that is."""

    name: str
    network: str
    rows: int
    lanes: int
    mhz: int
    port_bits: int
    gops: float
    memory_mb: float
    source: str
    times: float | None = None  #: bar on nominal GOPS over ``gops``
    grid: Grid = WHOLE          #: of tiles of a map, a lane each: fewer images, less memory

    @property
    def images(self) -> int:
        """Of a step."""
        return self.lanes // prod(self.grid)


PRIORS = (
    *(Prior(name=f"B (Venkataramanaiah et al., FPL'19) {size}", network=f"cnn{size.lower()}", rows=rows, lanes=64,
            mhz=240, port_bits=512, gops=gops, memory_mb=STRATIX10_GX_2800, source=source, times=times)
      for size, rows, gops, source, times in (
          ("1X", 16, 163.0, "remembered", 3.0), ("2X", 32, 282.0, "remembered", 3.0),
          ("4X", 64, 479.0, "abstract", 4.0))),
    *(Prior(name=f"EF-Train (TODAES'22), VGG-16{tiles}", network="vgg16", rows=16, lanes=16, mhz=100, port_bits=128,
            gops=46.99, memory_mb=ZCU102, source="paper; FP32, of VGG-16 and others", grid=grid)
      for tiles, grid in (("", WHOLE), (" in 1 × 2 tiles", (1, 2)))))
PRUNED_ROWS = 16  #: of the lattice for pruned networks, and of their blocks


def chosen_machine(prior: Prior, step: Graph, live: dict[str, NDArray[np.bool_]]) -> tuple[Machine, bool]:
    """The smallest that holds the network, and whether weights stream: only where they do not fit the part."""
    for streams in (False, True):
        found = fitted_machine(step, live, prior.rows, prior.lanes, prior.port_bits, stream=streams, grid=prior.grid)[0]
        machine = replace(found, trees=prior.rows)
        if memory_mb(machine) <= prior.memory_mb:
            break
    return machine, streams


def memory_mb(machine: Machine) -> float:
    return sum(words * width for words, width in machine.memories().values()) / 8e6


def compared(prior: Prior, density: float) -> tuple[list[Figure], list[Bar]]:
    """Figures of one network at one size, dense or pruned."""
    if density < 1:
        prior = replace(prior, rows=PRUNED_ROWS, lanes=prior.rows * prior.lanes // PRUNED_ROWS)
    setting = Setting(prior.rows, density, 0)
    graph, gradients = in_fixed_point(prior.network)
    step = differentiate(graph, LOSS, gradients)
    live = random_live(step, setting)
    machine, streams = chosen_machine(prior, step, live)
    program = compile_program(graph, loss=LOSS, gradient_formats=gradients, live=live,
                              rules=plain_rules(graph.parameters), machine=machine)
    phases = predict(program)
    waits = memory_waits(program, phases, DDR)
    cycles = sum(phase.cycles for phase in phases[: program.entries_at["infer"]]) + waits
    layers = legalise(step)[0]
    times = {layer.name: 1 + (layer.input_gradient_format is not None) + (layer.weight_gradient_format is not None)
             for layer in layers}
    executed = sum(times[layer.name] * layer_macs(layer, live) for layer in layers)
    nominal = sum(times[layer.name] * nominal_macs(layer) for layer in layers)
    gops = {name: 2 * macs * prior.images * prior.mhz / cycles / 1e3
            for name, macs in (("executed", executed), ("nominal", nominal))}
    moved = traffic(program)
    kind = "dense" if density == 1 else f"{1 - density:.0%} pruned"
    head = f"{prior.name}, {kind}, {prior.rows}×{prior.lanes} at {prior.mhz} MHz"
    rows = [("executed", gops["executed"], "GOPS"),
            ("nominal" if density == 1 else "dense-equivalent", gops["nominal"], "GOPS"),
            ("peak", 2 * machine.multipliers * prior.mhz / 1e3, "GOPS"),
            ("over the published", gops["nominal"] / prior.gops, "times"),
            ("epoch of 50,000 images", EPOCH_IMAGES / prior.images * cycles / prior.mhz / 1e6, "s"),
            ("waits for memory", 100 * waits / (cycles - waits), "% of the step without"),
            ("moved in a step", (moved.read + moved.written) / 1e6, "MB"), ("on-chip memory", memory_mb(machine), "MB"),
            ("weights that stream from external memory", program.external_columns * machine.rows if streams else 0,
             "weights")]
    figures = [Figure(f"{head}: {name}", round(value, 3), unit, Provenance.ESTIMATED) for name, value, unit in rows]
    figures.append(Figure(f"{head}: published ({prior.source})", prior.gops, "GOPS", Provenance.MEASURED))
    print(head, [figure.value for figure in figures], flush=True)
    bars = []
    if density == 1:
        if prior.times is not None:
            bars.append(Bar(f"{head}: nominal GOPS over the published", round(gops["nominal"] / prior.gops, 3), ">=",
                            prior.times))
        bars.append(Bar(f"{head}: MB on chip", round(memory_mb(machine), 2), "<=", prior.memory_mb))
    return figures, bars


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    figures, bars = [], []
    for prior in PRIORS:
        for density in (1.0, 0.1):
            more, held = compared(prior, density)
            figures += more
            bars += held
    write_results("versus_prior", seeds=[SEED], figures=figures, bars=bars,
                  notes="B's batch is 40, in groups of 20; here a group is as many images as lanes hold.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
