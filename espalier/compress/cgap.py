"""Continuous growth and pruning: the network grows its important units while it learns, then sheds the secondary.

Du, Li, Ma and Cao (CGaP, JETCAS 2019). What a unit is, how it splits, and what of that is the paper's and what ours
stands in ``growth.py``. Here: when, how many, and within what size. The numbers given as defaults are remembered from
the paper, not read in it.

Ours: sizes are parts of the size of the network that is named, so that a recipe fits every network, and the training
may start from a part of its units (the paper's small seed network). Where the paper drops a filter once enough of its
weights were zeroed, we drop the units of least saliency until the size is met: one measure for growing and for leaving.
The network is dense before and after: what leaves takes its storage with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from espalier.compress.growth import Birth, ChannelGroup, Tensors, grow, keep_units, most_salient
from espalier.errors import UnsupportedError

Units = tuple[NDArray[np.int64], ...]  #: of each group, some of its units
Saliency = Sequence[NDArray[np.float64]]  #: of each group, that of its units
ROUNDING = 1e-6  #: by which times may miss an end that they are meant to reach
PARTS = 64  #: in how many steps a growth is made smaller until there is room for it
HALVINGS = 8  #: of the range of powers in which one is sought that meets two sizes at once


@dataclass(frozen=True, slots=True)
class Times:
    """When something is done: at ``start`` and then ``every`` so many epochs, ``end`` included.

    Times are in epochs and need not be whole. ``start`` is above 0: of an untrained network the important units are
    not known.
    """

    start: float
    end: float
    every: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.start <= self.end < float("inf") or not self.every > 0:
            raise UnsupportedError(f"Units are born and leave at times above 0, from a start to an end that is no "
                                   f"earlier, each some time after the other, not at {self.start}..{self.end} every "
                                   f"{self.every} epochs")

    @property
    def all(self) -> tuple[float, ...]:
        """Each time, in order."""
        count = int((self.end - self.start) / self.every + ROUNDING)
        return tuple(self.start + number * self.every for number in range(count + 1))


@dataclass(frozen=True, slots=True)
class Growth:
    """How the network grows.

    Parameters
    ----------
    times : Times
    fraction : float
        Of the units of each group, the most salient, that split at each growth; above 0, at most 1.
    bound : float
        The most weights that the network may grow to, as a part of those of the network that is named; above 0. A
        growth that would pass it is made as much smaller, in all groups alike.
    birth : Birth
        How a unit splits.
    """

    times: Times
    fraction: float = 0.6
    bound: float = 1.0
    birth: Birth = field(default_factory=Birth)

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise UnsupportedError(f"Above 0 and at most all units split at a growth, not {self.fraction}")
        if not 0 < self.bound < float("inf"):
            raise UnsupportedError(f"The most weights to grow to are a part above 0 of those of the network, not "
                                   f"{self.bound}")

    def parents(self, saliency: Saliency, size: Size, named: Size) -> Units:
        """The units of each group that split, of a network of ``size``."""
        for part in range(PARTS, 0, -1):
            parents = tuple(most_salient(units, self.fraction * part / PARTS) for units in saliency)
            widths = [len(units) + len(born) for units, born in zip(saliency, parents, strict=True)]
            if size.weights(widths) <= self.bound * named.weights():
                return parents
        return tuple(np.array([], dtype=np.int64) for _ in saliency)


@dataclass(frozen=True, slots=True)
class Shedding:
    """How units leave.

    Parameters
    ----------
    times : Times
        Equal parts of what must go go at each.
    weights, macs : float
        What the network has left at the end, as parts of those of the network that is named (MACs of a forward pass,
        padding counted); above 0. One that it meets anyway makes no unit leave.
    """

    times: Times
    weights: float = 1.0
    macs: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.weights <= 1 and 0 < self.macs <= 1) or self.weights == self.macs == 1:
            raise UnsupportedError(f"Units leave until weights or MACs are a part above 0 and below 1 of those of the "
                                   f"network, not {self.weights} and {self.macs}")

    def kept(self, saliency: Saliency, size: Size, named: Size, time: float) -> Units:
        """The units of each group, in order, that stay in a network of ``size`` at ``time``, one of the times.

        Saliencies of different groups are compared as multiples of their group's mean. Where weights and MACs are to
        fall, those of groups with many weights per MAC are worth more or less, by a power of that ratio: the one that
        meets both sizes most closely, within -1..1, so that neither falls much further than it must. Every group
        keeps a unit.
        """
        left = sum(later >= time for later in self.times.all)
        weights, macs = (now - max(0.0, now - final * whole) / left
                         for now, final, whole in ((size.weights(), self.weights, named.weights()),
                                                   (size.macs(), self.macs, named.macs())))
        best, most, low, high, tilt = None, 0.0, -1.0, 1.0, 0.0
        for _ in range(HALVINGS if self.weights < 1 and self.macs < 1 else 1):
            staying = _staying(saliency, size, weights, macs, tilt)
            widths = [len(units) for units in staying]
            met = size.weights(widths) / weights, size.macs(widths) / macs
            if best is None or sum(met) > most:
                best, most = staying, sum(met)
            low, high = (tilt, high) if met[0] < met[1] else (low, tilt)
            tilt = (low + high) / 2
        assert best is not None, "tried at least once"
        return best


@dataclass(frozen=True, slots=True)
class Structure:
    """What changes the widths of a network in training.

    Parameters
    ----------
    seed : float
        The part of each group's units that the run starts with; above 0, at most 1.
    growth : Growth or None
    shedding : Shedding or None
        Begins after the last growth.
    looks : int
        Batches, the next of the epoch, over which saliency is summed before each change; at least 1.
    """

    seed: float = 1.0
    growth: Growth | None = None
    shedding: Shedding | None = None
    looks: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.seed <= 1:
            raise UnsupportedError(f"A network starts from a part above 0 and at most 1 of its units, not {self.seed}")
        if self.looks < 1:
            raise UnsupportedError(f"Saliency is summed over at least 1 batch, not {self.looks}")
        if self.growth is not None and self.shedding is not None and (
                self.shedding.times.start <= self.growth.times.all[-1]):
            raise UnsupportedError(f"Units leave after the last growth, at epoch {self.growth.times.all[-1]:g}, not "
                                   f"from epoch {self.shedding.times.start:g} on: start later")

    @property
    def times(self) -> tuple[float, ...]:
        """When widths change, in order; without the seed, which is before all."""
        return tuple(time for part in (self.growth, self.shedding) if part is not None for time in part.times.all)

    @property
    def end(self) -> float:
        """The time (in epochs) from which on the widths are fixed."""
        return max(self.times, default=0.0)

    def due_steps(self, steps_per_epoch: int) -> dict[int, float]:
        """The steps (counted from 0 over all epochs) before which widths change, and the time each stands for."""
        return {round(time * steps_per_epoch): time for time in self.times}


@dataclass(frozen=True, slots=True)
class Size:
    """How many weights (tensors of two or more axes) and MACs a network has, by the units of its groups.

    Parameters
    ----------
    widths : tuple of int
        Units of each group as they are.
    terms : tuple
        For each weight: its elements for one unit of each group on its axes, pixels of its result, those groups.
    """

    widths: tuple[int, ...]
    terms: tuple[tuple[int, int, tuple[int, ...]], ...]

    @classmethod
    def of(cls, tensors: Mapping[str, NDArray], groups: Sequence[ChannelGroup], pixels: Mapping[str, int]) -> Size:
        """The size of ``tensors`` (of which those count whose result has ``pixels``)."""
        widths = tuple(group.units(tensors) for group in groups)
        terms = []
        for name, count in pixels.items():
            here = tuple(number for number, group in enumerate(groups) for member in (*group.made, *group.read)
                         if member.name == name)
            terms.append((tensors[name].size // _product(widths[number] for number in here), count, here))
        return cls(widths, tuple(terms))

    def weights_per_mac(self, group: int) -> float:
        """Of what belongs to a unit of ``group``."""
        own = [(each * _product(self.widths[number] for number in here), pixels) for each, pixels, here in self.terms
               if group in here]
        return sum(weights for weights, _ in own) / sum(weights * pixels for weights, pixels in own)

    def weights(self, widths: Sequence[int] | None = None) -> int:
        """With other widths on demand."""
        return sum(each * _product((widths or self.widths)[number] for number in here) for each, _, here in self.terms)

    def macs(self, widths: Sequence[int] | None = None) -> int:
        """Of a forward pass of one image, with other widths on demand."""
        return sum(each * pixels * _product((widths or self.widths)[number] for number in here)
                   for each, pixels, here in self.terms)


def seeded(tensors: Mapping[str, NDArray], groups: Sequence[ChannelGroup], part: float) -> Tensors:
    """The tensors with the first ``part`` of each group's units, at least one; what reads them is larger by as much.

    Weights that read fewer units are scaled so that the variance of what they sum is kept.
    """
    now = dict(tensors)
    for group in groups:
        units = group.units(now)
        kept = max(1, round(part * units))
        now = keep_units(now, group, np.arange(kept))
        for member in group.read:
            if not member.fixed:
                now[member.name] = now[member.name] * sqrt(units / kept)
    return now


def grown(tensors: Mapping[str, NDArray], groups: Sequence[ChannelGroup], parents: Units, birth: Birth,
          seed: Sequence[int]) -> Tensors:
    """The tensors after the ``parents`` of each group have split; each group draws its noise from ``seed``."""
    now = dict(tensors)
    for number, (group, units) in enumerate(zip(groups, parents, strict=True)):
        now = grow(now, group, units, birth, (*seed, number))
    return now


def grown_momenta(momenta: Mapping[str, NDArray], groups: Sequence[ChannelGroup], parents: Units, birth: Birth
                  ) -> Tensors:
    """The momenta of the tensors that :func:`grown` gives: the network goes on moving as it did.

    Parent and child have the parent's, and their readers share what theirs had, as they shared its weights on average.
    """
    return grown(momenta, groups, parents, replace(birth, noise=0.0, spread=0.0), (0,))


def shed(tensors: Mapping[str, NDArray], groups: Sequence[ChannelGroup], kept: Units) -> Tensors:
    """The tensors (or their momenta) with only the units ``kept`` of each group."""
    now = dict(tensors)
    for group, units in zip(groups, kept, strict=True):
        now = keep_units(now, group, units)
    return now


def _staying(saliency: Saliency, size: Size, weights: float, macs: float, tilt: float) -> Units:
    """The units of each group that stay when the least salient leave until the size is met."""
    leaving: list[set[int]] = [set() for _ in saliency]
    widths = list(size.widths)
    for group, unit in _least_first(saliency, [size.weights_per_mac(number) ** tilt for number in range(len(widths))]):
        if size.weights(widths) <= weights and size.macs(widths) <= macs:
            break
        if widths[group] > 1:
            leaving[group].add(unit)
            widths[group] -= 1
    return tuple(np.array([unit for unit in range(len(units)) if unit not in gone])
                 for units, gone in zip(saliency, leaving, strict=True))


def _least_first(saliency: Saliency, worth: Sequence[float]) -> Iterable[tuple[int, int]]:
    """(group, unit) by saliency in multiples of the group's mean, times what a unit of the group is worth.

    Of equal ones the later first, as they are born.
    """
    scores = [(score / (units.mean() or 1.0) * worth[group], group, unit) for group, units in enumerate(saliency)
              for unit, score in enumerate(units)]
    return [(group, unit) for _, group, unit in sorted(scores, key=lambda item: (item[0], -item[1], -item[2]))]


def _product(numbers: Iterable[int]) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result
