"""Whole training steps by the netlist of a small machine, as Yosys maps it to ECP5: netlist = interpreter, every word.

The digits network, dense and pruned, in 16 bits, on real images. The machine is as deep as the dense network needs.
Minutes go by until the netlist is a simulator.

    python benchmarks/gate_level.py [--steps 8]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter

from harness import Prepared, prepare, write_results

from espalier.engines.interpreter import InterpreterEngine
from espalier.engines.rtl import RtlEngine
from espalier.engines.verify import verify_step
from espalier.gateware.verilog import TOP, verilog
from espalier.records import Bar, Figure, Provenance
from espalier.synth.gate_level import gate_level
from espalier.synth.yosys import synthesise

ROWS, LANES = 2, 2
OUTPUT = Path("build/gate_level")


def steps_of(prepared: Prepared, gates: RtlEngine, steps: int) -> tuple[int, int]:
    """Words compared in so many steps, each from the state that the one before left, and words that differ."""
    reference, state, words, wrong = InterpreterEngine(prepared.network), prepared.state, 0, 0
    for step in range(steps):
        chosen = slice(step * LANES, (step + 1) * LANES)
        found = verify_step(prepared.network, state, prepared.images[chosen], prepared.labels[chosen],
                            reference=reference, candidate=gates)
        words, wrong, state = words + found.words, wrong + found.differing_words, reference.state()
    return words, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    steps = parser.parse_args().steps
    cases = {f"digits density={density:g}": prepare("digits", "digits", rows=ROWS, lanes=LANES, density=density)
             for density in (1.0, 0.3)}
    machine = next(iter(cases.values())).network.program.machine
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / f"{TOP}.v").write_text(verilog(machine))
    start = perf_counter()
    synthesis = synthesise(OUTPUT / f"{TOP}.v", TOP, OUTPUT)
    netlist = gate_level((OUTPUT / "netlist.v").read_text(), synthesis)
    figures = [*synthesis.figures, Figure("synthesis", perf_counter() - start, "s", Provenance.MEASURED)]
    bars = []
    for case, prepared in cases.items():
        assert prepared.network.program.machine == machine
        start = perf_counter()
        gates = RtlEngine(prepared.network, netlist)
        ready = perf_counter()
        words, wrong = steps_of(prepared, gates, steps)
        figures += [
            Figure(f"{case}: building the simulator, if it was not kept", ready - start, "s", Provenance.MEASURED),
            Figure(f"{case}: {steps} steps", perf_counter() - ready, "s", Provenance.MEASURED),
            Figure(f"{case}: cycles, loading and reading included", gates.simulation.cycles, "cycles",
                   Provenance.SIMULATED),
            Figure(f"{case}: words compared", words, "words", Provenance.SIMULATED),
            Figure(f"{case}: differing", wrong, "words", Provenance.SIMULATED)]
        bars.append(Bar(f"{case}: netlist = interpreter, differing words", wrong, "==", 0))
        gates.close()
    write_results("gate_level", seeds=[0], figures=figures, bars=bars,
                  notes=f"{synthesis.tool}, {synthesis.architecture.value}; Verilator; {ROWS}×{LANES}, "
                        f"words of {machine.word_bits} bits")


if __name__ == "__main__":
    main()
