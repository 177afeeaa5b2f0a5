"""How a network is trained as a pipeline: where it is cut, and what is done about stale weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from math import prod

from espalier.errors import DataError, UnsupportedError
from espalier.ir.cut import cut_points, split
from espalier.ir.graph import Graph
from espalier.ir.ops import BatchNorm
from espalier.ir.types import Value


class Scheme(Enum):
    """Which weights a batch meets."""

    SYNCHRONOUS = "synchronous"  #: those that training without a pipeline has; parts wait between batches
    STALE = "stale"              #: one copy, on the way back newer than on the way forward; nothing waits
    HYBRID = "hybrid"            #: stale first, synchronous from an epoch on
    COMPENSATED = "compensated"  #: stale, with spike compensation and linear weight prediction


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A network in parts that work on different batches at a time (Zhang and Abdelrahman, arXiv 1912.12675).

    Parameters
    ----------
    parts : int
        How many; where there are ``cuts``, one more than those.
    cuts : tuple of str
        The values that cross from one part to the next; none: chosen so that parts take equally long.
    scheme : Scheme
    switch : int or None
        The epoch (from 0) from which on a hybrid is synchronous.
    micro_batches : int
        Into how many a batch is divided where the scheme is synchronous, so that parts overlap.
    stretch : int
        Batches after which the pipeline runs empty, so that the run can be stopped and taken up again there.
    """

    parts: int = 2
    cuts: tuple[str, ...] = ()
    scheme: Scheme = Scheme.STALE
    switch: int | None = None
    micro_batches: int = 4
    stretch: int = 100

    def __post_init__(self) -> None:
        if self.parts < 1 or (self.cuts and len(self.cuts) != self.parts - 1):
            raise DataError(f"A pipeline of {self.parts} parts has at least 1 part and one cut fewer than parts, not "
                            f"{len(self.cuts)} cuts")
        if (self.switch is None) == (self.scheme is Scheme.HYBRID):
            raise DataError("A hybrid pipeline, and no other, is told by 'switch' the epoch from which on it is "
                            "synchronous")
        if self.switch is not None and self.switch < 0:
            raise DataError(f"A hybrid pipeline turns synchronous in an epoch counted from 0, not in {self.switch}")
        if self.micro_batches < 1 or self.stretch < 1:
            raise DataError(f"Micro-batches and the batches of a stretch are at least 1, not {self.micro_batches} and "
                            f"{self.stretch}")

    def stale(self, epoch: int) -> bool:
        """Whether weights are stale in an epoch."""
        match self.scheme:
            case Scheme.SYNCHRONOUS:
                return False
            case Scheme.STALE | Scheme.COMPENSATED:
                return True
            case Scheme.HYBRID:
                assert self.switch is not None, "a hybrid has one"
                return epoch < self.switch

    def with_cuts(self, cuts: Sequence[str]) -> Pipeline:
        """The same, cut there."""
        return replace(self, parts=len(cuts) + 1, cuts=tuple(cuts))

    def check(self, graph: Graph, *, folds: bool) -> None:
        """Raise UnsupportedError or GraphError unless the network has such parts; ``folds`` as in :func:`points`."""
        known, most = points(graph, folds=folds), len(candidates(graph, folds=folds)) + 1
        if not self.cuts and self.parts > most:
            raise UnsupportedError(f"Network {graph.name!r} is cut in 1..{most} parts, not {self.parts}")
        split(graph, self.cuts)
        for name in self.cuts:
            if name not in known:
                raise UnsupportedError(f"Network {graph.name!r} cannot be cut at {name!r}, beside a batch norm that "
                                       f"will be folded: it can at {', '.join(known)}")


def points(graph: Graph, *, folds: bool) -> list[str]:
    """Where a network can be cut, in order; ``folds``: its batch norms will be folded while it trains."""
    norms = {value for op in graph.ops if folds and isinstance(op, BatchNorm) for value in (op.x, op.out)}
    return [value.name for value in cut_points(graph) if value not in norms]


def candidates(graph: Graph, *, folds: bool) -> list[Value]:
    """Cut points with weights between any two: of those that no layer parts, the smallest, and of equal ones the last.

    ``folds`` as in :func:`points`.
    """
    known, seen = set(points(graph, folds=folds)), set[Value]()
    best: dict[int, Value] = {}
    for op in graph.ops:
        seen.update(value for value in op.inputs if value in graph.parameters)
        if op.out.name in known and (len(seen) not in best or prod(op.out.shape) <= prod(best[len(seen)].shape)):
            best[len(seen)] = op.out
    return list(best.values())
