"""Yosys for real on a tiny design, and the reader of its statistics."""

import json
from pathlib import Path

import pytest

from espalier.cost.resources import Resources
from espalier.errors import DataError, ToolError
from espalier.records import Provenance
from espalier.synth.yosys import Architecture, Synthesis, find_yosys, parse_statistics, synthesise

TINY = Path(__file__).parent / "tiny.v"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    output = tmp_path_factory.mktemp("yosys")
    return synthesise(TINY, "tiny", output), output


def test_tiny_takes_one_multiplier_and_one_block_ram(tiny):
    result, _ = tiny
    assert [result.count(name) for name in ("MULT18X18D", "DP16KD", "TRELLIS_DPR16X4")] == [1, 1, 0]
    assert result.count("FF") == 2 * 16 + 32 + 40 + 10  # x is the block RAM's own register
    assert all(figure.provenance is Provenance.SYNTHESISED for figure in result.figures)
    assert result.tool == str(find_yosys())


def test_results_are_whole_and_name_no_machine(tiny):
    _, output = tiny
    assert sorted(path.name for path in output.iterdir()) == ["netlist.json", "netlist.v", "stat.json", "yosys.log"]
    assert str(output) not in (output / "netlist.json").read_text()
    assert "tiny" in json.loads((output / "netlist.json").read_text())["modules"]


def test_a_run_repeats(tiny, tmp_path):
    result, output = tiny
    assert synthesise(TINY, "tiny", tmp_path) == result
    assert (tmp_path / "netlist.json").read_bytes() == (output / "netlist.json").read_bytes()


def test_json_round_trip(tiny):
    result, _ = tiny
    assert Synthesis.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_parameters_reach_the_top(tmp_path):
    source = tmp_path / "wide.v"
    source.write_text("module wide #(parameter N = 1)(input clk, input [N-1:0] d, output reg [N-1:0] q);\n"
                      "always @(posedge clk) q <= d;\nendmodule\n")
    assert synthesise(source, "wide", tmp_path / "out", parameters={"N": 9}).count("FF") == 9


def test_intel_figures_share_the_directory(tmp_path):
    result = synthesise(TINY, "tiny", tmp_path, architecture=Architecture.CYCLONE5)
    assert (result.count("MUL"), result.count("M10K")) == (1, 2)
    assert (tmp_path / "synth_intel_alm.netlist.v").is_file()


def test_synthesise_missing_file_wrong(tmp_path):
    with pytest.raises(DataError, match=r"^Synthesis needs a Verilog file, and .*none\.v is none; compile"):
        synthesise(tmp_path / "none.v", "tiny", tmp_path)


def test_synthesise_top_name_wrong(tmp_path):
    with pytest.raises(DataError, match=r"^A top module must be a plain Verilog name, not 'tiny; shell'$"):
        synthesise(TINY, "tiny; shell", tmp_path)


def test_synthesise_no_such_module_wrong_keeps_earlier_results(tmp_path):
    (tmp_path / "stat.json").write_text("earlier")
    with pytest.raises(ToolError, match=r"failed with status 1: ERROR: Module `?'?\\?other'? not found"):
        synthesise(TINY, "other", tmp_path)
    assert (tmp_path / "stat.json").read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stat.json", "yosys.log"]


def test_synthesise_syntax_wrong(tmp_path):
    broken = tmp_path / "broken.v"
    broken.write_text("module tiny(input a; endmodule\n")
    with pytest.raises(ToolError, match="syntax error"):
        synthesise(broken, "tiny", tmp_path / "out")


def test_parse_statistics_by_hand():
    whole = {"modules": {"\\sub": {"num_cells_by_type": {"LUT4": 1}}, "\\top": {"num_cells_by_type": {"sub": 2}}},
             "design": {"num_cells_by_type": {"TRELLIS_FF": 3, "LUT4": 2}}}
    assert parse_statistics(json.dumps(whole)) == (("LUT4", 2), ("TRELLIS_FF", 3))
    single = {"modules": {"\\top": {"num_cells_by_type": {"LUT4": 4}}}}
    assert parse_statistics(json.dumps(single)) == (("LUT4", 4),)


@pytest.mark.parametrize("text", ["", "{}", '{"modules": {}}', '{"modules": {"t": {}}}', "[1]"])
def test_parse_statistics_wrong(text):
    with pytest.raises(ToolError, match=r"^The statistics of Yosys cannot be read: .*version 0\.23 or newer\?$"):
        parse_statistics(text)


def test_resources_by_hand():
    cells = (("FDRE", 3), ("FDSE", 2), ("LUT3", 4), ("LUT6", 5), ("RAMB18E1", 1), ("RAMB36E1", 3))
    result = Synthesis(Architecture.SERIES7, "top", "yosys 0.70", cells)
    assert [result.count(name) for name in ("LUT", "FF", "BRAM_18K", "DSP48E1")] == [9, 5, 7, 0]


def test_cells_in_the_units_of_the_devices():
    cells = (("CCU2C", 10), ("DP16KD", 3), ("LUT4", 100), ("MULT18X18D", 2), ("PDPW16KD", 1), ("TRELLIS_DPR16X4", 2),
             ("TRELLIS_FF", 50))
    assert Synthesis(Architecture.ECP5, "top", "yosys 0.70", cells).resources == Resources(
        multipliers=2, block_rams=4, luts=100 + 20 + 12, flip_flops=50)
    cells = (("CARRY8", 9), ("DSP48E2", 4), ("LUT6", 5), ("RAM32M16", 1), ("RAMB36E2", 2), ("FDRE", 7))
    assert Synthesis(Architecture.ULTRASCALE_PLUS, "top", "yosys 0.70", cells).resources == Resources(
        multipliers=4, block_rams=4, luts=13, flip_flops=7)
    cells = (("MISTRAL_ALUT6", 3), ("MISTRAL_ALUT_ARITH", 8), ("MISTRAL_ALUT3", 2), ("MISTRAL_MUL9X9", 6))
    assert Synthesis(Architecture.CYCLONE5, "top", "yosys 0.70", cells).resources == Resources(
        multipliers=6, block_rams=0, luts=8, flip_flops=0)


def test_ultrascale_plus_shares_the_directory(tmp_path):
    result = synthesise(TINY, "tiny", tmp_path, architecture=Architecture.ULTRASCALE_PLUS)
    assert (result.count("DSP48E2"), result.count("BRAM_18K")) == (1, 1)
    assert (tmp_path / "synth_xilinx_xcup.netlist.v").is_file()


def test_cells_per_mac():
    result = Synthesis(Architecture.ECP5, "top", "yosys 0.70", (("LUT4", 10_650), ("MULT18X18D", 128)))
    figures = {figure.name: figure.value for figure in result.per_mac(128)}
    assert figures["LUT4 per MAC"] == 10_650 / 128 and figures["MULT18X18D per MAC"] == 1


def test_cells_per_mac_wrong():
    with pytest.raises(DataError, match="^Cells per MAC need at least one multiplier, not 0$"):
        Synthesis(Architecture.ECP5, "top", "yosys 0.70", ()).per_mac(0)
