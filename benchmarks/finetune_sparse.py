"""A pretrained network pruned before it is fine-tuned, on another data set than it was trained on, on a fixed mask.

    python benchmarks/finetune_sparse.py --data DATA --networks resnet20
    python benchmarks/finetune_sparse.py --data DATA --networks resnet56

After Nakahara et al. (FPL'19): keep the strong connections (weights above one threshold), drop 85 % or more, and train
what is left on the target data, here one epoch in float32 and then in 16-bit fixed point. ResNet-20 and ResNet-56 come
with published weights for CIFAR-10; the targets are Fashion-MNIST and MNIST, whose images of 28×28 get a border of two
pixels of background and three equal channels. They have ten classes as CIFAR-10 has, but others, so the last layer is
drawn anew and stays dense. Variants:

- ``dense``: fine-tuned without pruning; ``dense-scratch``: trained from random weights.
- ``strong``: the largest pretrained weights of the whole network live.
- ``lamp``: those that layer-adaptive magnitude chooses.
- ``random``: pretrained weights drawn at random live, in each layer as many as of ``strong``.
- ``scratch``: the mask of ``strong``, random weights.

Weights are compared as published, before batch norms are folded: these then learn in the first epoch how large the
sums of what is left are, and are folded where fixed point begins. Shortcuts between stages are fixed copies of
channels: pruning leaves them alone but for their zeros. The mask is part of the checkpoint before the first step;
nothing dies later.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean

import numpy as np
from jobs import Findings, Job, Place, carry_out, parser
from numpy.typing import NDArray

from espalier.compress.lamp import Lamp
from espalier.compress.magnitude import Magnitude, Scope
from espalier.data import Dataset, Split
from espalier.flow.network import PRETRAINED, Imported, import_network
from espalier.flow.work import layer_work, training_macs
from espalier.ir.view import conv_shape
from espalier.records import Bar, Figure, Provenance
from espalier.train.calibrate import Headroom, Widths, initial_state
from espalier.train.checkpoint import Checkpoint
from espalier.train.config import Quantise, RateKind, RateSchedule, TrainConfig
from espalier.train.loop import CHECKPOINT, train
from espalier.train.optimise import Sgd, Update

NETWORKS = ("resnet20", "resnet56")
TARGETS = ("fashion-mnist", "mnist")
DENSITIES = (0.15, 0.07)
DENSE, DENSE_SCRATCH = "dense", "dense-scratch"
SPARSE = ("strong", "lamp", "random", "scratch")
FIXED = Quantise(Widths(16, 16, 16), Headroom(2, 2, 3), start=1)
SGD = Sgd(0.01, 0.9, 5e-4)
RATE = RateSchedule(RateKind.STEP, (FIXED.start,), 0.1)  #: without batch norms the full one diverges, unpruned
BORDER = 2    #: pixels around an image of 28×28
POINTS = 1.0  #: that the strong connections may lose against dense fine-tuning, at 85 % pruned

Arrays = dict[str, NDArray]


@dataclass(frozen=True, slots=True)
class Variant:
    """What lives from the first step on, and where weights come from."""

    name: str
    density: float

    @property
    def told(self) -> str:
        return self.name if self.density == 1 else f"{self.name} {self.density:.0%}"

    @property
    def scratch(self) -> bool:
        return self.name in (DENSE_SCRATCH, "scratch")


def adapted(split: Split) -> Split:
    """Grey images of 28×28 as colour images of 32×32, the border black."""
    def larger(part: Dataset) -> Dataset:
        edges = ((0, 0), (0, 0), (BORDER, BORDER), (BORDER, BORDER))
        return replace(part, images=np.pad(part.images, edges).repeat(3, axis=1), checksum="")
    return Split(larger(split.train), larger(split.test))


def start(config: TrainConfig, variant: Variant, split: Split, root: Path | None) -> Checkpoint:
    """The network in float32 before its first step, with the weights that live."""
    network = import_network(config.network, split, config.seed, root, keep_batch_norm=True)
    drawn = import_network(config.network.removeprefix(PRETRAINED), split, config.seed, keep_batch_norm=True)
    fresh = {name: drawn.parameters.get(name, np.zeros_like(array)) for name, array in network.parameters.items()}
    last = network.graph.layers()[-1]
    published = {**network.parameters, **{value.name: fresh[value.name] for value in (last.w, last.b) if value}}
    live = masks(network, published, variant, config.seed)
    weights = fresh if variant.scratch else published
    left = {name: np.where(live.get(name, True), array, 0) for name, array in weights.items()}
    state = initial_state(network.graph, left, Update.FLOAT)
    return Checkpoint(network.graph, {}, {**state, **{f"{name}.live": mask for name, mask in live.items()}}, config,
                      frozen=network.fixed)


def masks(network: Imported, parameters: Arrays, variant: Variant, seed: int) -> dict[str, NDArray[np.bool_]]:
    """The live masks of what is learned: all of it in vectors and the last layer, the ones of fixed shortcuts."""
    live = {value.name: np.ones(value.shape, dtype=np.bool_) for value in network.graph.learned()}
    if variant.density == 1:
        return live
    *inner, last = network.graph.layers()
    weights = {layer.w.name: parameters[layer.w.name].reshape(conv_shape(network.graph, layer)) for layer in inner
               if layer.w.name not in network.fixed}
    total, apart = sum(w.size for w in weights.values()), live[last.w.name].size
    density = (variant.density * (total + apart) - apart) / total
    rule = Lamp(density=density) if variant.name == "lamp" else Magnitude(density=density, scope=Scope.NETWORK)
    found = rule(weights)
    if variant.name == "random":
        random = np.random.RandomState(seed)
        found = {name: random.permutation(mask.reshape(-1)).reshape(mask.shape) for name, mask in found.items()}
    return {**live, **{name: parameters[name] != 0 for name in network.fixed},
            **{name: mask.reshape(live[name].shape) for name, mask in found.items()}}


def jobs(options: Namespace) -> list[Job]:
    found = []
    for network in options.networks:
        for target in options.targets:
            place = Place(target, options.data, options.images)
            for seed in options.seeds:
                for variant in variants(options):
                    folder = f"{network}-{target}-{options.epochs}-{variant.name}-{variant.density:g}-{seed}"
                    config = TrainConfig(
                        f"{PRETRAINED}{network}", target, options.epochs, options.batch, seed, SGD,
                        RATE, device=options.device,
                        quantise=replace(FIXED, probe_steps=options.probe_steps))
                    found.append(Job(options.work / folder, partial(run, variant, config, place)))
    return found


def variants(options: Namespace) -> list[Variant]:
    """The dense ones first."""
    dense = [Variant(name, 1.0) for name in options.variants if name in (DENSE, DENSE_SCRATCH)]
    return dense + [Variant(name, density) for density in options.densities for name in options.variants
                    if name in SPARSE]


def run(variant: Variant, config: TrainConfig, place: Place, folder: Path) -> dict:
    """Fine-tune in ``folder``; the mask is there before training begins."""
    split = adapted(place.split())
    first = start(config, variant, split, Path(place.root) if place.root else None)
    if not (folder / CHECKPOINT).exists():
        first.save(folder / CHECKPOINT)
    found = train(config, split, first.graph, first.weights, folder, fixed=first.frozen)
    last, live = found.log[-1], {layer.w.name: found.live[layer.w.name] for layer in found.graph.layers()}
    return {
        "network": config.network, "target": config.data, "epochs": config.epochs, "seed": config.seed,
        "images": place.images, "variant": variant.told, "density": variant.density, "config": config.to_json(),
        "test_accuracy": last.test_accuracy, "live": last.live, "saturated": last.saturated,
        "live_density": sum(int(mask.sum()) for mask in live.values()) / sum(mask.size for mask in live.values()),
        "macs": training_macs(found, layer_work(found), len(split.train)),
        "curve": [entry.test_accuracy for entry in found.log]}


def findings(results: list[dict]) -> Findings:
    """Means over seeds, and what the strong connections lose and gain."""
    groups: dict[tuple[str, str, int], dict[str, list[dict]]] = {}
    for result in sorted(results, key=lambda run: (run["network"], run["target"], run["epochs"], -run["density"])):
        key = result["network"], result["target"], result["epochs"]
        groups.setdefault(key, {}).setdefault(result["variant"], []).append(result)
    figures, bars = [], []
    for (network, target, epochs), variants in groups.items():
        head = f"{network}/{target}/{epochs} epochs"
        reached = {name: 100 * mean(run["test_accuracy"] for run in runs) for name, runs in variants.items()}
        for name, runs in variants.items():
            figures += [
                Figure(f"{head}/{name}/mean of {len(runs)}", round(reached[name], 3), "%", Provenance.MEASURED),
                Figure(f"{head}/{name}: live weights", round(100 * mean(run["live_density"] for run in runs), 2), "%",
                       Provenance.MEASURED),
                Figure(f"{head}/{name}: training", round(mean(run["macs"] for run in runs) / 1e9, 1), "GMAC",
                       Provenance.ESTIMATED)]
        bars += bars_of(head, reached)
    notes = [f"{network} on {target}: {epochs} epochs of fine-tuning (the paper has 100), "
             f"{max(len(runs) for runs in variants.values())} seed(s)"
             for (network, target, epochs), variants in groups.items()]
    return Findings(figures=figures, bars=bars, notes=notes)


def bars_of(head: str, reached: Mapping[str, float]) -> list[Bar]:
    """Of one network and target, as far as they are done: the paper's claim, and what strength is worth."""
    first, bars = Variant("strong", DENSITIES[0]).told, []
    if first in reached and DENSE in reached:
        bars.append(Bar(f"{head}: points lost by {first} against dense fine-tuning",
                        round(reached[DENSE] - reached[first], 3), "<=", POINTS))
    for density in DENSITIES:
        strong = Variant("strong", density).told
        bars += [Bar(f"{head}: points of {strong} over {other}", round(reached[strong] - reached[other], 3), ">=", 0)
                 for name in ("random", "scratch")
                 if (other := Variant(name, density).told) in reached and strong in reached]
    return bars


def main() -> int:
    options = parser("finetune_sparse", __doc__)
    options.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    options.add_argument("--targets", nargs="+", choices=TARGETS, default=["fashion-mnist"])
    options.add_argument("--densities", type=float, nargs="+", default=list(DENSITIES))
    options.add_argument("--variants", nargs="+", choices=(DENSE, DENSE_SCRATCH, *SPARSE),
                         default=[DENSE, "strong", "random", "scratch"])
    options.add_argument("--epochs", type=int, default=3)
    options.add_argument("--batch", type=int, default=100)
    told = options.parse_args()
    return carry_out("finetune_sparse", told, jobs(told), findings)


if __name__ == "__main__":
    sys.exit(main())
