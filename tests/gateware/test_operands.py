"""From steps to the operands of the lattice, against the tensors that the memories hold."""

from dataclasses import dataclass

import numpy as np
import pytest
from bench.simulation import simulate, trace

from espalier.arch.machine import Machine
from espalier.gateware.operands import Operands
from espalier.numerics.activation import max_pool_grad
from espalier.numerics.window import Window
from espalier.program.words import Opcode

ROWS = [1, 2, 4]
ACTIVATION_CYCLES, GRADIENT_CYCLES, WEIGHT_CYCLES = 3, 2, 2  #: from an address of the operands to its data
ADDRESS_CYCLES = 4  #: from a step to the addresses of its weights
POOL = Window((2, 2), (2, 2))
SIZE = (4, 6)     #: map
CHANNELS = 5      #: of the activations
OUT_BLOCKS = 2    #: blocks of ``rows`` channels of the gradients
BASE, IMAGE = 3, CHANNELS * SIZE[0] * SIZE[1]
COLUMNS = 24      #: of the weights


def machine(rows, lanes):
    return Machine(rows=rows, lanes=lanes, word_bits=10, acc_bits=24, activation_depth=256, gradient_depth=64,
                   weight_depth=32, index_depth=2, table_depth=2)


def words(rng, shape):
    return rng.integers(-512, 511, shape, endpoint=True)


@dataclass
class Memories:
    """What the memories hold: random codes beside activations; gradients as stored, pooled or not.

    ``x`` (2 parities, lanes, C, H, W), ``g`` (lanes, C, H, W) with its codes as stored, ``w`` (blocks, i, j).
    """

    x: np.ndarray
    g: np.ndarray
    codes: np.ndarray
    w: np.ndarray
    activations: np.ndarray
    gradients: np.ndarray
    weights: np.ndarray

    @classmethod
    def random(cls, machine, rng, *, pooled):
        rows, lanes = machine.rows, machine.lanes
        height, width = (size // 2 for size in SIZE) if pooled else SIZE
        x = words(rng, (2, lanes, CHANNELS, *SIZE))
        g, codes = words(rng, (lanes, OUT_BLOCKS * rows, height, width)), rng.integers(
            0, 4, (lanes, OUT_BLOCKS * rows, height, width))
        w = words(rng, (COLUMNS // rows, rows, rows))
        activations = np.stack([words(rng, (256, lanes)), rng.integers(0, 4, (256, lanes))], axis=-1)
        activations[BASE:BASE + 2 * IMAGE, :, 0] = x.transpose(0, 2, 3, 4, 1).reshape(-1, lanes)
        gradients = np.stack([words(rng, (rows, 64, lanes)), rng.integers(0, 4, (rows, 64, lanes))], axis=-1)
        for channel in range(OUT_BLOCKS * rows):
            at = BASE + channel // rows * height * width
            stored = np.stack([g[:, channel], codes[:, channel]], axis=-1).transpose(1, 2, 0, 3)
            gradients[channel % rows, at: at + height * width] = stored.reshape(-1, lanes, 2)
        weights = words(rng, (rows, 32))
        for block in range(len(w)):
            for i in range(rows):
                for j in range(rows):
                    weights[(i + j) % rows, block * rows + j] = w[block, i, j]
        return cls(x, g, codes, w, activations, gradients, weights)

    @property
    def gradient_map(self):
        """The gradients on the whole map: where each one's code says, zero elsewhere."""
        return self.g if self.g.shape[2:] == SIZE else max_pool_grad(self.g, self.codes, POOL, SIZE)

    def vector(self, memory, address):
        return [{"value": int(value), "code": int(code)} for value, code in memory[address % len(memory)]]


class Bench:
    """Operands with memories that answer each address as late as they should."""

    def __init__(self, machine, memories, command, *, parity=0):
        self.machine, self.memories, self.command, self.parity = machine, memories, command, parity
        self.operands = Operands(machine)

    def run(self, rows, observe):
        """Give ports (``step`` or ``probe``) the values of one row a cycle; ``observe(ctx)`` of each cycle."""
        operands, memories, seen = self.operands, self.memories, []
        banks, asked = range(self.machine.rows), []

        async def testbench(ctx):
            ctx.set(operands.command, self.command)
            ctx.set(operands.parity, self.parity)
            await ctx.tick().repeat(3)
            for row in rows:
                for name, value in row.items():
                    ctx.set(getattr(operands, name), value)
                asked.append((ctx.get(operands.activation_address), *(
                    [ctx.get(addresses[bank]) for bank in banks]
                    for addresses in (operands.gradient_addresses, operands.weight_addresses))))
                activation, gradients, columns = (asked[max(0, len(asked) - 1 - late)][k] for k, late in enumerate(
                    (ACTIVATION_CYCLES, GRADIENT_CYCLES, WEIGHT_CYCLES)))
                ctx.set(operands.activation, memories.vector(memories.activations, activation))
                ctx.set(operands.gradients, [memories.vector(memories.gradients[bank], gradients[bank])
                                                 for bank in banks])
                ctx.set(operands.weights, [int(memories.weights[bank, columns[bank]]) for bank in banks])
                seen.append(observe(ctx))
                await ctx.tick()

        simulate(operands, testbench, max_cycles=len(rows) + 5)
        return seen

    def operands_of(self, steps):
        """The operands of each step, one step a cycle: x (lanes), b (rows, lanes), last, and the step with them."""
        operands, lanes = self.operands, range(self.machine.lanes)

        def observe(ctx):
            return ([ctx.get(operands.x[lane]) for lane in lanes],
                    [[ctx.get(operands.b[row][lane]) for lane in lanes] for row in range(self.machine.rows)],
                    ctx.get(operands.last), ctx.get(operands.done))

        rows = [{"step": step} for step in steps] + [{"step": {}}] * operands.latency_cycles
        return self.run(rows, observe)[operands.latency_cycles:]


def any_steps(rng, count, make):
    """Steps of ``make(one)`` with the constant one in some, with ``last`` in some, and some that are not valid."""
    return [make(bool(rng.random() < 0.2)) | {"valid": int(rng.random() < 0.8), "last": int(rng.random() < 0.3)}
            for _ in range(count)]


def below(rng, *limits):
    return [int(rng.integers(limit)) for limit in limits]


def source_steps(rng, machine, count, gradient_size):
    """Steps of FP and WU; each with its source channel, and the gradient's block and term."""
    places = []

    def make(one):
        channel, block, weights, term, y, x, tile_y, tile_x = below(
            rng, CHANNELS, OUT_BLOCKS, COLUMNS // machine.rows, machine.rows, *SIZE, *SIZE)
        places.append((channel, block, weights, term))
        return {"channel": BASE + channel * SIZE[0] * SIZE[1], "y": y, "x": x, "one": int(one), "term": term,
                "column": weights * machine.rows,
                "tile": {"y": tile_y, "x": tile_x, "rows": 1, "final": int(one), "mask": channel,
                         "out": BASE + block * gradient_size[0] * gradient_size[1]}}

    return any_steps(rng, count, make), places


def check_ends(steps, seen):
    """``last`` and ``done`` are of the step that the operands belong to; what is not valid adds nothing."""
    for step, (x, _, last, done) in zip(steps, seen, strict=True):
        assert last == step["last"]
        assert all(done[name] == step[name] for name in step if name != "tile")
        assert all(done.tile[name] == value for name, value in step["tile"].items())
        if not step["valid"]:
            assert not any(x)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize(("opcode", "pooled"), [(Opcode.FORWARD, 0), (Opcode.UPDATE, 0), (Opcode.UPDATE, 1)])
def test_source_is_the_activation_or_the_constant_one(rows, parity, opcode, pooled):
    """FP multiplies a column of a block, WU the gradients of a block's rows at the tile, each lane its own."""
    rng, mine = np.random.default_rng(rows + 2 * parity), machine(rows, 2)
    memories, one = Memories.random(mine, rng, pooled=pooled), -300 if rows == 2 else 256
    size = memories.g.shape[2:]
    command = {"opcode": opcode, "source_x": SIZE[1], "source_plane": SIZE[0] * SIZE[1], "one": one & 1023,
               "alternate": IMAGE, "pool_source": pooled, "gradient_x": size[1]}
    steps, places = source_steps(rng, mine, 40, size)
    seen = Bench(mine, memories, command, parity=parity).operands_of(steps)
    check_ends(steps, seen)
    for step, (channel, block, weights, term), (x, b, _, _) in zip(steps, places, seen, strict=True):
        if step["valid"]:
            assert x == ([one] * 2 if step["one"] else memories.x[parity, :, channel, step["y"], step["x"]].tolist())
            if opcode == Opcode.FORWARD:
                assert b == [[word] * 2 for word in memories.w[weights, :, term]]
            else:
                channels = slice(block * rows, (block + 1) * rows)
                tile = memories.gradient_map[:, channels, step["tile"]["y"], step["tile"]["x"]]
                assert b == tile.T.tolist()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("pooled", [0, 1])
def test_backward_reads_gradients_and_rows_of_blocks(rows, pooled):
    """A pooled gradient counts only at the position that its code names."""
    rng, mine = np.random.default_rng(rows), machine(rows, 3)
    memories, places = Memories.random(mine, rng, pooled=pooled), []
    height, width = memories.g.shape[2:]

    def make(_):
        block, weights, term, y, x = below(rng, OUT_BLOCKS, COLUMNS // rows, rows, *SIZE)
        places.append((block * rows + term, weights, term))
        tile_y, tile_x, out = below(rng, *SIZE, 32)
        return {"channel": BASE + block * height * width, "y": y, "x": x, "term": term, "column": weights * rows,
                "tile": {"y": tile_y, "x": tile_x, "out": out, "mask": out, "rows": rows}}

    steps = any_steps(rng, 50, make)
    command = {"opcode": Opcode.BACKWARD, "pool_source": pooled, "gradient_x": width, "source_x": SIZE[1],
               "source_plane": 7, "alternate": 0}
    seen = Bench(mine, memories, command).operands_of(steps)
    check_ends(steps, seen)
    for step, (channel, weights, term), (x, b, _, _) in zip(steps, places, seen, strict=True):
        if step["valid"]:
            assert x == memories.gradient_map[:, channel, step["y"], step["x"]].tolist()
            assert b == [[word] * 3 for word in memories.w[weights, term]]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("opcode", [Opcode.FORWARD, Opcode.BACKWARD])
def test_what_is_added_is_read_beside_the_steps(rows, opcode):
    """Of the gradients: in FP, which reads no other, from any bank; in BP from one that the step does not read."""
    rng, mine = np.random.default_rng(rows), machine(rows, 2)
    memories = Memories.random(mine, rng, pooled=0)
    bench, plane, steps, sources = Bench(mine, memories, {
        "opcode": opcode, "gradient_x": SIZE[1], "source_x": SIZE[1]}), SIZE[0] * SIZE[1], [], []
    for _ in range(60):
        channel, block, y, x, row, address = below(rng, CHANNELS, OUT_BLOCKS, *SIZE, rows, 64)
        term = channel % rows
        forward = opcode == Opcode.FORWARD
        sources.append(memories.x[0, :, channel, y, x] if forward else memories.g[:, block * rows + term, y, x])
        steps.append({"valid": int(rng.random() < 0.8), "channel": BASE + (channel if forward else block) * plane,
                      "term": term, "y": y, "x": x, "add_address": address, "add_row": row})
        steps[-1]["add"] = int(forward or not steps[-1]["valid"] or row != term)

    def observe(ctx):
        return ([ctx.get(bench.operands.x[lane]) for lane in range(2)],
                [ctx.get(bench.operands.addend[lane].value) for lane in range(2)])

    late = Operands.latency_cycles
    seen = bench.run([{"step": step} for step in steps] + [{"step": {}}] * late, observe)[late:]
    for step, source, (x, addend) in zip(steps, sources, seen, strict=True):
        assert x == (source.tolist() if step["valid"] else [0, 0])
        if step["add"]:
            assert addend == memories.gradients[step["add_row"], step["add_address"], :, 0].tolist()


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
def test_skewed_addresses_of_the_weight_banks(rows):
    """FP: one column in every bank. BP: one row, a place further in each bank, from where the row begins."""
    steps = [{"step": {"valid": 1, "column": column, "term": term}} for column in (0, 16) for term in range(rows)]
    for opcode in (Opcode.FORWARD, Opcode.BACKWARD):
        inputs = [{"command": {"opcode": opcode}} | step for step in [{}] * 2 + steps + [{}] * ADDRESS_CYCLES]
        seen = [list(addresses) for addresses, in trace(Operands(machine(rows, 1)), inputs, ["weight_addresses"])]
        for step, addresses in zip(steps, seen[2 + ADDRESS_CYCLES:], strict=True):
            column, term = step["step"]["column"], step["step"]["term"]
            assert addresses == [column + (term if opcode == Opcode.FORWARD else (bank - term) % rows)
                                 for bank in range(rows)]


def test_codes_of_activations_do_not_matter():
    """WU of a layer whose gradient is pooled reads its source whole."""
    mine = machine(1, 4)
    memories = Memories.random(mine, np.random.default_rng(0), pooled=1)
    memories.activations[BASE, :, 1] = range(4)
    command = {"opcode": Opcode.UPDATE, "pool_source": 1, "source_x": SIZE[1], "gradient_x": SIZE[1] // 2}
    steps = [{"valid": 1, "channel": BASE, "tile": {"y": y, "x": x, "out": BASE}} for y in range(2) for x in range(2)]
    seen = Bench(mine, memories, command).operands_of(steps)
    assert [x for x, _, _, _ in seen] == [memories.x[0, :, 0, 0, 0].tolist()] * 4
    stored = zip(memories.g[:, 0, 0, 0].tolist(), memories.codes[:, 0, 0, 0].tolist(), strict=True)
    assert np.array([b[0] for _, b, _, _ in seen]).T.tolist() == [
        [word if code == position else 0 for position in range(4)] for word, code in stored]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("memory", ["activations", "gradients", "weights"])
def test_probe_finds_a_word_of_any_memory(rows, memory):
    """While the machine is idle, at the claimed latency of a probe that is held."""
    rng, mine = np.random.default_rng(rows), machine(rows, 2)
    memories = Memories.random(mine, rng, pooled=0)
    bench, inputs, expected = Bench(mine, memories, {"opcode": Opcode.END}), [], []
    for _ in range(16):
        bank, column = below(rng, rows, 32)
        address = int(rng.integers(64 if memory == "gradients" else 256))
        probe = {"active": 1, "gradient": int(memory == "gradients"), "bank": bank, "column": column,
                 "address": address}
        inputs += [{"probe": probe}] * (Operands.probe_cycles + 1)
        vector = memories.gradients[bank, address] if memory == "gradients" else memories.activations[address]
        expected.append(int(memories.weights[bank, column]) if memory == "weights" else vector.tolist())

    def observe(ctx):
        if memory == "weights":
            return ctx.get(bench.operands.probed_weight)
        vector = ctx.get(bench.operands.source)
        return [[vector[lane].value, vector[lane].code] for lane in range(2)]

    assert bench.run(inputs, observe)[Operands.probe_cycles::Operands.probe_cycles + 1] == expected
