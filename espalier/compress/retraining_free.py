"""Pruning a trained network as it is loaded, without training it again: three rules, and the choice among them.

The rules of Ashouri, Abdelrahman and Dos Remedios, "Fast On-the-fly Retraining-free Sparsification of CNNs"
(arXiv 1811.04199). Each gives every layer a threshold, below which weights die; their formulas are not in the
text that is available and are ours here. The scale of the thresholds follows from the density asked for, so
that rules can be compared at equal density. Biases are not pruned: do not pass them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from espalier.compress.magnitude import Magnitude, Scope
from espalier.compress.ranking import Masks, all_live
from espalier.errors import UnsupportedError

FIRST_THRESHOLD = 0.1  #: of the triangular rule: the first layer's threshold over the last one's


class Rule(Enum):
    """How the threshold of a layer follows from its place and its weights."""

    FLAT = "flat"              #: one threshold for all layers
    TRIANGULAR = "triangular"  #: rising evenly from the first layer to the last
    RELATIVE = "relative"      #: the same percentile of every layer's magnitudes


@dataclass(frozen=True, slots=True, eq=False)
class Pruned:
    """What a search found.

    Parameters
    ----------
    rule : Rule
    density : float
        Fraction of the weights that live.
    accuracy : float
        Of the pruned network.
    live : dict of ndarray
        The live masks.
    """

    rule: Rule
    density: float
    accuracy: float
    live: Masks


def live_weights(rule: Rule, weights: Mapping[str, NDArray], density: float, rows: int = 1) -> Masks:
    """The live masks of ``rule`` at ``density``.

    Parameters
    ----------
    weights : mapping of ndarray
        (O, I, KH, KW) by name, in real values, the first layer first.
    density : float
        Fraction of all weights that stay, above 0, at most 1.
    rows : int
        Edge of a block: a block lives by the mean magnitude of its weights.
    """
    match rule:
        case Rule.FLAT:
            return Magnitude(density=density, rows=rows, scope=Scope.NETWORK)(weights)
        case Rule.TRIANGULAR:
            thresholds = np.linspace(FIRST_THRESHOLD, 1.0, len(weights))
            scaled = {name: w / threshold for (name, w), threshold in zip(weights.items(), thresholds, strict=True)}
            return Magnitude(density=density, rows=rows, scope=Scope.NETWORK)(scaled)
        case Rule.RELATIVE:
            return Magnitude(density=density, rows=rows, scope=Scope.LAYER)(weights)
        case _:
            assert_never(rule)


def sparsest(weights: Mapping[str, NDArray], accuracy: Callable[[Masks], float], floor: float, *, rows: int = 1,
             rules: tuple[Rule, ...] = tuple(Rule), steps: int = 7) -> Pruned:
    """The rule and density with the fewest live weights whose ``accuracy`` is at least ``floor``.

    For each rule the density is halved into place ``steps`` times, as if accuracy fell steadily with it.

    Raises
    ------
    UnsupportedError
        The network does not reach the floor even with all its weights.
    """
    everything = all_live(weights)
    whole = accuracy(everything)
    if whole < floor:
        raise UnsupportedError(f"The network reaches an accuracy of {whole:.2%} with all its weights, and at least "
                               f"{floor:.2%} was asked for: allow a larger loss")
    best = Pruned(rules[0], 1.0, whole, everything)
    for rule in rules:
        low, high = 0.0, 1.0
        for _ in range(steps):
            middle = (low + high) / 2
            live = live_weights(rule, weights, middle, rows)
            found = accuracy(live)
            if found < floor:
                low = middle
                continue
            high = middle
            density = sum(int(mask.sum()) for mask in live.values()) / sum(mask.size for mask in live.values())
            if density < best.density:
                best = Pruned(rule, density, found, live)
    return best
