"""The floorplan: on a made-up netlist, and on the names that the gateware's own netlist really has."""

import json
from pathlib import Path

import pytest

from espalier.arch.machine import Machine
from espalier.errors import DataError
from espalier.gateware.verilog import TOP, verilog
from espalier.synth import floorplan as module
from espalier.synth import nextpnr
from espalier.synth.floorplan import BLOCK_RAMS, MULTIPLIERS, floorplan
from espalier.synth.yosys import synthesise
from espalier.targets import ECP5_25F, ECP5_85F

PART = ECP5_85F.part


def lattice(rows: int, lanes: int, banks: int = 2) -> dict:
    """A netlist with the lattice's multipliers, its lanes' memories, and one multiplier and one RAM beside them."""
    cells = {"update.scale": {"type": "MULT18X18D", "attributes": {}},
             "update.masters.ram.words.0.0": {"type": "DP16KD", "attributes": {}}}
    for row in range(rows):
        for lane in range(lanes):
            cells[multiplier(row, lane)] = {"type": "MULT18X18D", "attributes": {}}
    for bank in range(banks):
        for part in range(lanes):
            for name in (f"gradients$7.bank_{bank}.ram.banks[0].ram.words.0.{part}",
                         f"activations.ram.banks[{bank}].ram.words.0.{part}"):
                cells[name] = {"type": "DP16KD", "attributes": {}}
    return {"modules": {"LUT4": {"attributes": {"blackbox": "1"}, "cells": {}},
                        "espalier": {"attributes": {"top": "1"}, "cells": cells}}}


def multiplier(row: int, lane: int) -> str:
    return f"lattice.multiplier_{row}_{lane}.hard.dsp"


def column(place: str) -> int:
    return int(place[1:place.index("/")])


def height(place: str) -> int:
    return int(place.split("/")[1][1:])


def test_every_block_of_the_lattice_has_a_site_of_its_own():
    netlist = lattice(8, 16)
    places = floorplan(netlist, ECP5_85F)
    cells = netlist["modules"]["espalier"]["cells"]
    assert set(places) == set(cells) - {"update.scale", "update.masters.ram.words.0.0"}
    assert len(set(places.values())) == len(places)
    for kind, sites in (("MULT18X18D", MULTIPLIERS), ("DP16KD", BLOCK_RAMS)):
        names = {site.name for site in sites[PART]}
        assert {place for cell, place in places.items() if cells[cell]["type"] == kind} <= names


@pytest.mark.parametrize("rows, lanes", [(8, 16), (4, 32), (2, 64), (16, 9)])
def test_lanes_lie_side_by_side(rows, lanes):
    places = floorplan(lattice(rows, lanes, banks=1), ECP5_85F)
    middles = [sum(column(places[multiplier(row, lane)]) for row in range(rows)) / rows for lane in range(lanes)]
    memories = [column(places[f"activations.ram.banks[0].ram.words.0.{lane}"]) for lane in range(lanes)]
    assert all(after >= before for before, after in zip(memories, memories[1:], strict=False))
    assert all(abs(middle - (4 + 116 * (lane + 0.5) / lanes)) < 12 for lane, middle in enumerate(middles))


def test_the_row_that_sums_leave_by_lies_nearest_to_the_activations():
    places = floorplan(lattice(8, 16), ECP5_85F)
    heights = [{height(places[multiplier(row, lane)]) for lane in range(16)} for row in range(8)]
    activations = {height(place) for cell, place in places.items() if cell.startswith("activations")}
    assert all(min(above) >= max(below) for above, below in zip([activations, *heights], heights, strict=False))


@pytest.mark.parametrize("netlist, device", [(lattice(4, 4), ECP5_85F), (lattice(1, 157), ECP5_85F),
                                             (lattice(4, 6), ECP5_25F)])
def test_small_lattices_and_other_parts_are_the_placers_alone(netlist, device):
    assert floorplan(netlist, device) == {}


def test_memories_beyond_the_sites_are_the_placers():
    places = floorplan(lattice(8, 16, banks=8), ECP5_85F)
    assert len(places) == 128 and all("MULT18" in place for place in places.values())


def test_places_are_written_where_nextpnr_reads_them(tmp_path):
    source, output = tmp_path / "in.json", tmp_path / "out.json"
    source.write_text(json.dumps(lattice(8, 16)))
    assert nextpnr._write_floorplanned(source, output, ECP5_85F)
    cells = json.loads(output.read_text())["modules"]["espalier"]["cells"]
    placed = {name: cell["attributes"]["BEL"] for name, cell in cells.items() if "BEL" in cell["attributes"]}
    assert placed == floorplan(lattice(8, 16), ECP5_85F)
    assert not nextpnr._write_floorplanned(source, output, ECP5_25F)
    assert output.read_text() == source.read_text()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"modules": {}}', '{"modules": {"a": {}}}'])
def test_a_netlist_that_is_none_is_told(text, tmp_path):
    source = tmp_path / "netlist.json"
    source.write_text(text)
    with pytest.raises(DataError, match=r"^The netlist .*netlist\.json cannot be read: .*; run synthesis again$"):
        nextpnr._write_floorplanned(source, tmp_path / "out.json", ECP5_85F)


def test_the_gateware_keeps_the_names_that_the_floorplan_looks_for(tmp_path: Path, monkeypatch):
    machine = Machine(rows=1, lanes=2, activation_depth=1024, gradient_depth=512, weight_depth=256, index_depth=256,
                      table_depth=64)
    source = tmp_path / "design.v"
    source.write_text(verilog(machine))
    synthesise(source, TOP, tmp_path)
    netlist = json.loads((tmp_path / "netlist.json").read_text())
    monkeypatch.setattr(module, "LEAST_SHARE", 0)
    places = floorplan(netlist, ECP5_85F)
    kinds = [name.split(".")[0].split("$")[0] for name in places]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"lattice": 2, "gradients": 1, "activations": 2}
