"""Sparsity that the lattice likes, learnt in training: the group lasso over the engine's blocks.

After Wen et al., "Learning Structured Sparsity in Deep Neural Networks" (NeurIPS 2016), and Li et al., "An FPGA Design
Framework for CNN Sparsification and Acceleration" (FCCM 2017): the norms of groups of weights that the hardware
fetches together are added to the loss, until groups vanish as a whole. Here the groups are ``rows × rows`` blocks,
and the term acts through its proximal operator after each step of SGD (Yuan and Lin, 2006), so that blocks
become exactly zero. Each norm is weighted by the square root of the block's number of weights, so that one strength
means the same at every block size and at the edge of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from espalier.compress.ranking import block_counts, check_rows
from espalier.errors import UnsupportedError
from espalier.numerics.live import block_grid, block_sums


@dataclass(frozen=True, slots=True)
class GroupLasso:
    """When blocks shrink in training, and how strongly.

    Parameters
    ----------
    weight : float
        Of the term beside the loss, above 0.
    start, end : float
        In epochs; they need not be whole.
    frequency : int
        How many times per epoch, at least 1: steps in between are made up for at once.
    """

    weight: float
    start: float
    end: float
    frequency: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise UnsupportedError(f"The weight of a group lasso is above 0, not {self.weight}")
        if not 0 <= self.start < self.end < float("inf") or self.frequency < 1:
            raise UnsupportedError(f"A group lasso starts at 0 or later, ends after it starts and acts once or more an "
                                   f"epoch, not {self.frequency} times in {self.start}..{self.end} epochs")

    def due_steps(self, steps_per_epoch: int) -> dict[int, float]:
        """The steps (counted from 0 over all epochs) before which blocks shrink.

        With each, what makes a strength for :func:`shrink` of a learning rate: the weight times the steps since.
        """
        first, last = round(self.start * steps_per_epoch), round(self.end * steps_per_epoch)
        every = max(1, steps_per_epoch // self.frequency)
        return {step: self.weight * every for step in range(first + every, last + 1, every)}


def penalty(weights: NDArray, rows: int = 1) -> float:
    """The term itself: the sum over the blocks of sqrt(number of weights) times their L2 norm."""
    norms = np.sqrt(block_sums(weights.astype(np.float64) ** 2, rows))
    return float((np.sqrt(block_counts(weights.shape, rows)) * norms).sum())


def shrink(weights: NDArray, strength: float, rows: int = 1) -> NDArray[np.float64]:
    """The weights (O, I, KH, KW) with every block's root mean square smaller by ``strength``, or zero.

    The proximal operator of ``strength · penalty``: of all ``v`` it minimises ``|v - w|²/2 + strength · penalty(v)``.
    A block dies exactly when the root mean square of its weights is at most ``strength``; directions are kept. For
    single weights it is the soft threshold. After a step of SGD give the learning rate times the lasso's weight.

    Raises UnsupportedError where ``strength`` is negative or ``rows`` below 1.
    """
    check_rows(rows)
    if not strength >= 0:
        raise UnsupportedError(f"The strength of a group lasso is at least 0, not {strength}")
    real = weights.astype(np.float64)
    size = np.sqrt(block_sums(real ** 2, rows) / block_counts(real.shape, rows))
    part = np.divide(size - strength, size, out=np.zeros(block_grid(real.shape, rows)), where=size > strength)
    wide = part.repeat(rows, axis=0).repeat(rows, axis=1)[: real.shape[0], : real.shape[1]]
    shrunk: NDArray[np.float64] = np.where(wide > 0, real * wide, 0.0)
    return shrunk
