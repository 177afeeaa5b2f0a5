import numpy as np
import pytest
from bench.networks import Chain, all_live
from bench.simulation import simulate

from espalier.arch.machine import Machine
from espalier.compiler.lists import layer_blocks
from espalier.gateware.memories import GradientBanks, WeightBanks


def machine(rows, lanes=1, trees=1):
    return Machine(rows=rows, lanes=lanes, trees=trees, activation_depth=8, gradient_depth=8, weight_depth=64,
                   index_depth=2, table_depth=2)


@pytest.mark.parametrize(("rows", "trees"), [(1, 1), (2, 1), (2, 2), (4, 2), (8, 1), (16, 4), (16, 16)])
def test_weights_are_read_by_column_and_by_row_in_one_cycle(rows, trees):
    """The compiler's places, the memory's banks: FP reads a column of a block in a cycle, BP a row."""
    chain = Chain((rows, 1, 1)).conv(2 * rows, (1, 1), bias=False).linear(2)
    item = layer_blocks(chain.layers()[0], all_live(chain), rows, 3)
    weights = np.random.default_rng(rows).integers(-1 << 15, 1 << 15, (2 * rows, rows))
    places = item.addresses()["conv0.weight"].reshape(2 * rows, rows)
    banks, block = WeightBanks(machine(rows, trees=trees)), item.blocks[1]
    mine = weights[rows:]

    async def read(ctx, addresses, term):
        for bank in range(rows):
            ctx.set(banks.read_addresses[bank], int(addresses[bank]))
        await ctx.tick().repeat(2)
        return [ctx.get(banks.read_data[(k + term) % rows]) for k in range(rows)]

    async def testbench(ctx):
        for place, word in zip(places.ravel(), weights.ravel(), strict=True):
            port, own = divmod(int(place % rows), rows // trees)
            for other in range(trees):
                ctx.set(banks.write[other], {"en": other == port, "bank": own, "address": int(place // rows),
                                             "data": int(word)})
            await ctx.tick()
        for port in range(trees):
            ctx.set(banks.write[port].en, 0)
        for j in range(rows):
            assert await read(ctx, [block.column + j] * rows, j) == mine[:, j].tolist()
        for i in range(rows):
            assert await read(ctx, [block.column + (bank - i) % rows for bank in range(rows)], i) == mine[i].tolist()

    simulate(banks, testbench, max_cycles=2 * rows * rows + 4 * rows + 2)


def test_gradient_banks_write_one_and_read_each_at_an_address():
    banks = GradientBanks(machine(4, lanes=2))
    words = np.random.default_rng(0).integers(-1 << 15, 1 << 15, (8, 4, 2))

    async def testbench(ctx):
        ctx.set(banks.write_en, 1)
        for address in range(8):
            for bank in range(4):
                ctx.set(banks.write_address, address)
                ctx.set(banks.write_bank, bank)
                for lane in range(2):
                    ctx.set(banks.write_data[lane], {"value": int(words[address, bank, lane]), "code": lane + 1})
                await ctx.tick()
        ctx.set(banks.write_en, 0)
        for address in range(8):
            addresses = [(address + 3 * bank) % 8 for bank in range(4)]
            ctx.set(banks.read_addresses, addresses)
            await ctx.tick().repeat(2)
            assert [[ctx.get(banks.read_data[bank][lane].value) for lane in range(2)] for bank in range(4)] \
                == words[addresses, range(4)].tolist()
            assert [ctx.get(banks.read_data[bank][lane].code) for bank in range(4) for lane in range(2)] == [1, 2] * 4

    simulate(banks, testbench, max_cycles=64)
