"""The one rounding of the engine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from espalier.errors import FormatError


@dataclass(frozen=True, slots=True, kw_only=True)
class Requantize:
    """Narrow an accumulator to ``out_bits``: divide by ``2**shift``, round half up, saturate.

    Calling this object *defines* the operation. The interpreter, the training path and the
    gateware are each tested equal to it, bit for bit.
    """

    acc_bits: int
    out_bits: int
    shift: int

    def __post_init__(self) -> None:
        if not 1 <= self.out_bits <= self.acc_bits:
            raise FormatError(f"Output width must be in 1..{self.acc_bits} (the accumulator "
                              f"width), not {self.out_bits}")
        if not 0 <= self.shift < self.acc_bits:
            raise FormatError(f"Shift must be in 0..{self.acc_bits - 1}, not {self.shift}")

    @property
    def out_range(self) -> tuple[int, int]:
        """The smallest and the largest output word."""
        return -(1 << self.out_bits - 1), (1 << self.out_bits - 1) - 1

    def __call__(self, acc: NDArray[np.int64]) -> NDArray[np.int64]:
        half = (1 << self.shift) >> 1
        return np.clip((acc + half) >> self.shift, *self.out_range)
