"""Maps in tiles: what each lane does of a layer, and what has no tiles."""

import pytest
from bench.networks import Chain

from espalier.arch.machine import Machine
from espalier.compiler.legalise import Held
from espalier.compiler.tiling import tiled
from espalier.errors import FitError, UnsupportedError
from espalier.numerics.window import Window

SAME = (1, 1, 1, 1)


def test_what_a_lane_does():
    chain = Chain((3, 16, 32)).conv(8, (3, 3), SAME).relu().pool()
    chain.conv(8, (3, 3), window=Window((3, 3), (2, 2), SAME)).linear(5)
    first, second, last = tiled(chain.layers(), (2, 4))
    assert (first.in_shape, first.conv_shape, first.out_shape, first.held) == (
        (3, 8, 8), (8, 8, 8), (8, 4, 4), Held.TILE)
    assert (second.in_shape, second.out_shape, second.stride) == ((8, 4, 4), (8, 2, 2), (2, 2))
    assert (last.in_shape, last.out_shape, last.weight_shape) == ((8, 2, 2), (5, 1, 1), (5, 8, 4, 8))
    assert (last.stride, last.held) == ((2, 2), Held.VECTOR)
    assert tiled(chain.layers(), (1, 1)) == chain.layers()


@pytest.mark.parametrize(("chain", "grid", "sentence"), [
    (Chain((1, 12, 8)).linear(3), (2, 2), r"^Layer 'linear1' has a map of 12 × 8, which 2 × 2 tiles do not "),
    (Chain((1, 8, 8)).conv(2, (3, 3)).linear(3), (2, 2), r"has a map of 6 × 6, which 2 × 2 tiles do not divide "),
    (Chain((1, 10, 10)).conv(2, (3, 3)).linear(3), (2, 2), r"has a map of 10 × 10, which "),
    (Chain((1, 8, 8)).conv(2, (5, 5)).linear(3), (4, 4), r"'conv0' makes a \(4, 4\) map of one of \(8, 8\): in "),
    (Chain((1, 4, 4)).conv(2, (3, 3), SAME).pool().linear(3), (4, 4), r"has a map of 2 × 2, which 4 × 4 tiles do not "),
    (Chain((1, 6, 6)).conv(2, (3, 3), SAME).pool().linear(3), (3, 6), r"has a map of 3 × 3, which 3 × 6 tiles do not "),
    (Chain((1, 16, 16)).linear(3), (1, 2), r"a vector of a \(16, 16\) map by a kernel of \(16, 16\), \(16, 8\) a tile"),
    (Chain((1, 4, 4)).linear(3).norm().linear(3), (2, 2), r"^Batch norm 'norm\d' is on a vector, which lanes of "),
])
def test_what_has_no_tiles(chain, grid, sentence):
    with pytest.raises(UnsupportedError, match=sentence):
        tiled(chain.layers(), grid)


def test_lanes_are_whole_grids():
    with pytest.raises(FitError, match="^Lanes must be whole grids of tiles, and 6 are not of 2 × 2$"):
        Machine(rows=1, lanes=6, grid_y=2, grid_x=2, activation_depth=2, gradient_depth=2, weight_depth=2,
                index_depth=2, table_depth=2)
