"""Where a network can be cut in parts that follow one another, and the parts.

A cut is a value: what computes it, and everything before, is on one side, all that reads it on the other. It is legal
where no other value crosses, so that a shortcut of a residual block is never parted from its block.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from espalier.errors import GraphError
from espalier.ir.graph import Graph
from espalier.ir.ops import Op
from espalier.ir.types import Value


def cut_points(graph: Graph) -> tuple[Value, ...]:
    """The values of an inference graph at which it can be cut in two, in order: both parts have parameters."""
    points, crossing, seen = [], set(graph.inputs), set[Value]()
    readers = {value: set(graph.users(value)) for value in graph.values()}
    last = max((index for index, op in enumerate(graph.ops) if _parameters(graph, [op])), default=0)
    for index, op in enumerate(graph.ops[:last]):
        seen.update(_parameters(graph, [op]))
        crossing.add(op.out)
        done = set(graph.ops[: index + 1])
        crossing = {value for value in crossing if not readers[value] <= done}
        if seen and crossing == {op.out}:
            points.append(op.out)
    return tuple(points)


def split(graph: Graph, cuts: Sequence[str]) -> tuple[Graph, ...]:
    """The parts of an inference graph between ``cuts``, names of values, in order: each reads the one before.

    Raises
    ------
    GraphError
        A cut is no cut point, two are the same, or nothing in a part has weights.
    """
    points = {value.name: value for value in cut_points(graph)}
    for name in cuts:
        if name not in points:
            known = ", ".join(points) or "none"
            raise GraphError(f"Network {graph.name!r} cannot be cut at {name!r}: values that cross alone from some "
                             f"layers to the next are {known}")
    if len(set(cuts)) < len(cuts):
        raise GraphError(f"Each cut is named once, not as {', '.join(cuts)}")
    produced = [op.out.name for op in graph.ops]
    ends = sorted(produced.index(name) + 1 for name in cuts)
    parts = []
    for number, (first, last) in enumerate(pairwise((0, *ends, len(graph.ops)))):
        ops = graph.ops[first:last]
        inputs = (graph.ops[first - 1].out,) if first else graph.inputs
        outputs = (ops[-1].out,) if last < len(graph.ops) else graph.outputs
        parts.append(Graph(f"{graph.name}.{number}", inputs, _parameters(graph, ops), ops, outputs))
        if not parts[-1].parameters:
            raise GraphError(f"Each part of a network has weights, and the one of {graph.name!r} that ends in "
                             f"{outputs[0].name!r} has none: leave that cut out")
    return tuple(parts)


def _parameters(graph: Graph, ops: Sequence[Op]) -> tuple[Value, ...]:
    read = {value for op in ops for value in op.inputs}
    return tuple(value for value in graph.parameters if value in read)
