"""Two products by one hard multiplier: the machine for digits in 8-bit words on 7-series, with pairs and without.

    python benchmarks/pairs.py

Synthesised by Yosys, not placed. Memories are as deep as the network needs and no deeper.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from harness import fitted_machine, prepare, write_results

from espalier.arch.machine import Machine
from espalier.gateware.verilog import TOP, verilog
from espalier.records import Bar, Figure
from espalier.synth.yosys import Architecture, Synthesis, synthesise

ROWS, LANES, WORD_BITS, ACC_BITS = 4, 4, 8, 28


def digits() -> Machine:
    network = prepare("digits", "digits", rows=ROWS, lanes=LANES).network
    machine, _ = fitted_machine(network.graph, network.live, ROWS, LANES)
    return replace(machine, word_bits=WORD_BITS, acc_bits=ACC_BITS)


def synthesised(machine: Machine, output: Path) -> Synthesis:
    output.mkdir(parents=True, exist_ok=True)
    source = output / f"{TOP}.v"
    source.write_text(verilog(machine))
    return synthesise(source, TOP, output, architecture=Architecture.SERIES7)


def figures_of(how: str, synthesis: Synthesis, macs: int) -> list[Figure]:
    return [replace(figure, name=f"{how}: {figure.name}")
            for figure in (*synthesis.figures, *synthesis.per_mac(macs)) if figure.value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/pairs"), help="where netlists go")
    options = parser.parse_args()
    single = digits()
    paired = replace(single, pairs=True)
    apart, together = synthesised(single, options.work / "single"), synthesised(paired, options.work / "pairs")
    macs = single.multipliers
    more = {name: (together.count(name) - apart.count(name)) / macs for name in ("LUT", "FF")}
    write_results(
        "pairs", seeds=[0],
        figures=[*figures_of("single", apart, macs), *figures_of("pairs", together, macs)],
        bars=[Bar(f"DSP48E1 with pairs, fewer by half of the {macs} cells", together.count("DSP48E1"), "<=",
                  apart.count("DSP48E1") - (single.hard_multipliers - paired.hard_multipliers)),
              *(Bar(f"{name}s more per MAC with pairs, for an accumulator in fabric", value, "<=", ACC_BITS + 4)
                for name, value in more.items())],
        notes=f"{ROWS}×{LANES}, words of {WORD_BITS} bits, accumulators of {ACC_BITS}: those of single products are "
              f"inside the DSP48E1, those of pairs are not")


if __name__ == "__main__":
    main()
