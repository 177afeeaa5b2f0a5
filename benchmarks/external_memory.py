"""Activations and weights in external memory: is every word right, and how much memory on chip does it save?

    python benchmarks/external_memory.py

One training step of real networks on real images, all activations that can be spilled, and then also with streaming
weights, masters and momenta of the largest layers, against a memory with latency, refresh and stalls on every channel:
RTL against interpreter, the rules of AXI4, and the bytes that the cost model says.
What waits cost on large lattices is in ``utilisation_at_scale.py``.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

from bit_exact import differing
from harness import fitted_machine, prepare, write_results

from espalier.arch.memory import MemoryTiming
from espalier.cost.traffic import traffic
from espalier.engines.interpreter import InterpreterEngine
from espalier.engines.rtl import RtlEngine
from espalier.records import Bar, Figure, Provenance

STALLING = MemoryTiming(latency=60, refresh_every=1900, refresh_cycles=80, stalls=(30, 30, 30, 30, 30), seed=1)


@dataclass(frozen=True, slots=True)
class Case:
    """A network in simulation: rows, lanes and bits of the port, and whether weights stream."""

    network: str
    density: float
    rows: int
    lanes: int
    port_bits: int
    stream: bool = False

    def __str__(self) -> str:
        return (f"{self.network}, {self.density:.0%} live, {self.rows}×{self.lanes}, port of {self.port_bits} bits"
                + (", weights streaming" if self.stream else ""))


CASES = (Case("cnn1x", 1.0, 8, 4, 64), Case("resnet20", 0.1, 8, 2, 32), Case("vgg16", 0.1, 8, 2, 128),
         Case("cnn1x", 1.0, 8, 4, 64, stream=True), Case("resnet20", 0.1, 8, 2, 32, stream=True),
         Case("vgg16", 0.1, 8, 2, 128, stream=True))


def simulated(case: Case) -> tuple[list[Figure], list[Bar]]:
    """One step in RTL simulation, with stalls."""
    prepared = prepare(case.network, "cifar10", rows=case.rows, lanes=case.lanes, density=case.density, probe=32,
                       dense_depths=False, port_bits=case.port_bits, stream=case.stream)
    program = prepared.network.program
    rtl, reference = RtlEngine(prepared.network, timing=STALLING), InterpreterEngine(prepared.network)
    images, labels = prepared.images[:case.lanes], prepared.labels[:case.lanes]
    for engine in (rtl, reference):
        engine.load(prepared.state)
    _, words, wrong = differing(rtl.traced_step(images, labels), reference.traced_step(images, labels))
    found, expected = rtl.simulation.memory_traffic(), traffic(program)
    rtl.close()
    moved = (found.beats_read + found.beats_written) * case.port_bits // 8
    unexpected = abs(found.beats_read * case.port_bits // 8 - expected.read) + abs(
        found.beats_written * case.port_bits // 8 - expected.written)
    whole = fitted_machine(prepared.network.graph, prepared.network.live, case.rows, case.lanes)[0]
    print(case, words, wrong, found, flush=True)
    figures = [Figure(f"{case}: words compared", words, "words", Provenance.SIMULATED),
               Figure(f"{case}: moved in a step", moved, "bytes", Provenance.SIMULATED),
               Figure(f"{case}: activation memory, spilling", program.machine.activation_depth, "vectors",
                      Provenance.ESTIMATED),
               Figure(f"{case}: activation memory, all on chip", whole.activation_depth, "vectors",
                      Provenance.ESTIMATED)]
    columns = {"weights": 2 * program.machine.panel_depth, "masters and momenta": 2 * program.machine.state_depth}
    figures += [Figure(f"{case}: columns of {what} on chip", program.machine.weight_depth + beside, "columns",
                       Provenance.ESTIMATED) for what, beside in columns.items()]
    figures.append(Figure(f"{case}: columns in all", whole.weight_depth, "columns", Provenance.ESTIMATED))
    return figures, [Bar(f"{case}: differing words", wrong, "==", 0),
                     Bar(f"{case}: broken rules of AXI4", found.broken_rules, "==", 0),
                     Bar(f"{case}: bytes other than predicted", unexpected, "==", 0)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    figures, bars = [], []
    for case in CASES:
        more, held = simulated(case)
        figures += more
        bars += held
    write_results("external_memory", seeds=[STALLING.seed], figures=figures, bars=bars)
    return 0


if __name__ == "__main__":
    sys.exit(main())
