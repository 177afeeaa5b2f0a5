"""Rows of sums on their way to a memory, against requantising, rectifying, pooling and masking written out."""

from dataclasses import dataclass

import numpy as np
import pytest
from bench.simulation import simulate, trace
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from espalier.arch.machine import Machine
from espalier.gateware.drain import Drain, RowCounter
from espalier.numerics.activation import clipped_relu, clipped_relu_grad, max_pool, relu, relu_grad
from espalier.numerics.requantize import Requantize
from espalier.numerics.window import Window
from espalier.program.words import Opcode

NO_SHRINK = settings(deadline=None, max_examples=10, derandomize=True, phases=[Phase.explicit, Phase.generate])
ROWS = [1, 2, 4]
MASK_CYCLES = 3  #: from ``mask_address`` to ``mask``
POOL = Window((2, 2), (2, 2))
ACC_BITS = 40


def machine(rows, lanes, word_bits=16, clips=False):
    return Machine(rows=rows, lanes=lanes, word_bits=word_bits, acc_bits=ACC_BITS, activation_depth=256,
                   gradient_depth=64, weight_depth=2, index_depth=2, table_depth=2, clips=clips)


def accumulators(rng, shape, scale):
    """Words of every magnitude with the extremes among them; or, with ``scale``, a few so that many are equal."""
    low, high = -(1 << ACC_BITS - 1), (1 << ACC_BITS - 1) - 1
    if scale:
        return rng.integers(-2, 3, shape) << scale
    words = rng.integers(low, high, shape, endpoint=True) >> rng.integers(0, ACC_BITS, shape)
    return np.where(rng.random(shape) < 0.1, rng.choice([low, low + 1, -1, 0, high], shape), words)


@dataclass(frozen=True)
class Arrival:
    """A row of sums at the drain: its item, and one accumulator for each lane."""

    item: dict[str, int]
    sums: list[int]


def drained(machine, command, arrivals, seen_words, seen_codes, addends=()):
    """What the drain writes, by cycle: (kind, out, row, words, codes), for an arrival or None in each cycle.

    ``seen_words, seen_codes`` (vectors, lanes) is the activation memory; ``addends`` has what may be added to each
    arrival. A part of each arrival's sums is what was kept for all lanes. Idle cycles show an item of garbage, and
    garbage to add.
    """
    drain, found, rng, asked = Drain(machine), {}, np.random.default_rng(0), [0] * (MASK_CYCLES + 1)
    half = 1 << ACC_BITS - 1

    async def testbench(ctx):
        ctx.set(drain.command, command)
        await ctx.tick().repeat(2)
        for cycle in range(len(arrivals) + drain.latency_cycles + 3):
            arrival = arrivals[cycle] if cycle < len(arrivals) else None
            if arrival is None:
                arrival = Arrival({"valid": 0, "row": int(rng.integers(machine.rows)), "window": int(rng.integers(4))},
                                  rng.integers(-9999, 9999, machine.lanes).tolist())
            ctx.set(drain.item, arrival.item)
            kept = int(rng.integers(-1 << 2 * machine.word_bits - 1, 1 << 2 * machine.word_bits - 1))
            ctx.set(drain.row, [(total - kept + half) % (2 * half) - half for total in arrival.sums])
            ctx.set(drain.kept, kept)
            late = cycle - drain.add_cycles
            addend = addends[late] if 0 <= late < len(addends) else rng.integers(-2, 2, machine.lanes).tolist()
            ctx.set(drain.addend, [{"value": word, "code": int(rng.integers(4))} for word in addend])
            asked[:] = [ctx.get(drain.mask_address), *asked[:-1]]
            words, codes = seen_words[asked[MASK_CYCLES]], seen_codes[asked[MASK_CYCLES]]
            ctx.set(drain.mask, [{"value": int(w), "code": int(c)} for w, c in zip(words, codes, strict=True)])
            kinds = ctx.get(drain.activation_write), ctx.get(drain.gradient_write)
            if any(kinds):
                lanes = [ctx.get(drain.write_data[lane]) for lane in range(machine.lanes)]
                found[cycle] = (kinds, ctx.get(drain.write.out), ctx.get(drain.write.row),
                                [lane.value for lane in lanes], [lane.code for lane in lanes])
            await ctx.tick()

    simulate(drain, testbench, max_cycles=len(arrivals) + drain.latency_cycles + 6)
    return found


def anything_seen(machine):
    """An activation memory that is not to matter."""
    rng = np.random.default_rng(1)
    return rng.integers(-3, 4, (256, machine.lanes)), rng.integers(1, 4, (256, machine.lanes))


def pooled_order(height, width):
    """Pixels, the four of a window together; and the window each is in."""
    return [((2 * wy + dy, 2 * wx + dx), (wy, wx)) for wy in range(height // 2) for wx in range(width // 2)
            for dy in range(2) for dx in range(2)]


def forward_arrivals(machine, acc, *, base, pool, gaps):
    """The arrivals of FP for sums (lanes, C, H, W) with ``gaps`` idle cycles before each tile in turn.

    Returns them, and the (cycle, channel, y, x) of each result: with the last arrival that it needs.
    """
    _, channels, height, width = acc.shape
    arrivals, results, tile = [], [], 0
    order = pooled_order(height, width) if pool else [((y, x), (y, x)) for y in range(height) for x in range(width)]
    out_width = width // 2 if pool else width
    plane = out_width * (height // 2 if pool else height)
    for block in range(0, channels, machine.rows):
        for (y, x), (out_y, out_x) in order:
            arrivals += [None] * gaps[tile % len(gaps)]
            tile += 1
            for row, channel in enumerate(range(block, min(block + machine.rows, channels))):
                if not pool or (y & 1, x & 1) == (1, 1):
                    results.append((len(arrivals), channel, out_y, out_x))
                arrivals.append(Arrival(
                    {"valid": 1, "row": row, "window": 2 * (y & 1) + (x & 1),
                     "out": base + channel * plane + out_y * out_width + out_x}, acc[:, channel, y, x].tolist()))
    return arrivals, results


def check_forward(machine, acc, spec, *, rectify, pool, gaps, base=5):
    """Every write at its place and cycle, and no other; ``rectify`` before pooling, the first largest wins."""
    arrivals, results = forward_arrivals(machine, acc, base=base, pool=pool, gaps=gaps)
    command = {"opcode": Opcode.FORWARD, "shift": spec.shift, "limit": spec.out_range[1], "rectify": rectify,
               "pool_out": pool}
    words = relu(spec(acc)) if rectify else spec(acc)
    words, codes = max_pool(words, POOL) if pool else (words, np.zeros_like(words))
    _, _, height, width = words.shape
    expected = {cycle + Drain.latency_cycles: (
        (1, 0), base + (channel * height + y) * width + x, channel % machine.rows, words[:, channel, y, x].tolist(),
        codes[:, channel, y, x].tolist()) for cycle, channel, y, x in results}
    assert drained(machine, command, arrivals, *anything_seen(machine)) == expected


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("opcode", [Opcode.FORWARD, Opcode.BACKWARD])
def test_row_counter_names_each_row_as_it_leaves(rows, opcode):
    """From the cycle after ``loaded``, one row a cycle; tiles as close together as their rows allow, or apart."""
    rng, plane = np.random.default_rng(rows), 7
    sizes = [rows, rows, 1, 1, *rng.integers(1, rows, 6, endpoint=True)]
    static = {"command": {"opcode": opcode, "out_plane": plane}}
    inputs, expected = [static] * 2, {}
    for size in sizes:
        inputs += [static] * int(rng.integers(3)) if expected else []
        tile = {"rows": int(size), "out": int(rng.integers(32)), "mask": int(rng.integers(128)),
                "y": int(rng.integers(256)), "x": int(rng.integers(256))}
        inputs.append(static | {"loaded": 1, "tile": tile})
        for row in range(size):
            step = plane * row if opcode == Opcode.FORWARD else 0
            window = 2 * (tile["y"] & 1) + (tile["x"] & 1)
            expected[len(inputs) + row] = (row, tile["out"] + step, tile["mask"] + plane * row, window)
        inputs += [static | {"tile": {"rows": rows, "out": 1}}] * int(size - 1)  # a tile that is not loaded
    seen = trace(RowCounter(machine(rows, 1)), inputs + [static] * (rows + 2), ["item"])
    items = {cycle: item for cycle, (item,) in enumerate(seen) if item.valid}
    assert {cycle: (item.row, item.out, item.mask, item.window) for cycle, item in items.items()} == expected


@pytest.mark.parametrize("rows", ROWS)
def test_forward_writes_a_row_per_cycle_at_the_claimed_latency(rows):
    acc = accumulators(np.random.default_rng(rows), (2, 2 * rows, 2, 2), 0)
    check_forward(machine(rows, 2), acc, Requantize(acc_bits=ACC_BITS, out_bits=16, shift=11), rectify=0, pool=0,
                  gaps=[0])


@NO_SHRINK
@given(rows=st.sampled_from(ROWS), lanes=st.integers(1, 3), data=st.data(), rectify=st.integers(0, 1),
       pool=st.integers(0, 1), gaps=st.lists(st.integers(0, 3), min_size=1, max_size=5), seed=st.integers(0, 1 << 30))
def test_forward_matches_the_definition(rows, lanes, data, rectify, pool, gaps, seed):
    word_bits = data.draw(st.integers(2, 16))
    spec = Requantize(acc_bits=ACC_BITS, out_bits=data.draw(st.integers(2, word_bits)),
                      shift=data.draw(st.integers(0, 24)))
    channels, few = data.draw(st.integers(1, 2 * rows + 1)), data.draw(st.booleans())
    acc = accumulators(np.random.default_rng(seed), (lanes, channels, 2, 4), spec.shift if few else 0)
    check_forward(machine(rows, lanes, word_bits), acc, spec, rectify=rectify, pool=pool, gaps=gaps)


@pytest.mark.parametrize("rectify", [0, 1])
@pytest.mark.parametrize("opcode", [Opcode.FORWARD, Opcode.BACKWARD])
def test_what_is_added_meets_its_row_and_is_limited(opcode, rectify):
    """To each row of sums its own vector, after rounding and before the rectifier; near both ends and near zero."""
    few, rng = machine(4, 2, 8), np.random.default_rng(rectify)
    spec = Requantize(acc_bits=ACC_BITS, out_bits=8, shift=4)
    acc = np.concatenate([rng.integers(-2500, 2500, (200, 2)), rng.integers(-40, 40, (50, 2))])
    added = np.concatenate([rng.integers(-128, 128, (200, 2)), rng.integers(-3, 4, (50, 2))])
    seen, codes = anything_seen(few)
    arrivals = [Arrival({"valid": 1, "row": k % 4, "window": 0, "out": k % 64, "mask": k}, row.tolist())
                for k, row in enumerate(acc)]
    command = {"opcode": opcode, "shift": 4, "limit": 127, "rectify": rectify, "add": 1}
    words = np.clip(spec(acc) + added, -128, 127)
    if rectify:
        words = relu(words) if opcode == Opcode.FORWARD else relu_grad(words, seen[:len(words)])
    found = drained(few, command, arrivals, seen, codes, added.tolist())
    assert [found[k + Drain.latency_cycles][3] for k in range(len(arrivals))] == words.tolist()


@pytest.mark.parametrize("bound", [0, 1, 5, 126, 127])
@pytest.mark.parametrize("opcode", [Opcode.FORWARD, Opcode.BACKWARD])
def test_clips_where_it_rectifies(opcode, bound):
    """FP: to the bound, behind a sum. BP: a gradient passes where the activation is no larger than the bound."""
    mine, rng = machine(4, 2, 8, clips=True), np.random.default_rng(bound)
    spec = Requantize(acc_bits=ACC_BITS, out_bits=8, shift=4)
    acc, added = rng.integers(-2500, 2500, (200, 2)), rng.integers(-128, 128, (200, 2))
    seen, codes = rng.choice([-1, 0, 1, 4, 5, 6, 125, 126, 127], (256, 2)), rng.integers(0, 4, (256, 2))
    arrivals = [Arrival({"valid": 1, "row": k % 4, "window": 0, "out": k % 64, "mask": k}, row.tolist())
                for k, row in enumerate(acc)]
    for rectify in (0, 1):
        words = np.clip(spec(acc) + added, -128, 127)
        if rectify:
            words = (clipped_relu(words, bound) if opcode == Opcode.FORWARD else
                     clipped_relu_grad(words, seen[:len(words)], bound + 1))
        command = {"opcode": opcode, "shift": 4, "limit": 127, "rectify": rectify, "add": 1, "bound": bound}
        found = drained(mine, command, arrivals, seen, codes, added.tolist())
        assert [found[k + Drain.latency_cycles][3] for k in range(len(arrivals))] == words.tolist()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("gap", range(4))
def test_pools_at_every_distance_of_a_rows_pixels(rows, gap):
    """One valid row of the block, and all of them: the kept word is read before, while and after it is written."""
    rng, spec = np.random.default_rng(gap), Requantize(acc_bits=ACC_BITS, out_bits=8, shift=3)
    for channels in {1, rows}:
        acc = accumulators(rng, (1, channels, 2, 4), spec.shift + 3 * (gap & 1))
        check_forward(machine(rows, 1), acc, spec, rectify=0, pool=1, gaps=[gap])


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("pixels", "rectify", "word", "code"), [
    ((3, 5, 5, 4), 0, 5, 1), ((5, 5, 5, 5), 0, 5, 0), ((4, 3, 4, 5), 0, 5, 3), ((1, 2, 7, 7), 0, 7, 2),
    ((-2, -2, -1, -1), 0, -1, 2), ((-1, 0, -3, 0), 1, 0, 0), ((-9, -4, -3, -1), 1, 0, 0), ((-1, 0, 2, 1), 1, 2, 2),
    ((127, 128, 500, 127), 0, 127, 0), ((-129, -128, -500, -128), 0, -128, 0)])
def test_first_largest_of_a_window_wins(pixels, rectify, word, code, rows):
    """Rectified and saturated before they are compared: words that become equal are equal."""
    arrivals = [Arrival({"valid": 1, "row": rows - 1, "window": window, "out": 9}, [pixel])
                for window, pixel in enumerate(pixels)]
    found = drained(machine(rows, 1), {"opcode": Opcode.FORWARD, "limit": 127, "rectify": rectify, "pool_out": 1},
                    arrivals, *anything_seen(machine(rows, 1)))
    assert found == {3 + Drain.latency_cycles: ((1, 0), 9, rows - 1, [word], [code])}


@pytest.mark.parametrize("width", [2, 8, 16])
def test_saturates_and_rounds_half_up(width):
    """Around both ends of the words, and around every half between -2 and 2."""
    spec = Requantize(acc_bits=ACC_BITS, out_bits=width, shift=4)
    low, high = spec.out_range
    near = [end * 16 + k for end in (low, high) for k in (-9, -8, -7, 7, 8, 9)] + list(range(-40, 41, 4))
    acc = np.array([*near, -(1 << ACC_BITS - 1), (1 << ACC_BITS - 1) - 1]).reshape(1, -1, 1, 1)
    check_forward(machine(4, 1), acc, spec, rectify=0, pool=0, gaps=[0])


@NO_SHRINK
@given(rows=st.sampled_from(ROWS), lanes=st.integers(1, 3), data=st.data(), rectify=st.integers(0, 1),
       gaps=st.lists(st.integers(0, 2), min_size=1, max_size=4), seed=st.integers(0, 1 << 30))
def test_backward_passes_where_the_activation_is_positive(rows, lanes, data, rectify, gaps, seed):
    """The gradient of each activation with that one's code; every valid row to its bank, at one address."""
    rng, mine = np.random.default_rng(seed), machine(rows, lanes)
    spec = Requantize(acc_bits=ACC_BITS, out_bits=data.draw(st.integers(2, 16)), shift=data.draw(st.integers(0, 24)))
    seen_words, seen_codes = rng.integers(-3, 4, (256, lanes)), rng.integers(0, 4, (256, lanes))
    arrivals, expected, plane = [], {}, data.draw(st.integers(1, 9))
    for tile in range(9):
        arrivals += [None] * gaps[tile % len(gaps)]
        out, first, count = (int(rng.integers(n)) for n in (64, 200, rows))
        for row in range(count + 1):
            sums, mask = accumulators(rng, lanes, 0), first + plane * row
            words = relu_grad(spec(sums), seen_words[mask]) if rectify else spec(sums)
            expected[len(arrivals) + Drain.latency_cycles] = ((0, 1), out, row, words.tolist(),
                                                              seen_codes[mask].tolist())
            arrivals.append(Arrival({"valid": 1, "row": row, "out": out, "mask": mask,
                                     "window": int(rng.integers(4))}, sums.tolist()))
    command = {"opcode": Opcode.BACKWARD, "shift": spec.shift, "limit": spec.out_range[1], "rectify": rectify}
    assert drained(mine, command, arrivals, seen_words, seen_codes) == expected


@pytest.mark.parametrize("opcode", [Opcode.END, Opcode.UPDATE, Opcode.LOSS])
def test_writes_in_no_other_phase(opcode):
    arrivals = [Arrival({"valid": 1, "row": k % 2, "window": 3, "out": k}, [k, -k]) for k in range(8)]
    mine = machine(2, 2)
    assert not drained(mine, {"opcode": opcode, "limit": 127}, arrivals, *anything_seen(mine))
