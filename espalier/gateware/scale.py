"""Multiplication of words by a factor ``word * 2**-shift``."""

from __future__ import annotations

from amaranth.hdl import Module, Signal, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from espalier.gateware.round_shift import RoundShift
from espalier.numerics.update import FACTOR_BITS, MAX_SHIFT

SHIFT_BITS = MAX_SHIFT.bit_length()
LOW_BITS = 16  #: bits of a word that the first of two multipliers takes


class Scale(wiring.Component):
    """``o = Factor(factor, shift)(i)``: one product, one rounding half up, nothing lost.

    The product is made of two, each of which fits a hard 18×18 multiplier. Latency
    :attr:`latency_cycles` (register ``i`` before if it comes from far), throughput one word per cycle.

    Parameters
    ----------
    word_bits : int
        Width of the words, above 16.

    Members
    -------
    i : In(signed(word_bits))
    factor, shift : In
        Word and shift of the :class:`~espalier.numerics.update.Factor`; quasi-static.
    o : Out(signed(word_bits + 16))
    """

    latency_cycles = 2 + RoundShift.latency_cycles

    def __init__(self, *, word_bits: int):
        assert word_bits > LOW_BITS
        super().__init__({"i": In(signed(word_bits)), "factor": In(FACTOR_BITS), "shift": In(SHIFT_BITS),
                          "o": Out(signed(word_bits + FACTOR_BITS))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.round = rounding = RoundShift(word_bits=len(self.o), shift_bits=SHIFT_BITS)
        low = Signal(unsigned(LOW_BITS + FACTOR_BITS))
        high = Signal(signed(len(self.i) - LOW_BITS + FACTOR_BITS))
        product = Signal(self.o.shape())
        m.d.sync += [
            low.eq(self.i[:LOW_BITS] * self.factor),
            high.eq(self.i[LOW_BITS:].as_signed() * self.factor),
            product.eq((high << LOW_BITS) + low),
        ]
        m.d.comb += [rounding.i.eq(product), rounding.shift.eq(self.shift), self.o.eq(rounding.o)]
        return m
