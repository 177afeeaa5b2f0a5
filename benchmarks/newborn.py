"""What gradients do units get that growth has just added?

Units of a network that are mere copies of others could stay copies for good, and units appended beside trained ones
are said to get much weaker gradients than those (arXiv 2605.15435). So a network is grown once, as its recipe says,
and the gradient of each newborn unit's filters is held against its parent's: at birth, and one epoch later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from espalier.compress.graph_groups import groups_of
from espalier.compress.growth import ChannelGroup
from espalier.data import Split, normalise
from espalier.flow.network import import_network
from espalier.ir.differentiate import differentiate, gradient_name
from espalier.train.checkpoint import Checkpoint
from espalier.train.config import RateSchedule, TrainConfig
from espalier.train.evaluate import run
from espalier.train.loop import CHECKPOINT, train
from espalier.train.structure import changed, named_size, saliency, size_of

LOOKED_AT = 500  #: training images, the first ones, over which gradients are summed

Gradients = dict[str, NDArray]


@dataclass(frozen=True, slots=True)
class Kinship:
    """How like its parent's the gradient of a newborn unit's filters is: medians over the units.

    Parameters
    ----------
    cosine : float
        Of the angle between the two: 1 where both learn the same.
    unrelated : float
        The same between the newborn and the next newborn's parent in its layer.
    size : float
        Its length, as a part of the parent's.
    """

    cosine: float
    unrelated: float
    size: float

    @classmethod
    def of(cls, gradients: Gradients, groups: Sequence[ChannelGroup], parents: Sequence[NDArray[np.int64]]) -> Kinship:
        """Of the children, the last units of each group, in the order of their ``parents``."""
        pairs = [(filters(gradients, group), units) for group, units in zip(groups, parents, strict=True)]
        born = [(units[-len(chosen):], units[chosen], units[np.roll(chosen, -1)]) for units, chosen in pairs
                if len(chosen)]
        lengths = [np.linalg.norm(child, axis=1) / _length(parent) for child, parent, _ in born]
        return cls(median([cosines(child, parent) for child, parent, _ in born]),
                   median([cosines(child, other) for child, _, other in born if len(child) > 1]), median(lengths))


def filters(tensors: Gradients, group: ChannelGroup) -> NDArray[np.float64]:
    """Each unit's filters one behind the other: (units, values)."""
    units = group.units(tensors)
    return np.concatenate([tensors[member.name].reshape(units, -1) for member in group.made
                           if not member.fixed and member.name in tensors and tensors[member.name].ndim > 1],
                          axis=1, dtype=np.float64)


def cosines(some: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each pair of rows; 0 where one is zero."""
    found: NDArray[np.float64] = (some * others).sum(axis=1) / (_length(some) * _length(others))
    return found


def _length(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(np.linalg.norm(rows, axis=1), np.finfo(np.float64).tiny ** 0.5)


def median(parts: Sequence[NDArray[np.float64]]) -> float:
    return float(np.median(np.concatenate(parts)))


def gradients_of(found: Checkpoint, split: Split) -> Gradients:
    """The gradients of what a float network trains, over the first training images."""
    step = differentiate(found.graph, found.config.loss, found.gradient_formats)
    shown = split.train.images[:LOOKED_AT], split.train.labels[:LOOKED_AT]
    image, labels = step.inputs
    values = run(step, {**{name: torch.from_numpy(array) for name, array in found.weights.items()},
                        image.name: torch.from_numpy(normalise(shown[0])), labels.name: torch.from_numpy(shown[1])})
    return {name: values[gradient_name(name)].numpy() for name in found.weights if gradient_name(name) in values}


def study(config: TrainConfig, split: Split, before_birth: Path, after_birth: Path) -> dict[str, Kinship]:
    """Train in float32 and at a constant rate to the first growth of ``config``, grow, and train an epoch more.

    In two folders; what goes before is the same for every way to split, and may be there.
    """
    assert config.structure is not None and config.structure.growth is not None, "a recipe that grows"
    growth = config.structure.growth
    network = import_network(config.network, split, config.seed, keep_batch_norm=True)
    birth = round(growth.times.start)
    alone = replace(config, epochs=birth, rate=RateSchedule(), quantise=None,
                    structure=replace(config.structure, growth=None, shedding=None))
    before = train(alone, split, network.graph, network.parameters, before_birth, fixed=network.fixed)
    groups, named = groups_of(before.graph, before.frozen), named_size(network.graph, before.frozen)
    gradients = gradients_of(before, split)
    real = {name: before.weights[name].astype(np.float64) for name in gradients}
    scores = saliency(before, real, gradients)
    parents = growth.parents(scores, size_of(before.graph, groups, before.frozen), named)
    longer = replace(alone, epochs=birth + 1)
    born = replace(changed(replace(before, config=config), real, scores, named, growth.times.start), config=longer)
    if not (after_birth / CHECKPOINT).exists():
        born.save(after_birth / CHECKPOINT)
    after = train(longer, split, network.graph, network.parameters, after_birth, fixed=network.fixed)
    return {when: Kinship.of(gradients_of(found, split), groups, parents)
            for when, found in (("at birth", born), ("one epoch after birth", after))}
