"""nextpnr for real on a tiny design, and the reader of its report."""

import json
from pathlib import Path

import pytest

from espalier.errors import DataError, ToolError, UnsupportedError
from espalier.synth.nextpnr import (
    Clock,
    Pins,
    RouteOptions,
    Router,
    Routing,
    Utilisation,
    pack_bitstream,
    parse_report,
    place_and_route,
)
from espalier.synth.timing import Delay, cell_type, clock_name, signal_name
from espalier.synth.yosys import synthesise
from espalier.targets import ECP5_25F, ECP5_85F, GENERIC

TINY = Path(__file__).parent / "tiny.v"


def step(kind, delay, start, end, net=""):
    return {"type": kind, "delay": delay, "from": {"cell": start[0], "port": start[1], "loc": [1, 2]},
            "to": {"cell": end[0], "port": end[1], "loc": [1, 2]}} | ({"net": net, "sources": []} if net else {})


REPORT = {
    "critical_paths": [
        {"from": "posedge $glbnet$clk$TRELLIS_IO_IN", "to": "posedge $glbnet$clk$TRELLIS_IO_IN", "path": [
            step("clk-to-q", 0.5, ("ra_TRELLIS_FF_Q_11", "Q"), ("ra_TRELLIS_FF_Q_11", "Q")),
            step("routing", 2.25, ("ra_TRELLIS_FF_Q_11", "Q"), ("p_TRELLIS_FF_Q_31_DI_MULT18X18D_P31", "A11"),
                 "ra[11]"),
            step("logic", 4.0, ("p_TRELLIS_FF_Q_31_DI_MULT18X18D_P31", "A11"),
                 ("p_TRELLIS_FF_Q_31_DI_MULT18X18D_P31", "P27")),
            step("routing", 1.25, ("p_TRELLIS_FF_Q_31_DI_MULT18X18D_P31", "P27"), ("p_TRELLIS_FF_Q_27", "M"), "prod"),
            step("setup", 0, ("p_TRELLIS_FF_Q_27", "M"), ("p_TRELLIS_FF_Q_27", "M"))]},
        {"from": "<async>", "to": "posedge $glbnet$clk$TRELLIS_IO_IN", "path": [
            step("source", 0, ("b$tr_io", "O"), ("b$tr_io", "O")),
            step("routing", 90.0, ("b$tr_io", "O"), ("rb_TRELLIS_FF_Q", "M"), "b")]}],
    "fmax": {"$glbnet$fast": {"achieved": 300.5, "constraint": 100},
             "$glbnet$clk$TRELLIS_IO_IN": {"achieved": 125.0, "constraint": 150}},
    "utilization": {"MULT18X18D": {"available": 156, "used": 39}, "ALU54B": {"available": 78, "used": 0},
                    "DP16KD": {"available": 208, "used": 0}, "DCCA": {"available": 56, "used": 1}},
}


def test_report_by_hand():
    result = parse_report(json.dumps(REPORT), "ecp5-85f", "nextpnr 0.11")
    assert result.clocks == (Clock("clk", 125.0, 150.0), Clock("fast", 300.5, 100.0))
    assert [clock.met for clock in result.clocks] == [False, True]
    assert result.fmax_mhz == 125.0
    assert result.utilisation == (Utilisation("DCCA", 1, 56), Utilisation("DP16KD", 0, 208),
                                  Utilisation("MULT18X18D", 39, 156))
    assert result.utilisation[2].percent == 25.0
    assert [figure.name for figure in result.figures] == ["fmax clk", "fmax fast", "DCCA", "DP16KD", "MULT18X18D"]
    assert Routing.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert result.to_json()["limit"] == result.limit


def test_the_limit_is_told_from_registers_only():
    result = parse_report(json.dumps(REPORT), "ecp5-85f", "nextpnr 0.11")
    assert result.limit == ("8.00 ns from ra through MULT18X18D to p: logic 4.50 ns, routing 3.50 ns; "
                            "longest step 4.00 ns in MULT18X18D p (A11 to P27)")
    assert result.paths[0].delay_ns(Delay.ROUTING) == 3.5
    assert [path.between_registers for path in result.paths] == [True, False]


def test_runs_of_carry_cells_are_counted_and_a_slow_net_is_named():
    path = [step("clk-to-q", 0.5, ("a_TRELLIS_FF_Q", "Q"), ("a_TRELLIS_FF_Q", "Q")),
            step("routing", 5, ("a_TRELLIS_FF_Q", "Q"), ("s_CCU2C_S0$CCU2_COMB0", "A"), "a_far"),
            *[step("logic", 0.1, (f"s_CCU2C_S0_{i}$CCU2_COMB1", "FCI"), (f"s_CCU2C_S0_{i}$CCU2_COMB1", "FCO"))
              for i in range(3)],
            step("setup", 0, ("s_TRELLIS_FF_Q", "DI"), ("s_TRELLIS_FF_Q", "DI"))]
    edge = "posedge $glbnet$clk"
    report = REPORT | {"critical_paths": [{"from": edge, "to": edge, "path": path}]}
    limit = parse_report(json.dumps(report), "ecp5-85f", "nextpnr 0.11").limit
    assert limit.startswith("5.80 ns from a through 3 CCU2C to s:")
    assert limit.endswith("longest step 5.00 ns in routing of a_far")


def test_no_path_between_registers():
    assert parse_report(json.dumps(REPORT | {"critical_paths": []}), "d", "t").limit == "no path between registers"


def test_names_are_read_back():
    assert clock_name("$glbnet$clk$TRELLIS_IO_IN") == "clk" and clock_name("clk") == "clk"
    assert cell_type("p_TRELLIS_FF_Q_31_DI_MULT18X18D_P31") == "MULT18X18D"
    assert cell_type("sum_LUT4_Z_1_D_LUT4_Z") == "LUT4" and cell_type("plain") == ""
    assert signal_name("loss$204.sum$7_LUT4_Z_3") == "loss.sum"
    assert signal_name("top.mac.acc_TRELLIS_FF_Q_7") == "top.mac.acc" and signal_name("$abc$1") == "abc"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"fmax": {"a": 1}, "utilization": {}, "critical_paths": []}',
                                  json.dumps(REPORT).replace("setup", "warp")])
def test_report_wrong(text):
    with pytest.raises(ToolError, match=r"^The report of nextpnr cannot be read: .*version 0\.9 or newer\?$"):
        parse_report(text, "ecp5-85f", "nextpnr 0.11")


def test_report_without_clock_wrong():
    with pytest.raises(ToolError, match="^The report of nextpnr names no clock; the top module must have"):
        parse_report(json.dumps(REPORT | {"fmax": {}}), "ecp5-85f", "nextpnr 0.11")


def test_options_wrong():
    with pytest.raises(UnsupportedError, match="^Place and route needs an ECP5 device, not generic; for other"):
        RouteOptions(device=GENERIC)
    with pytest.raises(DataError, match="^A target frequency must be positive, not 0 MHz$"):
        RouteOptions(frequency_mhz=0)


def test_missing_files_wrong(tmp_path):
    with pytest.raises(DataError, match=r"^Place and route needs a netlist, and .* is none; run synthesis first$"):
        place_and_route(tmp_path / "netlist.json", tmp_path)
    (tmp_path / "netlist.json").write_text("{}")
    with pytest.raises(DataError, match=r"^Pin constraints must be in an LPF file, and .*board\.lpf is none$"):
        place_and_route(tmp_path / "netlist.json", tmp_path, RouteOptions(pins=tmp_path / "board.lpf"))
    with pytest.raises(DataError, match=r"^A bitstream needs a routed configuration, and .*run place and route first$"):
        pack_bitstream(tmp_path / "design.config", tmp_path)


def test_nextpnr_wrong_leaves_only_the_log(tmp_path):
    netlist = tmp_path / "netlist.json"
    unknown = {"type": "TUBE", "hide_name": 0, "parameters": {}, "attributes": {}, "port_directions": {},
               "connections": {}}
    netlist.write_text(json.dumps({"modules": {"top": {"attributes": {"top": "1"}, "ports": {}, "netnames": {},
                                                       "cells": {"a": unknown}}}}))
    with pytest.raises(ToolError, match=r"nextpnr-ecp5 .* failed with status"):
        place_and_route(netlist, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["nextpnr.log"]


@pytest.fixture(scope="module")
def netlist(tmp_path_factory):
    output = tmp_path_factory.mktemp("netlist")
    synthesise(TINY, "tiny", output)
    return output / "netlist.json"


def test_tiny_routes_to_a_bitstream(netlist, tmp_path):
    result = place_and_route(netlist, tmp_path, RouteOptions(device=ECP5_25F, frequency_mhz=50))
    used = {kind.name: (kind.used, kind.available) for kind in result.utilisation}
    assert used["MULT18X18D"] == (1, ECP5_25F.multipliers) and used["DP16KD"] == (1, ECP5_25F.block_rams)
    assert used["TRELLIS_COMB"][1] == ECP5_25F.luts
    assert [clock.name for clock in result.clocks] == ["clk"] and result.clocks[0].met
    assert " ns from " in result.limit
    assert pack_bitstream(tmp_path / "design.config", tmp_path).stat().st_size > 1000
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_missed_clock_out_of_context_is_reported_not_raised(netlist, tmp_path):
    options = RouteOptions(device=ECP5_85F, frequency_mhz=900, pins=Pins.OUT_OF_CONTEXT, router=Router.ROUTER2)
    result = place_and_route(netlist, tmp_path, options)
    assert not result.clocks[0].met
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nextpnr.log", "route.json"]
