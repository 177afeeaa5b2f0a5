"""Verify: every tensor of training steps, the RTL against the definition."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from espalier.data import load
from espalier.engines.base import Network
from espalier.engines.bundle import MACHINE, write_bundle
from espalier.engines.interpreter import InterpreterEngine
from espalier.engines.rtl import RtlEngine
from espalier.engines.verify import Verification, compare
from espalier.errors import DataError, MismatchError
from espalier.flow.design import load_design
from espalier.flow.directory import remove_whole, require_replaceable, whole_directory
from espalier.flow.network import image_words, training_order
from espalier.flow.steps import Steps
from espalier.records import write_json
from espalier.report.model import TensorCheck
from espalier.report.model import Verification as VerificationRecord

VERIFY, BUNDLE = "verify.json", "mismatch"
ENGINES = ("RTL simulation", "interpreter")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyRequest:
    """What to compare: ``steps`` training steps of one group of lanes, on ``data`` (None: the recipe's)."""

    data: str | None = None
    data_root: Path | None = None
    steps: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.seed < 0:
            raise DataError(f"Steps must be at least 1 and the seed at least 0, not {self.steps} and {self.seed}")


def verify(folder: Path, request: VerifyRequest, steps: Steps | None = None) -> VerificationRecord:
    """Compare the RTL of a build with the definition, bit for bit, and write ``verify.json`` into it.

    Raises MismatchError if they differ; ``verify.json`` then tells the first difference, and
    ``mismatch/`` holds what reruns it. Where they agree, what an earlier mismatch left there goes.
    """
    steps = steps or Steps()
    with steps.step("read build"):
        design = load_design(folder)
        require_replaceable(folder / BUNDLE, MACHINE)
        network = design.network()
        split = load(request.data or design.checkpoint.config.data, request.data_root)
        order = training_order(split.train, design.machine.images, request.seed, request.steps)
        batches = [(image_words(design.graph, split.train, index), split.train.labels[index]) for index in order]
    with steps.step("build simulator"):
        candidate = RtlEngine(network)
    reference = InterpreterEngine(network)
    for engine in (reference, candidate):
        engine.load(design.state)
    with steps.step("compare"):
        record, failure = compare_steps(network, reference, candidate, batches, folder / BUNDLE)
    candidate.close()
    write_json(folder / VERIFY, record.to_json())
    steps.wrote(folder / VERIFY)
    if failure is not None:
        steps.wrote(folder / BUNDLE)
        raise MismatchError(f"{record.mismatch} (rerun it with: python -m espalier.engines.verify {folder / BUNDLE})")
    remove_whole(folder / BUNDLE, MACHINE)
    return record


def compare_steps(network: Network, reference: InterpreterEngine, candidate: RtlEngine,
                  batches: list[tuple[NDArray[np.int64], NDArray[np.int64]]], bundle: Path
                  ) -> tuple[VerificationRecord, Verification | None]:
    """Run traced steps on both until they differ; the record, and the comparison that failed if one did."""
    totals: dict[str, TensorCheck] = {}
    for number, (images, labels) in enumerate(batches, start=1):
        before = reference.state()
        ours, theirs = reference.traced_step(images, labels), candidate.traced_step(images, labels)
        found = compare(network, ours, theirs)
        for name in found.compared:
            words, differing = np.size(ours[name]), int((np.asarray(ours[name]) != np.asarray(theirs[name])).sum())
            seen = totals.get(name)
            totals[name] = TensorCheck(name=name, words=words + (seen.words if seen else 0),
                                       differing=differing + (seen.differing if seen else 0))
        if not found.agrees:
            with whole_directory(bundle, MACHINE) as work:
                write_bundle(work, network, before, images, labels)
            return _record(number, totals, _sentence(found)), found
    return _record(len(batches), totals, ""), None


def _record(steps: int, totals: dict[str, TensorCheck], mismatch: str) -> VerificationRecord:
    return VerificationRecord(engines=ENGINES, steps=steps, tensors=tuple(totals.values()), mismatch=mismatch)


def _sentence(found: Verification) -> str:
    try:
        found.check()
    except MismatchError as error:
        return str(error)
    return ""
