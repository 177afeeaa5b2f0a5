"""The sliding window that convolution and pooling share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from espalier.errors import GraphError


@dataclass(frozen=True, slots=True)
class Window:
    """Kernel, stride, padding and dilation of a two-dimensional sliding window.

    Parameters
    ----------
    kernel : (height, width)
    stride : (y, x)
    pad : (top, left, bottom, right)
        Rows and columns of zeros (of the lowest value, in max pooling) around the input.
    dilation : (y, x)
    """

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if min(self.kernel) < 1 or min(self.stride) < 1 or min(self.dilation) < 1 or min(self.pad) < 0:
            raise GraphError(f"Kernel, stride and dilation must be at least 1 and padding at least 0, not {self}")

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """Output height and width for an input of ``height`` × ``width``. Raises GraphError if empty."""
        top, left, bottom, right = self.pad
        out_y = (height + top + bottom - self.dilation[0] * (self.kernel[0] - 1) - 1) // self.stride[0] + 1
        out_x = (width + left + right - self.dilation[1] * (self.kernel[1] - 1) - 1) // self.stride[1] + 1
        if out_y < 1 or out_x < 1:
            raise GraphError(f"A {self.kernel[0]}×{self.kernel[1]} window (dilation {self.dilation}) does not fit "
                             f"in a {height}×{width} input with padding {self.pad}")
        return out_y, out_x

    def padded(self, x: NDArray, fill: int | float = 0) -> NDArray:
        """``x`` (N, C, H, W) with its padding around it."""
        top, left, bottom, right = self.pad
        return np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)

    def tap(self, padded: NDArray, ky: int, kx: int, out_y: int, out_x: int) -> NDArray:
        """The view (N, C, out_y, out_x) of ``padded`` that kernel position (ky, kx) sees."""
        y0, x0 = ky * self.dilation[0], kx * self.dilation[1]
        return padded[:, :, y0: y0 + self.stride[0] * (out_y - 1) + 1: self.stride[0],
                      x0: x0 + self.stride[1] * (out_x - 1) + 1: self.stride[1]]

    def cropped(self, padded: NDArray, height: int, width: int) -> NDArray:
        """The inverse of :meth:`padded`: the (N, C, height, width) inside."""
        return padded[:, :, self.pad[0]: self.pad[0] + height, self.pad[1]: self.pad[1] + width]
