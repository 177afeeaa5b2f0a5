"""Does growing a network beat pruning the whole of it? CGaP at 64 % fewer parameters and 63 % fewer FLOPs.

    python benchmarks/grow.py --data DATA --networks resnet20 --seeds 0,1,2
    python benchmarks/grow.py --data DATA --networks vgg16_bn_quarter
    python benchmarks/grow.py --data DATA --networks resnet110 --device cuda

After Du et al. (CGaP, JETCAS 2019), who reach that size with ResNet-110 on CIFAR-10. Arms:

- ``dense``: the network as it is.
- ``cgap``: half of each layer's units to start with; the important ones split, up to as many weights as the network
  that is named has; then the secondary ones leave.
- ``cgap-spread``: the same, and each reader of a unit that splits shares between the two in parts of its own. Not
  among the default arms.
- ``pruned``: all units to start with; they leave as in ``cgap``, at the same times. The difference is what growth adds.
- ``thin``: as small from the start, every layer by the same part. The difference is what growing and leaving add.
- ``granet``: as many weights live as ``cgap`` keeps, single ones of the whole network, exchanged while they become
  fewer (GraNet). Its zeros are scattered: the difference is what structure costs.
- ``newborn``: no network to compare, but what gradients units get that were just born, split in either way
  (``newborn.py``).

All are trained as long, in float32, and in fixed point in the last third, so that what is trained compiles; widths
change before, between epochs. Parameters are weights (biases are 0.3 % of a ResNet-20 and leave with their units),
FLOPs are nominal MACs of the forward pass, both without what is not trained. Training MACs are the useful ones of all
steps (``flow/work.py``), of the widths that each epoch has; those of scattered zeros count as saved, though float32 on
a computer saves none of them.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from statistics import mean

from accuracy import NARROW, PRUNE_FROM, PRUNE_TO, WIDE
from jobs import Findings, Job, Place, carry_out, parser
from newborn import study

from espalier.compress.cgap import Growth, Shedding, Size, Structure, Times
from espalier.compress.growth import Birth
from espalier.compress.magnitude import Magnitude, Scope
from espalier.compress.rigl import ExchangeSchedule
from espalier.compress.schedule import CubicSchedule
from espalier.flow.network import Imported, import_network
from espalier.flow.work import layer_work, training_macs
from espalier.records import Bar, Figure, Provenance
from espalier.train.calibrate import initial_state
from espalier.train.checkpoint import Checkpoint
from espalier.train.config import Prune, Quantise, RateKind, RateSchedule, TrainConfig
from espalier.train.loop import train
from espalier.train.optimise import Sgd, Update
from espalier.train.structure import named_size

WEIGHTS, MACS = 0.36, 0.37  #: what is left of parameters and FLOPs
SEED = 0.5                  #: of the units, that growth starts from
GROW = (0.1, 0.2)           #: of the epochs: the first growth and the last; shedding is from there on
SHED = (0.4, 0.6)
FIXED_FROM = 2 / 3
FIXED_RATE = 0.1            #: of the learning rate: without their batch norms networks diverge at the full one
POINTS = 1.0                #: that CGaP may lose; what the published one lost is in no text that we have
PARTS = 64                  #: uniform widths are so many parts of the whole
FEWEST = 4                  #: epochs in which all of this has its place
LONG = 160                  #: epochs that ResNets on CIFAR-10 are trained (He et al., CVPR 2016)
FORMATS = {8: NARROW, 16: WIDE, 32: None}
DENSE, CGAP, SPREAD, PRUNED, THIN, GRANET, NEWBORN = ARMS = (
    "dense", "cgap", "cgap-spread", "pruned", "thin", "granet", "newborn")
BIRTHS = {"as cgap": Birth(), "as cgap-spread": Birth(spread=0.4)}


@dataclass(frozen=True, slots=True)
class Task:
    """A network on a data set, how it is trained, and what is to be said of it."""

    network: str
    epochs: int
    sgd: Sgd
    note: str = ""
    data: str = "cifar10"


TASKS = {task.network: task for task in (
    Task("resnet20", 10, Sgd(0.05, 0.9, 5e-4)),
    Task("vgg16_bn_quarter", 15, Sgd(0.05, 0.9, 5e-4), "VGG-16 with a quarter of its channels"),
    Task("vgg16_bn", 60, Sgd(0.05, 0.9, 5e-4)),
    Task("resnet110", 60, Sgd(0.05, 0.9, 5e-4)),
)}


@dataclass(frozen=True, slots=True)
class Plan:
    """When things happen in a training of so many epochs: widths change between two of them."""

    epochs: int

    def at(self, part: float) -> int:
        return max(1, round(part * self.epochs))

    def times(self, parts: tuple[float, float], every: int) -> Times:
        return Times(self.at(parts[0]), self.at(parts[1]), every)

    def growth(self, birth: Birth) -> Growth:
        """Twice, or once where there is no time for more."""
        return Growth(self.times(GROW, max(1, self.at(GROW[1]) - self.at(GROW[0]))), birth=birth)

    @property
    def shedding(self) -> Shedding:
        """After every epoch between the two."""
        return Shedding(self.times(SHED, 1), WEIGHTS, MACS)

    @property
    def prune(self) -> Prune:
        start, end = PRUNE_FROM * self.epochs, PRUNE_TO * self.epochs
        return Prune(Magnitude(density=WEIGHTS, scope=Scope.NETWORK), CubicSchedule(start, end),
                     ExchangeSchedule(start, end, 0.5))

    def quantise(self, bits: int, probe_steps: int) -> Quantise | None:
        """Once all widths are what they stay."""
        start = max(self.at(FIXED_FROM), self.at(SHED[1]) + 1)
        rule = FORMATS[bits]
        return None if rule is None else replace(rule, start=start, probe_steps=probe_steps, rate=FIXED_RATE)


def configuration(task: Task, arm: str, seed: int, options: Namespace) -> TrainConfig:
    """What a run is told, but for the uniform width."""
    plan = Plan(options.epochs or task.epochs)
    alike, spread = (plan.growth(birth) for birth in BIRTHS.values())
    structure = {CGAP: Structure(SEED, alike, plan.shedding), SPREAD: Structure(SEED, spread, plan.shedding),
                 PRUNED: Structure(shedding=plan.shedding), NEWBORN: Structure(SEED, alike)}.get(arm)
    return TrainConfig(task.network, task.data, plan.epochs, options.batch, seed, task.sgd,
                       RateSchedule(RateKind.COSINE), quantise=plan.quantise(options.bits, options.probe_steps),
                       prune=plan.prune if arm == GRANET else None, augment=True, device=options.device,
                       structure=structure)


def jobs(options: Namespace) -> list[Job]:
    """Every run asked for."""
    found = []
    for network in options.networks:
        task = TASKS[network]
        place = Place(task.data, options.data, options.images)
        for seed in options.seeds:
            for arm in options.arms:
                config = configuration(task, arm, seed, options)
                folder = f"{network}-{config.epochs}-{options.bits}-{arm}-{seed}"
                doing = run_newborn if arm == NEWBORN else run
                found.append(Job(options.work / folder, partial(doing, arm, config, options.bits, place)))
    return found


def run(arm: str, config: TrainConfig, bits: int, place: Place, folder: Path) -> dict:
    """Train in ``folder``, and hold what was trained against the network that was named."""
    split = place.split()
    network = import_network(config.network, split, config.seed, keep_batch_norm=config.trains_batch_norm)
    if arm == THIN:
        config = replace(config, structure=Structure(uniform_part(named_size(network.graph, network.fixed))))
    found = train(config, split, network.graph, network.parameters, folder, fixed=network.fixed)
    whole, last = dense(network, config), found.log[-1]
    steps = len(split.train) // config.batch * config.batch
    dense_macs = config.epochs * steps * sum(layer.dense * (2 + layer.backward) for layer in layer_work(whole).values())
    return {
        **told(arm, config, bits, place), "test_accuracy": last.test_accuracy, "live": last.live,
        "weights": weights(found), "dense_weights": weights(whole), "forward_macs": forward_macs(found),
        "dense_forward_macs": forward_macs(whole), "macs": training_macs(found, layer_work(found), len(split.train)),
        "dense_macs": dense_macs, "widths": {layer.w.name: layer.w.shape[0] for layer in found.graph.layers()},
        "curve": [entry.test_accuracy for entry in found.log],
        "live_curve": [sum(entry.live.values()) for entry in found.log]}


def run_newborn(arm: str, config: TrainConfig, bits: int, place: Place, folder: Path) -> dict:
    """Gradients of newborn units, split in each way."""
    kinship = {}
    for way, birth in BIRTHS.items():
        assert config.structure is not None and config.structure.growth is not None, "the arm grows"
        structure = replace(config.structure, growth=replace(config.structure.growth, birth=birth))
        found = study(replace(config, structure=structure), place.split(), folder / "before", folder / way)
        kinship |= {f"{way}, {when}": asdict(item) for when, item in found.items()}
    return {**told(arm, config, bits, place), "kinship": kinship}


def told(arm: str, config: TrainConfig, bits: int, place: Place) -> dict:
    return {"arm": arm, "network": config.network, "data": config.data, "epochs": config.epochs, "seed": config.seed,
            "bits": bits, "images": place.images, "config": config.to_json()}


def uniform_part(named: Size) -> float:
    """The part of each group's units that comes nearest to WEIGHTS and MACS, in PARTS."""
    def missed(part: float) -> float:
        widths = [max(1, round(part * units)) for units in named.widths]
        return (abs(named.weights(widths) / named.weights() / WEIGHTS - 1)
                + abs(named.macs(widths) / named.macs() / MACS - 1))
    return min((number / PARTS for number in range(1, PARTS + 1)), key=missed)


def dense(network: Imported, config: TrainConfig) -> Checkpoint:
    """The network that is named, before its first step."""
    return Checkpoint(network.graph, {}, initial_state(network.graph, network.parameters, Update.FLOAT), config,
                      frozen=network.fixed)


def weights(found: Checkpoint) -> int:
    """The live weights of all layers that are trained."""
    return sum(int(found.live[layer.w.name].sum()) for layer in found.graph.layers()
               if layer.w.name not in found.frozen)


def forward_macs(found: Checkpoint) -> int:
    """Theirs for one image, taps on padding counted."""
    return sum(int(found.live[layer.w.name].sum()) * prod(layer.out.shape[1:]) for layer in found.graph.layers()
               if layer.w.name not in found.frozen)


Key = tuple[str, str, int, int]


def findings(results: list[dict]) -> Findings:
    """Means over seeds, and the bars of each network."""
    groups: dict[Key, dict[str, list[dict]]] = {}
    for result in sorted(results, key=lambda run: (key(run), ARMS.index(run["arm"]), run["seed"])):
        groups.setdefault(key(result), {}).setdefault(result["arm"], []).append(result)
    figures, bars, notes = [], [], []
    for group, arms in groups.items():
        head = heading(group)
        figures += [figure for arm, runs in arms.items() for figure in (
            newborn_figures(head, runs) if arm == NEWBORN else arm_figures(f"{head}/{arm}", runs))]
        figures += differences(head, arms)
        bars += bars_of(head, arms)
        notes += notes_of(group, arms)
    return Findings(figures=figures, bars=bars, notes=notes)


def key(result: dict) -> Key:
    return result["network"], result["data"], result["epochs"], result["bits"]


def heading(group: Key) -> str:
    network, data, epochs, bits = group
    return f"{network}/{data}/{epochs} epochs/{'float32' if bits == 32 else f'{bits} bit'}"


def percent(runs: Sequence[dict], part: str, whole: str = "") -> float:
    """The mean over ``runs`` of ``part``, as a percentage of ``whole`` where it is named."""
    return 100 * mean(run[part] / (run[whole] if whole else 1) for run in runs)


def accuracy(runs: Sequence[dict]) -> float:
    return percent(runs, "test_accuracy")


def arm_figures(head: str, runs: list[dict]) -> list[Figure]:
    return [
        Figure(f"{head}/mean of {len(runs)}", round(accuracy(runs), 3), "%", Provenance.MEASURED),
        Figure(f"{head}: parameters of dense", round(percent(runs, "weights", "dense_weights"), 2), "%",
               Provenance.MEASURED),
        Figure(f"{head}: FLOPs of dense", round(percent(runs, "forward_macs", "dense_forward_macs"), 2), "%",
               Provenance.MEASURED),
        Figure(f"{head}: training", round(mean(run["macs"] for run in runs) / 1e9, 1), "GMAC", Provenance.ESTIMATED),
        Figure(f"{head}: training MACs of dense", round(percent(runs, "macs", "dense_macs"), 2), "%",
               Provenance.ESTIMATED)]


def newborn_figures(head: str, runs: list[dict]) -> list[Figure]:
    names = {"cosine": "median cosine of their gradient and their parent's",
             "unrelated": "median cosine of their gradient and another parent's",
             "size": "median length of their gradient over their parent's"}
    return [Figure(f"{head}/newborn {when}: {name}", round(mean(run["kinship"][when][field] for run in runs), 3),
                   "", Provenance.MEASURED) for when in runs[0]["kinship"] for field, name in names.items()]


def differences(head: str, arms: dict[str, list[dict]]) -> list[Figure]:
    """What CGaP has in points, and saves in training MACs, over the other arms."""
    others = [arm for arm in arms if arm not in (CGAP, NEWBORN) and CGAP in arms]
    return [figure for arm in others for figure in (
        Figure(f"{head}/cgap: points over {arm}", round(accuracy(arms[CGAP]) - accuracy(arms[arm]), 3), "points",
               Provenance.MEASURED),
        Figure(f"{head}/cgap: training MACs saved over {arm}",
               round(100 * (1 - mean(run["macs"] for run in arms[CGAP]) / mean(run["macs"] for run in arms[arm])), 2),
               "%", Provenance.ESTIMATED))]


def bars_of(head: str, arms: dict[str, list[dict]]) -> list[Bar]:
    """As far as they are done: the published size, what it may cost, and that growing is no worse than pruning."""
    if CGAP not in arms:
        return []
    found = [Bar(f"{head}: {name} fewer than dense with cgap, at least", round(100 - left, 2), ">=",
                 round(100 * (1 - target), 1)) for name, left, target in (
        ("parameters", max(percent([run], "weights", "dense_weights") for run in arms[CGAP]), WEIGHTS),
        ("FLOPs", max(percent([run], "forward_macs", "dense_forward_macs") for run in arms[CGAP]), MACS))]
    if DENSE in arms:
        found.append(Bar(f"{head}: points lost by cgap against dense",
                         round(accuracy(arms[DENSE]) - accuracy(arms[CGAP]), 3), "<=", POINTS))
    if PRUNED in arms:
        found.append(Bar(f"{head}: points of cgap over pruned",
                         round(accuracy(arms[CGAP]) - accuracy(arms[PRUNED]), 3), ">=", 0))
    return found


def notes_of(group: Key, arms: dict[str, list[dict]]) -> list[str]:
    """What is smaller or shorter than it should be."""
    network, _, epochs, _ = group
    seeds = max(len(runs) for runs in arms.values())
    note = TASKS[network].note
    short = [f"Shortened for the machine: {network} is trained {epochs} epochs, not {LONG} or more"] * (epochs < LONG)
    return [f"{network}: {seeds} seed(s)", *short, *([f"{network} is {note}"] if note else [])]


def main() -> int:
    options = parser("grow", __doc__)
    options.add_argument("--networks", nargs="+", choices=TASKS, default=["resnet20", "vgg16_bn_quarter"])
    options.add_argument("--arms", nargs="+", choices=ARMS, default=[arm for arm in ARMS if arm != SPREAD])
    options.add_argument("--bits", type=int, choices=FORMATS, default=16, help="of words, in the last third; 32: never")
    options.add_argument("--epochs", type=int, help=f"instead of each network's own; at least {FEWEST}")
    options.add_argument("--batch", type=int, default=100)
    told = options.parse_args()
    if told.epochs is not None and told.epochs < FEWEST:
        options.error(f"widths grow, fall and settle in at least {FEWEST} epochs, not {told.epochs}")
    return carry_out("grow", told, jobs(told), findings)


if __name__ == "__main__":
    sys.exit(main())
