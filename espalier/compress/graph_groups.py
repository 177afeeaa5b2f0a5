"""Which parameters of a graph share channels, residual connections included, and graphs of other widths.

Training has no torch module that a library such as Torch-Pruning could trace, only the graph, whose operations say by
their shapes how channels run through them; tests hold the groups against that library's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import gcd

from espalier.compress.growth import ChannelGroup, Member
from espalier.errors import UnsupportedError
from espalier.ir.graph import Graph
from espalier.ir.ops import BatchNorm, Conv2d, Linear, Op, Reshape
from espalier.ir.types import Value
from espalier.ir.verify import verify

Shape = tuple[int, ...]


def groups_of(graph: Graph, fixed: Collection[str] = ()) -> tuple[ChannelGroup, ...]:
    """The groups of channels of an inference graph that can be made more or fewer, in the order of its parameters.

    Those of the image and of the logits cannot, nor those that nothing makes but weights in ``fixed``. Scale, shift and
    running statistics of a batch norm go with the channels that it normalises.

    Raises UnsupportedError for a convolution in groups that is not depthwise, and for channels that an operation
    joins, cuts or reorders.
    """
    sets = _joined(graph)
    made: dict[str, list[Member]] = {}
    read: dict[str, list[Member]] = {}
    for layer in graph.layers():
        parts = (layer.w,) if layer.b is None else (layer.w, layer.b)
        root = sets.root(layer.out.name)
        made.setdefault(root, []).extend(_member(part, 0, sets.units[root], fixed) for part in parts)
        if not _is_depthwise(layer):
            source = sets.root(layer.x.name)
            read.setdefault(source, []).append(_member(layer.w, 1, sets.units[source], fixed))
    statistics = {value.name for value in graph.statistics()}
    for op in graph.ops:
        if isinstance(op, BatchNorm):
            root = sets.root(op.out.name)
            made.setdefault(root, []).extend(_member(value, 0, sets.units[root], {*fixed, *statistics})
                                             for value in op.inputs[1:])
    ends = {sets.root(value.name) for value in (*graph.inputs, *graph.outputs)}
    order = {value.name: number for number, value in enumerate(graph.parameters)}
    found = (ChannelGroup(_sorted(members), _sorted(read[root])) for root, members in made.items()
             if root in read and root not in ends and not all(member.fixed for member in members))
    return tuple(sorted(found, key=lambda group: min(order[member.name] for member in group.made)))


def resized(graph: Graph, shapes: Mapping[str, Shape]) -> Graph:
    """The inference graph with parameters of other ``shapes``, formats and names kept, verified."""
    new = {value.name: _shaped(value, shapes.get(value.name, value.shape)) for value in graph.values()}
    ops: list[Op] = []
    for op in graph.ops:
        ops.append(_resized(op, new))
        new[op.out.name] = ops[-1].out
    return verify(Graph(graph.name, graph.inputs, tuple(new[value.name] for value in graph.parameters), tuple(ops),
                        tuple(new[value.name] for value in graph.outputs)))


@dataclass(slots=True)
class _Sets:
    """Sets of values that share units, and the number of units of each set (by its root)."""

    parent: dict[str, str] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)

    def root(self, name: str) -> str:
        while self.parent[name] != name:
            name = self.parent[name]
        return name

    def add(self, value: Value) -> None:
        self.parent[value.name] = value.name
        self.units[value.name] = value.shape[0]

    def join(self, a: Value, b: Value) -> None:
        """A unit is so many consecutive positions of each value that all have equally many units."""
        one, other = self.root(a.name), self.root(b.name)
        self.parent[other] = one
        self.units[one] = gcd(self.units[one], self.units[other])


def _joined(graph: Graph) -> _Sets:
    sets = _Sets()
    for value in (*graph.inputs, *(op.out for op in graph.ops)):
        sets.add(value)
    for op in graph.ops:
        for value in _handed_on(op):
            sets.join(value, op.out)
    return sets


def _handed_on(op: Op) -> Iterator[Value]:
    """The inputs whose channels the result has, in their order. Raises UnsupportedError."""
    match op:
        case Linear():
            return
        case Conv2d() if _is_depthwise(op):
            yield op.x
        case Conv2d(groups=1):
            return
        case Reshape(x=x) | BatchNorm(x=x):
            yield x
        case _ if all(value.shape[:1] == op.out.shape[:1] for value in op.inputs):
            yield from op.inputs
        case _:
            raise UnsupportedError(f"Channels are traced through layers in one group or depthwise, and operations that "
                                   f"keep their number and order, and {type(op).__name__} {op.out.name!r} is none: "
                                   f"leave this network's widths as they are")


def _is_depthwise(layer: Conv2d | Linear) -> bool:
    return isinstance(layer, Conv2d) and 1 < layer.groups == layer.x.shape[0] == layer.out.shape[0]


def _member(value: Value, axis: int, units: int, fixed: Collection[str]) -> Member:
    return Member(value.name, axis, value.shape[axis] // units, value.name in fixed)


def _sorted(members: list[Member]) -> tuple[Member, ...]:
    return tuple(sorted(dict.fromkeys(members), key=lambda member: member.name))


def _shaped(value: Value, shape: Shape) -> Value:
    return replace(value, type=replace(value.type, shape=shape))


def _resized(op: Op, new: Mapping[str, Value]) -> Op:
    """The operation on the ``new`` inputs, its result as wide as they make it."""
    match op:
        case Conv2d(w=w) | Linear(w=w):
            width = new[w.name].shape[0]
        case _:
            first = op.inputs[0]
            width = op.out.shape[0] * new[first.name].shape[0] // first.shape[0]
    if isinstance(op, Conv2d) and _is_depthwise(op):
        op = replace(op, groups=width)
    before, out = op.out, _shaped(op.out, (width, *op.out.shape[1:]))
    return op.map_values(lambda value: out if value == before else new[value.name])
