"""What a machine takes of a part: multipliers, block RAMs, look-up tables and flip-flops, without synthesis.

Multipliers are counted, and so are memories, by the rules with which Yosys puts them into block RAMs or look-up tables.
The logic is a sum of terms in the machine's parameters, part by part of the accelerator; their coefficients are fitted
to what Yosys made of a family of machines. ``benchmarks/synth_family.py`` does that, and says how large the error is.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import mul

from espalier.arch.machine import CODE_BITS, SCALAR_MULTIPLIERS, UPDATE_MULTIPLIERS, Machine
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
            luts={"lattice and drain": (2.358, 2.016, 5.151, 7.727, 1.053, 0, 138.1),
                  "operands": (0.6429, 1.214, 1.117, 1.411, 0, 307),
                  "update units": (975.5, 20.03, 12.89, 0, 4.665), "loss": (1535, 0, 2.733),
                  "control": (797, 3.862, 0.1697), "small memories": (380.4, 1.807)},
            flip_flops={"lattice and drain": (1.351, 3.881, 2.527, 4.226, 0.692, 1.777, 370.8),
                        "operands": (0, 3.403, 0, 0.9743, 1.142, 753.3),
                        "update units": (833.9, 18.11, 19.06, 3.221, 9.92), "loss": (1089, 2.649, 1.952),
                        "control": (298.5, 6.793, 0.5729), "small memories": (0, 0)})),
    Family.SERIES7: Fabric(
        lut_rams=(LutRam(32, 6, 4, 8, 4), LutRam(64, 3, 4, 8, 4)), block_cost=129, product_bits=9,
        logic=Coefficients(
            luts={"lattice and drain": (1.293, 1.673, 3.835, 7.836, 0, 0, 8.73),
                  "operands": (0.8283, 0, 0.05614, 0.3613, 0.1168, 299.5),
                  "update units": (641.8, 13.4, 9.237, 1.462, 4.494), "loss": (1041, 0, 3.324),
                  "control": (854.4, 2.184, 0), "small memories": (163.9, 0.9216)},
            flip_flops={"lattice and drain": (0.8549, 1.764, 3.011, 7.024, 0, 0.988, 120.8),
                        "operands": (0.255, 0, 0, 0.002417, 1.249, 182.3),
                        "update units": (542.9, 7.623, 9.3, 1.515, 5.483), "loss": (842.4, 4.264, 1.563),
                        "control": (846.3, 6.412, 1.619), "small memories": (0, 0)})),
    Family.ULTRASCALE_PLUS: Fabric(
        lut_rams=(LutRam(32, 14, 8, 16, 4), LutRam(64, 7, 8, 16, 4)), block_cost=129, product_bits=9,
        logic=Coefficients(
            luts={"lattice and drain": (1.481, 1.916, 4.392, 8.974, 0, 0, 9.998),
                  "operands": (0.8259, 0, 0.05598, 0.3603, 0.1165, 298.7),
                  "update units": (650.2, 13.58, 9.358, 1.481, 4.553), "loss": (993.9, 0, 3.174),
                  "control": (767.7, 1.962, 0), "small memories": (163.9, 0.9216)},
            flip_flops={"lattice and drain": (1.242, 2.563, 4.375, 10.21, 0, 1.435, 175.5),
                        "operands": (0.2575, 0, 0, 0.002441, 1.261, 184.1),
                        "update units": (688.3, 9.665, 11.79, 1.921, 6.952), "loss": (934.4, 4.73, 1.734),
                        "control": (852.6, 6.46, 1.631), "small memories": (0, 0)})),
    Family.CYCLONE5: Fabric(
        lut_rams=(LutRam(32, 1, 0.5, 0, 4),), block_cost=0, product_bits=0,
        logic=Coefficients(
            luts={"lattice and drain": (1.346, 0.2676, 3.036, 2.743, 0, 0, 0),
                  "operands": (0.3001, 0.3093, 0.06624, 0.9468, 0.05765, 130.1),
                  "update units": (482.9, 6.926, 5.431, 0, 2.241), "loss": (671.9, 0, 2.768),
                  "control": (795.5, 4.948, 0), "small memories": (0, 0)},
            flip_flops={"lattice and drain": (1.71, 6.465, 3.148, 6.648, 0, 1.81, 257.8),
                        "operands": (0.8357, 0, 0.1203, 0.8271, 1.072, 480.1),
                        "update units": (777.7, 27.32, 17.66, 3.668, 8.125), "loss": (1121, 0, 4.325),
                        "control": (3475, 11.33, 3.794), "small memories": (0, 0)})),
}


def terms(machine: Machine) -> dict[str, tuple[float, ...]]:
    """What the logic of each part of the accelerator grows with."""
    rows, lanes, word, acc = machine.all_rows, machine.lanes, machine.word_bits, machine.acc_bits
    trees, elements = machine.elements * machine.trees, machine.elements
    vector, cells, sums = lanes * (word + CODE_BITS), rows * lanes, machine.sum_bits
    banks = [-(-depth // BANK_WORDS) for depth in (machine.activation_depth, machine.gradient_depth,
                                                   machine.weight_depth, machine.master_depth // machine.trees)]
    return {
        "lattice and drain": (cells * acc, cells * word, lanes * acc, lanes * word, trees * lanes * acc,
                              lanes * word * machine.sums, 1),
        "operands": (rows * vector, elements * vector, rows * vector * machine.sums,
                     rows * (machine.rows - 1).bit_length() * word,
                     vector * (elements * banks[0] + rows * banks[1]) + rows * word * banks[2], elements),
        "update units": (trees, trees * word, trees * sums, trees * sums * machine.groups, trees * word * banks[3]),
        "loss": (1, word, lanes * word),
        "control": (1, sum(command_fields(machine).values()), lanes * word),
        "small memories": (1, vector),
    }


def multipliers(machine: Machine, fabric: Fabric) -> int:
    """Hard multipliers: one for each cell of the lattice or pair of them, six for an update unit, some beside."""
    source = max(bits_for(machine.activation_depth), bits_for(machine.gradient_depth))
    products = (*(3 * (bits_for(machine.table_depth),)), source, bits_for(machine.gradient_depth))
    norms = SCALAR_MULTIPLIERS * (machine.norm_depth > 0)
    addresses = sum(bits >= fabric.product_bits for bits in products)
    beside = norms + LOSS_MULTIPLIERS + machine.elements * (machine.trees * UPDATE_MULTIPLIERS + addresses)
    return beside + machine.hard_multipliers * (2 * machine.word_bits >= fabric.product_bits)


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
    if machine.pairs:  # their sums are not in the multipliers' own accumulators (benchmarks/pairs.py)
        luts += machine.multipliers * machine.acc_bits
        flip_flops += machine.multipliers * machine.acc_bits
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
