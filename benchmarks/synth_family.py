"""A family of machines through Yosys: what each takes on ECP5, 7-series, UltraScale+ and Cyclone V.

    python benchmarks/synth_family.py run      # an hour or two; each run writes its part, and is not run again
    python benchmarks/synth_family.py fit      # print the coefficients for espalier/cost/resources.py
    python benchmarks/synth_family.py gather

The coefficients of ``espalier/cost/resources.py`` are fitted to some of the machines, the others are held out. The
error is reported for both: of the fitted ones by leaving each out of a fit of its own.
"""

from __future__ import annotations

import argparse
import json
import pprint
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
from harness import write_results
from scipy.optimize import nnls

from espalier.arch.machine import Machine
from espalier.cost.resources import FABRICS, Coefficients, Resources, estimate, logic, small_memories, terms
from espalier.gateware.verilog import TOP, verilog
from espalier.records import Bar, Figure, Provenance, write_json
from espalier.synth.yosys import LUTS, RESOURCES, Architecture, Synthesis, synthesise
from espalier.targets import find_device

PARTS = Path("build/synth_family")
DEVICES = {Architecture.ECP5: "ecp5-85f", Architecture.SERIES7: "xc7z020", Architecture.ULTRASCALE_PLUS: "xczu9eg",
           Architecture.CYCLONE5: "5cseba6"}
#: Of the same cells but for multipliers and memories: what runs few machines takes its coefficients from there.
AKIN = {Architecture.ULTRASCALE_PLUS: Architecture.SERIES7}
LEAST = 3       #: machines to fit to, at least, for an error of one left out
PENALTY = 1e-5  #: of coefficients
MEMORY_CELLS = frozenset(cell for types in RESOURCES.values() for name in ("TRELLIS_DPR16X4", "LUTRAM", "MLAB")
                         for cell in types.get(name, {}))
#: By the name of a submodule of the accelerator, up to its number, the part that it is counted with.
SUBMODULES = {**dict.fromkeys(("lattice", "drain", "tree", "rows", "ending"), "lattice and drain"),
              **dict.fromkeys(("operands", "gradients", "activations", "weights"), "operands"),
              "update": "update units", "loss": "loss"}


def machine(rows: int, lanes: int, word_bits: int, acc_bits: int, depths: tuple[int, int, int], *, trees: int = 1,
            groups: bool = False, sums: bool = False, lists: tuple[int, int, int] = (1024, 256, 64)) -> Machine:
    """``depths`` are those of activations, gradients and weights; ``lists`` of entries, pointers and commands."""
    return Machine(rows=rows, lanes=lanes, word_bits=word_bits, acc_bits=acc_bits, trees=trees, groups=groups,
                   sums=sums, activation_depth=depths[0], gradient_depth=depths[1], weight_depth=depths[2],
                   index_depth=lists[0], table_depth=lists[1], program_depth=lists[2])


FITTED = {
    "1×2": machine(1, 2, 16, 40, (512, 256, 1024), lists=(512, 128, 32)),
    "4×2, 8 bits, groups, 2 trees": machine(4, 2, 8, 26, (1024, 512, 512), groups=True, trees=2, sums=True),
    "2×4": machine(2, 4, 16, 42, (1024, 512, 512), lists=(4096, 1024, 64)),
    "4×4, 8 bits, 4 trees": machine(4, 4, 8, 24, (2048, 1024, 256), trees=4),
    "2×8, groups": machine(2, 8, 16, 48, (2048, 1024, 1024), groups=True, sums=True),
    "8×2, 2 trees": machine(8, 2, 16, 40, (3072, 512, 256), trees=2, sums=True, lists=(2048, 512, 128)),
    "4×8, 8 bits": machine(4, 8, 8, 32, (4096, 2048, 1024)),
}
HELD_OUT = {
    "4×4": machine(4, 4, 16, 36, (2048, 1024, 1024), lists=(2048, 512, 64)),
    "2×6, 12 bits, 2 trees": machine(2, 6, 12, 34, (1536, 768, 512), trees=2, sums=True),
}
MACHINES = {**FITTED, **HELD_OUT}
FEW = ("2×4", "4×4")
ECP5_ALONE = ("8×2, 2 trees",)


def runs_on(architecture: Architecture) -> tuple[str, ...]:
    """The machines that an architecture gets; the ones that take long are not run on all."""
    if architecture in AKIN:
        return FEW
    return tuple(name for name in MACHINES if architecture is Architecture.ECP5 or name not in ECP5_ALONE)


def part_file(architecture: Architecture, name: str) -> Path:
    plain = name.replace("×", "x").replace(", ", "-").replace(" ", "-")
    return PARTS / f"{architecture.name.lower()}.{plain}.json"


def run(architecture: Architecture, name: str) -> None:
    """One machine, unless its part is there."""
    part = part_file(architecture, name)
    if part.exists():
        return
    output = PARTS / "work"
    output.mkdir(parents=True, exist_ok=True)
    source = output / f"{TOP}.v"
    source.write_text(verilog(MACHINES[name]))
    began = time.monotonic()
    synthesis = synthesise(source, TOP, output, architecture=architecture)
    prefix = "" if architecture is Architecture.ECP5 else f"{architecture.value}."
    netlist = json.loads((output / f"{prefix}netlist.json").read_text())
    inside: dict[str, Counter] = {}
    for cell, what in netlist["modules"][TOP]["cells"].items():
        inside.setdefault(cell.split(".")[0] if "." in cell else "", Counter())[what["type"]] += 1
    write_json(part, {"name": name, "machine": MACHINES[name].to_json(), "seconds": round(time.monotonic() - began),
                      "inside": inside, **synthesis.to_json()})
    print(architecture.name, name, f"{time.monotonic() - began:.0f} s", flush=True)


@dataclass(frozen=True, slots=True)
class Counted:
    """What Yosys made of a machine: in all, and by part of :func:`espalier.cost.resources.terms`.

    Without the memories whose look-up tables and flip-flops are counted, not fitted.
    """

    name: str
    machine: Machine
    resources: Resources
    luts: Mapping[str, float]
    flip_flops: Mapping[str, float]


def counted(architecture: Architecture) -> dict[str, Counted]:
    """The machines whose parts are there, in order."""
    found = {}
    for name in runs_on(architecture):
        part = part_file(architecture, name)
        if part.exists():
            fields = json.loads(part.read_text())
            luts, flip_flops = _by_part(architecture, fields["inside"])
            one = Machine.from_json(fields["machine"])
            small = small_memories(one, find_device(DEVICES[architecture]))
            luts.subtract({"small memories": small.cells, "control": small.choosing})
            flip_flops.subtract({"control": small.flip_flops})  # most are of the commands
            found[name] = Counted(name, one, Synthesis.from_json(fields).resources, luts, flip_flops)
    return found


def _by_part(architecture: Architecture, inside: Mapping[str, Mapping[str, int]]) -> tuple[Counter, Counter]:
    luts, flip_flops = Counter(), Counter()
    for name, cells in inside.items():
        for cell, count in cells.items():
            luts["small memories" if cell in MEMORY_CELLS else _part(name)] += count * LUTS[architecture].get(cell, 0)
            flip_flops[_part(name)] += count * RESOURCES[architecture]["FF"].get(cell, 0)
    return luts, flip_flops


def _part(submodule: str) -> str:
    """The part of the accelerator that a submodule of it belongs to."""
    first = submodule.split("$")[0].split("_")[0]
    return SUBMODULES.get(first, "control")


def fitted(machines: Iterable[Counted]) -> Coefficients:
    """Non-negative coefficients with the least squares of errors, each as a part of what the machine takes in all."""
    machines = list(machines)
    rows = [terms(one.machine) for one in machines]
    luts, flip_flops = {}, {}
    for part in rows[0]:
        values = np.array([row[part] for row in rows], dtype=np.float64)
        luts[part] = _least_squares(values, [one.luts.get(part, 0) for one in machines],
                                    [one.resources.luts for one in machines])
        flip_flops[part] = _least_squares(values, [one.flip_flops.get(part, 0) for one in machines],
                                          [one.resources.flip_flops for one in machines])
    return Coefficients(luts=luts, flip_flops=flip_flops)


def _least_squares(values: np.ndarray, wanted: list[float], whole: list[int]) -> tuple[float, ...]:
    """With a hair of a penalty on large terms, for coefficients that few machines do not tell apart."""
    scale, weight = np.maximum(abs(values).max(axis=0), 1), 1 / np.array(whole)
    system = np.vstack([values / scale * weight[:, None], PENALTY * np.eye(len(scale))])
    solution, _ = nnls(system, np.concatenate([np.array(wanted) * weight, np.zeros(len(scale))]))
    return tuple(float(f"{value:.4g}") for value in solution / scale)


def fit_of(architecture: Architecture, machines: Iterable[Counted]) -> Coefficients:
    """Coefficients of an architecture; of one with few machines those of :data:`AKIN`, each part scaled."""
    machines = list(machines)
    if architecture not in AKIN:
        return fitted(machines)
    near = counted(AKIN[architecture])
    base = fitted([one for one in near.values() if one.name in FITTED])
    return Coefficients(luts=_scaled(base.luts, [(one.machine, one.luts) for one in machines]),
                        flip_flops=_scaled(base.flip_flops, [(one.machine, one.flip_flops) for one in machines]))


def _scaled(base: Mapping[str, tuple[float, ...]], machines: list[tuple[Machine, Mapping[str, float]]]
            ) -> dict[str, tuple[float, ...]]:
    scaled = {}
    for part, coefficients in base.items():
        foretold = sum(np.dot(coefficients, terms(machine)[part]) for machine, _ in machines)
        factor = sum(found.get(part, 0) for _, found in machines) / foretold if foretold else 1
        factor = 1 if part == "small memories" else factor  # counted, but for queues
        scaled[part] = tuple(float(f"{value * factor:.4g}") for value in coefficients)
    return scaled


def errors(machines: Iterable[Counted], architecture: Architecture, coefficients: Coefficients | None = None
           ) -> dict[str, list[float]]:
    """Relative errors by resource; logic by ``coefficients``, or by the committed ones."""
    device, found = find_device(DEVICES[architecture]), {}
    for one in machines:
        guess = asdict(estimate(one.machine, device))
        if coefficients is not None:
            guess |= dict(zip(("luts", "flip_flops"), logic(one.machine, device, coefficients), strict=True))
        for name, value in asdict(one.resources).items():
            found.setdefault(name, []).append(guess[name] / value - 1)
    return found


def left_out(machines: Mapping[str, Counted], architecture: Architecture) -> dict[str, list[float]]:
    """Errors of each machine by a fit to the others."""
    found: dict[str, list[float]] = {}
    for name, one in machines.items():
        others = fit_of(architecture, [other for other in machines.values() if other.name != name])
        for resource, values in errors([one], architecture, others).items():
            if resource in ("luts", "flip_flops"):  # the others are not fitted
                found.setdefault(resource, []).extend(values)
    return found


def report() -> None:
    """Gather the parts into the results."""
    figures, bars, records = [], [], []
    for architecture in Architecture:
        everything, family = counted(architecture), architecture.name
        device = find_device(DEVICES[architecture])
        base = {name: one for name, one in everything.items() if name in FITTED}
        if fit_of(architecture, base.values()) != FABRICS[device.family].logic:
            raise SystemExit(f"The coefficients of {family} are not those of a fit: print them with `fit`")
        held = [one for name, one in everything.items() if name in HELD_OUT]
        for what, found in (("held out", errors(held, architecture)), ("left out", left_out(base, architecture)
                                                                       if len(base) > LEAST else {})):
            figures += [Figure(f"{family}: {kind} error of {resource.replace('_', ' ')}, {what}",
                               round(100 * function(map(abs, values)), 2), "%", Provenance.ESTIMATED)
                        for resource, values in found.items()
                        for kind, function in (("median", median), ("worst", max))]
            bars += [Bar(f"{family}: median error of {resource.replace('_', ' ')}, {what}, %",
                         round(100 * median(map(abs, values)), 2), "<=", 10) for resource, values in found.items()]
        for name, one in everything.items():
            cells = one.machine.multipliers
            figures += [Figure(f"{family} {name}: {resource.replace('_', ' ')} per MAC", round(value / cells, 2),
                               "per MAC", Provenance.SYNTHESISED) for resource, value in asdict(one.resources).items()]
            figures.append(Figure(f"{family} {name}: luts of lattice and drain per MAC",
                                  round(one.luts["lattice and drain"] / cells, 2), "per MAC", Provenance.SYNTHESISED))
            records.append({"architecture": family, "device": device.name, "name": name, "held_out": name in HELD_OUT,
                            "machine": one.machine.to_json(), "synthesised": asdict(one.resources),
                            "estimated": asdict(estimate(one.machine, device))})
        figures += _marginal(architecture)
    write_results("synth_family", seeds=[], figures=figures, bars=bars, machines=records,
                  command="python benchmarks/synth_family.py run; python benchmarks/synth_family.py gather",
                  notes="Look-up tables, flip-flops, multipliers and block RAMs in the units of each family's devices "
                        "(espalier/synth/yosys.py, LUTS); Yosys, before place and route.")


def _marginal(architecture: Architecture) -> list[Figure]:
    """What one more multiplier takes of a large lattice, by the model."""
    small, large = (estimate(machine(rows, 16, 16, 40, (1024, 1024, 1024)), find_device(DEVICES[architecture]))
                    for rows in (8, 16))
    return [Figure(f"{architecture.name}: {name.replace('_', ' ')} of one more multiplier, 8×16 to 16×16",
                   round((getattr(large, name) - getattr(small, name)) / (8 * 16), 1), "per MAC", Provenance.ESTIMATED)
            for name in ("luts", "flip_flops")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "fit", "gather"))
    match parser.parse_args().what:
        case "run":
            for architecture in Architecture:
                for name in runs_on(architecture):
                    run(architecture, name)
        case "fit":
            for architecture in Architecture:
                base = [one for name, one in counted(architecture).items() if name in FITTED]
                print(architecture.name)
                pprint.pp(fit_of(architecture, base), width=120)
        case _:
            report()


if __name__ == "__main__":
    main()
