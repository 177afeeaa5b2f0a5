"""Dynamic masks at constant cost: blocks with small weights die, dead blocks with large gradients come to life.

RigL: Evci et al., "Rigging the Lottery: Making All Tickets Winners" (ICML 2020). GraNet: Liu et al., "Sparse
Training via Boosting Pruning Plasticity with Neuroregeneration" (NeurIPS 2021). RigL exchanges in a network that is
sparse from the start, GraNet after each step of a gradual pruning. Both need, at the steps at which they act and only
then, the gradient of dead weights too. Blocks (ours; the papers have single weights) are judged by the mean magnitude
of their weights or gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, pi

import numpy as np
from numpy.typing import NDArray

from espalier.compress.ranking import Masks, check_rows, mean_saliency
from espalier.errors import UnsupportedError
from espalier.numerics.live import expand_blocks, live_blocks


@dataclass(frozen=True, slots=True)
class ExchangeSchedule:
    """When blocks are exchanged, and how many: a fraction that falls along a cosine to zero at the end.

    ``fraction / 2 · (1 + cos(pi · (t - start) / (end - start)))`` of the live blocks, as in RigL. Times are in
    epochs and need not be whole.

    Parameters
    ----------
    start, end : float
        The first exchange, and the time from which on the masks are fixed.
    fraction : float
        Of the live blocks of each layer, exchanged at the start; above 0, at most 1. RigL: 0.3, GraNet: 0.5.
    frequency : int
        How many times per epoch, at least 1. RigL exchanges every 100 steps.
    """

    start: float
    end: float
    fraction: float = 0.3
    frequency: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end < float("inf"):
            raise UnsupportedError(f"A schedule of exchanges starts at 0 or later and ends after it starts, not "
                                   f"{self.start}..{self.end} epochs")
        if not 0 < self.fraction <= 1:
            raise UnsupportedError(f"The fraction of blocks that is exchanged is above 0 and at most 1, not "
                                   f"{self.fraction}")
        if self.frequency < 1:
            raise UnsupportedError(f"Blocks are exchanged at least once per epoch, not {self.frequency} times")

    def fraction_at(self, time: float) -> float:
        """The fraction of live blocks to exchange at ``time`` (in epochs)."""
        if not self.start <= time < self.end:
            return 0.0
        return self.fraction / 2 * (1 + cos(pi * (time - self.start) / (self.end - self.start)))

    def due_steps(self, steps_per_epoch: int) -> dict[int, float]:
        """The steps (counted from 0 over all epochs) before which to exchange, and the time of each."""
        first, last = round(self.start * steps_per_epoch), round(self.end * steps_per_epoch)
        every = max(1, steps_per_epoch // self.frequency)
        return {step: step / steps_per_epoch for step in range(first, last, every)}


def exchange(weights: Mapping[str, NDArray], gradients: Mapping[str, NDArray],
             live: Mapping[str, NDArray[np.bool_]], fraction: float, rows: int = 1) -> Masks:
    """The live masks after an exchange: in each layer as many blocks come to life as die.

    ``floor(fraction · live blocks)`` blocks die in each layer, the smallest first, but no more than there are dead
    ones to replace them. The newborn are those dead blocks whose gradient is largest. They start at zero, which
    dead weights are anyway. A block that dies is no candidate to be born at once (in RigL it is, from zero).

    Parameters
    ----------
    weights, gradients : mapping of ndarray
        (O, I, KH, KW) by name, the gradients of dead weights included, each in any unit.
    live : mapping of ndarray
        What lives now. A block lives if any of its weights does.
    fraction : float
        Of each layer's live blocks, 0..1.
    rows : int
        Edge of a block.
    """
    check_rows(rows)
    return {name: _exchanged(w, gradients[name], live[name], fraction, rows) for name, w in weights.items()}


def _exchanged(weights: NDArray, gradients: NDArray, live: NDArray[np.bool_], fraction: float, rows: int
               ) -> NDArray[np.bool_]:
    blocks = live_blocks(live, rows)
    alive, dead = np.flatnonzero(blocks), np.flatnonzero(~blocks)
    count = min(int(fraction * len(alive)), len(dead))
    kept = _largest(mean_saliency(np.abs(weights * live), rows).reshape(-1), alive, len(alive) - count)
    born = _largest(mean_saliency(np.abs(gradients), rows).reshape(-1), dead, count)
    after = np.zeros(blocks.size, dtype=np.bool_)
    after[kept] = after[born] = True
    return expand_blocks(after.reshape(blocks.shape), rows, live.shape)


def _largest(saliency: NDArray[np.float64], among: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The ``count`` most salient blocks ``among`` those; of equal ones the earlier."""
    return among[np.argsort(-saliency[among], kind="stable")[:count]]
