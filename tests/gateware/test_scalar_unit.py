"""The scalar unit beside its definition: in bulk with Verilator, its latencies in Python simulation."""

from functools import cache

import numpy as np
import pytest
from bench.ported import NOTHING, Ported, Running
from bench.simulation import trace

from espalier.gateware.scalar_unit import ScalarUnit
from espalier.numerics import scalar
from espalier.numerics.fixed import Fixed
from espalier.program.scalar import SCALAR_CYCLES, ScalarOperation

ON_SCALARS = {
    ScalarOperation.ADD: scalar.add, ScalarOperation.SUB: scalar.sub, ScalarOperation.MUL: scalar.mul,
    ScalarOperation.EXCESS: lambda a, b: np.maximum(scalar.sub(a, b), np.float32(0))}
WORDS = (ScalarOperation.TO_WORD, ScalarOperation.TO_NEGATED)


@cache
def ported(word_bits, sum_bits):
    unit = ScalarUnit(word_bits=word_bits, sum_bits=sum_bits)
    return Ported(unit, ["start"], {"done": ["o"], "word_done": ["word"]})


def run(operation, operands, *, word_bits=16, sum_bits=62, width=16):
    """The results of one operation for many operands, given by the name of their port; words have at most ``width``."""
    bench = ported(word_bits, sum_bits)
    sets = [(bench.piece(name) + piece, np.asarray(words).astype(np.int64) >> 32 * piece & 0xffffffff)
            for name, words in operands.items() for piece in range(len(bench.sets(name, 0)))]
    addresses = [address for address, _ in (*sets, *bench.pulse("start"))] + [NOTHING] * SCALAR_CYCLES[operation]
    data = np.zeros((len(sets[0][1]), len(addresses)), dtype=np.uint32)
    for column, (_, words) in enumerate(sets):
        data[:, column] = words
    with Running(bench) as running:
        high = (1 << min(word_bits, width) - 1) - 1
        running.write(*zip(*bench.sets("operation", operation), *bench.sets("limit", high), strict=True))
        running.write(np.tile(addresses, len(data)), data.ravel())
        return running.read(np.arange(len(data)))


def bits(scalars):
    return np.asarray(scalars, np.float32).view(np.uint32)


def some_scalars(rng, count):
    """Scalars of all exponents, and with digits next to none and to all."""
    fraction = rng.integers(0, 1 << 23, count)
    kind = rng.integers(0, 4, count)
    few = rng.integers(0, 4, count)
    fraction = np.select([kind == 0, kind == 1], [few, (1 << 23) - 1 - few], fraction)
    exponent = np.where(rng.random(count) < 0.1, rng.choice([0, 1, 2, 253, 254], count), rng.integers(1, 255, count))
    words = (rng.integers(0, 2, count) << 31 | exponent << 23 | np.where(exponent, fraction, 0)).astype(np.uint32)
    return words.view(np.float32)


def some_pairs(rng, count, operation):
    """Also pairs that cancel, that tie, and whose result is next to an end of the range."""
    a, b = some_scalars(rng, count), some_scalars(rng, count)
    exponents = (bits(a) >> 23 & 255).astype(np.int64)
    near = np.clip(exponents + rng.integers(-26, 27, count), 1, 254)
    if operation == ScalarOperation.MUL:
        near = np.clip(rng.choice([127, 128, 254 + 127], count) - exponents + rng.integers(-2, 3, count), 1, 254)
    beside = bits(b) & 0x807fffff | near.astype(np.uint32) << 23
    neighbour = bits(a) ^ rng.integers(0, 4, count).astype(np.uint32) ^ (rng.integers(0, 2, count) << 31).astype(
        np.uint32)
    neighbour = np.where(exponents == 0, bits(a), neighbour)
    kind = rng.integers(0, 3, count)
    return a, np.select([kind == 0, kind == 1], [bits(b), beside], neighbour).view(np.float32)


def check(found, expected):
    wrong = np.flatnonzero(found.view(np.float32) != expected)
    assert wrong.size == 0, (wrong[:5], found[wrong[:5]], bits(expected)[wrong[:5]])
    assert not (found == 1 << 31).any()  # zero is positive


@pytest.mark.parametrize("operation", ON_SCALARS, ids=lambda operation: operation.name)
def test_of_two_scalars(operation):
    a, b = some_pairs(np.random.default_rng(operation), 30_000, operation)
    expected = ON_SCALARS[operation](a, b)
    check(run(operation, {"a": bits(a), "b": bits(b)}), expected)
    size = np.abs(expected)
    assert (expected == 0).sum() > 300 and (size == scalar.TINIEST).any() and (size == scalar.LARGEST).sum() > 100


def test_inverse_root():
    a = np.abs(some_scalars(np.random.default_rng(4), 10_000))
    a = a[a > 0]
    check(run(ScalarOperation.INVERSE_ROOT, {"a": bits(a)}), scalar.inverse_root(a))


def test_inverse_root_of_neighbours():
    """All digits next to powers of two and to squares, where roots and quotients come nearest to ties."""
    near = (np.array([1, 1.5, 2, 2.25, 3, 4, 6.25])[:, None] * 2.0 ** np.arange(-20, 20)).astype(np.float32).ravel()
    a = (bits(near)[:, None] + np.arange(-8, 9)).astype(np.uint32).ravel().view(np.float32)
    check(run(ScalarOperation.INVERSE_ROOT, {"a": bits(a)}), scalar.inverse_root(a))


def some_sums(rng, count, width):
    """Whole numbers of all lengths up to ``width`` bits, many of them ties or next to ties."""
    length = rng.integers(1, width, count)
    any_ = rng.integers(0, 1 << 62, count) >> (62 - length)
    tie = ((any_ >> 1 | 1 << 23) % (1 << 25) << np.maximum(length - 25, 0)) + rng.integers(-1, 2, count)
    values = np.where(rng.random(count) < 0.5, any_, np.minimum(tie, (1 << width - 1) - 1))
    ends = rng.choice([-(1 << width - 1), (1 << width - 1) - 1, -1, 0, 1], count)
    return np.where(rng.random(count) < 0.05, ends, values * rng.choice([-1, 1], count))


@pytest.mark.parametrize("sum_bits, width", [(62, 54), (62, 30), (8, 8)])
def test_of_sum(sum_bits, width):
    rng = np.random.default_rng(sum_bits + width)
    totals, fracs = some_sums(rng, 20_000, width), rng.integers(-128, 256, 20_000)
    found = run(ScalarOperation.OF_SUM, {"total": totals, "frac": fracs}, sum_bits=sum_bits)
    check(found, scalar.of_sum(totals, fracs))


def nearest_even(total):
    """The nearest whole number of 24 digits."""
    dropped = max(0, abs(int(total)).bit_length() - 24)
    kept, rest = divmod(abs(int(total)), 1 << dropped)
    kept += rest * 2 > 1 << dropped or (rest * 2 == 1 << dropped and kept & 1)
    return np.float32((-1 if total < 0 else 1) * (kept << dropped))


def test_sums_wider_than_float64_are_rounded_once():
    totals = some_sums(np.random.default_rng(7), 5_000, 62)
    check(run(ScalarOperation.OF_SUM, {"total": totals}), np.array([nearest_even(total) for total in totals]))


def some_rounded(rng, count, word_bits):
    """Scalars and fraction bits: any; and next to words and to the middle between words, the ends among them."""
    fracs = rng.integers(-60, 60, count)
    halfway = rng.integers(-(1 << word_bits) - 4, (1 << word_bits) + 5, count) / 2
    near = bits(np.ldexp(halfway, -fracs)) + np.where(halfway == 0, 0, rng.integers(-1, 2, count)).astype(np.uint32)
    any_ = rng.random(count) < 0.3
    return (np.where(any_, some_scalars(rng, count), near.view(np.float32)),
            np.where(any_, rng.integers(-128, 256, count), fracs))


@pytest.mark.parametrize(("word_bits", "width"), [(2, 2), (16, 16), (16, 5)])
@pytest.mark.parametrize("operation", WORDS, ids=lambda operation: operation.name)
def test_to_word(operation, word_bits, width):
    a, fracs = some_rounded(np.random.default_rng(word_bits), 30_000, width)
    found = run(operation, {"a": bits(a), "frac": fracs}, word_bits=word_bits, width=width)
    found = (found << 32 - word_bits).view(np.int32) >> 32 - word_bits
    for frac in np.unique(fracs):
        here = fracs == frac
        taken = a[here] if operation == ScalarOperation.TO_WORD else -a[here]
        assert np.array_equal(found[here], scalar.to_words(taken, Fixed.of(width, int(frac)))), frac
    assert len(set(found)) > min(1 << width, 1000) / 2


def fields(real):
    word = int(bits(real))
    return {"fraction": word & 0x7fffff, "exponent": word >> 23 & 255, "sign": word >> 31}


def packed(o):
    return np.array(o.fraction | o.exponent << 23 | o.sign << 31, np.uint32).view(np.float32)


@pytest.mark.parametrize("operation", ScalarOperation, ids=lambda operation: operation.name)
def test_latency(operation):
    """Whatever the operands are."""
    unit = ScalarUnit(word_bits=8, sum_bits=40)
    latency = unit.latency_cycles[operation]
    for a, b in ((1.0, 1.0), (2.0 ** -126, 3.0), (1e38, -1e38)):
        rows = [{}, {"start": 1, "operation": operation, "a": fields(a), "b": fields(b), "total": 77, "frac": 3},
                *[{}] * (latency + 5)]
        seen = trace(unit, rows, ["done", "word_done"])
        assert [k for k, done in enumerate(seen) if done[operation in WORDS]] == [1 + latency]
        assert sum(map(sum, seen)) == 1


def test_operations_overlap():
    """Starts in every cycle in which no two results meet; each result stays until the next."""
    rng, unit, root_done = np.random.default_rng(11), ScalarUnit(word_bits=16, sum_bits=40), 0
    functions = {**ON_SCALARS, ScalarOperation.INVERSE_ROOT: lambda a, b: scalar.inverse_root(a)}
    rows, expected = [], {}
    for a, b in zip(*some_pairs(rng, 300, ScalarOperation.ADD), strict=True):
        operation = ScalarOperation(rng.integers(len(functions)))
        root, done = operation == ScalarOperation.INVERSE_ROOT, len(rows) + SCALAR_CYCLES[operation]
        a = abs(a) or np.float32(2) if root else a
        start = done not in expected and not (root and len(rows) < root_done)
        rows.append({"start": int(start), "operation": operation, "a": fields(a), "b": fields(b)})
        if start:
            expected[done] = functions[operation](a, b)
            root_done = done if root else root_done
    seen = trace(unit, rows + [{}] * 60, ["done", "o"])
    assert {k for k, (done, _) in enumerate(seen) if done} == set(expected)
    last = 0
    for k, (_, o) in enumerate(seen):
        last = expected.get(k, last)
        assert packed(o) == last, k
