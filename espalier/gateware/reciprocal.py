"""A serial divider for reciprocals."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

DIGIT_BITS = 2  #: of the quotient, found in one cycle


class Reciprocal(wiring.Component):
    """``quotient = 2**exponent // divisor`` for divisors of at least ``2**least``.

    Restoring division to base 4: one, two and three times the divisor are tried at once. One quotient in
    :attr:`latency_cycles`, not pipelined.

    Parameters
    ----------
    exponent, least : int
        ``least <= exponent``.
    divisor_bits : int
        Width of the divisor.

    Members
    -------
    start, divisor : In
        Begin with this divisor; not before the last division is done.
    held : Out
        The divisor of the last ``start``.
    done : Out(1)
        For one cycle, ``latency_cycles`` after ``start``.
    quotient : Out
        Valid from ``done`` until the next ``start``.
    """

    def __init__(self, *, exponent: int, least: int, divisor_bits: int):
        assert 0 < least <= exponent and divisor_bits > least
        self.least = least
        self.steps = -(-(exponent - least + 1) // DIGIT_BITS)
        self.spare = self.steps * DIGIT_BITS - (exponent - least + 1)
        super().__init__({
            "start": In(1), "divisor": In(divisor_bits), "held": Out(divisor_bits), "done": Out(1),
            "quotient": Out(exponent - least + 1)})

    @property
    def latency_cycles(self) -> int:
        """Cycles from ``start`` to ``done``."""
        return self.steps + 1

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # The leading digits of the dividend, 2**(least - 1), are below any divisor: no quotient digit is 1 there.
        remainder = Signal(unsigned(len(self.divisor)))
        tripled = Signal(len(self.divisor) + 2)
        left = Signal(range(self.steps + 1))
        m.d.sync += self.done.eq(left == 1)
        with m.If(self.start):
            m.d.sync += [self.held.eq(self.divisor), tripled.eq(self.divisor + (self.divisor << 1)),
                         left.eq(self.steps),
                         remainder.eq((1 << self.least - 1) >> self.spare)]
        with m.Elif(left != 0):
            shifted = Cat(Const(0, DIGIT_BITS), remainder)
            once, twice, thrice = (shifted - multiple for multiple in (self.held, self.held << 1, tripled))
            digit = Cat(~thrice[-1] | twice[-1] & ~once[-1], ~twice[-1])
            m.d.sync += [left.eq(left - 1), self.quotient.eq(Cat(digit, self.quotient)),
                         remainder.eq(Mux(twice[-1], Mux(once[-1], shifted, once), Mux(thrice[-1], twice, thrice)))]
        return m
