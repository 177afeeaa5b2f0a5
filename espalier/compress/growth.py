"""Growth and structural pruning: important units are split in two, secondary ones leave, and the network stays dense.

After Du, Li, Ma and Cao, "Efficient Network Construction through Structural Plasticity" (CGaP, JETCAS 2019). A *unit*
is an output channel of a layer with everything that belongs to it: its filter, bias and batch norm, and the slices of
later layers that read it. Where a residual connection adds channels of several layers, one unit has a filter in each;
a :class:`ChannelGroup` says which tensors share units (``graph_groups.py`` finds the groups of a network).

The paper's: saliency of a unit is the sum of ``|w · dL/dw|`` over its filter, compared within a layer; the top
fraction of the units grows every few epochs up to a bound on the network's size (``cgap.py``).

Ours, since the formulas of the paper were not at hand: how a unit splits. The child copies its parent's filter, and
the two share what the parent's readers gave it, in *unequal* parts, so that the network computes what it did before
and yet parent and child get different gradients, both far from zero. Where all readers share in the same parts, the
two differ in length alone; where each reader has parts of its own (a spread), in direction too. Noise of opposite sign,
weighted so that it cancels in the sum, drives the filters further apart. (Newborn units that are merely appended get
much weaker gradients than the old: arXiv 2605.15435.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from espalier.errors import UnsupportedError

Tensors = dict[str, NDArray]


@dataclass(frozen=True, slots=True)
class Member:
    """A tensor that has units along an axis.

    Parameters
    ----------
    name : str
    axis : int
    span : int
        Consecutive positions that belong to one unit: 1, or the pixels of a channel after a flattening.
    fixed : bool
        Not trained (a shortcut that only moves channels): it has no saliency, and noise leaves it alone.
    """

    name: str
    axis: int
    span: int = 1
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """The tensors that share units.

    Parameters
    ----------
    made : tuple of Member
        What makes a unit, along axis 0: filters (weights of two or more axes, depthwise ones included), biases,
        scales, shifts and statistics of batch norm.
    read : tuple of Member
        What reads it, along axis 1: weights of later layers. None reads the logits, and those do not grow.
    """

    made: tuple[Member, ...]
    read: tuple[Member, ...]

    def units(self, tensors: Mapping[str, NDArray]) -> int:
        """How many units the group has, going by the first of its tensors that is there."""
        first = next(member for member in self.made if member.name in tensors)
        return len(tensors[first.name]) // first.span


@dataclass(frozen=True, slots=True)
class Birth:
    """How a unit splits in two.

    Parameters
    ----------
    share : float
        The parent's part of what its readers gave it, above 0, below 1; the child has the rest.
    noise : float
        How far the two filters are driven apart at most, in parts of the filter's root mean square; at least 0.
    spread : float
        How far the parent's part of a reader's weight is from ``share`` at most, drawn for each weight; at least 0,
        and no further than to nothing or all.
    """

    share: float = 0.6
    noise: float = 0.02
    spread: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UnsupportedError(f"A parent's share is above 0 and below 1, so that parent and child both learn, not "
                                   f"{self.share}")
        if not 0 <= self.noise < float("inf"):
            raise UnsupportedError(f"The noise at a birth is at least 0, not {self.noise}")
        if not 0 <= self.spread <= min(self.share, 1 - self.share):
            raise UnsupportedError(f"The spread of the shares at a birth is at least 0 and at most "
                                   f"{min(self.share, 1 - self.share):g}, as from {self.share:g} to nothing or all, "
                                   f"not {self.spread}")


def unit_saliency(weights: Mapping[str, NDArray], gradients: Mapping[str, NDArray], group: ChannelGroup
                  ) -> NDArray[np.float64]:
    """The saliency (units,) of a group: the sum of ``|w · dL/dw|`` over the filters of each unit."""
    return sum((_by_unit(np.abs(weights[member.name].astype(np.float64) * gradients[member.name]), member).sum(axis=1)
                for member in _filters(weights, group)), np.zeros(group.units(weights)))


def most_salient(saliency: NDArray[np.float64], fraction: float) -> NDArray[np.int64]:
    """The top ``fraction`` (0..1, rounded to the nearest number) of the units, in order; of equal ones the earlier."""
    if not 0 <= fraction <= 1:
        raise UnsupportedError(f"The fraction of units that grow or stay is 0..1, not {fraction}")
    return np.sort(np.argsort(-saliency, kind="stable")[: round(fraction * len(saliency))])


def grow(tensors: Mapping[str, NDArray], group: ChannelGroup, parents: NDArray[np.int64], birth: Birth,
         seed: int | Sequence[int]) -> Tensors:
    """The tensors after each unit of ``parents`` has split; the children stand behind all others, in that order.

    The network computes the same function: exactly (in real numbers) without noise, and with it as far as parent and
    child are active on the same side of the rectifier, to first order in the noise, or in its product with the spread.

    Parameters
    ----------
    tensors : mapping of ndarray
        Every tensor of the network by name; those outside the group are left as they are. Momenta may stand for them:
        members that are not there are passed over.
    parents : ndarray of int
        Units, each at most once.
    seed : int or sequence of int
        Of the noise.
    """
    count = group.units(tensors)
    _check_units(parents, count)
    order, children = np.concatenate([np.arange(count), parents]), np.arange(count, count + len(parents))
    random, filters = np.random.default_rng(seed), _filters(tensors, group)
    grown = dict(tensors)
    for member in _present(group.made, tensors):
        array = _chosen(grown[member.name], member, order)
        if member in filters:
            apart = _noise(random, _by_unit(array, member)[parents], birth.noise).reshape(
                len(parents) * member.span, *array.shape[1:])
            array[_positions(parents, member.span)] += (1 - birth.share) * apart
            array[_positions(children, member.span)] -= birth.share * apart
        grown[member.name] = array
    for member in _present(group.read, tensors):
        array = _chosen(grown[member.name], member, order)
        own, spread = _positions(parents, member.span), 0.0 if member.fixed else birth.spread
        shares = random.uniform(birth.share - spread, birth.share + spread, array[:, own].shape)
        array[:, own] = array[:, own] * shares
        array[:, _positions(children, member.span)] *= 1 - shares
        grown[member.name] = array
    return grown


def keep_units(tensors: Mapping[str, NDArray], group: ChannelGroup, kept: NDArray[np.int64]) -> Tensors:
    """The tensors of the network with only the units ``kept`` of the group, in that order: smaller, not masked.

    As for :func:`grow`, members that are not there are passed over.
    """
    _check_units(kept, group.units(tensors))
    if not len(kept):
        raise UnsupportedError("A layer keeps at least one unit: raise the fraction that stays")
    pruned = dict(tensors)
    for member in _present((*group.made, *group.read), tensors):
        pruned[member.name] = _chosen(pruned[member.name], member, kept)
    return pruned


def _present(members: Sequence[Member], tensors: Mapping[str, NDArray]) -> list[Member]:
    """Those that are there: running statistics have no momentum."""
    return [member for member in members if member.name in tensors]


def _check_units(units: NDArray[np.int64], count: int) -> None:
    if len(np.unique(units)) != len(units) or any(not 0 <= unit < count for unit in units):
        raise UnsupportedError(f"Units are chosen once each from 0..{count - 1}, not as {units.tolist()}")


def _filters(tensors: Mapping[str, NDArray], group: ChannelGroup) -> tuple[Member, ...]:
    """The members that are trained weights, not biases and the like, which a mapping of weights may lack."""
    return tuple(member for member in group.made
                 if not member.fixed and member.name in tensors and tensors[member.name].ndim > 1)


def _positions(units: NDArray[np.int64], span: int) -> NDArray[np.int64]:
    return (units[:, np.newaxis] * span + np.arange(span)).reshape(-1)


def _chosen(array: NDArray, member: Member, units: NDArray[np.int64]) -> NDArray:
    return array.take(_positions(units, member.span), axis=member.axis)


def _by_unit(array: NDArray, member: Member) -> NDArray:
    """A member's values as (units, values of a unit); made members have their units along axis 0."""
    return array.reshape(len(array) // member.span, -1)


def _noise(random: np.random.Generator, filters: NDArray, part: float) -> NDArray:
    """Uniform noise for filters (units, values), up to ``part`` of the root mean square of each."""
    size = np.sqrt((filters.astype(np.float64) ** 2).mean(axis=1, keepdims=True))
    noise: NDArray = (random.uniform(-part, part, filters.shape) * size).astype(filters.dtype)
    return noise
