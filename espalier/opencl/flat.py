"""Maps of which each channel lies by itself, pixel after pixel, so that a vector is one of pixels.

A kernel that walks a list of weights multiplies each with vectors of pixels: the place of a pixel in the result and
those of the pixels that it reads must differ by a constant. So maps on either side of such a kernel have rows of one
length (pitch), and what lies between two rows are zeros for the padding of both: to the right of the upper and to the
left of the lower one. A layer of stride > 1 reads its map split by phase: pixels whose rows and columns leave the same
remainders lie together, as channels of their own (as in ``stride`` phases of FFTs, or space-to-depth).
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from espalier.ir.graph import Graph
from espalier.ir.ops import AveragePool, Conv2d, Linear
from espalier.ir.types import MapShape, Value
from espalier.numerics.window import Window
from espalier.opencl.layout import Layout
from espalier.opencl.plan import Work, map_shape

Stride = tuple[int, int]
Key = tuple[Value, Stride]  #: a map, and by which phases it is split
WHOLE: Stride = (1, 1)
MOST_IN_A_ROW = 16  #: vectors, so that their sums have registers


@dataclass(frozen=True, slots=True)
class Plane:
    """One channel of a map in memory: ``pitch`` elements a row, ``size`` in all, the first pixel at ``start``."""

    pitch: int
    start: int
    size: int

    @classmethod
    def of(cls, layout: Layout) -> Plane:
        _, rows, pitch, _ = layout.array_shape
        return cls(pitch, layout.halo[0] * pitch + layout.halo[1], rows * pitch)


def vectors(shape: MapShape, pitch: int, lanes: int) -> int:
    """Vectors of ``lanes`` from a map's first pixel to its last."""
    _, height, width = shape
    return -(-((height - 1) * pitch + width) // lanes)


def inside(layout: Layout, lanes: int) -> NDArray[np.bool_]:
    """Of all elements of those vectors: whether they are pixels, and not between two rows."""
    (_, height, width), pitch = layout.shape, layout.array_shape[2]
    row, column = np.divmod(np.arange(vectors(layout.shape, pitch, lanes) * lanes), pitch)
    return (row < height) & (column < width)


def tap(layout: Layout, window: Window, ky: int, kx: int) -> tuple[int, int, int, int]:
    """Where a tap lies in a map that is split by the window's stride: its phase (y, x), row and column.

    ``layout`` is that of the map before; rows and columns count from the corner of its halo.
    """
    y = ky * window.dilation[0] + layout.halo[0] - window.pad[0]
    x = kx * window.dilation[1] + layout.halo[1] - window.pad[1]
    (sy, sx) = window.stride
    return y % sy, x % sx, y // sy, x // sx


class Walk(enum.Enum):
    """How a layer's kernel goes through the pixels of its result."""

    VECTORS = enum.auto()  #: from the first to the last, those between two rows included
    ROWS = enum.auto()     #: in each row by itself, of a map that is read as it is, at stride 2
    NUMBERS = enum.auto()  #: there is one


def walk(op: Conv2d | Linear, lanes: int) -> Walk:
    """``ROWS`` saves the splitting where each channel is read by one output alone; a row has a vector at least."""
    _, height, width = map_shape(op.out)
    if isinstance(op, Linear) or height * width == 1:
        return Walk.NUMBERS
    if op.groups == op.x.shape[0] and op.window.stride[1] == 2 and lanes <= width <= MOST_IN_A_ROW * lanes:
        return Walk.ROWS
    return Walk.VECTORS


def flat_layouts(graph: Graph, works: tuple[Work, ...], lanes: int) -> dict[Key, Layout]:
    """How every map lies, whole and split as its readers have it."""
    return _Flattening(graph, works, lanes).run()


class _Flattening:
    def __init__(self, graph: Graph, works: tuple[Work, ...], lanes: int) -> None:
        self.works, self.lanes = works, lanes
        self.values = (*graph.inputs, *(work.out for work in works))
        self.pads = _pads(works)
        self.same: dict[Key, Key] = {}  #: each map's next of those with its pitch, as a forest

    def run(self) -> dict[Key, Layout]:
        pitches = self._pitches()
        found = {(value, WHOLE): self._whole(value, pitches[self._root((value, WHOLE))]) for value in self.values}
        for work, key in self._read():
            op = work.op
            assert isinstance(op, Conv2d), "none else has vectors of pixels"
            before, pitch = found[op.x, WHOLE], pitches[self._root(key)]
            if key not in found:
                found[key] = self._split(before, key, pitch)
            phase = [tap(before, op.window, ky, kx) for ky, kx in np.ndindex(op.window.kernel)]
            last = max(row * pitch + column for *_, row, column in phase)
            read = self._elements(work.out, pitch)
            found[key] = _reaching(found[key], last + read)
            after = found[work.out, WHOLE]
            found[work.out, WHOLE] = _reaching(after, Plane.of(after).start + read)
        for value, stride in list(found):
            if stride != WHOLE:  # as far as the kernel reads and writes that splits it
                parts, whole = found[value, stride], found[value, WHOLE]
                _, rows, columns = parts.shape
                columns = -(-columns // self.lanes) * self.lanes
                found[value, stride] = _reaching(parts, (rows - 1) * parts.array_shape[2] + columns)
                found[value, WHOLE] = _reaching(whole, (rows * stride[0] - 1) * whole.array_shape[2]
                                                + columns * stride[1])
        for work in self.works:
            if isinstance(work.op, Conv2d) and walk(work.op, self.lanes) is Walk.ROWS:  # whose pairs may end behind
                key = work.op.x, WHOLE
                found[key] = _reaching(found[key], self._last_pair(work.op, found[key]))
        return {key: self._aligned(layout) for key, layout in found.items()}

    def _last_pair(self, op: Conv2d, layout: Layout) -> int:
        """Elements of a channel up to the last pair of vectors that is read at stride 2."""
        (_, height, width), window = map_shape(op.out), replace(op.window, stride=WHOLE)
        *_, row, column = tap(layout, window, window.kernel[0] - 1, window.kernel[1] - 1)
        return (row + (height - 1) * op.window.stride[0]) * layout.array_shape[2] + column + 2 * width

    def _aligned(self, layout: Layout) -> Layout:
        """With rows below, so that each channel begins as the first does."""
        _, rows, pitch, _ = layout.array_shape
        whole = rows
        while whole * pitch % self.lanes:
            whole += 1
        return _reaching(layout, whole * pitch)

    def _read(self) -> Iterator[tuple[Work, Key]]:
        """Each work with vectors of pixels, and the map that it reads."""
        for work in self.works:
            if isinstance(work.op, Conv2d) and walk(work.op, self.lanes) is Walk.VECTORS:
                yield work, (work.op.x, work.op.window.stride)

    def _pitches(self) -> dict[Key, int]:
        """Of each root: what the widest of its maps needs, and odd, so that some row begins at any remainder."""
        keys = {(value, WHOLE): self._left(value) + map_shape(value)[2] for value in self.values}
        for work, key in self._read():
            value, (_, sx) = key
            if key not in keys:
                keys[key] = -(-(self._left(value) + map_shape(value)[2] + self._pad(value)[3]) // sx)
            self._join(key, (work.out, WHOLE))
            for other in work.others():
                self._join((other, WHOLE), (work.out, WHOLE))
        found: dict[Key, int] = {}
        for key, columns in keys.items():
            found[self._root(key)] = max(found.get(self._root(key), 0), columns | 1)
        return found

    def _root(self, key: Key) -> Key:
        while key in self.same:
            key = self.same[key]
        return key

    def _join(self, a: Key, b: Key) -> None:
        a, b = self._root(a), self._root(b)
        if a != b:
            self.same[a] = b

    def _pad(self, value: Value) -> tuple[int, ...]:
        return self.pads.get(value, (0, 0, 0, 0))

    def _left(self, value: Value) -> int:
        """Columns of zeros, for both sides."""
        _, left, _, right = self._pad(value)
        return max(left, right)

    def _elements(self, value: Value, pitch: int) -> int:
        """Of all vectors of a map."""
        return vectors(map_shape(value), pitch, self.lanes) * self.lanes

    def _whole(self, value: Value, pitch: int) -> Layout:
        shape, left, (top, _, bottom, right) = map_shape(value), self._left(value), self._pad(value)
        while (top * pitch + left) % self.lanes:
            top += 1
        return Layout(shape, 1, (top, left, bottom + (right > 0), pitch - left - shape[2]))

    def _split(self, before: Layout, key: Key, pitch: int) -> Layout:
        value, (sy, sx) = key
        channels, height, width = before.shape
        top, left, _, _ = before.halo
        _, _, bottom, right = self._pad(value)
        rows, columns = -(-(top + height + bottom) // sy), -(-(left + width + right) // sx)
        return Layout((channels * sy * sx, rows, columns), 1, (0, 0, 0, pitch - columns))


def _pads(works: tuple[Work, ...]) -> Mapping[Value, tuple[int, ...]]:
    """The padding of all readers of each value: what each side needs at most."""
    found: dict[Value, tuple[int, ...]] = {}
    for work in works:
        if isinstance(work.op, Conv2d | AveragePool):
            before = found.get(work.op.x, (0, 0, 0, 0))
            found[work.op.x] = tuple(max(pair) for pair in zip(before, work.op.window.pad, strict=True))
    return found


def _reaching(layout: Layout, elements: int) -> Layout:
    """With rows below, so that a channel has at least as many elements."""
    _, rows, pitch, _ = layout.array_shape
    top, left, bottom, right = layout.halo
    return Layout(layout.shape, 1, (top, left, bottom + max(0, -(-elements // pitch) - rows), right))
