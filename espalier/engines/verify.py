"""Two engines on one training step: every tensor that both know, compared bit for bit.

A mismatch is told by the first tensor, in order of execution, that differs; a bundle on disk reruns it:

    python -m espalier.engines.verify BUNDLE
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from espalier.engines.base import Engine, Network, State
from espalier.engines.bundle import read_bundle, write_bundle
from espalier.engines.interpreter import InterpreterEngine
from espalier.engines.rtl import RtlEngine
from espalier.errors import EspalierError, MismatchError
from espalier.ir.differentiate import LOSS_FORMAT, gradient_name, next_name
from espalier.ir.graph import Graph
from espalier.ir.ops import LossOp, MaxPool
from espalier.ir.types import INDEX, Format
from espalier.numerics.fixed import Fixed
from espalier.numerics.update import master_format

Tensors = Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """One word on which two engines do not agree.

    Members
    -------
    tensor : str
        Name of the tensor, as in :meth:`espalier.engines.base.Engine.traced_step`.
    index : tuple of int
        Batch axis first where there is one; empty for a scalar.
    reference, candidate : int or float
        The words, or scalars.
    reference_format, candidate_format : Format
        What the graph says that the word means, and what the Program says.
    """

    tensor: str
    index: tuple[int, ...]
    reference: int | float
    candidate: int | float
    reference_format: Format
    candidate_format: Format

    def __str__(self) -> str:
        place = f"{self.tensor}[{', '.join(map(str, self.index))}]" if self.index else self.tensor
        return (f"{place} is {_told(self.reference, self.reference_format)} by the reference and "
                f"{_told(self.candidate, self.candidate_format)} by the candidate")


def _told(word: int | float, format_: Format) -> str:
    if not isinstance(format_, Fixed):
        return f"{word} ({format_})"
    return f"{word} ({float(format_.values(word)):g} in {format_})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What a comparison of two engines found.

    Members
    -------
    compared : tuple of str
        Names of the tensors that both engines know, in order of execution.
    one_sided : tuple of str
        Names that only one engine knows, so that nothing is said about them. A machine that rectifies
        and pools in its drain never stores what stands between.
    words, differing_words : int
    first : Mismatch or None
    """

    compared: tuple[str, ...]
    one_sided: tuple[str, ...]
    words: int
    differing_words: int
    first: Mismatch | None

    @property
    def agrees(self) -> bool:
        """Whether something was compared and all of it was equal."""
        return self.words > 0 and self.differing_words == 0

    def check(self) -> Verification:
        """This verification, if the engines agree. Raises MismatchError naming the first word that differs."""
        if self.words == 0:
            raise MismatchError("Nothing was compared: the two engines know no tensor in common")
        if self.first is not None:
            raise MismatchError(f"{self.differing_words} of {self.words} words differ; in order of execution the first "
                                f"is {self.first}")
        return self

    def __str__(self) -> str:
        return (f"{self.words - self.differing_words} of {self.words} words in {len(self.compared)} tensors are equal"
                + (f"; the first that differs is {self.first}" if self.first else ""))


def verify_step(network: Network, state: State, images: NDArray[np.int64], labels: NDArray[np.int64], *,
                reference: Engine, candidate: Engine, bundle: Path | None = None) -> Verification:
    """Load ``state`` into both engines, run one traced step on each, and compare.

    ``images`` (N, C, H, W) are words of the image format. Where the engines differ, and a
    ``bundle`` folder is named, what is needed to run the step again is written there.
    """
    reference.load(state)
    candidate.load(state)
    found = compare(network, reference.traced_step(images, labels), candidate.traced_step(images, labels))
    if bundle is not None and not found.agrees:
        write_bundle(bundle, network, state, images, labels)
    return found


def compare(network: Network, reference: Tensors, candidate: Tensors) -> Verification:
    """Compare two traces of one step of ``network``: every tensor that both hold, with ``np.array_equal``."""
    compared: list[str] = []
    words = differing = 0
    first: Mismatch | None = None
    for name in execution_order(network.graph):
        if name not in reference or name not in candidate:
            continue
        ours, theirs = np.asarray(reference[name]), np.asarray(candidate[name])
        assert ours.shape == theirs.shape, f"{name} has shape {ours.shape} in one trace and {theirs.shape} in the other"
        compared.append(name)
        words += ours.size
        if not np.array_equal(ours, theirs):
            differing += int((ours != theirs).sum())
            first = first or _first_mismatch(network, name, ours, theirs)
    return Verification(compared=tuple(compared), one_sided=tuple(sorted(set(reference) ^ set(candidate))),
                        words=words, differing_words=differing, first=first)


def _first_mismatch(network: Network, name: str, reference: NDArray[np.int64],
                    candidate: NDArray[np.int64]) -> Mismatch:
    index = tuple(int(axis) for axis in np.argwhere(np.atleast_1d(reference != candidate))[0][: reference.ndim])
    meant = graph_format(network, name)
    return Mismatch(tensor=name, index=index, reference=reference[index].item(), candidate=candidate[index].item(),
                    reference_format=meant, candidate_format=program_format(network, name) or meant)


def execution_order(graph: Graph) -> Iterator[str]:
    """Names of all that a step makes, in the order in which it makes them.

    A parameter's momentum, master and weight come right after its gradient, as on the machine, and a running statistic
    where the next one is made.
    """
    statistic_of = {next_name(value.name): value.name for value in graph.statistics()}
    parameter_of = {gradient_name(parameter.name): parameter.name for parameter in graph.parameters}
    for value in graph.inputs:
        yield value.name
    for op in graph.ops:
        yield op.out.name
        if isinstance(op, MaxPool):
            yield f"{op.out.name}.code"
        if isinstance(op, LossOp):
            yield "correct"
        if op.out.name in parameter_of:
            name = parameter_of[op.out.name]
            yield from (f"{name}.momentum", f"{name}.master", name)
        if op.out.name in statistic_of:
            yield statistic_of[op.out.name]


def graph_format(network: Network, name: str) -> Format:
    """What the graph and the update rules say that a word of the tensor ``name`` means."""
    for parameter in network.graph.parameters:
        if name in (f"{parameter.name}.master", f"{parameter.name}.momentum"):
            return master_format(parameter.format) if isinstance(parameter.format, Fixed) else parameter.format
    if name == "loss":
        return LOSS_FORMAT
    if name == "correct" or name.endswith(".code"):
        return INDEX
    return network.graph.value(name).format


def program_format(network: Network, name: str) -> Format | None:
    """What the Program says that a stored word of ``name`` means; None where it does not say."""
    stored = {placement.value: placement.format for placement in network.program.placements}
    return stored.get(name) or network.program.weight_formats.get(name)


def rerun(folder: Path, reference: Callable[[Network], Engine] = InterpreterEngine,
          candidate: Callable[[Network], Engine] = RtlEngine) -> Verification:
    """Recompile and run a bundle again, and compare. Raises DataError where the folder is not a bundle."""
    bundle = read_bundle(folder)
    return verify_step(bundle.network, bundle.state, bundle.images, bundle.labels,
                       reference=reference(bundle.network), candidate=candidate(bundle.network))


def main(arguments: list[str]) -> int:
    """Rerun the bundle named on the command line: exit status 0 only if the engines agree."""
    if len(arguments) != 1:
        print("usage: python -m espalier.engines.verify BUNDLE", file=sys.stderr)
        return 2
    try:
        print(rerun(Path(arguments[0])).check())
    except EspalierError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
