"""Kernels that walk lists of the weights that live, as the engine does: what is dead takes no time and no memory.

An entry of a list is a column of the engine's block: up to MOST weights of consecutive outputs for one input channel
and tap, and how far from a pixel of the result the pixel lies that they meet. Its weights meet a tile of vectors of
pixels (``flat.py``), each of which is loaded once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from espalier.numerics.window import Window
from espalier.opencl.arithmetic import Expr
from espalier.opencl.bundle import TYPES
from espalier.opencl.flat import Plane, Stride, inside, tap, vectors
from espalier.opencl.kernels import Argument, Finish, Kernel, Read
from espalier.opencl.layout import Layout
from espalier.opencl.loops import Loop
from espalier.opencl.optimisations import Optimisations

MOST = 8           #: outputs of an entry
REGISTERS = 24     #: sums of a tile, as vectors
LOAD, SUM = 2.0, 0.5  #: cycles of a processor: to load a vector from its second cache, and to add a product
ENTRY = 2.0        #: of an entry, besides
LATENCY = 4        #: sums that are under way at a time


class Tiling(NamedTuple):
    """What a work-group does at a time.

    Parameters
    ----------
    outputs : int
        Of an entry: a divisor of a group's.
    vectors : int
        Of pixels that each weight meets.
    chains : int
        Sums of each output and pixel, side by side, which entries take turns in.
    """

    outputs: int = 1
    vectors: int = 1
    chains: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """The weights that live, by blocks of outputs, each block's filled up with zeros to whole turns of its chains.

    Parameters
    ----------
    starts : ndarray
        Of each block's turns, and the end of the last: (blocks + 1,).
    places : ndarray
        From a pixel of the result to what each entry reads: (turns, chains).
    weights : ndarray
        (turns, chains, outputs).
    """

    starts: NDArray[np.int32]
    places: NDArray[np.int32]
    weights: NDArray


def lists_of(weights: NDArray, places: NDArray, groups: int, tiling: Tiling) -> Lists:
    """Of weights (O, I/groups, KH, KW); ``places`` (I, KH, KW) are where each channel's taps lie.

    There is one turn at least, as no buffer is empty.
    """
    total, *rest = weights.shape
    chains, outputs = tiling.chains, tiling.outputs
    blocks = weights.reshape(total // outputs, outputs, prod(rest))
    own = np.repeat(places.reshape(groups, -1), total // groups // outputs, axis=0)  # of each block of outputs
    block, term = np.nonzero((blocks != 0).any(axis=1))
    counts = np.bincount(block, minlength=len(blocks))
    turns = -(-counts // chains)
    starts = np.concatenate([[0], np.cumsum(turns)])
    into = np.arange(len(block)) + (starts[:-1] * chains - (np.cumsum(counts) - counts))[block]
    size = max(1, starts[-1]) * chains
    where, what = np.zeros(size, np.int32), np.zeros((size, outputs), weights.dtype)
    where[into], what[into] = own[block, term], blocks[block, :, term]
    return Lists(starts.astype(np.int32), where.reshape(-1, chains), what.reshape(-1, chains, outputs))


def tilings(weights: NDArray, groups: int, count: int, tiled: bool) -> list[Tiling]:
    """Those that there are, by their estimated time on a processor, the shortest first.

    ``count`` vectors of pixels make a channel of the result.
    """
    if not tiled:
        return [Tiling()]
    found = []
    for outputs in (outputs for outputs in range(1, MOST + 1) if len(weights) // groups % outputs == 0):
        entries = np.count_nonzero((weights.reshape(-1, outputs, weights[0].size) != 0).any(axis=1))
        sizes = {-(-count // tiles) for tiles in range(1, count + 1)}  # as even as tiles can be
        for size in (size for size in sizes if size * outputs <= REGISTERS):
            chains = -(-LATENCY // (outputs * size))
            cost = -(-count // size) * (size * max(LOAD, SUM * outputs) + ENTRY + outputs / 2)
            found.append((entries * cost, Tiling(outputs, size, chains)))
    return [tiling for _, tiling in sorted(found, key=lambda pair: pair[0])]


@dataclass(frozen=True, slots=True)
class Listed:
    """What a kernel walks, as arguments, and as arrays by their names."""

    starts: Argument
    places: Argument
    weights: Argument
    mask: Argument | None
    arrays: Mapping[str, NDArray]


def listed(name: str, lists: Lists, type_: str, mask: NDArray | None, out_type: str) -> Listed:
    """Buffers of ``name``'s own. Weights are of ``type_``; ``mask`` is of pixels that are no halo."""
    arrays = {f"{name}_starts": lists.starts, f"{name}_places": lists.places,
              f"{name}_weights": lists.weights.astype(type_)}
    if mask is not None:
        arrays[f"{name}_mask"] = mask.astype(out_type)
    starts, where, what, *masks = (Argument(title, array.shape, str(array.dtype)) for title, array in arrays.items())
    return Listed(starts, where, what, masks[0] if masks else None, arrays)


@dataclass(frozen=True, slots=True)
class Path:
    """Which vectors a kernel goes through: ``tiles`` of so many ``vectors``.

    ``within`` gives, of the number of a tile and of a vector in it, its place in the result and that in what is read,
    both from the first pixel, which meets an entry at the entry's place. ``pair``: what is read is every second
    element from there.
    """

    tiles: int
    vectors: int
    within: Callable[[Expr, Expr], tuple[Expr, Expr]]
    pair: bool = False


def through_vectors(layout: Layout, lanes: int, most: int) -> Path:
    """All vectors of a map that is read like it is written, ``most`` at a time."""
    count = vectors(layout.shape, Plane.of(layout).pitch, lanes)
    tile = min(most, count)

    def within(number: Expr, vector: Expr) -> tuple[Expr, Expr]:
        place = (tirx.min(number * tile, count - tile) + vector) * lanes  # the last tile may meet the one before
        return place, place

    return Path(-(-count // tile), tile, within)


def through_rows(layout: Layout, source: Layout, lanes: int, stride: Stride) -> Path:
    """A row at a time, of a map that is read at stride 2; a row's last vector may meet the one before."""
    _, height, width = layout.shape

    def within(row: Expr, vector: Expr) -> tuple[Expr, Expr]:
        column = tirx.min(vector * lanes, width - lanes)
        return (row * Plane.of(layout).pitch + column,
                row * (stride[0] * Plane.of(source).pitch) + column * stride[1])

    return Path(height, -(-width // lanes), within, pair=True)


def list_kernel(name: str, source: Argument, found: Listed, bias: Argument | None, out: Read, others: Sequence[Read],
                sums: str, tiling: Tiling, path: Path, finish: Finish, options: Optimisations, lanes: int) -> Kernel:
    """A layer whose weights are in lists, with vectors of ``lanes`` pixels."""
    result, layout = out
    plane, outputs, chains = Plane.of(layout), tiling.outputs, tiling.chains
    blocks, tile = layout.shape[0] // outputs, path.vectors
    vector = _vector(sums, lanes)
    every = [range(outputs), range(tile)]

    def at(row: Expr, number: Expr, chain: Expr) -> Expr:
        return (row * tile + number) * chains + chain

    def body(buffers: Mapping[str, Any], group: Expr) -> None:
        total = T.sblock_alloc_buffer((outputs * tile * chains,), vector, scope="local")
        block, tile_number = group % blocks, group // blocks

        def start(row: Expr, number: Expr) -> None:
            for chain in range(chains):
                first = (_zeros(sums, lanes) if chain or bias is None else
                         _all(buffers[bias.name][block * outputs + row], lanes))
                T.buffer_store(total, first, [at(row, number, chain)])

        def end(row: Expr, number: Expr) -> None:
            channel, (place, _) = block * outputs + row, path.within(tile_number, number)
            beside = [_load(buffers[argument.name], channel * own.size + own.start + place, lanes)
                      for argument, own in ((argument, Plane.of(lies)) for argument, lies in others)]
            whole = total[at(row, number, 0)]
            for chain in range(1, chains):
                whole = whole + total[at(row, number, chain)]
            value = finish(whole, beside, lanes).astype(_vector(result.type, lanes))
            if found.mask is not None:
                value = value * _load(buffers[found.mask.name], place, lanes)
            _store(buffers[result.name], channel * plane.size + plane.start + place, value, lanes)

        def read(buffers: Mapping[str, Any], place: Expr) -> Expr:
            if path.pair and lanes > 1:
                return _half("even", source.type, lanes, _pair(buffers[source.name], place, lanes))
            return _load(buffers[source.name], place, lanes)

        _repeat(every, options.unrolling, start)
        lowest, highest = (T.bind(buffers[found.starts.name][block + k]) for k in (0, 1))
        with T.serial(lowest, highest) as turn:
            for chain in range(chains):
                place = T.bind(buffers[found.places.name][turn, chain])
                own = [T.bind(buffers[found.weights.name][turn, chain, row].astype(sums)) for row in range(outputs)]

                def meet(number: Expr, place: Expr = place, own: list[Expr] = own, chain: int = chain) -> None:
                    seen = T.bind(read(buffers, place + path.within(tile_number, number)[1]).astype(vector))
                    for row, weight in enumerate(own):
                        into = at(row, number, chain)
                        T.buffer_store(total, total[into] + _all(weight, lanes) * seen, [into])

                _repeat(every[1:], options.unrolling, meet)
        _repeat(every, options.unrolling, end)

    arguments = [_whole(source), found.starts, found.places, found.weights, *([] if bias is None else [bias]),
                 *([] if found.mask is None else [found.mask]), *(_whole(argument) for argument, _ in others),
                 _whole(result)]
    live = int(np.count_nonzero(found.arrays[found.weights.name]))
    turns, size = len(found.arrays[found.places.name]), np.dtype(source.type).itemsize
    read = chains * (found.arrays[found.weights.name][0, 0].nbytes + 4 + tile * lanes * size)
    loop = Loop(iterations=turns * path.tiles * (1 if options.unrolling else tile), distance=1 if options.unrolling else
                tile, products=chains * outputs * lanes * (tile if options.unrolling else 1), loaded=read if
                options.unrolling else read // tile, stored=layout.elements * np.dtype(result.type).itemsize,
                sums=outputs * tile * chains * lanes, sum_type=sums)
    return _kernel(name, layout, arguments, blocks * path.tiles, options, body, loop, live * prod(layout.shape[1:]))


def split_kernel(name: str, x: Read, out: Read, stride: Stride, options: Optimisations) -> Kernel:
    """A map with its halo by phases of ``stride``, which ``out`` has as channels; of stride 2 with vectors.

    Vectors may end beyond a row, where the next one begins, which is written later.
    """
    (source, layout), (result, parts) = x, out
    (sy, sx), lanes = stride, options.block
    whole, plane = Plane.of(layout), Plane.of(parts)
    _, rows, columns = parts.shape

    def row_by_numbers(buffers: Mapping[str, Any], seen: Expr, into: Expr) -> None:
        with T.serial(sx) as phase, T.serial(columns) as column:
            T.buffer_store(buffers[result.name], buffers[source.name][seen + column * sx + phase],
                           [into + phase * plane.size + column])

    def row_by_vectors(buffers: Mapping[str, Any], seen: Expr, into: Expr) -> None:
        with T.serial(-(-columns // lanes)) as number:
            pair = _pair(buffers[source.name], seen + number * sx * lanes, lanes)
            for phase, half in enumerate(("even", "odd")):
                value = _half(half, result.type, lanes, pair)
                _store(buffers[result.name], into + phase * plane.size + number * lanes, value, lanes)

    def body(buffers: Mapping[str, Any], group: Expr) -> None:
        channel, phase = group // sy, group % sy
        with T.serial(rows) as row:
            seen = channel * whole.size + (row * sy + phase) * whole.pitch
            into = group * sx * plane.size + row * plane.pitch
            (row_by_vectors if sx == 2 and lanes > 1 else row_by_numbers)(buffers, seen, into)

    size = np.dtype(result.type).itemsize
    at_a_time = lanes * sx if sx == 2 else 1
    loop = Loop(iterations=-(-layout.elements // at_a_time), products=0, loaded=at_a_time * size,
                stored=parts.elements * size)
    return _kernel(name, parts, [_whole(source), _whole(result)], layout.shape[0] * sy, options, body, loop)


def places_of(source: Layout, before: Layout, window: Window) -> NDArray[np.int64]:
    """Where the taps (I, KH, KW) of a result's first pixel lie.

    ``source`` is ``before`` split by the window's stride, or ``before`` itself where that is 1.
    """
    plane, (sy, sx) = Plane.of(source), window.stride
    found = np.empty((before.shape[0], *window.kernel), np.int64)
    for ky, kx in np.ndindex(window.kernel):
        py, px, row, column = tap(before, window, ky, kx)
        channels = (np.arange(before.shape[0]) * sy + py) * sx + px
        found[:, ky, kx] = channels * plane.size + row * plane.pitch + column
    return found


def mask_of(layout: Layout, lanes: int) -> NDArray[np.bool_] | None:
    """Which elements of a map's vectors are pixels; None if all are."""
    found = inside(layout, lanes)
    return None if found.all() else found


def _kernel(name: str, layout: Layout, arguments: Sequence[Argument], groups: int, options: Optimisations,
            body: Callable[[Mapping[str, Any], Expr], None], loop: Loop, multiplications: int = 0) -> Kernel:
    arguments = tuple(dict.fromkeys(arguments))
    side_by_side = options.work_groups and not options.tasks
    launched = groups if side_by_side else 1
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        buffers = {argument.name: T.arg(argument.name, T.Buffer(argument.shape, argument.type))
                   for argument in arguments}
        with T.thread_binding(launched, thread="blockIdx.x") as group:
            if side_by_side:
                body(buffers, group)
            else:
                with T.serial(groups) as number:
                    body(buffers, number)
    return Kernel(name, builder.get(), arguments, "list", layout, (), 0, loop.sum_type, multiplications, launched, loop)


def _whole(argument: Argument) -> Argument:
    """A buffer as one row of elements."""
    return Argument(argument.name, (prod(argument.shape),), argument.type)


def _repeat(over: Sequence[range], unrolled: bool, do: Callable[..., None]) -> None:
    """``do`` what is to be done for all numbers of some ranges: written as often, or in loops."""
    if unrolled:
        for numbers in product(*over):
            do(*numbers)
    elif over:
        with T.serial(len(over[0])) as number:
            _repeat(over[1:], unrolled, lambda *rest: do(number, *rest))
    else:
        do()


def _vector(type_: str, lanes: int) -> str:
    return type_ if lanes == 1 else f"{type_}x{lanes}"


def _all(number: Expr, lanes: int) -> Expr:
    return number if lanes == 1 else tirx.Broadcast(number, lanes)


def _zeros(type_: str, lanes: int) -> Expr:
    """What sums start with: TVM would narrow a vector of 64-bit constants, but not the store, which fills it half."""
    if lanes == 1 or type_ != "int64":
        return _all(tirx.const(0, type_), lanes)
    narrow = _all(tirx.const(0, "int32"), lanes)
    return tirx.call_extern(_vector(type_, lanes), f"convert_{TYPES[type_]}{lanes}", narrow)


def _load(buffer: Any, place: Expr, lanes: int) -> Expr:
    """A vector from anywhere: TVM's own would be a gathering unless its place is provably a multiple of ``lanes``."""
    if lanes == 1:
        return buffer[place]
    return tirx.call_extern(_vector(buffer.dtype, lanes), f"vload{lanes}", 0, tirx.address_of(buffer[place]))


def _pair(buffer: Any, place: Expr, lanes: int) -> list[Expr]:
    """Two vectors that follow each other."""
    return [T.bind(_load(buffer, place + k * lanes, lanes)) for k in (0, 1)]


def _half(half: str, type_: str, lanes: int, pair: Sequence[Expr]) -> Expr:
    """The ``even`` or ``odd`` elements of a pair (``prelude.cl``)."""
    return tirx.call_extern(_vector(type_, lanes), f"espalier_{half}_{TYPES[type_]}{lanes}", *pair)


def _store(buffer: Any, place: Expr, value: Expr, lanes: int) -> None:
    if lanes == 1:
        T.buffer_store(buffer, value, [place])
    else:
        T.evaluate(tirx.call_extern("int32", f"vstore{lanes}", value, 0, tirx.address_of(buffer[place])))
