"""From a command to the steps of the lattice, against the loops written out."""

from itertools import product

import numpy as np
import pytest
from bench.networks import Chain, compiled, random_live
from bench.simulation import simulate

from espalier.arch.machine import Machine
from espalier.gateware.front import Front
from espalier.gateware.layouts import command_layout
from espalier.numerics.window import Window
from espalier.program.words import Opcode, bits_for

ADD_CYCLES = 5
FILL_CYCLES = Front.fill_cycles  #: at most, from the launch to the first step, and to ``finished``


def run(program, commands, max_cycles):
    """For each command: its steps as tuples, and the cycles from its launch to ``finished``.

    What reads what is added is held against the ends of tiles that it belongs to.
    """
    front, found = Front(program.machine, ADD_CYCLES), []
    names = ("channel", "y", "x", "column", "term", "one", "last")
    modulo = 1 << bits_for(program.machine.gradient_depth)

    async def testbench(ctx):
        for enable, port, words in (
                (front.table_en, front.pointer, program.table),
                (front.index_en, front.entry, [entry.encode(program.machine) for entry in program.entries])):
            ctx.set(enable, 1)
            for address, word in enumerate(words):
                ctx.set(front.address, address)
                ctx.set(port, word)
                await ctx.tick()
            ctx.set(enable, 0)
        for command in commands:
            fields = {name: getattr(command, name) for name in command_layout(program.machine).members}
            ctx.set(front.command, {**fields, "opcode": int(command.opcode)})
            await ctx.tick().repeat(2)
            ctx.set(front.start, 1)
            steps, cycles, finished, ending, adding, expected = [], 0, 0, 0, {}, {}
            while not finished or ending <= ADD_CYCLES + program.machine.rows:
                finished |= ctx.get(front.finished)
                step = ctx.get(front.step)
                if step.valid or step.last:
                    place = tuple(step.tile[name] for name in ("y", "x", "out", "rows"))
                    steps.append((step.valid, *(step[name] for name in names), *place))
                if step.last and command.add:
                    expected |= {cycles + ending + ADD_CYCLES + row: (
                        (step.tile.out + command.add_offset) % modulo, row) for row in range(step.tile.rows)}
                if step.add:
                    adding[cycles + ending] = step.add_address, step.add_row
                    assert command.opcode == Opcode.FORWARD or not step.valid or step.term != step.add_row
                await ctx.tick()
                ctx.set(front.start, 0)
                cycles, ending = cycles + (not finished), ending + finished
            assert adding == expected, command
            found.append((steps, cycles + 1))

    simulate(front, testbench, max_cycles=max_cycles)
    return found


def pixels(command):
    """The map in the order of its tiles, and the position of each among the results."""
    if not command.pool_out:
        row = (command.out_x - 1) * command.out_step + command.out_skip
        return [((y, x), y * row + x * command.out_step)
                for y, x in product(range(command.out_y), range(command.out_x))]
    windows = product(range(command.out_y // 2), range(command.out_x // 2))
    return [((2 * wy + dy, 2 * wx + dx), wy * (command.out_x // 2) + wx)
            for (wy, wx), (dy, dx) in product(windows, product(range(2), range(2)))]


def lists(program, command):
    """The entries of each block of a command."""
    slots = command.kernel_y * command.kernel_x + 1
    starts = [program.table[command.table + block * slots] for block in range(command.blocks + 1)]
    return [program.entries[low: high] for low, high in zip(starts, starts[1:], strict=False)]


def offset(command, entry):
    return (0, 0) if entry.one else (entry.ky - command.pad_y, entry.kx - command.pad_x)


def met(command, entry, y, x):
    """The source pixel of a tap at a result's pixel."""
    dy, dx = offset(command, entry)
    return (y << command.stride_y) + dy, (x << command.stride_x) + dx


def inside(command, entry, y, x):
    y, x = met(command, entry, y, x)
    return entry.one or (0 <= y < command.source_y and 0 <= x < command.source_x)


def step(command, entry, term, y, x, last, out, rows):
    source_y, source_x = met(command, entry, y, x)
    advance = 0 if command.opcode == Opcode.BACKWARD else command.source_plane
    return (1, entry.channel + term * advance, source_y, source_x, entry.column, term, entry.one, int(last), y, x, out,
            rows)


def terms(entries):
    return [(entry, term) for entry in entries for term in range(entry.count)]


def last_segment(command, entries, y, x):
    """Those of a tile's entries that its last segment holds: all, all but the bias, or one row of taps."""
    top, left = (y << command.stride_y) - command.pad_y, (x << command.stride_x) - command.pad_x
    bottom, right = command.source_y - top, command.source_x - left  # room below and to the right
    if (left < 0 or right < command.kernel_x) and bottom > 0:
        return [entry for entry in entries if not entry.one and entry.ky == min(command.kernel_y, bottom) - 1]
    if top < 0 or bottom < command.kernel_y:
        return [entry for entry in entries if not entry.one]
    return entries


def expected(program, command):
    """The loops of the three phases; None is an end without a step: an empty tap, or an empty last segment.

    A block's first pixel meets the bias, the others do not.
    """
    steps = []
    for block, entries in enumerate(lists(program, command)):
        rows = command.last_rows if block + 1 == command.blocks else program.machine.rows
        base = command.out_base + block * command.out_block
        if command.opcode == Opcode.UPDATE:
            for entry, term in terms(entries):
                seen = [(y, x) for y, x in product(range(command.out_y), range(command.out_x))
                        if inside(command, entry, y, x)]
                steps += [step(command, entry, term, y, x, (y, x) == seen[-1], base, rows) for y, x in seen] or [None]
            continue
        for number, ((y, x), position) in enumerate(pixels(command)):
            seen = [entry for entry in entries if inside(command, entry, y, x) and not (number and entry.one)]
            ends = bool(last_segment(command, seen, y, x))
            steps += [step(command, entry, term, y, x, ends and (entry, term) == terms(seen)[-1], base + position, rows)
                      for entry, term in terms(seen)] + ([] if ends else [None])
    return steps


def network(rows, density, chain=None):
    chain = chain or (Chain((3, 4, 4)).conv(3, (3, 2), (1, 0, 1, 1)).relu().pool()
                      .conv(3, (2, 3), (1, 2, 0, 1), bias=False).linear(3))
    machine = Machine(rows=rows, lanes=1, activation_depth=1024, gradient_depth=512, weight_depth=1024,
                      index_depth=2048, table_depth=512, acc_bits=44)
    return compiled(chain, machine, live=random_live(np.random.default_rng(rows), chain, rows, density)).program


def phases(program):
    return [c for c in program.commands[: program.entries_at["infer"]] if c.opcode not in (Opcode.LOSS, Opcode.END)]


def check(program, max_cycles=60000):
    for command, (steps, _) in zip(phases(program), run(program, phases(program), max_cycles), strict=True):
        seen = [found if found[0] else None for found in steps]
        assert seen == expected(program, command), (command.opcode.name, command.layer)
        assert all(found[7] for found in steps if not found[0])  # an empty one is an end


@pytest.mark.parametrize(("rows", "density"), [(1, 0.4), (2, 1.0), (4, 0.5), (2, 0.0)])
def test_steps_are_the_loops(rows, density):
    check(network(rows, density))


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize(("kernel", "stride", "pad"), [
    ((3, 3), (2, 2), (1, 1, 1, 1)), ((1, 1), (2, 2), (0, 0, 0, 0)), ((3, 2), (1, 4), (2, 0, 0, 1)),
    ((2, 5), (2, 1), (0, 4, 1, 0)), ((3, 3), (4, 2), (2, 2, 0, 0)), ((4, 1), (4, 8), (0, 0, 0, 0))])
def test_strides(kernel, stride, pad, rows):
    """FP and WU by shifted coordinates; BP phase by phase, also where nothing reaches a row or a column."""
    chain = Chain((2, 7, 8)).conv(3, (1, 1)).conv(5, kernel, window=Window(kernel, stride, pad)).linear(2)
    program = network(rows, 0.7, chain)
    check(program)
    backward = [c for c in phases(program) if c.opcode == Opcode.BACKWARD and c.layer == "conv1"]
    results = [command.out_base + position for command in backward for _, position in pixels(command)]
    assert sorted(results) == [min(results) + k for k in range(7 * 8)]  # each pixel in one phase


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_sums_are_read_beside_steps(rows):
    """In FP the stored map, in BP the gradient that passes and the part that is there already."""
    chain = Chain((2, 4, 4)).conv(5, (1, 1)).relu()
    start = chain.x
    chain.conv(6, (1, 1), window=Window((1, 1), (2, 2)))
    inner, chain.x = chain.x, start
    chain.conv(6, (1, 1), window=Window((1, 1), (2, 2)), bias=False).add(inner).relu()
    start = chain.x
    chain.conv(6, (3, 3), (1, 1, 1, 1)).add(start).linear(2)
    program = network(rows, 0.8, chain)
    check(program)
    assert [(c.opcode, c.layer) for c in phases(program) if c.add] == [
        (Opcode.FORWARD, "conv3"), (Opcode.FORWARD, "conv6"), (Opcode.BACKWARD, "conv6"),
        *[(Opcode.BACKWARD, "conv2")] * 4]


def test_taps_that_are_never_inside():
    """A kernel larger than its map: a weight that meets only padding has a gradient all the same, of zero."""
    chain = Chain((2, 2, 1)).conv(3, (5, 4), (2, 2, 2, 3)).linear(2)
    program = network(2, 1.0, chain)
    check(program)
    update = next(c for c in phases(program) if c.opcode == Opcode.UPDATE and c.layer == "conv0")
    assert None in expected(program, update)


def least_cycles(steps):
    """One for each step, and as many for a tile as it has results."""
    cycles = run = 0
    for _, *_, last, _, _, _, rows in steps:
        run += 1
        if last:
            cycles, run = cycles + max(run, rows), 0
    return cycles


@pytest.mark.parametrize("rows", [2, 4])
def test_one_step_per_cycle_when_dense(rows):
    """No bubbles: borders, segments, ends of tiles and blocks cost nothing, in any phase.

    Sums of fewer steps than rows wait for those before them to leave (a linear layer's gradients).
    """
    chain = Chain((rows, 4, 4)).conv(2 * rows, (3, 3), (1, 1, 1, 1)).relu().pool().conv(rows, (3, 3), (1, 1, 1, 1))
    chain.linear(4)
    program = network(rows, 1.0, chain)
    for command, (steps, cycles) in zip(phases(program), run(program, phases(program), 60000), strict=True):
        busy = least_cycles(steps)
        assert busy <= cycles <= busy + FILL_CYCLES, (command.opcode.name, command.layer, cycles)
        if command.layer == "conv0" or command.opcode != Opcode.UPDATE:  # taps see at least rows pixels
            assert busy == len(steps)
