"""The bit fields of command words, index entries and host addresses: declared once."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from espalier.arch.machine import (
    BURST_BYTES,
    COORDINATE_BITS,
    EXTERNAL_BITS,
    KERNEL_BITS,
    MAX_STRIDE_SHIFT,
    REGION_BITS,
    SCALAR_BITS,
    Machine,
)
from espalier.program.scalar import FRAC_BITS

BUS_BITS = 32      #: bits of a host data word
SPACE_SHIFT = 28   #: a host address is ``space << SPACE_SHIFT | offset``
STRIDE_BITS = MAX_STRIDE_SHIFT.bit_length()
TILE_BITS = COORDINATE_BITS.bit_length()  #: of the logarithm of a tile's height or width
REACH_BITS = 4  #: of the logarithm of the tiles from a part of a map to the next
NORM_SCALARS = ("share", "epsilon", "following", "norm_momentum", "norm_rate", "norm_decay")
PAGE_SHIFT = (BURST_BYTES - 1).bit_length()
PAGE_BITS = EXTERNAL_BITS - PAGE_SHIFT  #: of a tensor's place in external memory


class Opcode(IntEnum):
    """What a command does."""

    END = 0       #: stop
    FORWARD = 1   #: FP of one layer
    BACKWARD = 2  #: BP of one layer
    UPDATE = 3    #: WU of one layer, and the update of its weights
    LOSS = 4      #: loss, its gradient, and counting of correct answers
    REFETCH = 5   #: begin to bring a spilled tensor back; the next command does not wait for it
    FETCH = 6     #: likewise, a panel of weights, or of masters and momenta
    STORE = 7     #: likewise, such a panel to external memory
    NORM = 8      #: factors and offsets of a batch norm from its running statistics


class Space(IntEnum):
    """What a host address points at. Items of several words are written lowest word first."""

    CONTROL = 0      #: write: start (see Start); read: see Status
    PROGRAM = 1      #: commands
    TABLE = 2        #: segment pointers
    INDEX = 3        #: entries
    WEIGHTS = 4      #: offset ``column * rows + bank``
    MASTERS = 5      #: the same offsets
    MOMENTA = 6      #: the same offsets
    ACTIVATIONS = 7  #: write: vectors of 16-bit halves, two lanes a word; read: one lane with its code
    GRADIENTS = 8    #: read only: offset ``(address * rows + bank)`` then lane
    LABELS = 9       #: offset ``parity * lanes + lane``
    EXTERNAL = 10    #: write, at any offset: where in external memory the machine's own part begins, in bytes
    RUNS = 11        #: runs of columns in external memory
    SCALARS = 12     #: of batch norms, as binary32: offset ``channel * CHANNEL_SCALARS + slot`` (see program.norm.Slot)
    ELEMENTS = 13    #: write, at any offset: a bit for each processing element that writes go to and reads come from


class Status(IntEnum):
    """Read-only words of the control space."""

    BUSY = 0
    CORRECT = 1     #: images whose first largest logit was the label, since the last clear
    LOSS_LOW = 2    #: the sum of losses since the last clear, low 32 bits
    LOSS_HIGH = 3   #: its high 16 bits
    CYCLES = 4      #: clock cycles busy since the last clear, modulo 2**32
    ERRORS = 5      #: whether external memory answered with an error since the last clear: bit 0 to a read, 1 a write


def bits_for(count: int) -> int:
    """Bits that hold 0..count-1, at least one."""
    return max(1, (count - 1).bit_length())


def start_fields() -> dict[str, int]:
    """Fields of the word that starts the machine."""
    return {"entry": 12, "parity": 1, "first": 1, "last": 1, "single": 1, "clear": 1}


def entry_fields(machine: Machine) -> dict[str, int]:
    """Fields of one live block in an index list.

    ``column``: first column of the block in the weight banks. ``channel``: address of the first
    source vector (FP: channel 0 of the input block; BP: the output block's row of banks) at map
    position (0, 0). ``ky, kx``: tap, mirrored in BP lists. ``count``: source channels in the block.
    ``one``: the source is the constant one (a bias).
    """
    return {"column": bits_for(machine.column_depth),
            "channel": max(bits_for(machine.activation_depth), bits_for(machine.gradient_depth)),
            "ky": KERNEL_BITS, "kx": KERNEL_BITS, "count": bits_for(machine.rows + 1), "one": 1}


def region_of(panel: int) -> int:
    """The region of a panel: the first bit says that it is none of the weight banks, the others which."""
    return 1 << REGION_BITS - 1 | panel


def run_fields(machine: Machine) -> dict[str, int]:
    """Fields of a run of columns in external memory: its first, and how many."""
    column_bytes = machine.rows * machine.slot_bits // 8
    return {"column": EXTERNAL_BITS - (column_bytes - 1).bit_length(), "columns": bits_for(machine.panel_depth + 1)}


def command_fields(machine: Machine) -> dict[str, int]:
    """Fields of a command word; widths follow the machine. Meaning in :class:`Command`."""
    activation = bits_for(machine.activation_depth)
    gradient = bits_for(machine.gradient_depth)
    address = max(activation, gradient)
    size = COORDINATE_BITS
    beats = EXTERNAL_BITS - (machine.port_bits // 8 - 1).bit_length()
    external = {"spill": 1, "fence": 1, "external": PAGE_BITS, "beats": beats} if machine.port_bits else {}
    panels = {"panel": REGION_BITS, "state": 1, "runs_at": bits_for(machine.run_depth),
              "runs": bits_for(machine.run_depth + 1),
              "first_column": bits_for(machine.column_depth)} if machine.panel_depth else {}
    clip = {"bound": machine.word_bits} if machine.clips else {}
    sums = {"add": 1, "add_offset": address} if machine.sums else {}
    copies = {"target": 2} if machine.copies else {}
    norm = {"norm": 1, "norm_mode": 2, "norm_base": bits_for(machine.norm_depth),
            "norm_count": bits_for(machine.norm_depth + 1), "norm_column": bits_for(machine.weight_depth),
            "sum_frac": FRAC_BITS, "word_frac": FRAC_BITS, "word_limit": machine.word_bits,
            **dict.fromkeys(NORM_SCALARS, SCALAR_BITS)} if machine.norm_depth else {}
    grid = {"tile_y": TILE_BITS, "tile_x": TILE_BITS, "reach_y": REACH_BITS,
            "reach_x": REACH_BITS} if machine.tiles > 1 else {}
    elements = {"own": 1, **({"everywhere": 1} if machine.port_bits else {})} if machine.elements > 1 else {}
    return {
        "opcode": 4 if machine.norm_depth else 3,
        "table": bits_for(machine.table_depth), "blocks": bits_for(machine.table_depth),
        "last_rows": bits_for(machine.all_rows + 1), "bias": 1,
        "kernel_y": KERNEL_BITS + 1, "kernel_x": KERNEL_BITS + 1, "pad_y": KERNEL_BITS + 1, "pad_x": KERNEL_BITS + 1,
        "source_y": size, "source_x": size, "out_y": size, "out_x": size,
        "stride_y": STRIDE_BITS, "stride_x": STRIDE_BITS,
        "source_plane": activation, "pool_source": 1, "pool_out": 1, "gradient_x": size,
        "alternate": activation, "one": machine.word_bits,
        "out_base": address, "out_block": address, "out_plane": activation,
        "out_step": bits_for((1 << MAX_STRIDE_SHIFT) + 1), "out_skip": address,
        "mask_base": activation, "rectify": 1,
        "shift": 6, "limit": machine.word_bits,
        "gradient_shift": 6, "weight_width": 5, "diagonal": 1,
        "rate": 16, "rate_shift": 6, "momentum": 16, "momentum_shift": 6, "decay": 16, "decay_shift": 6,
        "classes": bits_for(machine.max_classes + 1), "logit_frac": 5, "gradient_frac": 5, "gradient_width": 5,
        "hinge": 1, **external, **panels, **clip, **sums, **copies, **norm, **grid, **elements,
    }


def pack(fields: Mapping[str, int], values: Mapping[str, int]) -> int:
    """One word with ``values`` in ``fields``, the first field lowest. A value that does not fit is our bug."""
    word, position = 0, 0
    for name, width in fields.items():
        value = int(values.get(name, 0))
        assert 0 <= value < 1 << width, f"{name} = {value} does not fit in {width} bits"
        word |= value << position
        position += width
    assert set(values) <= set(fields), f"unknown fields {set(values) - set(fields)}"
    return word


def host_words(bits: int) -> int:
    """Bus words that an item of ``bits`` takes."""
    return -(-bits // BUS_BITS)


def host_stride(bits: int) -> int:
    """Distance of two such items in the host's address space: the next power of two."""
    return 1 << (host_words(bits) - 1).bit_length()


def vector_words(machine: Machine) -> int:
    """Bus words that an activation vector takes when it is written: two lanes a word."""
    return -(-machine.lanes // 2)


def lane_stride(machine: Machine) -> int:
    """Distance of two vectors in the host's address space when they are read, lane by lane."""
    return 1 << (machine.lanes - 1).bit_length()
