"""The 8×16 accelerator on an ECP5-85F: Yosys, and place and route.

    python benchmarks/synth.py lenet5-pruned
    python benchmarks/synth.py digits --route --timeout 3000

Memories are as deep as the network needs and no deeper. Each run writes its own part; all parts that
exist are merged into ``results/synth.json``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path

from harness import RESULTS, fitted_machine, prepare, write_results

from espalier.errors import ToolError
from espalier.gateware.verilog import TOP, verilog
from espalier.records import Bar, Figure, write_json
from espalier.synth.nextpnr import RouteOptions, place_and_route
from espalier.synth.yosys import synthesise
from espalier.targets import find_device

DEVICE = "ecp5-85f"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A network, how it is pruned, and the lattice."""

    network: str
    data: str
    density: float
    rows: int = 8
    lanes: int = 16
    exceptions: dict[str, float] = field(default_factory=dict)
    frequency_mhz: float = 90.0  #: to aim for


CASES = {
    "lenet5-pruned": Case(network="lenet5", data="mnist", density=0.1,
                          exceptions={"conv1.weight": 1.0, "conv2.weight": 0.4, "fc3.weight": 0.5}),
    "digits": Case(network="digits", data="digits", density=1.0),
    "digits-4x4": Case(network="digits", data="digits", density=1.0, rows=4, lanes=4, frequency_mhz=100.0),
}


def build(name: str, output: Path, route: bool, timeout: int) -> dict:
    """Synthesise one case, and route it if asked."""
    case = CASES[name]
    prepared = prepare(case.network, case.data, rows=case.rows, lanes=case.lanes, density=case.density,
                       exceptions=case.exceptions)
    machine, _ = fitted_machine(prepared.network.graph, prepared.network.live, case.rows, case.lanes)
    output.mkdir(parents=True, exist_ok=True)
    source = output / f"{TOP}.v"
    source.write_text(verilog(machine))
    synthesis = synthesise(source, TOP, output)
    macs, device = machine.multipliers, find_device(DEVICE)
    found = {"case": name, "machine": f"{case.rows}×{case.lanes}", "macs": macs, "routed": False,
             "multipliers": synthesis.count("MULT18X18D"),
             "figures": [figure.to_json() for figure in (*synthesis.figures, *synthesis.per_mac(macs))]}
    print(name, *(f"{figure.name} {figure.value:g}" for figure in synthesis.figures), sep="\n  ", flush=True)
    if not route:
        return {**found, "limit": "place and route was not run"}
    try:
        options = RouteOptions(device=device, frequency_mhz=case.frequency_mhz)
        routing = place_and_route(output / "netlist.json", output, options, timeout_seconds=timeout)
    except ToolError as error:
        return {**found, "limit": f"place and route gave no result: {error}"}
    found["figures"] += [figure.to_json() for figure in routing.figures]
    return {**found, "routed": True, "limit": routing.limit}


def merge() -> None:
    """One results file from all parts."""
    figures, bars, notes, commands = [], [], [], []
    for name in CASES:
        part = RESULTS / f"synth.{name}.json"
        if not part.exists():
            continue
        found = json.loads(part.read_text())
        commands.append(f"python benchmarks/synth.py {name}" + (" --route" if found["routed"] else ""))
        for entry in found["figures"]:
            figure = Figure.from_json(entry)
            figures.append(Figure(f"{name} {found['machine']}: {figure.name}", figure.value, figure.unit,
                                  figure.provenance))
        bars += [Bar(f"{name} {found['machine']}: hard multipliers, one for each of {found['macs']} cells at least",
                     found["multipliers"], ">=", found["macs"]),
                 Bar(f"{name} {found['machine']}: hard multipliers of {DEVICE}", found["multipliers"], "<=",
                     find_device(DEVICE).multipliers)]
        notes.append(f"{name}: {found['limit']}")
    write_results("synth", seeds=[0], figures=figures, bars=bars, notes="; ".join(notes),
                  command="; ".join(commands))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--route", action="store_true")
    parser.add_argument("--timeout", type=int, default=7200, help="seconds for place and route")
    options = parser.parse_args()
    found = build(options.case, Path("build/synth") / options.case, options.route, options.timeout)
    write_json(RESULTS / f"synth.{options.case}.json", found)
    merge()


if __name__ == "__main__":
    main()
