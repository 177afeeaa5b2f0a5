"""Hardware layouts made from the declarations in ``program``."""

from __future__ import annotations

from collections.abc import Mapping

from amaranth.hdl import signed, unsigned
from amaranth.lib import data

from espalier.arch.machine import CODE_BITS, COORDINATE_BITS, Machine
from espalier.program.words import bits_for, command_fields, entry_fields


def struct(fields: Mapping[str, int]) -> data.StructLayout:
    """A struct of unsigned fields."""
    return data.StructLayout({name: unsigned(width) for name, width in fields.items()})


def command_layout(machine: Machine) -> data.StructLayout:
    """A command word."""
    return struct(command_fields(machine))


def entry_layout(machine: Machine) -> data.StructLayout:
    """An index entry."""
    return struct(entry_fields(machine))


def word_layout(machine: Machine) -> data.StructLayout:
    """One lane of an activation or gradient vector: the word, and the pool position it came from."""
    return data.StructLayout({"value": signed(machine.word_bits), "code": unsigned(CODE_BITS)})


def vector_layout(machine: Machine) -> data.ArrayLayout:
    """One vector of the activation or gradient memory."""
    return data.ArrayLayout(word_layout(machine), machine.lanes)


def values_layout(machine: Machine) -> data.ArrayLayout:
    """The words of a vector without their codes."""
    return data.ArrayLayout(signed(machine.word_bits), machine.lanes)


def address_bits(machine: Machine) -> int:
    """Bits that address either of the activation memory and a gradient bank."""
    return max(bits_for(machine.activation_depth), bits_for(machine.gradient_depth))


def element_bits(machine: Machine) -> int:
    """Bits of the number of a processing element; none where there is only one."""
    return (machine.elements - 1).bit_length()


def tile_layout(machine: Machine) -> data.StructLayout:
    """What travels with the work of one tile: where it is on the map, and where its results go.

    ``out``: FP, BP: address of the first result. WU: address of the block's gradients.
    ``mask``: BP: address of the first activation that the results belong to; FP that writes to the gradients: that of
    the first activation. ``rows``: valid results.
    ``fresh``: the first of its output block; ``final``: nothing comes after it in this phase. ``owner``: whose
    activations the first result is among.
    """
    owner = {"owner": element_bits(machine)} if machine.elements > 1 else {}
    return data.StructLayout({
        "y": unsigned(COORDINATE_BITS), "x": unsigned(COORDINATE_BITS),
        "out": unsigned(address_bits(machine)), "mask": unsigned(bits_for(machine.activation_depth)),
        "rows": unsigned(bits_for(machine.all_rows + 1)), "fresh": unsigned(1), "final": unsigned(1), **owner})
