"""Predicted cycles and bytes against simulated ones on random networks, machines and memories; VGG-16's prediction.

    python benchmarks/cost_model.py [--cases 150]

Cases are for each machine. A case is a random network (kernels, strides, paddings, sums, pools, biases, linear layers,
live blocks) that trains for a batch and infers a group in simulation of the Verilog; busy cycles and issued steps of
every command are compared. On the machines with a port to external memory each case has a memory of its own (latency,
bandwidth, bursts that it holds) and a network that spills, slower or faster than the port writes, or, on machines with
panels, whose weights, masters and momenta stream; the bytes moved are compared, too. VGG-16 has random live blocks.
Its machines have the multipliers of the parts named, and on chip the memories for all of it, which no part has.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from harness import LOSS, fitted_machine, write_results

from espalier.arch.machine import Machine
from espalier.arch.memory import MemoryTiming
from espalier.cost.cycles import PhaseCycles, predict
from espalier.cost.memory import with_memory
from espalier.cost.traffic import Traffic, traffic
from espalier.engines.base import Network
from espalier.engines.rtl import RtlEngine
from espalier.errors import FitError, UnsupportedError
from espalier.numerics.fixed import Fixed
from espalier.numerics.window import Window
from espalier.program.program import Program
from espalier.records import Bar, Figure, Provenance

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from bench.networks import Chain, Formats, all_live, compiled, random_live, random_words

DEPTHS = {"activation_depth": 4096, "gradient_depth": 4096, "weight_depth": 8192, "index_depth": 16384,
          "table_depth": 4096, "program_depth": 64}
PANELS = {"weight_depth": 20, "panel_depth": 400, "state_depth": 90, "run_depth": 4096, "program_depth": 1024}
MACHINES = (Machine(rows=1, lanes=2, acc_bits=48, **DEPTHS), Machine(rows=2, lanes=3, acc_bits=48, **DEPTHS),
            Machine(rows=4, lanes=2, word_bits=8, acc_bits=32, groups=True, **DEPTHS),
            Machine(rows=8, lanes=1, acc_bits=48, trees=2, **DEPTHS),
            Machine(rows=16, lanes=5, word_bits=8, acc_bits=32, groups=True, trees=16, **DEPTHS),
            Machine(rows=2, lanes=3, acc_bits=48, port_bits=64, **{**DEPTHS, "activation_depth": 500}),
            Machine(rows=4, lanes=2, word_bits=8, acc_bits=32, groups=True, trees=2, port_bits=32,
                    **{**DEPTHS, "activation_depth": 700}),
            Machine(rows=2, lanes=2, acc_bits=48, port_bits=64, **{**DEPTHS, **PANELS, "weight_depth": 100}),
            Machine(rows=4, lanes=1, word_bits=8, acc_bits=32, trees=4, port_bits=128,
                    **{**DEPTHS, **PANELS, "activation_depth": 900}),
            Machine(elements=2, rows=4, lanes=2, acc_bits=48, **DEPTHS),
            Machine(elements=4, rows=2, lanes=3, word_bits=8, acc_bits=32, groups=True, trees=2, **DEPTHS),
            Machine(rows=4, lanes=2, acc_bits=48, trees=2, norm_depth=128, **DEPTHS),
            Machine(rows=2, lanes=8, grid_y=2, grid_x=2, acc_bits=48, **DEPTHS),
            Machine(rows=1, lanes=6, grid_y=3, grid_x=2, word_bits=8, acc_bits=32, norm_depth=128, **DEPTHS))
FORMATS = {16: Formats(gradient=Fixed.of(16, 12)),
           8: Formats(weight=Fixed.of(8, 6), result=Fixed.of(8, 4), gradient=Fixed.of(8, 4),
                      weight_gradient=Fixed.of(32, 6))}
DENSITIES = (1.0, 0.7, 0.3, 0.1, 0.03, 0.0)
MOST_CYCLES = 150_000  #: of a case's training step; what takes longer is drawn again
STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  #: channels and convolutions of VGG-16
ROWS = 16
PARTS = {"4,096 multipliers": 4096, "VU9P (6,840 DSPs)": 6840, "ZU9EG (2,520 DSPs)": 2520,
         "Stratix 10 GX 2800 (11,520 multipliers)": 11520}
RUNS = 5


def random_chain(rng: np.random.Generator, machine: Machine) -> Chain:
    """Up to three convolutions, some with a sum behind them, then one or two linear layers.

    Batch norms behind some of all that, on a machine that has them; maps of whole tiles, on one that has those.
    """
    formats = FORMATS[machine.word_bits]
    size = ([grid << int(rng.integers(1, 4)) for grid in (machine.grid_y, machine.grid_x)] if machine.tiles > 1
            else map(int, rng.integers(1, 15, 2)))
    chain = Chain((int(rng.integers(1, 7)), *size), formats.result)
    for _ in range(rng.integers(4)):
        kernel = tuple(int(min(rng.integers(1, 8), 2 * size)) for size in chain.x.shape[1:])
        least = [max(0, -(-(taps - size) // 2)) for taps, size in zip(kernel, chain.x.shape[1:], strict=True)]
        low, high = ([int(rng.integers(*pads)) for pads in zip(least, kernel, strict=True)] for _ in range(2))
        stride = tuple(int(rng.choice([1, 1, 2, 4])) if size >= 4 else 1 for size in chain.x.shape[1:])
        if machine.tiles > 1:  # tiles stay whole
            kernel = tuple(int(rng.choice([1, 3, 5])) for _ in range(2))
            low = high = [taps // 2 for taps in kernel]
        chain.conv(int(rng.integers(1, 20)), kernel, bias=bool(rng.integers(2)), formats=formats,
                   window=Window(kernel, stride, (*low, *high)))
        if machine.norm_depth and rng.integers(2):
            chain.norm(formats)
        if rng.integers(2):
            chain.relu()
        if not rng.integers(3):
            start = chain.x
            chain.conv(start.shape[0], (3, 3), (1, 1, 1, 1), formats=formats).add(start)
            if rng.integers(2):
                chain.relu()
            continue
        if not any(size % 2 for size in chain.x.shape[1:]) and rng.integers(2):
            chain.pool()
    for number in range(rng.integers(1, 3)):
        if number:
            chain.relu()
        chain.linear(int(rng.integers(2, 17)), bias=bool(rng.integers(2)), formats=formats)
        if machine.norm_depth and not rng.integers(3):
            chain.norm(formats)
    return chain


def random_case(rng: np.random.Generator, machine: Machine) -> tuple[Network, MemoryTiming]:
    """A random network that the machine holds, not too long to simulate, and a memory; with a port it spills there."""
    while True:
        chain = random_chain(rng, machine)
        loss = LOSS if rng.integers(2) else "square_hinge"
        try:
            densities = {layer.name: float(rng.choice(DENSITIES)) for layer in chain.layers()}
            network = compiled(chain, machine, live=random_live(rng, chain, machine.rows, densities), loss=loss)
        except (FitError, UnsupportedError):
            continue
        program, timing = network.program, MemoryTiming(
            latency=int(rng.integers(200)), beat_cycles=int(rng.choice([1, 1, 2, 3, 8])), queue=int(rng.integers(1, 9)))
        cycles = sum(phase.cycles for phase in with_memory(program, predict(program), timing))
        if cycles <= MOST_CYCLES and uses_memory(program):
            return network, timing


def uses_memory(program: Program) -> bool:
    """Whether there is no port, or it has something to do: weights to stream where there are panels, else to spill."""
    if program.machine.panel_depth:
        return program.external_columns > 0
    return not program.machine.port_bits or any(command.spill for command in program.commands)


def simulated(rng: np.random.Generator, network: Network, timing: MemoryTiming
              ) -> tuple[list[PhaseCycles], int, Traffic]:
    """The cycles of each command for one group, how many the simulation took, and the bytes that a group moved."""
    machine, program = network.program.machine, network.program
    groups, step = 1 + machine.groups, program.entries_at["infer"]
    shape = groups * machine.images, *network.graph.inputs[0].shape
    images = random_words(rng, program.image_format, shape, 0.5)
    labels = rng.integers(0, network.graph.outputs[1].shape[0], len(images))
    engine = RtlEngine(network, timing=timing if machine.port_bits else None)
    engine.train(images, labels, len(images))
    moved = Traffic(read=0, written=0)
    if machine.port_bits:
        found = engine.simulation.memory_traffic()
        moved = Traffic(**{name: beats * machine.port_bits // 8 // groups for name, beats in (
            ("read", found.beats_read), ("written", found.beats_written))})
    engine.infer(images[: machine.images], labels[: machine.images])
    counted = engine.phase_cycles()
    engine.close()
    one = [replace(phase, cycles=phase.cycles / groups, steps=tuple(steps / groups for steps in phase.steps))
           for phase in counted[:step]]
    return [*one, *counted[step:]], sum(phase.cycles for phase in counted), moved


def compare(machine: Machine, cases: int, seed: int) -> Iterator[tuple[str, int]]:
    """What there was to count on one machine."""
    rng = np.random.default_rng([seed, machine.rows, machine.lanes, machine.port_bits, *range(1, machine.elements)])
    compared = differing = cycles = unexpected = adding = 0
    for _ in range(cases):
        network, timing = random_case(rng, machine)
        found, run, moved = simulated(rng, network, timing)
        predicted = with_memory(network.program, predict(network.program), timing)
        unexpected += moved != traffic(network.program)
        compared += len(found)
        adding += sum(command.add for command in network.program.commands)
        differing += sum(a != b for a, b in zip(found, predicted, strict=True))
        cycles += run
    yield from (("networks", cases), ("commands compared", compared), ("commands that differ", differing),
                ("commands that add", adding), ("networks that move other bytes", unexpected),
                ("cycles simulated", cycles))


def vgg16(size: int) -> Chain:
    """With three linear layers and 1,000 classes for 224×224 images, else as in the zoo."""
    chain = Chain((3, size, size))
    for channels, depth in STAGES:
        for _ in range(depth):
            chain.conv(channels, (3, 3), (1, 1, 1, 1)).relu()
        chain.pool()
    if size == 224:
        chain.linear(4096).relu().linear(4096).relu()
    return chain.linear(1000 if size == 224 else 10)


def compile_vgg16(size: int, density: float, seed: int) -> tuple[Program, float]:
    """The Program for 16 × 256 multipliers, and the seconds it took to compile."""
    chain, rng = vgg16(size), np.random.default_rng(seed)
    live = all_live(chain) if density == 1 else random_live(rng, chain, ROWS, density)
    machine, _ = fitted_machine(chain.training_graph(), live, ROWS, PARTS["4,096 multipliers"] // ROWS)
    machine = replace(machine, max_classes=max(16, chain.x.shape[0]))
    began = time.perf_counter()
    program = compiled(chain, machine, live=live).program
    return program, time.perf_counter() - began


def vgg16_figures(size: int, density: float, seed: int) -> tuple[list[Figure], Bar]:
    """Cycles of a training step on machines as large as the parts, and the time that takes."""
    case = f"VGG-16, {size}×{size}, density {density:g}"
    program, compiling = compile_vgg16(size, density, seed)
    figures = [Figure(f"{case}: compile", compiling, "s", Provenance.MEASURED),
               Figure(f"{case}: index entries", len(program.entries), "entries", Provenance.ESTIMATED)]
    seconds = []
    for name, multipliers in PARTS.items():
        lanes = multipliers // ROWS
        larger = replace(program, machine=replace(program.machine, lanes=lanes))
        for _ in range(RUNS):
            began = time.perf_counter()
            predicted = predict(larger)
            seconds.append(time.perf_counter() - began)
        step = predicted[: program.entries_at["infer"]]
        cycles, issued = sum(phase.cycles for phase in step), sum(phase.issued for phase in step)
        figures += [Figure(f"{case}, {name}, {ROWS}×{lanes}: {what}", value, unit, Provenance.ESTIMATED)
                    for what, value, unit in ((f"training step of {lanes} images", cycles, "cycles"),
                                              ("cycles with a lattice step", issued / cycles, "1"))]
    taken = float(np.median(seconds))
    figures.append(Figure(f"{case}: prediction, median of {len(seconds)}", taken, "s", Provenance.MEASURED))
    print(case, f"compiled in {compiling:.1f} s, predicted in {taken:.2f} s", flush=True)
    return figures, Bar(f"{case}: seconds per prediction", taken, "<=", 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    figures: list[Figure] = []
    totals: dict[str, int] = {}
    for machine in MACHINES:
        case = (f"{f'elements={machine.elements} ' if machine.elements > 1 else ''}"
                f"rows={machine.rows} lanes={machine.lanes}{' groups' if machine.groups else ''}"
                f"{f' port={machine.port_bits}' if machine.port_bits else ''}"
                f"{f' norms={machine.norm_depth}' if machine.norm_depth else ''}"
                f"{f' grid={machine.grid_y}x{machine.grid_x}' if machine.tiles > 1 else ''}")
        for what, value in compare(machine, arguments.cases, arguments.seed):
            figures.append(Figure(f"{case}: {what}", value, what.split()[0], Provenance.SIMULATED))
            totals[what] = totals.get(what, 0) + value
            print(case, what, value, flush=True)
    bars = [Bar("random networks × machines × memories", totals["networks"], ">=", 1000),
            Bar("commands whose cycles or issued steps differ", totals["commands that differ"], "==", 0),
            Bar("networks that move other bytes", totals["networks that move other bytes"], "==", 0)]
    for size in (32, 224):
        for density in (1.0, 0.1):
            found, bar = vgg16_figures(size, density, arguments.seed)
            figures += found
            bars.append(bar)
    write_results("cost_model", seeds=[arguments.seed], figures=figures, bars=bars,
                  notes="Seconds were taken while other programs used both cores.")


if __name__ == "__main__":
    main()
