"""What ``espalier opencl tune`` finds: the time of an image with tiles by the estimate, and with those that were found.

    python benchmarks/opencl_tune.py

LeNet-5, MobileNetV1 for CIFAR and MobileNetV1 for 224×224 images in float32 with random weights, by one thread on PoCL.
Each search has its share of ``--seconds`` and ends before if every kernel has tried TRIALS tiles. Then both networks
take turns in one process, and the medians are told: the found one is the one that the search measured to be fastest
kernel by kernel, also where that is no faster as a whole (``tune`` writes the estimate's then). Last, the search is
started once more on its journal, where it has to find everything and try nothing (with no trials to make if the
first one ran out of time).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from harness import write_results
from numpy.typing import NDArray
from optuna import get_all_study_summaries
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from espalier.flow.kernels import open_session
from espalier.frontend.torch_export import from_torch
from espalier.ir.graph import Graph
from espalier.opencl.bundle import Bundle
from espalier.opencl.choice import Choice
from espalier.opencl.compilation import compile_kernels
from espalier.opencl.optimisations import ALL
from espalier.opencl.tuning import Tuned, tune
from espalier.records import Bar, Figure, Provenance
from espalier.zoo import build, input_shape

CLASSES = {"lenet5": 10, "mobilenetv1": 10, "mobilenetv1_224": 1000}
SHARES = {"lenet5": 1.0, "mobilenetv1": 3.0, "mobilenetv1_224": 5.0}  #: of the time
TRIALS = 6
Parameters = Mapping[str, NDArray]


def searched(graph: Graph, parameters: Parameters, journal: Path, trials: int, seconds: float
             ) -> tuple[Tuned, float, int]:
    """What a search finds, the seconds it takes, and the trials that are in its journal then."""
    began = time.perf_counter()
    found = tune(graph, parameters, ALL, partial(open_session, threads=1), journal, trials=trials, seconds=seconds)
    took = time.perf_counter() - began
    return found, took, sum(study.n_trials for study in get_all_study_summaries(
        storage=JournalStorage(JournalFileBackend(str(journal)))))


def bundles(graph: Graph, parameters: Parameters, found: Tuned) -> tuple[Bundle, Bundle, int]:
    """The network with the estimate's tiles and with those found, and how many kernels have others."""
    changed = set()

    def choose(name: str, signature: str, choices: Sequence[Choice]) -> Choice:
        chosen = found.kernels[name][0] if name in found.kernels else choices[0]
        if chosen != choices[0]:
            changed.add(name)
        return chosen

    tuned = compile_kernels(graph, parameters, ALL, choose=choose)
    return compile_kernels(graph, parameters, ALL), tuned, len(changed)


def compared(both: Sequence[Bundle], seconds: float) -> tuple[float, float, float]:
    """Median seconds of an image with each, in turns; the median of the first over the second."""
    image = np.random.RandomState(0).standard_normal((1, *both[0].images[0].shape)).astype(np.float32)
    runs = [partial(open_session(bundle, threads=1).run, image) for bundle in both]
    took: list[list[float]] = [[], []]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for run, own in zip(runs, took, strict=True):
            run()  # what the other one drove out of the caches
            began = time.perf_counter()
            run()
            own.append(time.perf_counter() - began)
    return median(took[0]), median(took[1]), median(one / other for one, other in zip(*took, strict=True))


def records(name: str, seconds: float) -> Iterator[Figure | Bar]:
    """Of one network, whose search has so many seconds and whose comparison a fifth of them."""
    graph, parameters = from_torch(build(name, CLASSES[name]).eval(), input_shape(name), name)
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "journal.jsonl"
        found, took, trials = searched(graph, parameters, journal, TRIALS, seconds)
        complete = took < seconds
        again, _, after = searched(graph, parameters, journal, TRIALS if complete else 0, seconds)
    *both, changed = bundles(graph, parameters, found)
    before, tuned, ratio = compared(both, seconds / 5)
    for title, value, unit in (
            ("an image, tiles of the estimate", round(before * 1e3, 4), "ms"),
            ("an image, tiles found", round(tuned * 1e3, 4), "ms"), ("search", round(took, 1), "s"),
            ("rounds", found.rounds, "rounds"), ("trials", trials, "trials"),
            ("kernels", len(found.kernels), "kernels"),
            ("kernels with other tiles than the estimate's", changed, "kernels"),
            ("searches that ran out of time", int(not complete), "searches")):
        yield Figure(f"{name}, 1 thread: {title}", value, unit, Provenance.MEASURED)
    yield Bar(f"{name}, 1 thread: the estimate's time over that of tiles found", round(ratio, 3), ">=", 1)
    yield Bar(f"{name}: trials that a second search adds", after - trials, "==", 0)
    yield Bar(f"{name}: tiles that it finds otherwise", sum(
        again.kernels[kernel][0] != choice for kernel, (choice, *_) in found.kernels.items()), "==", 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=CLASSES, default=list(CLASSES))
    parser.add_argument("--seconds", type=float, default=540.0, help="of all searches")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    share = options.seconds / sum(SHARES[name] for name in options.networks)
    found: list[Figure | Bar] = []
    for name in options.networks:
        for record in records(name, SHARES[name] * share):
            print(record, flush=True)
            found.append(record)
    write_results("opencl_tune", seeds=[0], figures=[one for one in found if isinstance(one, Figure)],
                  bars=[one for one in found if isinstance(one, Bar)], output=options.output)


if __name__ == "__main__":
    main()
