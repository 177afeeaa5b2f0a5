"""Changes of a network's widths in training: graph, weights, masters and momenta take another shape together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from espalier.compress.cgap import Saliency, Size, grown, grown_momenta, seeded, shed
from espalier.compress.graph_groups import groups_of, resized
from espalier.compress.growth import ChannelGroup, Tensors, unit_saliency
from espalier.ir.differentiate import gradient_name
from espalier.ir.graph import Graph
from espalier.ir.types import Fixed, Format
from espalier.train.calibrate import initial_state
from espalier.train.checkpoint import Checkpoint
from espalier.train.optimise import state_names, update_of


def size_of(graph: Graph, groups: Sequence[ChannelGroup], frozen: Collection[str]) -> Size:
    """The size of a network, without what is frozen."""
    shapes = {value.name: np.broadcast_to(0, value.shape) for value in graph.parameters}
    pixels = {layer.w.name: prod(layer.out.shape[1:]) for layer in graph.layers() if layer.w.name not in frozen}
    return Size.of(shapes, groups, pixels)


def named_size(graph: Graph, frozen: Collection[str]) -> Size:
    """The size of the network that was named, which those in a recipe are parts of."""
    return size_of(graph, groups_of(graph, frozen), frozen)


def narrowed(graph: Graph, parameters: Mapping[str, NDArray], frozen: Collection[str], part: float
             ) -> tuple[Graph, Tensors]:
    """The float network with the first ``part`` of the units of each of its groups."""
    tensors = seeded(parameters, groups_of(graph, frozen), part)
    return resized(graph, {name: array.shape for name, array in tensors.items()}), tensors


def saliency(start: Checkpoint, real: Mapping[str, NDArray[np.float64]], gradients: Mapping[str, NDArray]
             ) -> tuple[NDArray[np.float64], ...]:
    """The saliency of the units of each group, from ``gradients`` (words in fixed point) by the parameter's name."""
    numbers = {name: _real(words, start.gradient_formats.get(gradient_name(name))) for name, words in gradients.items()}
    return tuple(unit_saliency(real, numbers, group) for group in groups_of(start.graph, start.frozen))


def changed(start: Checkpoint, real: Mapping[str, NDArray[np.float64]], scores: Saliency, named: Size, time: float
            ) -> Checkpoint:
    """The network of ``start`` after the growth or the shedding that is due at ``time``.

    Formats stay as they are, and all weights live.

    Parameters
    ----------
    real : mapping of ndarray
        The most precise weights there are; running statistics of batch norms are those of ``start``.
    scores : sequence of ndarray
        Saliency of the units of each group.
    """
    structure, groups = start.config.structure, groups_of(start.graph, start.frozen)
    assert structure is not None, "a recipe that changes widths"
    size = size_of(start.graph, groups, start.frozen)
    tensors: Tensors = {**real, **{value.name: start.state[value.name] for value in start.graph.statistics()}}
    momenta: Tensors = {name: start.state[f"{name}.momentum"].astype(np.float64) for name in real}
    growth, shedding = structure.growth, structure.shedding
    if growth is not None and time in growth.times.all:
        parents = growth.parents(scores, size, named)
        tensors = grown(tensors, groups, parents, growth.birth, (start.config.seed, growth.times.all.index(time)))
        momenta = grown_momenta(momenta, groups, parents, growth.birth)
    else:
        assert shedding is not None, "widths change at this time"
        kept = shedding.kept(scores, size, named, time)
        tensors, momenta = shed(tensors, groups, kept), shed(momenta, groups, kept)
    graph = resized(start.graph, {name: array.shape for name, array in tensors.items()})
    state = initial_state(graph, tensors, start.update)
    for value in graph.learned():
        name = state_names(value.name, update_of(value, start.update))["momentum"]
        state[name] = _like(state[name], momenta[value.name])
    return replace(start, graph=graph, state=state)


def _real(words: NDArray, format_: Format | None) -> NDArray[np.float64]:
    real: NDArray[np.float64] = words.astype(np.float64)
    return real * format_.resolution if isinstance(format_, Fixed) else real


def _like(old: NDArray, numbers: NDArray) -> NDArray:
    """Numbers of the kind that ``old`` holds: words, rounded half up, or float32."""
    return (np.floor(numbers + 0.5) if old.dtype.kind == "i" else numbers).astype(old.dtype)
