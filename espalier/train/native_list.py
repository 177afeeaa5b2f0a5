"""From a graph to the list of operations, and the maps they work on, that native code (native/step.cpp) runs.

Rectifiers and masks ride on the operation before them; a reshape is another view of the same memory; the border of
zeros that a padded window reads belongs to the map. Maps that are not needed at the same time lie in the same place, so
that what passes by stays in caches.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod
from typing import assert_never

from espalier.ir.differentiate import gradient_name
from espalier.ir.graph import Graph
from espalier.ir.interpret import units
from espalier.ir.ops import (
    Add,
    AveragePool,
    AveragePoolGrad,
    BatchMean,
    BatchNorm,
    BatchNormInputGrad,
    BatchNormOp,
    BatchNormScaleGrad,
    BatchVariance,
    BiasGrad,
    ClippedRelu,
    ClippedReluGrad,
    Concat,
    ConcatGrad,
    Conv2d,
    Conv2dInputGrad,
    Conv2dWeightGrad,
    FrozenBatchNormInputGrad,
    GlobalAveragePool,
    GlobalAveragePoolGrad,
    Linear,
    LinearInputGrad,
    LinearWeightGrad,
    MaxPool,
    MaxPoolGrad,
    Op,
    Relu,
    ReluGrad,
    Reshape,
    RunningMean,
    RunningVariance,
    SoftmaxCrossEntropy,
    SoftmaxCrossEntropyGrad,
    SquareHinge,
    SquareHingeGrad,
)
from espalier.ir.types import Float, TensorType, Value
from espalier.numerics.activation import AVERAGE_FRAC, average_reciprocal
from espalier.numerics.fixed import Fixed
from espalier.numerics.window import Window
from espalier.train import native_code as native
from espalier.train.convolve import Rounding
from espalier.train.exact import check_exact

WORD_BITS = 16
LOSSES = SoftmaxCrossEntropy | SoftmaxCrossEntropyGrad | SquareHinge | SquareHingeGrad


@dataclass(slots=True)
class _Placed:
    """A map: its shape (C, H, W), its border, and what it shares memory with."""

    shape: tuple[int, int, int]
    border: list[int] = field(default_factory=lambda: [0, 0, 0, 0])  #: top, left, bottom, right
    owner: int = native.NONE
    step: tuple[int, int] = (1, 1)  #: between the words that are not always zero

    @property
    def full(self) -> tuple[int, int]:
        return (self.shape[1] + self.border[0] + self.border[2], self.shape[2] + self.border[1] + self.border[3])

    @property
    def zeros(self) -> tuple[tuple[int, ...], ...]:
        """What is alike in maps whose words that are always zero lie in the same places; () where there are none."""
        return (tuple(self.border), self.full, self.step) if any(self.border) or self.step != (1, 1) else ()


@dataclass(slots=True)
class _Room:
    """Memory for maps, one after the other."""

    until: int  #: the last operation that needs what lies there now
    words: int = 0
    offset: int = 0


class Unknown(Exception):
    """The list of operations does not know this."""


class OperationList:
    """Turns a graph into maps and operations.

    Members
    -------
    size : int
        Words that operations multiply by: the weights and biases, one behind the other, at ``offsets`` by name.
    image, result : int
        The maps that a forward pass is given and gives: the image, or what a part reads; the logits, or its result.
    gradient, through : int
        The maps that a backward pass is given and gives: the gradients of these two; NONE for what there is not.
    forward_count : int
        How many of the operations are those of the forward pass.
    """

    def __init__(self, graph: Graph, batch: int) -> None:
        self.graph = graph
        weights = [parameter for parameter in graph.parameters if isinstance(parameter.format, Fixed)]
        names = [parameter.name for parameter in weights]
        *offsets, self.size = accumulate((prod(parameter.shape) for parameter in weights), initial=0)
        self.offsets = dict(zip(names, offsets, strict=True))
        self.owners = {gradient_name(name): name for name in names}
        self.users: dict[str, list[Op]] = {}
        for op in graph.ops:
            check_exact(op, batch)
            for value in op.inputs:
                self.users.setdefault(value.name, []).append(op)
        self.maps: list[_Placed] = []
        self.places: dict[str, int] = {}
        self.shared: set[int] = set()  # maps whose memory has two shapes, and can have no border
        self.copies: dict[int, int] = {}
        self.operations: list[ctypes.Structure] = []
        self.roundings: dict[str, Rounding] = {}
        self.losses = [op for op in graph.ops if isinstance(op, LOSSES)]
        self.image = self._map(graph.inputs[0])
        self.gradient = self.forward_count = native.NONE
        self._add_all()
        self.result = self.places[graph.outputs[1 if self.losses else 0].name]
        self.through = self.places.get(gradient_name(graph.inputs[0].name), native.NONE)
        if set(self.roundings) != (set(self.owners) if len(graph.inputs) > 1 else set()):
            raise Unknown("a parameter's gradient has several parts")

    def _add_all(self) -> None:
        for op in self.graph.ops:
            if self.forward_count == native.NONE and set(self.graph.inputs[1:]).intersection(op.inputs):
                self.forward_count = len(self.operations)
                if not self.losses:
                    self.gradient = self._map(self.graph.inputs[1])
            if not isinstance(op, LOSSES):
                self._add(op)
            elif isinstance(op, SoftmaxCrossEntropyGrad | SquareHingeGrad):
                self.gradient = self._map(op.out)
        if self.forward_count == native.NONE:
            self.forward_count = len(self.operations)

    def laid_out(self, lanes: int) -> tuple[ctypes.Array, list[int]]:
        """The maps with their places in the arenas, and the arenas' sizes, in words.

        Arena 0 is there for each chunk and keeps what operations need of those before a stop; the rest lies in arena 1,
        which each thread has one of.
        """
        lives, stops = self._lives(), self._stops()
        rooms: dict[tuple[bool, tuple[tuple[int, ...], ...]], list[_Room]] = {}
        taken: dict[int, tuple[bool, _Room]] = {}
        for index in sorted((index for index, placed in enumerate(self.maps) if placed.owner == native.NONE),
                            key=lambda index: lives[index]):
            placed, (first, last) = self.maps[index], lives[index]
            passing, words = not any(first < stop <= last for stop in stops), placed.shape[0] * prod(placed.full)
            alike = rooms.setdefault((passing, placed.zeros), [])
            room = min((room for room in alike if room.until < first), default=None,
                       key=lambda room: (max(0, words - room.words), room.words))
            if room is None:
                alike.append(room := _Room(last))
            room.words, room.until = max(room.words, words), last
            taken[index] = passing, room
        sizes = [0, 0]
        for (passing, _), alike in rooms.items():
            for room in alike:
                room.offset = sizes[passing]
                sizes[passing] += lanes * room.words
        made = []
        for index, placed in enumerate(self.maps):
            owner = index if placed.owner == native.NONE else placed.owner
            assert owner == index or not any((*placed.border, *self.maps[owner].border)), "two shapes, but a border"
            passing, room = taken[owner]
            made.append(native.Map(passing, room.offset, *placed.shape, *placed.border[:2], *placed.full, owner))
        return (native.Map * len(made))(*made), sizes

    def _stops(self) -> set[int]:
        """The operations before which all chunks are through those before."""
        return {self.forward_count}

    def _lives(self) -> list[tuple[int, int]]:
        """The first and the last operation that uses each map, or the memory that it shares."""
        used: list[list[int]] = [[] for _ in self.maps]

        def note(place: int, *times: int) -> None:
            if place != native.NONE:
                owner = self.maps[place].owner
                used[place if owner == native.NONE else owner] += times

        note(self.image, 0)
        note(self.result, max(0, self.forward_count - 1))
        note(self.gradient, self.forward_count)
        note(self.through, len(self.operations) - 1)
        for number, op in enumerate(self.operations):
            for place in (op.source, op.second, op.mask, op.target):
                note(place, number)
        return [(min(times), max(times)) if times else (0, 0) for times in used]

    def _map(self, value: Value, owner: int = native.NONE) -> int:
        _require_words(value)
        shape = value.shape if len(value.shape) == 3 else (prod(value.shape), 1, 1)
        self.maps.append(_Placed(shape, owner=owner))
        self.places[value.name] = len(self.maps) - 1
        return len(self.maps) - 1

    def _add(self, op: Op) -> None:
        match op:
            case Conv2d(x=x, w=w, b=b, window=window, groups=groups):
                self._convolve(op, x, w, b, window, groups)
            case Linear(x=x, w=w, b=b):
                self._convolve(op, x, w, b, Window((1, 1)), 1)
            case Conv2dInputGrad(g=g, w=w, window=window, groups=groups):
                self._input_gradient(op, g, w, window, groups)
            case LinearInputGrad(g=g, w=w):
                self._input_gradient(op, g, w, Window((1, 1)), 1)
            case Conv2dWeightGrad(x=x, g=g, window=window, groups=groups):
                self._weight_gradient(op, x, g, window, groups)
            case LinearWeightGrad(x=x, g=g):
                self._weight_gradient(op, x, g, Window((1, 1)), 1)
            case BiasGrad(out=Value(format=Float())):
                self._norm(op)
            case BiasGrad(g=g):
                self.operations.append(operation(native.BIAS_GRADIENT, self.places[g.name],
                                                 bias=self._parameter(op.out)))
                self._round_gradient(op.out, _frac(g))
            case Relu(x=x) | ClippedRelu(x=x) | ReluGrad(g=x) | ClippedReluGrad(g=x) | Reshape(x=x):
                self._move(op, x)
            case Concat(a=a, b=b):
                frac = max(_frac(a), _frac(b))
                self._write(op, native.CONCAT, self.places[a.name], frac - _frac(op.out), second=self.places[b.name],
                            shift=frac - _frac(a), second_shift=frac - _frac(b),
                            same=_same(a, op.out) and _same(b, op.out))
            case ConcatGrad(g=g, first=first):
                self._write(op, native.COMBINE, self.places[g.name], _frac(g) - _frac(op.out),
                            first=first * (1 if len(g.shape) == 3 else prod(g.shape[1:])), same=_same(g, op.out))
            case Add(a=a, b=b):
                frac = max(_frac(a), _frac(b))
                self._write(op, native.COMBINE, self.places[a.name], frac - _frac(op.out), second=self.places[b.name],
                            shift=frac - _frac(a), second_shift=frac - _frac(b))
            case MaxPool(x=x, window=window):
                self._write(op, native.MAX_POOL, self.places[x.name], _frac(x) - _frac(op.out), pool=_pool(window),
                            same=_same(x, op.out))
            case MaxPoolGrad(g=g, x=x, window=window):
                self._write(op, native.MAX_POOL_GRADIENT, self.places[g.name], _frac(g) - _frac(op.out),
                            second=self.places[x.name], pool=_pool(window), same=_same(g, op.out))
            case AveragePool(x=x, window=window):
                self._average(op, native.AVERAGE_POOL, x, window)
            case GlobalAveragePool(x=x):
                self._average(op, native.AVERAGE_POOL, x, Window(x.map_shape[1:]))
            case AveragePoolGrad(g=g, window=window):
                self._average(op, native.AVERAGE_POOL_GRADIENT, g, window)
            case GlobalAveragePoolGrad(g=g):
                self._average(op, native.AVERAGE_POOL_GRADIENT, g, Window(op.out.map_shape[1:]))
            case (BatchNorm() | BatchMean() | BatchVariance() | RunningMean() | RunningVariance()
                  | BatchNormInputGrad() | FrozenBatchNormInputGrad() | BatchNormScaleGrad()):
                self._norm(op)
            case SoftmaxCrossEntropy() | SoftmaxCrossEntropyGrad() | SquareHinge() | SquareHingeGrad():
                raise Unknown("losses are not on the list")
            case _:
                assert_never(op)

    def _norm(self, op: BatchNormOp | BiasGrad) -> None:
        """A batch norm: :class:`espalier.train.native_norms.NormedList` knows it."""
        raise Unknown(f"{op.out} needs sums over the whole batch")

    def _write(self, op: Op, kind: int, source: int, drop: int, **more: object) -> None:
        """An operation that writes the map of ``op.out``, or of the rectifier or mask that alone reads it.

        ``drop``: fraction bits that rounding takes away.
        """
        out, ends, mask = op.out, _ends(op.out), (native.NONE, 0)
        following = self.users.get(out.name, [])
        if len(following) == 1 and out not in self.graph.outputs:
            match following[0]:
                case (Relu(out=after) | ClippedRelu(out=after)) as reader if after.format == out.format:
                    out, ends = after, _rectified(reader)
                case (ReluGrad(out=after, g=g) | ClippedReluGrad(out=after, g=g)) as reader if (
                        g == out and after.format == out.format):
                    out, mask = after, self._mask(reader)
        self.operations.append(operation(kind, source, target=self._map(out), mask=mask[0], mask_high=mask[1],
                                         rounding=rounding_of(drop, ends), **more))

    def _mask(self, op: ReluGrad | ClippedReluGrad) -> tuple[int, int]:
        """The map of the mask, and its largest word that lets a gradient pass."""
        _, high = _ends(op.y)
        return self.places[op.y.name], min(high, units(op.bound, op.y) - 1) if isinstance(op, ClippedReluGrad) else high

    def _move(self, op: Relu | ClippedRelu | ReluGrad | ClippedReluGrad | Reshape, x: Value) -> None:
        if op.out.name in self.places:
            return  # done by the operation before
        if isinstance(op, Reshape) and _same(x, op.out):
            self._share(op.out, x)
            return
        mask = self._mask(op) if isinstance(op, ReluGrad | ClippedReluGrad) else (native.NONE, 0)
        ends = _rectified(op) if isinstance(op, Relu | ClippedRelu) else _ends(op.out)
        shift = _frac(x) - _frac(op.out)
        target = self._map(Value(op.out.name, TensorType(x.shape, op.out.format)))
        self.operations.append(operation(
            native.COMBINE, self.places[x.name], target=target, mask=mask[0], mask_high=mask[1],
            same=_same(x, op.out), rounding=rounding_of(shift, ends)))
        if x.shape != op.out.shape:
            self.shared |= {target, self._map(op.out, owner=target)}

    def _share(self, value: Value, source: Value) -> None:
        """Let ``value`` have the memory of ``source``."""
        place = self.places[source.name]
        if value.shape == source.shape:
            self.places[value.name] = place
            return
        if any(self.maps[place].border):
            place = self._copied(place)
        owner = place if self.maps[place].owner == native.NONE else self.maps[place].owner
        self.shared |= {owner, self._map(value, owner=owner)}

    def _copied(self, source: int) -> int:
        """Another map with the words of ``source``."""
        if source not in self.copies:
            self.maps.append(_Placed(self.maps[source].shape))
            self.copies[source] = len(self.maps) - 1
            every = native.Rounding(0, -1 << WORD_BITS - 1, (1 << WORD_BITS - 1) - 1)
            self.operations.append(operation(native.COMBINE, source, target=self.copies[source], same=1,
                                             rounding=every))
        return self.copies[source]

    def _convolve(self, op: Conv2d | Linear, x: Value, w: Value, b: Value | None, window: Window, groups: int) -> None:
        source = self.places[x.name]
        source, told = self._window(source, w.shape[0], window, groups)
        frac = _frac(x) + _frac(w)
        bias_shift = 0 if b is None else frac - _frac(b)
        _require_words(w)
        if bias_shift < 0:
            raise Unknown("a bias finer than the sums")
        self._write(op, native.CONVOLVE, source, frac - _frac(op.out), window=told, pad_y=window.pad[0],
                    pad_x=window.pad[1], weights=self.offsets[w.name],
                    bias=native.NONE if b is None else self.offsets[b.name], bias_shift=bias_shift)

    def _input_gradient(self, op: Conv2dInputGrad | LinearInputGrad, g: Value, w: Value, window: Window, groups: int
                        ) -> None:
        """A convolution of the gradient, spread by the stride, with the turned kernel."""
        source = self.places[g.name]
        if window.stride != (1, 1):
            source = self._spread(source, window.stride)
        reach = [dilation * (kernel - 1) for dilation, kernel in zip(window.dilation, window.kernel, strict=True)]
        pad = [reach[axis] - window.pad[axis] for axis in (0, 1)]
        shape = op.out.shape if len(op.out.shape) == 3 else (prod(op.out.shape), 1, 1)
        source = self._reach(source, pad, [shape[1 + axis] + reach[axis] for axis in (0, 1)])
        told = native.Window(self.maps[source].shape[0], shape[0], groups, *window.kernel, 1, 1, *window.dilation,
                             *shape[1:])
        self._write(op, native.CONVOLVE, source, _frac(g) + _frac(w) - _frac(op.out), window=told, pad_y=pad[0],
                    pad_x=pad[1], turned=1, weights=self.offsets[w.name], bias=native.NONE)

    def _spread(self, source: int, stride: tuple[int, int]) -> int:
        channels, height, width = self.maps[source].shape
        self.maps.append(_Placed((channels, (height - 1) * stride[0] + 1, (width - 1) * stride[1] + 1), step=stride))
        window = native.Window(channels, channels, 1, 1, 1, *stride, 1, 1, height, width)
        self.operations.append(operation(native.SPREAD, source, target=len(self.maps) - 1, window=window))
        return len(self.maps) - 1

    def _weight_gradient(self, op: Conv2dWeightGrad | LinearWeightGrad, x: Value, g: Value, window: Window, groups: int
                         ) -> None:
        source = self.places[x.name]
        source, told = self._window(source, g.shape[0], window, groups)
        self.operations.append(operation(
            native.WEIGHT_GRADIENT, source, second=self.places[g.name], window=told, pad_y=window.pad[0],
            pad_x=window.pad[1], weights=self._parameter(op.out)))
        self._round_gradient(op.out, _frac(x) + _frac(g))

    def _window(self, source: int, outputs: int, window: Window, groups: int) -> tuple[int, ctypes.Structure]:
        """How ``window`` walks over the map ``source`` or, where that cannot have the border, its copy."""
        channels, *size = self.maps[source].shape
        out = window.out_size(*size)
        ends = [(out[axis] - 1) * window.stride[axis] + window.dilation[axis] * (window.kernel[axis] - 1) + 1
                for axis in (0, 1)]
        source = self._reach(source, window.pad[:2], ends)
        return source, native.Window(channels, outputs, groups, *window.kernel, *window.stride, *window.dilation, *out)

    def _reach(self, source: int, pad: Sequence[int], ends: Sequence[int]) -> int:
        """A map with the words of ``source`` of which rows ``-pad .. ends - pad - 1`` can be read, columns likewise."""
        size = self.maps[source].shape[1:]
        wanted = [*pad, *(ends[axis] - pad[axis] - size[axis] for axis in (0, 1))]
        if max(wanted) > 0 and source in self.shared:
            source = self._copied(source)
        placed = self.maps[source]
        placed.border = [max(pair) for pair in zip(placed.border, wanted, strict=True)]
        return source

    def _average(self, op: Op, kind: int, x: Value, window: Window) -> None:
        self._write(op, kind, self.places[x.name], _frac(x) + AVERAGE_FRAC - _frac(op.out), pool=_pool(window),
                    reciprocal=average_reciprocal(prod(window.kernel)))

    def _parameter(self, gradient: Value) -> int:
        if gradient.name not in self.owners:
            raise Unknown(f"{gradient} is part of a gradient")
        return self.offsets[self.owners[gradient.name]]

    def _round_gradient(self, gradient: Value, frac: int) -> None:
        assert isinstance(gradient.format, Fixed), gradient
        self.roundings[gradient.name] = Rounding(frac - gradient.format.frac, gradient.format.low, gradient.format.high)


def _require_words(value: Value) -> None:
    """Maps and weights are int16."""
    if not isinstance(value.format, Fixed) or value.format.width > WORD_BITS or not value.format.signed:
        raise Unknown(f"words of {value}")


def operation(kind: int, source: int, **fields: object) -> ctypes.Structure:
    missing = {"second": native.NONE, "mask": native.NONE, "target": native.NONE}
    return native.Operation(kind=kind, source=source, **{**missing, **fields})


def _pool(window: Window) -> ctypes.Structure:
    apart = (all(step >= size for step, size in zip(window.stride, window.kernel, strict=True))
             and not any(window.pad) and window.dilation == (1, 1))
    return native.Pool(*window.kernel, *window.stride, *window.dilation, *window.pad[:2], apart)


def rounding_of(shift: int, ends: tuple[int, int]) -> ctypes.Structure:
    return native.Rounding(max(-63, min(63, shift)), *ends)


def _frac(value: Value) -> int:
    assert isinstance(value.format, Fixed), value
    return value.format.frac


def _ends(value: Value) -> tuple[int, int]:
    """The smallest and the largest word of a value."""
    assert isinstance(value.format, Fixed), value
    return value.format.low, value.format.high


def _rectified(op: Relu | ClippedRelu) -> tuple[int, int]:
    """The smallest and the largest word of a rectifier's result."""
    _, high = _ends(op.out)
    return 0, min(high, units(op.bound, op.out)) if isinstance(op, ClippedRelu) else high


def _same(x: Value, out: Value) -> bool:
    return x.format == out.format
