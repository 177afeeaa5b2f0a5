"""The one rounding of the engine, by hand and against exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.errors import FormatError
from espalier.numerics.requantize import Requantize


def test_by_hand():
    requantize = Requantize(acc_bits=16, out_bits=8, shift=2)
    assert requantize(np.array([-6, -2, 2, 6])).tolist() == [-1, 0, 1, 2]
    assert requantize(np.array([-7, -5, -1, 0, 1, 5, 7])).tolist() == [-2, -1, 0, 0, 0, 1, 2]


def test_saturates_at_both_ends():
    requantize = Requantize(acc_bits=12, out_bits=4, shift=1)
    assert requantize(np.array([-2048, -18, -17, -16, 13, 14, 2047])).tolist() == [-8, -8, -8, -8, 7, 7, 7]


def test_no_shift_only_saturates():
    requantize = Requantize(acc_bits=8, out_bits=3, shift=0)
    assert requantize(np.array([-5, -4, 3, 4])).tolist() == [-4, -4, 3, 3]
    assert requantize.out_range == (-4, 3)


@settings(deadline=None, derandomize=True)
@given(st.data())
def test_is_the_nearest_word(data):
    acc_bits = data.draw(st.integers(2, 48))
    out_bits = data.draw(st.integers(1, min(16, acc_bits)))
    shift = data.draw(st.integers(0, acc_bits - 1))
    acc = data.draw(st.lists(st.integers(-2 ** (acc_bits - 1), 2 ** (acc_bits - 1) - 1), min_size=1))
    low, high = -2 ** (out_bits - 1), 2 ** (out_bits - 1) - 1
    expected = [min(max(math.floor(Fraction(word, 2 ** shift) + Fraction(1, 2)), low), high) for word in acc]
    assert Requantize(acc_bits=acc_bits, out_bits=out_bits, shift=shift)(np.array(acc)).tolist() == expected


@pytest.mark.parametrize("out_bits", [0, 17])
def test_out_bits_wrong(out_bits):
    with pytest.raises(FormatError, match=r"^Output width must be in 1\.\.16 \(the accumulator width\), "
                                          rf"not {out_bits}$"):
        Requantize(acc_bits=16, out_bits=out_bits, shift=0)


@pytest.mark.parametrize("shift", [-1, 16])
def test_shift_wrong(shift):
    with pytest.raises(FormatError, match=rf"^Shift must be in 0\.\.15, not {shift}$"):
        Requantize(acc_bits=16, out_bits=8, shift=shift)
