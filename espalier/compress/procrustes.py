"""Procrustes: the weights that have moved most from where they started live; the others decay to zero.

Yang et al., "Procrustes: a Dataflow and Accelerator for Sparse Deep Neural Network Training" (MICRO 2020), after
Golub et al., "Full Deep Neural Network Training on a Pruned Weight Budget" (Dropback, SysML 2019).

The papers': after every step of SGD each weight's accumulated change ``|w - d·w0|`` is measured, ``w0`` its initial
value; the largest, so many of the whole network, are *tracked* and keep their value; every other weight is reset to
``d·w0``. In Dropback ``d`` is 1 for ever; in Procrustes it is multiplied by 0.9 at each step, so that untracked
weights vanish and need no storage, since initial values can be drawn again from the seed.

Ours: the rule for blocks (by the mean change of their weights) and within layers; ``d`` is exactly zero once it is
below ``ZERO_BELOW``; and one consequence of an engine that never computes the gradient of a dead weight: from then
on an untracked block can come back only at steps whose gradients are computed for all weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from espalier.compress.magnitude import Scope
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

ZERO_BELOW = 2.0 ** -20  #: a remaining part of the initial values that no format of ours can tell from none


@dataclass(frozen=True, slots=True, eq=False)
class Tracked:
    """What a step of the rule leaves.

    Parameters
    ----------
    weights : dict of ndarray
        Tracked ones as they were, the others at what remains of their initial values.
    tracked : dict of ndarray
        Which weights are tracked. They are the live ones once nothing remains of the initial values.
    """

    weights: dict[str, NDArray[np.float64]]
    tracked: Masks


@dataclass(frozen=True, slots=True, kw_only=True)
class Procrustes:
    """Which weights are tracked, given how far they have moved.

    Parameters
    ----------
    density : float
        Fraction of the weights that are tracked, above 0, at most 1.
    rows : int
        Edge of a block, at least 1.
    scope : Scope
        What competes: the whole network (the papers'), or the weights of each layer.
    decay : float
        What a step leaves of the initial values, 0..1; 1 is Dropback.
    """

    density: float
    rows: int = 1
    scope: Scope = Scope.NETWORK
    decay: float = 0.9

    def __post_init__(self) -> None:
        check_density(self.density)
        check_rows(self.rows)
        if not 0 <= self.decay <= 1:
            raise UnsupportedError(f"What a step leaves of the initial weights is 0..1 of them, not {self.decay}")

    def remaining(self, step: int) -> float:
        """The part ``d`` of the initial values that remains at ``step``, counted from 0."""
        part = self.decay ** step
        return part if part >= ZERO_BELOW else 0.0

    def __call__(self, weights: Mapping[str, NDArray], initial: Mapping[str, NDArray], step: int) -> Tracked:
        """Apply the rule to the weights after the update of ``step``.

        Parameters
        ----------
        weights, initial : mapping of ndarray
            (O, I, KH, KW) by name, in one unit: now, and before the first step.
        step : int
            Counted from 0 over all epochs.
        """
        remaining = self.remaining(step)
        rest = {name: remaining * initial[name].astype(np.float64) for name in weights}
        everything = all_live(weights)
        layers = {name: rank(mean_saliency(np.abs(w - rest[name]), self.rows), everything[name], self.rows)
                  for name, w in weights.items()}
        if self.scope is Scope.NETWORK:
            tracked = keep_network(layers, self.density * sum(w.size for w in weights.values()))
        else:
            densities = self.scope.densities({name: w.shape for name, w in weights.items()}, self.density)
            tracked = {name: keep_layer(ranked, densities[name] * weights[name].size)
                       for name, ranked in layers.items()}
        return Tracked({name: np.where(tracked[name], w, rest[name]) for name, w in weights.items()}, tracked)


@dataclass(frozen=True, slots=True)
class Tracking:
    """Procrustes in training: after which steps the rule is applied.

    While anything remains of the initial values, after every step, as in the papers. From then on untracked weights
    are dead; ``frequency`` times per epoch a step is taken with the gradients of all weights, and the rule applied
    after it, so that a dead weight comes to life that this one step moves further than a tracked one has come in all.
    Where the initial values never vanish (Dropback), after every step.

    Parameters
    ----------
    rule : Procrustes
    frequency : int
        At least 1.
    """

    rule: Procrustes
    frequency: int = 4

    def __post_init__(self) -> None:
        if self.frequency < 1:
            raise UnsupportedError(f"What is tracked is chosen at least once per epoch, not {self.frequency} times")

    def due_steps(self, steps_per_epoch: int, epochs: int) -> frozenset[int]:
        """The steps, counted from 0 over all epochs, after which the rule is applied."""
        every = max(1, steps_per_epoch // self.frequency)
        return frozenset(step for step in range(steps_per_epoch * epochs)
                         if step % every == 0 or self.rule.remaining(step - 1))
