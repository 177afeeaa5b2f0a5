"""A rounding right shift by a variable amount."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

FINE_BITS = 3  #: bits of the shift that the second stage applies


class RoundShift(wiring.Component):
    """``o = (i + half) >> shift``, halves up: :class:`~espalier.numerics.requantize.Requantize` without its clip.

    Latency :attr:`latency_cycles`, throughput one word per cycle. Any shift is legal; past the width
    of the word the result is 0.

    Parameters
    ----------
    word_bits, shift_bits : int
        Width of the words, and of the shift amount.

    Members
    -------
    i : In(signed(word_bits))
    shift : In(shift_bits)
        Quasi-static: one value for all words in flight.
    o : Out(signed(word_bits))
    """

    latency_cycles = 3

    def __init__(self, *, word_bits: int, shift_bits: int):
        super().__init__({"i": In(signed(word_bits)), "shift": In(shift_bits), "o": Out(signed(word_bits))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # One digit is kept below the last place: floor((floor(2*i / 2**shift) + 1) / 2) rounds halves up.
        doubled = signed(len(self.i) + 1)
        coarse, fine = Signal(doubled), Signal(doubled)
        m.d.sync += [
            coarse.eq(Cat(Const(0, 1), self.i).as_signed() >> Cat(Const(0, FINE_BITS), self.shift[FINE_BITS:])),
            fine.eq(coarse >> self.shift[:FINE_BITS]),
            self.o.eq((fine + 1) >> 1),
        ]
        return m
