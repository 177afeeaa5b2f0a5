"""Hard block pruning balanced over the lattice's rows: every output block keeps equally many live blocks.

In the spirit of Li et al. (FCCM 2017; see ``group_lasso.py``), whose distributed processing elements each own a part
of the outputs; the formula is ours. The engine works through one output block at a time, so with equal counts every
output tile takes equally many cycles in FP (but for taps on padding), and WU as long for every block of gradients.
BP goes by input blocks, which this does not balance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from espalier.compress.ranking import Masks, all_live, check_density, check_rows, mean_saliency
from espalier.numerics.live import expand_blocks, live_blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Balanced:
    """Which weights live, given their values, equally many blocks in each output block of a layer.

    Parameters
    ----------
    density : float
        Fraction of each layer's blocks that stay, above 0, at most 1.
    rows : int
        Edge of a block, at least 1.
    """

    density: float
    rows: int = 1
    kind: Literal["balanced"] = "balanced"  #: its name in recipes

    def __post_init__(self) -> None:
        check_density(self.density)
        check_rows(self.rows)

    def __call__(self, weights: Mapping[str, NDArray], live: Mapping[str, NDArray[np.bool_]] | None = None,
                 progress: float = 1.0) -> Masks:
        """The live masks, of the weights' shapes. Dead blocks stay dead, even where that unbalances.

        The layer keeps ``density`` of its blocks, rounded to the nearest but one at least. Output blocks that hold
        one more than the others are those whose next block has the largest mean magnitude.

        Parameters
        ----------
        weights : mapping of ndarray
            (O, I, KH, KW) by name.
        live : mapping of ndarray
            What lives now; by default everything.
        progress : float
            The part of the final sparsity that is due, 0..1 (see ``schedule.py``).
        """
        live = live or all_live(weights)
        due = 1.0 - progress * (1.0 - self.density)
        return {name: _balanced(w, live[name], due, self.rows) for name, w in weights.items()}


def _balanced(weights: NDArray, live: NDArray[np.bool_], density: float, rows: int) -> NDArray[np.bool_]:
    blocks = live_blocks(live, rows)
    saliency = np.where(blocks, mean_saliency(np.abs(weights), rows), -1.0).reshape(len(blocks), -1)
    order = np.argsort(-saliency, axis=1, kind="stable")
    ranked = np.take_along_axis(saliency, order, axis=1)
    quota = _quotas(ranked, max(1, round(density * saliency.size)))
    fits = (np.arange(saliency.shape[1]) < quota[:, np.newaxis]) & (ranked >= 0)
    chosen = np.zeros(saliency.shape, dtype=np.bool_)
    np.put_along_axis(chosen, order, fits, axis=1)
    return expand_blocks(chosen.reshape(blocks.shape), rows, weights.shape)


def _quotas(ranked: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """How many blocks each output block keeps of ``total``, given its saliencies in falling order."""
    each, more = divmod(total, len(ranked))
    quota = np.full(len(ranked), each, dtype=np.int64)
    if more:
        quota[np.argsort(-ranked[:, each], kind="stable")[:more]] += 1
    return quota
