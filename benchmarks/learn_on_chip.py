"""Training in RTL simulation from random weights; the final weights equal the training path's bit for bit.

    python benchmarks/learn_on_chip.py digits
    python benchmarks/learn_on_chip.py lenet5-pruned
    python benchmarks/learn_on_chip.py lenet5-dense

Each run writes its own part; all parts that exist are merged into ``results/learn_on_chip.json``. The simulation has
one thread; its speed is held against processor time, which other programs on the machine do not lengthen, and told by
the clock as well.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from harness import RESULTS, Prepared, prepare, training_optimiser, write_results

from espalier.engines.base import Totals
from espalier.engines.rtl import RtlEngine
from espalier.numerics.loss import LOSS_FRAC
from espalier.records import Bar, Figure, Provenance, write_json
from espalier.train.native_step import compiled
from espalier.train.optimise import Sgd

CHUNK = 200  #: batches between two lines of progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A run: network, data, machine, pruning, epochs, and the accuracy it must reach."""

    network: str
    data: str
    rows: int
    lanes: int
    density: float
    epochs: int
    bound: float
    sgd: Sgd
    exceptions: dict[str, float] = field(default_factory=dict)


CASES = {
    "digits": Case(network="digits", data="digits", rows=4, lanes=8, density=1.0, epochs=3, bound=90.0,
                   sgd=Sgd(learning_rate=0.003, momentum=0.9)),
    "lenet5-pruned": Case(network="lenet5", data="mnist", rows=8, lanes=16, density=0.1, epochs=1, bound=95.0,
                          sgd=Sgd(learning_rate=0.01, momentum=0.9),
                          exceptions={"conv1.weight": 1.0, "conv2.weight": 0.4, "fc3.weight": 0.5}),
    "lenet5-dense": Case(network="lenet5", data="mnist", rows=8, lanes=16, density=1.0, epochs=1, bound=95.0,
                         sgd=Sgd(learning_rate=0.005, momentum=0.9)),
}


def order(case: Case, count: int, epoch: int) -> np.ndarray:
    """Which images an epoch takes, in which order; whole batches only."""
    whole = count // case.lanes * case.lanes
    return np.random.RandomState(1000 + epoch).permutation(count)[:whole]


def by_training_path(case: Case, prepared: Prepared) -> dict[str, np.ndarray]:
    """The same training by the native step, as ``espalier train`` takes it."""
    optimiser = training_optimiser(prepared, case.sgd)
    native = compiled(prepared.network.graph, case.lanes)
    assert native is not None, "there is a C++ compiler"
    images, labels = torch.from_numpy(prepared.images.astype(np.int16)), torch.from_numpy(prepared.labels)
    for epoch in range(case.epochs):
        chosen = torch.from_numpy(order(case, len(prepared.images), epoch))
        for index in chosen.split(case.lanes):
            _, _, sums = native.train(images[index], labels[index], optimiser.weight, optimiser.live)
            optimiser.step_sums(sums, native.roundings)
    return optimiser.state()


def test_accuracy(engine: RtlEngine, prepared: Prepared, lanes: int) -> float:
    """Percent of the test images (whole groups) that the RTL classifies right."""
    whole = len(prepared.test_images) // lanes * lanes
    totals = engine.infer(prepared.test_images[:whole], prepared.test_labels[:whole])
    return 100 * totals.correct / whole


def learn(name: str) -> dict:
    """Train one case in RTL, then by the training path; compare."""
    case = CASES[name]
    prepared = prepare(case.network, case.data, rows=case.rows, lanes=case.lanes, density=case.density, sgd=case.sgd,
                       exceptions=case.exceptions)
    engine = RtlEngine(prepared.network)
    engine.load(prepared.state)
    before, began, spent = engine.simulation.cycles, time.perf_counter(), time.process_time()
    for epoch in range(case.epochs):
        chosen = order(case, len(prepared.images), epoch)
        seen = Totals(loss=0, correct=0)
        for start in range(0, len(chosen), CHUNK * case.lanes):
            index = chosen[start: start + CHUNK * case.lanes]
            part = engine.train(prepared.images[index], prepared.labels[index], case.lanes)
            seen = Totals(loss=seen.loss + part.loss, correct=seen.correct + part.correct)
            done = start + len(index)
            print(f"{name} epoch {epoch} images {done} loss {seen.loss / done / 2 ** LOSS_FRAC:.4f} "
                  f"accuracy {100 * seen.correct / done:.2f} %", flush=True)
    cycles = engine.simulation.cycles - before
    seconds, spent = time.perf_counter() - began, time.process_time() - spent
    accuracy = test_accuracy(engine, prepared, case.lanes)
    learnt, expected = engine.state(), by_training_path(case, prepared)
    differing = sum(int((learnt[key] != expected[key]).sum()) for key in learnt)
    live = sum(int(live.sum()) for key, live in prepared.network.live.items() if key.endswith("weight"))
    return {"case": name, "accuracy": accuracy, "bound": case.bound, "cycles": cycles,
            "cycles_per_second": cycles / seconds, "cycles_per_cpu_second": cycles / spent, "differing": differing,
            "machine": f"{case.rows}×{case.lanes}", "epochs": case.epochs,
            "images": len(order(case, len(prepared.images), 0)), "live_weights": live,
            "words": sum(int(np.size(words)) for words in learnt.values())}


def merge() -> None:
    """One results file from all parts."""
    figures, bars, commands = [], [], []
    for name in CASES:
        part = RESULTS / f"learn_on_chip.{name}.json"
        if not part.exists():
            continue
        found = json.loads(part.read_text())
        commands.append(f"python benchmarks/learn_on_chip.py {name}")
        for key, unit, provenance in (
                ("accuracy", "%", Provenance.SIMULATED), ("cycles", "cycles", Provenance.SIMULATED),
                ("images", "images an epoch", Provenance.SIMULATED), ("epochs", "epochs", Provenance.SIMULATED),
                ("live_weights", "weights", Provenance.SIMULATED), ("words", "words compared", Provenance.SIMULATED),
                ("differing", "words", Provenance.SIMULATED),
                ("cycles_per_second", "cycles/s", Provenance.MEASURED),
                ("cycles_per_cpu_second", "cycles/s of processor time", Provenance.MEASURED)):
            figures.append(Figure(f"{name} on {found['machine']}: {key}", found[key], unit, provenance))
        bars += [Bar(f"{name}: test accuracy", found["accuracy"], ">=", found["bound"]),
                 Bar(f"{name}: words of the final state that differ from the training path", found["differing"], "==",
                     0)]
        if found["machine"] == "8×16":
            bars.append(Bar(f"{name}: simulated cycles per second of processor time", found["cycles_per_cpu_second"],
                            ">=", 300_000))
    write_results("learn_on_chip", seeds=[0], figures=figures, bars=bars, command="; ".join(commands))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    name = parser.parse_args().case
    write_json(RESULTS / f"learn_on_chip.{name}.json", learn(name))
    merge()


if __name__ == "__main__":
    main()
