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
from math import prod

import torch
from torch import Tensor

from espalier.ir.graph import Graph
from espalier.ir.types import Fixed
from espalier.train.evaluate import evaluate
from espalier.train.native_code import NONE, Operation, Program, library
from espalier.train.native_list import OperationList, Unknown

HUGE_PAGE = 2 << 20


class NativeStep:
    """A compiled graph, for batches of up to ``batch`` images. See :func:`compiled`."""

    def __init__(self, graph: Graph, batch: int, code: ctypes.CDLL) -> None:
        self.graph, self.batch, self.code = graph, batch, code
        listed = OperationList(graph, batch)
        self.losses = listed.losses
        self.roundings = [listed.roundings[name] for name in listed.owners if name in listed.roundings]
        self.image, self.logits, self.gradient = listed.image, listed.logits, listed.gradient
        self.classes = listed.maps[listed.logits].shape[0]
        self.forward_count, self.count = listed.forward_count, len(listed.operations)
        self.operations = (Operation * max(1, self.count))(*listed.operations)
        self.sums = torch.zeros(sum(prod(value.shape) for value in graph.parameters), dtype=torch.float64)
        lanes = code.lanes()
        self.maps, sizes = listed.laid_out(lanes)
        self.chunks = -(-batch // lanes)
        self.lanes, self.sizes = lanes, sizes
        self.kept, self.passing = _arena(self.chunks * sizes[0]), _arena(0)
        self.magnitudes = torch.zeros(self.chunks, len(listed.maps), dtype=torch.int64)

    def forward(self, images: Tensor, parameters: Tensor) -> Tensor:
        """The logits (N, classes) int64 of int16 images (N, C, H, W); ``parameters`` float64, one behind the other."""
        logits = torch.empty(len(images), self.classes, dtype=torch.int64)
        self._run(0, self.forward_count, parameters, None, self.image, images, self.logits, logits, None)
        return logits

    def train(self, images: Tensor, labels: Tensor, parameters: Tensor, live: Tensor
              ) -> tuple[Tensor, Tensor, Tensor]:
        """A training step but for the update: loss words (N,), logits (N, classes), sums of the parameters' gradients.

        ``live`` is float64, as long as ``parameters``, 0 for dead weights; their sums are zero. The sums, as
        long, are not rounded yet (``roundings``, by parameter) and stand until the next step.
        """
        logits = self.forward(images, parameters)
        wide = logits.double()
        loss, gradient = (evaluate(op, wide, labels) for op in self.losses)
        self._run(self.forward_count, self.count, parameters, live, self.gradient, gradient.to(torch.int16), NONE, None,
                  self.sums.zero_())
        return loss, logits, self.sums

    def _run(self, first: int, last: int, parameters: Tensor, live: Tensor | None, in_map: int, given: Tensor,
             out_map: int, out: Tensor | None, sums: Tensor | None) -> None:
        count, threads = len(given), torch.get_num_threads()
        assert count <= self.batch and given.dtype == torch.int16, (count, self.batch, given.dtype)
        if len(self.passing) < threads * self.sizes[1]:
            self.passing = _arena(threads * self.sizes[1])
        given = given.contiguous()
        program = Program(
            ctypes.addressof(self.maps), ctypes.addressof(self.operations), len(self.maps), count,
            -(-count // self.lanes), (ctypes.c_int64 * 2)(*self.sizes), self.kept.data_ptr(), self.passing.data_ptr(),
            self.magnitudes.data_ptr())
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
        return NativeStep(graph, batch, code)
    except Unknown:
        return None


def _arena(words: int) -> Tensor:
    """Zeros, in large pages where there are such: taps lie far apart, and each small page would be looked up."""
    memory = mmap.mmap(-1, 2 * words + HUGE_PAGE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.int16)[:words]


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
