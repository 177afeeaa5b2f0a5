"""Index lists of one layer: which blocks live, in the order in which each phase walks them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from espalier.compiler.legalise import Layer
from espalier.errors import FitError
from espalier.numerics.live import block_grid, expand_blocks, live_blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A live block: output block, input block, tap, and the first of its columns in the weight banks."""

    out: int
    source: int
    ky: int
    kx: int
    column: int
    columns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerBlocks:
    """The live blocks of a layer in FP order, its bias columns, and the columns it takes in all.

    ``bias_columns[o]`` is the column of the biases of output block ``o``.
    """

    layer: Layer
    rows: int
    blocks: tuple[Block, ...]
    bias_columns: tuple[int, ...]
    columns: int

    @property
    def out_blocks(self) -> int:
        return block_grid(self.layer.weight_shape, self.rows)[0]

    @property
    def source_blocks(self) -> int:
        return block_grid(self.layer.weight_shape, self.rows)[1]

    def backward(self) -> list[Block]:
        """The same blocks in BP order: by source block, then by tap mirrored, then by output block."""
        return sorted(self.blocks, key=lambda b: (b.source, -b.ky, -b.kx, b.out))

    def addresses(self) -> dict[str, NDArray[np.int64]]:
        """The place ``column * rows + bank`` of each weight, -1 where dead; (O, I, KH, KW) and (O,)."""
        rows, shape = self.rows, self.layer.weight_shape
        places = np.full((self.out_blocks * rows, self.source_blocks * rows, *shape[2:]), -1, dtype=np.int64)
        i, j = np.arange(rows)[:, None], np.arange(rows)[None, :]
        for block in self.blocks:
            place = np.where(j < block.columns, (block.column + j) * rows + (i + j) % rows, -1)
            places[block.out * rows: (block.out + 1) * rows, block.source * rows: (block.source + 1) * rows,
                   block.ky, block.kx] = place
        found = {self.layer.weight: places[: shape[0], : shape[1]]}
        if self.layer.bias is not None:
            columns = np.repeat(np.array(self.bias_columns, dtype=np.int64), rows)[: shape[0]]
            found[self.layer.bias] = columns * rows + np.arange(shape[0]) % rows
        return found


def layer_blocks(layer: Layer, live: NDArray[np.bool_], rows: int, column: int) -> LayerBlocks:
    """Lay the live blocks of ``layer`` out from ``column`` on.

    Raises FitError when the live set does not consist of whole ``rows × rows`` blocks.
    """
    live = live.reshape(layer.weight_shape)
    blocks_alive = live_blocks(live, rows)
    if (expand_blocks(blocks_alive, rows, layer.weight_shape) != live).any():
        raise FitError(f"The live weights of {layer.weight!r} are not whole {rows}×{rows} blocks: prune in blocks of "
                       f"{rows}, or compile for a machine with rows = 1")
    found: list[Block] = []
    bias_columns: list[int] = []
    for out in range(blocks_alive.shape[0]):
        if layer.bias is not None:
            bias_columns.append(column)
            column += 1
        for ky, kx, source in _taps_then_sources(blocks_alive[out]):
            columns = min(rows, layer.weight_shape[1] - source * rows)
            found.append(Block(out=out, source=source, ky=ky, kx=kx, column=column, columns=columns))
            column += columns
    return LayerBlocks(layer=layer, rows=rows, blocks=tuple(found), bias_columns=tuple(bias_columns),
                       columns=column)


def _taps_then_sources(alive: NDArray[np.bool_]) -> Iterator[tuple[int, int, int]]:
    for ky, kx, source in np.argwhere(alive.transpose(1, 2, 0)):
        yield int(ky), int(kx), int(source)
