"""What an FPGA part offers: frozen data, no code of any tool or board."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Family(Enum):
    """A family of parts: one kind of multiplier, block RAM and logic cell."""

    GENERIC = "generic"      #: no part at all and no limits; for simulation
    ECP5 = "ecp5"            #: Lattice ECP5, the open flow (Yosys, nextpnr, Trellis)
    SERIES7 = "series7"      #: AMD 7-series
    ULTRASCALE_PLUS = "ultrascale+"  #: AMD UltraScale+
    CYCLONE5 = "cyclonev"    #: Altera Cyclone V


@dataclass(frozen=True, slots=True)
class RamShape:
    """One way to use a block RAM with one read and one write port: ``words`` of ``bits`` each."""

    words: int
    bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One FPGA part in one package and speed grade. ``None`` stands for "no limit".

    Parameters
    ----------
    name : str
        What users type, such as ``ecp5-85f``.
    family : Family
        Decides which synthesis command runs.
    part : str
        The maker's name, such as ``LFE5U-85F``; empty for the generic device.
    package, speed : str
        As the place-and-route tool of the family spells them.
    multipliers : int or None
        Hard multipliers that take two signed operands of ``multiplier_bits``.
    multiplier_bits : int
        Widest signed operand of one hard multiplier; products of wider ones take several.
    pair_bits : int or None
        Widest words of which one hard multiplier makes two products, ``a * x`` and ``b * x``; 0 where none does.
    block_rams : int or None
        Block RAMs of ``block_ram_bits`` each.
    block_ram_shapes : tuple of RamShape
        Every shape of one block RAM, the widest first.
    luts : int or None
        Look-up tables (4-input on ECP5, 6-input on AMD's parts, adaptive modules on Cyclone V).
    flip_flops : int or None
        Flip-flops of the logic fabric.
    pins : int or None
        User input and output pins of the package.
    """

    name: str
    family: Family
    part: str
    package: str
    speed: str
    multipliers: int | None
    multiplier_bits: int
    pair_bits: int | None
    block_rams: int | None
    block_ram_bits: int
    block_ram_shapes: tuple[RamShape, ...]
    luts: int | None
    flip_flops: int | None
    pins: int | None

    def block_rams_for(self, words: int, bits: int) -> int:
        """Block RAMs that a memory of ``words`` × ``bits`` takes with one read and one write port.

        The best single shape, repeated; synthesis may do better by mixing shapes, never worse.
        """
        if words < 1 or bits < 1:
            return 0
        return min(-(-words // shape.words) * -(-bits // shape.bits) for shape in self.block_ram_shapes)

    def __str__(self) -> str:
        parts = (self.part, self.package, f"speed {self.speed}" if self.speed else "")
        detail = " ".join(filter(None, parts))
        return f"{self.name} ({detail})" if detail else self.name
