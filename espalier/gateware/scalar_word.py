"""From scalars to words."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from espalier.gateware.arithmetic import delay_line, saturate
from espalier.gateware.scalar_round import BIAS, SCALAR, significand
from espalier.program.scalar import FRAC_BITS


class ScalarWord(wiring.Component):
    """``scalar.to_words``: the nearest word, halves up, saturated. One a cycle.

    Parameters
    ----------
    word_bits : int
        2..16.

    Members
    -------
    valid, a, frac : In
        A scalar, and the fraction bits of its word.
    limit : In
        The largest word; the smallest is its complement. Quasi-static.
    done : Out(1)
        :attr:`latency_cycles` after ``valid``.
    word : Out(signed(word_bits))
        From ``done`` to the next ``done``.
    """

    latency_cycles = 3

    def __init__(self, *, word_bits: int):
        assert 2 <= word_bits <= 16
        self.word_bits = word_bits
        super().__init__({"valid": In(1), "a": In(SCALAR), "frac": In(signed(FRAC_BITS)),
                          "limit": In(word_bits - 1), "done": Out(1),
                          "word": Out(signed(word_bits))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        *_, late, done = delay_line(m, self.valid, self.latency_cycles, "valid")
        whole_bits = self.word_bits - 1
        first = self.a.exponent - BIAS + self.frac  # place of the first digit, in words
        zero = self.a.exponent == 0
        above, below, sign = Signal(2), Signal(), Signal(2)
        shift, digits = Signal(range(self.word_bits)), Signal.like(significand(self.a))
        m.d.sync += [above[0].eq((first >= whole_bits) & ~zero), below.eq((first < -1) | zero),
                     sign[0].eq(self.a.sign), shift.eq(whole_bits - 1 - first), digits.eq(significand(self.a))]

        shifted = Cat(Const(0, whole_bits), digits) >> shift
        rest, half, whole = (shifted[:len(digits) - 1], shifted[len(digits) - 1], shifted[len(digits):])
        size, more = Signal(whole_bits), Signal()
        m.d.sync += [size.eq(Mux(below, 0, whole)), more.eq(~below & half & (rest.any() | ~sign[0])),
                     above[1].eq(above[0]), sign[1].eq(sign[0])]

        signs = sign[1].replicate(whole_bits)
        rounded = Signal(signed(self.word_bits + 1))  # -(size + more) is ~size + ~more, and one bit more than a word
        m.d.comb += [rounded.eq(Cat(size ^ signs, sign[1]).as_signed() + (more ^ sign[1])), self.done.eq(done)]
        with m.If(late):
            m.d.sync += self.word.eq(Mux(above[1], Cat(self.limit ^ signs, sign[1]).as_signed(),
                                         saturate(rounded, self.limit, self.word_bits)))
        return m
