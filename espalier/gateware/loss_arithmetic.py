"""The arithmetic of the loss unit: one pipeline for exponentials, gradients and loss terms."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from espalier.gateware.arithmetic import delay_line, largest, saturate
from espalier.gateware.round_shift import FINE_BITS
from espalier.numerics.loss import EXP_FRAC, LOG2E, LOG2E_FRAC, LOSS_FRAC, RECIPROCAL_FRAC, TABLE_BITS
from espalier.program.words import bits_for

VALUE_BITS = 16       #: a logit or an exponential in the unit's memory
OPERAND_BITS = 18     #: of the multipliers, signed
SPLIT = OPERAND_BITS - 1  #: low bits of a reciprocal, for the first multiplier
RECIPROCAL_BITS = RECIPROCAL_FRAC - EXP_FRAC + 1
SQUARE_SHIFT = LOSS_FRAC - 1  #: a hinge term is ``(square << SQUARE_SHIFT) >> 2 * logit_frac``
WIDE_BITS = 2 * OPERAND_BITS - 1 + SQUARE_SHIFT


def loss_rule(max_classes: int) -> data.StructLayout:
    """What the loss unit computes; names as in the command word.

    ``classes`` (1..max_classes); ``logit_frac`` (0..16) of the logits; ``gradient_frac`` (0..31, with
    ``hinge`` at most ``logit_frac``) and ``gradient_width`` (2..word_bits) of the gradient; ``hinge``:
    square hinge instead of softmax cross-entropy.
    """
    return data.StructLayout({"classes": bits_for(max_classes + 1), "logit_frac": 5, "gradient_frac": 5,
                              "gradient_width": 5, "hinge": 1})


class LossArithmetic(wiring.Component):
    """The element-wise part of ``numerics.loss``; one element per cycle, :attr:`latency_cycles`.

    Two hard multipliers serve three uses: ``d * log2(e)`` and ``d << (LOSS_FRAC - logit_frac)``; the two
    halves of ``e * reciprocal``; the square of a hinge difference and its shift to ``gradient_frac``.

    Parameters
    ----------
    word_bits, max_classes : int

    Members
    -------
    rule : In(loss_rule(max_classes))
        Quasi-static.
    exponentials : In(1)
        Quasi-static: compute exponentials of logits; otherwise gradients.
    valid, value, is_label : In
        An element: a logit (exponentials, hinge gradients) or an exponential (softmax gradients), and
        whether its class is its image's label.
    maximum : In
        Largest logit of the image (exponentials).
    reciprocal : In
        ``2**RECIPROCAL_FRAC // sum of exponentials`` (softmax gradients).
    table_address, table : Out, In
        Port of the exponential table, which answers one cycle later.
    exponential, gradient : Out
        The results.
    term_valid, term : Out
        What the image's loss grows by, earlier than the results: ``maximum - logit`` of the label
        (exponentials), every class's term (hinge gradients), nothing (softmax gradients).
    """

    latency_cycles = 9

    def __init__(self, *, word_bits: int, max_classes: int):
        assert 2 <= word_bits <= VALUE_BITS
        super().__init__({
            "rule": In(loss_rule(max_classes)), "exponentials": In(1), "valid": In(1), "value": In(VALUE_BITS),
            "is_label": In(1), "maximum": In(signed(word_bits)), "reciprocal": In(RECIPROCAL_BITS),
            "table_address": Out(TABLE_BITS), "table": In(VALUE_BITS),
            "exponential": Out(VALUE_BITS), "gradient": Out(signed(word_bits)),
            "term_valid": Out(1), "term": Out(WIDE_BITS)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        valid = delay_line(m, self.valid, 6, "valid")
        is_label = delay_line(m, self.is_label, 7, "is_label")
        low, high = self._products(m, is_label[1])  # cycle 3
        side = self._side(m, high)  # cycle 4
        shifted = self._shifted(m, low, high)  # cycle 6
        self._exponential(m, shifted)
        self._gradient(m, shifted, delay_line(m, side, 3, "side")[-1], is_label[7])
        m.d.sync += [
            self.term.eq(Mux(self.exponentials, side, shifted)),
            self.term_valid.eq(Mux(self.exponentials, valid[4] & is_label[4], valid[6] & self.rule.hinge)),
        ]
        return m

    def _products(self, m: Module, is_label: Value) -> tuple[Value, Value]:
        """Input registers, operands and both products: ``a * b_low`` and ``a * b_high``."""
        operand = signed(OPERAND_BITS)
        one, minus_one = Signal(operand), Signal(operand)
        to_loss, to_gradient = Signal(LOSS_FRAC + 1), Signal(LOSS_FRAC + 1)
        logit_frac, gradient_frac = self.rule.logit_frac, self.rule.gradient_frac
        loss_shift, gradient_shift = Signal(5), Signal(5)
        m.d.sync += [one.eq(1 << logit_frac), minus_one.eq(-1 << logit_frac),
                     loss_shift.eq(LOSS_FRAC - logit_frac), to_loss.eq(1 << loss_shift),
                     gradient_shift.eq(LOSS_FRAC - logit_frac + gradient_frac), to_gradient.eq(1 << gradient_shift)]
        value, maximum, reciprocal = (delay_line(m, port, 1, name)[1] for port, name in (
            (self.value, "value"), (self.maximum, "maximum"), (self.reciprocal, "reciprocal")))
        logit = value.as_signed()
        moved, difference = Signal(operand), Signal(operand)
        m.d.comb += [moved.eq(logit + Mux(is_label, minus_one, one)),
                     difference.eq(Mux((moved[-1] == is_label), moved, 0))]

        a, b_low, b_high = Signal(operand), Signal(operand), Signal(operand)
        with m.If(self.exponentials):
            m.d.sync += [a.eq(maximum - logit), b_low.eq(LOG2E), b_high.eq(to_loss)]
        with m.Elif(self.rule.hinge):
            m.d.sync += [a.eq(difference), b_low.eq(difference), b_high.eq(to_gradient)]
        with m.Else():
            m.d.sync += [a.eq(value), b_low.eq(reciprocal[:SPLIT]), b_high.eq(reciprocal[SPLIT:])]
        low, high = Signal(signed(2 * OPERAND_BITS)), Signal(signed(2 * OPERAND_BITS))
        m.d.sync += [low.eq(a * b_low), high.eq(a * b_high)]
        return low, high

    def _side(self, m: Module, high: Value) -> Value:
        """The label's distance in loss format (exponentials); the hinge gradient, rounded."""
        side = Signal(signed(2 * OPERAND_BITS))
        m.d.sync += side.eq(Mux(self.exponentials, high, (high + (1 << LOSS_FRAC - 1)) >> LOSS_FRAC))
        return side

    def _shifted(self, m: Module, low: Value, high: Value) -> Value:
        """The wide product, shifted right: exponent, twice the probability, or hinge term."""
        amount, wide = Signal(6), Signal(unsigned(WIDE_BITS))
        coarse, fine = Signal.like(wide), Signal.like(wide)
        with m.If(self.exponentials):
            m.d.sync += [wide.eq(low), amount.eq(self.rule.logit_frac + (LOG2E_FRAC - TABLE_BITS))]
        with m.Elif(self.rule.hinge):
            m.d.sync += [wide.eq(low << SQUARE_SHIFT), amount.eq(self.rule.logit_frac << 1)]
        with m.Else():
            m.d.sync += [wide.eq((high << SPLIT) + low), amount.eq(RECIPROCAL_FRAC - 1 - self.rule.gradient_frac)]
        m.d.sync += [coarse.eq(wide >> Cat(Const(0, FINE_BITS), amount[FINE_BITS:])),
                     fine.eq(coarse >> amount[:FINE_BITS])]
        return fine

    def _exponential(self, m: Module, exponent: Value) -> None:
        octaves = exponent[TABLE_BITS:]
        limited = Signal(5)
        m.d.sync += limited.eq(octaves[:5] | octaves[5:].any().replicate(5))
        m.d.comb += self.table_address.eq(exponent[:TABLE_BITS])
        mantissa = delay_line(m, self.table, 1, "mantissa")[1]
        m.d.sync += self.exponential.eq(mantissa >> delay_line(m, limited, 1, "octaves")[1])

    def _gradient(self, m: Module, doubled: Value, hinge: Value, is_label: Value) -> None:
        bits = len(self.gradient)
        target, high = Signal(1 << len(self.rule.gradient_frac)), Signal(bits - 1)
        m.d.sync += [target.eq(1 << self.rule.gradient_frac), high.eq(largest(self.rule.gradient_width, bits))]
        probability, difference = Signal(len(target) + 1), Signal(signed(len(target) + 2))
        m.d.sync += [
            probability.eq((doubled + 1) >> 1),
            difference.eq(Mux(self.rule.hinge, hinge, probability - Mux(is_label, target, 0))),
            self.gradient.eq(saturate(difference, high, bits)),
        ]
