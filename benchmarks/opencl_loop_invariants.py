"""What moving loop invariants out of loops brings: time with and without, and operations in the innermost loops.

    python benchmarks/opencl_loop_invariants.py

LeNet-5 and MobileNetV1 (224×224, 1000 classes) in float32 with random weights, single images on PoCL by one thread:
with all optimisations, and without ``unrolling``, where loops have more to move. With and without take turns in one
process, and the medians are told. Operations are those on integers in the indices of loops that hold no loop, each
different one once for each loop.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median

import numpy as np
from harness import write_results

from espalier.flow.kernels import open_session
from espalier.frontend.torch_export import from_torch
from espalier.opencl.compilation import compile_kernels
from espalier.opencl.index_arithmetic import loop_operations
from espalier.opencl.optimisations import NAMES, Optimisations
from espalier.records import Bar, Figure, Provenance
from espalier.zoo import build, input_shape

NETWORKS = {"lenet5": 10, "mobilenetv1_224": 1000}  #: and their classes
MOVED = "loop_invariants"
SETTINGS: dict[str, frozenset[str]] = {"all": frozenset(), "without unrolling": frozenset({"unrolling"})}
TURN = 0.02  #: seconds
NOISE = 1.05  #: of medians on a machine that others use


def measured(name: str, left_out: frozenset[str], seconds: float) -> tuple[dict[bool, float], float, dict[bool, int]]:
    """Median seconds of an image, without and with; the median of with over without; the operations of both."""
    shape = input_shape(name)
    graph, parameters = from_torch(build(name, NETWORKS[name]).eval(), shape, name)
    image = np.random.RandomState(0).standard_normal((1, *shape)).astype(np.float32)
    bundles = {on: compile_kernels(graph, parameters, Optimisations.named(
        frozenset(NAMES) - left_out - (frozenset() if on else {MOVED}))) for on in (False, True)}
    runs = {on: partial(open_session(bundle, threads=1).run, image) for on, bundle in bundles.items()}
    results = [run() for run in runs.values()]
    assert np.array_equal(*results), "terms of an index change their order, those of a sum do not"
    took: dict[bool, list[float]] = {False: [], True: []}
    end = time.perf_counter() + seconds
    for turn in count():
        for on in (False, True) if turn % 2 else (True, False):
            took[on].append(_seconds(runs[on]))
        if time.perf_counter() > end:
            break
    ratio = median(one / other for one, other in zip(took[True], took[False], strict=True))
    return ({on: median(found) for on, found in took.items()}, ratio,
            {on: loop_operations(bundle.source) for on, bundle in bundles.items()})


def _seconds(run: Callable[[], object]) -> float:
    """Of one run, the median of as many as take TURN, after one that fills the caches."""
    found: list[float] = []
    run()
    while sum(found) < TURN:
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seconds", type=float, default=30.0, help="of each comparison")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    figures, bars = [], []
    for name in options.networks:
        for setting, left_out in SETTINGS.items():
            place = f"{name}, 1 thread, {setting}"
            times, ratio, operations = measured(name, left_out, options.seconds)
            for on, what in ((False, f"without {MOVED}"), (True, f"with {MOVED}")):
                figures += [Figure(f"{place}: {what}", round(times[on] * 1e3, 4), "ms", Provenance.MEASURED),
                            Figure(f"{place}: {what}, operations in innermost loops", operations[on], "operations",
                                   Provenance.MEASURED)]
            title = f"{place}: time with over without"
            if left_out:
                figures.append(Figure(title, round(ratio, 3), "times", Provenance.MEASURED))
            else:
                bars.append(Bar(title, round(ratio, 3), "<=", NOISE))
            print(place, {on: round(seconds * 1e3, 4) for on, seconds in times.items()}, operations, flush=True)
    write_results("opencl_loop_invariants", seeds=[0], figures=figures, bars=bars, output=options.output)


if __name__ == "__main__":
    main()
