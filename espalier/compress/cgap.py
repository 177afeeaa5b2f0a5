"""Continuous growth and pruning: the network grows its important units while it learns, then sheds the secondary.

Du, Li, Ma and Cao (CGaP, JETCAS 2019); what is the paper's and what is ours stands in ``growth.py``. The numbers
given as defaults are remembered from the paper, not read in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from espalier.compress.growth import (
    Birth,
    ChannelGroup,
    Tensors,
    grow,
    keep_units,
    most_salient,
    surviving,
    unit_density,
    unit_saliency,
)
from espalier.errors import UnsupportedError


@dataclass(frozen=True, slots=True, kw_only=True)
class CGaP:
    """When units are born, how many, and when they leave.

    Parameters
    ----------
    bound : int
        The most weights (tensors of two or more axes) that the network may grow to, at least 1.
    fraction : float
        Of the units of each group, the most salient, that split at each growth; above 0, at most 1.
    every : int
        Epochs between one growth and the next, at least 1.
    least : float
        A unit leaves when less than this fraction of its filters' weights lives; 0..1.
    birth : Birth
        How a unit splits.
    """

    bound: int
    fraction: float = 0.6
    every: int = 3
    least: float = 0.1
    birth: Birth = field(default_factory=Birth)

    def __post_init__(self) -> None:
        if self.bound < 1 or self.every < 1:
            raise UnsupportedError(f"A network grows to at least 1 weight every 1 or more epochs, not to {self.bound} "
                                   f"every {self.every}")
        if not 0 < self.fraction <= 1 or not 0 <= self.least <= 1:
            raise UnsupportedError(f"Above 0 and at most all units split at a growth, and a unit leaves when less than "
                                   f"0..1 of it lives, not {self.fraction} and {self.least}")

    def grown(self, tensors: Mapping[str, NDArray], gradients: Mapping[str, NDArray], groups: Sequence[ChannelGroup],
              seed: int) -> Tensors:
        """The tensors after one growth of every group, in order, that the bound leaves room for.

        Parameters
        ----------
        tensors : mapping of ndarray
            Every tensor of the network by name.
        gradients : mapping of ndarray
            Of the loss with respect to (at least) the filters of all groups.
        seed : int
            Of the noise: give each growth its own.
        """
        saliency = [unit_saliency(tensors, gradients, group) for group in groups]
        now = dict(tensors)
        for number, group in enumerate(groups):
            parents = most_salient(saliency[number], self.fraction)
            larger = grow(now, group, parents, self.birth, seed + number)
            if weight_count(larger) <= self.bound:
                now = larger
        return now

    def pruned(self, tensors: Mapping[str, NDArray], live: Mapping[str, NDArray[np.bool_]],
               groups: Sequence[ChannelGroup]) -> Tensors:
        """The tensors without the units of which too little lives; dead weights of the others become zero.

        Parameters
        ----------
        live : mapping of ndarray
            Live masks of the filters of all groups, as ``Magnitude`` gives.
        """
        kept = [surviving(unit_density(live, group), self.least) for group in groups]
        now = {name: array * live[name] if name in live else array for name, array in tensors.items()}
        for group, units in zip(groups, kept, strict=True):
            now = keep_units(now, group, units)
        return now


def weight_count(tensors: Mapping[str, NDArray]) -> int:
    """The number of weights: elements of all tensors of two or more axes."""
    return sum(array.size for array in tensors.values() if array.ndim > 1)
