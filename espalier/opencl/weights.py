"""Weights in the order in which kernels read them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def dense(weights: NDArray, in_block: int, out_block: int, *, packed: bool) -> NDArray:
    """Weights (O, I, KH, KW), channels filled up with zeros to whole blocks.

    ``packed``: (O blocks, I blocks, KH, KW, block of I, block of O), else (O, I, KH, KW).
    """
    found = _filled(_filled(weights, 0, out_block), 1, in_block)
    if not packed:
        return found
    outs, ins, ky, kx = found.shape
    split = found.reshape(outs // out_block, out_block, ins // in_block, in_block, ky, kx)
    return np.ascontiguousarray(split.transpose(0, 2, 4, 5, 3, 1))


def depthwise(weights: NDArray, block: int) -> NDArray:
    """Weights (C, 1, KH, KW) as (blocks, KH, KW, block)."""
    found = _filled(weights[:, 0], 0, block)
    return np.ascontiguousarray(found.reshape(-1, block, *found.shape[1:]).transpose(0, 2, 3, 1))


def bias(array: NDArray, block: int) -> NDArray:
    """A bias (O,), filled up to whole blocks."""
    return _filled(array, 0, block)


def _filled(array: NDArray, axis: int, block: int) -> NDArray:
    missing = -array.shape[axis] % block
    return np.pad(array, [(0, missing if k == axis else 0) for k in range(array.ndim)])
