"""What stale weights cost in accuracy: pipelines of 2 to 5 parts, cut early or late, by scheme.

    python benchmarks/pipeline_accuracy.py --data DATA --networks lenet5 --seeds 0,1,2
    python benchmarks/pipeline_accuracy.py --data DATA --networks cnn1x resnet20 --registers 1 --epochs 6 --images 10000
    python benchmarks/pipeline_accuracy.py --data DATA --networks lenet5 --batch 32

After Zhang and Abdelrahman (arXiv 1912.12675), who cut with K registers: K early ones follow the first K layers, K late
ones go before the last K. Each network is trained without a pipeline and by each scheme with the same recipe, data and
seed, in 16-bit fixed point or, with ``--float32``, in float32; a hybrid is stale for the first half of the epochs. All
parts run in one process, which gives the weights that one process for each part gives, bit for bit. Learning rates are
half of those of ``accuracy.py``: with momentum 0.9 a delay of two batches lowers the curvature up to which training is
stable to a thirtieth, and at the full rate LeNet-5, cut late, diverged in its first epoch with compensation. In smaller
batches, rate and momentum scaled to them, as many batches of delay are fewer images.

Published drops of stale weights are with early registers: LeNet-5 0.4, AlexNet 4, VGG 0.83, ResNet-20 1.45 points.
The bars hold the compensated scheme at K = 1 to COMPENSATED points, and the hybrid, at any K and place, to less
than what is published for stale weights.
"""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean

from accuracy import WIDE, Task
from jobs import Findings, Job, Place, carry_out, parser, trained

from espalier.flow.network import import_network
from espalier.records import Bar, Figure, Provenance
from espalier.train.balance import candidates
from espalier.train.config import RateKind, RateSchedule, TrainConfig
from espalier.train.optimise import Sgd
from espalier.train.pipelining import Pipeline, Scheme

BATCH = 100  #: images, for which rates and momenta are
COMPENSATED = 0.3  #: points that the compensated scheme may lose with one register
NONE = "no pipeline"
EARLY, LATE = "early", "late"


TASKS = (  # the points are the published drops of stale weights
    Task("lenet5", "mnist", 10, Sgd(0.01, 0.9, 1e-4), False, 0.4),
    Task("cnn1x", "cifar10", 20, Sgd(0.01, 0.9, 5e-4), True, math.inf),
    Task("alexnet", "cifar10", 10, Sgd(0.005, 0.9, 5e-4), True, 4.0),
    Task("vgg16_bn_quarter", "cifar10", 10, Sgd(0.01, 0.9, 5e-4), True, 0.83),
    Task("resnet20", "cifar10", 10, Sgd(0.01, 0.9, 5e-4), True, 1.45),
)


@dataclass(frozen=True, slots=True)
class Variant:
    """A scheme, how many registers, and where; NONE has none."""

    scheme: str = NONE
    registers: int = 0
    place: str = ""

    @property
    def name(self) -> str:
        return NONE if self.scheme == NONE else f"{self.scheme}, {self.registers} {self.place} register(s)"

    def pipeline(self, layers: list[str], epochs: int) -> Pipeline | None:
        """``layers``: where the network can be cut between layers."""
        if self.scheme == NONE:
            return None
        cuts = layers[:self.registers] if self.place == EARLY else layers[-self.registers:]
        scheme = Scheme(self.scheme)
        return Pipeline(scheme=scheme, switch=epochs // 2 if scheme is Scheme.HYBRID else None).with_cuts(cuts)


def jobs(options: Namespace) -> list[Job]:
    found = []
    variants = [Variant(), *(Variant(scheme, registers, place) for registers in options.registers
                             for place in options.places for scheme in options.schemes)]
    for task in TASKS:
        if task.network not in options.networks:
            continue
        place, epochs = Place(task.data, options.data, options.images), options.epochs or task.epochs
        sgd = task.sgd.for_batch(options.batch, BATCH).scaled(options.rate)
        for seed in options.seeds:
            for variant in variants:
                config = TrainConfig(
                    task.network, task.data, epochs, options.batch, seed, sgd,
                    RateSchedule(RateKind.COSINE, warm_up=options.warm_up),
                    quantise=None if options.float32 else replace(
                        WIDE, probe_steps=options.probe_steps,
                        headroom=replace(WIDE.headroom, activation=options.headroom)),
                    augment=task.augment, device=options.device)
                kind = "float32" if options.float32 else "fixed16"
                folder = (f"{task.network}-{kind}-{epochs}-{variant.scheme}-{variant.registers}{variant.place}-{seed}"
                          + (f"-{options.images}" if options.images else "")
                          + (f"-batch{options.batch}" if options.batch != BATCH else "")
                          + (f"-warm{options.warm_up}" if options.warm_up else "")
                          + (f"-rate{options.rate:g}" if options.rate != 1 else "")
                          + (f"-room{options.headroom}" if options.headroom != WIDE.headroom.activation else ""))
                found.append(Job(options.work / folder.replace(" ", "-"), partial(run, variant, config, place)))
    return found


def run(variant: Variant, config: TrainConfig, place: Place, folder: Path) -> dict:
    """Train in ``folder``."""
    split = place.split()
    network = import_network(config.network, split, config.seed, keep_batch_norm=config.trains_batch_norm)
    layers = [value.name for value in candidates(network.graph, folds=config.quantise is not None)]
    pipeline = variant.pipeline(layers, config.epochs)
    found = trained(replace(config, pipeline=pipeline), split, folder)
    return {"network": config.network, "data": config.data, "epochs": config.epochs, "seed": config.seed,
            "images": place.images, "arithmetic": "float32" if config.quantise is None else "16 bit",
            "variant": variant.name, "scheme": variant.scheme, "registers": variant.registers, "place": variant.place,
            "cuts": [] if pipeline is None else list(pipeline.cuts), "test_accuracy": found.log[-1].test_accuracy,
            "config": found.config.to_json(), "curve": [entry.test_accuracy for entry in found.log]}


def findings(results: list[dict]) -> Findings:
    """Means over seeds, and the drop against no pipeline on the seeds that both have."""
    figures, bars, notes = [], [], []
    for task in TASKS:
        mine = [run for run in results if run["network"] == task.network]
        for key in sorted({_kind(run) for run in mine}):
            own = [run for run in mine if _kind(run) == key]
            epochs, arithmetic, images, warm_up, rate, headroom, batch = key
            scaled = task.sgd.for_batch(batch, BATCH).learning_rate
            head = (f"{task.network}/{task.data}/{arithmetic}/{epochs} epochs{f' of {images} images' if images else ''}"
                    f"{f', {warm_up} to warm up' if warm_up else ''}"
                    f"{f', batches of {batch}' if batch != BATCH else ''}"
                    f"{'' if math.isclose(rate, scaled) else f', rate {rate:g}'}"
                    f"{f', {headroom} bits of headroom' if headroom != WIDE.headroom.activation else ''}")
            base = {run["seed"]: run["test_accuracy"] for run in own if run["scheme"] == NONE}
            notes.append(f"{head}: {len(base)} seed(s)")
            for variant in dict.fromkeys(Variant(run["scheme"], run["registers"], run["place"]) for run in own):
                runs = [run for run in own if run["variant"] == variant.name]
                name = f"{head}/{variant.name}/mean of {len(runs)}"
                figures.append(Figure(name, round(100 * mean(run["test_accuracy"] for run in runs), 3), "%",
                                      Provenance.MEASURED))
                both = [base[run["seed"]] - run["test_accuracy"] for run in runs if run["seed"] in base]
                if variant.scheme != NONE and both:
                    drop = round(100 * mean(both), 3)
                    figures.append(Figure(f"{name}: drop", drop, "points", Provenance.MEASURED))
                    bars += bars_of(f"{head}/{variant.name}: points lost", variant, drop, task.points)
    return Findings(figures=figures, bars=bars, notes=notes)


def _kind(run: dict) -> tuple[int, str, int, int, float, int, int]:
    config = run["config"]
    return (run["epochs"], run["arithmetic"], run["images"], config["rate"].get("warm_up", 0),
            config["sgd"]["learning_rate"],
            (config["quantise"] or {}).get("headroom", asdict(WIDE.headroom))["activation"], config["batch"])


def bars_of(name: str, variant: Variant, drop: float, published: float) -> list[Bar]:
    if variant.scheme == Scheme.COMPENSATED.value and variant.registers == 1:
        return [Bar(name, drop, "<=", COMPENSATED)]
    if variant.scheme == Scheme.HYBRID.value and math.isfinite(published):
        return [Bar(name, drop, "<", published)]
    return []


def main() -> int:
    options = parser("pipeline_accuracy", __doc__)
    names, schemes = [task.network for task in TASKS], [Scheme.STALE, Scheme.HYBRID, Scheme.COMPENSATED]
    options.add_argument("--networks", nargs="+", choices=names, default=names)
    options.add_argument("--schemes", nargs="+", default=[scheme.value for scheme in schemes])
    options.add_argument("--registers", type=int, nargs="+", default=[1, 2, 3, 4], help="K")
    options.add_argument("--places", nargs="+", choices=(EARLY, LATE), default=[EARLY, LATE])
    options.add_argument("--float32", action="store_true")
    options.add_argument("--epochs", type=int, help="instead of each task's own")
    options.add_argument("--warm-up", type=int, default=0, help="epochs in which the rate rises")
    options.add_argument("--rate", type=float, default=1.0, help="what multiplies each task's own learning rate")
    options.add_argument("--headroom", type=int, default=WIDE.headroom.activation, help="bits, of activations")
    options.add_argument("--batch", type=int, default=BATCH, help="rate and momentum are scaled to it")
    told = options.parse_args()
    return carry_out("pipeline_accuracy", told, jobs(told), findings)


if __name__ == "__main__":
    sys.exit(main())
