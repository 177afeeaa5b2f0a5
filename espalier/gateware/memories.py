"""The on-chip memories of gradients and weights, in banks."""

from __future__ import annotations

from amaranth.hdl import Module, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from espalier.arch.machine import REGION_BITS, Machine
from espalier.gateware.layouts import vector_layout
from espalier.gateware.panel_ram import PanelRam
from espalier.gateware.ram import BankedRam
from espalier.program.words import bits_for


class GradientBanks(wiring.Component):
    """Vectors of gradients, channel ``c`` in bank ``c mod rows``.

    Each bank is read at an address, one is written at another; read data two cycles later.
    """

    def __init__(self, machine: Machine):
        self.machine = machine
        address, vector = bits_for(machine.gradient_depth), vector_layout(machine)
        super().__init__({"read_addresses": In(data.ArrayLayout(address, machine.rows)),
                          "read_data": Out(data.ArrayLayout(vector, machine.rows)),
                          "write_en": In(1), "write_bank": In((machine.rows - 1).bit_length()),
                          "write_address": In(address), "write_data": In(vector)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for bank in range(self.machine.rows):
            m.submodules[f"bank_{bank}"] = ram = BankedRam(vector_layout(self.machine), self.machine.gradient_depth)
            m.d.comb += [ram.read_address.eq(self.read_addresses[bank]), self.read_data[bank].eq(ram.read_data),
                         ram.write_data.eq(self.write_data),
                         ram.write_en.eq(self.write_en & (self.write_bank == bank)),
                         ram.write_address.eq(self.write_address)]
        return m


def weight_write_layout(machine: Machine) -> data.StructLayout:
    """A write to one of the banks that share a port."""
    return data.StructLayout({"en": 1, "bank": (machine.tree_rows - 1).bit_length(),
                              "address": bits_for(machine.column_depth), "data": signed(machine.word_bits)})


class WeightBanks(wiring.Component):
    """Weights in cyclically skewed banks: element (i, j) of a block in bank ``(i + j) mod rows``.

    A block's column ``j`` is one address in all banks; its row ``i`` is one address a bank. So FP
    reads columns and BP rows of the same, only copy, each in one cycle. ``read_data`` is two cycles
    after the addresses and still rotated: element ``k`` of the vector read is in bank ``(k + term) mod rows``.
    Neighbouring banks share a write port, ``machine.tree_rows`` of them each. With panels each bank is a
    :class:`PanelRam`, whose far side reads or writes a column.
    """

    def __init__(self, machine: Machine):
        self.machine = machine
        address, word = bits_for(machine.column_depth), signed(machine.word_bits)
        column = data.ArrayLayout(word, machine.rows)
        panels = {"region": In(REGION_BITS), "far_panel": In(1), "far_address": In(bits_for(machine.panel_depth)),
                  "far_read": Out(column), "far_en": In(1), "far_write": In(column)}
        super().__init__({
            "read_addresses": In(data.ArrayLayout(address, machine.rows)), "read_data": Out(column),
            "write": In(data.ArrayLayout(weight_write_layout(machine), machine.trees)),
            **(panels if machine.panel_depth else {})})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for bank in range(self.machine.rows):
            m.submodules[f"bank_{bank}"] = ram = self._bank(m, bank)
            port, own = divmod(bank, self.machine.tree_rows)
            write = self.write[port]
            m.d.comb += [ram.read_address.eq(self.read_addresses[bank]), self.read_data[bank].eq(ram.read_data),
                         ram.write_data.eq(write.data), ram.write_en.eq(write.en & (write.bank == own)),
                         ram.write_address.eq(write.address)]
        return m

    def _bank(self, m: Module, bank: int) -> BankedRam | PanelRam:
        word, machine = signed(self.machine.word_bits), self.machine
        if not machine.panel_depth:
            return BankedRam(word, machine.weight_depth)
        ram = PanelRam(word, machine.weight_depth, machine.panel_depth)
        m.d.comb += [
            ram.region.eq(self.region), ram.far_panel.eq(self.far_panel), ram.far_address.eq(self.far_address),
            ram.far_en.eq(self.far_en), ram.far_write.eq(self.far_write[bank]), self.far_read[bank].eq(ram.far_read)]
        return ram
