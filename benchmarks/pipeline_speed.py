"""Two processes of one core each against one process of one core: pipelines, ours and torch's, and data parallel.

    python benchmarks/pipeline_speed.py --data DATA

Every scheme trains the same network on the same batches of CIFAR-10, one scheme after the other in each round, so that
what else the machine does hits all alike. How long exact sums take depends on how large words are, so ours begin BEFORE
batches after the first, with a learning rate that no longer moves a weight: all schemes do the same work. Figures are
medians over rounds of images a second of the clock, speed-ups medians of each round's ratio to one process of the same
arithmetic.

- 16 bit, and float32 by the same code: one process; a pipeline of two on stale weights; the same, synchronous, each
  batch in MICRO_BATCHES. Where the network is cut follows from measured times (``train/balance.py``). ``two runs side
  by side`` are two processes that share nothing and each train the whole network: what the cores of the machine, with
  the memory and caches that they share, give at most.
- float32 by PyTorch as a user writes it: one process; data parallel (DDP), half of each batch each; GPipe and 1F1B of
  ``torch.distributed.pipelining``, batches in MICRO_BATCHES, cut where the MACs of both parts are closest.

A pipeline of stale weights runs empty after each measurement, as it does every 100 batches when it trains; ``once
full`` is its speed without that, from the difference to a measurement of FEW batches, and that is held against the
published speed-ups. All of it for each size of a batch: what a part holds of a small one is still in its cache when the
gradient comes.

What limits a pipeline of stale weights: the slower part (``balance``: the speed-up if nothing were ever waited for,
from the time that each part works: computes, copies messages, and loads images or labels), filling and running empty
(2 cycles beside one for each batch), and waiting for messages. ``predicted`` is what ``cost/pipelines.py`` makes of the
time that each part works in the scheme and of the measured time of one process in the same round, held against the
measured speed-up.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from harness import write_results
from torch import nn
from torch.distributed.pipelining import Schedule1F1B, ScheduleGPipe, SplitPoint, pipeline
from torch.nn.parallel import DistributedDataParallel

from espalier import zoo
from espalier.cost.pipelines import Link, Part, Scheme, predict
from espalier.data import Dataset, Split, load
from espalier.flow.network import import_network
from espalier.ir.cut import split
from espalier.ir.differentiate import differentiate_parts
from espalier.records import Bar, Figure, Provenance
from espalier.train import pipeline as alone
from espalier.train import worker
from espalier.train.balance import LINK, even_cuts, further
from espalier.train.calibrate import Headroom, Widths
from espalier.train.checkpoint import Checkpoint
from espalier.train.config import Quantise, TrainConfig
from espalier.train.crew import Crew, joined
from espalier.train.device_data import DataFeed, DeviceData
from espalier.train.loop import prepare
from espalier.train.mailbox import Rings
from espalier.train.optimise import Optimiser, Sgd
from espalier.train.pipelining import Pipeline
from espalier.train.processes import in_processes
from espalier.train.stage import Stage
from espalier.train.timeline import BACKWARD, COPY, FORWARD, LOAD, UPDATE, shares

SGD = Sgd(learning_rate=0.01, momentum=0.9, weight_decay=5e-4)
STILL = replace(SGD, learning_rate=1e-12)
BEFORE = 20
MICRO_BATCHES, WORKERS, FEW = 4, 2, 2
TORCH_CUTS = {"resnet20": "layer2.1", "resnet56": "layer2.4", "vgg16": "conv3_3", "cnn4x": "conv4"}
PUBLISHED = 1.65  #: times as fast, of two GPUs (arXiv 1912.12675, ResNet-56; up to 1.82)
ERROR = 15.0      #: of the predicted speed-up, in %, at most
ONE, STALE, SYNCHRONOUS = "one process", "stale", f"synchronous in {MICRO_BATCHES}"
FIXED, FLOAT, TORCH = KINDS = "16 bit", "float32", "PyTorch float32"
STALE_FEW, FULL, APART = f"stale, {FEW} batches", "stale, once full", "two runs side by side"

Step = Callable[[], None]


def started(name: str, data: Dataset, batch: int, quantise: Quantise | None) -> Checkpoint:
    """The network before its first step; batch norms folded, so that both arithmetics do the same work."""
    config = TrainConfig(name, "cifar10", 1, batch, sgd=SGD, quantise=quantise, pipeline=Pipeline(WORKERS))
    network = import_network(name, Split(data, data), 0)
    return further(prepare(config, Split(data, data), network.graph, network.parameters, network.fixed), data, BEFORE)


def stages(start: Checkpoint, cuts: tuple[str, ...]) -> list[Stage]:
    parts, made = split(start.graph, cuts), []
    for part, step in zip(parts, differentiate_parts(parts, start.config.loss, start.gradient_formats, start.frozen),
                          strict=True):
        optimiser = Optimiser(part.learned(), start.gradient_formats, start.update, start.config.batch,
                              frozen=start.frozen)
        optimiser.set(STILL)
        optimiser.load(start.state)
        made.append(Stage(step, optimiser))
    return made


def ours(start: Checkpoint, data: Dataset, batches: int, crew: Crew) -> tuple[dict[str, Step], Stage]:
    """What this process does in each scheme, and its stage of the pipeline."""
    batch, cuts = start.config.batch, even_cuts(start, data, crew)
    whole, mine = stages(start, ())[0], stages(start, cuts)[crew.rank]
    loaded = DeviceData(data, start.graph.inputs[0].format, "cpu")
    feed = DataFeed(loaded, [*torch.arange(batches * batch).remainder(len(data)).split(batch)], None,
                    native=whole.native is not None)
    rings = Rings.between(crew, mine, batch)
    if not crew.rank:
        print(f"{start.graph.name}: cut at {', '.join(cuts)}", flush=True)
    return {ONE: (lambda: None) if crew.rank else partial(alone.run, [whole], feed),
            APART: partial(alone.run, [whole], feed),
            STALE: partial(worker.take_part, mine, feed, rings),
            STALE_FEW: partial(worker.take_part, mine, replace(feed, index=feed.index[:FEW]), rings),
            SYNCHRONOUS: partial(worker.take_part_synchronously, mine, feed, MICRO_BATCHES, rings)}, mine


def theirs(name: str, data: Dataset, batch: int, batches: int, rank: int) -> dict[str, Step]:
    """PyTorch's schemes."""
    images = [(torch.from_numpy(data.images[number * batch % len(data):][:batch]).float() / 127.5 - 1
               ).to(memory_format=torch.channels_last) for number in range(batches)]
    labels = [torch.from_numpy(data.labels[number * batch % len(data):][:batch]) for number in range(batches)]
    half, loss = batch // WORKERS, nn.CrossEntropyLoss()

    def trains(module: nn.Module, part: slice) -> Step:
        optimiser = torch.optim.SGD(module.parameters(), SGD.learning_rate, SGD.momentum, weight_decay=5e-4)

        def steps() -> None:
            for x, y in zip(images, labels, strict=True):
                optimiser.zero_grad()
                loss(module(x[part]), y[part]).backward()
                optimiser.step()
        return steps

    def fresh() -> nn.Module:
        return zoo.build(name).to(memory_format=torch.channels_last)

    def piped(schedule: type) -> Step:
        plain = [x.contiguous() for x in images]  # gloo takes no channels_last
        parted = pipeline(zoo.build(name), (plain[0][:batch // MICRO_BATCHES],),
                          split_spec={TORCH_CUTS[name]: SplitPoint.BEGINNING})
        stage = parted.build_stage(rank, torch.device("cpu"))
        optimiser = torch.optim.SGD(stage.submod.parameters(), SGD.learning_rate, SGD.momentum, weight_decay=5e-4)
        runs = schedule(stage, MICRO_BATCHES, loss_fn=loss)

        def steps() -> None:
            for x, y in zip(plain, labels, strict=True):
                optimiser.zero_grad()
                runs.step(*([] if rank else [x]), **({"target": y} if rank else {}))
                optimiser.step()
        return steps

    return {ONE: (lambda: None) if rank else trains(fresh(), slice(None)),
            "DDP": trains(DistributedDataParallel(fresh()), slice(rank * half, rank * half + half)),
            "GPipe": piped(ScheduleGPipe), "1F1B": piped(Schedule1F1B)}


def measured(schemes: dict[str, dict[str, Step]], rounds: int, mine: Stage
             ) -> tuple[dict[str, dict[str, list[float]]], dict[str, list[Counter[str]]]]:
    """Seconds of each scheme of each arithmetic in each round, until all processes are done.

    And in each round the nanoseconds by what ``mine`` does, in the schemes in which it is the part of this process.
    """
    seconds: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in steps} for kind, steps in schemes.items()}
    spent: dict[str, list[Counter[str]]] = {STALE: [], SYNCHRONOUS: []}
    for number in range(rounds + 1):
        for kind, steps in schemes.items():
            for name, step in steps.items():
                mine.timeline.spent.clear()
                dist.barrier()
                began = time.perf_counter()
                step()
                dist.barrier()
                if number:  # the first round warms up
                    seconds[kind][name].append(time.perf_counter() - began)
                    if kind == FIXED and name in spent:
                        spent[name].append(mine.timeline.spent.copy())
    return seconds, spent


def work(options: Namespace, batch: int, results: Path) -> None:
    """Of each process; the first writes."""
    rank = int(os.environ["RANK"])
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank % os.cpu_count()]})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = load("cifar10", Path(options.data) if options.data else None).train
    data = replace(data, images=data.images[:2048], labels=data.labels[:2048])
    found = {}
    with joined(WORKERS, "cpu", 1800) as crew:
        for name in options.networks:
            batches, wide = options.images // batch, Quantise(Widths(16, 16, 16), Headroom(2, 2, 3), probe_steps=2)
            fixed, mine = ours(started(name, data, batch, wide), data, batches, crew)
            schemes = {FIXED: fixed} if FIXED in options.kinds else {}
            if FLOAT in options.kinds:
                schemes[FLOAT], _ = ours(started(name, data, batch, None), data, batches, crew)
            if TORCH in options.kinds:
                schemes[TORCH] = theirs(name, data, batch, batches, rank)
            seconds, spent = measured(schemes, options.rounds, mine)
            found[name] = {"spent": {scheme: [*zip(*crew.gather(rounds), strict=True)]
                                     for scheme, rounds in spent.items()},
                           "sent": crew.gather(2 * batch * prod(mine.result.shape)), "seconds": seconds}
            if not rank:
                results.write_text(json.dumps(found))
                print(name, {kind: {scheme: round(median(took), 2) for scheme, took in of.items()}
                             for kind, of in found[name]["seconds"].items()}, flush=True)


def findings(found: dict, batch: int, batches: int) -> tuple[list[Figure], list[Bar]]:
    """Images a second, speed-ups, and what limits ours."""
    figures: list[Figure] = []
    bars: list[Bar] = []
    for network, runs in found.items():
        name = f"{network}, batches of {batch}"
        over: dict[tuple[str, str], float] = {}
        for kind, seconds in runs["seconds"].items():
            if (few := seconds.pop(STALE_FEW, None)) is not None:
                seconds[FULL] = [(many - less) * batches / (batches - FEW)
                                 for many, less in zip(seconds[STALE], few, strict=True)]
            if APART in seconds:
                seconds[APART] = [both / WORKERS for both in seconds[APART]]
            for scheme, took in seconds.items():
                head = f"{name}: {kind}, {scheme}"
                figures.append(Figure(head, round(batches * batch / median(took), 1), "images/s", Provenance.MEASURED))
                if scheme != ONE:
                    ratio = median(one / two for one, two in zip(seconds[ONE], took, strict=True))
                    over[kind, scheme] = ratio
                    figures.append(Figure(f"{head}, over one process", round(ratio, 3), "times", Provenance.MEASURED))
                    if (kind, scheme) == (FIXED, FULL):
                        bars.append(Bar(f"{head}, over one process", round(ratio, 3), ">=", PUBLISHED))
        if FIXED in runs["seconds"]:
            rounds = len(runs["spent"][STALE])
            parts = [{scheme: parts_of(times[number], runs["sent"], batches) for scheme, times in runs["spent"].items()}
                     for number in range(rounds)]
            figures += limits(name, runs["spent"][STALE], [of[STALE] for of in parts])
            predicted = [predictions(of, alone / batches, batches)
                         for of, alone in zip(parts, runs["seconds"][FIXED][ONE], strict=True)]
            for scheme in predicted[0]:
                speed_up = median(of[scheme] for of in predicted)
                head, error = f"{name}: {FIXED}, {scheme}", 100 * abs(speed_up / over[FIXED, scheme] - 1)
                figures.append(Figure(f"{head}: predicted", round(speed_up, 3), "times", Provenance.ESTIMATED))
                bars.append(Bar(f"{head}: error of the prediction, in %", round(error, 1), "<=", ERROR))
    return figures, bars


def parts_of(spent: list[dict[str, int]], sent: list[int], batches: int) -> list[Part]:
    """From the nanoseconds that each part spent on so many batches; what it copies and loads is its own work."""
    forward, backward = ([sum(part[what] for what in kinds) / 1e9 / batches for part in spent]
                         for kinds in ((LOAD, FORWARD), (BACKWARD, UPDATE, COPY)))
    return [Part(*times, 0, 0) for times in zip(forward, backward, sent, strict=True)]


def predictions(parts: dict[str, list[Part]], alone: float, batches: int) -> dict[str, float]:
    """Speed-ups by scheme, from the parts in each, over a process that takes ``alone`` seconds for a batch."""
    link = Link(LINK)
    return {STALE: predict(parts[STALE], link, Scheme.STALE, stretch=batches, alone=alone).speed_up,
            FULL: predict(parts[STALE], link, Scheme.STALE, alone=alone).speed_up,
            SYNCHRONOUS: predict(parts[SYNCHRONOUS], link, Scheme.SYNCHRONOUS, MICRO_BATCHES, alone=alone).speed_up}


def limits(name: str, spent: list[list[dict[str, int]]], parts: list[list[Part]]) -> list[Figure]:
    """Of the pipeline of 16 bit on stale weights, from what each part did in each round."""
    head = f"{name}: {FIXED}, {STALE}"
    balance = median(sum(part.seconds for part in of) / max(part.seconds for part in of) for of in parts)
    figures = [Figure(f"{head}: balance", round(balance, 3), "times", Provenance.MEASURED)]
    for number in range(WORKERS):
        rounds = [shares(Counter(of[number])) for of in spent]
        figures += [Figure(f"{head}: part {number}, {what}", round(100 * median(of[what] for of in rounds), 2), "%",
                           Provenance.MEASURED) for what in rounds[0]]
    return figures


def main() -> int:
    options = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    options.add_argument("--data", help="folder of the data sets (default: ESPALIER_DATA)")
    options.add_argument("--networks", nargs="+", choices=TORCH_CUTS, default=list(TORCH_CUTS))
    options.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    options.add_argument("--batch", type=int, nargs="+", default=[128, 32], help="images of a batch")
    options.add_argument("--images", type=int, default=1536, help="of a measurement")
    options.add_argument("--rounds", type=int, default=3)
    told = options.parse_args()
    figures: list[Figure] = []
    bars: list[Bar] = []
    for batch in told.batch:
        with tempfile.TemporaryDirectory() as folder:
            results = Path(folder) / "results.json"
            in_processes(WORKERS, partial(work, told, batch, results))
            of_batch = findings(json.loads(results.read_text()), batch, told.images // batch)
        figures += of_batch[0]
        bars += of_batch[1]
    write_results("pipeline_speed", seeds=[0], figures=figures, bars=bars,
                  notes=f"{told.images} images a measurement, {told.rounds} rounds; two processes pinned to a core "
                        f"each. The published bar is of other networks on two GPUs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
