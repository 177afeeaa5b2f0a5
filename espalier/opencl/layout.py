"""How a tensor lies in a buffer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from espalier.ir.types import MapShape

Halo = tuple[int, int, int, int]
NO_HALO: Halo = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Layout:
    """A map (C, H, W) as blocks of channels that lie side by side: (blocks, rows, columns, block).

    Around each block's map is a halo of zeros, which nobody writes: it is what padding reads. The channels that fill
    the last block up are zeros, too.

    Parameters
    ----------
    shape : (channels, height, width)
        A vector (C,) is a map (C, 1, 1).
    block : int
        Channels side by side.
    halo : (top, left, bottom, right)
        Rows and columns of zeros.
    """

    shape: MapShape
    block: int = 1
    halo: Halo = NO_HALO

    @property
    def blocks(self) -> int:
        return -(-self.shape[0] // self.block)

    @property
    def array_shape(self) -> tuple[int, int, int, int]:
        """(blocks, rows, columns, block), the halo included."""
        top, left, bottom, right = self.halo
        _, height, width = self.shape
        return self.blocks, top + height + bottom, left + width + right, self.block

    @property
    def elements(self) -> int:
        blocks, rows, columns, block = self.array_shape
        return blocks * rows * columns * block

    def pack(self, array: NDArray, dtype: DTypeLike) -> NDArray:
        """A tensor (C, H, W) or (C,) as it lies in the buffer."""
        channels, height, width = self.shape
        top, left, _, _ = self.halo
        found = np.zeros((self.blocks * self.block, *self.array_shape[1:3]), dtype=dtype)
        found[:channels, top: top + height, left: left + width] = array.reshape(self.shape)
        return np.ascontiguousarray(
            found.reshape(self.blocks, self.block, *found.shape[1:]).transpose(0, 2, 3, 1))

    def unpack(self, array: NDArray) -> NDArray:
        """The tensor (C, H, W) that lies in a buffer."""
        channels, height, width = self.shape
        top, left, _, _ = self.halo
        inside = array.reshape(self.array_shape)[:, top: top + height, left: left + width]
        return inside.transpose(0, 3, 1, 2).reshape(-1, height, width)[:channels]
