"""From a graph and its parameters to kernels, what they are given, and the order in which they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from espalier.ir.graph import Graph
from espalier.ir.interpret import aligned_bias, frac_of, product_frac
from espalier.ir.ops import Add, AveragePool, Concat, Conv2d, GlobalAveragePool, Linear, MaxPool, Reshape
from espalier.ir.types import Fixed, Value
from espalier.numerics.activation import AVERAGE_FRAC, average_reciprocal
from espalier.numerics.convolution import ungrouped
from espalier.numerics.window import Window
from espalier.opencl import kernels as k
from espalier.opencl import lists as ls
from espalier.opencl import weights as w
from espalier.opencl.arithmetic import (
    REAL,
    REAL_MAX,
    Expr,
    Number,
    element_type,
    largest_following,
    largest_rounding,
    product_sum_type,
    sum_type,
    word_limit,
)
from espalier.opencl.choice import Choose, first
from espalier.opencl.flat import WHOLE, Key, Stride, Walk, flat_layouts, vectors, walk
from espalier.opencl.kernels import Argument, Kernel, Read, Terms
from espalier.opencl.layout import Layout
from espalier.opencl.optimisations import Optimisations
from espalier.opencl.plan import Source, Work, map_shape, plan, viewed

FEW = 0.3  #: of the weights (each as often as it is used) that live: from there on down, lists of them are faster


@dataclass(slots=True)
class Lowered:
    """A network as kernels, in the order in which they run.

    ``names`` are those of values in OpenCL C; ``layouts`` are of activations, ``weights`` by their buffer. ``splits``
    are layouts of maps that are split by a stride (``flat.py``), of a network whose weights are in lists. ``wide`` are
    words that lie in buffers as float32.
    """

    names: dict[Value, str]
    wide: frozenset[Value] = frozenset()
    kernels: list[Kernel] = field(default_factory=list)
    layouts: dict[Value, Layout] = field(default_factory=dict)
    splits: dict[Key, Layout] = field(default_factory=dict)
    weights: dict[str, NDArray] = field(default_factory=dict)

    def argument(self, value: Value) -> Argument:
        """The buffer of an activation."""
        return Argument(self.names[value], self.layouts[value].array_shape, self.type_of(value))

    def type_of(self, value: Value) -> str:
        """Of an activation's elements."""
        return REAL if value in self.wide else element_type(value.format)


def _word(name: str) -> str:
    """What of a name OpenCL takes."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name)


def lower(graph: Graph, parameters: Mapping[str, NDArray], options: Optimisations, choose: Choose = first) -> Lowered:
    """Raises UnsupportedError for what no kernel does."""
    works = plan(graph, fusion=options.fusion)
    names = {value: f"v{number}_{_word(value.name)}" for number, value in enumerate(graph.values())}
    wide = _wide(graph, parameters) if options.wide_words else frozenset()
    if options.lists and options.cached_writes and _live(graph, parameters) <= FEW:
        every = flat_layouts(graph, works, options.block)
        found = Lowered(names, wide,
                        layouts={value: layout for (value, stride), layout in every.items() if stride == WHOLE},
                        splits={key: layout for key, layout in every.items() if key[1] != WHOLE})
        for work in works:
            _Listing(graph, parameters, options, found, work, choose).run()
    else:
        found = Lowered(names, wide, layouts=_layouts(graph, works, options))
        for work in works:
            _Lowering(graph, parameters, options, found, work, choose).run()
    return found


def _wide(graph: Graph, parameters: Mapping[str, NDArray]) -> frozenset[Value]:
    """Words that layers read, all of which add up in float32, and that are no results."""
    sums: dict[Value, set[bool]] = {}
    for op in graph.layers():
        sums.setdefault(viewed(graph, op.x), set()).add(largest_products(op, parameters) <= REAL_MAX)
    return frozenset(value for value, small in sums.items() if small == {True} and value not in graph.outputs)


def largest_products(op: Conv2d | Linear, parameters: Mapping[str, NDArray]) -> int:
    """What the products of a layer and its bias add up to at most, in any order; in float, too large."""
    if not isinstance(op.out.format, Fixed):
        return REAL_MAX + 1
    weights = np.abs(np.asarray(parameters[op.w.name])).reshape(op.w.shape[0], -1).sum(axis=1)
    bias = 0 if op.b is None else np.abs(aligned_bias(op, np.asarray(parameters[op.b.name])))
    return int((weights * word_limit(op.x) + bias).max(initial=0))


def _live(graph: Graph, parameters: Mapping[str, NDArray]) -> float:
    """The part of the weights that are not zero, each as often as an image uses it; 1 where there are none."""
    live = every = 0
    for op in graph.layers():
        weights, pixels = parameters[op.w.name], prod(map_shape(op.out)[1:])
        live, every = live + int(np.count_nonzero(weights)) * pixels, every + weights.size * pixels
    return live / every if every else 1.0


def _layouts(graph: Graph, works: tuple[Work, ...], options: Optimisations) -> dict[Value, Layout]:
    """Blocks of channels as wide as a vector, the image's as wide as itself; halos as wide as any reader's padding."""
    halos: dict[Value, list[int]] = {}
    for work in works:
        match work.op:
            case Conv2d(window=window) | AveragePool(window=window):
                halo = halos.get(work.op.x, [0, 0, 0, 0])
                halos[work.op.x] = [max(pair) for pair in zip(halo, window.pad, strict=True)]
            case _:
                pass
    found = {}
    for value in (*graph.inputs, *(work.out for work in works)):
        shape = map_shape(value)
        own = shape[0] if value in graph.inputs and _is_broadcast(graph, value) else 1 << (shape[0] - 1).bit_length()
        top, left, bottom, right = halos.get(value, [0, 0, 0, 0])
        found[value] = Layout(shape, min(options.block, own), (top, left, bottom, right))
    return found


def _is_broadcast(graph: Graph, value: Value) -> bool:
    """Whether all that read ``value`` read single elements, not vectors of them."""
    return all(isinstance(user, Linear) or (isinstance(user, Conv2d) and user.groups == 1)
               for user in graph.users(value))


@dataclass(slots=True)
class _Lowering:
    graph: Graph
    parameters: Mapping[str, NDArray]
    options: Optimisations
    found: Lowered
    work: Work
    choose: Choose

    def run(self) -> None:
        op, out = self.work.op, self.work.out
        largest = max([self._largest(op), *self._followers_largest()])
        sums = sum_type(out, largest)
        added = (product_sum_type(largest_products(op, self.parameters), sums) if isinstance(op, Conv2d | Linear)
                 else sums)
        others = [self._read(value) for value in self.work.others()]
        self._kernels(self._read(out), added, others, self._finish(sums))

    def _kernels(self, result: Read, sums: str, others: list[Read], finish: k.Finish) -> None:
        terms, kind, count = self._terms(self.work.op, sums)
        self.found.kernels += k.kernels(self._name(self.work.first), kind, result, sums, terms, others, finish,
                                        cached=self.options.cached_writes, multiplications=count)

    def _name(self, value: Value) -> str:
        return f"k{len(self.found.kernels)}_{_word(value.name)}"

    def _layout(self, value: Value) -> Layout:
        return self.found.layouts[value]

    def _read(self, value: Value) -> Read:
        return self.found.argument(value), self._layout(value)

    def _weights(self, value: Value, array: NDArray, type_: str | None = None) -> Argument:
        """A buffer of this kernel's own: another that reads the same weights may need them in another order."""
        type_ = type_ or element_type(value.format)
        name = f"{self.found.names[value]}_{len(self.found.kernels)}"
        self.found.weights[name] = array.astype(np.dtype(type_))
        return Argument(name, array.shape, type_)

    def _terms(self, op: Source, sums: str) -> tuple[Terms, str, int]:
        """What is added up, how that can be scheduled, and how many multiplications it is."""
        match op:
            case Conv2d(window=window, groups=groups):
                return self._convolution(op, op.x, self._array(op.w), window, groups, sums)
            case Linear():
                x = viewed(self.graph, op.x)
                channels, height, width = map_shape(x)
                array = self._array(op.w).reshape(-1, channels, height, width)
                return self._convolution(op, x, array, Window((height, width)), 1, sums)
            case MaxPool(window=window):
                return k.max_pool(self._read(op.x), window, sums), "window", 0
            case AveragePool(window=window):
                return k.average_pool(self._read(op.x), window, sums), "window", 0
            case GlobalAveragePool():
                return k.average_pool(self._read(op.x), Window(map_shape(op.x)[1:]), sums), "window", 0
            case Concat():
                parts = (op.a, op.b)
                rounded = [self._rounding(part, op.out, sums) for part in parts]
                return k.concatenation([self._read(part) for part in parts], self._layout(self.work.out), rounded,
                                       sums), "gather", 0
            case Reshape(x=x) | (Value() as x):
                same = self._layout(x).shape == self._layout(self.work.out).shape
                return k.copy(self._read(x), self._layout(self.work.out), sums), "copy" if same else "gather", 0
            case _:
                assert_never(op)

    def _array(self, value: Value) -> NDArray:
        return np.asarray(self.parameters[value.name])

    def _convolution(self, op: Conv2d | Linear, x: Value, array: NDArray, window: Window, groups: int, sums: str
                     ) -> tuple[Terms, str, int]:
        layout, result = self._layout(x), self._layout(self.work.out)
        b = None if op.b is None else self._weights(
            op.b, w.bias(aligned_bias(op, self._array(op.b)), result.block), sums)
        pixels = result.shape[1] * result.shape[2]
        if groups == len(array) == layout.shape[0] and layout.block == result.block:
            own = self._weights(op.w, w.depthwise(array, layout.block), self._weight_type(op, x))
            return k.depthwise(self._read(x), own, b, window, sums), "window", array.size * pixels
        packed = self.options.weight_layout
        every = w.dense(ungrouped(array, groups), layout.block, result.block, packed=packed)
        type_ = self._weight_type(op, x)
        if type_ == "int8" and not packed:
            type_ = "int16"  # TVM's vectors of bytes that do not lie side by side are wrong OpenCL C
        terms = k.convolution(self._read(x), self._weights(op.w, every, type_), b, window, result, sums, packed=packed)
        return terms, "dense", array.size * pixels

    def _weight_type(self, op: Conv2d | Linear, x: Value) -> str:
        """As wide as what they meet."""
        return REAL if x in self.found.wide else element_type(op.w.format)

    def _rounding(self, value: Value, out: Value, sums: str) -> Any:
        return lambda expr: Number(expr, sums, frac_of(value)).rounded(out).expr

    def _finish(self, sums: str) -> k.Finish:
        """From the sum of an element to what is written: rounded, then what follows."""
        op = self.work.op

        def finish(total: Expr, others: Sequence[Expr], lanes: int) -> Expr:
            type_ = sums if lanes == 1 else f"{sums}x{lanes}"
            left = [Number(expr.astype(type_), sums, frac_of(value))
                    for value, expr in zip(self.work.others(), others, strict=True)]
            number = self._rounded(op, total.astype(type_), sums)
            for follower in self.work.followers:
                number = number.followed(follower, left.pop(0) if isinstance(follower, Add) else None)
            return number.expr

        return finish

    def _rounded(self, op: Source, total: Expr, sums: str) -> Number:
        """The result of ``op`` from its sum."""
        match op:
            case Conv2d() | Linear():
                return Number(total, sums, product_frac(op.x, op.w)).rounded(op.out)
            case AveragePool() | GlobalAveragePool():
                return self._mean(op, total, sums).rounded(op.out)
            case MaxPool() | Reshape():
                return Number(total, sums, frac_of(op.x)).rounded(op.out)
            case Concat():
                return Number(total, sums, frac_of(op.out))
            case Value():
                return Number(total, sums, frac_of(op))
            case _:
                assert_never(op)

    def _mean(self, op: AveragePool | GlobalAveragePool, total: Expr, sums: str) -> Number:
        count = _window_size(op)
        frac = frac_of(op.x)
        if frac is None:
            return Number(total / float(count), sums, None)
        return Number(total * tirx.const(average_reciprocal(count), sums), sums, frac + AVERAGE_FRAC)

    def _largest(self, op: Source) -> int:
        """The largest magnitude on the way to the result of ``op``; in float it does not matter."""
        if not isinstance(self.work.first.format, Fixed):
            return 0
        match op:
            case Conv2d() | Linear():
                return largest_rounding(largest_products(op, self.parameters), product_frac(op.x, op.w), op.out)
            case AveragePool() | GlobalAveragePool():
                count = _window_size(op)
                frac = frac_of(op.x)
                assert frac is not None, "its result is in fixed point, so it is"
                return largest_rounding(count * word_limit(op.x) * average_reciprocal(count), frac + AVERAGE_FRAC,
                                        op.out)
            case Concat():
                return max(largest_rounding(word_limit(part), frac_of(part), op.out) for part in (op.a, op.b))
            case MaxPool() | Reshape():
                return largest_rounding(word_limit(op.x), frac_of(op.x), op.out)
            case Value():
                return word_limit(op)
            case _:
                assert_never(op)

    def _followers_largest(self) -> list[int]:
        found, value, others = [], self.work.first, list(self.work.others())
        for op in self.work.followers:
            found.append(largest_following(op, value, others.pop(0) if isinstance(op, Add) else None))
            value = op.out
        return found


class _Listing(_Lowering):
    """Of a network whose maps are flat: layers walk lists, all else is as ever."""

    def _kernels(self, result: Read, sums: str, others: list[Read], finish: k.Finish) -> None:
        match self.work.op:
            case Conv2d(window=window) as op:
                self._layer(op, self._array(op.w), window, result, sums, others, finish)
            case Linear() as op:
                shape = map_shape(viewed(self.graph, op.x))
                self._layer(op, self._array(op.w).reshape(-1, *shape), Window(shape[1:]), result, sums, others, finish)
            case _:
                super()._kernels(result, sums, others, finish)

    def _layer(self, op: Conv2d | Linear, array: NDArray, window: Window, result: Read, sums: str, others: list[Read],
               finish: k.Finish) -> None:
        x, groups = viewed(self.graph, op.x), op.groups if isinstance(op, Conv2d) else 1
        (_, out), way = result, walk(op, self.options.block)
        if way is Walk.VECTORS:
            lanes, (source, layout) = self.options.block, self._phases(x, window.stride)
            tiling = self._tiling(op, array, groups, (layout, out))
            path = ls.through_vectors(out, lanes, tiling.vectors)
        elif way is Walk.ROWS:
            lanes, (source, layout) = self.options.block, self._read(x)
            path = ls.through_rows(out, layout, lanes, window.stride)
            tiling = ls.Tiling(vectors=path.vectors)
        else:
            lanes, (source, layout) = 1, self._read(x)
            tiling = ls.tilings(array, groups, 1, self.options.tiling)[0]
            path = ls.through_vectors(out, lanes, 1)
        read = window if way is Walk.VECTORS else replace(window, stride=WHOLE)
        lists = ls.lists_of(array, ls.places_of(layout, self._layout(x), read), groups, tiling)
        mask = ls.mask_of(out, lanes) if way is Walk.VECTORS else None
        found = ls.listed(f"{self.found.names[op.w]}_{len(self.found.kernels)}", lists, self._weight_type(op, x),
                          mask, self.found.type_of(self.work.out))
        self.found.weights |= found.arrays
        self.found.kernels.append(ls.list_kernel(
            self._name(self.work.first), source, found, self._bias(op, sums), result, others, sums, tiling, path,
            finish, self.options, lanes))

    def _tiling(self, op: Conv2d | Linear, array: NDArray, groups: int, layouts: tuple[Layout, Layout]) -> ls.Tiling:
        _, out = layouts
        count = vectors(out.shape, out.array_shape[2], self.options.block)
        window = getattr(op, "window", None)
        signature = (f"list {layouts} {window} {groups} {op.x.format} {op.w.format} {op.out.format} "
                     f"{np.count_nonzero(array)} {self.options}")
        found = ls.tilings(array, groups, count, self.options.tiling)
        return ls.Tiling(*self.choose(self._name(self.work.first), signature, found))

    def _bias(self, op: Conv2d | Linear, sums: str) -> Argument | None:
        return None if op.b is None else self._weights(op.b, aligned_bias(op, self._array(op.b)), sums)

    def _phases(self, value: Value, stride: Stride) -> Read:
        """A map as a layer of that stride reads it; a kernel splits it unless one has."""
        if stride == WHOLE:
            return self._read(value)
        layout = self.found.splits[value, stride]
        own = Argument(f"{self.found.names[value]}_by_{stride[0]}_{stride[1]}", layout.array_shape,
                       self.found.type_of(value))
        if not any(own.name == argument.name for kernel in self.found.kernels for argument in kernel.arguments):
            self.found.kernels.append(ls.split_kernel(self._name(value), self._read(value), (own, layout), stride,
                                                      self.options))
        return own, layout


def _window_size(op: AveragePool | GlobalAveragePool) -> int:
    if isinstance(op, AveragePool):
        return op.window.kernel[0] * op.window.kernel[1]
    _, height, width = map_shape(op.x)
    return height * width
