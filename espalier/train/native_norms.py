"""A training step with batch norms on words for the CPU's vector unit.

What is done to each word is a convolution of each channel with itself, and each sum over the batch is the gradient of a
weight of one: :mod:`espalier.train.native_list` has both. Scalars are computed between, by
:mod:`espalier.train.fixed_batch_norm`, whenever all images are through the operations before.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import assert_never

import torch
from torch import Tensor

from espalier.ir.fold import has_batch_norm
from espalier.ir.graph import Graph
from espalier.ir.interpret import fixed
from espalier.ir.ops import (
    BatchMean,
    BatchNorm,
    BatchNormInputGrad,
    BatchNormOp,
    BatchNormScaleGrad,
    BatchVariance,
    BiasGrad,
    FrozenBatchNormInputGrad,
    RunningMean,
    RunningVariance,
)
from espalier.ir.types import Value
from espalier.ir.verify_batch_norm import scalars_of
from espalier.numerics.fixed import Fixed
from espalier.train import fixed_batch_norm
from espalier.train import native_code as native
from espalier.train.native_code import library
from espalier.train.native_list import OperationList, Unknown, operation, rounding_of
from espalier.train.native_step import Kept, NativeStep, compiled


@dataclass(frozen=True, slots=True)
class Scalars:
    """An operation of a batch norm, to be done in scalars.

    Parameters
    ----------
    op : BatchNormOp or BiasGrad
    sums : tuple of int
        Where the sums lie that it is computed from.
    words : tuple of int
        Where the words go that it gives.
    """

    op: BatchNormOp | BiasGrad
    sums: tuple[int, ...] = ()
    words: tuple[int, ...] = ()


class NormedList(OperationList):
    """With batch norms.

    Members
    -------
    due : dict
        What is to be done in scalars before the operations from that place on.
    """

    def __init__(self, graph: Graph, batch: int) -> None:
        self.due: dict[int, list[Scalars]] = {0: []}
        self.waiting: list[Scalars] = []
        self.summed: dict[tuple[str, ...], int] = {}
        super().__init__(graph, batch)
        if self.through != native.NONE or len(graph.inputs) > 1 and not self.losses:
            raise Unknown("a part of a network, whose batches overlap")
        self.due.setdefault(len(self.operations), []).extend(self.waiting)

    def _stops(self) -> set[int]:
        return super()._stops() | set(self.due)

    def _norm(self, op: BatchNormOp | BiasGrad) -> None:
        if isinstance(op, BiasGrad | BatchNormScaleGrad) and op.out not in self.graph.outputs:
            raise Unknown(f"{op.out} is part of a gradient")
        match op:
            case BatchMean(x=x):
                self.waiting.append(Scalars(op, (self._sum(x),)))
            case BatchVariance(x=x):
                self.waiting.append(Scalars(op, (self._sum(x, x),)))
            case BiasGrad(g=g):
                self.waiting.append(Scalars(op, (self._sum(g),)))
            case BatchNormScaleGrad(g=g, x=x):
                self.waiting.append(Scalars(op, (self._sum(g), self._sum(g, x))))
            case RunningMean() | RunningVariance():
                self.waiting.append(Scalars(op))
            case BatchNorm(x=x):
                times, plus = self._words(op, x, 2)
                self._multiply(op, x, fixed(op.factor), times, plus)
            case FrozenBatchNormInputGrad(g=g):
                [times] = self._words(op, g, 1)
                self._multiply(op, g, fixed(op.factor), times)
            case BatchNormInputGrad(g=g, x=x, out=out):
                sums = self._sum(g), self._sum(g, x)
                direct, times, plus = self._words(op, x, 3, sums)
                parts = [Value(f"{out.name} {role}", out.type) for role in ("direct", "through")]
                self._multiply(op, g, fixed(op.factor), direct, out=parts[0])
                self._multiply(op, x, fixed(op.slope), times, plus, out=parts[1])
                first, second = (self.places[part.name] for part in parts)
                self._write(op, native.COMBINE, first, 0, second=second)
            case _:
                assert_never(op)

    def _room(self, channels: int) -> int:
        """The place of that many more words, or sums."""
        self.size += channels
        return self.size - channels

    def _sum(self, *factors: Value) -> int:
        """The place of the sums of a value's words, or of the products of two, of each channel."""
        names = tuple(value.name for value in factors)
        if names in self.summed:
            return self.summed[names]
        place, source = self._room(factors[0].shape[0]), self.places[names[0]]
        self.summed[names] = place
        if len(names) == 1:
            self.operations.append(operation(native.BIAS_GRADIENT, source, bias=place))
        else:
            self.operations.append(operation(native.WEIGHT_GRADIENT, source, second=self.places[names[1]],
                                             window=self._each(source), weights=place))
        return place

    def _words(self, op: BatchNormOp, x: Value, count: int, sums: tuple[int, ...] = ()) -> list[int]:
        """The places of words that are known when the operations from here on begin, or all of them."""
        places = [self._room(x.shape[0]) for _ in range(count)]
        known = not sums and set(scalars_of(op)) <= set(self.graph.parameters)
        if not known:
            self.due.setdefault(len(self.operations), []).extend(self.waiting)
            self.waiting = []
        self.due[0 if known else len(self.operations)].append(Scalars(op, sums, tuple(places)))
        return places

    def _multiply(self, op: BatchNormOp, x: Value, factor: Fixed, times: int, plus: int = native.NONE,
                  out: Value | None = None) -> None:
        """Each channel of ``x`` times a word, plus another; into a map ``out``, or where the result goes."""
        source, frac = self.places[x.name], fixed(x.format).frac
        fields = {"window": self._each(source), "weights": times, "bias": plus, "bias_shift": frac}
        drop = frac + factor.frac - fixed(op.out.format).frac
        if out is None:
            self._write(op, native.CONVOLVE, source, drop, **fields)
        else:
            ends = fixed(out.format).low, fixed(out.format).high
            self.operations.append(operation(native.CONVOLVE, source, target=self._map(out),
                                             rounding=rounding_of(drop, ends), **fields))

    def _each(self, source: int) -> ctypes.Structure:
        """The window of a convolution of each channel with itself."""
        channels, *size = self.maps[source].shape
        return native.Window(channels, channels, channels, 1, 1, 1, 1, 1, 1, *size)


class NormedStep(NativeStep):
    """A compiled graph with batch norms, of inference or of a whole step of training; see :func:`compiled_whole`."""

    def __init__(self, listed: NormedList, batch: int, code: ctypes.CDLL) -> None:
        super().__init__(listed, batch, code)
        self.due, self.images = listed.due, 0
        self.made: dict[tuple[str | float, ...], Tensor] = {}
        self.words, self.live = (torch.ones(len(self.sums), dtype=torch.float64) for _ in range(2))

    def infer(self, images: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        self._begin(self.flat(weights), weights, len(images))
        return self.forward(images, self.words)

    def train(self, images: Tensor, labels: Tensor, parameters: Tensor, live: Tensor,
              scalars: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        assert scalars is not None, "scale, shift and statistics are among them"
        self.live[: len(live)] = live
        self._begin(parameters, scalars, len(images))
        self.sums.zero_()
        logits = self.forward(images, self.words)
        loss, gradient = self.loss(logits, labels)
        self.backward(gradient, self.words, self.live, adding=True)
        self._settle(self.count)
        return loss, logits.flatten(1), self.sums[: len(live)]

    def _begin(self, parameters: Tensor, scalars: Mapping[str, Tensor], images: int) -> None:
        self.images, self.words[: len(parameters)] = images, parameters
        self.made.clear()
        self.scalars = {value.name: scalars[value.name] for value in self.graph.parameters
                        if not isinstance(value.format, Fixed)}

    def _run(self, first: int, last: int, parameters: Tensor, live: Tensor | None, in_map: int, given: Tensor,
             out_map: int, out: Tensor | None, sums: Tensor | None, kept: Kept | None) -> None:
        """In stretches, between which scalars are computed and words written."""
        stops = [first, *sorted(place for place in self.due if first < place < last), last]
        for start, stop in pairwise(stops):
            self._settle(start)
            super()._run(start, stop, parameters, self.live, in_map if start == first else native.NONE, given,
                         out_map if stop == last else native.NONE, out, self.sums, kept)

    def _settle(self, place: int) -> None:
        for due in self.due.get(place, ()):
            channels = due.op.out.shape[0]
            self._compute(due, [self.sums[at: at + channels] for at in due.sums])

    def _compute(self, due: Scalars, sums: list[Tensor]) -> None:
        op, known = due.op, self.scalars
        match op:
            case BatchMean(x=x):
                known[op.out.name] = fixed_batch_norm.batch_mean(x, sums[0], self._values(x))
            case BatchVariance(x=x, mean=mean):
                known[op.out.name] = fixed_batch_norm.batch_variance(x, sums[0], known[mean.name], self._values(x))
            case RunningMean(running=running, batch=batch):
                known[op.out.name] = fixed_batch_norm.followed(known[running.name], known[batch.name])
            case RunningVariance(running=running, batch=batch, x=x):
                known[op.out.name] = fixed_batch_norm.followed(known[running.name], known[batch.name], self._values(x))
            case BiasGrad(g=g):
                known[op.out.name] = self._shift_grad(g, sums[0])
            case BatchNormScaleGrad():
                known[op.out.name] = self._scale_grad(op, sums)
            case BatchNorm() | FrozenBatchNormInputGrad() | BatchNormInputGrad():
                for place, words in zip(due.words, self._words(op, sums), strict=True):
                    self.words[place: place + len(words)] = words
            case _:
                assert_never(op)

    def _words(self, op: BatchNorm | FrozenBatchNormInputGrad | BatchNormInputGrad, sums: list[Tensor]
               ) -> tuple[Tensor, ...]:
        scale, inverted = self.scalars[op.scale.name], self._inverse(op.variance, op.epsilon)
        match op:
            case BatchNorm(shift=shift, mean=mean):
                return fixed_batch_norm.normalising(op, scale, self.scalars[shift.name], self.scalars[mean.name],
                                                    inverted)
            case FrozenBatchNormInputGrad():
                return (fixed_batch_norm.factors(op, scale, inverted),)
            case BatchNormInputGrad(g=g, x=x, mean=mean):
                direct = fixed_batch_norm.factors(op, scale, inverted)
                through = fixed_batch_norm.through_statistics(
                    op, direct, self._shift_grad(g, sums[0]), self._scale_grad(op, sums), self.scalars[mean.name],
                    inverted, self._values(x))
                return direct, *through

    def _inverse(self, variance: Value, epsilon: float) -> Tensor:
        return self._once(("inverse", variance.name, epsilon),
                          lambda: fixed_batch_norm.inverse(self.scalars[variance.name], epsilon))

    def _shift_grad(self, g: Value, total: Tensor) -> Tensor:
        return self._once(("shift", g.name), lambda: fixed_batch_norm.shift_grad(g, total))

    def _scale_grad(self, op: BatchNormScaleGrad | BatchNormInputGrad, sums: list[Tensor]) -> Tensor:
        total, products = sums
        inverted = self._inverse(op.variance, op.epsilon)
        return self._once(("scale", op.g.name, op.x.name), lambda: fixed_batch_norm.scale_grad(
            op, self._shift_grad(op.g, total), products, self.scalars[op.mean.name], inverted))

    def _once(self, what: tuple[str | float, ...], made: Callable[[], Tensor]) -> Tensor:
        """What several operations of a step need, computed for the first."""
        if what not in self.made:
            self.made[what] = made()
        return self.made[what]

    def _values(self, x: Value) -> int:
        return self.images * prod(x.shape[1:])


def compiled_whole(graph: Graph, batch: int) -> NativeStep | None:
    """As :func:`compiled`, for a network that is not cut in parts: with batch norms, too."""
    code = library()
    if code is None or not has_batch_norm(graph):
        return compiled(graph, batch)
    try:
        return NormedStep(NormedList(graph, batch), batch, code)
    except Unknown:
        return None
