"""When may pruning and fixed point start? Accuracy and training MACs over both start epochs, at 90 % pruned.

The study of Guo et al. (FPGA'19), whose epochs, widths and schedules are not in any text available; ours are below.

    python benchmarks/when.py --data DATA --networks lenet5 --seeds 0,1,2
    python benchmarks/when.py --data DATA --networks cnn1x

Each cell is one training: pruning starts in one epoch and is over a fixed number of epochs later (at 0 it is one shot
before the first step), fixed point starts in another; before it the training is in float32. In every cell each layer
but the first, which stays dense, is pruned to one density by magnitude, so that no start gets another method. Training
MACs are the useful ones of all steps (``flow/work.py``), those of the epochs in float32 also apart. A cell is on the
front if no other of its network and width is at least as accurate with no more MACs. The recommended cell has the
fewest MACs (to two digits) of those within SLACK points of the most accurate pruned one; of equals, the one that
starts fixed point first, since before it the engine cannot train.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean

from accuracy import DENSITY, LAYERS, NARROW, TASKS, WIDE, Task
from jobs import Findings, Job, Place, carry_out, parser, trained

from espalier.compress.schedule import CubicSchedule
from espalier.flow.work import layer_work, training_macs
from espalier.records import Figure, Provenance
from espalier.train.checkpoint import Checkpoint
from espalier.train.config import Prune, RateKind, RateSchedule, TrainConfig

SLACK = 0.5  #: points below the most accurate pruned cell that are given for fewer MACs
FORMATS = {8: NARROW, 16: WIDE}


@dataclass(frozen=True, slots=True)
class Grid:
    """The cells of a task, in epochs: where pruning starts, how long it takes, where fixed point starts."""

    task: Task
    epochs: int
    ramp: int
    prune: tuple[int, ...]
    quantise: tuple[int, ...]

    def scaled(self, epochs: int | None) -> Grid:
        """The same over another number of epochs; cells that coincide are one."""
        def to(times: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(dict.fromkeys(round(time * (epochs or self.epochs) / self.epochs) for time in times))
        return self if epochs is None else Grid(self.task, epochs, to((self.ramp,))[0], to(self.prune),
                                                to(self.quantise))


BY_NAME = {task.name: task for task in TASKS}
GRIDS = {
    "lenet5": Grid(BY_NAME["lenet5/fashion-mnist"], 10, 3, (0, 1, 2, 4, 6), (0, 2, 5, 8)),
    "cnn1x": Grid(BY_NAME["cnn1x/cifar10"], 20, 6, (0, 4, 10), (0, 6, 12)),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """When pruning and fixed point start, None for never, and how many bits words have."""

    prune: int | None
    quantise: int | None
    bits: int

    @property
    def name(self) -> str:
        pruned = "never pruned" if self.prune is None else f"pruned from {self.prune}"
        return f"{pruned}, float32" if self.quantise is None else f"{pruned}, {self.bits} bit from {self.quantise}"

    def config(self, grid: Grid, seed: int, options: Namespace) -> TrainConfig:
        """What its training is told."""
        start, last = self.prune, grid.epochs - 1
        prune = None if start is None else Prune(
            LAYERS, CubicSchedule(start, min(start + grid.ramp, last) if start else 0))
        quantise = None if self.quantise is None else replace(
            FORMATS[self.bits], start=self.quantise, probe_steps=options.probe_steps)
        return TrainConfig(grid.task.network, grid.task.data, grid.epochs, options.batch, seed, grid.task.sgd,
                           RateSchedule(RateKind.COSINE), quantise=quantise, prune=prune, augment=grid.task.augment,
                           device=options.device)


def cells(grid: Grid, bits: Sequence[int]) -> list[Cell]:
    """The references first: dense in float32, and dense in fixed point from the start."""
    return [Cell(None, None, 32), *(Cell(None, 0, width) for width in bits),
            *(Cell(prune, quantise, width) for width in bits for prune in grid.prune for quantise in grid.quantise)]


def jobs(options: Namespace) -> list[Job]:
    found = []
    for network in options.networks:
        grid = GRIDS[network].scaled(options.epochs)
        place = Place(grid.task.data, options.data, options.images)
        for seed in options.seeds:
            for cell in cells(grid, options.bits):
                folder = f"{network}-{grid.epochs}-{cell.bits}-p{cell.prune}-q{cell.quantise}-{seed}".lower()
                config = cell.config(grid, seed, options)
                found.append(Job(options.work / folder, partial(run, cell, config, place)))
    return found


def run(cell: Cell, config: TrainConfig, place: Place, folder: Path) -> dict:
    """Train in ``folder`` and count."""
    split = place.split()
    found, images = trained(config, split, folder), len(split.train)
    floating = config.epochs if config.quantise is None else config.quantise.start
    last = found.log[-1]
    return {
        "network": config.network, "data": config.data, "epochs": config.epochs, "seed": config.seed,
        "images": place.images, "cell": cell.name, "bits": cell.bits, "prune": cell.prune, "quantise": cell.quantise,
        "prune_end": None if config.prune is None else config.prune.schedule.end, "config": config.to_json(),
        "test_accuracy": last.test_accuracy, "live": last.live, "macs": macs(found, images, config.epochs),
        "float_macs": macs(found, images, floating), "curve": [entry.test_accuracy for entry in found.log]}


def macs(found: Checkpoint, images: int, epochs: int) -> int:
    """The useful MACs of the first so many epochs."""
    part = replace(found, log=found.log[:epochs])
    return training_macs(part, layer_work(found), images)


@dataclass(frozen=True, slots=True)
class Mean:
    """A cell over its seeds: accuracy in %, MACs."""

    cell: Cell
    accuracy: float
    macs: float
    float_macs: float
    seeds: int


def means(runs: list[dict]) -> list[Mean]:
    """The cells of one network and number of epochs."""
    found = []
    for cell in dict.fromkeys(Cell(run["prune"], run["quantise"], run["bits"]) for run in runs):
        same = [run for run in runs if (run["prune"], run["quantise"], run["bits"])
                == (cell.prune, cell.quantise, cell.bits)]
        found.append(Mean(cell, 100 * mean(run["test_accuracy"] for run in same), mean(run["macs"] for run in same),
                          mean(run["float_macs"] for run in same), len(same)))
    return sorted(found, key=lambda item: (item.cell.bits, item.cell.prune is None, item.cell.prune or 0,
                                           item.cell.quantise or 0))


def front(found: Sequence[Mean]) -> list[Mean]:
    """The cells that no other beats in accuracy and MACs, the cheapest first."""
    kept: list[Mean] = []
    for item in sorted(found, key=lambda item: (item.macs, -item.accuracy)):
        if not kept or item.accuracy > kept[-1].accuracy:
            kept.append(item)
    return kept


def recommended(pruned: Sequence[Mean]) -> Mean:
    """The cell to start from; see above."""
    best = max(item.accuracy for item in pruned)
    return min((item for item in pruned if item.accuracy >= best - SLACK),
               key=lambda item: (float(f"{item.macs:.1e}"), item.cell.quantise, -item.accuracy))


def findings(results: list[dict]) -> Findings:
    """Figures of every cell, and for each network and width the front and the recommended cell."""
    figures, notes, fronts, defaults = [], [], {}, {}
    for network, data, epochs in sorted({(run["network"], run["data"], run["epochs"]) for run in results}):
        found = means([run for run in results if (run["network"], run["epochs"]) == (network, epochs)])
        head = f"{network}/{data}/{epochs} epochs"
        for item in found:
            name = f"{head}/{item.cell.name}/mean of {item.seeds}"
            figures += [Figure(name, round(item.accuracy, 3), "%", Provenance.MEASURED),
                        Figure(f"{name}: training", round(item.macs / 1e9, 1), "GMAC", Provenance.ESTIMATED),
                        Figure(f"{name}: training in float32", round(item.float_macs / 1e9, 1), "GMAC",
                               Provenance.ESTIMATED)]
        for bits in sorted({item.cell.bits for item in found if item.cell.prune is not None}):
            own = [item for item in found if item.cell.bits == bits]
            pruned = [item for item in own if item.cell.prune is not None]
            chosen, key = recommended(pruned), f"{head}/{bits} bit"
            fronts[key], defaults[key] = [item.cell.name for item in front(own)], chosen.cell.name
            notes.append(f"{key}: on the front of accuracy and training MACs are {', '.join(fronts[key])} (cheapest "
                         f"first); recommended: {chosen.cell.name}, {chosen.accuracy:.2f} % with "
                         f"{chosen.macs / 1e9:.0f} GMAC")
    notes += [f"{network} has {len(seeds)} seed(s)" for network in sorted({run["network"] for run in results})
              if len(seeds := {run["seed"] for run in results if run["network"] == network}) < 3]
    notes += [f"{name} is trained {epochs} epochs, not the {GRIDS[name].task.epochs} of accuracy.py"
              for name, epochs in sorted({(run["network"], run["epochs"]) for run in results})
              if epochs < GRIDS[name].task.epochs]
    return Findings(figures=figures, notes=notes, more={"density": DENSITY, "fronts": fronts, "recommended": defaults})


def main() -> int:
    options = parser("when", __doc__)
    options.add_argument("--networks", nargs="+", choices=GRIDS, default=list(GRIDS))
    options.add_argument("--bits", type=int, nargs="+", choices=FORMATS, default=[8])
    options.add_argument("--epochs", type=int, help="instead of each grid's own; its starts keep their place")
    options.add_argument("--batch", type=int, default=100)
    told = options.parse_args()
    return carry_out("when", told, jobs(told), findings)


if __name__ == "__main__":
    sys.exit(main())
