"""The update unit: weight gradients in, new weights out, masters and momenta inside."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from espalier.arch.machine import REGION_BITS, STATE_BITS
from espalier.gateware.arithmetic import delay_line, saturate_later
from espalier.gateware.panel_ram import PanelRam
from espalier.gateware.ram import BankedRam
from espalier.gateware.round_shift import RoundShift
from espalier.gateware.update_rule import UPDATE_RULE, UpdateArithmetic
from espalier.numerics.update import EXTRA_BITS, GRADIENT_BITS
from espalier.program.words import BUS_BITS, bits_for

READ_CYCLES = 3  #: from a memory's address to its word in a register beside the logic


class UpdateUnit(wiring.Component):
    """Sums of weight gradients, requantised, through :class:`UpdateArithmetic` and the memories it moves.

    Takes one weight's exact gradient per cycle, without back-pressure; its new weight leaves
    :attr:`latency_cycles` later, in the same order. The same address may come again after
    :attr:`recurrence_cycles` and not before. Memories start with zeros.

    Parameters
    ----------
    word_bits : int
        Width of a weight word, 2..16. Masters and momenta have EXTRA_BITS more.
    depth : int
        Weights, at least 2.
    sum_bits : int
        Width of the exact gradient sum; the caller proves that no sum over groups exceeds it.
    groups : bool
        Whether gradients add up over several groups of images before the update. Costs a memory of
        ``depth`` words of ``sum_bits`` and three cycles of latency.
    panel_depth : int
        Weights in each of two panels beside them (:class:`PanelRam`); 0: there are none.

    Members
    -------
    valid, address, total : In
        A gradient summed over one group, and the weight it belongs to.
    first, last : In(1)
        With ``valid``: first group of the batch (the sum starts anew) and last group (update now;
        otherwise only add up, and nothing comes out). Not looked at without ``groups``.
    rule : In(UPDATE_RULE)
        Quasi-static: stable from the cycle before the first ``valid`` until ``busy`` falls.
    busy : Out(1)
        Something is in the pipeline; also high in the cycle of ``valid``.
    out_valid, out_address, out_weight : Out
        The new weight word.
    gradient_valid, gradient_address, gradient : Out
        A tap for verification: the requantised gradient on its way to the update.
    host_write, host_momentum, host_address, host_data : In
        Write ``host_data`` to the momentum (``host_momentum``) or the master of a weight. Only while
        not ``busy``, as is reading.
    host_read : Out(signed(32))
        The word at the address, and of the memory, that the host gave :data:`READ_CYCLES` ago.
    region, far_panel, far_address, far_en, far_write, far_read
        With panels: as those of :class:`PanelRam`, for master and momentum together. ``host_*`` are of none of them.
    """

    def __init__(self, *, word_bits: int, depth: int, sum_bits: int, groups: bool, panel_depth: int = 0):
        assert 2 <= word_bits <= 16 and depth >= 2  # a Machine has seen to both
        self.word_bits, self.depth, self.groups, self.panel_depth = word_bits, depth, groups, panel_depth
        address = bits_for(max(depth, panel_depth))
        state = data.StructLayout({"master": signed(STATE_BITS // 2), "momentum": signed(STATE_BITS // 2)})
        panels = {"region": In(REGION_BITS), "far_panel": In(1), "far_address": In(bits_for(panel_depth)),
                  "far_en": In(1), "far_write": In(state), "far_read": Out(state)}
        super().__init__({
            **(panels if panel_depth else {}),
            "valid": In(1), "address": In(address), "total": In(signed(sum_bits)), "first": In(1), "last": In(1),
            "rule": In(UPDATE_RULE), "busy": Out(1),
            "out_valid": Out(1), "out_address": Out(address), "out_weight": Out(signed(word_bits)),
            "gradient_valid": Out(1), "gradient_address": Out(address), "gradient": Out(signed(GRADIENT_BITS)),
            "host_write": In(1), "host_momentum": In(1), "host_address": In(address), "host_data": In(BUS_BITS),
            "host_read": Out(signed(BUS_BITS)),
        })

    @property
    def sum_cycles(self) -> int:
        """Cycles from the input to the gradient summed over the groups."""
        return READ_CYCLES + 1 if self.groups else 1

    @property
    def gradient_cycles(self) -> int:
        """Cycles from the input to the requantised gradient; master and momentum arrive with it."""
        return self.sum_cycles + RoundShift.latency_cycles + 2

    @property
    def store_cycles(self) -> int:
        """Cycles from the input to the write of master and momentum."""
        return self.gradient_cycles + UpdateArithmetic.latency_cycles

    @property
    def latency_cycles(self) -> int:
        """Cycles from ``valid`` to ``out_valid``."""
        return self.store_cycles + 2

    @property
    def recurrence_cycles(self) -> int:
        """The least distance in cycles of two inputs with the same address."""
        return READ_CYCLES + UpdateArithmetic.latency_cycles + 1

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.arithmetic = arithmetic = UpdateArithmetic(word_bits=self.word_bits)
        update = Signal()
        m.d.comb += update.eq(self.valid & self.last if self.groups else self.valid)
        updates = delay_line(m, update, self.latency_cycles, "update")
        addresses = delay_line(m, self.address, self.latency_cycles, "address")
        here = self.gradient_cycles

        total = self._summed(m, addresses) if self.groups else delay_line(m, self.total, 1, "total")[-1]
        m.d.comb += [
            self.gradient.eq(self._requantised(m, total)),
            self.gradient_valid.eq(updates[here]), self.gradient_address.eq(addresses[here]),
            arithmetic.rule.eq(self.rule), arithmetic.gradient.eq(self.gradient),
        ]
        self._memories(m, arithmetic, updates, addresses)
        m.d.comb += [
            self.out_valid.eq(updates[-1]), self.out_address.eq(addresses[-1]),
            self.out_weight.eq(arithmetic.new_weight),
            self.busy.eq(Cat(updates, delay_line(m, self.valid, self.sum_cycles, "valid")).any()),
        ]
        return m

    def _summed(self, m: Module, addresses: list[Value]) -> Value:
        """The total plus what earlier groups left in the memory of sums."""
        m.submodules.sums = sums = BankedRam(self.total.shape(), self.depth)
        valids = delay_line(m, self.valid, self.sum_cycles, "sum_valid")
        totals = delay_line(m, self.total, READ_CYCLES, "total")
        firsts = delay_line(m, self.first, READ_CYCLES, "first")
        before, result = Signal(self.total.shape()), Signal(self.total.shape())
        m.d.comb += sums.read_address.eq(self.address)
        m.d.sync += [before.eq(Mux(firsts[READ_CYCLES - 1], 0, sums.read_data)), result.eq(totals[-1] + before)]
        m.d.comb += [sums.write_address.eq(addresses[self.sum_cycles]), sums.write_data.eq(result),
                     sums.write_en.eq(valids[-1])]
        return result

    def _requantised(self, m: Module, total: Value) -> Value:
        m.submodules.round = rounding = RoundShift(word_bits=len(total), shift_bits=len(self.rule.gradient_shift))
        gradient = Signal(signed(GRADIENT_BITS))
        m.d.comb += [rounding.i.eq(total), rounding.shift.eq(self.rule.gradient_shift)]
        m.d.sync += gradient.eq(saturate_later(m, rounding.o, Const((1 << GRADIENT_BITS - 1) - 1), GRADIENT_BITS,
                                               "rounded"))
        return gradient

    def _memories(self, m: Module, arithmetic: UpdateArithmetic, updates: list[Value], addresses: list[Value]) -> None:
        """Masters and momenta; the host uses their ports while the pipeline does not."""
        asked = delay_line(m, self.host_momentum, READ_CYCLES, "asked")[-1]
        masters = self._memory(m, "masters", updates, addresses, arithmetic.new_master, ~self.host_momentum)
        momenta = self._memory(m, "momenta", updates, addresses, arithmetic.new_momentum, self.host_momentum)
        if self.panel_depth:
            for name, ram in (("master", masters), ("momentum", momenta)):
                m.d.comb += [
                    ram.region.eq(self.region), ram.far_panel.eq(self.far_panel), ram.far_address.eq(self.far_address),
                    ram.far_en.eq(self.far_en), ram.far_write.eq(self.far_write[name]),
                    self.far_read[name].eq(ram.far_read)]
        m.d.comb += self.host_read.eq(Mux(asked, arithmetic.momentum, arithmetic.master))
        m.d.sync += [arithmetic.master.eq(masters.read_data), arithmetic.momentum.eq(momenta.read_data)]

    def _memory(self, m: Module, name: str, updates: list[Value], addresses: list[Value], word: Value,
                selected: Value) -> BankedRam | PanelRam:
        shape = signed(self.word_bits + EXTRA_BITS)
        m.submodules[name] = ram = (PanelRam(shape, self.depth, self.panel_depth) if self.panel_depth else
                                    BankedRam(shape, self.depth))
        early, late = self.gradient_cycles - READ_CYCLES, self.store_cycles
        m.d.comb += [
            ram.read_address.eq(Mux(updates[early], addresses[early], self.host_address)),
            ram.write_address.eq(Mux(updates[late], addresses[late], self.host_address)),
            ram.write_data.eq(Mux(updates[late], word, self.host_data.as_signed())),
            ram.write_en.eq(updates[late] | self.host_write & selected),
        ]
        return ram
