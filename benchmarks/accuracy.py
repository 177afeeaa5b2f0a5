"""What fixed point, pruning and the accumulation buffer cost and gain in accuracy.

LeNet-5 on MNIST and Fashion-MNIST, CNN 1X on CIFAR-10, each in float32, in 16 bits, pruned to 10 % during training
(CNN 1X also to 20 and 30 %), and in 8 bits with and without the gradient accumulation buffer, all by the same loop:

    python benchmarks/accuracy.py --data DATA --device cuda --jobs 12

Every run is a job with a folder of its own under ``--work``; a job that is done is not done again, one that
was broken off goes on where it stopped. ``--limit`` breaks off all jobs after so many seconds. Whatever is
done is merged into ``benchmarks/results/accuracy.json``.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean

from harness import command_of
from jobs import Job, Place, do_all, results_of, trained

from espalier.compress.magnitude import Magnitude, Scope
from espalier.compress.schedule import CubicSchedule
from espalier.records import Bar, Figure, Provenance, write_json
from espalier.train.calibrate import Headroom, Widths
from espalier.train.config import Prune, Quantise, RateKind, RateSchedule, TrainConfig
from espalier.train.optimise import Sgd, Update

RESULTS = Path(__file__).parent / "results" / "accuracy.json"
DENSITY = 0.1
PRUNE_FROM, PRUNE_TO = 0.1, 0.6  #: of the epochs
WIDE = Quantise(Widths(16, 16, 16), Headroom(2, 2, 3))
NARROW = Quantise(Widths(8, 8, 16), Headroom(1, 0, 3))


@dataclass(frozen=True, slots=True)
class Task:
    """A network on a data set, how it is trained, and how many points it may lose, by whatever is studied."""

    network: str
    data: str
    epochs: int
    sgd: Sgd
    augment: bool
    points: float

    @property
    def name(self) -> str:
        return f"{self.network}/{self.data}"


TASKS = (
    Task("lenet5", "mnist", 10, Sgd(0.05, 0.9, 1e-4), False, 0.5),
    Task("lenet5", "fashion-mnist", 10, Sgd(0.05, 0.9, 1e-4), False, 0.5),
    Task("cnn1x", "cifar10", 40, Sgd(0.02, 0.9, 5e-4), True, 1.0),
)


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to train: numbers and pruning."""

    name: str
    quantise: Quantise | None
    magnitude: Magnitude | None = None
    networks: tuple[str, ...] = ("lenet5", "cnn1x")


NETWORK = Magnitude(density=DENSITY, scope=Scope.NETWORK)              # all weights compete
LAYERS = Magnitude(density=DENSITY, exceptions={"conv1.weight": 1.0})  # one density but for the first layer
VARIANTS = (
    Variant("float32-dense", None),
    Variant("fixed16-dense", WIDE),
    Variant("fixed16-pruned90", WIDE, NETWORK),
    Variant("fixed16-pruned70", WIDE, replace(NETWORK, density=0.3), ("cnn1x",)),
    Variant("fixed16-pruned80", WIDE, replace(NETWORK, density=0.2), ("cnn1x",)),
    Variant("fixed16-pruned90-layers", WIDE, LAYERS),
    Variant("fixed16-pruned90-rows8", WIDE, replace(LAYERS, rows=8)),
    Variant("fixed8-pruned90", NARROW, NETWORK),
    Variant("fixed8-pruned90-unbuffered", replace(NARROW, update=Update.UNBUFFERED), NETWORK),
)
BASE, BARRED = "float32-dense", "fixed16-pruned90"


def configuration(task: Task, variant: Variant, seed: int, options: argparse.Namespace) -> TrainConfig:
    """What the run is told."""
    epochs = options.epochs or task.epochs
    prune = None if variant.magnitude is None else Prune(
        variant.magnitude, CubicSchedule(PRUNE_FROM * epochs, PRUNE_TO * epochs))
    quantise = None if variant.quantise is None else replace(variant.quantise, probe_steps=options.probe_steps)
    return TrainConfig(task.network, task.data, epochs, options.batch, seed, task.sgd, RateSchedule(RateKind.COSINE),
                       quantise=quantise, prune=prune, augment=task.augment, device=options.device)


def jobs(options: argparse.Namespace) -> list[Job]:
    """Every run asked for, the longest first."""
    found = []
    given = dict(pair.split("=", 1) for pair in options.source)
    for task in sorted(TASKS, key=lambda task: -task.epochs):
        if options.tasks and task.name not in options.tasks:
            continue
        place = Place(given.get(task.data, task.data), options.data, options.images)
        for variant in VARIANTS:
            if task.network not in variant.networks or variant.name not in (options.variants or [variant.name]):
                continue
            for seed in options.seeds if task.network == "lenet5" else options.seeds[: options.long_seeds]:
                found.append(Job(options.work / f"{task.network}-{task.data}-{variant.name}-{seed}",
                                 partial(run, task, variant, configuration(task, variant, seed, options), place)))
    return found


def run(task: Task, variant: Variant, config: TrainConfig, place: Place, folder: Path) -> dict:
    """Train in ``folder``."""
    found = trained(config, place.split(), folder)
    last = found.log[-1]
    return {
        "task": task.name, "variant": variant.name, "seed": config.seed, "config": config.to_json(),
        "test_accuracy": last.test_accuracy, "live": last.live, "saturated": last.saturated,
        "curve": [entry.test_accuracy for entry in found.log], "loss": [entry.loss for entry in found.log]}


def merged(results: list[dict], command: str) -> dict:
    """Figures and bars of the runs that are done."""
    accuracies: dict[tuple[str, str], list[float]] = {}
    epochs: dict[tuple[str, str], int] = {}
    figures = []
    for result in sorted(results, key=lambda result: (result["task"], result["variant"], result["seed"])):
        key = result["task"], result["variant"]
        accuracies.setdefault(key, []).append(100 * result["test_accuracy"])
        epochs[key] = len(result["curve"])
        figures.append(Figure(f"{'/'.join(key)}/{epochs[key]} epochs/seed{result['seed']}",
                              round(100 * result["test_accuracy"], 2), "%", Provenance.MEASURED))
    means = [Figure(f"{'/'.join(key)}/{epochs[key]} epochs/mean of {len(values)}", round(mean(values), 3), "%",
                    Provenance.MEASURED) for key, values in accuracies.items()]
    bars = [Bar(f"{task.name}: points lost by {BARRED} against {BASE}",
                round(mean(accuracies[task.name, BASE]) - mean(accuracies[task.name, BARRED]), 3), "<=", task.points)
            for task in TASKS if (task.name, BASE) in accuracies and (task.name, BARRED) in accuracies]
    return {"command": command, "seeds": sorted({result["seed"] for result in results}),
            "figures": [figure.to_json() for figure in (*means, *figures)], "bars": [bar.to_json() for bar in bars],
            "runs": results}


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", help="folder of the data sets (default: ESPALIER_DATA)")
    options.add_argument("--source", action="append", default=[], metavar="NAME=PATH",
                         help="a data set at a path of its own, such as cifar10=cifar10.npz")
    options.add_argument("--work", type=Path, default=Path("build/accuracy"), help="folder of the jobs")
    options.add_argument("--output", type=Path, default=RESULTS)
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--jobs", type=int, default=1, help="processes at a time")
    options.add_argument("--limit", type=float, default=1e9, help="seconds after which jobs break off, resumable")
    options.add_argument("--tasks", nargs="*", choices=[task.name for task in TASKS])
    options.add_argument("--variants", nargs="*", choices=[variant.name for variant in VARIANTS])
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--long-seeds", type=int, default=1, help="how many of the seeds CNN 1X gets")
    options.add_argument("--epochs", type=int, help="instead of each task's own")
    options.add_argument("--batch", type=int, default=100)
    options.add_argument("--probe-steps", type=int, default=300, help="float steps over which formats are chosen")
    options.add_argument("--images", type=int, default=0, help="take only so many images, for a trial")
    return options


def main() -> int:
    """Do the jobs, write what is done, print figures and bars; 0 if every job is done and every bar met."""
    options = parser().parse_args()
    asked = jobs(options)
    failed = do_all(asked, options.limit, options.jobs)
    results = results_of(asked)
    record = merged(results, command_of(sys.argv[1:]))
    write_json(options.output, record)
    for entry in record["figures"]:
        print(f"{entry['name']:70} {entry['value']:8} {entry['unit']}")
    for bar in record["bars"]:
        print(f"{'met ' if bar['met'] else 'MISSED'} {bar['name']}: {bar['value']} {bar['op']} {bar['bound']}")
    print(f"{len(results)} of {len(asked)} jobs done; wrote {options.output}")
    return 0 if len(results) == len(asked) and not failed and all(bar["met"] for bar in record["bars"]) else 1


if __name__ == "__main__":
    sys.exit(main())
