"""Models of cells against the source that was mapped to them; on demand a netlist of the whole machine."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from espalier.engines.verilator import SLOW, Simulation, build_simulator
from espalier.errors import ToolError, UnsupportedError
from espalier.gateware.target import verilog_modules
from espalier.synth.gate_level import gate_level
from espalier.synth.yosys import Architecture, Synthesis, synthesise

FOLDER = Path(__file__).parent
CYCLES = 20_000
OUTPUTS = ("words", "entry", "signed_product", "unsigned_product", "registered_product")
EMPTY = Synthesis(Architecture.ECP5, "top", "yosys 0.70", ())


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """The synthesis of ``cells.v``, its netlist with models, and its source as a module of another name."""
    folder = tmp_path_factory.mktemp("cells")
    text = (FOLDER / "cells.v").read_text()
    (folder / "cells.v").write_text(text + verilog_modules())
    synthesis = synthesise(folder / "cells.v", "cells", folder)
    source = text.replace("module cells", "module source") + verilog_modules()
    return synthesis, gate_level((folder / "netlist.v").read_text(), synthesis), source


def differing(netlist: str, source: str) -> list[str]:
    """The outputs in which the two differ in any of :data:`CYCLES` cycles."""
    library = build_simulator("\n".join([(FOLDER / "cells_bench.v").read_text(), netlist, source]), SLOW)
    simulation = Simulation(library, 2)
    found = int(simulation.read(np.zeros(1, dtype=np.uint32), CYCLES)[0])
    simulation.close()
    return [name for bit, name in enumerate(OUTPUTS) if found >> bit & 1]


def test_the_netlist_does_what_its_source_does(cells):
    synthesis, netlist, source = cells
    assert [synthesis.count(name) for name in ("DP16KD", "MULT18X18D")] == [4, 3]
    assert differing(netlist, source) == []


def test_wrong_models_are_seen(cells):
    """A word that is written and read is not inverted; the table is not where it was; an operand is always signed."""
    _, netlist, source = cells
    for right, wrong in (("b_in_a < 4 &&", "b_in_a < 3 &&"), ("9 * (k % 2)", "8 * (k % 2)"),
                         ("SIGNEDB & b[17]", "b[17]")):
        assert right in netlist
        netlist = netlist.replace(right, wrong)
    assert differing(netlist, source) == ["words", "entry", "unsigned_product"]


@pytest.mark.parametrize(("right", "wrong"), [('.REGMODE_A("NOREG")', '.REGMODE_A("OUTREG")'),
                                              ('.REG_OUTPUT_CLK("CLK0")', '.REG_OUTPUT_CLK("CLK1")')])
def test_a_mode_without_a_model_wrong(cells, right, wrong):
    _, netlist, source = cells
    assert right in netlist
    with pytest.raises(ToolError, match="without_a_model"):
        differing(netlist.replace(right, wrong), source)


def test_a_cell_without_a_model_wrong():
    with pytest.raises(ToolError, match="^There is no model of the cell EHXPLLX, which the netlist of top holds$"):
        gate_level("", replace(EMPTY, cells=(("EHXPLLX", 1),)))


def test_another_architecture_wrong():
    with pytest.raises(UnsupportedError, match="^Gate-level simulation knows the cells of ECP5 only, not .* SERIES7$"):
        gate_level("", replace(EMPTY, architecture=Architecture.SERIES7))
