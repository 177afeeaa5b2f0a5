"""A floorplan: the lattice's multipliers and the memories of its lanes in strips, lane beside lane.

A large lattice is wired in two directions: a lane's operands go to all rows, and one weight of a row to all lanes. The
placer of nextpnr, which moves hard blocks one at a time, does not find that order, and on a large part the router then
has no way through. So where the lattice takes most of the part's multipliers, these and the block RAMs of whole lanes
(activations, gradients) are given their places before it starts; all else stays the placer's choice. Sums leave the
lattice at row 0, from where results go to the activations and activations come to the drain: both are at the top.

The places follow from one assignment for each kind of block, the cheapest sum of squared distances to where a block
would best be (Kuhn's Hungarian method, 1955).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from espalier.targets import Device

LEAST_SHARE = 0.5  #: of the part's multipliers that the lattice takes, for a floorplan to be made

_MULTIPLIER = re.compile(r"lattice\.multiplier_(\d+)_(\d+)\..*")
_GRADIENTS = re.compile(r"gradients.*\.bank_(\d+)\..*\.(\d+)")
_ACTIVATIONS = re.compile(r"activations\..*\bbanks\[(\d+)\].*\.(\d+)")


@dataclass(frozen=True, slots=True)
class Site:
    """A place for a hard block: its column, its row, and the tool's name for it."""

    x: int
    y: int
    name: str


@dataclass(frozen=True, slots=True)
class Wish:
    """Where a cell would best be, as parts of the part's width and height: 0..1."""

    cell: str
    across: float
    up: float


def _sites(rows: Iterable[int], slots: Mapping[int, str]) -> tuple[Site, ...]:
    """Thirteen groups of sites in each row, of nine columns each; two columns of clock wiring are after the seventh."""
    starts = [4 + 9 * group + 2 * (group > 6) for group in range(13)]
    return tuple(Site(start + x, y, f"X{start + x}/Y{y}/{slot}") for y in rows for start in starts
                 for x, slot in slots.items())


#: By the part, for those that hold a large lattice: where nextpnr-ecp5 has its hard blocks.
MULTIPLIERS = {"LFE5U-85F": _sites((10, 34, 58), {0: "MULT18_0", 1: "MULT18_1", 4: "MULT18_4", 5: "MULT18_5"})}
BLOCK_RAMS = {"LFE5U-85F": _sites((22, 46, 70, 82), {0: "EBR0", 2: "EBR1", 4: "EBR2", 6: "EBR3"})}


def floorplan(netlist: Mapping[str, Any], device: Device) -> dict[str, str]:
    """Places by the names of cells; none where the netlist has no lattice, or a small one for its part.

    Parameters
    ----------
    netlist : mapping
        What Yosys' ``write_json`` wrote.
    device : Device
        The part; only those in :data:`MULTIPLIERS` get a floorplan.
    """
    sites = MULTIPLIERS.get(device.part, ())
    module, = (module for module in netlist["modules"].values() if "top" in module["attributes"])
    multipliers = _multipliers(module)
    if len(multipliers) <= LEAST_SHARE * len(sites) or len(multipliers) > len(sites):
        return {}
    lower = _memories(module, _GRADIENTS, 0.75, 0.25)
    upper = _memories(module, _ACTIVATIONS, 1.0, 0.75)
    return {**_assigned(multipliers, sites), **_assigned([*lower, *upper], BLOCK_RAMS[device.part])}


def _multipliers(module: Mapping[str, Any]) -> list[Wish]:
    """The multiplier of each row and lane."""
    cells = {name: tuple(map(int, found.groups())) for name, cell in module["cells"].items()
             if cell["type"] == "MULT18X18D" and (found := _MULTIPLIER.fullmatch(name))}
    rows, lanes = (1 + max((place[axis] for place in cells.values()), default=0) for axis in (0, 1))
    return [Wish(name, (lane + 0.5) / lanes, 1 - (row + 1 / 3) / rows) for name, (row, lane) in cells.items()]


def _memories(module: Mapping[str, Any], pattern: re.Pattern[str], first: float, last: float) -> list[Wish]:
    """The block RAMs whose names have a bank and a slice of the word; a word spans the lanes, its first bit lane 0.

    The banks go from ``first`` to ``last`` in height.
    """
    cells = {name: tuple(map(int, found.groups())) for name, cell in module["cells"].items()
             if cell["type"] in ("DP16KD", "PDPW16KD") and (found := pattern.fullmatch(name))}
    banks = 1 + max((bank for bank, _ in cells.values()), default=0)
    slices = {bank: 1 + max(part for other, part in cells.values() if other == bank) for bank, _ in cells.values()}
    return [Wish(name, (part + 0.5) / slices[bank], first + (last - first) * (bank + 0.5) / banks)
            for name, (bank, part) in cells.items()]


def _assigned(wishes: list[Wish], sites: tuple[Site, ...]) -> dict[str, str]:
    """A site for every wish, as near as can be in sum; rows are equally far apart, whatever lies between them."""
    if len(wishes) > len(sites):
        return {}
    columns = np.array([site.x for site in sites])
    rows = np.unique([site.y for site in sites], return_inverse=True)[1]
    width = columns.max() - columns.min() + 1
    x = columns.min() + np.array([wish.across for wish in wishes]) * width - 0.5
    y = np.floor(np.array([wish.up for wish in wishes]) * (rows.max() + 1))
    cost = (x[:, None] - columns) ** 2 + ((y[:, None] - rows) * width) ** 2
    chosen = linear_sum_assignment(cost)
    return {wishes[wish].cell: sites[site].name for wish, site in zip(*chosen, strict=True)}
