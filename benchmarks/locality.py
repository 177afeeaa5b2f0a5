"""What blocks cost in accuracy and buy in cycles, index bytes and energy: block sizes 1 to 16 at equal density.

    python benchmarks/locality.py --data DATA --tasks lenet5/mnist lenet5/fashion-mnist --seeds 0,1,2
    python benchmarks/locality.py --data DATA --tasks cnn1x/cifar10 --densities 0.1

After Li et al. (FCCM'17): zeros where the memories of the hardware do not notice them buy nothing. Each run is
pruned gradually, in blocks, while it trains in 16 bits:

- ``magnitude``: the blocks of largest mean magnitude of each layer live; the first layer stays dense and the others
  make up for it, so that the density is that of the whole network.
- ``magnitude-all``: the same, and the first layer is pruned like the others.
- ``balanced``: as ``magnitude-all``, and every output block of a layer keeps equally many.

Each is then put on the lattice of MULTIPLIERS whose rows are its blocks, and on 8×16, where its blocks are whole in
that. Cycles are the compiler's estimate for a training step of BATCH images, without fills and barriers; energy is
that of ``espalier/cost/energy.py``, for the same step. The dense network is put on all lattices.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean

from accuracy import LAYERS, PRUNE_FROM, PRUNE_TO, TASKS, WIDE, Task
from harness import plain_rules
from jobs import Findings, Job, Place, carry_out, parser, trained

from espalier.compiler.machine_choice import Constraints
from espalier.compiler.pipeline import compile_program
from espalier.compress.balanced import Balanced
from espalier.compress.magnitude import Magnitude
from espalier.compress.schedule import CubicSchedule
from espalier.cost.energy import step_activity
from espalier.errors import EspalierError
from espalier.flow.work import on_lattice
from espalier.records import Figure, Provenance
from espalier.train.checkpoint import Checkpoint
from espalier.train.config import Method, Prune, RateKind, RateSchedule, TrainConfig

MULTIPLIERS = 128
BATCH = 128
BLOCKS = (1, 2, 4, 8, 16)
FIXED = (8, 16)  #: rows, lanes of the lattice that all are put on
EPOCHS = {"lenet5": 10, "cnn1x": 20}
METHODS = ("magnitude", "magnitude-all", "balanced")
DENSE = "dense"


@dataclass(frozen=True, slots=True)
class Sparsity:
    """How a network is pruned; DENSE is not, and has block 1."""

    method: str
    density: float
    block: int

    @property
    def name(self) -> str:
        return DENSE if self.method == DENSE else f"{self.method} to {self.density:g} in {self.block}x{self.block}"

    @property
    def rule(self) -> Method | None:
        match self.method:
            case "magnitude":
                return replace(LAYERS, density=self.density, rows=self.block)
            case "magnitude-all":
                return Magnitude(density=self.density, rows=self.block)
            case "balanced":
                return Balanced(density=self.density, rows=self.block)
            case _:
                return None

    def lattices(self) -> list[tuple[int, int]]:
        """(rows, lanes) to put it on."""
        edges = BLOCKS if self.method == DENSE else (self.block,)
        return list(dict.fromkeys([*((edge, MULTIPLIERS // edge) for edge in edges), FIXED]))


def jobs(options: Namespace) -> list[Job]:
    """Every run asked for, dense ones first."""
    found = []
    for task in TASKS:
        if task.name not in options.tasks:
            continue
        place = Place(task.data, options.data, options.images)
        epochs = options.epochs or EPOCHS[task.network]
        runs = [Sparsity(DENSE, 1.0, 1), *(Sparsity(method, density, block) for method in options.methods
                                           for density in options.densities for block in options.blocks)]
        for seed in options.seeds:
            for sparsity in runs:
                folder = (f"{task.network}-{task.data}-{epochs}-{sparsity.method}-{sparsity.density:g}-"
                          f"{sparsity.block}-{seed}")
                config = configuration(task, sparsity, epochs, seed, options)
                found.append(Job(options.work / folder, partial(run, sparsity, config, place)))
    return found


def configuration(task: Task, sparsity: Sparsity, epochs: int, seed: int, options: Namespace) -> TrainConfig:
    """What the run is told."""
    rule = sparsity.rule
    prune = None if rule is None else Prune(rule, CubicSchedule(PRUNE_FROM * epochs, PRUNE_TO * epochs))
    return TrainConfig(task.network, task.data, epochs, BATCH, seed, task.sgd, RateSchedule(RateKind.COSINE),
                       quantise=replace(WIDE, probe_steps=options.probe_steps), prune=prune, augment=task.augment,
                       device=options.device)


def run(sparsity: Sparsity, config: TrainConfig, place: Place, folder: Path) -> dict:
    """Train in ``folder``, and put what was trained on lattices."""
    found = trained(config, place.split(), folder)
    last, lattices, refused = found.log[-1], {}, {}
    for rows, lanes in sparsity.lattices():
        try:
            lattices[f"{rows}x{lanes}"] = placed(found, rows, lanes)
        except EspalierError as error:
            refused[f"{rows}x{lanes}"] = str(error)
    live = {layer.w.name: found.live[layer.w.name] for layer in found.graph.layers()}
    return {
        "task": f"{config.network}/{config.data}", "epochs": config.epochs, "seed": config.seed,
        "images": place.images, "sparsity": sparsity.name, "method": sparsity.method, "density": sparsity.density,
        "block": sparsity.block, "config": config.to_json(), "test_accuracy": last.test_accuracy, "live": last.live,
        "live_density": sum(int(mask.sum()) for mask in live.values()) / sum(mask.size for mask in live.values()),
        "lattices": lattices, "refused": refused, "curve": [entry.test_accuracy for entry in found.log]}


def placed(found: Checkpoint, rows: int, lanes: int) -> dict:
    """Cycles, index bytes and energy of a step of BATCH images. Raises FitError where the blocks are not whole."""
    lattice = on_lattice(found, Constraints(name="any part", rows=rows, lanes=lanes, batch=BATCH))
    program = compile_program(found.graph, loss=found.config.loss, gradient_formats=found.gradient_formats,
                              live=found.live, rules=plain_rules(found.graph.parameters), machine=lattice.machine)
    activity = step_activity(program, BATCH // lanes)
    return {"cycles": lattice.step_cycles, "index_bytes": lattice.index_bytes, "microjoules": activity.microjoules()}


def findings(results: list[dict]) -> Findings:
    """Means over seeds, and what blocks buy over the dense network on the same lattice."""
    figures: list[Figure] = []
    groups: dict[tuple[str, int, str], list[dict]] = {}
    for result in sorted(results, key=order):
        groups.setdefault((result["task"], result["epochs"], result["sparsity"]), []).append(result)
    for (task, epochs, sparsity), runs in groups.items():
        head = f"{task}/{epochs} epochs/{sparsity}/mean of {len(runs)}"
        figures += [Figure(head, round(100 * mean(run["test_accuracy"] for run in runs), 3), "%", Provenance.MEASURED),
                    Figure(f"{head}: live weights", round(100 * mean(run["live_density"] for run in runs), 2), "%",
                           Provenance.MEASURED)]
        dense = groups.get((task, epochs, DENSE), [])
        for lattice in runs[0]["lattices"]:
            figures += lattice_figures(f"{head}: {lattice}", lattice, runs, [] if sparsity == DENSE else dense)
    return Findings(figures=figures, notes=notes(results))


def lattice_figures(head: str, lattice: str, runs: list[dict], dense: list[dict]) -> list[Figure]:
    """Of one lattice; ``dense`` are the runs to compare with, if there are any."""
    own = [run["lattices"][lattice] for run in runs if lattice in run["lattices"]]
    base = [run["lattices"][lattice] for run in dense if lattice in run["lattices"]]
    cycles, energy = mean(item["cycles"] for item in own), mean(total(own))
    found = [Figure(f"{head}: cycles of a step", round(cycles), "cycles", Provenance.ESTIMATED),
             Figure(f"{head}: index", round(mean(item["index_bytes"] for item in own)), "bytes", Provenance.ESTIMATED),
             Figure(f"{head}: energy of a step", round(energy, 1), "µJ", Provenance.ESTIMATED),
             Figure(f"{head}: energy, of it index", round(mean(item["microjoules"]["index"] for item in own), 2), "µJ",
                    Provenance.ESTIMATED)]
    if base:
        found += [Figure(f"{head}: times as fast as dense", round(mean(item["cycles"] for item in base) / cycles, 2),
                         "times", Provenance.ESTIMATED),
                  Figure(f"{head}: times less energy than dense", round(mean(total(base)) / energy, 2), "times",
                         Provenance.ESTIMATED)]
    return found


def total(items: Iterable[dict]) -> list[float]:
    """The energy of each, in µJ."""
    return [sum(item["microjoules"].values()) for item in items]


def order(result: dict) -> tuple:
    return (result["task"], result["epochs"], result["method"] != DENSE, result["density"], result["method"],
            result["block"], result["seed"])


def notes(results: list[dict]) -> list[str]:
    """Where runs are shorter than they should be, and what is on no lattice."""
    found = [f"{task.name} is trained {EPOCHS[task.network]} epochs, not the {task.epochs} of accuracy.py"
             for task in TASKS if any(run["task"] == task.name and run["epochs"] < task.epochs for run in results)]
    found += [f"{task} has {len(seeds)} seed(s)" for task in sorted({run["task"] for run in results})
              if len(seeds := {run["seed"] for run in results if run["task"] == task}) < 3]
    refused = dict.fromkeys((run["block"], lattice) for run in results for lattice in run["refused"])
    return [*found, *(f"Blocks of {block} are not whole on {lattice}" if block < FIXED[0]
                      else f"Blocks of {block} do not fit on {lattice}" for block, lattice in refused)]


def main() -> int:
    options = parser("locality", __doc__)
    names = [task.name for task in TASKS]
    options.add_argument("--tasks", nargs="+", choices=names, default=names)
    options.add_argument("--methods", nargs="+", choices=METHODS, default=["magnitude", "balanced"])
    options.add_argument("--densities", type=float, nargs="+", default=[0.1, 0.2])
    options.add_argument("--blocks", type=int, nargs="+", choices=BLOCKS, default=list(BLOCKS))
    options.add_argument("--epochs", type=int, help="instead of each task's own")
    told = options.parse_args()
    return carry_out("locality", told, jobs(told), findings)


if __name__ == "__main__":
    sys.exit(main())
