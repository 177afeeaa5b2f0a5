"""Images per second of a whole training step: exact fixed point, dense and pruned, beside float32 PyTorch.

    python benchmarks/fast_training.py --threads 1

Float32 is what a user would write: the zoo's module in channels_last, cross-entropy, autograd, ``torch.optim.SGD``.
Fixed point is our training step on 16-bit words: forward, backward, update through the accumulation buffer. Both
take random images that are in memory already. Rounds alternate, so that what else the machine does hits all alike;
figures are medians over rounds, ratios medians of each round's ratio. On one thread time is processor time, which
other programs on the machine do not lengthen (though they share its caches); on more it is the clock's.
The physical limit is what ``peak.cpp`` measures in the same run: multiply-adds of words that stay in registers.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from harness import write_results
from torch import nn

from espalier import zoo
from espalier.compress.magnitude import Magnitude
from espalier.data import Dataset, Split
from espalier.frontend.torch_export import from_torch
from espalier.ir.differentiate import differentiate
from espalier.ir.view import conv_shape
from espalier.native import build_library
from espalier.records import Bar, Figure, Provenance
from espalier.train.calibrate import Headroom, Widths
from espalier.train.config import Quantise, TrainConfig
from espalier.train.device_data import DeviceData
from espalier.train.loop import prepare
from espalier.train.native_code import OPTIONS, SOURCE
from espalier.train.optimise import Optimiser, Sgd
from espalier.train.step import TrainingStep

SGD = Sgd(learning_rate=0.01, momentum=0.9, weight_decay=5e-4)
BATCHES = {"cnn1x": 128, "lenet5": 128, "vgg16": 128}
DENSITIES = (1.0, 0.5, 0.2, 0.1, 0.05)
BOUNDS = {1.0: 0.4, 0.2: 1.5, 0.1: 3.0}  #: of images a second, over float32
IMAGES = 512


def images_of(name: str, seed: int) -> Dataset:
    random = np.random.RandomState(seed)
    shape = (IMAGES, *zoo.input_shape(name))
    return Dataset("random", random.randint(0, 256, shape).astype(np.uint8), random.randint(0, 10, IMAGES),
                   tuple(map(str, range(10))))


def float_step(name: str, dataset: Dataset, batch: int) -> Callable[[], None]:
    """A step as a user of PyTorch writes it."""
    module = zoo.build(name).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(module.parameters(), SGD.learning_rate, SGD.momentum, weight_decay=SGD.weight_decay)
    loss = nn.CrossEntropyLoss()
    images = (torch.from_numpy(dataset.images[:batch]).float() / 127.5 - 1).to(memory_format=torch.channels_last)
    labels = torch.from_numpy(dataset.labels[:batch])

    def step() -> None:
        optimiser.zero_grad()
        loss(module(images), labels).backward()
        optimiser.step()
    return step


def fixed_step(name: str, dataset: Dataset, batch: int, density: float) -> tuple[Callable[[], None], int]:
    """A step of ours, with single weights pruned to one density in every layer, and its MACs of an image."""
    graph, parameters = from_torch(zoo.build(name), zoo.input_shape(name), name)
    config = TrainConfig(name, "random", 1, batch, sgd=SGD,
                         quantise=Quantise(Widths(16, 16, 16), Headroom(2, 2, 3), probe_steps=2))
    start = prepare(config, Split(dataset, dataset), graph, parameters)
    optimiser = Optimiser(start.graph.parameters, start.gradient_formats, config.update, batch)
    optimiser.load(start.state)
    optimiser.set(SGD)
    real = optimiser.real_weights()
    shapes = {layer.w.name: conv_shape(start.graph, layer) for layer in start.graph.layers()}
    masks = Magnitude(density=density)({key: real[key].reshape(shape) for key, shape in shapes.items()})
    optimiser.prune({key: mask.reshape(real[key].shape) for key, mask in masks.items()})
    training = differentiate(start.graph, config.loss, start.gradient_formats)
    step = TrainingStep(training, optimiser, DeviceData(dataset, start.graph.inputs[0].format, "cpu"))
    index = torch.arange(batch)
    first = start.graph.layers()[0].w.name
    pixels = {layer.w.name: int(np.prod(layer.out.shape[1:])) for layer in start.graph.layers()}
    macs = sum(int(mask.sum()) * pixels[key] * (2 if key == first else 3) for key, mask in masks.items())
    return lambda: step(index), macs


def peak(rounds: int = 4_000_000) -> float:
    """Multiply-adds of 16-bit words a second, of one core, at most."""
    library = ctypes.CDLL(str(build_library(Path(__file__).with_name("peak.cpp"), (*OPTIONS, f"-I{SOURCE.parent}"))))
    library.multiply_adds.restype, library.multiply_adds.argtypes = ctypes.c_int64, [ctypes.c_int64, ctypes.c_void_p]
    found, operands = [], np.ones(4, dtype=np.int32)
    for _ in range(7):
        began = time.process_time()
        made = library.multiply_adds(rounds, operands.ctypes.data)
        found.append(made / (time.process_time() - began))
    return median(found)


def measure(steps: dict[str, Callable[[], None]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each step in each round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            began = clock()
            step()
            if number:  # the first round warms up
                times[name].append(clock() - began)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    most = options.threads * peak()
    figures = [Figure("peak of 16-bit multiply-adds", round(most / 1e9, 1), "GMAC/s", Provenance.MEASURED)]
    bars: list[Bar] = []
    for name in options.networks:
        batch, dataset = BATCHES[name], images_of(name, 0)
        steps, macs = {"float32": float_step(name, dataset, batch)}, {}
        for density in DENSITIES:
            key = f"16 bit, {density:g} live"
            steps[key], macs[key] = fixed_step(name, dataset, batch, density)
        times = measure(steps, options.rounds, clock)
        for key, spent in times.items():
            figures.append(Figure(f"{name}: {key}", round(batch / median(spent), 1), "images/s", Provenance.MEASURED))
            if key in macs:
                rate = macs[key] * batch / median(spent)
                figures += [Figure(f"{name}: {key}: executed", round(rate / 1e9, 2), "GMAC/s", Provenance.MEASURED),
                            Figure(f"{name}: {key}: of the peak", round(100 * rate / most, 1), "%",
                                   Provenance.MEASURED)]
        for density in DENSITIES:
            ratios = [a / b for a, b in zip(times["float32"], times[f"16 bit, {density:g} live"], strict=True)]
            figures.append(Figure(f"{name}: 16 bit, {density:g} live, over float32", round(median(ratios), 2), "times",
                                  Provenance.MEASURED))
            if density in BOUNDS:
                bars.append(Bar(f"{name}: 16 bit, {density:g} live, over float32", round(median(ratios), 2), ">=",
                                BOUNDS[density]))
        for figure in figures:
            print(f"{figure.name:60} {figure.value:10} {figure.unit}", flush=True)
    write_results("fast_training", seeds=[0], figures=figures, bars=bars,
                  notes=f"{options.threads} thread(s), batches {BATCHES}; random images")


if __name__ == "__main__":
    main()
