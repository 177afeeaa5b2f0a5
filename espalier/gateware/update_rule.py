"""The update rule as a pipeline, without memories."""

from __future__ import annotations

from amaranth.hdl import Module, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from espalier.gateware.arithmetic import delay_line, largest, saturate_later
from espalier.gateware.scale import SHIFT_BITS, Scale
from espalier.numerics.update import EXTRA_BITS, FACTOR_BITS, GRADIENT_BITS

#: What the update does to the weights of one layer; names as in the command word. ``gradient_shift`` (0..63)
#: requantises the exact gradient to GRADIENT_BITS. ``weight_width`` (2..word_bits) is the width of the weight
#: format. The rest are word and shift of the :class:`~espalier.numerics.update.Factor` of each name.
UPDATE_RULE = data.StructLayout({
    "gradient_shift": 6, "weight_width": 5, "rate": FACTOR_BITS, "rate_shift": SHIFT_BITS,
    "momentum": FACTOR_BITS, "momentum_shift": SHIFT_BITS, "decay": FACTOR_BITS, "decay_shift": SHIFT_BITS})


class UpdateArithmetic(wiring.Component):
    """:class:`~espalier.numerics.update.BufferedSgd`, one weight per cycle.

    New master and momentum :attr:`latency_cycles` after the old ones, the new weight two cycles later.
    Six hard multipliers.

    Parameters
    ----------
    word_bits : int
        Width of a weight word, 2..16.

    Members
    -------
    rule : In(UPDATE_RULE)
        Quasi-static.
    gradient, master, momentum : In
        Requantised gradient, old master and old momentum (numerics' ``velocity``).
    new_master, new_momentum, new_weight : Out
    """

    latency_cycles = Scale.latency_cycles + 7

    def __init__(self, *, word_bits: int):
        self.word_bits = word_bits
        wide = signed(word_bits + EXTRA_BITS)
        super().__init__({
            "rule": In(UPDATE_RULE), "gradient": In(signed(GRADIENT_BITS)), "master": In(wide), "momentum": In(wide),
            "new_master": Out(wide), "new_momentum": Out(wide), "new_weight": Out(signed(word_bits))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        wide_bits, rule = self.word_bits + EXTRA_BITS, self.rule
        high = Signal(wide_bits - 1)  # a register, since many bits hang on it
        m.d.sync += high.eq(largest(rule.weight_width + EXTRA_BITS, wide_bits))

        decayed = delay_line(m, self._scaled(m, "decay", self.master, rule.decay, rule.decay_shift), 1, "decayed")[1]
        kept = self._scaled(m, "momentum", self.momentum, rule.momentum, rule.momentum_shift)
        stepped = self._scaled(m, "rate", self.gradient, rule.rate, rule.rate_shift)
        partial = Signal(signed(max(len(kept), len(stepped)) + 1))
        total = Signal(signed(len(partial) + 1))
        momentum = Signal(signed(wide_bits))
        m.d.sync += [partial.eq(kept + stepped), total.eq(partial + decayed),
                     momentum.eq(saturate_later(m, total, high, wide_bits, "total"))]

        moved = Signal(signed(wide_bits + 1))
        master = delay_line(m, self.master, Scale.latency_cycles + 4, "master")[-1]
        m.d.sync += [
            moved.eq(master - momentum),
            self.new_master.eq(saturate_later(m, moved, high, wide_bits, "moved")),
            self.new_weight.eq(saturate_later(m, (self.new_master + (1 << EXTRA_BITS - 1)) >> EXTRA_BITS,
                                              high[EXTRA_BITS:], self.word_bits, "weight")),
        ]
        m.d.comb += self.new_momentum.eq(delay_line(m, momentum, 3, "new_momentum")[-1])
        return m

    def _scaled(self, m: Module, name: str, word: Value, factor: Value, shift: Value) -> Value:
        m.submodules[name] = scale = Scale(word_bits=len(word))
        m.d.comb += [scale.i.eq(word), scale.factor.eq(factor), scale.shift.eq(shift)]
        return scale.o
