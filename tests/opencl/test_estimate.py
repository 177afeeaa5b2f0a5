"""What kernels would take on an FPGA, counted by hand for small ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from espalier.errors import UnsupportedError
from espalier.ir.graph import Graph
from espalier.ir.ops import Conv2d, MaxPool
from espalier.ir.types import FLOAT, Fixed, Format, TensorType, Value
from espalier.numerics.window import Window
from espalier.opencl.bundle import Bundle, Launch
from espalier.opencl.codegen import prelude
from espalier.opencl.compilation import compile_kernels
from espalier.opencl.estimate import CHANNEL_WORDS, Total, estimate, estimates, find_part, total
from espalier.opencl.loops import Loop
from espalier.opencl.optimisations import Optimisations, Style

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


def chain(count: int = 2, **options: Any) -> Bundle:
    """Pointwise convolutions one after another, all alike, of 16 channels of 4 × 6 pixels."""
    values = [Value(f"x{number}", TensorType((16, 4, 6), FLOAT)) for number in range(count + 1)]
    weights = [Value(f"w{number}", TensorType((16, 16, 1, 1), FLOAT)) for number in range(count)]
    layers = tuple(Conv2d(out, x, w, None, Window((1, 1)))
                   for out, x, w in zip(values[1:], values, weights, strict=False))
    graph = Graph("net", (values[0],), tuple(weights), layers, (values[-1],))
    return compile_kernels(graph, {w.name: np.ones(w.shape, np.float32) for w in weights}, Optimisations(**options))


def test_layers_one_after_another_share_their_kernel() -> None:
    bundle = chain()
    one, same = found = estimates(bundle, PART)
    assert one == same and len({launch.kernel for launch in bundle.launches}) == 1
    assert total(bundle.launches, found, PART) == Total(
        pipelined=False, seconds=2 * one.seconds, dsp_blocks=one.dsp_blocks, held_bits=one.held_bits, fits=True)


def test_layers_on_kernels_of_their_own_have_hardware_each() -> None:
    bundle = chain(16, folding=False)
    found = estimates(bundle, PART)
    whole = total(bundle.launches, found, PART)
    assert (whole.dsp_blocks, whole.fits) == (16 * found[0].dsp_blocks, False) == (16 * 384, False)
    folded = chain(16)
    assert total(folded.launches, estimates(folded, PART), PART).fits


def test_tasks_have_their_maps_on_chip() -> None:
    """The image is in memory and a map of 384 elements is sent; then weights and the result are in memory alone."""
    bundle = chain(style=Style.PIPELINED)
    first, last = estimates(bundle, PART)
    assert first.held_words == 384 + 384 and last.held_words == 384 + 384 + CHANNEL_WORDS + 384
    assert (first.held_bits, last.held_bits) == (32 * first.held_words, 32 * last.held_words)
    assert first.bytes_moved == 16 * (24 + 16) * 4 and last.bytes_moved == 16 * 16 * 4 + 384 * 4
    assert first.cycles == 16 * 4 + 2 * 384 and last.cycles == 16 * 4 + 3 * 384 and last.limit == "channels"
    folded = estimates(chain(), PART)[0]
    assert (folded.held_words, folded.bytes_moved, folded.cycles) == (384, 16 * (24 + 16) * 4 + 384 * 4, 16 * 4)


def test_tasks_work_side_by_side_on_one_memory() -> None:
    bundle = chain(style=Style.PIPELINED)
    for part in (PART, replace(PART, bandwidth=1e8)):
        found = estimates(bundle, part)
        whole = total(bundle.launches, found, part)
        assert whole.seconds == max(found[1].seconds, sum(one.bytes_moved for one in found) / part.bandwidth)
        assert whole.pipelined and whole.dsp_blocks == 2 * found[0].dsp_blocks


def test_tasks_add_up_on_chip() -> None:
    """Without registers for sums they are in a map, which goes to the next task."""
    adding, finishing, *_ = estimates(chain(style=Style.PIPELINED, cached_writes=False, tiling=False), PART)
    assert adding.interval == PART.float_add and adding.held_words == 384
    assert finishing.bytes_moved == 0 and finishing.held_words == 384 + CHANNEL_WORDS + 384


def test_a_task_without_weights_loads_nothing() -> None:
    """A pool after a layer of lists, which loads the image and its entries."""
    x, w, y, z = (Value(name, TensorType(shape, FLOAT)) for name, shape in (
        ("x", (8, 4, 6)), ("w", (16, 8, 3, 3)), ("y", (16, 4, 6)), ("z", (16, 2, 3))))
    graph = Graph("net", (x,), (w,), (Conv2d(y, x, w, None, Window((3, 3), pad=(1, 1, 1, 1))),
                                      MaxPool(z, y, Window((2, 2), (2, 2)))), (z,))
    weights = np.where(np.random.RandomState(0).rand(*w.shape) < 0.1, 1, 0).astype(np.float32)
    bundle = compile_kernels(graph, {"w": weights}, Optimisations(style=Style.PIPELINED))
    lists, pool = estimates(bundle, PART)
    loop = bundle.launches[0].loop
    assert lists.bytes_moved == loop.iterations * loop.loaded
    assert pool.bytes_moved == bundle.launches[1].loop.stored


def test_channels_are_as_deep_as_the_source_says() -> None:
    assert f"__attribute__((depth({CHANNEL_WORDS})))" in prelude()


def test_parts_that_are_none() -> None:
    with pytest.raises(UnsupportedError, match=r"^There is no estimate for part 'z80': choose of stratix10-2800, "):
        find_part("z80")
