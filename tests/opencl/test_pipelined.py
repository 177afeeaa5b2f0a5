"""Layers joined by channels: the source that Intel's compiler would see, as C++ with a thread for each kernel."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from bench.shortcuts import strided_shortcut
from numpy.typing import NDArray

from espalier.ir import ops
from espalier.ir.graph import Graph
from espalier.ir.interpret import interpret
from espalier.ir.types import Fixed, TensorType, Value
from espalier.numerics.window import Window
from espalier.opencl.bundle import TYPES, Bundle
from espalier.opencl.codegen import prelude
from espalier.opencl.compilation import compile_kernels
from espalier.opencl.optimisations import Optimisations, Style

SHIM = Path(__file__).parent / "channels.hpp"
SECONDS = 30  #: after which kernels wait for each other


def network() -> tuple[Graph, dict[str, NDArray]]:
    """A shortcut around a convolution, whose sum waits for both; a pool; a layer."""
    same = Window((3, 3), pad=(1, 1, 1, 1))
    x, w1, w2, w3 = value("x", 2, 6, 5), value("w1", 3, 2, 3, 3), value("w2", 3, 3, 3, 3), value("w3", 4, 3 * 3 * 2)
    a, b, c, d = (value(name, 3, 6, 5) for name in "abcd")
    p, f, y = value("p", 3, 3, 2), value("f", 18), value("y", 4)
    graph = Graph("net", (x,), (w1, w2, w3), (
        ops.Conv2d(a, x, w1, None, same), ops.Conv2d(b, a, w2, None, same), ops.Add(c, a, b), ops.Relu(d, c),
        ops.MaxPool(p, d, Window((2, 2), (2, 2))), ops.Reshape(f, p), ops.Linear(y, f, w3, None)), (y,))
    random = np.random.RandomState(0)
    return graph, {found.name: random.randint(-100, 100, found.shape) for found in graph.parameters}


def value(name: str, *shape: int) -> Value:
    return Value(name, TensorType(shape, Fixed.of(8, 4)))


def as_tasks(bundle: Bundle, image: NDArray, folder: Path) -> NDArray:
    """The result of an image, with every kernel a thread."""
    source = bundle.source.removeprefix(prelude())
    end, = bundle.images
    held = {**bundle.weights, end.buffer: end.layout.pack(image, {found.name: found.type for found in
                                                                  bundle.buffers}[end.buffer])}
    lines, threads = [], []
    for found in bundle.buffers:
        if found.name in held:
            (folder / found.name).write_bytes(np.ascontiguousarray(held[found.name]).tobytes())
            lines.append(f'  auto {found.name} = from_file<{TYPES[found.type]}>("{folder / found.name}", '
                         f'{found.elements});')
        else:
            lines.append(f"  std::vector<{TYPES[found.type]}> {found.name}({found.elements});")
    for launch in bundle.launches:
        assert launch.task is not None
        arguments = ", ".join(f"{name}.data()" for name in launch.task.arguments)
        threads.append(f"  threads.emplace_back([&] {{ {launch.kernel}({arguments}); }});")
    result = bundle.result.buffer
    program = "\n".join([
        '#include "channels.hpp"', source, "int main() {", *lines, "  std::vector<std::thread> threads;", *threads,
        "  for (auto& thread : threads) thread.join();",
        f"  std::fwrite({result}.data(), sizeof({result}[0]), {result}.size(), stdout);", "}"])
    (folder / "tasks.cpp").write_text(program)
    subprocess.run(["g++", "-std=c++20", "-fsigned-char", "-w", "-pthread", "-I", SHIM.parent, folder / "tasks.cpp",
                    "-o", folder / "tasks"], check=True)
    done = subprocess.run([folder / "tasks"], check=True, capture_output=True, timeout=SECONDS).stdout
    types = {found.name: found.type for found in bundle.buffers}
    return bundle.result.layout.unpack(np.frombuffer(done, types[result])).reshape(bundle.result.shape)


@pytest.mark.parametrize("density", [1.0, 0.2])
def test_tasks_equal_the_interpreter(density: float, tmp_path: Path) -> None:
    graph, parameters = network()
    random = np.random.RandomState(1)
    parameters = {name: np.where(random.rand(*array.shape) < density, array, 0) for name, array in parameters.items()}
    image = random.randint(-128, 128, (2, 6, 5))
    bundle = compile_kernels(graph, parameters, Optimisations(style=Style.PIPELINED, vectorisation=False))
    found = as_tasks(bundle, image, tmp_path)
    assert np.array_equal(found, interpret(graph, {**parameters, "x": image[None]})["y"][0])


def test_layers_that_read_a_map_by_phases_share_its_split(tmp_path: Path) -> None:
    graph, parameters = strided_shortcut(7, 9, 0.2)
    image = np.random.RandomState(1).randint(-128, 128, (4, 7, 9))
    bundle = compile_kernels(graph, parameters, Optimisations(style=Style.PIPELINED, vectorisation=False))
    channels = re.findall(r"^ESPALIER_CHANNEL\(.*\)$", bundle.source, re.MULTILINE)
    assert len(set(channels)) == len(channels)
    assert sum("_by_2_2_to_" in channel for channel in channels) == 2
    found = as_tasks(bundle, image, tmp_path)
    assert np.array_equal(found, interpret(graph, {**parameters, "x": image[None]})["y"][0])


def test_kernels_without_weights_run_by_themselves() -> None:
    graph, parameters = network()
    bundle = compile_kernels(graph, parameters, Optimisations(style=Style.PIPELINED))
    runs = {launch.layer: launch.task.autorun for launch in bundle.launches if launch.task is not None}
    assert len(runs) == len(bundle.launches) and [name for name, alone in runs.items() if alone] == ["k2_p"]
    first, last = (bundle.launches[k].task for k in (0, -1))
    assert first is not None and bundle.images[0].buffer in first.arguments
    assert last is not None and bundle.result.buffer in last.arguments
    assert Bundle.from_files(bundle.files(), "the test").launches == bundle.launches
