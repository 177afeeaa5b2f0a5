"""Maps cut into tiles, which neighbouring lanes hold: each lane does of a layer what makes its own tile.

A lane reads what its taps reach from whichever lane holds it; all lanes read at the same distance at the same time, and
what lies outside the map is zero. A layer whose result is a vector is made in the first lane of an image alone, by taps
that reach all others. Its BP is that of a layer with a stride of a whole tile: in each of the tile's pixels, a command
each, every lane meets the one tap that is its own, since the gradient comes from the first lane alone.
"""

from __future__ import annotations

from dataclasses import replace

from espalier.arch.machine import MAX_STRIDE_SHIFT
from espalier.compiler.legalise import Held, Layer
from espalier.errors import UnsupportedError
from espalier.ir.types import MapShape

Grid = tuple[int, int]  #: tiles of a map, down and across
WHOLE: Grid = (1, 1)    #: that of lanes that hold whole maps


def tiled(layers: tuple[Layer, ...], grid: Grid) -> tuple[Layer, ...]:
    """The layers as each lane does them, with the shapes that it holds.

    Raises UnsupportedError for a layer that cannot be done in tiles.
    """
    return layers if grid == WHOLE else tuple(_tiled(layer, grid) for layer in layers)


def _tiled(layer: Layer, grid: Grid) -> Layer:
    held = _held(layer, layer.in_shape, grid)
    if layer.conv_shape[1:] == (1, 1):
        return _vector(layer, held)
    conv, out = (_held(layer, shape, grid) for shape in (layer.conv_shape, layer.out_shape))
    for tiles, before, after, step in zip(grid, held[1:], conv[1:], layer.stride, strict=True):
        if tiles > 1 and (before != after * step or (layer.pool and after % 2)):
            raise UnsupportedError(f"Layer {layer.name!r} makes a {layer.conv_shape[1:]} map of one of "
                                   f"{layer.in_shape[1:]}{', pooled' if layer.pool else ''}: in tiles, a map has the "
                                   f"size of its source over the stride, and pools lie inside a tile; take a smaller "
                                   f"grid")
    return replace(layer, in_shape=held, conv_shape=conv, out_shape=out, held=Held.TILE)


def _vector(layer: Layer, held: MapShape) -> Layer:
    if layer.norm is not None:
        raise UnsupportedError(f"Batch norm {layer.name!r} is on a vector, which lanes of tiles do not share: fold it, "
                               f"or take a machine without a grid")
    if layer.weight_shape[2:] != layer.in_shape[1:] or any(layer.pad) or max(held[1:]) > 1 << MAX_STRIDE_SHIFT:
        most = 1 << MAX_STRIDE_SHIFT
        raise UnsupportedError(f"Layer {layer.name!r} makes a vector of a {layer.in_shape[1:]} map by a kernel of "
                               f"{layer.weight_shape[2:]}, {held[1:]} a tile: in tiles, the kernel has the size of the "
                               f"map, and tiles are of {most} × {most} at most there")
    return replace(layer, in_shape=held, stride=(held[1], held[2]), held=Held.VECTOR)


def _held(layer: Layer, shape: MapShape, grid: Grid) -> MapShape:
    """What a lane holds of a map: of a vector all."""
    channels, height, width = shape
    if (height, width) == (1, 1):
        return shape
    y, beyond_y = divmod(height, grid[0])
    x, beyond_x = divmod(width, grid[1])
    if beyond_y or beyond_x or y.bit_count() != 1 or x.bit_count() != 1:
        raise UnsupportedError(f"Layer {layer.name!r} has a map of {height} × {width}, which {grid[0]} × {grid[1]} "
                               f"tiles do not divide into powers of two: take another grid")
    return channels, y, x
