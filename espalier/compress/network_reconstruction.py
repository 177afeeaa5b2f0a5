"""A whole network pruned in one shot and rebuilt, layer by layer from the first, on calibration images.

How many weights each layer keeps follows from layer-adaptive magnitude at the network's density (``lamp.py``); which
ones, and what they become, from ``reconstruction.py``. Each layer is rebuilt on what it reads in the network pruned
so far, and aims at what it made in the original network, so that it makes up for the layers before it, their
rounding included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from operator import add

import numpy as np
from numpy.typing import NDArray

from espalier.compress.lamp import Lamp
from espalier.compress.moments import Moments, columns, moments
from espalier.compress.ranking import Masks
from espalier.compress.reconstruction import Reconstructed, reconstruct, refit
from espalier.ir.graph import Graph
from espalier.ir.ops import Conv2d, Linear, Op
from espalier.ir.types import Value
from espalier.ir.view import conv_shape
from espalier.numerics.fixed import Fixed

Arrays = Mapping[str, NDArray]

#: Runs a part of a network: parameters in real values, inputs as words (or numbers) with a batch axis first, all by
#: name; gives the outputs of the part as words (or numbers). It rounds the parameters to their formats.
Evaluate = Callable[[Graph, Arrays], dict[str, NDArray]]

NUMBER_BYTES = 8         #: of an element while a part of a network runs
CHUNK_BYTES = 1 << 29    #: that the values of one chunk of images may take
KEPT_BYTES = 1 << 30     #: that the values between two layers of all images may take, in words, to be kept


@dataclass(frozen=True, slots=True, eq=False)
class RebuiltNetwork:
    """A pruned network.

    Parameters
    ----------
    parameters : dict of ndarray
        Every weight and bias of the graph in real values, not yet rounded; zero where dead.
    live : dict of ndarray
        The live masks of the layers seen as convolutions (O, I/groups, KH, KW), by the weight's name.
    """

    parameters: dict[str, NDArray[np.float64]]
    live: Masks


def reconstruct_network(graph: Graph, parameters: Arrays, live: Mapping[str, NDArray[np.bool_]], density: float,
                        images: NDArray, evaluate: Evaluate, rows: int = 1) -> RebuiltNetwork:
    """Prune ``graph`` to ``density`` and rebuild it on ``images``.

    Parameters
    ----------
    graph : Graph
        For inference, in fixed point or float.
    parameters : mapping of ndarray
        Every weight and bias in real values, of its own shape.
    live : mapping of ndarray
        What lives now: masks of the layers seen as convolutions (O, I/groups, KH, KW), by the weight's name.
    density : float
        Fraction of the network's weights that stay, above 0, at most 1.
    images : ndarray
        Calibration images (N, C, H, W), as words of the graph's image (or numbers).
    evaluate : callable
        See :data:`Evaluate`.
    rows : int
        Edge of a block. Dead blocks stay dead.

    Raises UnsupportedError where a number is out of range.
    """
    layers = graph.layers()
    weights = {layer.w.name: parameters[layer.w.name].reshape(conv_shape(graph, layer)) for layer in layers}
    wanted = Lamp(density=density, rows=rows)(weights, live)
    inputs = LayerInputs(graph, parameters, images, evaluate)
    now, masks = {name: array.astype(np.float64) for name, array in parameters.items()}, dict(wanted)
    for layer in layers:
        name = layer.w.name
        found = rebuild_layer(weights[name], inputs.moments(layer, now), wanted[name], rows, live=live[name],
                              bias=layer.b is not None)
        now[name], masks[name] = found.weights.reshape(layer.w.shape), found.live
        if layer.b is not None:
            now[layer.b.name] = now[layer.b.name] + found.bias_shift
    return RebuiltNetwork(now, masks)


def rebuild_layer(weights: NDArray, seen: Sequence[Moments], wanted: NDArray[np.bool_], rows: int = 1, *,
                  live: NDArray[np.bool_], bias: bool = True) -> Reconstructed:
    """Rebuild a layer, one group of channels at a time, with as many live weights in each as ``wanted`` has.

    Which ones is chosen anew, but where the edge of a group cuts through blocks (or a group is to die): these keep
    the mask ``wanted``, so that blocks stay whole.

    Parameters
    ----------
    weights : ndarray
        (O, I/groups, KH, KW) in real values.
    seen : sequence of Moments
        Of each group's input columns.
    wanted : ndarray
        A mask of the weights' shape, whole blocks of edge ``rows``.
    live : ndarray
        What lives now.
    bias : bool
        Whether the layer has a bias to move.
    """
    outputs = len(weights) // len(seen)
    cut = len(seen) > 1 and outputs % rows != 0
    parts = []
    for number, group in enumerate(seen):
        own = slice(number * outputs, (number + 1) * outputs)
        if cut or not wanted[own].any():
            parts.append(refit(weights[own], group, wanted[own], bias=bias))
        else:
            parts.append(reconstruct(weights[own], group, float(wanted[own].mean()), rows, live=live[own], bias=bias))
    return Reconstructed(np.concatenate([part.weights for part in parts]),
                         np.concatenate([part.bias_shift for part in parts]),
                         np.concatenate([part.live for part in parts]))


def layer_moments(layer: Conv2d | Linear, x: NDArray, original: NDArray) -> tuple[Moments, ...]:
    """The moments of what ``layer`` reads, for each group of its channels.

    Parameters
    ----------
    x, original : ndarray
        The layer's input in the network pruned so far and in the original one, in real values: (N, I, H, W), or
        (N, I) of a linear layer.
    """
    match layer:
        case Linear():
            return (moments(x, original),)
        case Conv2d(window=window, groups=groups):
            pairs = zip(np.split(x, groups, axis=1), np.split(original, groups, axis=1), strict=True)
            return tuple(moments(columns(now, window), columns(before, window)) for now, before in pairs)


class LayerInputs:
    """What the layers of a network read, one layer after the other, in the original network and as it is pruned.

    Both networks run in chunks of images, from the last layer that was asked for if all that is known there fits
    into :data:`KEPT_BYTES`, otherwise from an earlier one; so each operation runs about once, and memory is bounded.

    Parameters
    ----------
    graph : Graph
    original : mapping of ndarray
        The parameters of the original network, in real values.
    images : ndarray
        (N, C, H, W), as words (or numbers).
    evaluate : callable
        See :data:`Evaluate`.
    kept_bytes, chunk_bytes : int
        Limits on memory.
    """

    def __init__(self, graph: Graph, original: Arrays, images: NDArray, evaluate: Evaluate, *,
                 kept_bytes: int = KEPT_BYTES, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.graph, self.original, self.evaluate = graph, original, evaluate
        self.count, self.kept_bytes = len(images), kept_bytes
        self.position, self.known = 0, graph.inputs
        name = graph.inputs[0].name
        self.chunks = [({name: chunk}, {name: chunk}) for chunk in _chunks(graph, images, chunk_bytes)]

    def moments(self, layer: Conv2d | Linear, parameters: Arrays) -> tuple[Moments, ...]:
        """The moments of the input of ``layer``, for each group of its channels.

        Layers are asked for in the order of the graph, with ``parameters`` (real values) that no longer change for
        the layers before.
        """
        position = self.graph.ops.index(layer)
        ahead = _read_later(self.graph, position)
        part = _part(self.graph, self.known, self.graph.ops[self.position:position], ahead)
        kept = 2 * self.count * sum(_stored_bytes(value) for value in ahead) <= self.kept_bytes
        found, chunks = [], []
        for before, after in self.chunks:
            there = self.evaluate(part, {**self.original, **before}), self.evaluate(part, {**parameters, **after})
            original, x = (_real(values[layer.x.name], layer.x) for values in there)
            found.append(layer_moments(layer, x, original))
            chunks += [there] if kept else []
        if kept:
            self.position, self.known, self.chunks = position, ahead, chunks
        return tuple(reduce(add, group) for group in zip(*found, strict=True))


def _chunks(graph: Graph, images: NDArray, chunk_bytes: int) -> Iterator[NDArray]:
    """The images in parts of which all values and the columns of any one layer fit into ``chunk_bytes``."""
    values = sum(prod(value.shape) for value in (*graph.inputs, *(op.out for op in graph.ops)))
    read = max(prod(layer.out.shape[1:]) * prod(layer.w.shape[1:]) for layer in graph.layers())
    most = max(1, chunk_bytes // (NUMBER_BYTES * (values + 2 * read)))
    return (images[start: start + most] for start in range(0, len(images), most))


def _read_later(graph: Graph, position: int) -> tuple[Value, ...]:
    """The values known before the operation at ``position`` that it or a later one reads."""
    read = {value for op in graph.ops[position:] for value in op.inputs}
    return tuple(value for value in (*graph.inputs, *(op.out for op in graph.ops[:position])) if value in read)


def _part(graph: Graph, inputs: tuple[Value, ...], ops: tuple[Op, ...], outputs: tuple[Value, ...]) -> Graph:
    """A run of operations of a graph as a graph of its own."""
    read = {value for op in ops for value in op.inputs}
    return Graph(graph.name, inputs, tuple(value for value in graph.parameters if value in read), ops, outputs)


def _stored_bytes(value: Value) -> int:
    return prod(value.shape) * np.dtype(np.int16 if isinstance(value.format, Fixed) else np.float32).itemsize


def _real(stored: NDArray, value: Value) -> NDArray[np.float32]:
    """The real values of words (exact in float32: they have at most 16 bits) or numbers."""
    real = value.format.values(stored) if isinstance(value.format, Fixed) else stored
    return real.astype(np.float32)
