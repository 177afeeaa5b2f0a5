"""What a machine takes of a part: multipliers, block RAMs, look-up tables and flip-flops, without synthesis.

Multipliers are counted, and so are memories, by the rules with which Yosys puts them into block RAMs or look-up tables.
The logic is a sum of terms in the machine's parameters, part by part of the accelerator; their coefficients are fitted
to what Yosys made of a family of machines. ``benchmarks/synth_family.py`` does that, and says how large the error is.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import mul

from espalier.arch.machine import CODE_BITS, UPDATE_MULTIPLIERS, Machine
from espalier.program.memories import BANK_WORDS, memory_banks
from espalier.program.words import bits_for, command_fields
from espalier.records import Figure, Provenance
from espalier.targets.device import Device, Family

LOSS_MULTIPLIERS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a design takes, in the units of a :class:`Device`."""

    multipliers: int
    block_rams: int
    luts: int
    flip_flops: int

    def figures(self, provenance: Provenance) -> tuple[Figure, ...]:
        """Each as a figure."""
        return tuple(Figure(name, value, "elements", provenance) for name, value in (
            ("Multipliers", self.multipliers), ("Block RAMs", self.block_rams), ("Look-up tables", self.luts),
            ("Flip-flops", self.flip_flops)))

    def use_of(self, device: Device) -> str:
        """What of the device that is, for people."""
        parts = ((self.multipliers, device.multipliers, "multipliers"),
                 (self.block_rams, device.block_rams, "block RAMs"), (self.luts, device.luts, "look-up tables"),
                 (self.flip_flops, device.flip_flops, "flip-flops"))
        return ", ".join(f"{used} of {have} {what}" for used, have, what in parts) + f" of {device.name}"


@dataclass(frozen=True, slots=True)
class LutRam:
    """A memory of ``words`` × ``bits`` made of ``luts`` look-up tables, and what Yosys thinks that it costs.

    One look-up table chooses among ``choice`` of them.
    """

    words: int
    bits: int
    luts: float
    cost: int
    choice: int


@dataclass(frozen=True, slots=True)
class SmallMemories:
    """Look-up tables that hold words, those that choose among them, and flip-flops for what is read."""

    cells: float
    choosing: int
    flip_flops: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """Of :func:`terms`, by part."""

    luts: dict[str, tuple[float, ...]]
    flip_flops: dict[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """How Yosys maps to a family.

    Parameters
    ----------
    lut_rams : tuple of LutRam
        Memories of look-up tables, one of which is taken for a memory too small for a block RAM.
    block_cost : int
        Of a block RAM, in the unit of theirs; 0 where one is taken as soon as it is :data:`LEAST_SHARE` full.
    product_bits : int
        The narrowest product that takes a hard multiplier.
    logic : Coefficients
    """

    lut_rams: tuple[LutRam, ...]
    block_cost: int
    product_bits: int
    logic: Coefficients


LEAST_SHARE = 0.05  #: of a block RAM that a memory fills, on Cyclone V
MUX_COST = 0.5      #: of choosing among memories of look-up tables, for each bit and memory, in Yosys' eyes
FABRICS: dict[Family, Fabric] = {
    Family.ECP5: Fabric(
        lut_rams=(LutRam(16, 4, 6, 4, 2),), block_cost=128, product_bits=0,
        logic=Coefficients(
            luts={"lattice and drain": (1.458, 4.994, 3.218, 8.301, 0.5423, 258.6),
                  "operands": (0.588, 1.652, 0.9155, 0.4301, 273.8), "update units": (918.8, 11.96, 14.99, 0, 11.96),
                  "loss": (1484, 0, 2.157), "control": (815.4, 2.759, 5.126), "small memories": (274.8, 3.378)},
            flip_flops={"lattice and drain": (1.07, 3.379, 1.724, 4.19, 0.808, 306.6),
                        "operands": (0.627, 1.77, 1.597, 0.6358, 668.1),
                        "update units": (774.5, 23.6, 15.03, 0, 23.6), "loss": (1134, 0, 1.766),
                        "control": (1102, 3.769, 5.311), "small memories": (0, 0)})),
    Family.SERIES7: Fabric(
        lut_rams=(LutRam(32, 6, 4, 8, 4), LutRam(64, 3, 4, 8, 4)), block_cost=129, product_bits=9,
        logic=Coefficients(
            luts={"lattice and drain": (1.076, 2.79, 1.635, 4.157, 1.635, 84.05),
                  "operands": (0, 1.031, 0, 0.07197, 268.4), "update units": (340.2, 21.26, 6.339, 0, 21.26),
                  "loss": (532.4, 33.27, 1.682), "control": (777.7, 2.2, 0), "small memories": (105.1, 1.864)},
            flip_flops={"lattice and drain": (0.7598, 1.976, 1.234, 3.165, 1.234, 101.9),
                        "operands": (0.3515, 1.361, 0.1016, 0.2842, 192.7),
                        "update units": (297.3, 18.58, 5.621, 0, 18.58), "loss": (449.1, 28.07, 1.827),
                        "control": (1247, 3.708, 9.351), "small memories": (0, 0)})),
    Family.ULTRASCALE_PLUS: Fabric(
        lut_rams=(LutRam(32, 14, 8, 16, 4), LutRam(64, 7, 8, 16, 4)), block_cost=129, product_bits=9,
        logic=Coefficients(
            luts={"lattice and drain": (1.299, 3.369, 1.974, 5.02, 1.974, 101.5),
                  "operands": (0, 1.107, 0, 0.07726, 288.1), "update units": (353.7, 22.1, 6.591, 0, 22.1),
                  "loss": (529.5, 33.09, 1.673), "control": (778.4, 2.202, 0), "small memories": (105.1, 1.864)},
            flip_flops={"lattice and drain": (1.246, 3.241, 2.024, 5.191, 2.024, 167.1),
                        "operands": (0.3913, 1.515, 0.1131, 0.3164, 214.5),
                        "update units": (384.4, 24.02, 7.268, 0, 24.02), "loss": (495.9, 31, 2.018),
                        "control": (1284, 3.818, 9.628), "small memories": (0, 0)})),
    Family.CYCLONE5: Fabric(
        lut_rams=(LutRam(32, 1, 0.5, 0, 4),), block_cost=0, product_bits=0,
        logic=Coefficients(
            luts={"lattice and drain": (0.8091, 2.095, 1.171, 2.956, 1.171, 31.38),
                  "operands": (0.1758, 0.6905, 0.02834, 0.1433, 98.52),
                  "update units": (221.8, 13.86, 4.421, 0, 13.86), "loss": (343.7, 21.48, 1.833),
                  "control": (1009, 2.979, 6.486), "small memories": (0, 0)},
            flip_flops={"lattice and drain": (1.634, 4.227, 2.341, 5.902, 2.341, 51.03),
                        "operands": (0.2557, 2.427, 0, 0.3817, 450.7), "update units": (533, 33.31, 10.66, 0, 33.31),
                        "loss": (547.6, 34.22, 4.67), "control": (3060, 9.071, 21.59), "small memories": (0, 0)})),
}


def terms(machine: Machine) -> dict[str, tuple[float, ...]]:
    """What the logic of each part of the accelerator grows with."""
    rows, lanes, trees, word, acc = machine.rows, machine.lanes, machine.trees, machine.word_bits, machine.acc_bits
    vector, cells, sums = lanes * (word + CODE_BITS), rows * lanes, machine.sum_bits
    banks = [-(-depth // BANK_WORDS) for depth in (machine.activation_depth, machine.gradient_depth,
                                                   machine.weight_depth, machine.master_depth // trees)]
    return {
        "lattice and drain": (cells * acc, cells * word, lanes * acc, lanes * word, trees * lanes * acc, 1),
        "operands": (rows * vector, vector, rows * (rows - 1).bit_length() * word,
                     vector * (banks[0] + rows * banks[1]) + rows * word * banks[2], 1),
        "update units": (trees, trees * word, trees * sums, trees * sums * machine.groups, trees * word * banks[3]),
        "loss": (1, word, lanes * word),
        "control": (1, sum(command_fields(machine).values()), lanes * word),
        "small memories": (1, vector),
    }


def multipliers(machine: Machine, fabric: Fabric) -> int:
    """Hard multipliers: a cell of the lattice takes one, an update unit six; a few are in addresses and in the loss."""
    source = max(bits_for(machine.activation_depth), bits_for(machine.gradient_depth))
    products = (*(3 * (bits_for(machine.table_depth),)), source, bits_for(machine.gradient_depth))
    beside = LOSS_MULTIPLIERS + machine.trees * UPDATE_MULTIPLIERS + sum(bits >= fabric.product_bits
                                                                         for bits in products)
    return beside + machine.multipliers * (2 * machine.word_bits >= fabric.product_bits)


def lut_ram(words: int, bits: int, device: Device) -> LutRam | None:
    """What a memory is made of in place of block RAMs; None where it takes those."""
    fabric, blocks = FABRICS[device.family], device.block_rams_for(words, bits)
    if not fabric.block_cost:
        return fabric.lut_rams[0] if words * bits < LEAST_SHARE * blocks * device.block_ram_bits else None

    def cost(ram: LutRam) -> float:
        deep = -(-words // ram.words)
        return deep * -(-bits // ram.bits) * ram.cost + MUX_COST * (deep - 1) * (bits + 1)

    best = min(fabric.lut_rams, key=cost)
    return best if cost(best) < fabric.block_cost * blocks else None


def block_rams_for(words: int, bits: int, device: Device) -> int:
    """Block RAMs of a memory with one read and one write port; none where it is made of look-up tables."""
    small = device.family in FABRICS and lut_ram(words, bits, device) is not None
    return 0 if small else device.block_rams_for(words, bits)


def small_memories(machine: Machine, device: Device) -> SmallMemories:
    """All memories of ``machine`` that are too small for block RAMs."""
    cells, choosing, flip_flops = 0.0, 0, 0
    for count, words, bits in memory_banks(machine):
        ram = lut_ram(words, bits, device)
        if ram is not None:
            deep = -(-words // ram.words)
            cells += count * deep * -(-bits // ram.bits) * ram.luts
            choosing += count * bits * -(-deep // ram.choice) * (deep > 1)
            flip_flops += count * bits
    return SmallMemories(cells, choosing, flip_flops)


def logic(machine: Machine, device: Device, coefficients: Coefficients) -> tuple[int, int]:
    """Look-up tables and flip-flops, those of small memories included."""
    small = small_memories(machine, device)
    luts, flip_flops = small.cells + small.choosing, float(small.flip_flops)
    for part, values in terms(machine).items():
        luts += sum(map(mul, coefficients.luts[part], values))
        flip_flops += sum(map(mul, coefficients.flip_flops[part], values))
    return round(luts), round(flip_flops)


def luts_for(machine: Machine, device: Device) -> int:
    """Look-up tables that ``machine`` takes of a device; 0 for a device of no family."""
    resources = estimate(machine, device)
    return 0 if resources is None else resources.luts


def estimate(machine: Machine, device: Device) -> Resources | None:
    """What ``machine`` takes of ``device``; None for a device of no family."""
    fabric = FABRICS.get(device.family)
    if fabric is None:
        return None
    luts, flip_flops = logic(machine, device, fabric.logic)
    return Resources(
        multipliers=multipliers(machine, fabric), luts=luts, flip_flops=flip_flops,
        block_rams=sum(count * block_rams_for(words, bits, device) for count, words, bits in memory_banks(machine)))
