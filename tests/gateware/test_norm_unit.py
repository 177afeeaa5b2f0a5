"""The norm unit beside ``numerics/fixed_batch_norm.py``: sums in, words and state out."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from bench.ported import NOTHING, Ported, Running
from bench.simulation import simulate

from espalier.arch.machine import CHANNEL_SCALARS, Machine
from espalier.engines.verilator import WAIT_IDLE
from espalier.gateware.norm_unit import READ_CYCLES, NormUnit, norm_rule
from espalier.numerics import fixed_batch_norm as norm
from espalier.numerics.fixed import Fixed
from espalier.numerics.scalar import binary32, of_words, scalar
from espalier.numerics.update import ScalarSgd
from espalier.program.norm import NormMode, Slot
from espalier.program.norm_schedule import CHANNEL_CYCLES

STATE = (Slot.SCALE, Slot.SHIFT, Slot.SCALE_VELOCITY, Slot.SHIFT_VELOCITY, Slot.RUNNING_MEAN, Slot.RUNNING_VARIANCE)
ARRIVAL_CYCLES = 2  #: from a channel's second sum to the cycle in which the unit can go through the channel


def bits(scalars):
    return np.asarray(scalars, np.float32).view(np.uint32)


@dataclass
class Layer:
    """A batch norm of some channels from the unit's ``first`` on: input, gradient and state; all (C,) or (N, C)."""

    rng: np.random.Generator
    first: int
    channels: int
    word_bits: int
    values: int = 24
    epsilon: float = 1e-5
    state: dict = field(init=False)

    def __post_init__(self):
        rng, shape = self.rng, (self.values, self.channels)
        low, high = -(1 << self.word_bits - 1), (1 << self.word_bits - 1) - 1
        small = rng.integers(0, self.word_bits, self.channels)
        self.x, self.g = (rng.integers(low, high, shape, endpoint=True) >> small for _ in range(2))
        self.x[:, 0] = 7  # a channel without variance
        self.x_frac, self.g_frac = int(rng.integers(0, 15)), int(rng.integers(-4, 20))
        self.factors = Fixed.of(int(rng.integers(2, self.word_bits + 1)), int(rng.integers(0, self.word_bits)))
        self.slopes = Fixed.of(int(rng.integers(2, self.word_bits + 1)), int(rng.integers(0, 20)))
        self.sgd = ScalarSgd(momentum=scalar(0.9), rate=scalar(0.01), decay=scalar(1e-4))
        self.state = {slot: scalar(rng.normal(1, 0.5, self.channels)) for slot in STATE}
        self.state[Slot.RUNNING_VARIANCE] = np.abs(self.state[Slot.RUNNING_VARIANCE])

    def rule(self, mode):
        n, backward = self.values, mode == NormMode.BACKWARD
        made = self.slopes if backward else self.factors
        constants = {"share": norm.share(n), "epsilon": self.epsilon, "following": norm.following(n),
                     "norm_momentum": self.sgd.momentum, "norm_rate": self.sgd.rate, "norm_decay": self.sgd.decay}
        return {"norm_mode": mode, "norm_base": self.first, "norm_count": self.channels,
                "sum_frac": self.x_frac + (self.g_frac if backward else self.x_frac), "word_frac": made.frac,
                "word_limit": made.high, **{name: binary32(value) for name, value in constants.items()}}

    def sums(self, mode):
        """(2, C): of products with one, and with the input."""
        terms = self.g if mode == NormMode.BACKWARD else self.x
        return np.stack([terms.sum(axis=0) << self.x_frac, (terms * self.x).sum(axis=0)])

    def step(self, mode):
        """The words, (2, C) in the order of ``program.norm.Word``; the state becomes the new one."""
        return (self.forward, self.backward, self.running)[mode]()

    def running(self):
        state = self.state
        factor = norm.factor(state[Slot.SCALE], state[Slot.RUNNING_VARIANCE], self.epsilon, self.factors)
        return np.stack([norm.offset(state[Slot.SHIFT], state[Slot.RUNNING_MEAN], factor, self.factors), factor])

    def forward(self):
        state, x = self.state, self.x
        self.mean = norm.batch_mean(x, self.x_frac)
        self.variance = norm.batch_variance(x, self.x_frac, self.mean)
        state[Slot.RUNNING_MEAN] = norm.followed(state[Slot.RUNNING_MEAN], self.mean)
        state[Slot.RUNNING_VARIANCE] = norm.followed(state[Slot.RUNNING_VARIANCE], self.variance, self.values)
        self.factor = norm.factor(state[Slot.SCALE], self.variance, self.epsilon, self.factors)
        return np.stack([norm.offset(state[Slot.SHIFT], self.mean, self.factor, self.factors), self.factor])

    def backward(self):
        state, epsilon, n = self.state, self.epsilon, self.values
        factors = of_words(self.factor, self.factors)
        shift_grad = norm.shift_grad(self.g, self.g_frac)
        scale_grad = norm.scale_grad(self.g, self.g_frac, self.x, self.x_frac, self.mean, self.variance, epsilon)
        slope = norm.slope(factors, self.variance, epsilon, scale_grad, n, self.slopes)
        intercept = norm.intercept(factors, of_words(slope, self.slopes), self.mean, shift_grad, n, self.slopes)
        for weight, velocity, grad in ((Slot.SCALE, Slot.SCALE_VELOCITY, scale_grad),
                                       (Slot.SHIFT, Slot.SHIFT_VELOCITY, shift_grad)):
            state[weight], state[velocity] = self.sgd(state[weight], state[velocity], grad)
        return np.stack([intercept, slope])


def arrivals(unit, sums, rng=None, pairs=True):
    """What each tree gives in each cycle, ``(which, sum)`` or None: blocks of rows in order, gaps by chance."""
    machine = unit.machine
    tree_rows, queues = machine.tree_rows, [[] for _ in range(machine.trees)]
    for block in range(0, sums.shape[1], machine.rows):
        for tree, queue in enumerate(queues):
            first = block + tree * tree_rows
            channels = range(first, min(first + tree_rows, sums.shape[1]))
            queue += ([(which, int(sums[which, c])) for c in channels for which in range(2)] if pairs else
                      [(which, int(sums[which, c])) for which in range(2) for c in channels])
    if rng is not None:
        queues = [[item for given in queue for item in (*[None] * int(rng.integers(0, 200)), given)]
                  for queue in queues]
    return queues


async def run_layer(ctx, unit, rule, queues):
    """Start, give the sums; the words (2, C) and the cycles in which the unit was busy."""
    words, busy = np.zeros((2, rule["norm_count"]), dtype=np.int64), 0
    seen = set()
    ctx.set(unit.rule, rule)
    ctx.set(unit.start, 1)
    await ctx.tick()
    ctx.set(unit.start, 0)
    while ctx.get(unit.busy):
        given = [queue[busy] if busy < len(queue) else None for queue in queues]
        ctx.set(unit.sum_valid, sum((item is not None) << tree for tree, item in enumerate(given)))
        ctx.set(unit.sum_which, sum((item[0] if item else 1) << tree for tree, item in enumerate(given)))
        ctx.set(unit.sum, [item[1] if item else -1 for item in given])
        if ctx.get(unit.word_valid):
            place = ctx.get(unit.word_which), ctx.get(unit.word_channel)
            assert place not in seen
            seen.add(place)
            words[place] = ctx.get(unit.word)
        await ctx.tick()
        busy += 1
    assert len(seen) == words.size
    return words, busy


async def write_state(ctx, unit, layer):
    for slot, scalars in layer.state.items():
        for channel, word in enumerate(bits(scalars).tolist()):
            ctx.set(unit.host_write, 1)
            ctx.set(unit.host_address, (layer.first + channel) * CHANNEL_SCALARS + slot.value)
            ctx.set(unit.host_data, word)
            await ctx.tick()
    ctx.set(unit.host_write, 0)


async def check_state(ctx, unit, layer):
    for slot, scalars in layer.state.items():
        for channel, expected in enumerate(scalars):
            ctx.set(unit.host_address, (layer.first + channel) * CHANNEL_SCALARS + slot.value)
            await ctx.tick().repeat(READ_CYCLES)
            assert np.uint32(ctx.get(unit.host_read)).view(np.float32) == expected, (slot, channel)


def check(unit, layers, rng=None, pairs=True, steps=2):
    """Some steps of all layers, forward and then backward in the opposite order; the cycles of each run."""
    cycles = []

    async def testbench(ctx):
        for layer in layers:
            await write_state(ctx, unit, layer)
        for _ in range(steps):
            for mode in NormMode:
                for layer in layers[::-1] if mode == NormMode.BACKWARD else layers:
                    queues = arrivals(unit, layer.sums(mode), rng, pairs) if mode != NormMode.RUNNING else [[]]
                    words, busy = await run_layer(ctx, unit, layer.rule(mode), queues)
                    assert np.array_equal(words, layer.step(mode))
                    cycles.append(busy)
        for layer in layers:
            await check_state(ctx, unit, layer)

    simulate(unit, testbench, max_cycles=200_000)
    return cycles


def machine(rows, trees, channels, word_bits, sum_bits):
    depths = ("activation_depth", "gradient_depth", "weight_depth", "index_depth", "table_depth")
    return Machine(rows=rows, lanes=1, trees=trees, word_bits=word_bits, acc_bits=sum_bits, norm_depth=channels,
                   **dict.fromkeys(depths, 2))


@pytest.mark.parametrize("rows, trees, counts", [(1, 1, (5,)), (4, 1, (3, 8)), (4, 2, (2, 7)), (8, 8, (11,)),
                                                 (8, 2, (8, 3))])
@pytest.mark.parametrize("word_bits", [4, 16])
def test_words_and_state(rows, trees, counts, word_bits):
    rng = np.random.default_rng(rows + word_bits)
    unit = NormUnit(machine(rows, trees, sum(counts), word_bits, 48))
    layers = [Layer(rng, sum(counts[:k]), count, word_bits) for k, count in enumerate(counts)]
    cycles = check(unit, layers)
    assert cycles == 2 * [CHANNEL_CYCLES[mode] * count + ARRIVAL_CYCLES * (mode != NormMode.RUNNING)
                          for mode in NormMode for count in counts[:: -1 if mode == NormMode.BACKWARD else 1]]


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("trees", [1, 4])
def test_sums_trickle_in(trees, pairs):
    """With long gaps, both sums of a channel together or all first sums of a block before the second ones."""
    rng = np.random.default_rng(trees)
    unit = NormUnit(machine(4, trees, 16, 8, 40))
    check(unit, [Layer(rng, 3, 10, 8)], rng, pairs)


class Verilated:
    """The unit in Verilog, where a word that is read while it is written is wrong."""

    def __init__(self, unit):
        self.unit, self.layout = unit, norm_rule(unit.machine)
        self.ported = Ported(unit, ["start", "sum_valid", "host_write"],
                             {"word_valid": ["word", "word_which", "word_channel"]})
        self.words = 0

    def write_state(self, running, layer):
        writes = []
        for slot, scalars in layer.state.items():
            for channel, word in enumerate(bits(scalars).tolist()):
                writes += [*self.ported.sets("host_address", (layer.first + channel) * CHANNEL_SCALARS + slot.value),
                           *self.ported.sets("host_data", word), *self.ported.pulse("host_write")]
        running.write(*zip(*writes, strict=True))

    def run_layer(self, running, rule, sums):
        """All sums at once through one tree; the words (2, C)."""
        ported, count = self.ported, 2 * rule["norm_count"]
        writes = [*ported.sets("rule", self.layout.const(rule).as_bits()), *ported.pulse("start")]
        for which, total in arrivals(self.unit, sums)[0]:
            writes += [*ported.sets("sum", total), *ported.sets("sum_which", which), *ported.pulse("sum_valid")]
        running.write(*zip(*writes, (WAIT_IDLE, 0), strict=True))
        got, words = running.read(self.words + np.arange(count)), np.zeros((2, rule["norm_count"]), dtype=np.int64)
        self.words += count
        width = self.unit.machine.word_bits
        words[got >> width & 1, got >> width + 1] = (got << 32 - width).astype(np.uint32).view(np.int32) >> 32 - width
        return words

    def read(self, running, address):
        running.write(*zip(*self.ported.sets("host_address", address), *[(NOTHING, 0)] * READ_CYCLES, strict=True))
        return running.read([self.ported.piece("host_read")])[0]


def test_many_channels_in_verilog():
    rng, count = np.random.default_rng(5), 300
    bench = Verilated(NormUnit(machine(8, 1, count + 9, 16, 62)))
    layer = Layer(rng, 9, count, 16)
    with Running(bench.ported) as running:
        bench.write_state(running, layer)
        for _ in range(3):
            for mode in (NormMode.FORWARD, NormMode.BACKWARD):
                words = bench.run_layer(running, layer.rule(mode), layer.sums(mode))
                assert np.array_equal(words, layer.step(mode))
        for slot, scalars in layer.state.items():
            for channel in range(0, count, 7):
                word = bench.read(running, (layer.first + channel) * CHANNEL_SCALARS + slot.value)
                assert word.view(np.float32) == scalars[channel], (slot, channel)


def test_cycles_of_a_channel():
    assert CHANNEL_CYCLES == {NormMode.FORWARD: 134, NormMode.BACKWARD: 77, NormMode.RUNNING: 107}
