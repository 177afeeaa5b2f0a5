"""What kernels would take on an FPGA, counted by hand for small ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from espalier.errors import UnsupportedError
from espalier.ir.graph import Graph
from espalier.ir.ops import Conv2d
from espalier.ir.types import FLOAT, Fixed, Format, TensorType, Value
from espalier.numerics.window import Window
from espalier.opencl.bundle import Launch
from espalier.opencl.compilation import compile_kernels
from espalier.opencl.estimate import estimate, find_part, total
from espalier.opencl.loops import Loop
from espalier.opencl.optimisations import Optimisations

PART = replace(find_part("stratix10-2800"), clock=100e6, bandwidth=1e9)


def launches(format_: Format = FLOAT, density: float = 1.0, **options: bool) -> tuple[Launch, ...]:
    """Of a 3 × 3 convolution from 8 to 16 channels of 4 × 6 pixels."""
    x, w, y = (Value(name, TensorType(shape, format_)) for name, shape in (
        ("x", (8, 4, 6)), ("w", (16, 8, 3, 3)), ("y", (16, 4, 6))))
    weights = np.where(np.random.RandomState(0).rand(*w.shape) < density, 100, 0).astype(np.float32)
    graph = Graph("net", (x,), (w,), (Conv2d(y, x, w, None, Window((3, 3), pad=(1, 1, 1, 1))),), (y,))
    return compile_kernels(graph, {"w": weights}, Optimisations(**options)).launches


def test_an_unrolled_tile_multiplies_at_a_time() -> None:
    """24 pixels of 16 channels, one sum each; each term loads 16 weights and 24 elements."""
    launch, = launches()
    assert launch.loop == Loop(iterations=72, products=24 * 16, loaded=(24 + 16) * 4, stored=24 * 16 * 4, sums=24 * 16,
                               distance=1)
    found = estimate(launch.loop, PART)
    assert found.interval == PART.float_add and found.cycles == 72 * 4 and found.dsp_blocks == 384
    assert found.bytes_moved == 72 * 160 + 1536 and found.limit == "memory"
    assert found.seconds == found.bytes_moved / 1e9


def test_integers_add_in_a_cycle() -> None:
    """And two of their multiplications take a DSP block. (Sums below 2**24 would be float32.)"""
    launch, = launches(Fixed.of(16, 8))
    found = estimate(launch.loop, replace(PART, bandwidth=1e15))
    assert (found.interval, found.dsp_blocks, found.limit) == (1, 192, "iterations")


def test_a_loop_over_the_tile_hides_an_addition() -> None:
    launch, = launches(unrolling=False)
    assert (launch.loop.distance, launch.loop.products, launch.loop.iterations) == (24, 16, 72 * 24)
    assert estimate(launch.loop, PART).interval == 1


def test_sums_in_memory_wait_for_it() -> None:
    adding, finishing = launches(cached_writes=False, tiling=False)
    assert estimate(adding.loop, PART).interval == PART.memory and estimate(adding.loop, PART).held_words == 0
    assert finishing.loop.distance == 0 and estimate(finishing.loop, PART).interval == 1


def test_lists_multiply_what_lives() -> None:
    every, few = (sum(one.loop.iterations * one.loop.products for one in launches(density=density))
                  for density in (1.0, 0.1))
    assert few < every / 4  # a tenth of the terms, on vectors that end beyond rows


def test_a_network_is_the_sum_of_its_kernels() -> None:
    one = estimate(launches()[0].loop, PART)
    found = total([one, one], PART)
    assert found.seconds == 2 * one.seconds and found.pipelined == one.seconds and found.fits
    assert not total([one] * 16, PART).fits


def test_parts_that_are_none() -> None:
    with pytest.raises(UnsupportedError, match=r"^There is no estimate for part 'z80': choose of stratix10-2800, "):
        find_part("z80")
