"""Counts of useful multiplications."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvolutionSize:
    """A convolution as the engine runs it.

    Parameters
    ----------
    in_shape, out_shape : (channels, height, width)
        Of the source map and of the convolution's result.
    kernel, pad, stride : (y, x)
        Taps, the padding at the top left, and the stride.
    """

    in_shape: tuple[int, int, int]
    out_shape: tuple[int, int, int]
    kernel: tuple[int, int]
    pad: tuple[int, int]
    stride: tuple[int, int] = (1, 1)

    def positions(self, ky: int, kx: int) -> int:
        """Output pixels at which tap (ky, kx) lies inside the source map."""
        count = 1
        for axis, tap in enumerate((ky, kx)):
            source, out, pad, stride = (self.in_shape[1 + axis], self.out_shape[1 + axis], self.pad[axis],
                                        self.stride[axis])
            first, last = max(0, -((tap - pad) // stride)), min(out - 1, (source - 1 + pad - tap) // stride)
            count *= max(0, last - first + 1)
        return count


def useful_macs(size: ConvolutionSize, live_taps: Iterable[tuple[int, int, int]]) -> int:
    """Useful multiplications of one image in one phase: a live weight, and a tap inside the image.

    ``live_taps`` are (ky, kx, number of live weights there). FP, BP and WU each do this many: every
    pair of source and result pixels that a live weight joins is one multiplication in each of them.
    """
    return sum(weights * size.positions(ky, kx) for ky, kx, weights in live_taps)
