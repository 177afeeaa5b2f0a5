"""What images show of the channels of a network's values, in floating point or in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

import torch
from numpy.typing import NDArray
from torch import Tensor

from espalier.compress.equalise import ChannelStatistics
from espalier.ir.graph import Graph
from espalier.ir.types import Value
from espalier.numerics.fixed import Fixed
from espalier.train.evaluate import evaluate, to_tensor

NUMBER_BYTES = 8         #: of an element while a network runs
CHUNK_BYTES = 1 << 29    #: that all values of the images taken at once may have


def channel_statistics(graph: Graph, parameters: Mapping[str, NDArray], images: NDArray, values: Iterable[Value]
                       ) -> dict[str, ChannelStatistics]:
    """Mean, variance and largest magnitude of each channel of some ``values`` of an inference graph, by name.

    Parameters
    ----------
    parameters : mapping of ndarray
        Words, or numbers where the graph is float.
    images : ndarray
        (N, C, H, W), real numbers.
    values : iterable of Value
        (C, H, W) or (C,): the image, or results.
    """
    wanted = {value.name: value for value in values}
    tensors = {value.name: to_tensor(parameters[value.name], value.format) for value in graph.parameters}
    sums = {name: _Sums(value.shape[0]) for name, value in wanted.items()}
    chunk = max(1, CHUNK_BYTES // (NUMBER_BYTES * sum(prod(value.shape) for value in graph.values())))
    for start in range(0, len(images), chunk):
        _observe(graph, tensors, images[start: start + chunk], wanted, sums)
    return {name: sums[name].statistics() for name in wanted}


class _Sums:
    """Of one value, over the images so far."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.total, self.squares, self.largest = (torch.zeros(channels, dtype=torch.float64) for _ in range(3))

    def add(self, tensor: Tensor, unit: float) -> None:
        """``tensor`` (N, C, ...) in units of ``unit``."""
        columns = tensor.double().transpose(0, 1).reshape(tensor.shape[1], -1) * unit
        self.count += columns.shape[1]
        self.total += columns.sum(dim=1)
        self.squares += columns.square().sum(dim=1)
        self.largest = torch.maximum(self.largest, columns.abs().amax(dim=1))

    def statistics(self) -> ChannelStatistics:
        mean = self.total / self.count
        variance = (self.squares / self.count - mean.square()).clamp(min=0)
        return ChannelStatistics(mean.numpy(), variance.numpy(), self.largest.numpy())


def _observe(graph: Graph, tensors: Mapping[str, Tensor], images: NDArray, wanted: Mapping[str, Value],
             sums: Mapping[str, _Sums]) -> None:
    """Run the graph on images, keep no value longer than it is read, and add up the wanted ones."""
    image = graph.inputs[0]
    stored = image.format.quantise(images) if isinstance(image.format, Fixed) else images
    known = {**tensors, image.name: to_tensor(stored, image.format)}
    last = {value.name: number for number, op in enumerate(graph.ops) for value in op.inputs}
    for number, value in enumerate((image, *(op.out for op in graph.ops)), start=-1):
        if number >= 0:
            op = graph.ops[number]
            known[value.name] = evaluate(op, *(known[read.name] for read in op.inputs))
            for read in op.inputs:
                if last[read.name] == number and read not in graph.parameters:
                    known.pop(read.name, None)
        if value.name in wanted:
            sums[value.name].add(known[value.name], value.format.resolution if isinstance(value.format, Fixed) else 1.0)


def layer_inputs(graph: Graph) -> tuple[Value, ...]:
    """What the layers of a graph read, each once."""
    return tuple(dict.fromkeys(layer.x for layer in graph.layers()))
