"""The host port against the address tables: every space's writes and reads."""

import numpy as np
import pytest
from bench.simulation import simulate

from espalier.arch.machine import CODE_BITS, Machine
from espalier.gateware.host import READ_CYCLES, HostReader, HostWriter
from espalier.gateware.operands import Operands
from espalier.gateware.update_unit import READ_CYCLES as UPDATE_READ_CYCLES
from espalier.program.words import (
    BUS_BITS,
    SPACE_SHIFT,
    Space,
    Status,
    command_fields,
    entry_fields,
    host_stride,
    host_words,
    lane_stride,
    pack,
    start_fields,
    vector_words,
)

STROBES = {Space.PROGRAM: "program_en", Space.TABLE: "table_en", Space.INDEX: "index_en", Space.WEIGHTS: "weight_en",
           Space.MASTERS: "master_en", Space.MOMENTA: "momentum_en", Space.ACTIVATIONS: "activation_en"}
SHAPES = [(1, 1), (2, 2), (4, 3), (2, 5), (1, 8)]


def machine(rows, lanes, word_bits=12):
    return Machine(rows=rows, lanes=lanes, word_bits=word_bits, acc_bits=40, activation_depth=64, gradient_depth=32,
                   weight_depth=32, index_depth=16, table_depth=32, program_depth=8, max_classes=10)


def address(space, offset):
    return int(space) << SPACE_SHIFT | offset


def random_bits(rng, bits):
    return int.from_bytes(rng.bytes(-(-bits // 8)), "little") & (1 << bits) - 1


def words_of(item, count):
    return [item >> BUS_BITS * k & (1 << BUS_BITS) - 1 for k in range(count)]


class Writes:
    """A HostWriter to which one write, or a cycle without, is given at a time."""

    def __init__(self, ctx, writer):
        self.ctx, self.writer = ctx, writer

    def show(self, place, word, *, valid=1):
        """Put a write on the port; the names of the strobes that it raises."""
        self.ctx.set(self.writer.valid, valid)
        self.ctx.set(self.writer.write, {"address": place, "data": word})
        self.ctx.set(self.writer.spaces, sum((place >> SPACE_SHIFT == space) << space for space in Space))
        assert self.ctx.get(self.writer.write_any) == valid
        return [name for name in (*STROBES.values(), "start") if self.ctx.get(getattr(self.writer, name))]

    async def put(self, place, word, *, valid=1):
        """:meth:`show`, and the clock."""
        strobes = self.show(place, word, valid=valid)
        await self.ctx.tick()
        return strobes

    async def item(self, space, number, words, stride, rng):
        """Write an item of several words with idle cycles between; stops before the clock of the last word."""
        for k, word in enumerate(words):
            for _ in range(rng.integers(3)):
                garbage = address(int(rng.integers(16)), random_bits(rng, SPACE_SHIFT))
                assert await self.put(garbage, random_bits(rng, BUS_BITS), valid=0) == []
            assert self.ctx.get(self.writer.ready)
            strobes = self.show(address(space, number * stride + k), word)
            if k + 1 < len(words):
                assert strobes == []
                await self.ctx.tick()
        assert strobes == [STROBES[space]]
        assert self.ctx.get(self.writer.item) == number


def write_test(machine, scenario, *, max_cycles=3000):
    """Run ``scenario(ctx, writer, writes)``."""
    writer = HostWriter(machine)

    async def testbench(ctx):
        await scenario(ctx, writer, Writes(ctx, writer))

    simulate(writer, testbench, max_cycles=max_cycles)


@pytest.mark.parametrize(("rows", "lanes"), SHAPES)
def test_commands_entries_and_vectors_are_written_with_their_last_word(rows, lanes):
    """In any order of items, after one another in the same registers."""
    rng, mine = np.random.default_rng(lanes), machine(rows, lanes)
    sizes = {Space.PROGRAM: sum(command_fields(mine).values()), Space.INDEX: sum(entry_fields(mine).values())}

    async def scenario(ctx, writer, writes):
        for _ in range(10):
            for space, port in ((Space.PROGRAM, writer.command), (Space.INDEX, writer.entry)):
                item, number = random_bits(rng, sizes[space]), int(rng.integers(1 << 10))
                words = words_of(item, host_words(sizes[space]))
                await writes.item(space, number, words, host_stride(sizes[space]), rng)
                assert ctx.get(port) == item
                await ctx.tick()
            lane_words = rng.integers(-1 << 11, 1 << 11, lanes)
            packed = sum((int(word) & 0xFFFF) << 16 * lane for lane, word in enumerate(lane_words))
            count, number = vector_words(mine), int(rng.integers(mine.activation_depth))
            await writes.item(Space.ACTIVATIONS, number, words_of(packed, count), 1 << (count - 1).bit_length(), rng)
            seen = [ctx.get(writer.vector[lane]) for lane in range(lanes)]
            assert [(lane.value, lane.code) for lane in seen] == [(int(word), 0) for word in lane_words]
            await ctx.tick()

    write_test(mine, scenario)


def test_fields_of_commands_and_entries():
    """Each field by itself arrives in its place of the command and of the entry that the gateware unpacks."""
    rng, mine = np.random.default_rng(0), machine(2, 2)

    async def scenario(ctx, writer, writes):
        for space, fields, port in ((Space.PROGRAM, command_fields(mine), writer.command),
                                    (Space.INDEX, entry_fields(mine), writer.entry)):
            place, bits = 0, sum(fields.values())
            for name, width in fields.items():
                item = pack(fields, {name: (1 << width) - 1})
                await writes.item(space, 3, words_of(item, host_words(bits)), host_stride(bits), rng)
                assert ctx.get(port) == (1 << width) - 1 << place
                await ctx.tick()
                place += width

    write_test(mine, scenario)


@pytest.mark.parametrize("space", [Space.TABLE, Space.WEIGHTS, Space.MASTERS, Space.MOMENTA])
def test_items_of_one_word_are_written_in_their_cycle(space):
    rng = np.random.default_rng(int(space))

    async def scenario(ctx, writer, writes):
        for offset in (0, 1, 2, 3, *rng.integers(1 << SPACE_SHIFT, size=20).tolist(), (1 << SPACE_SHIFT) - 1):
            assert writes.show(address(space, offset), random_bits(rng, BUS_BITS)) == [STROBES[space]]
            assert ctx.get(writer.item) == ctx.get(writer.offset) == offset
            assert ctx.get(writer.ready)
            assert await writes.put(address(space, offset), 0, valid=0) == []

    write_test(machine(2, 2), scenario)


@pytest.mark.parametrize("space", [Space.GRADIENTS, Space.LABELS, *range(10, 16)])
def test_other_spaces_raise_no_strobe(space):
    async def scenario(ctx, writer, writes):
        for offset in range(16):
            assert await writes.put(address(space, offset), 0xFFFFFFFF) == []
            assert ctx.get(writer.ready)

    write_test(machine(4, 4), scenario)


def test_start_word():
    fields, rng = start_fields(), np.random.default_rng(1)

    async def scenario(ctx, writer, writes):
        for _ in range(30):
            values = {name: random_bits(rng, width) for name, width in fields.items()}
            assert writes.show(address(Space.CONTROL, 0), pack(fields, values)) == ["start"]
            word = ctx.get(writer.start_word)
            assert {name: word[name] for name in fields} == values
            assert await writes.put(address(Space.CONTROL, 0), pack(fields, values), valid=0) == []

    write_test(machine(2, 2), scenario)


@pytest.mark.parametrize("lanes", [1, 2, 3, 8])
def test_labels_have_two_places(lanes):
    """A label is there in the cycle after its write; the others, and writes elsewhere, leave it as it is."""
    rng, mine = np.random.default_rng(lanes), machine(2, lanes)
    labels = [0] * (2 * lanes)

    async def scenario(ctx, writer, writes):
        for _ in range(40):
            place, label = int(rng.integers(2 * lanes)), int(rng.integers(mine.max_classes))
            space, valid = (Space.LABELS if rng.random() < 0.7 else Space.TABLE), int(rng.random() < 0.8)
            await writes.put(address(space, place), label, valid=valid)
            if valid and space == Space.LABELS:
                labels[place] = label
            assert [ctx.get(writer.labels[k]) for k in range(2 * lanes)] == labels

    write_test(mine, scenario)


@pytest.mark.parametrize("lanes", [1, 2, 4, 5])
def test_only_the_last_word_of_an_image_vector_waits(lanes):
    """While the engine writes: what waits is repeated by the host, and is the same vector then."""
    mine, count = machine(2, lanes), vector_words(machine(2, lanes))
    packed = sum(100 + lane << 16 * lane for lane in range(lanes))
    stride = 1 << (count - 1).bit_length()

    async def scenario(ctx, writer, writes):
        ctx.set(writer.blocked, 1)
        for k, word in enumerate(words_of(packed, count)):
            strobes = writes.show(address(Space.ACTIVATIONS, 7 * stride + k), word)
            assert ctx.get(writer.ready) == (k + 1 < count)
            await ctx.tick()
        for blocked in (1, 1, 0):
            ctx.set(writer.blocked, blocked)
            assert ctx.get(writer.ready) == (not blocked)
            assert strobes == ["activation_en"] and ctx.get(writer.item) == 7
            assert [ctx.get(writer.vector[lane]).value for lane in range(lanes)] == [100 + k for k in range(lanes)]
            await ctx.tick()
        ctx.set(writer.blocked, 1)
        for space in Space:
            writes.show(address(space, 0), 1)
            assert ctx.get(writer.ready) or space == Space.ACTIVATIONS
        writes.show(address(Space.ACTIVATIONS, stride - 1), 1, valid=0)
        assert ctx.get(writer.ready)

    write_test(mine, scenario)


class Memories:
    """What a HostReader reads: random words, and the answers of the engine to its probes and addresses."""

    def __init__(self, machine, rng):
        self.machine, bits = machine, machine.word_bits

        def lanes(*shape):
            return np.stack([rng.integers(-1 << bits - 1, 1 << bits - 1, (*shape, machine.lanes)),
                             rng.integers(1 << CODE_BITS, size=(*shape, machine.lanes))], axis=-1)

        self.activations, self.gradients = lanes(machine.activation_depth), lanes(machine.gradient_depth, machine.rows)
        self.weights = rng.integers(-1 << bits - 1, 1 << bits - 1, (machine.weight_depth, machine.rows))
        self.update_words = rng.integers(-1 << bits + 15, 1 << bits + 15, (2, machine.master_depth))

    def answer(self, ctx, reader, probe, update):
        column, bank, at = probe["column"], probe["bank"], probe["address"]
        vector = (self.gradients[at % self.machine.gradient_depth, bank] if probe["gradient"]
                  else self.activations[at % self.machine.activation_depth])
        ctx.set(reader.vector, [{"value": int(value), "code": int(code)} for value, code in vector])
        ctx.set(reader.weight, int(self.weights[column, bank]))
        ctx.set(reader.update_word, int(self.update_words[update]) & (1 << BUS_BITS) - 1)


def read_words(machine, memories, addresses):
    """The data :data:`READ_CYCLES` after each address, one address after another; the machine is idle."""
    reader, found, probes, updates = HostReader(machine), [], [], []
    names = ("gradient", "address", "column", "bank")

    async def testbench(ctx):
        for place in addresses:
            ctx.set(reader.address, place)
            for _ in range(READ_CYCLES):
                probe = ctx.get(reader.probe)
                assert probe.active
                probes.append({name: probe[name] for name in names})
                updates.append((ctx.get(reader.update_momentum), ctx.get(reader.update_address)))
                memories.answer(ctx, reader, probes[-1 - min(Operands.probe_cycles, len(probes) - 1)],
                                updates[-1 - min(UPDATE_READ_CYCLES, len(updates) - 1)])
                await ctx.tick()
            found.append(ctx.get(reader.data))

    simulate(reader, testbench, max_cycles=READ_CYCLES * len(addresses) + 1)
    return found


def lane_data(word, bits):
    """A lane as the host reads it: the word low, its code above."""
    value, code = (int(part) for part in word)
    return value & (1 << bits) - 1 | code << bits


@pytest.mark.parametrize(("rows", "lanes", "word_bits"), [(*shape, 12) for shape in SHAPES] + [(4, 2, 16), (2, 4, 2)])
def test_every_memory_is_read_within_the_claimed_cycles(rows, lanes, word_bits):
    """A different space and place with each address."""
    mine = machine(rows, lanes, word_bits)
    rng = np.random.default_rng(rows)
    memories, stride, addresses, expected = Memories(mine, rng), lane_stride(mine), [], []

    def read(space, offset, data):
        addresses.append(address(space, int(offset)))
        expected.append(int(data) & (1 << BUS_BITS) - 1)

    for _ in range(14):
        vector, place, lane = (int(rng.integers(n)) for n in (mine.activation_depth, mine.gradient_depth, lanes))
        bank, column = int(rng.integers(rows)), int(rng.integers(mine.weight_depth))
        read(Space.ACTIVATIONS, vector * stride + lane, lane_data(memories.activations[vector, lane], word_bits))
        read(Space.WEIGHTS, column * rows + bank, memories.weights[column, bank])
        read(Space.GRADIENTS, (place * rows + bank) * stride + lane,
             lane_data(memories.gradients[place, bank, lane], word_bits))
        read(Space.MASTERS, column * rows + bank, memories.update_words[0, column * rows + bank])
        read(Space.MOMENTA, column * rows + bank, memories.update_words[1, column * rows + bank])
    order = rng.permutation(len(addresses))
    assert read_words(mine, memories, [addresses[k] for k in order]) == [expected[k] for k in order]


@pytest.mark.parametrize("busy", [0, 1])
def test_status_is_read_at_any_time(busy):
    """Also words that change while they are read: what is seen is at most as old as a read takes."""
    reader, rng = HostReader(machine(2, 2)), np.random.default_rng(busy)

    async def testbench(ctx):
        ctx.set(reader.busy, busy)
        for name in [*Status, *rng.permutation(list(Status)).tolist()] * 4:
            ctx.set(reader.address, address(Space.CONTROL, int(name)))
            values = []
            for _ in range(READ_CYCLES):
                correct, cycles = random_bits(rng, 32), random_bits(rng, 32)
                loss, errors = random_bits(rng, 48) - (1 << 47), random_bits(rng, 2)
                for port, value in ((reader.correct, correct), (reader.loss, loss), (reader.cycles, cycles),
                                    (reader.errors, errors)):
                    ctx.set(port, value)
                values.append({Status.BUSY: busy, Status.CORRECT: correct, Status.LOSS_LOW: loss & 0xFFFFFFFF,
                               Status.LOSS_HIGH: loss >> 32 & 0xFFFF, Status.CYCLES: cycles,
                               Status.ERRORS: errors}[Status(name)])
                await ctx.tick()
            assert ctx.get(reader.data) in values

    simulate(reader, testbench, max_cycles=8 * len(Status) * READ_CYCLES + 1)


def test_probes_only_while_idle():
    reader = HostReader(machine(2, 2))

    async def testbench(ctx):
        for busy in (0, 1, 0, 1, 1, 0):
            ctx.set(reader.busy, busy)
            ctx.set(reader.address, address(Space.WEIGHTS, busy))
            assert ctx.get(reader.probe).active == (not busy)
            await ctx.tick()

    simulate(reader, testbench, max_cycles=7)
