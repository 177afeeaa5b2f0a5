"""Fixed-point formats against an oracle in exact fractions, and against hand-worked values."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.errors import FormatError
from espalier.numerics.fixed import MAX_WIDTH, Fixed, Overflow, Quant, round_to_integer


def ap_fixed_round(value: Fraction, quant: Quant) -> int:
    """AMD's quantisation modes on an exact number of units in the last place."""
    below = math.floor(value)
    rest = value - below
    toward_zero = below if value >= 0 else -math.floor(-value)
    nearest = below + (rest > Fraction(1, 2))
    if quant is Quant.AP_TRN:
        return below
    if quant is Quant.AP_TRN_ZERO:
        return toward_zero
    if rest != Fraction(1, 2):
        return nearest
    return {Quant.AP_RND: below + 1, Quant.AP_RND_MIN_INF: below, Quant.AP_RND_ZERO: toward_zero,
            Quant.AP_RND_INF: below + 1 if value > 0 else below,
            Quant.AP_RND_CONV: below + below % 2}[quant]


def ap_fixed_limit(word: int, width: int, signed: bool, overflow: Overflow) -> int:
    """AMD's overflow modes on a whole number."""
    low, high = (-2 ** (width - 1), 2 ** (width - 1) - 1) if signed else (0, 2 ** width - 1)
    if low <= word <= high and not (overflow is Overflow.AP_SAT_SYM and signed and word == low):
        return word
    if overflow is Overflow.AP_SAT_ZERO:
        return 0
    if overflow is Overflow.AP_WRAP:
        bits = word % 2 ** width
        return bits - 2 ** width if bits > high else bits
    end = low if word < 0 else high
    return -high if overflow is Overflow.AP_SAT_SYM and signed and word < 0 else end


formats = st.builds(Fixed, st.integers(1, MAX_WIDTH), st.integers(-20, 80), st.sampled_from(Quant),
                    st.sampled_from(Overflow), st.booleans())


@settings(deadline=None, max_examples=400, derandomize=True)
@given(formats, st.data())
def test_quantise_is_ap_fixed(format_, data):
    """Doubles near the range and far out of it, halves and their neighbours."""
    halves = st.builds(lambda half, step: np.nextafter(half / 2, step) if step is not None else half / 2,
                       st.integers(-300, 300), st.sampled_from([None, -math.inf, math.inf]))
    units = st.one_of(halves, st.floats(-2.0 ** 70, 2.0 ** 70, allow_subnormal=False),
                      st.integers(format_.low - 3, format_.high + 3).map(float))
    values = [math.ldexp(unit, -format_.frac) for unit in data.draw(st.lists(units, min_size=1, max_size=20))]
    expected = [ap_fixed_limit(ap_fixed_round(Fraction(value) * Fraction(2) ** format_.frac, format_.quant),
                               format_.width, format_.signed, format_.overflow) for value in values]
    assert format_.quantise(values).tolist() == expected


@pytest.mark.parametrize(("quant", "expected"), [
    # of        -2.5 -1.75 -1.5 -1.25 -0.5  0.5  1.25 1.5 1.75 2.5
    (Quant.AP_TRN,         [-3, -2, -2, -2, -1, 0, 1, 1, 1, 2]),
    (Quant.AP_TRN_ZERO,    [-2, -1, -1, -1, 0, 0, 1, 1, 1, 2]),
    (Quant.AP_RND,         [-2, -2, -1, -1, 0, 1, 1, 2, 2, 3]),
    (Quant.AP_RND_ZERO,    [-2, -2, -1, -1, 0, 0, 1, 1, 2, 2]),
    (Quant.AP_RND_MIN_INF, [-3, -2, -2, -1, -1, 0, 1, 1, 2, 2]),
    (Quant.AP_RND_INF,     [-3, -2, -2, -1, -1, 1, 1, 2, 2, 3]),
    (Quant.AP_RND_CONV,    [-2, -2, -2, -1, 0, 0, 1, 2, 2, 2]),
])
def test_rounding_modes_by_hand(quant, expected):
    values = np.array([-2.5, -1.75, -1.5, -1.25, -0.5, 0.5, 1.25, 1.5, 1.75, 2.5])
    assert round_to_integer(values, quant).tolist() == expected


@pytest.mark.parametrize(("overflow", "signed", "expected"), [
    (Overflow.AP_WRAP,     True,  [7, -8, -1, 0, 7, -8, 1]),
    (Overflow.AP_SAT,      True,  [-8, -8, -1, 0, 7, 7, 7]),
    (Overflow.AP_SAT_ZERO, True,  [0, -8, -1, 0, 7, 0, 0]),
    (Overflow.AP_SAT_SYM,  True,  [-7, -7, -1, 0, 7, 7, 7]),
    (Overflow.AP_WRAP,     False, [7, 8, 15, 0, 7, 8, 1]),
    (Overflow.AP_SAT,      False, [0, 0, 0, 0, 7, 8, 15]),
    (Overflow.AP_SAT_ZERO, False, [0, 0, 0, 0, 7, 8, 0]),
    (Overflow.AP_SAT_SYM,  False, [0, 0, 0, 0, 7, 8, 15]),
])
def test_overflow_modes_by_hand(overflow, signed, expected):
    format_ = Fixed(4, 4, Quant.AP_RND, overflow, signed)
    assert format_.limit(np.array([-9, -8, -1, 0, 7, 8, 17])).tolist() == expected


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 16), st.integers(-40, 60), st.booleans(), st.lists(st.integers(-2 ** 16, 2 ** 16)))
def test_values_of_words_quantise_to_the_words(width, int_bits, signed, numbers):
    format_ = Fixed(width, int_bits, signed=signed)
    words = format_.limit(np.array(numbers, dtype=np.int64))
    assert np.array_equal(format_.quantise(format_.values(words)), words)


def test_infinity_saturates():
    assert Fixed.of(8, 4).quantise([math.inf, -math.inf]).tolist() == [127, -128]


def test_ends_and_resolution():
    format_ = Fixed(16, 6)
    assert (format_.frac, format_.low, format_.high, format_.resolution) == (10, -32768, 32767, 2.0 ** -10)
    assert (Fixed(8, 3, signed=False).low, Fixed(8, 3, signed=False).high) == (0, 255)
    assert Fixed.of(16, 10) == format_


@settings(deadline=None, derandomize=True)
@given(formats)
def test_parse_reads_what_str_prints(format_):
    assert Fixed.parse(str(format_)) == format_


@pytest.mark.parametrize(("text", "expected"), [
    ("fixed<16,6>", Fixed(16, 6, Quant.AP_TRN, Overflow.AP_WRAP)),
    ("ap_fixed<16,6>", Fixed(16, 6, Quant.AP_TRN, Overflow.AP_WRAP)),
    (" ufixed< 8 , -2 , AP_RND > ", Fixed(8, -2, Quant.AP_RND, Overflow.AP_WRAP, signed=False)),
    ("ap_ufixed<8,9,AP_RND_CONV,AP_SAT_SYM>", Fixed(8, 9, Quant.AP_RND_CONV, Overflow.AP_SAT_SYM, signed=False)),
])
def test_parse_by_hand(text, expected):
    assert Fixed.parse(text) == expected


@pytest.mark.parametrize(("format_", "text"), [
    (Fixed(16, 6, Quant.AP_TRN, Overflow.AP_WRAP), "fixed<16,6>"),
    (Fixed.of(8, 7), "fixed<8,1,AP_RND,AP_SAT>"),
    (Fixed(8, 0, Quant.AP_TRN, Overflow.AP_SAT, signed=False), "ufixed<8,0,AP_TRN,AP_SAT>"),
])
def test_str_by_hand(format_, text):
    assert str(format_) == text


@pytest.mark.parametrize("text", ["", "fixed<8>", "fixed<8,1", "int8", "fixed<8,1,AP_RND,AP_SAT,3>", "fixed<٨,1>"])
def test_parse_wrong(text):
    with pytest.raises(FormatError, match=r"^A fixed-point format is written fixed<W,I\[,Q\[,O\]\]>, not "):
        Fixed.parse(text)


@pytest.mark.parametrize("text", ["fixed<8,1,AP_SAT>", "fixed<8,1,AP_RND,AP_RND>", "fixed<8,1,rnd>"])
def test_parse_mode_wrong(text):
    with pytest.raises(FormatError, match=r"^Unknown mode in the fixed-point format 'fixed<8,1,.*quantisation is one "
                                          r"of AP_TRN, .*AP_RND_CONV, overflow one of AP_WRAP, .*AP_SAT_SYM$"):
        Fixed.parse(text)


@pytest.mark.parametrize("width", [0, -1, 63])
def test_width_wrong(width):
    with pytest.raises(FormatError, match=rf"^Width of a fixed-point format must be in 1\.\.62, not {width}$"):
        Fixed.parse(f"fixed<{width},1>")


def test_nan_wrong():
    with pytest.raises(FormatError, match=r"^NaN cannot be represented in fixed<8,1,AP_RND,AP_SAT>: "
                                          r"2 of 3 values are NaN$"):
        Fixed.of(8, 7).quantise([math.nan, 0.5, math.nan])


def test_wrapped_infinity_wrong():
    with pytest.raises(FormatError, match=r"^Infinity has no place in fixed<8,1>, which wraps: 1 of 2 values"):
        Fixed.parse("fixed<8,1>").quantise([math.inf, 0.5])
