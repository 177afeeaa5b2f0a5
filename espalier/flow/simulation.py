"""Simulate: training steps and inference of the RTL, its cycles, and its agreement with the definition."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.arch.memory import MemoryTiming
from espalier.data import Dataset, Split, load
from espalier.engines.base import Engine, Totals
from espalier.engines.bundle import MACHINE
from espalier.engines.interpreter import InterpreterEngine
from espalier.engines.rtl import RtlEngine
from espalier.errors import DataError, FitError, MismatchError, ToolError
from espalier.flow.cycles import cycle_record, dense_engine, step_cycles
from espalier.flow.design import Design, load_design
from espalier.flow.directory import remove_whole, require_replaceable
from espalier.flow.network import image_words, training_order
from espalier.flow.steps import Steps
from espalier.flow.verification import BUNDLE, ENGINES, compare_steps
from espalier.numerics.loss import LOSS_FRAC
from espalier.records import Figure, Provenance, write_json
from espalier.report.cycles import Cycles
from espalier.report.model import TensorCheck, Verification
from espalier.report.serial import encode

SIMULATE = "simulate.json"
CHUNK_STEPS = 64  #: steps between two looks at the clock


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateRequest:
    """What to simulate.

    Parameters
    ----------
    data : str or None
        None is the data that the network was trained on.
    data_root : Path or None
    steps : int
        Training steps of the build's batch; ``epochs`` above 0 adds as many epochs.
    epochs : int
    traced : int
        Of these, the first ones in which every tensor is compared (none where a batch is several groups).
    test_images : int
        Images of the test set that are recognised before and after, at most; whole groups of lanes.
    dense : bool
        Count the cycles of the dense network, too, or record why its machine cannot be built.
    seed : int
        Of the order of the images.
    save : Path or None
        Write the state after training as a checkpoint.
    memory : MemoryTiming
        Of external memory, where the machine has a port to it.
    """

    data: str | None = None
    data_root: Path | None = None
    steps: int = 4
    epochs: int = 0
    traced: int = 1
    test_images: int = 1000
    dense: bool = True
    seed: int = 0
    save: Path | None = None
    memory: MemoryTiming = MemoryTiming()

    def __post_init__(self) -> None:
        for name in ("steps", "epochs", "traced", "test_images", "seed"):
            if getattr(self, name) < 0:
                raise DataError(f"{name} of a simulation must be at least 0, not {getattr(self, name)}")
        if self.steps + self.epochs < 1:
            raise DataError("A simulation must train for at least one step or epoch")


def simulate(folder: Path, request: SimulateRequest, steps: Steps | None = None) -> dict[str, Any]:
    """Train a build in RTL simulation and write ``simulate.json`` into it; returns that content.

    Raises MismatchError if the RTL and the definition differ in a tensor of the first steps, in a total,
    or in a word of the state after the last step. Where they agree, what an earlier mismatch left goes.
    """
    steps = steps or Steps()
    with steps.step("read build"):
        design = load_design(folder)
        require_replaceable(folder / BUNDLE, MACHINE)
        split = load(request.data or design.checkpoint.config.data, request.data_root)
        order = _order(design, split.train, request)
    with steps.step("build simulator"):
        network = design.network()
        timing = request.memory if design.machine.port_bits else None
        rtl, reference = RtlEngine(network, timing=timing), InterpreterEngine(network)
        dense, dense_missing = _dense(design, timing) if request.dense else (None, "")
    run = _Run(design, split, order, rtl, reference, request, steps)
    checks = run.train(folder)
    with steps.step("count cycles"):
        cycles = run.cycles(dense, dense_missing)
    content = run.record(checks, cycles)
    write_json(folder / SIMULATE, content)
    steps.wrote(folder / SIMULATE)
    remove_whole(folder / BUNDLE, MACHINE)
    if request.save is not None:
        replace(design.checkpoint, state={**design.checkpoint.state, **run.final}).save(request.save)
        steps.wrote(request.save)
    rtl.close()
    return content


def _dense(design: Design, timing: MemoryTiming | None) -> tuple[RtlEngine | None, str]:
    """An engine for the dense network, or why there is none."""
    try:
        return dense_engine(design, timing), ""
    except (FitError, ToolError) as error:
        return None, str(error)


def _order(design: Design, dataset: Dataset, request: SimulateRequest) -> NDArray[np.int64]:
    per_epoch = len(dataset) // design.batch
    return training_order(dataset, design.batch, request.seed, request.steps + request.epochs * per_epoch)


class _Run:
    """A simulation under way: both engines, side by side."""

    def __init__(self, design: Design, split: Split, order: NDArray[np.int64], rtl: RtlEngine,
                 reference: InterpreterEngine, request: SimulateRequest, steps: Steps) -> None:
        self.design, self.split, self.order, self.request, self.steps = design, split, order, request, steps
        self.rtl, self.reference = rtl, reference
        self.traced = min(request.traced, len(order)) if design.batch == design.machine.images else 0
        self.tests: list[Totals] = []
        self.test_images = min(request.test_images, len(split.test)) // design.machine.images * design.machine.images
        self.totals = Totals(loss=0, correct=0)
        self.final: dict[str, NDArray[np.int64]] = {}
        self.speed = 0.0

    def words(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Images and labels of training examples."""
        return image_words(self.design.graph, self.split.train, index), self.split.train.labels[index]

    def train(self, folder: Path) -> list[Verification]:
        """All steps on both engines; what was compared. Raises MismatchError."""
        for engine in (self.rtl, self.reference):
            engine.load(self.design.state)
        self._test("recognise before")
        checks: list[Verification] = []
        with self.steps.step("compare every tensor"):
            if self.traced:
                record, _ = compare_steps(self.rtl.network, self.reference, self.rtl,
                                          [self.words(index) for index in self.order[: self.traced]], folder / BUNDLE)
                checks.append(record)
                _refuse(record)
        with self.steps.step("train in RTL simulation"):
            self.totals = self._train(self.rtl)
        with self.steps.step("train by the interpreter"):
            theirs = self._train(self.reference)
        self.final = self.rtl.state()
        checks.append(self._compare(theirs))
        self._test("recognise after")
        return checks

    def _train(self, engine: Engine) -> Totals:
        """The steps that are not traced."""
        loss = correct = 0
        begun, cycles = time.perf_counter(), self.rtl.simulation.cycles
        for start in range(self.traced, len(self.order), CHUNK_STEPS):
            index = self.order[start: start + CHUNK_STEPS].reshape(-1)
            found = engine.train(*self.words(index), self.design.batch)
            loss, correct = loss + found.loss, correct + found.correct
        if engine is self.rtl:
            self.speed = (self.rtl.simulation.cycles - cycles) / (time.perf_counter() - begun)
        return Totals(loss=loss, correct=correct)

    def _compare(self, theirs: Totals) -> Verification:
        """Totals and the final state of both. Raises MismatchError."""
        state = self.reference.state()
        pairs = [("loss", np.array(theirs.loss), np.array(self.totals.loss)),
                 ("correct", np.array(theirs.correct), np.array(self.totals.correct)),
                 *((name, state[name], words) for name, words in self.final.items())]
        tensors = tuple(TensorCheck(name=name, words=np.size(ours), differing=int((ours != found).sum()))
                        for name, ours, found in pairs)
        wrong = next((check for check in tensors if check.differing), None)
        sentence = "" if wrong is None else (
            f"After {len(self.order)} steps {wrong.differing} of {wrong.words} words of {wrong.name!r} differ between "
            f"RTL and interpreter: `espalier verify --steps {len(self.order)}` finds the first")
        record = Verification(engines=ENGINES, steps=len(self.order), tensors=tensors, mismatch=sentence)
        _refuse(record)
        return record

    def _test(self, name: str) -> None:
        """Recognise the test images, on both engines."""
        if not self.test_images:
            return
        with self.steps.step(name):
            index = np.arange(self.test_images)
            words, labels = image_words(self.design.graph, self.split.test, index), self.split.test.labels[index]
            found, wanted = (engine.infer(words, labels) for engine in (self.rtl, self.reference))
        if found != wanted:
            raise MismatchError(f"On {self.test_images} test images the RTL finds {found.correct} right with loss "
                                f"{found.loss}, and the interpreter {wanted.correct} with loss {wanted.loss}")
        self.tests.append(found)

    def cycles(self, dense: RtlEngine | None, dense_missing: str) -> Cycles:
        """One more step on the RTL, counted; and one of the dense network, where there is an engine for it."""
        images, labels = self.words(self.order[0])
        counted = step_cycles(self.rtl, images, labels)
        if dense is None:
            return cycle_record(self.design, counted, None, dense_missing)
        found = step_cycles(dense, images, labels)
        dense.close()
        return cycle_record(self.design, counted, found)

    def record(self, checks: list[Verification], cycles: Cycles) -> dict[str, Any]:
        """The content of ``simulate.json``."""
        images = (len(self.order) - self.traced) * self.design.batch
        figures: list[Figure] = []
        if images:
            figures += [Figure("Simulated cycles per second", round(self.speed), "cycles/s", Provenance.MEASURED),
                        Figure("Mean loss of simulated training", self.totals.loss * 2.0 ** -LOSS_FRAC / images, "",
                               Provenance.SIMULATED),
                        Figure("Accuracy during simulated training", self.totals.correct / images, "",
                               Provenance.SIMULATED)]
        names = ("Test accuracy before simulated training", "Test accuracy after simulated training")
        figures += [Figure(name, found.correct / self.test_images, "", Provenance.SIMULATED)
                    for name, found in zip(names, self.tests, strict=False)]
        return {"data": self.split.train.name, "seed": self.request.seed, "steps": len(self.order),
                "batch": self.design.batch, "traced_steps": self.traced, "test_images": self.test_images,
                "verifications": [check.to_json() for check in checks], "cycles": encode(cycles),
                "figures": [figure.to_json() for figure in figures]}


def _refuse(record: Verification) -> None:
    if not record.passed:
        raise MismatchError(record.mismatch or "Nothing was compared")
