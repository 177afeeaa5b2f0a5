"""Scripts that build the same Verilog with the vendors' tools, which we cannot run here.

A script is run in the directory of the Verilog: ``vivado -mode batch -source build.tcl`` or
``quartus_sh -t build.tcl``. It names no path of this machine.
"""

from __future__ import annotations

from espalier.errors import UnsupportedError
from espalier.targets import Device, Family


def vivado_tcl(device: Device, verilog: str, top: str, clock_period_ns: float) -> str:
    """Tcl for Vivado, out of context: synthesis to routing, with its utilisation and timing reports.

    ``verilog`` is a file name; the clock port is ``clk``. Raises UnsupportedError for a device that
    is not AMD's.
    """
    if device.family not in (Family.SERIES7, Family.ULTRASCALE_PLUS):
        raise UnsupportedError(f"A Vivado script needs a device of AMD such as xc7z020, not {device.name}")
    return "\n".join((
        f"read_verilog {verilog}",
        f"synth_design -top {top} -part {device.part}{device.package}{device.speed} -mode out_of_context",
        f"create_clock -name clk -period {clock_period_ns:.3f} [get_ports clk]",
        "opt_design", "place_design", "phys_opt_design", "route_design",
        "report_utilization -file utilization.txt",
        "report_timing_summary -file timing.txt",
        f"write_checkpoint -force {top}.dcp", ""))


def quartus_tcl(device: Device, verilog: str, top: str, clock_period_ns: float) -> str:
    """Tcl for Quartus: a project with virtual pins, compiled, with its fitter and timing reports.

    ``verilog`` is a file name; the clock port is ``clk``. Raises UnsupportedError for a device that
    is not a Cyclone V.
    """
    if device.family is not Family.CYCLONE5:
        raise UnsupportedError(f"A Quartus script needs a Cyclone V device such as 5cseba6, not {device.name}")
    return "\n".join((
        "package require ::quartus::project", "package require ::quartus::flow",
        f"project_new {top} -overwrite",
        'set_global_assignment -name FAMILY "Cyclone V"',
        f"set_global_assignment -name DEVICE {device.part}",
        f"set_global_assignment -name TOP_LEVEL_ENTITY {top}",
        f"set_global_assignment -name VERILOG_FILE {verilog}",
        f"set_global_assignment -name SDC_FILE {top}.sdc",
        "set_instance_assignment -name VIRTUAL_PIN ON -to *",
        "set_instance_assignment -name VIRTUAL_PIN OFF -to clk",
        f"set constraints [open {top}.sdc w]",
        f"puts $constraints {{create_clock -name clk -period {clock_period_ns:.3f} [get_ports clk]}}",
        "close $constraints",
        "execute_flow -compile", "project_close", ""))
