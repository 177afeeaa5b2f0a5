"""What is written in Verilog by hand."""

from __future__ import annotations

from importlib import resources

MODULES = ("ram.v", "pair_multiplier.v", "multiplier.v")


class VerilogTarget:
    """The platform under which memories and multipliers become instances of the modules in :data:`MODULES`.

    Amaranth writes one line for each word of a memory, into Verilog and before it; a memory that the host fills needs
    none. A multiplier becomes a part's own where the part's synthesis does not find it by itself. Simulation in Python
    keeps Amaranth's memories and products.
    """


def verilog_modules() -> str:
    """The source of those modules."""
    folder = resources.files("espalier.gateware")
    return "\n".join(folder.joinpath(name).read_text() for name in MODULES)
