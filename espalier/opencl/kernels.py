"""Kernels as TensorIR functions, before anything is scheduled.

A kernel computes a map (blocks, rows, columns, block): for each element a sum (or maximum) over terms, block "sum",
and what follows from it, block "out". Without a cache for sums these are two kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from espalier.numerics.window import Window
from espalier.opencl.arithmetic import Expr
from espalier.opencl.layout import Layout
from espalier.opencl.loops import Loop

SUM, OUT = "sum", "out"  #: names of the blocks
Index = tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Argument:
    """A buffer that a kernel reads or writes."""

    name: str
    shape: tuple[int, ...]
    type: str


@dataclass(frozen=True, slots=True)
class Terms:
    """What is added up, or of which the largest is taken, for each element.

    Parameters
    ----------
    arguments : tuple of Argument
        What is read.
    extents : tuple of int
        Of the terms' axes.
    term : callable
        Of the buffers, the element (block, row, column, channel in the block) and the place on those axes.
    start : callable
        Of the buffers and the element.
    maximum : bool
        Not the sum.
    """

    arguments: tuple[Argument, ...]
    extents: tuple[int, ...]
    term: Callable[[Mapping[str, Any], Index, Index], Expr]
    start: Callable[[Mapping[str, Any], Index], Expr]
    maximum: bool = False


@dataclass(frozen=True, slots=True)
class Kernel:
    """A TensorIR function that becomes one OpenCL kernel, and what it is given, in that order; it writes the last.

    ``kind`` says how it can be scheduled: ``"dense"``; ``"window"`` (terms of an element are of its own channel alone);
    ``"copy"``; ``"gather"`` (what makes a vector does not lie side by side); ``"list"`` (it is already: ``groups``
    work-groups). ``blocks`` are those of SUM and OUT that it has; ``terms`` are those of an element,
    ``multiplications`` those of one run; ``sums`` is their type.
    """

    name: str
    function: Any
    arguments: tuple[Argument, ...]
    kind: str
    result: Layout
    blocks: tuple[str, ...]
    terms: int
    sums: str
    multiplications: int = 0
    groups: int = 0
    loop: Loop | None = None  #: of a kernel in a list


Read = tuple[Argument, Layout]  #: an activation, and how it lies
Finish = Callable[[Expr, Sequence[Expr], int], Expr]
"""Of a sum, the elements that are added to it, and how many elements each of them is a vector of: what is written."""


def kernels(name: str, kind: str, result: Read, sums: str, terms: Terms, others: Sequence[Read],
            finish: Finish, *, cached: bool, multiplications: int = 0) -> list[Kernel]:
    """The kernels of one work. ``sums`` is the type of its sums, ``others`` is what ``finish`` reads besides them."""
    out, layout = result
    domain = (layout.blocks, *layout.shape[1:], layout.block)
    beside = [argument for argument, _ in others]

    def store(buffers: Mapping[str, Any], total: Expr, at: Index) -> None:
        seen = [buffers[argument.name][_within(lies, at)] for argument, lies in others]
        T.buffer_store(buffers[out.name], finish(total, seen, 1).astype(out.type), _within(layout, at))

    def add_up(buffers: Mapping[str, Any], into: Any) -> None:
        with T.grid(*domain, *terms.extents) as axes, T.sblock(SUM):
            *at, = (T.axis.spatial(size, axis) for size, axis in zip(domain, axes, strict=False))
            over = tuple(T.axis.reduce(size, axis) for size, axis in zip(terms.extents, axes[4:], strict=True))
            with T.init():
                T.buffer_store(into, terms.start(buffers, tuple(at)), at)
            term = terms.term(buffers, tuple(at), over)
            before = into[tuple(at)]
            T.buffer_store(into, tirx.max(before, term) if terms.maximum else before + term, at)

    def finish_all(buffers: Mapping[str, Any], total: Any) -> None:
        with T.grid(*domain) as axes, T.sblock(OUT):
            at = tuple(T.axis.spatial(size, axis) for size, axis in zip(domain, axes, strict=True))
            store(buffers, terms.term(buffers, at, ()) if total is None else total[at], at)

    def make(title: str, arguments: Sequence[Argument], body: Callable[[Mapping[str, Any]], None], kind: str,
             blocks: tuple[str, ...], multiplied: int) -> Kernel:
        arguments = tuple(dict.fromkeys(arguments))  # a sum may add what the layer read
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name(title)
            T.func_attr({"tirx.noalias": True})
            body({argument.name: T.arg(argument.name, T.Buffer(argument.shape, argument.type))
                  for argument in arguments})
        return Kernel(title, builder.get(), arguments, kind, layout, blocks, prod(terms.extents), sums, multiplied)

    def whole(buffers: Mapping[str, Any]) -> None:
        if not terms.extents:
            finish_all(buffers, None)
            return
        total = T.sblock_alloc_buffer(domain, sums)
        add_up(buffers, total)
        finish_all(buffers, total)

    if cached or not terms.extents:
        found = (SUM, OUT) if terms.extents else (OUT,)
        return [make(name, (*terms.arguments, *beside, out), whole, kind, found, multiplications)]
    total = Argument(f"{name}_sums", domain, sums)
    return [make(f"{name}_sum", (*terms.arguments, total), lambda found: add_up(found, found[total.name]), kind,
                 (SUM,), multiplications),
            make(name, (total, *beside, out), lambda found: finish_all(found, found[total.name]), "copy", (OUT,), 0)]


def _within(layout: Layout, at: Index) -> Index:
    """Where an element lies, behind the halo."""
    return at[0], at[1] + layout.halo[0], at[2] + layout.halo[1], at[3]


def convolution(x: Read, w: Argument, b: Argument | None, window: Window, result: Layout, sums: str,
                *, packed: bool) -> Terms:
    """``w`` as :func:`espalier.opencl.weights.dense` has it."""
    source, layout = x
    (ky, kx), (sy, sx), (dy, dx) = window.kernel, window.stride, window.dilation
    top, left = layout.halo[0] - window.pad[0], layout.halo[1] - window.pad[1]

    def term(buffers: Mapping[str, Any], at: Index, over: Index) -> Expr:
        (o, row, column, v), (block, y, z, i) = at, over
        seen = buffers[source.name][block, row * sy + y * dy + top, column * sx + z * dx + left, i]
        weight = (buffers[w.name][o, block, y, z, i, v] if packed else
                  buffers[w.name][o * result.block + v, block * layout.block + i, y, z])
        return seen.astype(sums) * weight.astype(sums)

    return Terms((source, w, *([] if b is None else [b])), (layout.blocks, ky, kx, layout.block), term,
                 _bias(b, result.block, sums))


def depthwise(x: Read, w: Argument, b: Argument | None, window: Window, sums: str) -> Terms:
    """``w`` (blocks, KH, KW, block)."""
    source, layout = x
    seen = _seen(source, layout, window)

    def term(buffers: Mapping[str, Any], at: Index, over: Index) -> Expr:
        return seen(buffers, at, over).astype(sums) * buffers[w.name][at[0], over[0], over[1], at[3]].astype(sums)

    return Terms((source, w, *([] if b is None else [b])), window.kernel, term, _bias(b, layout.block, sums))


def _bias(b: Argument | None, block: int, sums: str) -> Callable[[Mapping[str, Any], Index], Expr]:
    if b is None:
        return lambda buffers, at: tirx.const(0, sums)
    return lambda buffers, at: buffers[b.name][at[0] * block + at[3]]


def _seen(source: Argument, layout: Layout, window: Window) -> Callable[[Mapping[str, Any], Index, Index], Expr]:
    """What a window sees of an element's own channel, zeros around."""
    (sy, sx), (dy, dx) = window.stride, window.dilation
    top, left = layout.halo[0] - window.pad[0], layout.halo[1] - window.pad[1]

    def seen(buffers: Mapping[str, Any], at: Index, over: Index) -> Expr:
        return buffers[source.name][at[0], at[1] * sy + over[0] * dy + top, at[2] * sx + over[1] * dx + left, at[3]]

    return seen


def average_pool(x: Read, window: Window, sums: str) -> Terms:
    """The sum under a window."""
    source, layout = x
    seen = _seen(source, layout, window)
    return Terms((source,), window.kernel, lambda buffers, at, over: seen(buffers, at, over).astype(sums),
                 lambda buffers, at: tirx.const(0, sums))


def max_pool(x: Read, window: Window, sums: str) -> Terms:
    """The largest under a window; where this looks beyond the map, it sees what it sees anyway: its tap next inside."""
    source, layout = x
    top, left, _, _ = layout.halo

    def inside(place: Expr, size: int, dilation: int, padded: bool) -> Expr:
        if not padded:
            return place
        if dilation == 1:
            return tirx.max(tirx.min(place, size - 1), 0)
        after = tirx.Select(place >= size, size - 1 - tirx.floormod(size - 1 - place, dilation), place)
        return tirx.Select(place < 0, tirx.floormod(place, dilation), after)

    def term(buffers: Mapping[str, Any], at: Index, over: Index) -> Expr:
        row, column = (at[1 + axis] * window.stride[axis] + over[axis] * window.dilation[axis] - window.pad[axis]
                       for axis in (0, 1))
        row = inside(row, layout.shape[1], window.dilation[0], bool(window.pad[0] or window.pad[2]))
        column = inside(column, layout.shape[2], window.dilation[1], bool(window.pad[1] or window.pad[3]))
        return buffers[source.name][at[0], row + top, column + left, at[3]].astype(sums)

    return Terms((source,), window.kernel, term, lambda buffers, at: tirx.min_value(sums), maximum=True)


def copy(x: Read, result: Layout, sums: str) -> Terms:
    """The same elements, in row-major order, under the result's shape."""
    source, layout = x
    _, height, width = layout.shape

    def term(buffers: Mapping[str, Any], at: Index, over: Index) -> Expr:
        block, row, column, v = at
        if layout.shape == result.shape and layout.block == result.block:
            found = buffers[source.name][block, row + layout.halo[0], column + layout.halo[1], v]
            return found.astype(sums)
        flat = ((block * result.block + v) * result.shape[1] + row) * result.shape[2] + column
        place = flat // (height * width), flat // width % height, flat % width
        return tirx.if_then_else(place[0] < layout.shape[0], _element(buffers, x, place).astype(sums),
                                 tirx.const(0, sums))

    return Terms((source,), (), term, lambda buffers, at: tirx.const(0, sums))


def concatenation(parts: Sequence[Read], result: Layout,
                  rounded: Sequence[Callable[[Expr], Expr]], sums: str) -> Terms:
    """The channels of one value, then those of the other; ``rounded`` brings each into the result's format."""
    def term(buffers: Mapping[str, Any], at: Index, over: Index) -> Expr:
        channel, found = at[0] * result.block + at[3], tirx.const(0, sums)
        first = result.shape[0]
        for part, change in zip(reversed(parts), reversed(rounded), strict=True):
            first -= part[1].shape[0]
            place = (channel - first, at[1], at[2])
            inside = tirx.all(channel >= first, channel < first + part[1].shape[0])
            found = tirx.if_then_else(inside, change(_element(buffers, part, place).astype(sums)), found)
        return found

    return Terms(tuple(argument for argument, _ in parts), (), term, lambda buffers, at: tirx.const(0, sums))


def _element(buffers: Mapping[str, Any], x: Read, place: Index) -> Expr:
    """The element at (channel, row, column)."""
    source, layout = x
    channel, row, column = place
    return buffers[source.name][channel // layout.block, row + layout.halo[0], column + layout.halo[1],
                                channel % layout.block]
