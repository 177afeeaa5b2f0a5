"""The host driver: writes and reads that load a Program, run it, and look at its tensors.

It knows only the host port, so that the driver of a board is the driver of the simulation.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from espalier.arch.machine import CODE_BITS, Machine
from espalier.program.program import Placement, Program
from espalier.program.words import (
    BUS_BITS,
    PAGE_SHIFT,
    SPACE_SHIFT,
    Space,
    command_fields,
    entry_fields,
    host_stride,
    host_words,
    lane_stride,
    pack,
    run_fields,
    start_fields,
    vector_words,
)

Writes = tuple[NDArray[np.uint32], NDArray[np.uint32]]


def address(space: Space, offset: NDArray[np.int64] | int) -> NDArray[np.uint32]:
    """Host addresses of offsets in a space."""
    return (np.atleast_1d(np.asarray(offset, dtype=np.int64)) + (int(space) << SPACE_SHIFT)).astype(np.uint32)


def joined(*parts: Writes) -> Writes:
    """Writes one after another."""
    return np.concatenate([a for a, _ in parts]), np.concatenate([d for _, d in parts])


def _words(space: Space, values: NDArray[np.int64]) -> Writes:
    return address(space, np.arange(len(values))), (values & 0xFFFFFFFF).astype(np.uint32)


def _wide(space: Space, items: list[int], bits: int) -> Writes:
    count, stride = host_words(bits), host_stride(bits)
    data = [item >> (BUS_BITS * k) & 0xFFFFFFFF for item in items for k in range(count)]
    offsets = [index * stride + k for index in range(len(items)) for k in range(count)]
    return address(space, np.array(offsets, dtype=np.int64)), np.array(data, dtype=np.uint32)


def command_writes(program: Program) -> Writes:
    """Load the commands."""
    machine = program.machine
    return _wide(Space.PROGRAM, [command.encode(machine) for command in program.commands],
                 sum(command_fields(machine).values()))


def to_elements(machine: Machine, *numbers: int) -> Writes:
    """Choose the processing elements, all where none is named, that writes behind this go to and reads come from."""
    if machine.elements == 1:
        return np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.uint32)
    chosen = sum(1 << number for number in numbers or range(machine.elements))
    return address(Space.ELEMENTS, 0), np.array([chosen], dtype=np.uint32)


def program_writes(program: Program) -> Writes:
    """Load commands, segment tables, index lists and runs."""
    machine = program.machine
    runs = [_wide(Space.RUNS, [pack(run_fields(machine), {"column": column, "columns": columns})
                               for column, columns in program.runs], sum(run_fields(machine).values()))]
    return joined(
        *(runs if program.runs else ()), command_writes(program),
        *(part for element, lists in enumerate(program.lists) for part in (
            to_elements(machine, element), _words(Space.TABLE, np.array(lists.table, dtype=np.int64)),
            _wide(Space.INDEX, [entry.encode(machine) for entry in lists.entries],
                  sum(entry_fields(machine).values())))),
        to_elements(machine))


def state_writes(program: Program, state: Mapping[str, NDArray]) -> Writes:
    """Load weights, masters and momenta, and the scalars of batch norms."""
    machine, images = program.machine, program.memory_images(state)
    scalars = program.scalar_image(state).astype(np.int64).ravel()
    parts: list[Writes] = []
    for element in range(machine.elements):
        own = slice(element * machine.master_depth, (element + 1) * machine.master_depth)
        parts += [to_elements(machine, element), _words(Space.WEIGHTS, images["weights"][own]),
                  _words(Space.MASTERS, images["masters"][own]), _words(Space.MOMENTA, images["momenta"][own])]
    return joined(*parts, to_elements(machine), _words(Space.SCALARS, scalars))


def state_bytes(program: Program, state: Mapping[str, NDArray]) -> list[tuple[int, NDArray[np.uint8]]]:
    """Weights, masters and momenta in external memory: where each part goes, and its bytes."""
    machine = program.machine
    images = {name: image[program.chip_places:] for name, image in program.memory_images(state).items()}
    weights = images["weights"].astype(f"<i{machine.slot_bits // 8}")
    states = np.stack([images["masters"], images["momenta"]], axis=-1).astype("<i4")
    return [(program.weight_page << PAGE_SHIFT, weights.view(np.uint8)),
            (program.state_page << PAGE_SHIFT, states[_state_order(program)].ravel().view(np.uint8))]


def state_images(program: Program, weights: bytes, states: bytes) -> dict[str, NDArray[np.int64]]:
    """The inverse: the part of the weight, master and momentum images that lies in external memory."""
    found = np.empty((program.places - program.chip_places, 2), dtype=np.int64)
    found[_state_order(program)] = np.frombuffer(states, dtype="<i4").reshape(-1, 2)
    words = np.frombuffer(weights, dtype=f"<i{program.machine.slot_bits // 8}")
    return {"weights": words.astype(np.int64), "masters": found[:, 0],
            "momenta": found[:, 1]}


def _state_order(program: Program) -> NDArray[np.int64]:
    """Places of external memory as update units take their masters: by column, bank of a unit, unit."""
    machine = program.machine
    places = np.arange(program.places - program.chip_places)
    return places.reshape(-1, machine.trees, machine.tree_rows).transpose(0, 2, 1).ravel()


def in_lanes(machine: Machine, images: NDArray) -> NDArray:
    """What each lane holds of images (N, C, H, W): (lanes, C, h, w), its tile, or all."""
    count, channels, height, width = images.shape
    y, x = machine.grid_y, machine.grid_x
    return images.reshape(count, channels, y, height // y, x, width // x).transpose(0, 2, 4, 1, 3, 5).reshape(
        count * y * x, channels, height // y, width // x)


def of_lanes(machine: Machine, held: NDArray, apart: tuple[int, int]) -> NDArray:
    """The inverse, of maps of which every so manyth tile, down and across, has a part."""
    lanes, channels, height, width = held.shape
    tiles = held.reshape(lanes // machine.tiles, machine.grid_y, machine.grid_x, channels, height, width)
    tiles = tiles[:, :: apart[0], :: apart[1]]
    return tiles.transpose(0, 3, 1, 4, 2, 5).reshape(
        len(tiles), channels, tiles.shape[1] * height, tiles.shape[2] * width)


def image_bytes(program: Program, images: NDArray[np.int64], parity: int) -> tuple[int, NDArray[np.uint8]]:
    """Where in external memory one group of images (N, C, H, W) goes, and its bytes: vectors with codes of zero."""
    machine = program.machine
    size = machine.word_bits + CODE_BITS
    words = in_lanes(machine, images).reshape(machine.lanes, -1).T & (1 << machine.word_bits) - 1
    bits = (words[:, :, None] >> np.arange(size) & 1).astype(np.uint8).reshape(len(words), -1)
    padded = np.zeros((len(bits), machine.vector_beats * machine.port_bits), dtype=np.uint8)
    padded[:, : bits.shape[1]] = bits
    return parity * program.image_pages << PAGE_SHIFT, np.packbits(padded, axis=1, bitorder="little").ravel()


def image_writes(program: Program, images: NDArray[np.int64], labels: NDArray[np.int64], parity: int) -> Writes:
    """Load one group of images (N, C, H, W), as words, where they go to the chip, and its labels."""
    machine, count = program.machine, vector_words(program.machine)
    told = address(Space.LABELS, parity * machine.images + np.arange(machine.images)), labels.astype(np.uint32)
    if program.image_pages:
        return told
    vectors = in_lanes(machine, images).reshape(machine.lanes, -1).T & 0xFFFF
    padded = np.zeros((len(vectors), 2 * count), dtype=np.int64)
    padded[:, : machine.lanes] = vectors
    data = padded[:, 0::2] | padded[:, 1::2] << 16
    stride = 1 << (count - 1).bit_length()
    base = program.image_base + parity * program.image_size
    offsets = (base + np.arange(len(vectors)))[:, None] * stride + np.arange(count)
    return joined((address(Space.ACTIVATIONS, offsets.ravel()), data.ravel().astype(np.uint32)), told)


def start_write(entry: int, *, parity: int = 0, first: bool = True, last: bool = True, single: bool = False,
                clear: bool = False) -> Writes:
    """Start the machine at a command."""
    word = pack(start_fields(), {"entry": entry, "parity": parity, "first": int(first), "last": int(last),
                                 "single": int(single), "clear": int(clear)})
    return address(Space.CONTROL, 0), np.array([word], dtype=np.uint32)


def tensor_addresses(program: Program, placement: Placement) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Where the host reads a tensor (lanes, C, H, W), and of which processing element each channel."""
    machine = program.machine
    channels, height, width = placement.shape
    pixels = np.arange(height * width).reshape(1, height, width)
    channel = np.arange(channels).reshape(-1, 1, 1)
    elements = np.zeros(channels, dtype=np.int64)  # any has all gradients
    if placement.memory == "activations":
        block, row = np.divmod(channel, machine.rows)
        own = block // machine.elements * machine.rows + row
        elements = (block % machine.elements).ravel()
        vectors, space = placement.base + own * height * width + pixels, Space.ACTIVATIONS
    else:
        row = placement.base + channel // machine.rows * height * width + pixels
        vectors, space = row * machine.rows + channel % machine.rows, Space.GRADIENTS
    offsets = vectors[None] * lane_stride(machine) + np.arange(machine.lanes).reshape(-1, 1, 1, 1)
    return address(space, offsets.ravel()).reshape(offsets.shape), elements


def lane_words(program: Program, data: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split lanes as read into words and pool codes."""
    bits = program.machine.word_bits
    raw = data.astype(np.int64)
    return signed(raw, bits), raw >> bits & (1 << CODE_BITS) - 1


def signed(words: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """The low ``bits`` of words as two's complement."""
    low = words & (1 << bits) - 1
    return np.where(low >> bits - 1, low - (1 << bits), low)


def unpooled(words: NDArray[np.int64], codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Gradients (N, C, H, W) put where their codes say: (N, C, 2H, 2W), zero elsewhere."""
    full = np.zeros((*words.shape[:2], 2 * words.shape[2], 2 * words.shape[3]), dtype=np.int64)
    for code in range(1 << CODE_BITS):
        full[:, :, code // 2::2, code % 2::2] = np.where(codes == code, words, 0)
    return full
