"""Maps in tiles: what each lane does of a layer, and what has no tiles."""

import pytest
from bench.networks import Chain

from espalier.arch.machine import Machine
from espalier.compiler.tiling import tiled
from espalier.errors import FitError, UnsupportedError
from espalier.numerics.window import Window

SAME = (1, 1, 1, 1)


def test_what_a_lane_does():
    chain = Chain((3, 16, 32)).conv(8, (3, 3), SAME).relu().pool()
    chain.conv(8, (3, 3), window=Window((3, 3), (2, 2), SAME)).linear(5)
    first, second, last = tiled(chain.layers(), (2, 4))
    assert (first.in_shape, first.conv_shape, first.out_shape, first.apart) == (
        (3, 8, 8), (8, 8, 8), (8, 4, 4), (1, 1))
    assert (second.in_shape, second.out_shape, second.stride) == ((8, 4, 4), (8, 2, 2), (2, 2))
    assert (last.in_shape, last.out_shape, last.weight_shape) == ((8, 2, 2), (5, 1, 1), (5, 8, 4, 8))
    assert (last.stride, last.reach, last.apart) == ((2, 2), (1, 1), (2, 4))
    assert tiled(chain.layers(), (1, 1)) == chain.layers()


def test_maps_smaller_than_the_grid():
    """A pixel in every second, or fourth, tile; pools over several of them are layers of their own."""
    chain = Chain((2, 8, 16)).conv(4, (3, 3), SAME).relu().pool()        # 4 × 8, a pixel of each 4 × 4 tiles down
    chain.conv(6, (3, 3), SAME).relu().pool()                            # 2 × 4: across one a tile, down every second
    chain.conv(6, (3, 3), window=Window((3, 3), (2, 2), SAME)).relu()    # 1 × 2
    layers = tiled(chain.conv(5, (3, 3), SAME).linear(3).layers(), (4, 4))
    assert [(layer.name, layer.in_shape[1:], layer.conv_shape[1:], layer.out_shape[1:], layer.stride, layer.reach,
             layer.apart, layer.crossing) for layer in layers] == [
        ("conv0", (2, 4), (2, 4), (1, 2), (1, 1), (1, 1), (1, 1), (False, False)),
        ("conv3", (1, 2), (1, 2), (1, 2), (1, 1), (1, 1), (1, 1), (False, False)),
        ("conv3.relu.pool", (1, 2), (2, 2), (1, 1), (1, 1), (1, 1), (2, 1), (True, False)),
        ("conv6", (1, 1), (1, 1), (1, 1), (1, 1), (2, 1), (4, 2), (False, False)),
        ("conv8", (1, 1), (1, 1), (1, 1), (1, 1), (4, 2), (4, 2), (False, False)),
        ("linear10", (1, 1), (1, 1), (1, 1), (1, 1), (4, 2), (4, 4), (False, False))]
    assert (layers[1].out, layers[2].x, layers[2].out) == ("conv3.relu", "conv3.relu", layers[3].x)


def test_a_window_as_large_as_the_map_makes_a_map_where_there_is_padding():
    layer, _ = tiled(Chain((1, 1, 4)).average(Window((1, 4), (1, 1), (0, 0, 0, 3))).linear(3).layers(), (1, 2))
    assert (layer.in_shape, layer.out_shape, layer.apart) == ((1, 1, 2), (1, 1, 2), (1, 1))


@pytest.mark.parametrize(("chain", "grid", "sentence"), [
    (Chain((1, 12, 8)).linear(3), (2, 2), r"^Layer 'linear1' has a map of 12 × 8, which 2 × 2 tiles do not "),
    (Chain((1, 8, 8)).conv(2, (3, 3)).linear(3), (2, 2), r"has a map of 6 × 6, which 2 × 2 tiles do not divide "),
    (Chain((1, 10, 10)).conv(2, (3, 3)).linear(3), (2, 2), r"has a map of 10 × 10, which "),
    (Chain((1, 8, 8)).conv(2, (5, 5)).linear(3), (4, 4), r"'conv0' makes a \(4, 4\) map of one of \(8, 8\): in "),
    (Chain((1, 2, 4)).conv(2, (3, 3), SAME).linear(3), (4, 4), r"^Images of \(2, 4\) pixels have fewer "),
    (Chain((1, 8, 8)).conv(2, (3, 3), window=Window((3, 3), (4, 4), SAME)).linear(3), (4, 4), r"one that is larger "),
    (Chain((1, 4, 4)).conv(2, (3, 3), SAME).pool().conv(2, (3, 3), SAME).norm().linear(3), (4, 4),
     r"^Batch norm 'norm\d' is on a map that not all tiles have "),
    (Chain((1, 6, 6)).conv(2, (3, 3), SAME).pool().linear(3), (6, 4), r"has a map of 6 × 6, which 6 × 4 tiles do not "),
    (Chain((1, 16, 16)).linear(3), (1, 2), r"a vector of a \(16, 16\) map, \(16, 8\) a tile"),
    (Chain((1, 4, 4)).linear(3).norm().linear(3), (2, 2), r"^Batch norm 'norm\d' is on a vector, which lanes of "),
])
def test_what_has_no_tiles(chain, grid, sentence):
    with pytest.raises(UnsupportedError, match=sentence):
        tiled(chain.layers(), grid)


def test_lanes_are_whole_grids():
    with pytest.raises(FitError, match="^Lanes must be whole grids of tiles, and 6 are not of 2 × 2$"):
        Machine(rows=1, lanes=6, grid_y=2, grid_x=2, activation_depth=2, gradient_depth=2, weight_depth=2,
                index_depth=2, table_depth=2)
