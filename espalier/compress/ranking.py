"""Blocks of weights in the order of their saliency, and the live masks that keep the first of them.

Every method that ranks is a saliency (a number for each block) and one of these two ways of keeping: so many
weights of a layer, or so many of several layers that compete. Dead blocks stay dead. Ties keep the earlier
block, so that results do not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from espalier.errors import UnsupportedError
from espalier.numerics.live import block_sums, expand_blocks, live_blocks

Masks = dict[str, NDArray[np.bool_]]


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """The blocks of one layer: saliency (below zero: dead) and number of real weights of each, flat.

    Blocks at the edge of a layer may hold fewer than ``rows²`` real weights.
    """

    shape: tuple[int, ...]
    grid: tuple[int, ...]
    rows: int
    saliency: NDArray[np.float64]
    count: NDArray[np.int64]

    def mask(self, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The weights (O, I, KH, KW) that live when the ``chosen`` blocks (flat) live."""
        return expand_blocks(chosen.reshape(self.grid), self.rows, self.shape)


def block_counts(shape: tuple[int, ...], rows: int) -> NDArray[np.int64]:
    """The number of real weights in each block of a layer (O, I, KH, KW)."""
    return block_sums(np.ones(shape, dtype=np.int64), rows)


def mean_saliency(values: NDArray, rows: int) -> NDArray[np.float64]:
    """The mean over each block of ``values`` (O, I, KH, KW), padding not counted: (output block, input block, tap)."""
    means: NDArray[np.float64] = block_sums(values.astype(np.float64), rows) / block_counts(values.shape, rows)
    return means


def rank(saliency: NDArray[np.float64], live: NDArray[np.bool_], rows: int) -> Ranked:
    """The blocks of a layer with live mask ``live`` (O, I, KH, KW) by ``saliency`` of the block grid, at least 0."""
    ranked = np.where(live_blocks(live, rows), saliency, -1.0)
    return Ranked(live.shape, saliency.shape, rows, ranked.reshape(-1), block_counts(live.shape, rows).reshape(-1))


def keep_layer(ranked: Ranked, budget: float) -> NDArray[np.bool_]:
    """The live mask of the most salient blocks of a layer that together hold ``budget`` weights at most.

    Of a layer that lives at least one block does: it never dies as a whole, or nothing after it would learn.
    """
    chosen = _best(ranked.saliency, ranked.count, budget)
    chosen[_first(ranked)] = True
    return ranked.mask(chosen)


def keep_network(layers: Mapping[str, Ranked], budget: float) -> Masks:
    """The live masks of the most salient blocks of several layers that together hold ``budget`` weights at most.

    Of each layer that lives at least one block does.
    """
    if not layers:
        return {}
    saliency = np.concatenate([ranked.saliency for ranked in layers.values()])
    starts = np.cumsum([0, *(len(ranked.saliency) for ranked in layers.values())])
    firsts = np.concatenate([start + _first(ranked) for start, ranked in zip(starts, layers.values(), strict=False)])
    saliency[firsts] = np.inf
    chosen = _best(saliency, np.concatenate([ranked.count for ranked in layers.values()]), budget)
    chosen[firsts] = True
    parts = np.split(chosen, starts[1:-1])
    return {name: ranked.mask(part) for (name, ranked), part in zip(layers.items(), parts, strict=True)}


def all_live(weights: Mapping[str, NDArray]) -> Masks:
    """The live masks of a dense network."""
    return {name: np.ones(w.shape, dtype=np.bool_) for name, w in weights.items()}


def check_density(density: float, whose: str = "the network") -> None:
    """Raise UnsupportedError unless ``density`` is one."""
    if not 0 < density <= 1:
        raise UnsupportedError(f"A density is above 0 and at most 1, and that of {whose} is {density}")


def check_rows(rows: int) -> None:
    """Raise UnsupportedError unless blocks can have edge ``rows``."""
    if rows < 1:
        raise UnsupportedError(f"The edge of a block is at least 1, not {rows}")


def _best(saliency: NDArray[np.float64], count: NDArray[np.int64], budget: float) -> NDArray[np.bool_]:
    """The most salient living blocks whose weights fit the budget (to half a weight)."""
    if (count == count[0]).all():
        return _largest(saliency, int((budget + 0.5) // count[0]))
    order = np.argsort(-saliency, kind="stable")
    fits = (np.cumsum(count[order]) <= budget + 0.5) & (saliency[order] >= 0)
    chosen = np.zeros(len(order), dtype=np.bool_)
    chosen[order[fits]] = True
    return chosen


def _largest(saliency: NDArray[np.float64], number: int) -> NDArray[np.bool_]:
    """The ``number`` most salient living blocks, found without sorting."""
    number = min(number, int((saliency >= 0).sum()))
    if number < 1:
        return np.zeros(len(saliency), dtype=np.bool_)
    least = np.partition(saliency, -number)[-number]
    chosen: NDArray[np.bool_] = saliency > least
    chosen[np.flatnonzero(saliency == least)[: number - int(chosen.sum())]] = True
    return chosen


def _first(ranked: Ranked) -> NDArray[np.int64]:
    """The index of the most salient living block, if any lives."""
    first = int(np.argmax(ranked.saliency))
    return np.array([first] if ranked.saliency[first] >= 0 else [], dtype=np.int64)
