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
from typing import TypeVar, assert_never

import numpy as np
from numpy.typing import NDArray

from espalier.compress.magnitude import Magnitude, Scope
from espalier.compress.ranking import Masks, all_live
from espalier.errors import UnsupportedError

Outcome = TypeVar("Outcome")
FIRST_THRESHOLD = 0.1  #: of the triangular rule: the first layer's threshold over the last one's
STEPS = 7              #: halvings in the search for a density


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


def live_weights(rule: Rule, weights: Mapping[str, NDArray], density: float, rows: int = 1,
                 live: Mapping[str, NDArray[np.bool_]] | None = None) -> Masks:
    """The live masks of ``rule`` at ``density``.

    Parameters
    ----------
    weights : mapping of ndarray
        (O, I, KH, KW) by name, in real values, the first layer first.
    density : float
        Fraction of all weights that stay, above 0, at most 1.
    rows : int
        Edge of a block: a block lives by the mean magnitude of its weights. Dead blocks stay dead.
    live : mapping of ndarray
        What lives now; by default everything.
    """
    match rule:
        case Rule.FLAT:
            return Magnitude(density=density, rows=rows, scope=Scope.NETWORK)(weights, live)
        case Rule.TRIANGULAR:
            thresholds = np.linspace(FIRST_THRESHOLD, 1.0, len(weights))
            scaled = {name: w / threshold for (name, w), threshold in zip(weights.items(), thresholds, strict=True)}
            return Magnitude(density=density, rows=rows, scope=Scope.NETWORK)(scaled, live)
        case Rule.RELATIVE:
            return Magnitude(density=density, rows=rows, scope=Scope.LAYER)(weights, live)
        case _:
            assert_never(rule)


def sparsest(weights: Mapping[str, NDArray], accuracy: Callable[[Masks], float], floor: float, *, rows: int = 1,
             rules: tuple[Rule, ...] = tuple(Rule), steps: int = STEPS) -> Pruned:
    """The rule and density with the fewest live weights whose ``accuracy`` is at least ``floor``.

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
    found = [Pruned(rules[0], 1.0, whole, everything)]
    for rule in rules:
        def pruned(density: float, rule: Rule = rule) -> Pruned:
            live = live_weights(rule, weights, density, rows)
            return Pruned(rule, live_density(live), accuracy(live), live)
        best = lowest_density(pruned, lambda outcome: outcome.accuracy >= floor, steps=steps)
        found += [] if best is None else [best]
    return min(found, key=lambda outcome: outcome.density)


def lowest_density(attempt: Callable[[float], Outcome], good: Callable[[Outcome], bool], *, highest: float = 1.0,
                   steps: int = STEPS) -> Outcome | None:
    """What ``attempt`` makes at the lowest density below ``highest`` that is ``good``; None where none tried is.

    Whatever the method: the density is halved into place ``steps`` times, as if accuracy fell steadily with it.
    """
    low, high, best = 0.0, highest, None
    for _ in range(steps):
        middle = (low + high) / 2
        outcome = attempt(middle)
        if good(outcome):
            high, best = middle, outcome
        else:
            low = middle
    return best


def live_density(live: Mapping[str, NDArray[np.bool_]]) -> float:
    """The fraction of the weights that live."""
    return sum(int(mask.sum()) for mask in live.values()) / sum(mask.size for mask in live.values())
