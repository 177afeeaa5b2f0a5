"""OpenCL kernels against the definition: fixed point word for word, float32 within a tolerance, on real images.

    python benchmarks/opencl_exact.py --data DATA

LeNet-5 on MNIST, CNN 1X on CIFAR-10 and ResNet-34 on ImageNet's images with random weights, ResNet-20 and MobileNetV1
with published ones, in words of 16 and of 8 bits, formats calibrated on training images; every logit of some test
images, with all optimisations, with none, and as tasks, against the interpreter; and with the largest tenth of each
layer's weights, which makes lists of them. In float32 against torch's own logits, by the largest difference over the
largest logit of an image. Operators one by one, and ONNX's own node cases, are compared in ``tests/opencl``.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from harness import LOSS, largest, write_results
from numpy.typing import NDArray

from espalier.data import Split, load, normalise
from espalier.flow.network import import_network, read_pretrained
from espalier.ir.graph import Graph
from espalier.ir.interpret import interpret
from espalier.ir.types import Fixed
from espalier.opencl.compilation import compile_kernels
from espalier.opencl.optimisations import ALL, BASE, Optimisations, Style
from espalier.opencl.runtime import Session
from espalier.records import Bar, Figure, Provenance
from espalier.train.calibrate import Headroom, Widths, calibrate
from espalier.zoo import build
from espalier.zoo.pretrained import standardised

CALIBRATION, BATCH = 32, 8
TOLERANCE = 1e-5  #: of float32, relative to an image's largest logit
FORMATS = {16: (Widths(16, 16, 16), Headroom()), 8: (Widths(8, 8, 16), Headroom(0, 0))}
OPTIONS = {"all optimisations": ALL, "none": BASE, "as tasks": Optimisations(style=Style.PIPELINED)}
DENSITIES = {1.0: "", 0.1: ", 90 % pruned"}


@dataclass(frozen=True, slots=True)
class Case:
    """A network, its data, how many test images it sees, and how many training images its formats are chosen from."""

    name: str
    data: str
    images: int = 40
    calibration: int = CALIBRATION


CASES = (Case("lenet5", "mnist"), Case("cnn1x", "cifar10"), Case("pretrained:resnet20", "cifar10"),
         Case("pretrained:mobilenet_v1_1.0_224", "imagenet-sample", 2, BATCH),
         Case("resnet34", "imagenet-sample", 2, BATCH))


def in_words(graph: Graph, parameters: dict[str, NDArray], split: Split, count: int, bits: int
             ) -> tuple[Graph, dict[str, NDArray]]:
    """The network in fixed point, its formats from the first ``count`` training images."""
    widths, headroom = FORMATS[bits]
    seen = split.train
    found = calibrate(graph, parameters, normalise(seen.images[:count]), seen.labels[:count], widths, LOSS, batch=BATCH,
                      headroom=headroom)
    return found.graph, {value.name: found.state[value.name] for value in found.graph.parameters}


def torch_logits(name: str, images: NDArray, root: Path | None, classes: int) -> NDArray:
    """What torch's own module gives."""
    module = standardised(read_pretrained(name, root)).module if ":" in name else build(name, classes)
    with torch.no_grad():
        return module.eval()(torch.from_numpy(images)).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets (default: ESPALIER_DATA)")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    figures, bars = [], []
    for case in CASES:
        name, split = case.name, load(case.data, options.data)
        images = normalise(split.test.images[:case.images])
        network = import_network(name, split, root=options.data)
        for bits in FORMATS:
            graph, whole = in_words(network.graph, network.parameters, split, case.calibration, bits)
            image = graph.inputs[0]
            assert isinstance(image.format, Fixed), "the network is in fixed point"
            words = image.format.quantise(images)
            layers = {layer.w.name for layer in graph.layers()}
            for density, pruned in DENSITIES.items():
                weights = {title: array * largest(array, density, 1) if title in layers else array
                           for title, array in whole.items()}
                expected = interpret(graph, {**weights, image.name: words})[graph.outputs[0].name]
                for title, chosen in OPTIONS.items():
                    differ = int((Session(compile_kernels(graph, weights, chosen)).run(words) != expected).sum())
                    place = f"{name}{pruned}, {bits} bits, {title}"
                    figures.append(Figure(f"{place}: words compared", expected.size, "words", Provenance.MEASURED))
                    bars.append(Bar(f"{place}: differing words", differ, "==", 0))
        expected = torch_logits(name, images, options.data, split.train.class_count)
        for title, chosen in OPTIONS.items():
            got = Session(compile_kernels(network.graph, network.parameters, chosen)).run(images)
            error = (np.abs(got - expected).max(axis=1) / np.abs(expected).max(axis=1)).max()
            bars.append(Bar(f"{name}, float32, {title}: largest difference from torch over an image's largest logit",
                            float(f"{error:.3g}"), "<=", TOLERANCE))
    write_results("opencl_exact", seeds=[0], figures=figures, bars=bars, output=options.output)


if __name__ == "__main__":
    main()
