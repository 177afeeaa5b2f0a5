"""Narrow weights made harmless before they are rounded: cross-layer equalisation and bias correction.

After Nagel et al., "Data-free quantization through weight equalization and bias correction" (ICCV 2019). A layer has
one step size for all its channels, and where these differ in range by orders of magnitude (depthwise layers with a
folded batch norm), most of them round to nothing. A rectifier passes a positive factor on, so a channel may be scaled
up in one layer and down in those that read it. The network computes the same, and its channels use their range alike.

A clipped rectifier passes a factor on only as long as the clip is not reached. A channel that reached it on
calibration images stays as it is, and no other is scaled up beyond a part of it (:data:`ROOM`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from espalier.ir.graph import Graph
from espalier.ir.ops import AveragePool, ClippedRelu, Conv2d, GlobalAveragePool, Linear, MaxPool, Op, Relu, Reshape
from espalier.ir.types import Value

Arrays = Mapping[str, NDArray]
Layer = Conv2d | Linear
ROOM = 0.5   #: of a clip, that the largest result seen may take after scaling up: unseen images have larger ones
ROUNDS = 20  #: over the whole network: a layer in the middle of a chain is scaled from both sides


@dataclass(frozen=True, slots=True, eq=False)
class ChannelStatistics:
    """What calibration images showed of a value, channel by channel (C,).

    Parameters
    ----------
    mean, variance : ndarray
        Over images and pixels.
    largest : ndarray
        The largest magnitude.
    """

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    largest: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Passage:
    """A layer whose channels reach only other layers, by operations that pass positive factors on.

    Parameters
    ----------
    layer : Conv2d or Linear
    readers : tuple of Conv2d or Linear
    clipped : tuple of ClippedRelu
        On the way.
    """

    layer: Layer
    readers: tuple[Layer, ...]
    clipped: tuple[ClippedRelu, ...]


def passages(graph: Graph) -> tuple[Passage, ...]:
    """Where channels may be scaled, in the order of the layers.

    Not where a sum, a concatenation, or the network's output reads them: there channels have one scale with others.
    """
    found = []
    for layer in graph.layers():
        reached = list(_reached(graph, layer.out))
        readers = tuple(op for op in reached if isinstance(op, Conv2d | Linear))
        if None not in reached and readers and all(_owns(graph, op) for op in (layer, *readers)):
            found.append(Passage(layer, readers, tuple(op for op in reached if isinstance(op, ClippedRelu))))
    return tuple(found)


def _owns(graph: Graph, layer: Layer) -> bool:
    """Whether no other layer shares the weights or the bias."""
    return all(len(graph.users(value)) == 1 for value in layer.inputs[1:])


def _reached(graph: Graph, value: Value) -> Iterator[Layer | ClippedRelu | None]:
    """The layers that read a value, and the clipped rectifiers before them; None where anything else does."""
    if value in graph.outputs:
        yield None
    for op in graph.users(value):
        match op:
            case Conv2d() | Linear():
                yield op
            case ClippedRelu():
                yield op
                yield from _reached(graph, op.out)
            case Relu() | MaxPool() | AveragePool() | GlobalAveragePool():
                yield from _reached(graph, op.out)
            case Reshape() if op.x.shape[0] == op.out.shape[0]:
                yield from _reached(graph, op.out)
            case _:
                yield None


def equalise(graph: Graph, parameters: Arrays, seen: Mapping[str, ChannelStatistics], rounds: int = ROUNDS
             ) -> dict[str, NDArray[np.float64]]:
    """Other parameters of the float ``graph`` that compute the same, the ranges of their channels alike.

    The factor of a channel is the geometric mean of its range behind and before, relative to the first: both become
    equally large. A channel without live weights on either side keeps its own.

    Parameters
    ----------
    parameters : mapping of ndarray
        Every weight and bias by name, in real values.
    seen : mapping of ChannelStatistics
        By name of the result of each clipped rectifier.
    rounds : int
    """
    found = {name: array.astype(np.float64) for name, array in parameters.items()}
    ways = passages(graph)
    totals = {way.layer: np.ones(way.layer.out.shape[0]) for way in ways}
    limits = {way.layer: _limits(way, seen) for way in ways}
    for _ in range(rounds):
        for way in ways:
            before, total = _output_ranges(found[way.layer.w.name]), totals[way.layer]
            behind = np.max([_input_ranges(found[reader.w.name], reader) for reader in way.readers], axis=0)
            both = (before > 0) & (behind > 0)
            wanted = total * np.sqrt(np.where(both, behind, 1.0) / np.where(both, before, 1.0))
            low, high = limits[way.layer]
            totals[way.layer] = np.clip(wanted, low, high)
            _scale(found, way, totals[way.layer] / total)
    return found


def _limits(way: Passage, seen: Mapping[str, ChannelStatistics]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The least and the largest factor of each channel."""
    channels = way.layer.out.shape[0]
    low, high = np.zeros(channels), np.full(channels, np.inf)
    for op in way.clipped:
        largest = seen[op.out.name].largest
        reached = largest >= op.bound
        low = np.where(reached, 1.0, low)
        room = ROOM * op.bound / np.where(largest > 0, largest, op.bound)
        high = np.minimum(high, np.where(reached, 1.0, np.maximum(1.0, room)))  # what never fires may only shrink
    return low, high


def _output_ranges(weight: NDArray) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    return found


def _input_ranges(weight: NDArray, layer: Layer) -> NDArray[np.float64]:
    """The largest magnitude of the weights that read each channel (I,)."""
    found: NDArray[np.float64] = np.abs(by_group(weight, layer)).max(axis=(1, 3)).reshape(-1)
    return found


def by_group(weight: NDArray, layer: Layer) -> NDArray:
    """A weight (O, I/groups, KH, KW) or (O, I) as a view (groups, O/groups, I/groups, taps)."""
    groups = groups_of(layer)
    return weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)


def groups_of(layer: Layer) -> int:
    """The groups of channels that a layer keeps apart."""
    return layer.groups if isinstance(layer, Conv2d) else 1


def _scale(parameters: dict[str, NDArray[np.float64]], way: Passage, factor: NDArray[np.float64]) -> None:
    """Scale the channels of a layer by ``factor`` (C,), and undo it where they are read."""
    layer, weight = way.layer, parameters[way.layer.w.name]
    parameters[layer.w.name] = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    if layer.b is not None:
        parameters[layer.b.name] = parameters[layer.b.name] * factor
    for reader in way.readers:
        weight = parameters[reader.w.name]
        read = by_group(weight, reader) / factor.reshape(groups_of(reader), 1, -1, 1)
        parameters[reader.w.name] = read.reshape(weight.shape)


def scaled_inside(graph: Graph, parameters: Arrays, factor: float) -> dict[str, NDArray[np.float64]] | None:
    """Other parameters of the float ``graph`` that make all between image and last layers ``factor`` times as large.

    The results of the last layers stay as they are. None where values of both kinds would meet, or be clipped.
    """
    last = {layer for layer in graph.layers() if not any(isinstance(op, Conv2d | Linear)
                                                         for op in _downstream(graph, layer.out))}
    inside: dict[Value, bool] = dict.fromkeys(graph.inputs, False)
    for op in graph.ops:
        kinds = {inside[value] for value in op.inputs if value in inside}
        if len(kinds) != 1 or (isinstance(op, ClippedRelu) and True in kinds):
            return None
        inside[op.out] = op not in last if isinstance(op, Conv2d | Linear) else True in kinds
    if any(inside[value] for value in graph.outputs):
        return None
    found = {name: array.astype(np.float64) for name, array in parameters.items()}
    for layer in graph.layers():
        found[layer.w.name] = parameters[layer.w.name] * factor ** (inside[layer.out] - inside[layer.x])
        if layer.b is not None and inside[layer.out]:
            found[layer.b.name] = parameters[layer.b.name] * factor
    return found


def _downstream(graph: Graph, value: Value) -> Iterator[Op]:
    """The operations that a value reaches."""
    reached = {value}
    for op in graph.ops:
        if reached.intersection(op.inputs):
            reached.add(op.out)
            yield op


def bias_shift(layer: Layer, change: NDArray, mean: NDArray) -> NDArray[np.float64]:
    """What to add to the bias (O,) of ``layer`` so that a ``change`` of its weights leaves the mean result as it was.

    Padding counts as the mean, as in the paper.

    Parameters
    ----------
    change : ndarray
        What rounding added to the weights, of their shape.
    mean : ndarray
        Of the input's channels (I,).
    """
    parts = by_group(change, layer).sum(axis=3)
    found: NDArray[np.float64] = -np.einsum("goi,gi->go", parts, mean.reshape(groups_of(layer), -1)).reshape(-1)
    return found
