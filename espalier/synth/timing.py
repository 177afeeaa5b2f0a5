"""What limits the clock: critical paths as nextpnr reports them, in words a person can use."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from enum import Enum
from itertools import groupby
from typing import Any

#: Cell types that Yosys and nextpnr leave in the names of the cells they make, the specific first.
_TYPES = ("MULT18X18D", "DP16KD", "TRELLIS_DPR16X4", "TRELLIS_FF", "CCU2C", "CCU2", "L6MUX21", "PFUMX", "LUT4",
          "LUT5", "LUT6", "LUT7")
_TYPE = re.compile("|".join(_TYPES))
_MADE_BY_TOOL = re.compile(rf"_(?:{'|'.join(_TYPES)})|\$")
_CARRY = re.compile(r"\$CCU2_COMB\d|_CCU2C_")


class Delay(Enum):
    """Kinds of delay, named as in nextpnr's report."""

    CLOCK_TO_OUTPUT = "clk-to-q"
    SOURCE = "source"
    LOGIC = "logic"
    ROUTING = "routing"
    SETUP = "setup"


def cell_type(cell: str) -> str:
    """The kind of a cell, read from its name; empty where the name does not tell."""
    if _CARRY.search(cell):
        return "CCU2C"
    found = _TYPE.findall(cell)
    return found[-1] if found else ""


def signal_name(cell: str) -> str:
    """The name in the design's own words that a cell's name begins with: ``acc_TRELLIS_FF_Q_7`` is ``acc``."""
    cell = re.sub(r"\$\d+", "", cell)  # what Yosys adds to tell equal names apart
    base = _MADE_BY_TOOL.split(cell.lstrip("$\\"), maxsplit=1)[0]
    return base or cell


def clock_name(clock: str) -> str:
    """A clock as the design names it: ``$glbnet$clk$TRELLIS_IO_IN`` is ``clk``."""
    return clock.removeprefix("$glbnet$").removesuffix("$TRELLIS_IO_IN")


@dataclass(frozen=True, slots=True)
class Step:
    """One piece of a path: ``delay_ns`` through ``cell``, or along ``net`` to ``cell``."""

    kind: Delay
    delay_ns: float
    cell: str
    pins: str
    net: str

    @classmethod
    def from_report(cls, fields: dict[str, Any]) -> Step:
        """From one entry of ``path`` in a nextpnr report."""
        start, end = fields["from"], fields["to"]
        return cls(Delay(fields["type"]), float(fields["delay"]), end["cell"],
                   f"{start['port']} to {end['port']}" if start["cell"] == end["cell"] else end["port"],
                   fields.get("net", ""))


    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "kind": self.kind.value}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Step:
        return cls(**{**fields, "kind": Delay(fields["kind"])})


@dataclass(frozen=True, slots=True)
class CriticalPath:
    """The slowest path from one clock edge (or pin) to another. Delays are in nanoseconds."""

    start: str
    end: str
    steps: tuple[Step, ...]

    @classmethod
    def from_report(cls, fields: dict[str, Any]) -> CriticalPath:
        """From one entry of ``critical_paths`` in a nextpnr report."""
        return cls(_edge(fields["from"]), _edge(fields["to"]), tuple(map(Step.from_report, fields["path"])))

    def to_json(self) -> dict[str, Any]:
        return {"start": self.start, "end": self.end, "steps": [step.to_json() for step in self.steps]}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> CriticalPath:
        return cls(fields["start"], fields["end"], tuple(map(Step.from_json, fields["steps"])))

    def delay_ns(self, *kinds: Delay) -> float:
        """Delay of the steps of the given kinds, or of all."""
        return sum(step.delay_ns for step in self.steps if not kinds or step.kind in kinds)

    @property
    def between_registers(self) -> bool:
        """Whether both ends are clocked: pins set no limit to the clock inside."""
        return "pin" not in (self.start, self.end)

    def describe(self) -> str:
        """One sentence: where from and to, through what, how long, and the longest single step."""
        through = ", ".join(self._cells_passed()) or "no logic"
        longest = max(self.steps, key=lambda step: step.delay_ns)
        where = (f"routing of {longest.net}" if longest.kind is Delay.ROUTING
                 else f"{cell_type(longest.cell) or 'logic'} {signal_name(longest.cell)} ({longest.pins})")
        return (f"{self.delay_ns():.2f} ns from {signal_name(self.steps[0].cell)} through {through} to "
                f"{signal_name(self.steps[-1].cell)}: logic {self._logic_ns():.2f} ns, "
                f"routing {self.delay_ns(Delay.ROUTING):.2f} ns; "
                f"longest step {longest.delay_ns:.2f} ns in {where}")

    def _logic_ns(self) -> float:
        return self.delay_ns() - self.delay_ns(Delay.ROUTING)

    def _cells_passed(self) -> list[str]:
        kinds = [cell_type(step.cell) or "cell" for step in self.steps if step.kind is Delay.LOGIC]
        runs = [(kind, len(list(run))) for kind, run in groupby(kinds)]
        return [f"{count} {kind}" if count > 1 else kind for kind, count in runs]


def _edge(text: str) -> str:
    """``posedge $glbnet$clk$TRELLIS_IO_IN`` -> ``posedge clk``; ``<async>`` -> ``pin``."""
    if text == "<async>":
        return "pin"
    edge, _, clock = text.partition(" ")
    return f"{edge} {clock_name(clock)}"
