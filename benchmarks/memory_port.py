"""What a port to external memory, and panels for weights behind it, take of a part, beside the rest of a small machine.

    python benchmarks/memory_port.py

The 2×4 machine of ``synth_family.py`` without a port, with one, and with panels, synthesised by Yosys, not placed. The
estimate of ``espalier/cost/resources.py`` has none of this but the block RAMs: those are a bar.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from harness import write_results
from synth_family import DEVICES, MACHINES

from espalier.arch.machine import Machine
from espalier.cost.resources import estimate
from espalier.gateware.verilog import TOP, verilog
from espalier.records import Bar, Figure
from espalier.synth.yosys import Architecture, Synthesis, synthesise
from espalier.targets import find_device

NAME, PORT_BITS = "2×4", 64
ARCHITECTURES = (Architecture.SERIES7, Architecture.ECP5)
WITH_PORT = replace(MACHINES[NAME], port_bits=PORT_BITS)
KINDS = {"no port": MACHINES[NAME], "port": WITH_PORT,
         "port and panels": replace(WITH_PORT, panel_depth=256, state_depth=128, run_depth=256)}


def synthesised(machine: Machine, architecture: Architecture, output: Path) -> Synthesis:
    output.mkdir(parents=True, exist_ok=True)
    source = output / f"{TOP}.v"
    source.write_text(verilog(machine))
    return synthesise(source, TOP, output, architecture=architecture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/memory_port"), help="where netlists go")
    work = parser.parse_args().work
    figures: list[Figure] = []
    bars: list[Bar] = []
    for architecture in ARCHITECTURES:
        device = DEVICES[architecture]
        for kind, machine in KINDS.items():
            synthesis = synthesised(machine, architecture, work / architecture.value / kind.replace(" ", "-"))
            found, expected = synthesis.resources, estimate(machine, find_device(device))
            head = f"{device}, {kind}"
            figures += [replace(figure, name=f"{head}: {figure.name}") for figure in synthesis.figures if figure.value]
            bars.append(Bar(f"{head}: block RAMs other than estimated", abs(found.block_rams - expected.block_rams),
                            "<=", 1))
            print(head, found, flush=True)
    write_results("memory_port", seeds=[0], figures=figures, bars=bars,
                  notes=f"{NAME}, words of 16 bits, a port of {PORT_BITS} bits; panels of 256 columns of weights and "
                        f"128 of masters and momenta, beside the weights on chip")


if __name__ == "__main__":
    main()
