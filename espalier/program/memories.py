"""The memories that a machine is built of, one by one as synthesis meets them."""

from __future__ import annotations

from espalier.arch.machine import CHANNEL_SCALARS, Machine
from espalier.numerics.loss import EXP_FRAC, RECIPROCAL_FRAC, TABLE_BITS
from espalier.program.norm_schedule import ROW_FIELDS, ROWS
from espalier.program.words import bits_for, command_fields, entry_fields, run_fields

LOSS_WORD_BITS = 16  #: of the loss unit's values and of its table
BANK_WORDS = 1024    #: a deep memory is banks of so many words (BANK_BITS of ``ram.v``)


def memory_banks(machine: Machine) -> tuple[tuple[int, int, int], ...]:
    """(banks, words, bits per word) of every memory with one write and one read port, read data a cycle late.

    Segment pointers are read in pairs, from two copies. Entries and commands lie in one bank each, however many they
    are. The last four are the loss unit's: values, largest and sum of each lane, and the table.
    """
    places, trees, elements = machine.master_depth // machine.trees, machine.trees, machine.elements
    panels = {"weights": (2 * machine.rows, machine.panel_depth),
              **dict.fromkeys(("masters", "momenta"), (2 * trees, machine.state_depth * machine.tree_rows))}
    resident = {"activations": (elements, machine.activation_depth),
                "gradients": (machine.all_rows, machine.gradient_depth),
                "weights": (machine.all_rows, machine.weight_depth),
                **dict.fromkeys(("masters", "momenta", "gradient_sums"), (elements * trees, places)),
                "scalars": (1, machine.norm_depth * CHANNEL_SCALARS),
                "norm_sums": (trees, machine.norm_sums // trees)}
    banked = [(*shape[name], bits) for name, (_, bits) in machine.memories().items()
              for shape in (resident, panels if machine.panel_depth else {}) if name in shape]
    banked.append((2 * elements, machine.table_depth, bits_for(machine.index_depth + 1)))
    if machine.panel_depth:
        banked.append((1, machine.run_depth, sum(run_fields(machine).values())))
    if machine.norm_depth:
        banked.append((1, sum(map(len, ROWS.values())), sum(ROW_FIELDS.values())))
    return (*(bank for memory in banked for bank in _cut(*memory)),
            (elements, machine.index_depth, sum(entry_fields(machine).values())),
            (1, machine.program_depth, sum(command_fields(machine).values())),
            *_loss(machine))


def _loss(machine: Machine) -> tuple[tuple[int, int, int], ...]:
    lanes, classes = machine.images, machine.max_classes
    total_bits = max((classes << EXP_FRAC).bit_length(), RECIPROCAL_FRAC - EXP_FRAC + 1)
    return ((1, lanes * classes, LOSS_WORD_BITS), (1, max(2, lanes), machine.word_bits + 1),
            (1, max(2, lanes), total_bits), (1, 2 << TABLE_BITS, LOSS_WORD_BITS))


def _cut(count: int, words: int, bits: int) -> tuple[tuple[int, int, int], ...]:
    """``count`` memories of ``words``, in banks: the whole ones, and what is left."""
    whole, left = divmod(words, BANK_WORDS)
    banks = ((count * whole, BANK_WORDS, bits), (count, max(2, left) if left else 0, bits))
    return tuple(bank for bank in banks if bank[0] and bank[1])
