"""Synth: build directory + device -> area and, where it was routed, clock."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier.errors import DataError
from espalier.flow.design import load_design
from espalier.flow.manifest import VERILOG
from espalier.flow.steps import Steps
from espalier.gateware.verilog import TOP
from espalier.records import write_json, write_text_atomically
from espalier.synth.nextpnr import RouteOptions, Routing, pack_bitstream, place_and_route
from espalier.synth.vendor import quartus_tcl, vivado_tcl
from espalier.synth.yosys import Architecture, Synthesis, synthesise
from espalier.targets import Device, Family, find_device

SYNTH, FOLDER, SCRIPT = "synth.json", "synth", "build.tcl"
ARCHITECTURES = {Family.ECP5: Architecture.ECP5, Family.SERIES7: Architecture.SERIES7,
                 Family.ULTRASCALE_PLUS: Architecture.ULTRASCALE_PLUS, Family.CYCLONE5: Architecture.CYCLONE5,
                 Family.GENERIC: Architecture.ECP5}
MEGAHERTZ_NANOSECONDS = 1000.0
SEED_LIMIT = 2 ** 31  #: nextpnr reads a C int


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthRequest:
    """What to synthesise for.

    Parameters
    ----------
    device : str or None
        None is the part that the build was made for.
    route : bool
        Place and route, too (ECP5 only), and pack the bitstream.
    clock_period_ns : float
        The clock to aim for.
    seed : int
        Of the placer.
    timeout_seconds : float
        For each tool.
    """

    device: str | None = None
    route: bool = True
    clock_period_ns: float = 20.0
    seed: int = 1
    timeout_seconds: float = 7200

    def __post_init__(self) -> None:
        if not (0 < self.clock_period_ns < math.inf and 0 < self.timeout_seconds < math.inf):
            raise DataError(f"Clock period and time-out must be finite and above 0, not {self.clock_period_ns:g} ns "
                            f"and {self.timeout_seconds:g} s")
        if not 0 <= self.seed < SEED_LIMIT:
            raise DataError(f"The placer's seed must be in 0..{SEED_LIMIT - 1}, not {self.seed}")


def synth(folder: Path, request: SynthRequest, steps: Steps | None = None) -> dict[str, Any]:
    """Run the tools on a build's Verilog and write ``synth.json`` into it; returns that content.

    The tools' own files and logs go to ``synth/``, with a vendor's script for parts of that vendor.
    Raises ToolError with the tool's last error; ``synth.json`` of an earlier run stays.
    """
    steps = steps or Steps()
    with steps.step("read build"):
        design = load_design(folder)
        device = find_device(request.device or design.device)
    options = RouteOptions(device=device, frequency_mhz=MEGAHERTZ_NANOSECONDS / request.clock_period_ns,
                           seed=request.seed) if request.route and device.family is Family.ECP5 else None
    output = folder / FOLDER
    with steps.step("synthesise"):
        synthesis = synthesise(folder / VERILOG, TOP, output, architecture=ARCHITECTURES[device.family],
                               timeout_seconds=request.timeout_seconds)
    write_json(folder / SYNTH, _content(device, synthesis, None, _reason(device, request)))  # kept if routing fails
    steps.wrote(folder / SYNTH, *_vendor_script(device, output, request))
    if options is None:
        return _content(device, synthesis, None, _reason(device, request))
    with steps.step("place and route"):
        routing = place_and_route(output / "netlist.json", output, options, timeout_seconds=request.timeout_seconds)
    with steps.step("pack bitstream"):
        steps.wrote(pack_bitstream(output / "design.config", output))
    content = _content(device, synthesis, routing, "")
    write_json(folder / SYNTH, content)
    return content


def _reason(device: Device, request: SynthRequest) -> str:
    """Why there is no place and route."""
    if device.family is not Family.ECP5:
        return f"place and route of {device.name} is left to the vendor's tool"
    return "place and route did not finish" if request.route else "place and route was not asked for (--route)"


def _content(device: Device, synthesis: Synthesis, routing: Routing | None, not_routed: str) -> dict[str, Any]:
    return {"device": device.name, "synthesis": synthesis.to_json(), "not_routed": not_routed,
            "routing": None if routing is None else routing.to_json()}


def _vendor_script(device: Device, output: Path, request: SynthRequest) -> list[Path]:
    source = f"../{VERILOG}"
    match device.family:
        case Family.SERIES7 | Family.ULTRASCALE_PLUS:
            text = vivado_tcl(device, source, TOP, request.clock_period_ns)
        case Family.CYCLONE5:
            text = quartus_tcl(device, source, TOP, request.clock_period_ns)
        case _:
            return []
    write_text_atomically(output / SCRIPT, text)
    return [output / SCRIPT]
