import numpy as np
import pytest
from amaranth.hdl import signed
from bench.simulation import simulate

from espalier.gateware.ram import BankedRam


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
