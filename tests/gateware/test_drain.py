import numpy as np
import pytest
from bench.simulation import simulate

from espalier.arch.machine import Machine
from espalier.gateware.drain import LaneTree, VectorRequantizer
from espalier.numerics.requantize import Requantize


def machine(lanes, word_bits=16, acc_bits=40):
    return Machine(rows=2, lanes=lanes, word_bits=word_bits, acc_bits=acc_bits, activation_depth=2, gradient_depth=2,
                   weight_depth=2, index_depth=2, table_depth=2)


def streamed(component, vectors, latency, lanes, settings):
    """One vector in each cycle; the results of each, ``latency`` cycles later."""
    seen = []

    async def testbench(ctx):
        for name, value in settings.items():
            ctx.set(getattr(component, name), value)
        for cycle in range(len(vectors) + latency):
            for lane, word in enumerate(vectors[min(cycle, len(vectors) - 1)]):
                ctx.set(component.i[lane], int(word))
            if cycle >= latency:
                seen.append([ctx.get(component.o[lane]) for lane in range(lanes)] if lanes else ctx.get(component.o))
            await ctx.tick()

    simulate(component, testbench, max_cycles=len(vectors) + latency + 1)
    return np.array(seen)


def accumulators(rng, bits, shape):
    """Words of every magnitude, with the extremes and the halves."""
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    words = rng.integers(low, high, shape, endpoint=True) >> rng.integers(0, bits, shape)
    words[0], words[1], words[2] = low, high, -1
    return words


@pytest.mark.parametrize("shift", range(40))
def test_requantizer_every_shift(shift):
    rng = np.random.default_rng(shift)
    halves = (1 << shift) >> 1
    vectors = accumulators(rng, 40, (24, 2))
    vectors[3:9, 0] = [halves, -halves, halves - 1, -halves - 1, 3 * halves, -3 * halves]
    vectors = np.clip(vectors, -(1 << 39), (1 << 39) - 1)
    for width in (16, 9, 2):
        spec = Requantize(acc_bits=40, out_bits=width, shift=shift)
        component = VectorRequantizer(machine(2))
        seen = streamed(component, vectors, component.latency_cycles, 2, {"shift": shift, "limit": spec.out_range[1]})
        assert np.array_equal(seen, spec(vectors)), width


def test_requantizer_shifts_past_the_accumulator():
    component = VectorRequantizer(machine(1, 8, 20))
    vectors = accumulators(np.random.default_rng(0), 20, (12, 1))
    seen = streamed(component, vectors, component.latency_cycles, 1, {"shift": 40, "limit": 127})
    assert not seen.any()


@pytest.mark.parametrize("lanes", [1, 2, 3, 5, 8])
def test_lane_tree(lanes):
    """The exact sum of all lanes, also of the extremes, one vector per cycle."""
    tree = LaneTree(machine(lanes))
    vectors = accumulators(np.random.default_rng(lanes), 40, (12, lanes))
    assert np.array_equal(streamed(tree, vectors, tree.latency_cycles, 0, {}), vectors.sum(axis=1))
