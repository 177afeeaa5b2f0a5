"""Counts of multiplications: what is useful, and what papers call nominal."""

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
    kernel, pad : (y, x)
        Taps, and the padding at the top left.
    """

    in_shape: tuple[int, int, int]
    out_shape: tuple[int, int, int]
    kernel: tuple[int, int]
    pad: tuple[int, int]

    def positions(self, ky: int, kx: int) -> int:
        """Output pixels at which tap (ky, kx) lies inside the source map."""
        count = 1
        for axis, tap in enumerate((ky, kx)):
            source, out, pad = self.in_shape[1 + axis], self.out_shape[1 + axis], self.pad[axis]
            first, last = max(0, pad - tap), min(out - 1, source - 1 + pad - tap)
            count *= max(0, last - first + 1)
        return count

    @property
    def nominal_macs(self) -> int:
        """Multiplications of one image with all weights live and border taps counted, as papers do."""
        return (self.out_shape[0] * self.out_shape[1] * self.out_shape[2] * self.in_shape[0]
                * self.kernel[0] * self.kernel[1])


def useful_macs(size: ConvolutionSize, live_taps: Iterable[tuple[int, int, int]]) -> int:
    """Useful multiplications of one image in one phase: a live weight, and a tap inside the image.

    ``live_taps`` are (ky, kx, number of live weights there). FP, BP and WU each do this many: every
    pair of source and result pixels that a live weight joins is one multiplication in each of them.
    """
    return sum(weights * size.positions(ky, kx) for ky, kx, weights in live_taps)
