"""Synthesis of a build: what is recorded, what is not run and why. The tools themselves are tested in tests/synth."""

import importlib
import json

import pytest

from espalier.errors import DataError, ToolError
from espalier.flow import SynthRequest, synth, write_report
from espalier.synth.nextpnr import Clock, Routing, Utilisation
from espalier.synth.yosys import Synthesis

stage = importlib.import_module("espalier.flow.synthesis")


@pytest.fixture(autouse=True)
def tools(monkeypatch):
    """Tools that answer at once; the calls that they got."""
    calls = []

    def synthesise(verilog, top, output, *, architecture, timeout_seconds):
        calls.append(("synthesise", verilog.name, top, architecture.value))
        output.mkdir(exist_ok=True)
        return Synthesis(architecture, top, "yosys 0.70", (("DP16KD", 27), ("LUT4", 6715), ("MULT18X18D", 21)))

    def place_and_route(netlist, output, options, *, timeout_seconds):
        calls.append(("route", options.frequency_mhz))
        return Routing(options.device.name, "nextpnr-ecp5 0.8", (Clock("clk", 61.5, options.frequency_mhz),),
                       (Utilisation("MULT18X18D", 21, 156),), ())

    monkeypatch.setattr(stage, "synthesise", synthesise)
    monkeypatch.setattr(stage, "place_and_route", place_and_route)
    monkeypatch.setattr(stage, "pack_bitstream", lambda config, output: output / "design.bit")
    return calls


def test_area_and_clock(build, tools, tmp_path):
    content = synth(build, SynthRequest(clock_period_ns=20))
    assert tools == [("synthesise", "espalier.v", "espalier", "synth_ecp5"), ("route", 50.0)]
    assert json.loads((build / "synth.json").read_text()) == content
    assert content["routing"]["fmax_mhz"] == 61.5
    report = write_report([build], tmp_path / "r.html")
    assert {estimate.name: estimate.actual for estimate in report.estimates} == {
        "Multipliers of ecp5-85f": 21, "Block RAMs of ecp5-85f": 27, "Look-up tables of ecp5-85f": 6715,
        "Flip-flops of ecp5-85f": 0}
    assert report.area.clocks[0].met and "61.5 MHz" in (tmp_path / "r.html").read_text()


def test_without_routing_no_clock_is_claimed(build, tools, tmp_path):
    content = synth(build, SynthRequest(route=False))
    assert content["routing"] is None and content["not_routed"] == "place and route was not asked for (--route)"
    assert "Not routed: place and route was not asked for (--route). So no clock is known." in _page(build, tmp_path)


def _page(build, tmp_path):
    write_report([build], tmp_path / "r.html")
    return (tmp_path / "r.html").read_text()


def test_other_vendors_get_their_script(build):
    content = synth(build, SynthRequest(device="xc7z020"))
    assert content["not_routed"] == "place and route of xc7z020 is left to the vendor's tool"
    assert "read_verilog ../espalier.v" in (build / "synth" / "build.tcl").read_text()


def test_area_is_kept_where_routing_fails_wrong(build, monkeypatch):
    def fail(*arguments, **options):
        raise ToolError("nextpnr failed")

    monkeypatch.setattr(stage, "place_and_route", fail)
    with pytest.raises(ToolError, match=r"^nextpnr failed$"):
        synth(build, SynthRequest())
    assert json.loads((build / "synth.json").read_text())["not_routed"] == "place and route did not finish"


def test_a_clock_period_wrong():
    with pytest.raises(DataError, match=r"^Clock period and time-out must be finite and above 0, not 0 ns and 7200 s$"):
        SynthRequest(clock_period_ns=0)
    for number in (float("nan"), float("inf")):
        with pytest.raises(DataError, match=rf"not {number} ns and 7200 s$"):
            SynthRequest(clock_period_ns=number)


@pytest.mark.parametrize("seed", [-1, 2 ** 31])
def test_a_seed_wrong(seed):
    with pytest.raises(DataError, match=rf"^The placer's seed must be in 0\.\.2147483647, not {seed}$"):
        SynthRequest(seed=seed)


def test_a_result_of_another_version_wrong(build, tmp_path):
    (build / "synth.json").write_text('{"device": "ecp5-85f"}')
    with pytest.raises(DataError, match=r"synth\.json is not as this version writes it \(KeyError: 'synthesis'\): "):
        write_report([build], tmp_path / "r.html")
