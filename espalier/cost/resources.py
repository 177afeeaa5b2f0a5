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
            luts={"lattice and drain": (2.716, 0, 5.854, 6.804, 0.872, 69.4),
                  "operands": (0.185, 2.811, 1.54, 0, 321.2), "update units": (948.1, 21.48, 12.69, 0, 5.227),
                  "loss": (1479, 0, 3.419), "control": (670.4, 4.016, 0.6129), "small memories": (377.7, 1.775)},
            flip_flops={"lattice and drain": (1.604, 1.105, 3.071, 3.224, 0.9805, 227.9),
                        "operands": (1.215, 4.34, 0.5526, 0.6788, 527.3),
                        "update units": (837.9, 17.2, 19.26, 3.161, 9.755), "loss": (1110, 0.1282, 2.181),
                        "control": (983.4, 5.114, 0), "small memories": (0, 0)})),
    Family.SERIES7: Fabric(
        lut_rams=(LutRam(32, 6, 4, 8, 4), LutRam(64, 3, 4, 8, 4)), block_cost=129, product_bits=9,
        logic=Coefficients(
            luts={"lattice and drain": (0.9728, 1.55, 3.014, 8.559, 0, 0),
                  "operands": (0.2963, 0.7343, 0.6125, 0, 270.3),
                  "update units": (646.1, 13.49, 8.965, 1.601, 4.602), "loss": (1079, 0, 1.507),
                  "control": (874.1, 2.248, 1.845), "small memories": (167, 0.8417)},
            flip_flops={"lattice and drain": (0.9398, 0.006518, 3.153, 5.789, 0, 0),
                        "operands": (0, 0, 0.5681, 1.229, 145.2), "update units": (544.7, 7.52, 9.277, 1.516, 5.482),
                        "loss": (843, 4.235, 1.558), "control": (1324, 4.933, 2.374), "small memories": (0, 0)})),
    Family.ULTRASCALE_PLUS: Fabric(
        lut_rams=(LutRam(32, 14, 8, 16, 4), LutRam(64, 7, 8, 16, 4)), block_cost=129, product_bits=9,
        logic=Coefficients(
            luts={"lattice and drain": (1.204, 1.918, 3.729, 10.59, 0, 0),
                  "operands": (0.2975, 0.7373, 0.615, 0, 271.4), "update units": (656.3, 13.7, 9.106, 1.626, 4.675),
                  "loss": (1070, 0, 1.495), "control": (757.4, 1.948, 1.599), "small memories": (167, 0.8417)},
            flip_flops={"lattice and drain": (1.555, 0.01078, 5.216, 9.577, 0, 0),
                        "operands": (0, 0, 0.5606, 1.213, 143.3),
                        "update units": (691.1, 9.542, 11.77, 1.924, 6.956), "loss": (935.2, 4.698, 1.728),
                        "control": (1353, 5.042, 2.426), "small memories": (0, 0)})),
    Family.CYCLONE5: Fabric(
        lut_rams=(LutRam(32, 1, 0.5, 0, 4),), block_cost=0, product_bits=0,
        logic=Coefficients(
            luts={"lattice and drain": (1.118, 0.6691, 2.418, 4.207, 0, 0),
                  "operands": (0.1116, 0.6984, 1.138, 0, 112.4), "update units": (470.1, 7.982, 5.501, 0, 2.072),
                  "loss": (691.9, 0, 1.841), "control": (709.5, 5.124, 1.216), "small memories": (0, 0)},
            flip_flops={"lattice and drain": (1.688, 5.748, 3.007, 5.928, 0, 121.2),
                        "operands": (0.3346, 0, 1.166, 1.136, 443.4),
                        "update units": (782.1, 26.91, 17.73, 3.619, 7.922), "loss": (1121, 0, 4.32),
                        "control": (3481, 11.15, 4.144), "small memories": (0, 0)})),
}


def terms(machine: Machine) -> dict[str, tuple[float, ...]]:
    """What the logic of each part of the accelerator grows with."""
    rows, lanes, word, acc = machine.all_rows, machine.lanes, machine.word_bits, machine.acc_bits
    trees, elements = machine.elements * machine.trees, machine.elements
    vector, cells, sums = lanes * (word + CODE_BITS), rows * lanes, machine.sum_bits
    banks = [-(-depth // BANK_WORDS) for depth in (machine.activation_depth, machine.gradient_depth,
                                                   machine.weight_depth, machine.master_depth // machine.trees)]
    return {
        "lattice and drain": (cells * acc, cells * word, lanes * acc, lanes * word, trees * lanes * acc, 1),
        "operands": (rows * vector, elements * vector, rows * (machine.rows - 1).bit_length() * word,
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
