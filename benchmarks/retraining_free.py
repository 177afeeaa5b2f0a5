"""How sparse published networks become without training them again, at a loss of at most so many points.

    python benchmarks/retraining_free.py --data DATA --networks resnet20
    python benchmarks/retraining_free.py --data DATA --networks resnet56

After Ashouri et al. (arXiv 1811.04199): 73 % of the weights removed at 5 points loss of Top-5, with the best of three
rules. Each network is put into 16-bit fixed point, then ``espalier compress`` searches, for each of the rules, for
layer-adaptive magnitude (``lamp``) and for reconstruction, the sparsest network whose loss on training images is at
most BUDGETS points. Those images are drawn once; reconstruction rebuilds on half of them and chooses by the other half.
The loss on the *test* set is what is reported. It may be larger, since the networks know their training images:
therefore there are several budgets, and the bars count a network only where it loses at most POINTS on the test set.

The ``magnitude`` of ``compress`` is the relative rule. A network that cannot be read yet is left out, and the notes
say why.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jobs import Findings, Job, Place, carry_out, parser

from espalier.flow.compression import CompressRequest, Method, compress_network
from espalier.flow.network import PRETRAINED
from espalier.records import Bar, Figure, Provenance

RULES = (Method.FLAT.value, Method.TRIANGULAR.value, Method.RELATIVE.value)
METHODS = (*RULES, Method.LAMP.value, Method.RECONSTRUCT.value)
POINTS = 5.0
BUDGETS = (5.0, 3.0, 2.0)
SPARSITY = 0.73  #: of the paper's best rule
CLEARLY = 0.05   #: what reconstruction removes more, of all weights, to be clearly better


@dataclass(frozen=True, slots=True)
class Subject:
    """A published network, the data that it is measured on, and how many of its first answers count."""

    network: str
    data: str
    top: int = 1


SUBJECTS = (
    Subject("resnet20", "cifar10"),
    Subject("resnet56", "cifar10"),
    Subject("mobilenet_v1_0.25_128", "imagenet-sample", top=5),
    Subject("mobilenet_v1_1.0_224", "imagenet-sample", top=5),
    Subject("mobilenet_v2_1.0_224", "imagenet-sample", top=5),
    Subject("squeezenet_v1.0_deepcompressed", "imagenet-sample", top=5),
)


def jobs(options: Namespace) -> list[Job]:
    """Every search asked for, the rules before reconstruction."""
    subjects = [subject for subject in SUBJECTS if subject.network in options.networks]
    return [Job(options.work / f"{subject.network}-{method}-{budget:g}-{seed}",
                partial(run, subject, method, budget, seed, options.choose, Place(subject.data, options.data)))
            for subject in subjects for seed in options.seeds for method in options.methods
            for budget in options.budgets]


def run(subject: Subject, method: str, budget: float, seed: int, choose: int | None, place: Place, folder: Path
        ) -> dict:
    """Search in ``folder``."""
    request = CompressRequest(method=method, loss=budget, images=choose, data=place.data, seed=seed, top=subject.top,
                              data_root=Path(place.root) if place.root else None)
    found = compress_network(Path(f"{PRETRAINED}{subject.network}"), folder / "compressed", request)
    assert found is not None, "not a dry run"
    figures = {figure["name"]: figure["value"] for figure in found["figures"]}
    return {"network": subject.network, "data": subject.data, "top": subject.top, "method": method, "budget": budget,
            "seed": seed, "images": place.images, "density": figures["density"],
            "accuracy_before": figures["test accuracy before"], "test_accuracy": figures["test accuracy after"],
            "selection": found["images"], "layers": found["layers"]}


def findings(results: list[dict]) -> Findings:
    """Sparsity and what it costs on the test set, for each budget; and the best within POINTS of each kind."""
    figures, bars = [], []
    for run in sorted(results, key=lambda run: (run["network"], run["method"], run["budget"], run["seed"])):
        name = (f"{run['network']}/{run['method']}/at most {run['budget']:g} points of training images/"
                f"seed{run['seed']}")
        figures += [Figure(f"{name}: removed", round(100 * sparsity(run), 2), "%", Provenance.MEASURED),
                    Figure(f"{name}: lost on the test set", round(lost(run), 2), f"points of Top-{run['top']}",
                           Provenance.MEASURED)]
    for network in dict.fromkeys(subject.network for subject in SUBJECTS):
        own = [run for run in results if run["network"] == network and lost(run) <= POINTS]
        best = {method: max((sparsity(run) for run in own if run["method"] == method), default=0.0)
                for method in dict.fromkeys(run["method"] for run in results if run["network"] == network)}
        figures += [Figure(f"{network}/{method}: removed at most, within {POINTS:g} points of the test set",
                           round(100 * value, 2), "%", Provenance.MEASURED) for method, value in best.items()]
        bars += bars_of(network, best)
    return Findings(figures=figures, bars=bars, notes=notes(results))


def bars_of(network: str, best: dict[str, float]) -> list[Bar]:
    """Of one network, as far as it is done."""
    head, rules = f"{network}: % removed within {POINTS:g} points", [best[rule] for rule in RULES if rule in best]
    bars = [Bar(f"{head}, best rule", round(100 * max(rules), 2), ">=", 100 * SPARSITY)] if rules else []
    if rules and Method.RECONSTRUCT.value in best:
        bars.append(Bar(f"{head}, reconstruction over the best rule",
                        round(100 * (best[Method.RECONSTRUCT.value] - max(rules)), 2), ">=", 100 * CLEARLY))
    return bars


def sparsity(run: dict) -> float:
    return 1 - run["density"]


def lost(run: dict) -> float:
    """Points of the test set."""
    return 100 * (run["accuracy_before"] - run["test_accuracy"])


def notes(results: list[dict]) -> list[str]:
    missing = [subject.network for subject in SUBJECTS
               if subject.network not in {run["network"] for run in results}]
    best = "The best within the points of the test set is the best of the budgets that were tried on training images"
    return [best, *([f"Not there: {', '.join(missing)}"] if missing else [])]


def main() -> int:
    options = parser("retraining_free", __doc__)
    known = [subject.network for subject in SUBJECTS]
    options.add_argument("--networks", nargs="+", choices=known, default=known)
    options.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options.add_argument("--budgets", type=float, nargs="+", default=list(BUDGETS), help="points, on training images")
    options.add_argument("--choose", type=int, help="training images to look at; default: 1000, or all")
    told = options.parse_args()
    if told.images:
        options.error("compress takes whole data sets: make a trial shorter by --choose and --networks")
    return carry_out("retraining_free", told, jobs(told), findings)


if __name__ == "__main__":
    sys.exit(main())
