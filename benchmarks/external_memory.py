"""Activations in external memory: is every word right, how much memory on chip does it save, and who waits for it?

    python benchmarks/external_memory.py

One training step of real networks on real images, all activations that can be spilled, against a memory with latency,
refresh and stalls on every channel: RTL against interpreter, the rules of AXI4, and the bytes that the cost model says.
Then, by the cycle model, large lattices beside memories of the speed of one DDR3 module and of HBM: what the waits
cost, to the cycle (``cost_model.py``).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace

from bit_exact import differing
from harness import LOSS, fitted_machine, plain_rules, prepare, write_results
from utilisation_at_scale import SEED, Setting, in_fixed_point, random_live

from espalier.arch.memory import MemoryTiming
from espalier.compiler.pipeline import compile_program
from espalier.cost.cycles import PhaseCycles, predict
from espalier.cost.memory import with_memory
from espalier.cost.traffic import traffic
from espalier.engines.interpreter import InterpreterEngine
from espalier.engines.rtl import RtlEngine
from espalier.ir.differentiate import differentiate
from espalier.program.program import Program
from espalier.records import Bar, Figure, Provenance

STALLING = MemoryTiming(latency=60, refresh_every=1900, refresh_cycles=80, stalls=(30, 30, 30, 30, 30), seed=1)
MHZ = 240  #: of the machines whose waits are predicted


@dataclass(frozen=True, slots=True)
class Case:
    """A network in simulation: rows, lanes and bits of the port."""

    network: str
    density: float
    rows: int
    lanes: int
    port_bits: int

    def __str__(self) -> str:
        return f"{self.network}, {self.density:.0%} live, {self.rows}×{self.lanes}, port of {self.port_bits} bits"


CASES = (Case("cnn1x", 1.0, 8, 4, 64), Case("resnet20", 0.1, 8, 2, 32), Case("vgg16", 0.1, 8, 2, 128))
MEMORIES = {  # the bandwidth is bits / 8 × MHZ / beat_cycles
    "DDR3-class, 7.7 GB/s": (512, MemoryTiming(latency=60, beat_cycles=2, queue=8)),
    "DDR4-class, 15.4 GB/s": (512, MemoryTiming(latency=60, queue=8)),
    "HBM-class port, 30.7 GB/s": (1024, MemoryTiming(latency=60, queue=8))}
SETTINGS = (Setting(16, 1.0, 95), Setting(16, 0.1, 90))
NETWORKS, MULTIPLIERS = ("cnn1x", "cnn2x", "cnn4x", "vgg16", "resnet20"), (1024, 4096)


def simulated(case: Case) -> tuple[list[Figure], list[Bar]]:
    """One step in RTL simulation, with stalls."""
    prepared = prepare(case.network, "cifar10", rows=case.rows, lanes=case.lanes, density=case.density, probe=32,
                       dense_depths=False, port_bits=case.port_bits)
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
    return figures, [Bar(f"{case}: differing words", wrong, "==", 0),
                     Bar(f"{case}: broken rules of AXI4", found.broken_rules, "==", 0),
                     Bar(f"{case}: bytes other than predicted", unexpected, "==", 0)]


def at_scale(name: str, setting: Setting) -> list[Figure]:
    """Waits and traffic of large lattices."""
    graph, gradients = in_fixed_point(name)
    step = differentiate(graph, LOSS, gradients)
    live = random_live(step, setting)
    figures = []
    for multipliers in MULTIPLIERS:
        lanes = multipliers // setting.rows
        whole = fitted_machine(step, live, setting.rows, lanes)[0]
        for label, (bits, timing) in MEMORIES.items():
            machine = replace(fitted_machine(step, live, setting.rows, lanes, bits)[0], trees=setting.rows)
            program = compile_program(graph, loss=LOSS, gradient_formats=gradients, live=live,
                                      rules=plain_rules(graph.parameters), machine=machine)
            figures += told(f"{name}, {setting}, {multipliers} multipliers, {label}", program, predict(program), timing)
        figures += [Figure(f"{name}, {setting}, {multipliers} multipliers: activation memory, {what}",
                           round(depth * machine.vector_bits / 8e6, 2), "MB", Provenance.ESTIMATED)
                    for what, depth in (("spilling", machine.activation_depth),
                                        ("all on chip", whole.activation_depth))]
    return figures


def memory_waits(program: Program, base: tuple[PhaseCycles, ...], timing: MemoryTiming) -> int:
    """Cycles that one step waits."""
    step = program.entries_at["infer"]
    return sum(after.cycles - before.cycles
               for before, after in zip(base[:step], with_memory(program, base, timing)[:step], strict=True))


def told(head: str, program: Program, base: tuple[PhaseCycles, ...], timing: MemoryTiming) -> list[Figure]:
    """Bytes, and what waits cost in one step."""
    moved, step = traffic(program), sum(phase.cycles for phase in base[:program.entries_at["infer"]])
    waited = memory_waits(program, base, timing)
    found = [Figure(f"{head}: moved in a step", round((moved.read + moved.written) / 1e6, 2), "MB",
                    Provenance.ESTIMATED),
             Figure(f"{head}: waits", round(100 * waited / step, 3), "% of the step without", Provenance.ESTIMATED)]
    print(head, [figure.value for figure in found], flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    figures, bars = [], []
    for case in CASES:
        more, held = simulated(case)
        figures += more
        bars += held
    for name in NETWORKS:
        for setting in SETTINGS:
            figures += at_scale(name, setting)
    write_results("external_memory", seeds=[SEED], figures=figures, bars=bars,
                  notes=f"Waits at {MHZ} MHz; of one group, so of as many images as there are lanes.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
