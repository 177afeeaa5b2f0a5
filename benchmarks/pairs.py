"""Two products by one hard multiplier: 8-bit words on 7-series, with pairs and without.

    python benchmarks/pairs.py

The machine for digits and its lattice alone, synthesised by Yosys and not placed.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from harness import fitted_machine, prepare, write_results

from espalier.arch.machine import Machine
from espalier.gateware.lattice import Lattice
from espalier.gateware.verilog import TOP, component_verilog, verilog
from espalier.records import Bar, Figure
from espalier.synth.yosys import Architecture, Synthesis, synthesise

ROWS, LANES, WORD_BITS, ACC_BITS = 4, 4, 8, 28


def digits() -> Machine:
    """Memories as deep as the network needs and no deeper."""
    network = prepare("digits", "digits", rows=ROWS, lanes=LANES).network
    machine, _ = fitted_machine(network.graph, network.live, ROWS, LANES)
    return replace(machine, word_bits=WORD_BITS, acc_bits=ACC_BITS)


def synthesised(source: str, top: str, output: Path) -> Synthesis:
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{top}.v").write_text(source)
    return synthesise(output / f"{top}.v", top, output, architecture=Architecture.SERIES7)


def figures_of(name: str, synthesis: Synthesis, macs: int) -> list[Figure]:
    return [replace(figure, name=f"{name}: {figure.name}")
            for figure in (*synthesis.figures, *synthesis.per_mac(macs)) if figure.value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/pairs"), help="where netlists go")
    options = parser.parse_args()
    single = digits()
    figures: list[Figure] = []
    dsps: dict[str, list[int]] = {"lattice": [], "machine": []}
    for how, machine in (("single", single), ("pairs", replace(single, pairs=True))):
        made = {"lattice": synthesised(component_verilog(Lattice(machine), "lattice"), "lattice", options.work / how),
                "machine": synthesised(verilog(machine), TOP, options.work / how)}
        for what, synthesis in made.items():
            figures += figures_of(f"{what} {ROWS}×{LANES}, {how}", synthesis, machine.multipliers)
            dsps[what].append(synthesis.count("DSP48E1"))
    macs = single.multipliers
    write_results("pairs", seeds=[0], figures=figures, bars=[
        Bar("DSP48E1 of the lattice, single", dsps["lattice"][0], "==", macs),
        Bar("DSP48E1 of the lattice, pairs", dsps["lattice"][1], "==", macs // 2),
        Bar("DSP48E1 of the machine, pairs: fewer by half of the lattice", dsps["machine"][1], "<=",
            dsps["machine"][0] - macs // 2),
    ], notes=f"words of {WORD_BITS} bits, accumulators of {ACC_BITS}; accumulators of single products are inside the "
             f"DSP48E1, those of pairs are not")


if __name__ == "__main__":
    main()
