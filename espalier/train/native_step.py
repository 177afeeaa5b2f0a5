"""A graph compiled for the CPU's vector unit: a list of operations that native code (native/step.cpp) runs exactly.

The engine's own dataflow: the images of a batch are the lanes, one weight is broadcast over them, zero weights
cost nothing in FP and BP, and WU computes only the gradients of live weights. Words are int16, sums exact
(convolve.h says how). Each thread takes a chunk of images through all operations, so that maps stay in its
cache. :func:`compiled` gives None where there is no C++ compiler or the graph holds something that the list does
not know; ``evaluate.run`` then does the same, slower.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping
from functools import cached_property
from math import ceil

import torch
from torch import Tensor

from espalier.ir.graph import Graph
from espalier.ir.types import Fixed
from espalier.train.evaluate import evaluate
from espalier.train.native_code import NONE, Operation, Program, library
from espalier.train.native_list import OperationList, Unknown

HUGE_PAGE = 2 << 20


class Kept:
    """What a forward pass leaves for the backward pass of the same images."""

    def __init__(self, words: int, bounds: tuple[int, int]) -> None:
        self.arena, self.magnitudes = _arena(words), torch.zeros(*bounds, dtype=torch.int64)


class NativeStep:
    """A compiled graph, of inference or of a step of training (or of a part's), for batches of up to ``batch`` images.

    See :func:`compiled`. Words of maps are int16; ``parameters``, and ``live`` (0 for dead weights), are float64, all
    of the graph one behind the other.

    Members
    -------
    scalars : dict of Tensor
        Of batch norms: what the last step gave, gradients of scale and shift and next statistics, by name.
    """

    def __init__(self, listed: OperationList, batch: int, code: ctypes.CDLL) -> None:
        self.graph, self.batch, self.code = listed.graph, batch, code
        self.scalars: dict[str, Tensor] = {}
        self.losses = listed.losses
        self.roundings = [listed.roundings[name] for name in listed.owners if name in listed.roundings]
        self.image, self.result = listed.image, listed.result
        self.gradient, self.through = listed.gradient, listed.through
        self.shapes = [placed.shape for placed in listed.maps]
        self.forward_count, self.count = listed.forward_count, len(listed.operations)
        self.operations = (Operation * max(1, self.count))(*listed.operations)
        self.sums = torch.zeros(listed.size, dtype=torch.float64)
        self.lanes: int = code.lanes()
        self.maps, self.sizes = listed.laid_out(self.lanes)
        self.passing = _arena(0)

    @cached_property
    def own(self) -> Kept:
        """Room for the batch at hand, where the caller gives none."""
        return self.keeping(self.batch)

    def chunks(self, images: int) -> int:
        """In how many chunks so many images are taken."""
        return ceil(images / self.lanes)

    @property
    def working_bytes(self) -> int:
        """What it has for maps that pass by, whatever batches are under way, since it last ran."""
        return self.passing.nbytes

    def keeping(self, images: int) -> Kept:
        """Room for what one more batch that is under way, of so many images, leaves."""
        chunks = self.chunks(images)
        return Kept(chunks * self.sizes[0], (chunks, len(self.shapes)))

    def flat(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The weights and biases of the graph one behind the other."""
        return torch.cat([weights[value.name].reshape(-1) for value in self.graph.parameters
                          if isinstance(value.format, Fixed)])

    def infer(self, images: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """As :meth:`forward`, from all parameters by name."""
        return self.forward(images, self.flat(weights))

    def forward(self, images: Tensor, parameters: Tensor, kept: Kept | None = None) -> Tensor:
        """The logits (N, classes, 1, 1), or a part's result, of ``images`` (N, C, H, W)."""
        result = self._room(self.result, images)
        self._run(0, self.forward_count, parameters, None, self.image, images, self.result, result, None, kept)
        return result

    def backward(self, gradient: Tensor, parameters: Tensor, live: Tensor, kept: Kept | None = None, *,
                 adding: bool = False) -> tuple[Tensor | None, Tensor]:
        """From the gradient of :meth:`forward`'s result to that of a part's input, and the sums of the parameters'.

        The sums, as long as ``parameters``, are not rounded yet (``roundings``, by parameter), zero for dead weights,
        and stand until the next backward pass, which begins anew or goes on ``adding`` to them.
        """
        through = None if self.through == NONE else self._room(self.through, gradient)
        if not adding:
            self.sums.zero_()
        self._run(self.forward_count, self.count, parameters, live, self.gradient, gradient, self.through, through,
                  self.sums, kept)
        return through, self.sums

    def train(self, images: Tensor, labels: Tensor, parameters: Tensor, live: Tensor,
              scalars: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """A training step but for the update: loss words (N,), logits (N, classes), sums as of :meth:`backward`.

        ``scalars``: scale, shift and statistics of batch norms by name.
        """
        logits = self.forward(images, parameters)
        loss, gradient = self.loss(logits, labels)
        _, sums = self.backward(gradient, parameters, live)
        return loss, logits.flatten(1), sums

    def loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss words (N,) of logits as :meth:`forward` gives them, and their gradient for :meth:`backward`."""
        wide = logits.flatten(1).double()
        loss, gradient = (evaluate(op, wide, labels) for op in self.losses)
        return loss, gradient.to(torch.int16)

    def _room(self, place: int, like: Tensor) -> Tensor:
        return torch.empty(len(like), *self.shapes[place], dtype=torch.int16)

    def _run(self, first: int, last: int, parameters: Tensor, live: Tensor | None, in_map: int, given: Tensor,
             out_map: int, out: Tensor | None, sums: Tensor | None, kept: Kept | None) -> None:
        count, threads, kept = len(given), torch.get_num_threads(), kept or self.own
        assert count <= self.batch and given.dtype == torch.int16, (count, self.batch, given.dtype)
        if len(self.passing) < threads * self.sizes[1]:
            self.passing = _arena(threads * self.sizes[1])
        given = given.contiguous()
        program = Program(
            ctypes.addressof(self.maps), ctypes.addressof(self.operations), len(self.maps), count,
            self.chunks(count), (ctypes.c_int64 * 2)(*self.sizes), kept.arena.data_ptr(), self.passing.data_ptr(),
            kept.magnitudes.data_ptr())
        self.code.lanes_run(ctypes.byref(program), first, last, parameters.data_ptr(), _address(live), in_map,
                            given.data_ptr(), out_map, _address(out), _address(sums), threads)


def compiled(graph: Graph, batch: int) -> NativeStep | None:
    """``graph`` (of inference, or of a training step) for batches of up to ``batch``; None where that cannot be.

    Raises FormatError where an operation's sums could leave the range in which float64 is exact.
    """
    code = library()
    if code is None or not all(isinstance(value.format, Fixed) for value in graph.parameters):
        return None
    try:
        return NativeStep(OperationList(graph, batch), batch, code)
    except Unknown:
        return None


def _arena(words: int) -> Tensor:
    """Zeros, in large pages where there are such: taps lie far apart, and each small page would be looked up."""
    if not words:
        return torch.empty(0, dtype=torch.int16)
    memory = mmap.mmap(-1, 2 * words + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.int16, count=words)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
