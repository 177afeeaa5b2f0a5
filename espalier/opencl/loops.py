"""The loop of a kernel that is left when its tile is unrolled: what a high-level synthesis would make a pipeline of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """All iterations of a kernel's innermost loop, over all work-groups.

    Parameters
    ----------
    iterations : int
    products : int
        Multiplications of an iteration, side by side.
    loaded : int
        Bytes that an iteration reads.
    stored : int
        Bytes that the kernel writes, in all.
    sums : int
        That a work-group holds at a time.
    sum_type : str
        Of NumPy.
    distance : int
        Iterations until one adds to the same sum again; 0 where none does.
    in_memory : bool
        Sums are in memory, and not in registers.
    """

    iterations: int
    products: int
    loaded: int
    stored: int
    sums: int = 0
    sum_type: str = "float32"
    distance: int = 0
    in_memory: bool = False
