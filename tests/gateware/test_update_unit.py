import numpy as np
import pytest
from bench.simulation import trace
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from espalier.gateware.round_shift import RoundShift
from espalier.gateware.scale import Scale
from espalier.gateware.update_unit import READ_CYCLES, UpdateUnit
from espalier.numerics.fixed import Fixed
from espalier.numerics.requantize import Requantize
from espalier.numerics.update import EXTRA_BITS, GRADIENT_BITS, MAX_SHIFT, BufferedSgd, Factor, master_format

NO_SHRINK = settings(deadline=None, max_examples=12, derandomize=True, phases=[Phase.explicit, Phase.generate])
factors = st.builds(Factor, st.one_of(st.just(0), st.just(0xffff), st.integers(0, 0xffff)), st.integers(0, MAX_SHIFT))


def words(rng, bits, count):
    """Words of every magnitude, the extremes among them."""
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    any_size = rng.integers(low, high, count, endpoint=True) >> rng.integers(0, bits, count)
    return np.where(rng.random(count) < 0.1, rng.choice([low, low + 1, -1, 0, 1, high - 1, high], count), any_size)


def rule_of(sgd, gradient_shift):
    return {"gradient_shift": gradient_shift, "weight_width": sgd.weight.width,
            **{name: getattr(sgd, name).word for name in ("rate", "momentum", "decay")},
            **{f"{name}_shift": getattr(sgd, name).shift for name in ("rate", "momentum", "decay")}}


def swept(component, port, shift_port, values, shifts, fixed=None):
    """What comes out for ``values`` at each of ``shifts``, one value per cycle."""
    latency, rows = component.latency_cycles, []
    for shift in shifts:
        rows += [{port: int(value), shift_port: shift, **(fixed or {})} for value in values]
        rows += [{shift_port: shift, **(fixed or {})}] * latency
    seen = np.array([out for out, in trace(component, rows, ["o"])]).reshape(len(shifts), -1)
    return seen[:, latency:]


def test_round_shift_every_shift():
    values = words(np.random.default_rng(0), 52, 24)
    seen = swept(RoundShift(word_bits=52, shift_bits=6), "i", "shift", values, range(64))
    for shift in range(52):
        expected = Requantize(acc_bits=52, out_bits=52, shift=shift)(values)
        assert np.array_equal(seen[shift], expected), shift
    assert not seen[52:].any()


@pytest.mark.parametrize("word_bits", [18, 24, 32])
def test_scale_every_shift(word_bits):
    rng = np.random.default_rng(word_bits)
    values = words(rng, word_bits, 12)
    for factor in (0xffff, int(rng.integers(0, 0xffff))):
        seen = swept(Scale(word_bits=word_bits), "i", "shift", values, range(MAX_SHIFT + 1), {"factor": factor})
        for shift in range(MAX_SHIFT + 1):
            assert np.array_equal(seen[shift], Factor(factor, shift)(values)), shift


class Session:
    """Rows for :func:`trace` of one unit: load, groups of gradients, read back; and what must be seen."""

    def __init__(self, unit, sgd, gradient_shift, rng):
        self.unit, self.sgd, self.gradient_shift, self.rng = unit, sgd, gradient_shift, rng
        self.static = {"rule": rule_of(sgd, gradient_shift)}
        self.rows = [self.static] * 2
        wide = master_format(sgd.weight).width
        self.master, self.momentum = words(rng, wide, unit.depth), words(rng, wide, unit.depth)
        for is_momentum, memory in enumerate((self.master, self.momentum)):
            self.rows += [self.static | {"host_write": 1, "host_momentum": is_momentum, "host_address": address,
                                         "host_data": int(word) & 0xffffffff} for address, word in enumerate(memory)]
        self.sums = np.zeros(unit.depth, dtype=np.int64)
        self.expected = {}   # row -> (address, weight)
        self.gradients = {}  # row -> (address, gradient)

    def group(self, totals, *, first, last, gaps=False):
        """Every weight's gradient once, in random order; ``gaps`` leaves idle cycles between."""
        order = self.rng.permutation(self.unit.depth)
        self.sums = totals + (0 if first else self.sums)
        if last:
            requantise = Requantize(acc_bits=len(self.unit.total), out_bits=GRADIENT_BITS, shift=self.gradient_shift)
            gradient = requantise(self.sums)
            self.master, self.momentum, weight = self.sgd(self.master, self.momentum, gradient)
        for address in order.tolist():
            if gaps:
                self.rows += [self.static | {"address": address ^ 1, "last": 1}] * int(self.rng.integers(0, 3))
            if last:
                self.expected[len(self.rows) + self.unit.latency_cycles] = (address, weight[address])
                self.gradients[len(self.rows) + self.unit.gradient_cycles] = (address, gradient[address])
            self.rows.append(self.static | {"valid": 1, "address": address, "total": int(totals[address]),
                                            "first": int(first), "last": int(last)})
        self.rows += [self.static] * self.unit.latency_cycles

    def check(self):
        rows = self.rows + [self.static]
        reads = len(rows)
        rows += [self.static | {"host_momentum": k, "host_address": address}
                 for k in range(2) for address in range(self.unit.depth)] + [self.static] * READ_CYCLES
        seen = trace(self.unit, rows, ["out_valid", "out_address", "out_weight", "gradient_valid", "gradient_address",
                                       "gradient", "host_read", "busy"])
        assert {k: s[1:3] for k, s in enumerate(seen) if s[0]} == self.expected
        assert {k: s[4:6] for k, s in enumerate(seen) if s[3]} == self.gradients
        back = np.array([s[6] for s in seen[reads + READ_CYCLES:]]).reshape(2, -1)
        assert np.array_equal(back, [self.master, self.momentum])
        valid = [k for k, row in enumerate(rows) if row.get("valid")]
        assert all(seen[k][7] for k in valid)
        assert not any(s[7] for s in seen[reads:])
        assert all(seen[k][7] for written in self.expected for k in range(written - self.unit.latency_cycles, written))


def test_one_weight_by_hand():
    # gradient 3·2^16 >> 1 -> 98304; velocity 1·100 + 0.5·98304 + 0.25·65536 = 65636; master 65536 - 65636 = -100
    unit = UpdateUnit(word_bits=16, depth=2, sum_bits=40, groups=False)
    rule = {"gradient_shift": 1, "weight_width": 16, "rate": 1, "rate_shift": 1, "momentum": 1, "decay": 1,
            "decay_shift": 2}
    static = {"rule": rule}
    rows = [static, static | {"host_write": 1, "host_data": 65536}, static | {"host_write": 1, "host_momentum": 1,
                                                                             "host_data": 100},
            static | {"valid": 1, "total": 3 << 16}, *[static] * unit.latency_cycles, static,
            static | {"host_momentum": 1}, *[static] * READ_CYCLES]
    seen = trace(unit, rows, ["out_valid", "out_weight", "host_read"])
    assert seen[3 + unit.latency_cycles][:2] == (1, 0)
    assert [row[2] for row in seen[-2:]] == [-100, 65636]


@pytest.mark.parametrize("groups, latency", [(True, 23), (False, 20)])
def test_latency(groups, latency):
    unit = UpdateUnit(word_bits=16, depth=2, sum_bits=40, groups=groups)
    seen = trace(unit, [{}, {"valid": 1, "last": 1}, *[{}] * 24], ["out_valid"])
    assert [k for k, (valid,) in enumerate(seen) if valid] == [1 + latency] == [1 + unit.latency_cycles]
    assert unit.recurrence_cycles == 16


@NO_SHRINK
@given(word_bits=st.integers(2, 16), data=st.data(), groups=st.integers(0, 3), gaps=st.booleans(),
       seed=st.integers(0, 1 << 30))
def test_matches_buffered_sgd(word_bits, data, groups, gaps, seed):
    width = data.draw(st.integers(2, word_bits))
    sum_bits = data.draw(st.integers(20, 56))
    sgd = BufferedSgd(weight=Fixed.of(width, 4), momentum=data.draw(factors), rate=data.draw(factors),
                      decay=data.draw(factors))
    rng = np.random.default_rng(seed)
    unit = UpdateUnit(word_bits=word_bits, depth=21, sum_bits=max(sum_bits, GRADIENT_BITS), groups=groups > 0)
    session = Session(unit, sgd, data.draw(st.integers(0, len(unit.total) - 1)), rng)
    for _ in range(2):
        for group in range(max(groups, 1)):
            totals = words(rng, len(unit.total) - 2, unit.depth)  # two bits spare: three groups add up
            session.group(totals, first=group == 0, last=group == max(groups, 1) - 1, gaps=gaps)
    session.check()


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("width", [2, 8, 15, 16])
def test_saturates_at_every_end(sign, width):
    """Gradients of the largest size drive velocity, master and weight to the ends of their formats."""
    sgd = BufferedSgd(weight=Fixed.of(width, 0), momentum=Factor(0xffff, 0), rate=Factor(0xffff, 0),
                      decay=Factor(0xffff, 0))
    unit = UpdateUnit(word_bits=16, depth=16, sum_bits=50, groups=False)
    session = Session(unit, sgd, 0, np.random.default_rng(width))
    for _ in range(3):
        session.group(np.full(16, sign * ((1 << 49) - 1)), first=True, last=True)
    session.check()
    assert set(session.master) <= {master_format(sgd.weight).low, master_format(sgd.weight).high, 0, -1}


def test_small_steps_are_kept():
    """Steps below the narrow weight's last place add up in the master."""
    sgd = BufferedSgd(weight=Fixed.of(8, 7), momentum=Factor(0, 0), rate=Factor(1, 0), decay=Factor(0, 0))
    unit = UpdateUnit(word_bits=8, depth=16, sum_bits=40, groups=True)
    session = Session(unit, sgd, 0, np.random.default_rng(1))
    for _ in range(4):
        session.group(np.full(16, -(1 << EXTRA_BITS - 2)), first=True, last=True)
    session.check()


def test_same_address_at_the_recurrence_distance():
    unit = UpdateUnit(word_bits=16, depth=16, sum_bits=40, groups=True)
    sgd = BufferedSgd(weight=Fixed.of(16, 8), momentum=Factor.nearest(0.9), rate=Factor(3, 0), decay=Factor(1, 9))
    static = {"rule": rule_of(sgd, 0)}
    order = [k % unit.recurrence_cycles for k in range(4 * unit.recurrence_cycles)]
    rows = [static] + [static | {"valid": 1, "address": address, "total": 1 << 20 + address, "first": 1, "last": 1}
                       for address in order] + [static] * unit.latency_cycles
    seen = [row[1:] for row in trace(unit, rows, ["out_valid", "out_address", "out_weight"]) if row[0]]
    master, velocity = np.zeros(16, dtype=np.int64), np.zeros(16, dtype=np.int64)
    expected = []
    for _ in range(4):
        master, velocity, weight = sgd(master, velocity, 1 << 20 + np.arange(16))
        expected += [(address, weight[address]) for address in range(unit.recurrence_cycles)]
    assert seen == expected
