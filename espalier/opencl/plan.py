"""Which kernels a network needs: each operation, and those that it takes along."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from espalier.errors import UnsupportedError
from espalier.ir.graph import Graph
from espalier.ir.ops import (
    Add,
    AveragePool,
    ClippedRelu,
    Concat,
    Conv2d,
    GlobalAveragePool,
    Linear,
    MaxPool,
    Op,
    Relu,
    Reshape,
)
from espalier.ir.types import MapShape, Value

Source = Conv2d | Linear | MaxPool | AveragePool | GlobalAveragePool | Reshape | Concat | Value
Follower = Relu | ClippedRelu | Add


@dataclass(frozen=True, slots=True)
class Work:
    """What one kernel does: an operation (or a value read as it is), then others on each element of its result.

    ``followers`` read the result of the one before, and of an Add the other value besides.
    """

    op: Source
    followers: tuple[Follower, ...] = ()

    @property
    def first(self) -> Value:
        """What the first follower reads."""
        return self.op if isinstance(self.op, Value) else self.op.out

    @property
    def out(self) -> Value:
        return self.followers[-1].out if self.followers else self.first

    def others(self) -> tuple[Value, ...]:
        """What the sums among the followers add."""
        found, value = [], self.first
        for op in self.followers:
            if isinstance(op, Add):
                found.append(op.b if op.a == value else op.a)
            value = op.out
        return tuple(found)


def map_shape(value: Value) -> MapShape:
    """The shape of an activation as a map: a vector (C,) is (C, 1, 1); other numbers of axes are made three."""
    channels, *pixels = value.shape or (1,)
    height = pixels.pop(0) if len(pixels) > 1 else 1
    return channels, height, prod(pixels)


def plan(graph: Graph, *, fusion: bool) -> tuple[Work, ...]:
    """The kernels of an inference graph, in an order in which they can run.

    rewrite (fusion):
        y = conv2d(x, w, b); z = add(y, r); u = relu(z)   ->   one kernel, if nothing else reads y and z

    Raises UnsupportedError for operations of training and for batch norms that were not folded.
    """
    taken: set[Op] = set()
    found: dict[Op, Work] = {}  # by the last operation, at whose place in the order all that is read is there
    for op in graph.ops:
        if op in taken or _is_view(graph, op):
            continue
        work = _work(op)
        for follower in _followers(graph, op, taken) if fusion else ():
            work = Work(work.op, (*work.followers, follower))
            taken.add(follower)
        found[work.followers[-1] if work.followers else op] = work
    return tuple(found[op] for op in graph.ops if op in found)


def _work(op: Op) -> Work:
    match op:
        case Conv2d() | Linear() | MaxPool() | AveragePool() | GlobalAveragePool() | Reshape() | Concat():
            return Work(op)
        case Relu(x=x) | ClippedRelu(x=x) | Add(a=x):
            return Work(x, (op,))
        case _:
            raise UnsupportedError(f"There is no OpenCL kernel for {type(op).__name__} ({op.out}): kernels are for "
                                   f"inference, and batch norms are folded before")


def _followers(graph: Graph, op: Op, taken: set[Op]) -> Iterator[Follower]:
    """What can be done to each element of the result of ``op`` before it is written."""
    value = op.out
    while value not in graph.outputs:
        match graph.users(value):
            case [Relu() | ClippedRelu() | Add() as user] if user not in taken:
                if isinstance(user, Add) and user.a == user.b:
                    return
                yield user
                value = user.out
            case _:
                return


def _is_view(graph: Graph, op: Op) -> bool:
    """Whether ``op`` only says that a map is a vector, to layers alone, which read the map itself."""
    return (isinstance(op, Reshape) and len(op.out.shape) == 1 and op.x.format == op.out.format
            and op.out not in graph.outputs and all(isinstance(user, Linear) for user in graph.users(op.out)))


def viewed(graph: Graph, value: Value) -> Value:
    """The map that a layer reads where the graph has a vector made of it."""
    op = graph.producer(value)
    return viewed(graph, op.x) if isinstance(op, Reshape) and _is_view(graph, op) else value
