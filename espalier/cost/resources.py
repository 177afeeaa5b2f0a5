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
            luts={"lattice and drain": (2.486, 0.9425, 5.741, 5.9, 0.9501, 0, 0),
                  "operands": (0, 2.692, 1.01, 1.771, 0, 324.5), "update units": (973.3, 21.03, 11.93, 0, 5.981),
                  "loss": (1500, 0, 3.387), "control": (886.9, 3.244, 0.9164), "small memories": (375.8, 1.793)},
            flip_flops={"lattice and drain": (1.513, 1.552, 3.096, 2.991, 0.943, 0.0376, 236.9),
                        "operands": (2.365, 4.23, 0, 1.003, 0.1026, 600.6),
                        "update units": (837, 17.42, 19.21, 3.146, 9.855), "loss": (1084, 2.486, 2.16),
                        "control": (832.3, 5.294, 0.2893), "small memories": (0, 0)})),
    Family.SERIES7: Fabric(
        lut_rams=(LutRam(32, 6, 4, 8, 4), LutRam(64, 3, 4, 8, 4)), block_cost=129, product_bits=9,
        logic=Coefficients(
            luts={"lattice and drain": (1.271, 0.7129, 3.889, 5.539, 0, 0, 0),
                  "operands": (0.918, 0, 0.1334, 0.1822, 0.04421, 307.4),
                  "update units": (635.7, 13.49, 9.325, 1.463, 4.533), "loss": (1044, 0, 3.269),
                  "control": (768.9, 2.399, 0), "small memories": (166.6, 0.8474)},
            flip_flops={"lattice and drain": (0.9296, 0, 3.199, 5.705, 0, 0, 0),
                        "operands": (0.2193, 0, 0, 0.01379, 1.262, 182.6),
                        "update units": (545.7, 7.486, 9.251, 1.52, 5.501), "loss": (843.3, 4.201, 1.562),
                        "control": (778.2, 6.58, 1.628), "small memories": (0, 0)})),
    Family.ULTRASCALE_PLUS: Fabric(
        lut_rams=(LutRam(32, 14, 8, 16, 4), LutRam(64, 7, 8, 16, 4)), block_cost=129, product_bits=9,
        logic=Coefficients(
            luts={"lattice and drain": (1.556, 0.8726, 4.76, 6.78, 0, 0, 0),
                  "operands": (0.9212, 0, 0.1339, 0.1828, 0.04437, 308.5),
                  "update units": (646, 13.71, 9.476, 1.487, 4.606), "loss": (999.7, 0, 3.13),
                  "control": (696.5, 2.173, 0), "small memories": (166.6, 0.8474)},
            flip_flops={"lattice and drain": (1.537, 0, 5.29, 9.434, 0, 0, 0),
                        "operands": (0.222, 0, 0, 0.01396, 1.277, 184.8),
                        "update units": (692.6, 9.502, 11.74, 1.929, 6.982), "loss": (935.5, 4.66, 1.733),
                        "control": (783.6, 6.626, 1.639), "small memories": (0, 0)})),
    Family.CYCLONE5: Fabric(
        lut_rams=(LutRam(32, 1, 0.5, 0, 4),), block_cost=0, product_bits=0,
        logic=Coefficients(
            luts={"lattice and drain": (1.302, 0, 3.169, 1.613, 0, 0.3649, 0),
                  "operands": (0.3571, 0.364, 0.06994, 0.9877, 0.03577, 124.9),
                  "update units": (473.2, 8.064, 5.367, 0, 2.277), "loss": (671.1, 0, 2.749),
                  "control": (789.6, 4.913, 0), "small memories": (0, 0)},
            flip_flops={"lattice and drain": (1.685, 5.789, 2.97, 5.637, 0, 0.5414, 140.7),
                        "operands": (0.7146, 0, 0.1615, 0.9776, 1.101, 473.6),
                        "update units": (782.3, 26.88, 17.7, 3.624, 8.03), "loss": (1121, 0, 4.324),
                        "control": (3428, 11.25, 3.876), "small memories": (0, 0)})),
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
