import numpy as np
import pytest
from bench.simulation import simulate

from espalier.arch.machine import Machine
from espalier.gateware.lattice import Lattice

LATENCY_CYCLES = 3


def machine(rows, lanes, word_bits=16, pairs=False):
    return Machine(rows=rows, lanes=lanes, word_bits=word_bits, acc_bits=2 * word_bits + 8, activation_depth=2,
                   gradient_depth=2, weight_depth=2, index_depth=2, table_depth=2, pairs=pairs)


def run(machine, x, b, last, fresh=None, keep=None):
    """What ``loaded``, ``row`` and ``kept`` show in each cycle for operands (cycles, lanes) and (cycles, rows, lanes).
    """
    lattice, seen = Lattice(machine), []

    async def testbench(ctx):
        for cycle in range(len(x)):
            for lane in range(machine.lanes):
                ctx.set(lattice.x[lane], int(x[cycle, lane]))
                for row in range(machine.rows):
                    ctx.set(lattice.b[row][lane], int(b[cycle, row, lane]))
            ctx.set(lattice.last, int(last[cycle]))
            for port, values in ((lattice.fresh, fresh), (lattice.keep, keep)):
                ctx.set(port, int(values is not None and values[cycle]))
            seen.append((ctx.get(lattice.loaded), [ctx.get(lattice.row[lane]) for lane in range(machine.lanes)],
                         ctx.get(lattice.kept)))
            await ctx.tick()

    simulate(lattice, testbench, max_cycles=len(x) + 1)
    return seen


@pytest.mark.parametrize(("rows", "lanes", "word_bits", "pairs"), [
    (1, 3, 16, False), (2, 2, 16, False), (4, 3, 8, False), (8, 1, 16, False), (4, 3, 8, True), (2, 1, 3, True)])
def test_tiles_follow_each_other_without_a_gap(rows, lanes, word_bits, pairs):
    """Tiles of ``rows`` steps and more, back to back: the sums of one leave while the next adds up."""
    rng = np.random.default_rng(rows)
    lengths = [rows, rows, rows + 3, 1 if rows == 1 else rows, 20, rows]
    count, low, high = sum(lengths), -(1 << word_bits - 1), (1 << word_bits - 1) - 1
    x = rng.integers(low, high, (count + rows + 8, lanes), endpoint=True)
    b = rng.integers(low, high, (count + rows + 8, rows, lanes), endpoint=True)
    x[:5], b[:5] = low, low
    ends = np.cumsum(lengths) - 1
    last = np.isin(np.arange(len(x)), ends)
    seen = run(machine(rows, lanes, word_bits, pairs), x, b, last)
    assert [cycle for cycle, (loaded, *_) in enumerate(seen) if loaded] == [end + LATENCY_CYCLES - 1 for end in ends]
    for end, length in zip(ends, lengths, strict=True):
        steps = slice(end - length + 1, end + 1)
        sums = (x[steps, None, :] * b[steps]).sum(axis=0)
        for row in range(rows):
            assert seen[end + LATENCY_CYCLES + row][1] == sums[row].tolist()


@pytest.mark.parametrize(("rows", "lanes", "word_bits", "pairs"), [
    (1, 3, 16, False), (2, 2, 16, False), (4, 3, 8, False), (4, 2, 8, True)])
def test_a_bias_is_kept_for_the_tiles_of_its_block(rows, lanes, word_bits, pairs):
    """Blocks of a few tiles, with a bias or without: it is in the sums of the first tile, and beside those after it."""
    rng = np.random.default_rng(rows)
    low, high = -(1 << word_bits - 1), (1 << word_bits - 1) - 1
    one, steps, expected = 1 << word_bits - 3, [], {}  # (x, b, last, fresh, keep)
    for block in range(12):
        bias = rng.integers(low, high, rows, endpoint=True) if block % 3 else None
        for tile in range(int(rng.integers(1, 4))):
            size, sums = int(rng.integers(rows, 2 * rows, endpoint=True)), np.zeros((rows, lanes), dtype=np.int64)
            met = int(rng.integers(size)) if tile == 0 and bias is not None else -1  # also in the tile's last step
            for step in range(size):
                x, b = rng.integers(low, high, lanes, endpoint=True), rng.integers(low, high, (rows, lanes))
                if step == met:
                    x, b = np.full(lanes, one), np.repeat(bias[:, None], lanes, axis=1)
                sums += x * b
                steps.append((x, b, step + 1 == size, tile == 0, step == met))
            kept = one * bias if tile and bias is not None else np.zeros(rows, dtype=np.int64)
            expected |= {len(steps) - 1 + LATENCY_CYCLES + row: (sums[row].tolist(), kept[row]) for row in range(rows)}
    steps += [(np.zeros(lanes), np.zeros((rows, lanes)), False, False, False)] * (rows + LATENCY_CYCLES)
    seen = run(machine(rows, lanes, word_bits, pairs), *map(np.array, zip(*steps, strict=True)))
    assert {cycle: seen[cycle][1:] for cycle in expected} == expected
