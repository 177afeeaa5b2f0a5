"""What pipelines hold beyond training without one, counted from live tensors, by scheme and for weight stashing.

    python benchmarks/pipeline_memory.py

A pipeline of PARTS parts trains in one process; at the beginning of each cycle all tensors that live are counted, each
storage once, and the most of these is reported, less what lived before the pipeline was made. Without a pipeline the
same is done with one part. Weight stashing (PipeDream, SOSP 2019) is :class:`StashingStage`, which keeps the weights
that each batch under way met. A hybrid holds what its two halves do, one after the other; what is reported of it is
what is left once it is synchronous.

Beside it stands what ``cost/pipelines.py`` predicts from the bytes that each part keeps of one batch, plus the messages
under way, one each way over each cut, and the memory in which each part works, whatever it keeps. Parts are even in
MACs. Images are noise and all weights are dead, which makes passes short and tensors none the smaller.

After table 9 of Zhang and Abdelrahman (arXiv 1912.12675), whose percentages, with one register on GPUs in float32, are:
LeNet-5 109 % (PipeDream) and 97 %, AlexNet 214 and 37 %, VGG-16 124 and 75 %, ResNet-20 61 and 60 %. Where they cut is
not told there; ``--cuts`` sets it here.
"""

from __future__ import annotations

import gc
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod

import numpy as np
import torch
from accuracy import WIDE
from harness import write_results
from torch import Tensor

from espalier import zoo
from espalier.cost.pipelines import Link, Part, Prediction, predict
from espalier.cost.pipelines import Scheme as Modelled
from espalier.data import Dataset, Split
from espalier.flow.network import import_network
from espalier.ir.cut import split
from espalier.ir.differentiate import differentiate_parts
from espalier.ir.graph import Graph
from espalier.ir.ops import Conv2d, Linear
from espalier.records import Bar, Figure, Provenance
from espalier.train import pipeline
from espalier.train.balance import balanced_cuts
from espalier.train.checkpoint import Checkpoint
from espalier.train.config import TrainConfig
from espalier.train.loop import prepare
from espalier.train.optimise import Optimiser, Sgd
from espalier.train.pipeline import Feed, Given, Schedule
from espalier.train.pipelining import candidates
from espalier.train.stage import Stage

NETWORKS = ("lenet5", "alexnet", "vgg16", "resnet20")
SGD = Sgd(learning_rate=0.01, momentum=0.9, weight_decay=5e-4)
BATCH, MICRO_BATCHES, PROBED, CLASSES = 128, 4, 8, 10
WORD = 2          #: bytes
DIFFERENCE = 5.0  #: between measured and predicted bytes, in % of the latter, at most


class StashingStage(Stage):
    """Takes each batch back on the weights that it met on its way forward, as PipeDream does."""

    def __init__(self, step: Graph, optimiser: Optimiser) -> None:
        super().__init__(step, optimiser)
        self.versions: deque[Tensor] = deque()

    def forward(self, x: Tensor) -> Tensor:
        self.versions.append(self.optimiser.weight.to(torch.int16))
        return super().forward(x)

    def backward(self, second: Tensor) -> Tensor | None:
        newest = self.optimiser.weight.clone()
        self.optimiser.weight.copy_(self.versions.popleft())
        through = super().backward(second)
        self.optimiser.weight.copy_(newest)
        return through


Runs = Callable[[Sequence[Stage], Feed], None]


def synchronously(stages: Sequence[Stage], feed: Feed) -> None:
    pipeline.run_synchronously(stages, feed, MICRO_BATCHES)


def as_hybrid(stages: Sequence[Stage], feed: Feed) -> None:
    """What is live while it is stale is that of ``stale``, and not counted again."""
    assert isinstance(feed, Watched), "as made below"
    pipeline.run(stages, feed.given)
    pipeline.run_synchronously(stages, feed.given, MICRO_BATCHES)
    pipeline.run_synchronously(stages, feed, MICRO_BATCHES)


@dataclass(frozen=True, slots=True)
class Subject:
    """A scheme: its stages, what they do, and which model predicts them."""

    runs: Runs
    modelled: Modelled
    kind: type[Stage] = Stage
    compensated: bool = False


SCHEMES = {"stale": Subject(pipeline.run, Modelled.STALE),
           "compensated": Subject(pipeline.run, Modelled.STALE, compensated=True),
           "stashed (PipeDream)": Subject(pipeline.run, Modelled.STASHED, StashingStage),
           "synchronous": Subject(synchronously, Modelled.SYNCHRONOUS),
           "hybrid, once synchronous": Subject(as_hybrid, Modelled.SYNCHRONOUS)}


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes by address: views of one storage count once."""
    found = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in found if storage.nbytes()}


def living() -> dict[int, int]:
    """The storages of all tensors that live in this process."""
    return storages(found for found in gc.get_objects() if type(found) is Tensor)


@dataclass(slots=True)
class Watched:
    """A feed that counts what lives, but for what lived ``before``, whenever a batch begins its way."""

    given: Feed
    before: dict[int, int]
    counts: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.given)

    def size(self, number: int) -> int:
        return self.given.size(number)

    def images(self, number: int) -> Tensor:
        self.counts.append(sum(nbytes for place, nbytes in living().items() if place not in self.before))
        return self.given.images(number)

    def labels(self, number: int) -> Tensor:
        return self.given.labels(number)

    def divided(self, number: int, parts: int) -> Feed:
        return Watched(self.given.divided(number, parts), self.before, self.counts)


def started(name: str) -> Checkpoint:
    """The network in fixed point."""
    noise = np.random.RandomState(0).randint(0, 256, (PROBED, *zoo.input_shape(name))).astype(np.uint8)
    data = Dataset("noise", noise, np.arange(PROBED), CLASSES)
    config = TrainConfig(name, data.name, 1, PROBED, sgd=SGD, quantise=replace(WIDE, probe_steps=0))
    network = import_network(name, Split(data, data), 0)
    return prepare(config, Split(data, data), network.graph, network.parameters, network.fixed)


def even(graph: Graph, parts: int) -> tuple[str, ...]:
    """The cuts with which the part with most MACs has the fewest."""
    values = candidates(graph, folds=True)
    macs = [float(sum(prod(op.w.shape) * prod(op.out.shape[1:]) for op in part.ops if isinstance(op, Conv2d | Linear)))
            for part in split(graph, [value.name for value in values])]
    return tuple(values[number].name for number in balanced_cuts(macs, [0.0] * len(values), parts))


def held(start: Checkpoint, cuts: tuple[str, ...], batch: int, subject: Subject) -> tuple[int, list[Stage]]:
    """Live bytes of a pipeline, and its stages."""
    image = start.graph.inputs[0]
    given = Given([(torch.zeros(batch, *image.shape, dtype=torch.int16), torch.zeros(batch, dtype=torch.int64))]
                  * 2 * (len(cuts) + 1))  # the last ones meet a pipeline that is full
    gc.collect()
    watched, schedule = Watched(given, living()), Schedule(len(cuts) + 1)
    parts, stages = split(start.graph, cuts), []
    for number, (part, step) in enumerate(zip(parts, differentiate_parts(
            parts, start.config.loss, start.gradient_formats, start.frozen), strict=True)):
        optimiser = Optimiser(part.learned(), start.gradient_formats, start.update, batch, frozen=start.frozen,
                              delay=schedule.delay(number) if subject.compensated else 0)
        optimiser.set(SGD)
        optimiser.live.zero_()
        stages.append(subject.kind(step, optimiser))
    subject.runs(stages, watched)
    return max(watched.counts), stages


def predicted(stages: Sequence[Stage], batch: int, scheme: Modelled) -> tuple[Prediction, int]:
    """The model's, from what each part keeps of one batch, and the bytes of all else: messages and working memory."""
    parts, working = [], 0
    for stage in stages:
        assert stage.native is not None, "counted in native code"
        room = stage.native.keeping(batch)
        working += stage.native.working_bytes
        parts.append(Part(1.0, 1.0, 0 if stage.last else WORD * batch * prod(stage.result.shape),
                          sum(storages((room.arena, room.magnitudes)).values()),
                          WORD * stage.optimiser.weight.numel()))
    divided = MICRO_BATCHES if scheme is Modelled.SYNCHRONOUS else 1
    messages = sum(2 * part.sent for part in parts) // divided
    return predict(parts, Link(1.0), scheme, divided), messages + working


def needed(stage: Stage, batch: int) -> int:
    """Bytes that the backward pass reads of the forward pass, by the graph alone."""
    return WORD * batch * sum(prod(stage.step.value(name).shape) for name in stage.needed)


def findings(name: str, options: Namespace) -> tuple[list[Figure], list[Bar]]:
    """Bytes beyond those without a pipeline, and in % of what that holds in activations and weights."""
    start, batch, head = started(name), options.batch, f"{name}/batches of {options.batch}"
    alone, [whole] = held(start, (), batch, SCHEMES["stale"])
    found, working = predicted([whole], batch, Modelled.STALE)
    base = sum(found.activation_bytes) + sum(found.weight_bytes)
    figures = [Figure(f"{head}/no pipeline: {what}", nbytes, "bytes", provenance) for what, nbytes, provenance in (
        ("activations of a batch", sum(found.activation_bytes), Provenance.MEASURED),
        ("of which the backward pass reads", needed(whole, batch), Provenance.ESTIMATED),
        ("a copy of the weights", sum(found.weight_bytes), Provenance.ESTIMATED),
        ("all live tensors", alone, Provenance.MEASURED))]
    bars = []
    for parts, (scheme, subject) in product(options.parts, SCHEMES.items()):
        cuts = tuple(options.cuts) or even(start.graph, parts)
        total, stages = held(start, cuts, batch, subject)
        model, beside = predicted(stages, batch, subject.modelled)
        extra, modelled = total - alone, sum(model.activation_bytes) + sum(model.weight_bytes) + beside - working - base
        title = f"{head}/{parts} parts cut at {', '.join(cuts)}/{scheme}"
        figures += [Figure(f"{title}: extra", extra, "bytes", Provenance.MEASURED),
                    Figure(f"{title}: extra, of activations and weights", round(100 * extra / base, 1), "%",
                           Provenance.MEASURED),
                    Figure(f"{title}: extra, predicted", modelled, "bytes", Provenance.ESTIMATED)]
        bars.append(Bar(f"{title}: measured beside predicted",
                        round(100 * abs(extra - modelled) / (base + modelled), 2), "<=", DIFFERENCE))
        print(f"{title:90} {extra:>12,} measured {modelled:>12,} predicted", flush=True)
    return figures, bars


def main() -> int:
    options = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    options.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    options.add_argument("--parts", type=int, nargs="+", default=[2, 4])
    options.add_argument("--cuts", nargs="+", default=[], help="instead of where parts have equally many MACs")
    options.add_argument("--batch", type=int, default=BATCH)
    told = options.parse_args()
    figures: list[Figure] = []
    bars: list[Bar] = []
    for name in told.networks:
        more, held_to = findings(name, told)
        figures, bars = figures + more, bars + held_to
    write_results("pipeline_memory", seeds=[0], figures=figures, bars=bars,
                  notes="16-bit words; activations as native code lays them out, with borders of zeros. The copy of "
                        "the weights that passes read, which float64 carries here, is the same in all schemes, and "
                        "counts as 16-bit words; so are the optimiser's state and the whole network's, which every "
                        "process has between stretches. Messages are those of one process: rings of processes hold 4 "
                        "each way")
    return 0


if __name__ == "__main__":
    sys.exit(main())
