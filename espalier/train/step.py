"""One training step on a device: a batch, forward, backward, update.

On a GPU it is replayed as one CUDA graph; on a CPU, in fixed point, it is native code where that can be compiled.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from espalier.ir.graph import Graph
from espalier.numerics.fixed import Fixed
from espalier.train.crew import ALONE, Crew
from espalier.train.device_data import DeviceData
from espalier.train.evaluate import run
from espalier.train.native_norms import compiled_whole
from espalier.train.optimise import Optimiser

WARM_UP_STEPS = 2


class TrainingStep:
    """Runs training steps; nothing in one waits for the device.

    Parameters
    ----------
    graph : Graph
        The training graph: image and labels in; loss, logits and gradients out.
    optimiser : Optimiser
    data : DeviceData
    augmented : bool
        Whether each batch comes with moves.

    Members
    -------
    tally : Tensor
        float64, (2,): loss summed over images in units of its format, and images recognised, since it was set.
    """

    def __init__(self, graph: Graph, optimiser: Optimiser, data: DeviceData, augmented: bool = False) -> None:
        self.graph, self.optimiser, self.data, self.augmented = graph, optimiser, data, augmented
        device = data.images.device
        self.index = torch.zeros(optimiser.batch, dtype=torch.int64, device=device)
        self.moves = torch.zeros(optimiser.batch, 3, dtype=torch.int64, device=device)
        self.tally = torch.zeros(2, dtype=torch.float64, device=device)
        self.replay: torch.cuda.CUDAGraph | None = None
        self.native = None if self.index.is_cuda else compiled_whole(graph, optimiser.batch)

    def __call__(self, index: Tensor, moves: Tensor | None = None) -> None:
        """Train on the images at ``index`` (batch,)."""
        self.take(index, moves)
        if not self.index.is_cuda:
            self._run()
            return
        if self.replay is None:
            self.replay = self._captured()
        self.replay.replay()

    def take(self, index: Tensor, moves: Tensor | None) -> None:
        """Let that batch be the present one."""
        self.index.copy_(index)
        if moves is not None:
            self.moves.copy_(moves)

    def values(self, index: Tensor | None = None, moves: Tensor | None = None) -> dict[str, Tensor]:
        """Every value of the training graph on a batch (the last one if none is given); no weight changes."""
        if index is not None:
            self.take(index, moves)
        images = self.data.moved(self.index, self.moves) if self.augmented else self.data.plain(self.index)
        image, labels = self.graph.inputs
        return run(self.graph, {**self.optimiser.weights, image.name: images,
                                labels.name: self.data.labels[self.index]})

    def saturated(self) -> dict[str, int]:
        """How many words of each result lie at an end of their range, on the present batch and weights."""
        values = self.values()
        counts = {op.out.name: ((values[op.out.name] <= op.out.format.low)
                                | (values[op.out.name] >= op.out.format.high)).sum()
                  for op in self.graph.ops if isinstance(op.out.format, Fixed)}
        if not counts:
            return {}
        found = zip(counts, torch.stack(list(counts.values())).tolist(), strict=True)
        return {name: count for name, count in found if count}

    def _run(self) -> None:
        labels = self.data.labels[self.index]
        if self.native is None:
            values = self.values()
            loss, logits = (values[output.name] for output in self.graph.outputs[:2])
            self.optimiser.step(values)
        else:
            images = self.data.words(self.index, self.moves if self.augmented else None)
            loss, logits, sums = self.native.train(images, labels, self.optimiser.weight, self.optimiser.live,
                                                   self.optimiser.weights)
            self.optimiser.step_sums(sums, self.native.roundings, self.native.scalars)
        right = (logits.argmax(dim=1) == labels).sum()
        self.tally.add_(torch.stack((loss.double().sum(), right.double())))

    def _captured(self) -> torch.cuda.CUDAGraph:
        """The step as a CUDA graph. Warming up takes real steps, so the state is put back afterwards."""
        tensors = (*self.optimiser.state_tensors, self.tally)
        saved = [tensor.clone() for tensor in tensors]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                self._run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run()
        for tensor, before in zip(tensors, saved, strict=True):
            tensor.copy_(before)
        return graph


CHUNK_BYTES = 1 << 30  #: that all values of the images taken at once may have


def accuracy(graph: Graph, weights: dict[str, Tensor], data: DeviceData, chunk: int = 500, top: int = 1,
             crew: Crew = ALONE) -> float:
    """The fraction of ``data`` for whose label the logit is among the ``top`` largest (the first of equal ones).

    A crew shares the images among its processes.
    """
    native = None if data.labels.is_cuda else compiled_whole(graph, chunk)
    right = torch.zeros((), dtype=torch.int64, device=data.labels.device)
    if native is None:
        chunk = max(1, min(chunk, CHUNK_BYTES // (8 * sum(prod(value.shape) for value in graph.values()))))
    everything = torch.arange(crew.rank, len(data.labels), crew.size, device=data.labels.device)
    for index in everything.split(chunk):
        if native is None:
            logits = run(graph, {**weights, graph.inputs[0].name: data.plain(index)})[graph.outputs[0].name]
        else:
            logits = native.infer(data.words(index, None), weights).flatten(1)
        right += (ranks(logits, data.labels[index]) < top).sum()
    return crew.total(right.item()) / len(data.labels)


def ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """How many logits (N, classes) come before that of each label (N,): larger ones, and equal ones before it."""
    own = logits.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(dim=1)
