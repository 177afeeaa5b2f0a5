"""Memory images as ``$readmemh`` reads them: one word a line, in hexadecimal, the first at address 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from espalier.arch.machine import SCALAR_BITS, Machine
from espalier.engines.host import state_bytes
from espalier.numerics.update import EXTRA_BITS
from espalier.program.program import Program
from espalier.program.words import bits_for, command_fields, entry_fields, pack, run_fields


def hex_words(words: Sequence[int], bits: int) -> bytes:
    """Lines of unsigned words of any width."""
    digits = -(-bits // 4)
    return b"".join(b"%0*x\n" % (digits, word) for word in words)


def hex_array(words: NDArray[np.int64], bits: int) -> bytes:
    """Lines of two's complement words of at most 32 bits, from an array."""
    digits = -(-bits // 4)
    text = (words & (1 << bits) - 1).astype(">u4").tobytes().hex().encode()
    lines = np.empty((len(words), digits + 1), dtype=np.uint8)
    lines[:, :digits] = np.frombuffer(text, dtype=np.uint8).reshape(len(words), 8)[:, 8 - digits:]
    lines[:, digits] = ord("\n")
    return lines.tobytes()


def program_images(program: Program, state: Mapping[str, NDArray]) -> dict[str, bytes]:
    """Every memory image of a network by file name.

    ``program``, ``table`` and ``index`` hold commands, segment pointers and live-block entries (fields
    as declared in ``espalier.program.words``, the first lowest); ``weights``, ``masters`` and ``momenta``
    hold place ``column * rows + bank``. All of these but the program are there for each processing element, where there
    are several, its number behind the name. Of weights in external memory there are ``runs``, and two files of bytes:
    their names end with where in the machine's part of that memory they go. Of batch norms there are ``scalars``,
    binary32 at ``channel * CHANNEL_SCALARS + slot``.
    """
    machine = program.machine
    memories, each = program.memory_images(state), machine.master_depth
    external, scalars = {}, {}
    if program.scalars:
        scalars = {"scalars.hex": hex_words(program.scalar_image(state).ravel().tolist(), SCALAR_BITS)}
    if program.external_columns:
        runs = [pack(run_fields(machine), {"column": column, "columns": columns}) for column, columns in program.runs]
        outside = {f"external_{place:08x}.bin": content.tobytes() for place, content in state_bytes(program, state)}
        external = {"runs.hex": hex_words(runs, sum(run_fields(machine).values())), **outside}
    return {
        **external,
        "program.hex": hex_words([command.encode(machine) for command in program.commands],
                                 sum(command_fields(machine).values())),
        **scalars,
        **{name.format(f"_{number}" if machine.elements > 1 else ""): content
           for number, lists in enumerate(program.lists) for name, content in (
               ("table{}.hex", hex_words(lists.table, bits_for(machine.index_depth + 1))),
               ("index{}.hex", hex_words([entry.encode(machine) for entry in lists.entries],
                                         sum(entry_fields(machine).values()))),
               *((name + "{}.hex", hex_array(memories[name][number * each: (number + 1) * each], width))
                 for name, width in word_widths(machine).items()))},
    }


def word_widths(machine: Machine) -> dict[str, int]:
    """Bits of a word of the memories that hold the parameters' state."""
    wide = machine.word_bits + EXTRA_BITS
    return {"weights": machine.word_bits, "masters": wide, "momenta": wide}
