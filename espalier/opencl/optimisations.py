"""What turns naive kernels into good ones, each to be had or left."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, fields


class Style(enum.Enum):
    """How layers share hardware."""

    FOLDED = "folded"        #: one after another, layers of a shape class on the same kernel
    PIPELINED = "pipelined"  #: each a kernel of its own, side by side, joined by channels where the device has them


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimisations:
    """Which optimisations a compilation makes (Chung and Abdelrahman, 2022, name most of them).

    Parameters
    ----------
    fusion : bool
        Rectifiers, sums and requantisation in the kernel of the layer that they follow, instead of their own.
    work_groups : bool
        One work-group for each tile of the result, which run side by side; otherwise one runs through all.
    cached_writes : bool
        Sums in registers, written once; otherwise each term goes through memory.
    vectorisation : bool
        ``vector`` channels side by side in memory, and as one vector in arithmetic.
    weight_layout : bool
        Weights in the order in which they are read; otherwise as the network has them, (O, I, KH, KW).
    tiling : bool
        Several results at a time, so that what is loaded serves several sums.
    unrolling : bool
        No loops in tiles, so that their sums have names, and registers.
    loop_invariants : bool
        What does not change in a loop computed, and loaded, before it.
    wide_words : bool
        Words that are only added up in float32 are kept as such, which saves a processor their conversion.
    queues : bool
        Kernels that do not wait for each other in queues of their own, side by side; otherwise all in one.
    folding : bool
        One kernel for all layers whose kernels differ in sizes alone, which become arguments.
    lists : bool
        Where few weights live, lists of those that do, and no time for the others; needs ``cached_writes``.
    vector : int
        Elements of a vector: 2, 4, 8 or 16.
    style : Style
    """

    fusion: bool = True
    work_groups: bool = True
    cached_writes: bool = True
    vectorisation: bool = True
    weight_layout: bool = True
    tiling: bool = True
    unrolling: bool = True
    loop_invariants: bool = True
    wide_words: bool = True
    queues: bool = True
    folding: bool = True
    lists: bool = True
    vector: int = 16
    style: Style = Style.FOLDED

    @classmethod
    def named(cls, names: frozenset[str], vector: int = 16, style: Style = Style.FOLDED) -> Optimisations:
        """Those, and no others."""
        return cls(vector=vector, style=style, **{name: name in names for name in NAMES})

    @property
    def tasks(self) -> bool:
        """Whether each layer is one work-item's."""
        return self.style is Style.PIPELINED

    @property
    def block(self) -> int:
        """Channels side by side in memory."""
        return self.vector if self.vectorisation else 1


NAMES = tuple(field.name for field in fields(Optimisations) if field.name not in ("vector", "style"))
ALL = Optimisations()
BASE = Optimisations.named(frozenset())


def ladder() -> Iterator[tuple[str, Optimisations]]:
    """``base``, then each optimisation added to those before it."""
    yield "base", BASE
    for count, name in enumerate(NAMES, 1):
        yield name, Optimisations.named(frozenset(NAMES[:count]))
