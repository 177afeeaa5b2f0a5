"""Index lists of one layer: which blocks live, in the order in which each phase walks them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from espalier.compiler.legalise import Layer
from espalier.errors import FitError
from espalier.numerics.convolution import ungrouped
from espalier.numerics.live import block_grid, expand_blocks, live_blocks

Live = Mapping[str, NDArray[np.bool_]]  #: which elements of each parameter live, in its own shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A live block: output block, input block, tap, and the first of its columns in the weight banks.

    ``element``: the processing element that has it.
    """

    out: int
    source: int
    ky: int
    kx: int
    column: int
    columns: int
    element: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerBlocks:
    """The live blocks of a layer in FP order, its bias columns, and the columns it takes in all.

    ``bias_columns[o]`` is the column of the biases of output block ``o``, which is with the processing element that has
    the block ``o`` of the result: number ``o`` modulo ``elements``. ``slopes`` is how far behind the columns of a
    batch norm's factors and offsets those of its slopes and intercepts lie.
    """

    layer: Layer
    rows: int
    blocks: tuple[Block, ...]
    bias_columns: tuple[int, ...]
    columns: int
    slopes: int = 0
    elements: int = 1

    @property
    def slope_columns(self) -> dict[int, int]:
        """For each column of factors or offsets that of slopes or intercepts."""
        return {column: column + self.slopes for column in (*self.bias_columns, *(b.column for b in self.blocks))}

    @property
    def out_blocks(self) -> int:
        return block_grid(self.layer.weight_shape, self.rows)[0]

    @property
    def source_blocks(self) -> int:
        return block_grid(self.layer.weight_shape, self.rows)[1]

    def backward(self) -> list[Block]:
        """The same blocks in BP order: by source block, then by tap mirrored, then by output block."""
        return sorted(self.blocks, key=lambda b: (b.source, -b.ky, -b.kx, b.out))

    def addresses(self, each: int = 0) -> dict[str, NDArray[np.int64]]:
        """The place ``column * rows + bank`` of each parameter's elements, -1 where dead; flat. Scalars have none.

        Places of one processing element come ``each`` behind those of the one before.
        """
        found: dict[str, NDArray[np.int64]] = {}
        if self.layer.norm is not None:
            return found
        if self.layer.weight is not None:
            numbers, places = weight_numbers(self.layer), self._places(each)
            there = numbers >= 0
            found[self.layer.weight] = np.full(int(there.sum()), -1, dtype=np.int64)
            found[self.layer.weight][numbers[there]] = places[there]
        if self.layer.bias is not None:
            outs = self.layer.weight_shape[0]
            columns = np.repeat(np.array(self.bias_columns, dtype=np.int64), self.rows)[:outs]
            block, row = np.divmod(np.arange(outs), self.rows)
            found[self.layer.bias] = block % self.elements * each + columns * self.rows + row
        return found

    def constant_places(self, each: int = 0) -> NDArray[np.int64]:
        """The places of a constant layer's weights, as :meth:`addresses`."""
        return self._places(each)[weight_numbers(self.layer) >= 0]

    def _places(self, each: int) -> NDArray[np.int64]:
        """The place of each weight (O, I, KH, KW), -1 in dead blocks."""
        rows, shape = self.rows, self.layer.weight_shape
        places = np.full((self.out_blocks * rows, self.source_blocks * rows, *shape[2:]), -1, dtype=np.int64)
        i, j = np.arange(rows)[:, None], np.arange(rows)[None, :]
        for block in self.blocks:
            place = np.where(j < block.columns, block.element * each + (block.column + j) * rows + (i + j) % rows, -1)
            places[block.out * rows: (block.out + 1) * rows, block.source * rows: (block.source + 1) * rows,
                   block.ky, block.kx] = place
        return places[: shape[0], : shape[1]]


def weight_numbers(layer: Layer) -> NDArray[np.int64]:
    """Which element of the parameter, flat, each weight (O, I, KH, KW) is; -1 between groups and dilated taps."""
    outs, ins, *kernel = layer.weight_shape
    taps = [(size - 1) // step + 1 for size, step in zip(kernel, layer.dilation, strict=True)]
    shape = (outs, ins // layer.groups, *taps)
    numbers = np.full(layer.weight_shape, -1, dtype=np.int64)
    numbers[:, :, :: layer.dilation[0], :: layer.dilation[1]] = ungrouped(
        np.arange(prod(shape)).reshape(shape), layer.groups, fill=-1)
    return numbers


def live_weights(layer: Layer, live: Live) -> NDArray[np.bool_]:
    """Which weights (O, I, KH, KW) of ``layer`` live; a constant always."""
    numbers = weight_numbers(layer)
    if layer.weight is None:
        return numbers >= 0
    return (numbers >= 0) & live[layer.weight].reshape(-1)[numbers]


def whole_blocks(layer: Layer, live: NDArray[np.bool_], rows: int) -> bool:
    """Whether the ``live`` weights of ``layer`` are whole ``rows × rows`` blocks of those that there are."""
    return bool((expand_blocks(live_blocks(live, rows), rows, live.shape) & (weight_numbers(layer) >= 0) == live).all())


def aligned_groups(layer: Layer, rows: int) -> bool:
    """Whether no block has weights of two groups, but for their own diagonal in a depthwise layer."""
    sizes = {size // layer.groups for size in layer.weight_shape[:2]}
    return layer.groups == 1 or layer.depthwise or all(size % rows == 0 for size in sizes)


def layer_blocks(layer: Layer, live: Live, rows: int, column: int, step: int = 1, *, elements: int = 1,
                 everywhere: bool = False) -> LayerBlocks:
    """Lay the live blocks of ``layer`` out from ``column`` on, each at a multiple of ``step`` from there.

    Each goes to one of the processing ``elements``: that which has the activations that it reads, or, where they are
    ``everywhere``, to all in turn.

    Raises FitError when the live set does not consist of whole ``rows × rows`` blocks.
    """
    alive = live_weights(layer, live)
    if not aligned_groups(layer, rows):
        raise FitError(f"The {layer.groups} groups of {layer.name!r} do not consist of whole blocks of {rows} "
                       f"channels: compile for a machine with fewer rows")
    if not whole_blocks(layer, alive, rows):
        raise FitError(f"The live weights of {layer.weight!r} are not whole {rows}×{rows} blocks: prune in blocks of "
                       f"{rows}, or compile for a machine with rows = 1")
    found: list[Block] = []
    bias_columns: list[int] = []
    ends = [column] * elements  # of the columns of each
    in_turn = everywhere and not layer.depthwise
    blocks_alive = live_blocks(alive, rows)
    for out in range(blocks_alive.shape[0]):
        if layer.bias is not None:
            bias_columns.append(ends[out % elements])
            ends[out % elements] += step
        for number, (ky, kx, source) in enumerate(_taps_then_sources(blocks_alive[out]), out + 1):
            element = (number if in_turn else source) % elements
            columns = min(rows, layer.weight_shape[1] - source * rows)
            found.append(Block(out=out, source=source, ky=ky, kx=kx, column=ends[element], columns=columns,
                               element=element))
            ends[element] += -(-columns // step) * step
    slopes = 0 if layer.norm is None else max(ends) - column
    return LayerBlocks(layer=layer, rows=rows, blocks=tuple(found), bias_columns=tuple(bias_columns),
                       columns=max(ends) + slopes, slopes=slopes, elements=elements)


def blocks_of(layers: tuple[Layer, ...], live: Live, rows: int, outside: Collection[int] = (), first: int = 0,
              step: int = 1, *, elements: int = 1) -> tuple[LayerBlocks, ...]:
    """The live blocks of each layer, laid out one behind the other; as :func:`layer_blocks`.

    All processing ``elements`` have the image.

    Those of the layers whose numbers are ``outside`` likewise, but from ``first`` on, at multiples of ``step`` from
    there.
    """
    ends, found = {False: 0, True: first}, []
    for k, layer in enumerate(layers):
        out = k in outside
        found.append(layer_blocks(layer, live, rows, ends[out], step if out else 1, elements=elements,
                                  everywhere=layer.x == layers[0].x))
        ends[out] = found[-1].columns
    return tuple(found)


def _taps_then_sources(alive: NDArray[np.bool_]) -> Iterator[tuple[int, int, int]]:
    for ky, kx, source in np.argwhere(alive.transpose(1, 2, 0)):
        yield int(ky), int(kx), int(source)
