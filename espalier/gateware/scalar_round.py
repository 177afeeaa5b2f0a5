"""The common end of all operations on scalars: normalise, round, pack."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from espalier.gateware.arithmetic import delay_line

#: A scalar of ``numerics/scalar.py`` as in memory; exponent 0 is the number zero, whatever the fraction.
SCALAR = data.StructLayout({"fraction": 23, "exponent": 8, "sign": 1})
SIGNIFICAND_BITS = 24
BIAS = 127
MAGNITUDE_BITS = 64

#: A number before it is rounded: ``magnitude * 2**(exponent - BIAS - 63)``, ``exponent`` being that of the first bit.
#: The last bit of the magnitude may stand for all that is below it. ``floored``: what is negative counts as zero.
EXACT = data.StructLayout({"sign": 1, "exponent": signed(10), "magnitude": MAGNITUDE_BITS, "floored": 1})

_DROPPED_BITS = MAGNITUDE_BITS - SIGNIFICAND_BITS
_LARGEST = 0x7F7FFFFF
_DIGIT_BITS = 3  #: of a shift, in one cycle: two digits shift by 0..63


def significand(scalar: data.View) -> Value:
    """The digits of a scalar, the first one included."""
    return Cat(scalar.fraction, scalar.exponent.any())


def at_the_top(digits: Value) -> Value:
    """``digits`` as the first bits of a magnitude."""
    return Cat(Const(0, MAGNITUDE_BITS - len(digits)), digits)


class ScalarRound(wiring.Component):
    """``scalar.scalar``: the nearest scalar, ties to even. One number a cycle.

    Members
    -------
    valid, i : In
        A number.
    done : Out(1)
        :attr:`latency_cycles` after ``valid``.
    o : Out(SCALAR)
        The scalar, from ``done`` to the next ``done``. Zero is positive.
    """

    latency_cycles = 4

    def __init__(self) -> None:
        super().__init__({"valid": In(1), "i": In(EXACT), "done": Out(1), "o": Out(SCALAR)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        *_, late, done = delay_line(m, self.valid, self.latency_cycles, "valid")
        normal = self._shifted(m, self._shifted(m, self.i, _DIGIT_BITS, "coarse"), 0, "fine")
        rest, guard, kept = (normal.magnitude[:_DROPPED_BITS - 1], normal.magnitude[_DROPPED_BITS - 1],
                             normal.magnitude[_DROPPED_BITS:])
        rounded, nothing, sign = Signal(signed(len(kept) - 1 + len(normal.exponent))), Signal(), Signal()
        m.d.sync += [
            # A carry out of the fraction goes into the exponent.
            rounded.eq(Cat(kept[:-1], normal.exponent).as_signed() + (guard & (rest.any() | kept[0]))),
            nothing.eq(~kept[-1] | (normal.exponent <= 0) | normal.floored & normal.sign), sign.eq(normal.sign)]
        above = rounded >> len(kept) - 1 > 2 * BIAS
        m.d.comb += self.done.eq(done)
        with m.If(late):
            m.d.sync += self.o.eq(Mux(nothing, 0, Cat(Mux(above, _LARGEST, rounded[:31])[:31], sign)))
        return m

    def _shifted(self, m: Module, i: data.View, place: int, name: str) -> data.View:
        """One digit of the normalising shift: up to seven times ``2**place`` leading zeros less."""
        step, o = 1 << place, Signal(EXACT, name=name)
        digit = Const((1 << _DIGIT_BITS) - 1, _DIGIT_BITS)
        for zeros in reversed(range((1 << _DIGIT_BITS) - 1)):
            group = i.magnitude[MAGNITUDE_BITS - (zeros + 1) * step: MAGNITUDE_BITS - zeros * step]
            digit = Mux(group.any(), zeros, digit)
        shift = Signal(_DIGIT_BITS + place, name=f"{name}_shift")
        m.d.comb += shift.eq(digit << place)
        m.d.sync += [o.eq(i), o.magnitude.eq(i.magnitude << shift), o.exponent.eq(i.exponent - shift)]
        return o
