"""Layer-adaptive magnitude pruning: one score for all layers, so that each finds its own density.

Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning" (ICLR 2021). The score of a weight is its
square over the sum of the squares of all weights of its layer that are no smaller: the part of the layer's
remaining energy that goes if it dies next. Scores of different layers compare, magnitudes do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from espalier.compress.ranking import (
    Masks,
    all_live,
    block_counts,
    check_density,
    check_rows,
    keep_network,
    mean_saliency,
    rank,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lamp:
    """Which weights live, by layer-adaptive magnitude, network-wide.

    Parameters
    ----------
    density : float
        Fraction of the network's weights that stay, above 0, at most 1.
    rows : int
        Edge of a block, at least 1.
    """

    density: float
    rows: int = 1
    kind: Literal["lamp"] = "lamp"  #: its name in recipes

    def __post_init__(self) -> None:
        check_density(self.density)
        check_rows(self.rows)

    def __call__(self, weights: Mapping[str, NDArray], live: Mapping[str, NDArray[np.bool_]] | None = None,
                 progress: float = 1.0) -> Masks:
        """The live masks, of the weights' shapes. Dead blocks stay dead.

        Parameters
        ----------
        weights : mapping of ndarray
            (O, I, KH, KW) by name, each layer in any unit of its own.
        live : mapping of ndarray
            What lives now; by default everything.
        progress : float
            The part of the final sparsity that is due, 0..1 (see ``schedule.py``).
        """
        live = live or all_live(weights)
        due = 1.0 - progress * (1.0 - self.density)
        layers = {name: rank(lamp_scores(w * live[name], self.rows), live[name], self.rows)
                  for name, w in weights.items()}
        return keep_network(layers, due * sum(w.size for w in weights.values()))


def lamp_scores(weights: NDArray, rows: int = 1) -> NDArray[np.float64]:
    """The score of each block (output block, input block, tap) of a layer (O, I, KH, KW): 0..1.

    For blocks (ours; the paper has single weights): the mean square of the block over the sum of the squares of
    all weights in blocks of no smaller mean square. Of equal blocks the later has the smaller score.
    """
    energy = mean_saliency(weights.astype(np.float64) ** 2, rows)
    order = np.argsort(-energy, axis=None, kind="stable")
    ranked = energy.reshape(-1)[order]
    remaining = np.cumsum(ranked * block_counts(weights.shape, rows).reshape(-1)[order])
    scores = np.zeros(energy.size)
    scores[order] = np.divide(ranked, remaining, out=np.zeros(energy.size), where=remaining > 0)
    return scores.reshape(energy.shape)
