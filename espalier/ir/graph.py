"""The graph: a frozen list of operations in an order in which they can run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from espalier.errors import GraphError
from espalier.ir.ops import BatchNorm, Conv2d, Linear, Op, RunningMean, RunningVariance
from espalier.ir.types import Format, TensorType, Value


@dataclass(frozen=True, slots=True)
class Graph:
    """A network, or a training step of one.

    Parameters
    ----------
    name : str
    inputs : tuple of Value
        The image first; a training graph has the labels second.
    parameters : tuple of Value
        Weights and biases, in the order of the layers; of a batch norm scale, shift and running statistics.
    ops : tuple of Op
        Each reads only inputs, parameters and results of earlier operations.
    outputs : tuple of Value
        Of an inference graph: the logits. Of a training graph: loss, logits, then for each parameter in
        order its gradient, or what follows it where it is a running statistic.
    """

    name: str
    inputs: tuple[Value, ...]
    parameters: tuple[Value, ...]
    ops: tuple[Op, ...]
    outputs: tuple[Value, ...]

    def value(self, name: str) -> Value:
        """The value of that name. Raises GraphError if there is none."""
        for value in self.values():
            if value.name == name:
                return value
        raise GraphError(f"Graph {self.name!r} has no value named {name!r}")

    def values(self) -> tuple[Value, ...]:
        """Inputs, parameters and the result of every operation, in order."""
        return (*self.inputs, *self.parameters, *(op.out for op in self.ops))

    def producer(self, value: Value) -> Op | None:
        """The operation that computes ``value``; None for inputs and parameters."""
        return next((op for op in self.ops if op.out == value), None)

    def users(self, value: Value) -> tuple[Op, ...]:
        """The operations that read ``value``, in order."""
        return tuple(op for op in self.ops if value in op.inputs)

    def layers(self) -> tuple[Conv2d | Linear, ...]:
        """The operations that own weights, in order."""
        return tuple(op for op in self.ops if isinstance(op, Conv2d | Linear))

    def statistics(self) -> tuple[Value, ...]:
        """The parameters that are running statistics of batch norms, in order: they follow the batches."""
        found = {value for op in self.ops for value in _statistics(op)}
        return tuple(value for value in self.parameters if value in found)

    def learned(self) -> tuple[Value, ...]:
        """The parameters that are not: gradients move them."""
        statistics = set(self.statistics())
        return tuple(value for value in self.parameters if value not in statistics)

    def map_values(self, change: Callable[[Value], Value]) -> Graph:
        """This graph with ``change`` applied to every value, consistently."""
        return Graph(self.name, tuple(map(change, self.inputs)), tuple(map(change, self.parameters)),
                     tuple(op.map_values(change) for op in self.ops), tuple(map(change, self.outputs)))

    def with_formats(self, formats: dict[str, Format]) -> Graph:
        """This graph with the format of each named value replaced. Raises GraphError for unknown names."""
        unknown = sorted(set(formats) - {value.name for value in self.values()})
        if unknown:
            raise GraphError(f"Graph {self.name!r} has no value named {unknown[0]!r}")
        return self.map_values(
            lambda value: Value(value.name, TensorType(value.shape, formats.get(value.name, value.format))))


def _statistics(op: Op) -> tuple[Value, ...]:
    match op:
        case BatchNorm(mean=mean, variance=variance):
            return mean, variance
        case RunningMean(running=running) | RunningVariance(running=running):
            return (running,)
        case _:
            return ()
