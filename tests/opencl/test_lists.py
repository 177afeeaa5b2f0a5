"""Lists of the weights that live, and maps whose pixels they meet."""

from __future__ import annotations

import numpy as np
import pytest
from bench.shortcuts import strided_shortcut
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.ir.graph import Graph
from espalier.ir.interpret import interpret
from espalier.ir.ops import Add, Conv2d
from espalier.ir.types import FLOAT, TensorType, Value
from espalier.numerics.window import Window
from espalier.opencl.compilation import compile_kernels
from espalier.opencl.flat import WHOLE, Plane, flat_layouts, inside
from espalier.opencl.layout import Layout
from espalier.opencl.lists import Tiling, lists_of, tilings
from espalier.opencl.plan import plan
from espalier.opencl.runtime import Session


@settings(deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), groups=st.integers(1, 3), outputs=st.integers(1, 4), blocks=st.integers(1, 3),
       inputs=st.integers(1, 4), chains=st.integers(1, 3), density=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_lists_have_every_live_weight_once(seed: int, groups: int, outputs: int, blocks: int, inputs: int, chains: int,
                                           density: float) -> None:
    random = np.random.RandomState(seed)
    shape = (groups * blocks * outputs, inputs, 2, 3)
    weights = np.where(random.rand(*shape) < density, random.randint(1, 100, shape), 0)
    places = np.arange(groups * inputs * 6).reshape(groups * inputs, 2, 3)
    found = lists_of(weights, places, groups, Tiling(outputs, 1, chains))
    back = np.zeros((len(weights), places.size), np.int64)
    for block, (start, end) in enumerate(zip(found.starts[:-1], found.starts[1:], strict=True)):
        for place, column in zip(found.places[start:end].ravel(), found.weights[start:end].reshape(-1, outputs),
                                 strict=True):
            back[block * outputs: (block + 1) * outputs, place] += column
    for row, own in enumerate(weights):
        group = row // (blocks * outputs)
        seen = back[row].reshape(places.shape)
        assert np.array_equal(seen[group * inputs: (group + 1) * inputs], own)
        assert np.count_nonzero(seen) == np.count_nonzero(own)


def test_an_entry_has_as_many_outputs_as_pay() -> None:
    """Where weights die in blocks, a vector that is loaded serves a block's outputs; where scattered, one."""
    random = np.random.RandomState(0)
    blocks = np.kron(random.rand(16, 16) < 0.1, np.ones((4, 4))).reshape(64, 64, 1, 1)
    scattered = (random.rand(64, 64, 1, 1) < 0.1).astype(float)
    assert tilings(blocks, 1, 14, tiled=True)[0].outputs == 4
    assert tilings(scattered, 1, 14, tiled=True)[0].outputs == 1
    assert tilings(blocks, 1, 14, tiled=False) == [Tiling(1, 1, 1)]


def residual(stride: int) -> Graph:
    """A convolution of some stride, one after it, and their sum, on maps with an odd number of rows."""
    size = {1: (9, 13), 2: (5, 7)}[stride]
    x, w1, w2 = value("x", 4, 9, 13), value("w1", 4, 4, 3, 3), value("w2", 4, 4, 3, 3)
    a, b, c = (value(name, 4, *size) for name in "abc")
    pad = (1, 1, 1, 1)
    return Graph("residual", (x,), (w1, w2), (
        Conv2d(a, x, w1, None, Window((3, 3), (stride, stride), pad)), Conv2d(b, a, w2, None, Window((3, 3), pad=pad)),
        Add(c, b, a)), (c,))


def value(name: str, *shape: int) -> Value:
    return Value(name, TensorType(shape, FLOAT))


@pytest.mark.parametrize("stride", [1, 2])
def test_maps_of_a_layer_have_rows_of_one_length(stride: int) -> None:
    graph = residual(stride)
    found = flat_layouts(graph, plan(graph, fusion=True), 16)
    x, (a, c) = graph.inputs[0], (graph.ops[0].out, graph.outputs[0])
    read = found[x, (stride, stride)]
    assert {Plane.of(found[key]).pitch for key in ((a, WHOLE), (c, WHOLE))} == {Plane.of(read).pitch}
    assert read.shape == {1: (4, 9, 13), 2: (16, 6, 8)}[stride]  # by phases: with the padding, halved
    for layout in found.values():
        plane = Plane.of(layout)
        assert plane.start % 16 == plane.size % 16 == 0
    assert found[a, WHOLE].halo[0] >= 1 and found[a, WHOLE].halo[1] == 1


def test_what_lies_between_rows_is_no_pixel() -> None:
    assert inside(Layout((1, 2, 3), 1, (0, 1, 0, 1)), 4).tolist() == [True, True, True, False, False, True, True, True]


@pytest.mark.parametrize(("density", "listed"), [(0.1, True), (0.9, False)])
def test_lists_where_few_weights_live(density: float, listed: bool) -> None:
    graph, random = residual(2), np.random.RandomState(0)
    weights = {value.name: np.where(random.rand(*value.shape) < density, 1.0, 0.0).astype(np.float32)
               for value in graph.parameters}
    bundle = compile_kernels(graph, weights)
    assert any(buffer.name.endswith("_places") for buffer in bundle.buffers) == listed
    made = sum(launch.multiplications for launch in bundle.launches)
    pixels = 5 * 7
    assert made == pixels * (sum(map(np.count_nonzero, weights.values())) if listed else 2 * 4 * 4 * 9)


def test_a_map_is_split_once_for_all_its_readers() -> None:
    """Another kernel would write what the first reader, in a queue of its own, still reads."""
    graph, parameters = strided_shortcut(24, 40, 0.2)
    bundle = compile_kernels(graph, parameters)
    written = [launch.written for launch in bundle.launches]
    assert sum(name.endswith("_by_2_2") for name in written) == 1 and len(set(written)) == len(written) == 5
    assert max(launch.queue for launch in bundle.launches) == 1
    images = np.random.RandomState(1).randint(-128, 128, (100, 4, 24, 40))
    assert np.array_equal(Session(bundle).run(images), interpret(graph, {**parameters, "x": images})["y"])
