"""A serial unit for ``1 / sqrt(a)``."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from espalier.gateware.scalar_round import BIAS, EXACT, SCALAR, SIGNIFICAND_BITS, at_the_top, significand

ROOT_STEPS = SIGNIFICAND_BITS + 1      #: one digit more than the root is rounded to
QUOTIENT_STEPS = SIGNIFICAND_BITS + 2  #: one more, since the first is 1 for a power of two only


class InverseRoot(wiring.Component):
    """``scalar.inverse_root`` before its last rounding: a root, rounded, and its reciprocal, a digit a cycle.

    Both recurrences use the same registers and one subtraction. Not pipelined.

    Members
    -------
    start, a : In
        Begin with ``a``, above zero; not before the last one is done.
    done : Out(1)
        For one cycle, :attr:`latency_cycles` after ``start``.
    o : Out(EXACT)
        Valid with ``done``.
    """

    latency_cycles = ROOT_STEPS + 1 + QUOTIENT_STEPS + 1

    def __init__(self) -> None:
        super().__init__({"start": In(1), "a": In(SCALAR), "done": Out(1), "o": Out(EXACT)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        operand = Signal(SIGNIFICAND_BITS + 1)       # digits of the radicand yet to come, then the divisor
        digits = Signal(QUOTIENT_STEPS)              # of the root, then of the quotient
        remainder = Signal(ROOT_STEPS + 1)
        left = Signal(range(self.latency_cycles))
        dividing = Signal()
        shifted = Mux(dividing, remainder << 1, Cat(operand[-2:], remainder))
        rest = shifted - Mux(dividing, operand, Cat(Const(1, 2), digits))

        m.d.sync += self.done.eq(left == 1)
        with m.If(self.start):
            # The radicand is in 1..4, so that half of the exponent is a whole number.
            m.d.sync += [operand.eq(significand(self.a) << ~self.a.exponent[0]), digits.eq(0), remainder.eq(0),
                         left.eq(self.latency_cycles - 1), dividing.eq(0),
                         self.o.exponent.eq(BIAS + BIAS // 2 + 1 - ((self.a.exponent + 1) >> 1))]
        with m.Elif(left == QUOTIENT_STEPS + 1):  # the root is not halfway between two scalars, nor next to 2
            m.d.sync += [left.eq(left - 1), dividing.eq(1), operand.eq(digits[1:] + digits[0]),
                         remainder.eq(1 << SIGNIFICAND_BITS - 2)]
        with m.Elif(left != 0):
            m.d.sync += [left.eq(left - 1), digits.eq(Cat(~rest[-1], digits)),
                         remainder.eq(Mux(rest[-1], shifted, rest))]
            with m.If(~dividing):
                m.d.sync += operand.eq(operand << 2)
        m.d.comb += self.o.magnitude.eq(at_the_top(Cat(remainder.any(), digits)))
        return m
