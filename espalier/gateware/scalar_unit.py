"""Arithmetic on the scalars of ``numerics/scalar.py``: sums, products, inverse roots; of sums, to words."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from espalier.gateware.arithmetic import delay_line
from espalier.gateware.inverse_root import InverseRoot
from espalier.gateware.multiplier import Multiplier
from espalier.gateware.scalar_round import (
    BIAS,
    EXACT,
    MAGNITUDE_BITS,
    SCALAR,
    SIGNIFICAND_BITS,
    ScalarRound,
    at_the_top,
    significand,
)
from espalier.gateware.scalar_word import ScalarWord
from espalier.program.scalar import FRAC_BITS, SCALAR_CYCLES, ScalarOperation
from espalier.program.words import bits_for

OPERATION_BITS = bits_for(len(ScalarOperation))
ADD_CYCLES, MUL_CYCLES = 2, 3  #: from operands to the exact result, which still needs a register


class ScalarSum(wiring.Component):
    """``a + b`` or ``a - b`` before rounding, of ADD_CYCLES ago. One a cycle."""

    def __init__(self) -> None:
        super().__init__({"a": In(SCALAR), "b": In(SCALAR), "subtract": In(1), "o": Out(EXACT)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        a, b, swap = self.a, self.b, Signal()
        b_sign = b.sign ^ self.subtract
        m.d.comb += swap.eq(a.as_value()[:-1] < b.as_value()[:-1])
        large, small = Signal(SIGNIFICAND_BITS), Signal(SIGNIFICAND_BITS)
        opposite, distance = Signal(), Signal(8)
        m.d.sync += [
            large.eq(Mux(swap, significand(b), significand(a))), small.eq(Mux(swap, significand(a), significand(b))),
            distance.eq(Mux(swap, b.exponent - a.exponent, a.exponent - b.exponent)), opposite.eq(a.sign ^ b_sign)]

        larger, aligned, negate = Signal.like(large), Signal(SIGNIFICAND_BITS + 3), Signal()
        m.d.sync += [larger.eq(large), aligned.eq(self._aligned(small, distance)), negate.eq(opposite)]
        total = Cat(Const(0, 3), larger) + (aligned ^ negate.replicate(len(aligned))) + negate
        m.d.comb += [
            self.o.magnitude.eq(at_the_top(Cat(total[:len(aligned)], total[len(aligned)] & ~negate))),
            self.o.exponent.eq(delay_line(m, Mux(swap, b.exponent, a.exponent), ADD_CYCLES, "exponent")[-1] + 1),
            self.o.sign.eq(delay_line(m, Mux(swap, b_sign, a.sign), ADD_CYCLES, "sign")[-1])]
        return m

    def _aligned(self, small: Value, distance: Value) -> Value:
        """``small`` with two digits more, and whether any other is left, shifted right by ``distance``.

        Past 31 it is nothing: the sum is rounded to the larger operand all the same.
        """
        word, lost = Cat(Const(0, 2), small), Const(0)
        for place in reversed(range(5)):
            lost = lost | distance[place] & word[:1 << place].any()
            word = Mux(distance[place], word[1 << place:], word)
        return Mux(distance[5:].any(), 0, Cat(lost, word))


class ScalarProduct(wiring.Component):
    """``a * b`` before rounding, of MUL_CYCLES ago. One a cycle, four hard multipliers."""

    def __init__(self) -> None:
        super().__init__({"a": In(SCALAR), "b": In(SCALAR), "o": Out(EXACT)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        half, a, b = SIGNIFICAND_BITS // 2, self.a, self.b
        products = []
        for x, y in ((0, 0), (0, half), (half, 0), (half, half)):
            m.submodules[f"product_{x}_{y}"] = multiplier = Multiplier(half + 1)
            m.d.comb += [multiplier.x.eq(significand(a)[x: x + half]), multiplier.y.eq(significand(b)[y: y + half])]
            products.append(multiplier.product[:2 * half])
        low, left, right, high = products
        outer, inner, total = Signal(4 * half), Signal(2 * half + 1), Signal(4 * half)
        m.d.sync += [outer.eq(Cat(low, high)), inner.eq(left + right)]
        m.d.comb += [
            total.eq(outer + (inner << half)), self.o.magnitude.eq(at_the_top(total)),
            self.o.exponent.eq(delay_line(m, a.exponent + b.exponent - (BIAS - 1), MUL_CYCLES, "exponent")[-1]),
            self.o.sign.eq(delay_line(m, a.sign ^ b.sign, MUL_CYCLES, "sign")[-1])]
        return m


class ScalarUnit(wiring.Component):
    """Operations on scalars, each of a fixed number of cycles (:attr:`latency_cycles`); no back-pressure.

    An operation may start in any cycle in which it is not done together with another; an inverse root when the last
    one is done. Four hard multipliers.

    Parameters
    ----------
    word_bits : int
        Width of a word, 2..16.
    sum_bits : int
        Width of a sum, up to 64.

    Members
    -------
    start, operation : In
        Begin a :class:`ScalarOperation`.
    a, b : In(SCALAR)
        Its operands, with ``start``.
    total, frac : In
        With ``start``: a whole number, and its fraction bits or those of the word to be.
    limit : In
        The largest word; the smallest is its complement. Quasi-static.
    done : Out(1)
        For one cycle, of all operations but those that make words.
    o : Out(SCALAR)
        The result, from ``done`` to the next ``done``.
    word_done, word : Out
        Likewise, of those.
    """

    latency_cycles = SCALAR_CYCLES

    def __init__(self, *, word_bits: int, sum_bits: int):
        assert 2 <= sum_bits <= MAGNITUDE_BITS
        self.word_bits, self.sum_bits = word_bits, sum_bits
        super().__init__({
            "start": In(1), "operation": In(OPERATION_BITS), "a": In(SCALAR), "b": In(SCALAR),
            "total": In(signed(sum_bits)), "frac": In(signed(FRAC_BITS)), "limit": In(word_bits - 1),
            "done": Out(1), "o": Out(SCALAR), "word_done": Out(1), "word": Out(signed(word_bits))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.sum = add = ScalarSum()
        m.submodules.product = mul = ScalarProduct()
        m.submodules.root = root = InverseRoot()
        m.submodules.round = rounding = ScalarRound()
        m.submodules.word = to_word = ScalarWord(word_bits=self.word_bits)
        is_ = {operation: self.operation == operation for operation in ScalarOperation}
        adds = is_[ScalarOperation.ADD] | is_[ScalarOperation.SUB] | is_[ScalarOperation.EXCESS]
        negates = is_[ScalarOperation.TO_NEGATED]
        whole = Signal()
        m.d.comb += [
            *(port.eq(self.a) for port in (add.a, mul.a, root.a, to_word.a)), add.b.eq(self.b), mul.b.eq(self.b),
            add.subtract.eq(~is_[ScalarOperation.ADD]), root.start.eq(self.start & is_[ScalarOperation.INVERSE_ROOT]),
            whole.eq(self.start & is_[ScalarOperation.OF_SUM]), to_word.frac.eq(self.frac),
            to_word.limit.eq(self.limit),
            to_word.a.sign.eq(self.a.sign ^ negates),
            to_word.valid.eq(self.start & (is_[ScalarOperation.TO_WORD] | negates))]

        added = delay_line(m, self.start & adds, ADD_CYCLES, "added")[-1]
        multiplied = delay_line(m, self.start & is_[ScalarOperation.MUL], MUL_CYCLES, "multiplied")[-1]
        floored = delay_line(m, is_[ScalarOperation.EXCESS], ADD_CYCLES, "floored")[-1]
        with m.If(whole):
            self._load(m, rounding.i)
        with m.Elif(root.done):
            m.d.sync += rounding.i.eq(root.o)
        with m.Elif(multiplied):
            m.d.sync += rounding.i.eq(mul.o)
        with m.Elif(added):
            m.d.sync += [rounding.i.eq(add.o), rounding.i.floored.eq(floored)]
        m.d.sync += rounding.valid.eq(whole | root.done | multiplied | added)
        m.d.comb += [self.done.eq(rounding.done), self.o.eq(rounding.o),
                     self.word_done.eq(to_word.done), self.word.eq(to_word.word)]
        return m

    def _load(self, m: Module, exact: data.View) -> None:
        """``total`` with ``frac`` fraction bits, into a register."""
        sign = self.total[-1]
        size = (self.total ^ sign.replicate(self.sum_bits)) + sign
        m.d.sync += [
            exact.sign.eq(sign), exact.exponent.eq(BIAS + self.sum_bits - 1 - self.frac), exact.floored.eq(0),
            exact.magnitude.eq(at_the_top(size[:self.sum_bits]))]
