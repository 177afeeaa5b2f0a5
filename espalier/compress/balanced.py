"""Hard block pruning balanced over the lattice's rows: every output block keeps equally many live blocks.

In the spirit of Li et al. (FCCM 2017; see ``group_lasso.py``), whose distributed processing elements each own a part
of the network; the formulas are ours. The engine works through one output block at a time, so with equal counts every
output tile takes equally many cycles in FP (but for taps on padding), and WU as long for every block of gradients.
BP goes by input blocks, which this does not balance.

Of several processing elements, number ``e`` has the input blocks ``e``, ``e + elements`` and so on, and all are as slow
as the slowest: in FP at an output block, in BP at as many input blocks as there are elements, in WU at the layer. So
each gets equally many blocks of every output block, and of its input blocks equally many each, as far as that goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from espalier.compress.ranking import Masks, all_live, check_density, check_rows, mean_saliency
from espalier.errors import UnsupportedError
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
    elements : int
        Processing elements of the machine that the network is for, at least 1.
    """

    density: float
    rows: int = 1
    elements: int = 1
    kind: Literal["balanced"] = "balanced"  #: its name in recipes

    def __post_init__(self) -> None:
        check_density(self.density)
        check_rows(self.rows)
        if self.elements < 1:
            raise UnsupportedError(f"A network is for at least one processing element, not {self.elements}")

    def __call__(self, weights: Mapping[str, NDArray], live: Mapping[str, NDArray[np.bool_]] | None = None,
                 progress: float = 1.0) -> Masks:
        """The live masks, of the weights' shapes. Dead blocks stay dead, even where that unbalances.

        The layer keeps ``density`` of its blocks, rounded to the nearest number that processing elements can share, but
        one of each at least. Output blocks that hold one more than the others are those whose next block has the
        largest mean magnitude.

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
        return {name: _balanced(w, live[name], due, self.rows, self.elements) for name, w in weights.items()}


def _balanced(weights: NDArray, live: NDArray[np.bool_], density: float, rows: int, elements: int
              ) -> NDArray[np.bool_]:
    blocks = live_blocks(live, rows)
    saliency = np.where(blocks, mean_saliency(np.abs(weights), rows), -1.0)
    elements = min(elements, saliency.shape[1])  # one input block is no more than one element's
    parts = [saliency[:, element:: elements].reshape(len(blocks), -1) for element in range(elements)]
    ranked = [-np.sort(-part, axis=1) for part in parts]
    shortest = min(part.shape[1] for part in parts)
    together = np.sum([part[:, :shortest] for part in ranked], axis=0)
    quota = _quotas(together, min(max(1, round(density * saliency.size / elements)), together.size))
    chosen = np.zeros(saliency.shape, dtype=np.bool_)
    for element, part in enumerate(parts):
        own = chosen[:, element:: elements]
        own[:] = (_best(part, quota) if elements == 1 else _even(part, quota, own.shape[1])).reshape(own.shape)
    return expand_blocks(chosen, rows, weights.shape)


def _best(saliency: NDArray[np.float64], quota: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Of each row so many, the most salient; none of those below zero."""
    order = np.argsort(-saliency, axis=1, kind="stable")
    fits = np.arange(saliency.shape[1]) < quota[:, np.newaxis]
    chosen = np.zeros(saliency.shape, dtype=np.bool_)
    np.put_along_axis(chosen, order, fits & (np.take_along_axis(saliency, order, axis=1) >= 0), axis=1)
    return chosen


def _even(saliency: NDArray[np.float64], quota: NDArray[np.int64], sources: int) -> NDArray[np.bool_]:
    """As :func:`_best`, and of each source, whose columns are neighbours, equally many: the most salient first, as long
    as row and source have room; what rows lack then is taken wherever it is."""
    outs, taps = len(saliency), saliency.shape[1] // sources
    rows = np.minimum(quota, (saliency >= 0).sum(axis=1))
    each, more = divmod(int(rows.sum()), sources)
    columns = np.full(sources, each)
    columns[np.argsort(-saliency.reshape(outs, sources, taps).sum(axis=(0, 2)), kind="stable")[:more]] += 1
    row_room, column_room, taken = rows.tolist(), columns.tolist(), np.zeros(saliency.size, dtype=np.bool_)
    order = np.argsort(-saliency, axis=None, kind="stable")[: int((saliency >= 0).sum())]
    for place, row, source in zip(order.tolist(), (order // saliency.shape[1]).tolist(),
                                  (order % saliency.shape[1] // taps).tolist(), strict=True):
        if row_room[row] and column_room[source]:
            row_room[row] -= 1
            column_room[source] -= 1
            taken[place] = True
    chosen = taken.reshape(saliency.shape)
    return chosen | _best(np.where(chosen, -1.0, saliency), np.array(row_room))


def _quotas(ranked: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """How many blocks each output block keeps of ``total``, given its saliencies in falling order."""
    each, more = divmod(total, len(ranked))
    quota = np.full(len(ranked), each, dtype=np.int64)
    if more:
        quota[np.argsort(-ranked[:, each], kind="stable")[:more]] += 1
    return quota
