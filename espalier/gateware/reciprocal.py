"""A serial divider for reciprocals."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

STEPS_PER_CYCLE = 2  #: quotient digits per cycle: two short subtractions in a row


class Reciprocal(wiring.Component):
    """``quotient = 2**exponent // divisor`` for divisors of at least ``2**least``.

    Restoring division; one quotient in :attr:`latency_cycles`, not pipelined.

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
        self.steps = -(-(exponent - least + 1) // STEPS_PER_CYCLE)
        self.spare = self.steps * STEPS_PER_CYCLE - (exponent - least + 1)
        super().__init__({
            "start": In(1), "divisor": In(divisor_bits), "held": Out(divisor_bits), "done": Out(1),
            "quotient": Out(exponent - least + 1)})

    @property
    def latency_cycles(self) -> int:
        """Cycles from ``start`` to ``done``."""
        return self.steps + 1

    def elaborate(self, platform):
        m = Module()
        # The leading digits of the dividend, 2**(least - 1), are below any divisor: no quotient digit is 1 there.
        remainder = Signal(unsigned(len(self.divisor)))
        left = Signal(range(self.steps + 1))
        m.d.sync += self.done.eq(left == 1)
        with m.If(self.start):
            m.d.sync += [self.held.eq(self.divisor), left.eq(self.steps),
                         remainder.eq((1 << self.least - 1) >> self.spare)]
        with m.Elif(left != 0):
            rest, digits = remainder, []
            for step in range(STEPS_PER_CYCLE):
                rest, digit = self._step(m, rest, step)
                digits.insert(0, digit)
            m.d.sync += [left.eq(left - 1), remainder.eq(rest), self.quotient.eq(Cat(*digits, self.quotient))]
        return m

    def _step(self, m: Module, remainder: Signal, step: int) -> tuple[Signal, Signal]:
        """The next remainder and quotient digit."""
        rest, digit = Signal.like(remainder, name=f"rest_{step}"), Signal(name=f"digit_{step}")
        doubled = Cat(0, remainder)
        m.d.comb += [digit.eq(doubled >= self.held), rest.eq(Mux(digit, doubled - self.held, doubled))]
        return rest, digit
