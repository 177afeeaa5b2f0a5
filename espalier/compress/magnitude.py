"""Magnitude pruning: the weights that matter least are those nearest to zero.

Works on ``rows × rows`` blocks (output block, input block, tap) of weights seen as convolutions
(O, I, KH, KW); ``rows = 1`` prunes single weights. Density is the fraction of weights that lie in live
blocks. Dead blocks stay dead. Ties keep the earlier block, so that results do not depend on the
machine. Biases are not pruned: do not pass them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from espalier.compress.erdos_renyi import erdos_renyi_densities
from espalier.compress.ranking import (
    Masks,
    all_live,
    check_density,
    check_rows,
    keep_layer,
    keep_network,
    mean_saliency,
    rank,
)
from espalier.errors import UnsupportedError
from espalier.numerics.live import expand_blocks, live_blocks


class Norm(Enum):
    """What the saliency of a block is."""

    L1 = "l1"  #: the mean magnitude of its weights
    L2 = "l2"  #: the mean square of its weights


class Scope(Enum):
    """What weights compete with each other."""

    LAYER = "layer"              #: those of one layer: every layer gets the same density
    ERDOS_RENYI = "erdos_renyi"  #: those of one layer: small layers stay denser than large ones (``erdos_renyi.py``)
    NETWORK = "network"          #: all

    def densities(self, shapes: Mapping[str, tuple[int, ...]], density: float) -> dict[str, float]:
        """The density of each layer that makes up ``density`` of all; where all compete, before they do."""
        if self is Scope.ERDOS_RENYI:
            return erdos_renyi_densities(shapes, density)
        return dict.fromkeys(shapes, density)


@dataclass(frozen=True, slots=True, kw_only=True)
class Magnitude:
    """Which weights live, given their values.

    Parameters
    ----------
    density : float
        Fraction of the network's weights that stay, in 0..1, above 0.
    rows : int
        Edge of a block, at least 1.
    scope : Scope
    norm : Norm
    exceptions : dict of float
        Layers (weights by name) with a density of their own, such as a first layer kept dense (1.0). The
        other layers are pruned harder so that ``density`` still holds for the whole network.
    """

    density: float
    rows: int = 1
    scope: Scope = Scope.LAYER
    norm: Norm = Norm.L1
    exceptions: dict[str, float] = field(default_factory=dict)
    kind: Literal["magnitude"] = "magnitude"  #: its name in recipes

    def __post_init__(self) -> None:
        for name, density in {"the network": self.density, **self.exceptions}.items():
            check_density(density, name)
        check_rows(self.rows)

    def __call__(self, weights: Mapping[str, NDArray], live: Mapping[str, NDArray[np.bool_]] | None = None,
                 progress: float = 1.0) -> Masks:
        """The live masks, of the weights' shapes.

        Parameters
        ----------
        weights : mapping of ndarray
            (O, I, KH, KW) by name, in real values (or all in words of one format).
        live : mapping of ndarray
            What lives now; by default everything.
        progress : float
            The part of the final sparsity that is due, 0..1 (see ``schedule.py``).

        Raises UnsupportedError where the exceptions name no layer, or hold more than the network may.
        """
        live = live or all_live(weights)
        sizes = {name: w.size for name, w in weights.items()}
        kept = self.layer_densities({name: w.shape for name, w in weights.items()}, progress)
        own = {name: rank(_saliency(w, self.rows, self.norm), live[name], self.rows) for name, w in weights.items()}
        if self.scope is not Scope.NETWORK:
            return {name: keep_layer(own[name], kept[name] * sizes[name]) for name in weights}
        others = [name for name in weights if name not in self.exceptions]
        budget = sum(kept[name] * sizes[name] for name in others)
        masks = {name: keep_layer(own[name], kept[name] * sizes[name]) for name in weights if name in self.exceptions}
        return {**masks, **keep_network({name: own[name] for name in others}, budget)}

    def layer_densities(self, shapes: Mapping[str, tuple[int, ...]], progress: float = 1.0) -> dict[str, float]:
        """The density of each layer: its own where it has one, else the one that makes up the network's."""
        sizes = {name: prod(shape) for name, shape in shapes.items()}
        unknown = sorted(set(self.exceptions) - set(sizes))
        if unknown:
            raise UnsupportedError(f"There is no layer {unknown[0]!r} to give a density of its own: the weights are "
                                   f"{', '.join(sizes)}")
        apart = sum(density * sizes[name] for name, density in self.exceptions.items())
        others = {name: shape for name, shape in shapes.items() if name not in self.exceptions}
        rest = self.density * sum(sizes.values()) - apart
        if others and rest <= 0:
            raise UnsupportedError(f"The layers with a density of their own hold {apart / sum(sizes.values()):.1%} of "
                                   f"the network's weights, and only {self.density:.1%} may stay: give them less")
        common = min(1.0, rest / sum(sizes[name] for name in others)) if others else 1.0
        final = {**self.scope.densities(others, common), **self.exceptions}
        return {name: 1.0 - progress * (1.0 - final[name]) for name in shapes}


def block_density(live: NDArray[np.bool_], rows: int) -> float:
    """The fraction of the weights (O, I, KH, KW) that lie in blocks with any live weight."""
    return float(expand_blocks(live_blocks(live, rows), rows, live.shape).mean())


def _saliency(weights: NDArray, rows: int, norm: Norm) -> NDArray[np.float64]:
    magnitude = np.abs(weights.astype(np.float64))
    return mean_saliency(magnitude if norm is Norm.L1 else magnitude ** 2, rows)
