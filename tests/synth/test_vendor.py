"""Scripts for the vendors' tools: one part each, no path of any machine."""

import pytest

from espalier.errors import UnsupportedError
from espalier.synth.vendor import quartus_tcl, vivado_tcl
from espalier.targets import ECP5_85F, find_device


def test_vivado_script():
    text = vivado_tcl(find_device("xc7z020"), "espalier.v", "espalier", 8)
    assert text.splitlines()[:3] == [
        "read_verilog espalier.v", "synth_design -top espalier -part xc7z020clg400-1 -mode out_of_context",
        "create_clock -name clk -period 8.000 [get_ports clk]"]
    assert "/" not in text and text.endswith("\n")


def test_vivado_script_of_ultrascale_plus():
    assert " -part xczu9eg-ffvb1156-2-e " in vivado_tcl(find_device("xczu9eg"), "espalier.v", "espalier", 8)


def test_quartus_script():
    text = quartus_tcl(find_device("5cseba6"), "espalier.v", "espalier", 12.5)
    assert "set_global_assignment -name DEVICE 5CSEBA6U23I7\n" in text
    assert "puts $constraints {create_clock -name clk -period 12.500 [get_ports clk]}\n" in text
    assert "/" not in text and text.endswith("execute_flow -compile\nproject_close\n")


def test_vivado_wrong():
    with pytest.raises(UnsupportedError, match="^A Vivado script needs a device of AMD such as xc7z020, not ecp5"):
        vivado_tcl(ECP5_85F, "a.v", "a", 10)


def test_quartus_wrong():
    with pytest.raises(UnsupportedError, match="^A Quartus script needs a Cyclone V device such as 5cseba6, not ecp5"):
        quartus_tcl(ECP5_85F, "a.v", "a", 10)
