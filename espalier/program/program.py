"""A compiled network: everything a machine is told, and where its tensors lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from espalier.arch.machine import CHANNEL_SCALARS, Machine
from espalier.numerics.fixed import Fixed
from espalier.program.norm import NormMode
from espalier.program.words import Opcode, command_fields, entry_fields, pack, run_fields

Run = tuple[int, int]  #: columns one behind the other in external memory: the first, counted there, and how many


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One phase of one layer.

    Members
    -------
    opcode : Opcode
    layer : str
        For people; not encoded.
    table, blocks : int
        First segment pointer, and the number of output blocks that the lists are ordered by.
    last_rows : int
        Valid rows of the last output block.
    bias : int
        Whether each block's list begins with an entry for the constant one.
    kernel_y, kernel_x, pad_y, pad_x : int
        Taps and top-left padding of the convolution as this phase runs it (BP: mirrored).
    source_y, source_x, out_y, out_x : int
        Size of the map read through the taps, and of the map of tiles (before pooling).
    stride_y, stride_x : int
        FP, WU: the stride, as a power of two.
    source_plane : int
        Vectors between two source channels in the activation memory.
    pool_source, pool_out : int
        Whether the gradient read is stored pooled; whether FP pools what it writes.
    gradient_x : int
        Row length of the gradient map as stored (BP: source; WU: multiplicand).
    alternate : int
        Added to source addresses when the group's parity is odd (double-buffered images); REFETCH: to the page.
    one : int
        The word of the constant one.
    out_base, out_block, out_plane : int
        Where results go: FP activation address, BP gradient address; steps per block and per row. WU:
        the gradient that is multiplied.
    out_step, out_skip : int
        FP, BP: from a result's address to that of the next in its row, and from the last of a row to the next row's
        first. BP of a strided layer is one command for each phase of its map.
    add, add_offset : int
        FP, BP: whether a vector of the gradient memory is added to each result, and how far behind ``out_base`` and
        what follows from it that lies (modulo the addresses that there are). Such FP has a ``target``.
    mask_base : int
        BP: the activations that the results are gradients of (for their pool codes and signs). FP with a ``target``:
        where results go as activations.
    rectify : int
        FP: negative results become zero; BP: only where the activation is positive does a gradient pass.
    shift, limit : int
        Requantisation: shift, and the largest word.
    gradient_shift, weight_width, rate*, momentum*, decay* : int
        WU: to the 32-bit gradient, and the factors of numerics.update.BufferedSgd.
    diagonal : int
        WU: of each block only the weights with i = j are there (a depthwise layer).
    classes, logit_frac, gradient_frac, gradient_width, hinge : int
        Loss unit.
    spill : int
        FP: whether results go to external memory, too: ``beats`` of its port, from page ``external`` on. REFETCH
        brings them back: ``out_base``, ``out_block``, ``out_plane``, ``blocks`` and ``last_rows`` say to where.
    fence : int
        Whether the command waits until all that was spilled or put out is written and all that was asked for is there.
    panel : int
        FP, BP, WU: where the weights are: 0, in the banks for those that stay; 2 or 3, in a panel. FETCH, STORE: which
        panel moves.
    first_column : int
        WU: the column in the lists that is the first of the panel.
    state, runs_at, runs : int
        FETCH, STORE: whether masters and momenta move, not weights; which runs of columns, ``beats`` in all, of the
        part of external memory that begins at page ``external``.
    target : int
        FP: where results go, bit 0: to the gradients, at ``out_base`` as BP's (and to the activations at
        ``mask_base``), bit 1: not to the activations.
    norm, norm_mode : int
        WU, NORM: whether its sums are those of a batch norm and go to its scalars, and to what (program.norm.NormMode).
    norm_base, norm_count, norm_column : int
        WU, NORM: the channels whose scalars these are, and the column of the first block's offsets.
    sum_frac, word_frac, word_limit : int
        Fraction bits of the sums, and of the words made of them; the largest word.
    epsilon, share, following, norm_momentum, norm_rate, norm_decay : int
        Scalars: of numerics/fixed_batch_norm.py epsilon, 1/n, and what a variance of the batch counts in the running
        one; of numerics.update.ScalarSgd its factors.
    bound : int
        Where something is rectified, FP: the largest result, to which larger ones are clipped; BP: the largest
        activation at which a gradient passes.
    own : int
        FP, BP: whether every processing element makes results of its own, ``rows`` each, which leave one element after
        the other. ``blocks`` are as many of all elements then, and ``last_rows`` the results of the last. Else all make
        the same results, each a part of the sums. REFETCH: which of that was done.
    everywhere : int
        REFETCH: whether every processing element gets all of it.
    tile_y, tile_x : int
        FP, BP, WU: the logarithms of height and width of what a lane holds of the map that is read through the taps.
    reach_y, reach_x : int
        FP, BP, WU: the logarithms of the tiles of the grid from a part of that map to the next.
    """

    opcode: Opcode
    layer: str = ""
    table: int = 0
    blocks: int = 0
    last_rows: int = 0
    bias: int = 0
    kernel_y: int = 0
    kernel_x: int = 0
    pad_y: int = 0
    pad_x: int = 0
    source_y: int = 0
    source_x: int = 0
    out_y: int = 0
    out_x: int = 0
    stride_y: int = 0
    stride_x: int = 0
    source_plane: int = 0
    pool_source: int = 0
    pool_out: int = 0
    gradient_x: int = 0
    alternate: int = 0
    one: int = 0
    out_base: int = 0
    out_block: int = 0
    out_plane: int = 0
    out_step: int = 0
    out_skip: int = 0
    add: int = 0
    add_offset: int = 0
    mask_base: int = 0
    rectify: int = 0
    shift: int = 0
    limit: int = 0
    gradient_shift: int = 0
    weight_width: int = 0
    diagonal: int = 0
    rate: int = 0
    rate_shift: int = 0
    momentum: int = 0
    momentum_shift: int = 0
    decay: int = 0
    decay_shift: int = 0
    classes: int = 0
    logit_frac: int = 0
    gradient_frac: int = 0
    gradient_width: int = 0
    hinge: int = 0
    spill: int = 0
    fence: int = 0
    external: int = 0
    beats: int = 0
    panel: int = 0
    state: int = 0
    runs_at: int = 0
    runs: int = 0
    first_column: int = 0
    bound: int = 0
    target: int = 0
    norm: int = 0
    norm_mode: int = 0
    norm_base: int = 0
    norm_count: int = 0
    norm_column: int = 0
    sum_frac: int = 0
    word_frac: int = 0
    word_limit: int = 0
    epsilon: int = 0
    share: int = 0
    following: int = 0
    norm_momentum: int = 0
    norm_rate: int = 0
    norm_decay: int = 0
    tile_y: int = 0
    tile_x: int = 0
    reach_y: int = 0
    reach_x: int = 0
    own: int = 0
    everywhere: int = 0

    @property
    def phase(self) -> Opcode:
        """With which phase of its layer it counts.

        A batch norm's sums of FP are made as those of WU are, and what its input gives to its gradient as FP's results.
        """
        if self.opcode == Opcode.UPDATE and self.norm and self.norm_mode == NormMode.FORWARD:
            return Opcode.FORWARD
        return Opcode.BACKWARD if self.opcode == Opcode.FORWARD and self.target & 2 else self.opcode

    def encode(self, machine: Machine) -> int:
        """The command word. What a machine has no field for is zero."""
        names = command_fields(machine)
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "layer"}
        return pack(names, {name: value for name, value in values.items() if value or name in names})


@dataclass(frozen=True, slots=True)
class Entry:
    """One live block in an index list; meaning in :func:`espalier.program.words.entry_fields`."""

    column: int
    channel: int
    ky: int
    kx: int
    count: int
    one: int = 0

    def encode(self, machine: Machine) -> int:
        """The entry's word."""
        return pack(entry_fields(machine), {f.name: getattr(self, f.name) for f in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexLists:
    """The index lists of a processing element: their ``entries``, and the segment pointers into them."""

    entries: tuple[Entry, ...]
    table: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a tensor lies in the activation or gradient memory while it lives.

    Members
    -------
    value : str
        Name of the graph's value. A gradient is that of the convolution's result, masked by the
        rectifier; where the layer pools it is stored pooled, and each word's code says where it belongs.
    memory : str
        ``"activations"`` (address ``base + c*height*width + y*width + x``) or ``"gradients"`` (the
        same with ``c // rows``, in bank ``c % rows``). Of several processing elements each has the activations of every
        so manyth block of ``rows`` channels, and all gradients.
    format : Fixed
    command : int
        Index of the command after which it can be read.
    pooled : bool
        Each word has a code, the position in its 2×2 window that won.
    apart : (y, x)
        Where lanes hold tiles: a part of ``shape`` is in every so manyth tile of the grid, down and across; other
        lanes hold nothing that counts.
    """

    value: str
    memory: str
    base: int
    shape: tuple[int, int, int]
    format: Fixed
    command: int
    pooled: bool
    apart: tuple[int, int] = (1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Everything that a machine is told to train one network, and what a host needs to follow it.

    Members
    -------
    machine : Machine
    commands : tuple of Command
        ``entries_at`` names where ``"train"`` and ``"infer"`` begin.
    lists : tuple of IndexLists
        Of each processing element.
    addresses : mapping of name to array
        For each parameter, the place ``column * rows + bank`` of each weight, -1 where it is dead. Columns from
        ``machine.weight_depth`` on are in external memory, or in the next processing element.
    constants : mapping of int to array
        The places of weights that are no parameters, by their word.
    weight_formats : mapping of name to Fixed
    scalars : mapping of name to (int, int, int)
        Of each tensor of a batch norm in the state, its first channel among the machine's scalars, how many it has, and
        their slot.
    placements : tuple of Placement
        Of all activations and gradients, in the order in which they come to be.
    image : tuple
        (C, H, W) of the input (in each lane), at addresses ``image_base`` (even groups), plus ``image_size`` (odd).
    image_pages : int
        Where images come from external memory: they are at its beginning (even groups) and so many pages behind
        (odd), vector by vector as on chip, each in whole beats. 0: the host writes them to the chip.
    runs : tuple of Run
        Of which panels are made.
    external_columns, weight_page, state_page : int
        Columns in external memory, and the pages where their weights begin, and their masters and momenta.
    """

    machine: Machine
    commands: tuple[Command, ...]
    entries_at: Mapping[str, int]
    lists: tuple[IndexLists, ...]
    addresses: Mapping[str, NDArray[np.int64]] = field(repr=False)
    constants: Mapping[int, NDArray[np.int64]] = field(repr=False)
    weight_formats: Mapping[str, Fixed]
    scalars: Mapping[str, tuple[int, int, int]]
    placements: tuple[Placement, ...]
    image: tuple[int, int, int]
    image_base: int
    image_format: Fixed
    image_pages: int = 0
    runs: tuple[Run, ...] = ()
    external_columns: int = 0
    weight_page: int = 0
    state_page: int = 0

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All index entries, one processing element's behind the other's."""
        return tuple(entry for part in self.lists for entry in part.entries)

    @property
    def table(self) -> tuple[int, ...]:
        """All segment pointers, likewise."""
        return tuple(pointer for part in self.lists for pointer in part.table)

    @property
    def chip_places(self) -> int:
        """Of weights on chip."""
        return self.machine.elements * self.machine.master_depth

    @property
    def places(self) -> int:
        """Of weights, on chip and behind those in external memory."""
        return self.chip_places + self.external_columns * self.machine.rows

    @property
    def image_size(self) -> int:
        """Vectors of one group of images."""
        channels, height, width = self.image
        return channels * height * width

    def memory_images(self, state: Mapping[str, NDArray]) -> dict[str, NDArray[np.int64]]:
        """The weight, master and momentum memories (``column * rows + bank``) for a parameter state."""
        images = {kind: np.zeros(self.places, dtype=np.int64) for kind in ("weights", "masters", "momenta")}
        for word, places in self.constants.items():
            images["weights"][places] = word
        for name, addresses in self.addresses.items():
            live = addresses >= 0
            for kind, key in (("weights", name), ("masters", f"{name}.master"), ("momenta", f"{name}.momentum")):
                images[kind][addresses[live]] = np.asarray(state[key])[live]
        return images

    def state_of(self, images: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
        """The parameter state held in such memories: the inverse of :meth:`memory_images`."""
        state: dict[str, NDArray[np.int64]] = {}
        for name, addresses in self.addresses.items():
            for kind, key in (("weights", name), ("masters", f"{name}.master"), ("momenta", f"{name}.momentum")):
                state[key] = np.where(addresses >= 0, images[kind][addresses], 0)
        return state

    def scalar_image(self, state: Mapping[str, NDArray]) -> NDArray[np.uint32]:
        """The memory of scalars (channel, slot), as binary32, for a parameter state."""
        image = np.zeros((self.machine.norm_depth, CHANNEL_SCALARS), dtype=np.float32)
        for name, (first, count, slot) in self.scalars.items():
            image[first: first + count, slot] = state[name]
        return image.view(np.uint32)

    def scalars_of(self, image: NDArray[np.uint32]) -> dict[str, NDArray[np.float32]]:
        """The parameter state held in such a memory: the inverse of :meth:`scalar_image`."""
        return {name: image.view(np.float32)[first: first + count, slot]
                for name, (first, count, slot) in self.scalars.items()}

    @property
    def index_bytes(self) -> int:
        """Bytes of index lists, segment pointers and runs."""
        entry_bits = sum(entry_fields(self.machine).values())
        run_bits = sum(run_fields(self.machine).values()) if self.runs else 0
        return -(-(len(self.entries) * entry_bits + len(self.runs) * run_bits) // 8) + 2 * len(self.table)
