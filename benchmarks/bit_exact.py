"""One whole training step: RTL = interpreter = training path, every word.

LeNet-5 and CNN 1X on several lattices, dense and pruned; the large networks, with residual connections, strides,
depthwise convolutions and means, on one lattice and pruned, for the sake of the simulation; ResNet-20 and MobileNetV1
also with batch norms that are trained, not folded; CNN 1X and ResNet-20 also with one image in tiles; CNN 1X, ResNet-20
and MobileNetV1 also on several processing elements.

The training path is both of its ways: torch operations, which give every tensor, and the native step, which gives loss,
logits and the state after the update.

    python benchmarks/bit_exact.py [--lanes 8] [--networks resnet20 vgg16]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from harness import SGD, Prepared, prepare, training_optimiser, write_results

from espalier.compiler.tiling import WHOLE, Grid
from espalier.engines.interpreter import InterpreterEngine
from espalier.engines.rtl import RtlEngine
from espalier.ir.differentiate import gradient_name
from espalier.records import Bar, Figure, Provenance
from espalier.train.evaluate import run, to_array, to_tensor
from espalier.train.native_norms import compiled_whole


@dataclass(frozen=True, slots=True)
class Case:
    """A network on a lattice of so many rows."""

    network: str
    data: str
    rows: int
    density: float
    large: bool = False
    norms: bool = False
    grid: Grid = WHOLE
    elements: int = 1

    @property
    def lanes(self) -> int | None:
        """Those of one image in tiles; or where the simulation of a large network allows no more."""
        if self.grid != WHOLE:
            return prod(self.grid)
        return 2 if self.large else None

    def __str__(self) -> str:
        tiles = "" if self.grid == WHOLE else f" in {self.grid[0]}×{self.grid[1]} tiles"
        shared = f"elements={self.elements} " if self.elements > 1 else ""
        return (f"{self.network}{' with batch norms' if self.norms else ''}{tiles} {shared}rows={self.rows} "
                f"density={self.density:g}")


CASES = (*(Case(network, data, rows, density) for network, data in (("lenet5", "mnist"), ("cnn1x", "cifar10"))
           for rows in (1, 4, 8) for density in (1.0, 0.1)),
         *(Case(network, "cifar10", 8, 0.1, large=True) for network in ("resnet20", "mobilenetv1", "alexnet", "vgg16")),
         *(Case(network, "cifar10", 8, 0.1, large=True, norms=True) for network in ("resnet20", "mobilenetv1")),
         *(Case("cnn1x", "cifar10", 8, 1.0, grid=grid) for grid in ((4, 4), (8, 8))),
         *(Case(network, "cifar10", 8, 0.1, large=True, grid=(4, 4))
           for network in ("mobilenetv1", "alexnet", "vgg16")),
         Case("resnet20", "cifar10", 8, 0.1, large=True, grid=(8, 8)),
         Case("resnet20", "cifar10", 8, 0.1, large=True, norms=True, grid=(4, 4)),
         Case("cnn1x", "cifar10", 4, 1.0, elements=4), Case("cnn1x", "cifar10", 4, 0.1, elements=4, grid=(2, 2)),
         Case("resnet20", "cifar10", 4, 0.1, large=True, elements=2),
         Case("mobilenetv1", "cifar10", 2, 0.1, large=True, elements=4))


def training_path(prepared: Prepared, images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The same step by the torch training path."""
    network, graph = prepared.network, prepared.network.graph
    optimiser = training_optimiser(prepared, SGD)
    tensors = {graph.inputs[0].name: to_tensor(images, graph.inputs[0].format),
               graph.inputs[1].name: to_tensor(labels, graph.inputs[1].format), **optimiser.weights}
    values = run(graph, tensors)
    found = {value.name: to_array(values[value.name], value.format) for value in graph.values()
             if value not in graph.parameters}
    found["loss"] = found["loss"].sum()
    for name in network.rules:
        found[gradient_name(name)] = np.where(network.live[name], found[gradient_name(name)], 0)
    optimiser.step(values)
    return found | {name: words for name, words in optimiser.state().items() if not name.endswith(".live")}


def native_step(prepared: Prepared, images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The same step as native code."""
    graph, optimiser = prepared.network.graph, training_optimiser(prepared, SGD)
    native = compiled_whole(graph, len(images))
    assert native is not None, "there is a C++ compiler"
    loss, logits, sums = native.train(torch.from_numpy(images.astype(np.int16)), torch.from_numpy(labels),
                                      optimiser.weight, optimiser.live, optimiser.weights)
    optimiser.step_sums(sums, native.roundings, native.scalars)
    state = {name: words for name, words in optimiser.state().items() if not name.endswith(".live")}
    return {graph.outputs[0].name: loss.sum().long().numpy(), graph.outputs[1].name: logits.numpy(), **state}


def differing(a: dict, b: dict) -> tuple[int, int, int]:
    """Tensors and words that both know, and words that differ."""
    common = [name for name in a if name in b]
    return (len(common), sum(int(np.size(a[name])) for name in common),
            sum(int((np.asarray(a[name]) != np.asarray(b[name])).sum()) for name in common))


def compared(case: Case, lanes: int) -> dict[str, tuple[int, int, int]]:
    """What :func:`differing` says of one step on each pair of engines."""
    prepared = prepare(case.network, case.data, rows=case.rows, lanes=lanes, density=case.density,
                       probe=32 if case.large else 256, dense_depths=not case.large, norms=case.norms, grid=case.grid,
                       elements=case.elements)
    rtl, reference = RtlEngine(prepared.network), InterpreterEngine(prepared.network)
    count = prepared.network.program.machine.images
    images, labels = prepared.images[:count], prepared.labels[:count]
    for engine in (rtl, reference):
        engine.load(prepared.state)
    from_rtl, expected = rtl.traced_step(images, labels), reference.traced_step(images, labels)
    rtl.close()
    return {"RTL = interpreter": differing(from_rtl, expected),
            "training path = interpreter": differing(training_path(prepared, images, labels), expected),
            "native training path = interpreter": differing(native_step(prepared, images, labels), expected)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lanes", type=int, default=8, help="of the small networks; the large ones have 2")
    parser.add_argument("--networks", nargs="+", choices=sorted({case.network for case in CASES}))
    parser.add_argument("--norms", action="store_true", help="only those with batch norms")
    parser.add_argument("--tiles", action="store_true", help="only those in tiles")
    parser.add_argument("--elements", action="store_true", help="only those on several processing elements")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    figures, bars = [], []
    for case in CASES:
        if options.networks and case.network not in options.networks or (
                options.norms and not case.norms) or (options.tiles and case.grid == WHOLE) or (
                options.elements and case.elements == 1):
            continue
        for pair, (tensors, words, wrong) in compared(case, case.lanes or options.lanes).items():
            provenance = Provenance.SIMULATED if pair.startswith("RTL") else Provenance.MEASURED
            figures += [Figure(f"{case}: {pair}, tensors compared", tensors, "tensors", provenance),
                        Figure(f"{case}: {pair}, words compared", words, "words", provenance),
                        Figure(f"{case}: {pair}, differing", wrong, "words", provenance)]
            bars.append(Bar(f"{case}: {pair}, differing words", wrong, "==", 0))
            print(case, pair, tensors, words, wrong, flush=True)
    write_results("bit_exact", seeds=[0], figures=figures, bars=bars, output=options.output)


if __name__ == "__main__":
    main()
