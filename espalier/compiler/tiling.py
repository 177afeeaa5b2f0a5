"""Maps cut into tiles, which neighbouring lanes hold: each lane does of a layer what makes its own tile.

A lane reads what its taps reach from whichever lane holds it; all lanes read at the same distance at the same time, and
what lies outside the map is zero. A layer whose result is a vector is made in the first lane of an image alone, by taps
that reach all others. Its BP is that of a layer with a stride of a whole tile: in each of the tile's pixels, a command
each, every lane meets the one tap that is its own, since the gradient comes from the first lane alone.

A map smaller than the grid has a pixel in each lane of every second tile, down and across, or every fourth, and so on.
Other lanes make words that none of these reads, for taps reach as many tiles further; their gradients are zero. So BP
of a layer whose stride leads to such a map meets a gradient or zero at each tap, and is that of a layer without a
stride. A pool over pixels of several lanes is a layer of its own: four times a product with one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from espalier.arch.machine import MAX_STRIDE_SHIFT
from espalier.compiler.legalise import Layer, needed_gradients
from espalier.errors import UnsupportedError
from espalier.ir.types import MapShape
from espalier.numerics.fixed import Fixed

Grid = tuple[int, int]  #: tiles of a map, down and across
WHOLE: Grid = (1, 1)    #: that of lanes that hold whole maps
ONE = Fixed.of(2, 0)    #: of a weight that is one


def tiled(layers: tuple[Layer, ...], grid: Grid) -> tuple[Layer, ...]:
    """The layers as each lane does them, with the shapes that it holds.

    Raises UnsupportedError for a layer that cannot be done in tiles.
    """
    if grid == WHOLE:
        return layers
    if any(size < tiles for size, tiles in zip(layers[0].in_shape[1:], grid, strict=True)):
        raise UnsupportedError(f"Images of {layers[0].in_shape[1:]} pixels have fewer than the {grid[0]} × {grid[1]} "
                               f"tiles: take a smaller grid")
    needed = needed_gradients(layers)
    return tuple(_tiled(part, grid) for layer in layers
                 for part in _pooling_apart(layer, grid, has_gradient=layer.out in needed))


def _pooling_apart(layer: Layer, grid: Grid, *, has_gradient: bool) -> Iterator[Layer]:
    """A layer; without its pool, and that behind it, where windows lie in several lanes."""
    before = layer.unpooled
    if before is None or all(size >= tiles for size, tiles in zip(layer.out_shape[1:], grid, strict=True)):
        yield layer
        return
    channels, fmt, rectified_last = layer.conv_shape[0], layer.out_format, layer.out != layer.pooled
    yield replace(before, input_gradient_format=layer.input_gradient_format,
                  weight_gradient_format=layer.weight_gradient_format)
    yield Layer(
        name=layer.pooled, x=before.out, out=layer.out, weight=None, constant=1, bias=None,
        weight_shape=(channels, channels, 1, 1), groups=channels, dilation=(1, 1), stride=(1, 1), pad=(0, 0),
        in_shape=layer.conv_shape, conv_shape=layer.conv_shape, out_shape=layer.out_shape, pool=True,
        rectify=rectified_last, clip=layer.clip if rectified_last else 0, x_format=fmt, weight_format=ONE,
        out_format=fmt, gradient_format=layer.gradient_format,
        input_gradient_format=layer.gradient_format if has_gradient else None, weight_gradient_format=None)


def _tiled(layer: Layer, grid: Grid) -> Layer:
    held, reach = _held(layer, layer.in_shape, grid)
    if layer.conv_shape[1:] == (1, 1) and layer.weight_shape[2:] == layer.in_shape[1:] and not any(layer.pad):
        return _vector(layer, held, reach, grid)
    conv, _ = _held(layer, layer.conv_shape, grid)
    out, apart = _held(layer, layer.out_shape, grid)
    crossing = [layer.pool and after > before for before, after in zip(reach, apart, strict=True)]
    stride = list(layer.stride)
    for axis, tiles in enumerate(grid):
        before, after = layer.in_shape[1 + axis], layer.conv_shape[1 + axis]
        fits = after in (1, before // stride[axis])  # of what has one result the stride does not matter
        if tiles > 1 and (not fits or max(before, after) > tiles > min(before, after)):
            raise UnsupportedError(f"Layer {layer.name!r} makes a {layer.conv_shape[1:]} map of one of "
                                   f"{layer.in_shape[1:]}: in {grid[0]} × {grid[1]} tiles, a map has the size of its "
                                   f"source over the stride, and one that is larger than the grid becomes no smaller "
                                   f"than that; take a smaller grid")
        if after < tiles:
            stride[axis] = 1
    if layer.norm is not None and max(apart) > 1:
        raise UnsupportedError(f"Batch norm {layer.name!r} is on a map that not all tiles have a part of: fold it, or "
                               f"take a smaller grid")
    height, width = (2 if crosses else size for crosses, size in zip(crossing, conv[1:], strict=True))
    return replace(layer, in_shape=held, conv_shape=(conv[0], height, width), out_shape=out,
                   stride=(stride[0], stride[1]), in_tiles=True, reach=reach, apart=apart)


def _vector(layer: Layer, held: MapShape, reach: Grid, grid: Grid) -> Layer:
    if layer.norm is not None:
        raise UnsupportedError(f"Batch norm {layer.name!r} is on a vector, which lanes of tiles do not share: fold it, "
                               f"or take a machine without a grid")
    if max(held[1:]) > 1 << MAX_STRIDE_SHIFT:
        most = 1 << MAX_STRIDE_SHIFT
        raise UnsupportedError(f"Layer {layer.name!r} makes a vector of a {layer.in_shape[1:]} map, {held[1:]} a tile: "
                               f"tiles are of {most} × {most} at most there")
    return replace(layer, in_shape=held, stride=(held[1], held[2]), in_tiles=True, reach=reach, apart=grid)


def _held(layer: Layer, shape: MapShape, grid: Grid) -> tuple[MapShape, Grid]:
    """What a lane holds of a map, and how many tiles lie from a lane that does to the next."""
    sizes, apart = [], []
    for size, tiles in zip(shape[1:], grid, strict=True):
        held, beyond = divmod(max(size, tiles), min(size, tiles))
        if size > 1 and (beyond or held.bit_count() != 1):  # from one pixel taps only have to reach out of the map
            raise UnsupportedError(f"Layer {layer.name!r} has a map of {shape[1]} × {shape[2]}, which {grid[0]} × "
                                   f"{grid[1]} tiles do not divide into powers of two: take another grid")
        sizes.append(held if size >= tiles else 1)
        apart.append(1 if size >= tiles else held)
    return (shape[0], sizes[0], sizes[1]), (apart[0], apart[1])
