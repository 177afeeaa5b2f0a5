"""The two optimisers on words: by hand, and the buffered one against torch.optim.SGD within its rounding."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.errors import FormatError
from espalier.numerics.fixed import Fixed
from espalier.numerics.scalar import LARGEST, TINIEST, scalar
from espalier.numerics.update import EXTRA_BITS, BufferedSgd, Factor, NarrowSgd, ScalarSgd, master_format, narrow


def words(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


@pytest.mark.parametrize(("value", "word", "shift"), [
    (0.0, 0, 0), (1.0, 32768, 15), (0.5, 32768, 16), (0.9, 58982, 16), (0.1, 52429, 19), (3.0, 49152, 14),
    (65535.0, 65535, 0), (2.0 ** -40, 128, 47), (2.0 ** -60, 0, 47), (1 - 2.0 ** -20, 32768, 15)])
def test_factor_by_hand(value, word, shift):
    assert Factor.nearest(value) == Factor(word, shift)


@settings(deadline=None, derandomize=True)
@given(st.floats(2.0 ** -31, 60000))
def test_factor_keeps_sixteen_bits(value):
    assert abs(Factor.nearest(value).value - value) <= value * 2.0 ** -16


def test_factor_rounds_half_up():
    assert Factor(1, 2)(words(-6, -2, 2, 6, 5)).tolist() == [-1, 0, 1, 2, 1]
    assert Factor(3, 0)(words(-2, 5)).tolist() == [-6, 15]


@pytest.mark.parametrize("value", [-0.1, 65536.0, float("nan"), float("inf")])
def test_factor_value_wrong(value):
    with pytest.raises(FormatError, match=rf"^A scaling factor must be in 0\.\.65536, not {value}$"):
        Factor.nearest(value)


@pytest.mark.parametrize(("word", "shift"), [(65536, 0), (-1, 0), (1, 48), (1, -1)])
def test_factor_wrong(word, shift):
    with pytest.raises(FormatError, match=r"^A factor has a word of 16 bits and a shift in 0\.\.47, not Factor"):
        Factor(word, shift)


def test_master_and_its_weight_by_hand():
    weight = Fixed.of(8, 7)
    assert master_format(weight) == Fixed.of(24, 23)
    half = 1 << EXTRA_BITS - 1
    assert narrow(words(half - 1, half, -half, -half - 1, 127 << 16, (1 << 23) - 1, -1 << 23), weight).tolist() == [
        0, 1, 0, -1, 127, 127, -128]


def test_buffered_sgd_by_hand():
    """w 8 bits with 4 fraction bits, so m has 20; G has 4: eta = 0.5·2^16, mu = 0.5, lambda = 0.25."""
    rule = BufferedSgd.of(weight=Fixed.of(8, 4), grad_frac=4, learning_rate=1.0, batch=2, momentum=0.5,
                          weight_decay=0.25)
    assert (rule.rate, rule.momentum, rule.decay) == (Factor(32768, 0), Factor(32768, 16), Factor(32768, 17))
    master, velocity, weight = rule(words(1 << 16, 3, -6), words(7, -7, 0), words(1, 0, 0))
    # v' = [4 + 32768 + 16384, -3 + 0 + 1, 0 + 0 - 1], m' = m - v', halves rounded up: 3.5 → 4, -3.5 → -3, -1.5 → -1
    assert velocity.tolist() == [49156, -2, -1]
    assert master.tolist() == [65536 - 49156, 5, -5]
    assert weight.tolist() == [0, 0, 0]


def test_buffered_sgd_saturates_by_hand():
    rule = BufferedSgd(weight=Fixed.of(4, 0), momentum=Factor(0, 0), rate=Factor(65535, 0), decay=Factor(0, 0))
    top = (1 << 19) - 1
    master, velocity, weight = rule(words(top, -top), words(0, 0), words(-100, 100))
    assert velocity.tolist() == [-top - 1, top]
    assert master.tolist() == [top, -top - 1]
    assert weight.tolist() == [7, -8]


def test_buffer_keeps_small_updates_and_narrow_words_lose_them():
    """A step of 1/64 of the weight's last place: 64 of them move the buffered weight by one, the narrow one never."""
    weight = Fixed.of(16, 8)
    buffered = BufferedSgd.of(weight=weight, grad_frac=14, learning_rate=1.0, batch=1)
    master, velocity, word = words(0), words(0), words(0)
    small = NarrowSgd.of(weight=weight, grad_frac=14, learning_rate=1.0, batch=1, momentum_extra=4)
    narrow_word, momentum = words(0), words(0)
    for _ in range(64):
        master, velocity, word = buffered(master, velocity, words(1))
        narrow_word, momentum = small(narrow_word, momentum, words(1))
    assert (word.tolist(), master.tolist()) == ([-1], [-1 << 16])
    assert (narrow_word.tolist(), momentum.tolist()) == ([0], [0])


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(0, 2 ** 32 - 1), st.floats(1e-3, 0.1), st.sampled_from([0.0, 0.5, 0.9]), st.floats(0.0, 1e-2))
def test_buffered_sgd_equals_torch_within_its_rounding(seed, learning_rate, momentum, weight_decay):
    """Torch in float64 with the factors as rounded; each step may add 1.5 words to ``v`` and keep ``mu`` of the rest.

    Torch's v' = mu·v + (G/batch + wd·w), w' = w - lr·v' is ours with v scaled by the learning rate.
    """
    random = np.random.default_rng(seed)
    weight, batch, grad_frac, steps = Fixed.of(16, 14), 4, 20, 20
    rule = BufferedSgd.of(weight=weight, grad_frac=grad_frac, learning_rate=learning_rate, batch=batch,
                          momentum=momentum, weight_decay=weight_decay)
    wide = master_format(weight)
    master, velocity = wide.quantise(random.uniform(-0.5, 0.5, 10)), np.zeros(10, dtype=np.int64)
    parameter = torch.nn.Parameter(torch.tensor(wide.values(master)))
    change = rule.rate.value * 2.0 ** (grad_frac - wide.frac)  # the learning rate over the batch, as rounded
    optimiser = torch.optim.SGD([parameter], lr=1.0, momentum=rule.momentum.value)
    velocity_error = master_error = 0.0
    for _ in range(steps):
        gradient = random.integers(-2 ** 19, 2 ** 19, 10)
        parameter.grad = torch.tensor(np.ldexp(gradient.astype(float), -grad_frac) * change)
        parameter.grad += rule.decay.value * parameter.detach()
        optimiser.step()
        master, velocity, word = rule(master, velocity, gradient)
        velocity_error = rule.momentum.value * velocity_error + rule.decay.value * master_error + 1.5
        master_error += velocity_error
        error = np.abs(np.ldexp(parameter.detach().numpy(), wide.frac) - master)
        assert error.max() <= master_error + 1e-3  # the last for float64's own rounding
        assert np.array_equal(word, narrow(master, weight))
    assert change == pytest.approx(learning_rate / batch, rel=2.0 ** -16)


@settings(deadline=None, derandomize=True)
@given(st.data())
def test_buffered_sgd_is_exact_in_fractions(data):
    factor = st.builds(Factor, st.integers(0, 65535), st.integers(0, 47))
    width = data.draw(st.integers(2, 16))
    rule = BufferedSgd(weight=Fixed.of(width, 3), momentum=data.draw(factor), rate=data.draw(factor),
                       decay=data.draw(factor))
    top = 1 << width + EXTRA_BITS - 1
    m, v = data.draw(st.integers(-top, top - 1)), data.draw(st.integers(-top, top - 1))
    g = data.draw(st.integers(-2 ** 31, 2 ** 31 - 1))

    def scaled(scale: Factor, word: int) -> int:
        return (Fraction(word * scale.word, 2 ** scale.shift) + Fraction(1, 2)).__floor__()

    def limited(word: int, bound: int) -> int:
        return min(max(word, -bound), bound - 1)

    v_new = limited(scaled(rule.momentum, v) + scaled(rule.rate, g) + scaled(rule.decay, m), top)
    m_new = limited(m - v_new, top)
    w_new = limited((Fraction(m_new, 2 ** EXTRA_BITS) + Fraction(1, 2)).__floor__(), 1 << width - 1)
    assert [part.tolist() for part in rule(words(m), words(v), words(g))] == [[m_new], [v_new], [w_new]]


def test_narrow_sgd_by_hand():
    """8-bit words: momentum takes 3·G/4, the weight takes momentum/4, momentum halves; all round half up."""
    rule = NarrowSgd(weight=Fixed.of(8, 4), rate=Factor(3, 2), scale=Factor(1, 2), momentum=Factor(1, 1))
    weight, momentum = rule(words(10, 10, 10), words(4, 0, -3), words(10, -1, 0))
    # 7.5 → 8, M = 12, W -= 3, M/2 = 6;  -0.75 → -1, M = -1, W -= -0.25 → 0, -0.5 → 0;  M = -3, -0.75 → -1, -1.5 → -1
    assert weight.tolist() == [7, 10, 11]
    assert momentum.tolist() == [6, 0, -1]


def test_narrow_sgd_wraps_by_hand():
    rule = NarrowSgd(weight=Fixed.of(8, 4), rate=Factor(1, 0), scale=Factor(1, 0), momentum=Factor(1, 0))
    weight, momentum = rule(words(-120, 0, 5), words(100, 0, 0), words(50, 300, -128))
    assert momentum.tolist() == [150 - 256, 300 - 256, -128]
    assert weight.tolist() == [-120 + 106, -44, 133 - 256]


def test_narrow_sgd_of_real_parameters():
    rule = NarrowSgd.of(weight=Fixed.of(16, 12), grad_frac=14, learning_rate=0.5, batch=8, momentum=0.5)
    assert (rule.scale, rule.momentum.value, rule.rate.value) == (Factor(1, 4), 0.5, 0.5 / 8 * 2.0 ** (12 + 4 - 14))


def scalar_sgd(momentum: float, rate: float, decay: float) -> ScalarSgd:
    return ScalarSgd(momentum=scalar(momentum), rate=scalar(rate), decay=scalar(decay))


def test_scalar_sgd_by_hand():
    """v' = 0.5 * 4 + 0.25 * 8 + 0.125 * 16 = 6, w' = 16 - 6; small velocities vanish, large ones saturate."""
    weight, velocity = scalar_sgd(0.5, 0.25, 0.125)(scalar([16.0]), scalar([4.0]), scalar([8.0]))
    assert (weight.tolist(), velocity.tolist()) == ([10.0], [6.0]) and weight.dtype == velocity.dtype == np.float32
    weight, velocity = scalar_sgd(0.5, 1.0, 0.0)(scalar([0.0, -LARGEST]), scalar([TINIEST, LARGEST]),
                                                 scalar([0.0, LARGEST]))
    assert (weight.tolist(), velocity.tolist()) == ([0.0, -LARGEST], [0.0, LARGEST])


def test_scalar_sgd_is_near_that_of_torch():
    """Ten steps of random gradients; the learning rate is inside the momentum here, and outside in torch."""
    random = np.random.default_rng(0)
    start = scalar(random.normal(size=5))
    parameter = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimiser = torch.optim.SGD([parameter], 0.1, 0.9, weight_decay=1e-2)
    rule, weight, velocity = scalar_sgd(0.9, 0.1, 0.1 * 1e-2), start, np.zeros(5, np.float32)
    for _ in range(10):
        gradient = scalar(random.normal(size=5))
        weight, velocity = rule(weight, velocity, gradient)
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimiser.step()
    assert np.abs(weight - parameter.detach().numpy()).max() < 1e-5
