"""The live set: which weights exist."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def block_grid(shape: tuple[int, ...], rows: int) -> tuple[int, int, int, int]:
    """(output blocks, input blocks, KH, KW) of ``rows × rows`` blocks over a weight (O, I, KH, KW)."""
    return -(-shape[0] // rows), -(-shape[1] // rows), shape[2], shape[3]


def block_sums(weights: NDArray, rows: int) -> NDArray:
    """The sum over each ``rows × rows`` block (output block, input block, tap) of ``weights`` (O, I, KH, KW)."""
    blocks_o, blocks_i, height, width = block_grid(weights.shape, rows)
    padded = np.zeros((blocks_o * rows, blocks_i * rows, height, width), dtype=weights.dtype)
    padded[: weights.shape[0], : weights.shape[1]] = weights
    return padded.reshape(blocks_o, rows, blocks_i, rows, height, width).sum(axis=(1, 3))


def live_blocks(live: NDArray[np.bool_], rows: int) -> NDArray[np.bool_]:
    """The blocks that hold any live weight."""
    return block_sums(live.astype(np.int64), rows) > 0


def expand_blocks(blocks: NDArray[np.bool_], rows: int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The weights (O, I, KH, KW) that live when whole ``blocks`` live."""
    return blocks.repeat(rows, axis=0).repeat(rows, axis=1)[: shape[0], : shape[1]]
