"""What pipelines hold beyond training without one: stale weights, weight stashing and synchronous micro-batches.

    python benchmarks/pipeline_memory.py --data DATA

A pipeline of PARTS parts, cut where they take equally long, trains real batches in one process; then the tensors that
are there are counted: of every batch that was under way in a part at a time, what its backward pass needs; the copy of
the weights that passes read; and the optimiser's state besides, which no scheme changes. Weight stashing (PipeDream)
holds in addition the weights that each batch under way met: as many copies as batches were seen under way. A
synchronous pipeline holds one batch in micro-batches.

After table 9 of Zhang and Abdelrahman (arXiv 1912.12675), whose percentages, with one register on GPUs in float32, are:
LeNet-5 109 % (PipeDream) and 97 %, AlexNet 214 and 37 %, VGG-16 124 and 75 %, ResNet-20 61 and 60 %. Where they cut is
not told there; ``--cuts`` sets it here.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accuracy import WIDE
from harness import write_results
from pipeline_speed import SGD, stages

from espalier.data import Split, load
from espalier.flow.network import import_network
from espalier.records import Bar, Figure, Provenance
from espalier.train import pipeline
from espalier.train.balance import even_cuts
from espalier.train.config import TrainConfig
from espalier.train.crew import ALONE
from espalier.train.device_data import DataFeed, DeviceData
from espalier.train.loop import prepare
from espalier.train.pipelining import Pipeline
from espalier.train.stage import Stage

SUBJECTS = {"lenet5": "mnist", "alexnet": "cifar10", "vgg16": "cifar10", "resnet20": "cifar10"}
IMAGES = 1024
BATCH = 128


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes of one part: for a batch under way, at most so many of which there were; of weights; of other state."""

    batch: int
    under_way: int
    weights: int
    state: int


def size(*tensors: torch.Tensor) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def held(stage: Stage) -> Held:
    """After a stretch, when every room that a batch has had is there, free; without what fills its last page.

    Words of weights count as their format has.
    """
    assert stage.native is not None, "counted in native code"
    optimiser, bits = stage.optimiser, {value.format.width for value in stage.optimiser.parameters}
    [width] = bits
    state = size(*optimiser.state_tensors) - size(optimiser.weight)
    batch = 2 * stage.native.chunks * stage.native.sizes[0] + size(stage.rooms[0].magnitudes)
    return Held(batch, len(stage.rooms), optimiser.weight.numel() * width // 8, state)


def counted(name: str, parts: int, options: Namespace) -> dict:
    """Trains a little, and counts."""
    split = load(SUBJECTS[name], Path(options.data) if options.data else None)
    data = replace(split.train, images=split.train.images[:IMAGES], labels=split.train.labels[:IMAGES])
    config = TrainConfig(name, SUBJECTS[name], 1, options.batch, sgd=SGD, quantise=replace(WIDE, probe_steps=2),
                         pipeline=Pipeline(parts))
    network = import_network(name, Split(data, data), 0)
    start = prepare(config, Split(data, data), network.graph, network.parameters, network.fixed)
    cuts = tuple(options.cuts) or even_cuts(start, data, ALONE)
    index = [*torch.arange(4 * parts * options.batch).remainder(len(data)).split(options.batch)]
    found = {}
    for scheme, cut in (("none", ()), ("stale", cuts)):
        made = stages(start, cut)
        feed = DataFeed(DeviceData(data, start.graph.inputs[0].format, "cpu"), index, None, native=True)
        pipeline.run(made, feed)
        found[scheme] = [held(stage) for stage in made]
    return {"cuts": cuts, **found}


def findings(name: str, parts: int, found: dict, batch: int) -> list[Figure]:
    """Extra bytes, and in % of what training without a pipeline holds in activations and weights."""
    [alone], stale = found["none"], found["stale"]
    base = alone.batch + alone.weights
    waiting = sum(part.batch * part.under_way for part in stale)
    extra = {"stale": waiting - alone.batch,
             "stashed": waiting - alone.batch + sum(part.weights * (part.under_way - 1) for part in stale),
             "synchronous": sum(part.batch for part in stale) - alone.batch}
    head = f"{name}/batches of {batch}/{parts} parts cut at {', '.join(found['cuts'])}"
    figures = [Figure(f"{head}: without a pipeline, activations", alone.batch, "bytes", Provenance.MEASURED),
               Figure(f"{head}: without a pipeline, weights", alone.weights, "bytes", Provenance.MEASURED),
               Figure(f"{head}: optimiser's state besides", alone.state, "bytes", Provenance.MEASURED)]
    for scheme, more in extra.items():
        figures += [Figure(f"{head}: {scheme}: extra", more, "bytes", Provenance.MEASURED),
                    Figure(f"{head}: {scheme}: extra, of activations and weights", round(100 * more / base, 1), "%",
                           Provenance.MEASURED)]
    return figures


def main() -> int:
    options = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    options.add_argument("--data", help="folder of the data sets (default: ESPALIER_DATA)")
    options.add_argument("--networks", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    options.add_argument("--parts", type=int, nargs="+", default=[2, 4])
    options.add_argument("--cuts", nargs="+", default=[], help="instead of where parts take equally long")
    options.add_argument("--batch", type=int, default=BATCH)
    told = options.parse_args()
    figures: list[Figure] = []
    bars: list[Bar] = []
    for name in told.networks:
        for parts in told.parts:
            figures += findings(name, parts, counted(name, parts, told), told.batch)
            print(*(f"{figure.name:90} {figure.value:>12} {figure.unit}" for figure in figures[-9:]), sep="\n")
    write_results("pipeline_memory", seeds=[0], figures=figures, bars=bars,
                  notes="16-bit words; activations as native code lays them out, lanes of images padded to whole "
                        "vectors. Stashed copies are not made by us: their number is that of the batches under way")
    return 0


if __name__ == "__main__":
    sys.exit(main())
