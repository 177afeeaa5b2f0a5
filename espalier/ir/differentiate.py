"""Add the backward pass and the weight gradients to a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import assert_never

from espalier.errors import GraphError
from espalier.ir.graph import Graph
from espalier.ir.ops import (
    Add,
    AveragePool,
    AveragePoolGrad,
    BatchMean,
    BatchNorm,
    BatchNormInputGrad,
    BatchNormScaleGrad,
    BatchVariance,
    BiasGrad,
    ClippedRelu,
    ClippedReluGrad,
    Concat,
    ConcatGrad,
    Conv2d,
    Conv2dInputGrad,
    Conv2dWeightGrad,
    FrozenBatchNormInputGrad,
    GlobalAveragePool,
    GlobalAveragePoolGrad,
    Linear,
    LinearInputGrad,
    LinearWeightGrad,
    LossGradOp,
    LossOp,
    MaxPool,
    MaxPoolGrad,
    Op,
    Relu,
    ReluGrad,
    Reshape,
    RunningMean,
    RunningVariance,
    SoftmaxCrossEntropy,
    SoftmaxCrossEntropyGrad,
    SquareHinge,
    SquareHingeGrad,
)
from espalier.ir.types import FLOAT, INDEX, Fixed, Format, TensorType, Value
from espalier.numerics.loss import LOSS_FRAC

LOSS_FORMAT = Fixed.of(48, LOSS_FRAC)
LOSSES: dict[str, tuple[type[LossOp], type[LossGradOp]]] = {
    "softmax_cross_entropy": (SoftmaxCrossEntropy, SoftmaxCrossEntropyGrad),
    "square_hinge": (SquareHinge, SquareHingeGrad)}


def gradient_name(name: str) -> str:
    """The name of the gradient of the value ``name``."""
    return f"{name}.grad"


def next_name(name: str) -> str:
    """The name of what the running statistic ``name`` is after the step."""
    return f"{name}.next"


def slope_name(name: str) -> str:
    """The name under which formats have that of the slope in the gradient through the batch norm ``name``."""
    return f"{name}.slope"


def differentiate(graph: Graph, loss: str = "softmax_cross_entropy", formats: Mapping[str, Format] | None = None,
                  frozen: Collection[str] = ()) -> Graph:
    """Turn an inference graph into one training step: loss, backward pass and weight gradients.

    rewrite:
        y = op(x, w)   ->   y = op(x, w); ...; x.grad = op_input_grad(y.grad, w); w.grad = op_weight_grad(x, y.grad)

    A value read by several operations gets the sum of their gradients, added in order of the
    operations from last to first; the parts are named ``x.grad.0``, ``x.grad.1``... No gradient is
    made for the image. For each layer the input gradient comes before the weight gradient, so that
    an accelerator may update weights as soon as it has their gradients.

    A batch norm normalises by the statistics of the batch, and its running statistics follow them
    (:func:`next_name`). One whose scale and shift are both ``frozen`` goes on with the running ones, as
    they are: each is its own next value.

    Parameters
    ----------
    loss : str
        ``"softmax_cross_entropy"`` or ``"square_hinge"``.
    formats : mapping
        Formats of the gradients by name (:func:`gradient_name`); those not named are float. Parts of
        a sum have the format of the sum. Those of the slopes of batch norms of words, too (:func:`slope_name`).
    frozen : collection of str
        Parameters that are not trained. They have gradients all the same.

    Raises
    ------
    GraphError
        The loss is unknown, the graph does not end in one vector of logits, or the logits do not
        depend on some parameter.
    """
    _check_loss(graph, loss)
    return _last_part(graph, loss, formats or {}, frozen, through=())


def without_backward(graph: Graph) -> Graph:
    """The forward pass and the loss of a training step, batch norms by their running statistics."""
    statistics = {op.batch: op.running for op in graph.ops if isinstance(op, RunningMean | RunningVariance)}
    end = next(number for number, op in enumerate(graph.ops) if isinstance(op, LossOp)) + 1
    ops = tuple(op.map_values(lambda value: statistics.get(value, value)) for op in graph.ops[:end]
                if not isinstance(op, BatchMean | BatchVariance | RunningMean | RunningVariance))
    return Graph(graph.name, graph.inputs, graph.parameters, ops, graph.outputs[:2])


def differentiate_parts(parts: Sequence[Graph], loss: str = "softmax_cross_entropy",
                        formats: Mapping[str, Format] | None = None, frozen: Collection[str] = ()) -> tuple[Graph, ...]:
    """The training step of each part of a network (:func:`espalier.ir.cut.split`).

    Together they do the operations of :func:`differentiate`, each its own. A part but the last takes, after what it
    reads, the gradient of its result, and gives that result first; the last takes labels, and gives loss and logits
    first. What belongs to the parameters follows, and in each but the first the gradient of what it reads.

    Raises GraphError as :func:`differentiate` does.
    """
    _check_loss(parts[-1], loss)
    inner = [_inner_part(part, formats or {}, frozen, through=part.inputs if number else ())
             for number, part in enumerate(parts[:-1])]
    return *inner, _last_part(parts[-1], loss, formats or {}, frozen, through=parts[-1].inputs if inner else ())


def _check_loss(graph: Graph, loss: str) -> None:
    if loss not in LOSSES:
        raise GraphError(f"Unknown loss {loss!r}: it is one of {', '.join(LOSSES)}")
    if len(graph.outputs) != 1 or len(graph.outputs[0].shape) != 1:
        raise GraphError(f"Training needs a network with one vector of logits as output, and {graph.name!r} has "
                         f"{', '.join(map(str, graph.outputs))}")


def _last_part(graph: Graph, loss: str, formats: Mapping[str, Format], frozen: Collection[str],
               through: tuple[Value, ...]) -> Graph:
    logits = graph.outputs[0]
    labels = Value("labels", TensorType((), INDEX))
    loss_op, loss_grad_op = LOSSES[loss]
    loss_format: Format = FLOAT if logits.format == FLOAT else LOSS_FORMAT
    loss_value = Value("loss", TensorType((), loss_format))
    forward = _Forward(graph, frozen)
    backward = _Backward(graph, formats, forward.statistics, through)
    backward.ops.append(loss_op(loss_value, logits, labels))
    backward.contribute(logits, lambda out: loss_grad_op(out, logits, labels))
    backward.visit_all()
    return Graph(graph.name, (*graph.inputs, labels), graph.parameters, (*forward.ops, *backward.ops),
                 (loss_value, logits, *backward.results(forward.next)))


def _inner_part(graph: Graph, formats: Mapping[str, Format], frozen: Collection[str], through: tuple[Value, ...]
                ) -> Graph:
    result = graph.outputs[0]
    name = gradient_name(result.name)
    gradient = Value(name, TensorType(result.shape, formats.get(name, FLOAT)))
    forward = _Forward(graph, frozen)
    backward = _Backward(graph, formats, forward.statistics, through)
    backward.gradients[result.name] = gradient
    backward.visit_all()
    return Graph(graph.name, (*graph.inputs, gradient), graph.parameters, (*forward.ops, *backward.ops),
                 (result, *backward.results(forward.next)))


def _gradient_parts(graph: Graph) -> Counter[str]:
    """How many parts the gradient of each value has: one each time an operation reads it on the way to the logits."""
    parts = Counter(value.name for value in graph.outputs)
    for op in reversed(graph.ops):
        if parts[op.out.name]:
            parts.update(value.name for value in op.inputs)
    return parts


class _Forward:
    """The operations of the forward pass in training.

    rewrite:
        y = batch_norm(x, scale, shift, mean, variance)
            ->  m = batch_mean(x); v = batch_variance(x, m); y = batch_norm(x, scale, shift, m, v);
                mean.next = running_mean(mean, m, x); variance.next = running_variance(variance, v, x)

    Members
    -------
    statistics : dict
        The mean and variance by which each rewritten batch norm normalises, by the name of its result.
    next : dict
        What each running statistic that follows is after the step, by the statistic's name.
    """

    def __init__(self, graph: Graph, frozen: Collection[str]) -> None:
        self.frozen = frozen
        self.ops: list[Op] = []
        self.statistics: dict[str, tuple[Value, Value]] = {}
        self.next: dict[str, Value] = {}
        for op in graph.ops:
            self._add(op)

    def _add(self, op: Op) -> None:
        match op:
            case BatchNorm(scale=scale, shift=shift) if not {scale.name, shift.name}.issubset(self.frozen):
                self._by_batch(op)
            case BatchMean() | BatchVariance() | RunningMean() | RunningVariance():
                raise GraphError(f"The graph already holds a training step: {op.out}")
            case _:
                self.ops.append(op)

    def _by_batch(self, op: BatchNorm) -> None:
        mean, variance = (Value(f"{value.name}.batch", value.type) for value in (op.mean, op.variance))
        next_mean, next_variance = (Value(next_name(value.name), value.type) for value in (op.mean, op.variance))
        self.ops += [BatchMean(mean, op.x), BatchVariance(variance, op.x, mean),
                     replace(op, mean=mean, variance=variance), RunningMean(next_mean, op.mean, mean, op.x),
                     RunningVariance(next_variance, op.variance, variance, op.x)]
        self.statistics[op.out.name] = mean, variance
        self.next |= {op.mean.name: next_mean, op.variance.name: next_variance}


class _Backward:
    """The operations of the backward pass, as they are found going from the loss to the image.

    ``statistics``: those of the batch, of the batch norms that normalise by them. ``through``: the inputs of the graph
    whose gradients are wanted, too.
    """

    def __init__(self, graph: Graph, formats: Mapping[str, Format], statistics: Mapping[str, tuple[Value, Value]],
                 through: tuple[Value, ...]) -> None:
        self.graph, self.formats, self.statistics, self.through = graph, formats, statistics, through
        self.ops: list[Op] = []
        self.gradients: dict[str, Value] = {}
        self.readers = _gradient_parts(graph)
        self.parts: dict[str, int] = {}

    def contribute(self, value: Value, make: Callable[[Value], Op]) -> None:
        """Add the operation ``make(out)`` whose result is (part of) the gradient of ``value``."""
        if value in self.graph.inputs and value not in self.through:
            return
        name = gradient_name(value.name)
        type_ = TensorType(value.shape, self.formats.get(name, FLOAT))
        readers = self.readers[value.name]
        if readers <= 1:
            gradient = Value(name, type_)
            self.ops.append(make(gradient))
            self.gradients[value.name] = gradient
            return
        index = self.parts.get(value.name, 0)
        self.parts[value.name] = index + 1
        part = Value(f"{name}.{index}", type_)
        self.ops.append(make(part))
        if index == 0:
            self.gradients[value.name] = part
            return
        total = Value(name if index == readers - 1 else f"{name}.sum{index}", type_)
        self.ops.append(Add(total, self.gradients[value.name], part))
        self.gradients[value.name] = total

    def visit_all(self) -> None:
        for op in reversed(self.graph.ops):
            self._visit(op)

    def results(self, following: Mapping[str, Value]) -> list[Value]:
        """For each parameter its gradient, or what follows it as a statistic; then the gradients of ``through``."""
        for value in (*self.through, *self.graph.learned()):
            if value.name not in self.gradients:
                raise GraphError(f"Every parameter trained must lead to the logits, and {value} does not; remove it")
        followers = {value.name: value for value in self.graph.statistics()} | dict(following) | self.gradients
        return [followers[value.name] for value in (*self.graph.parameters, *self.through)]

    def _visit(self, op: Op) -> None:
        g = self.gradients.get(op.out.name)
        if g is None:  # nothing that the loss depends on
            return
        match op:
            case Conv2d(x=x, w=w, b=b, window=window, groups=groups):
                self.contribute(x, lambda out: Conv2dInputGrad(out, g, w, window, groups))
                self.contribute(w, lambda out: Conv2dWeightGrad(out, x, g, window, groups))
                if b is not None:
                    self.contribute(b, lambda out: BiasGrad(out, g))
            case Linear(x=x, w=w, b=b):
                self.contribute(x, lambda out: LinearInputGrad(out, g, w))
                self.contribute(w, lambda out: LinearWeightGrad(out, x, g))
                if b is not None:
                    self.contribute(b, lambda out: BiasGrad(out, g))
            case BatchNorm():
                self._batch_norm(op, g)
            case Relu(x=x):
                self.contribute(x, lambda out: ReluGrad(out, g, op.out))
            case ClippedRelu(x=x, bound=bound):
                self.contribute(x, lambda out: ClippedReluGrad(out, g, op.out, bound))
            case MaxPool(x=x, window=window):
                self.contribute(x, lambda out: MaxPoolGrad(out, g, x, window))
            case AveragePool(x=x, window=window):
                self.contribute(x, lambda out: AveragePoolGrad(out, g, window))
            case GlobalAveragePool(x=x):
                self.contribute(x, lambda out: GlobalAveragePoolGrad(out, g))
            case Add(a=a, b=b):
                self.contribute(a, lambda out: Reshape(out, g))
                self.contribute(b, lambda out: Reshape(out, g))
            case Concat(a=a, b=b):
                self.contribute(a, lambda out: ConcatGrad(out, g, 0))
                self.contribute(b, lambda out: ConcatGrad(out, g, a.shape[0]))
            case Reshape(x=x):
                self.contribute(x, lambda out: Reshape(out, g))
            case (SoftmaxCrossEntropy() | SquareHinge() | SoftmaxCrossEntropyGrad() | SquareHingeGrad()
                  | Conv2dInputGrad() | Conv2dWeightGrad() | LinearInputGrad() | LinearWeightGrad() | BiasGrad()
                  | BatchMean() | BatchVariance() | RunningMean() | RunningVariance() | BatchNormInputGrad()
                  | FrozenBatchNormInputGrad() | BatchNormScaleGrad() | ReluGrad() | ClippedReluGrad() | ConcatGrad()
                  | MaxPoolGrad() | AveragePoolGrad() | GlobalAveragePoolGrad()):
                raise GraphError(f"The graph already holds a backward pass: {op.out}")
            case _:
                assert_never(op)

    def _batch_norm(self, op: BatchNorm, g: Value) -> None:
        x, scale, epsilon, factor = op.x, op.scale, op.epsilon, op.factor
        slope = self.formats.get(slope_name(op.out.name))
        assert slope is None or isinstance(slope, Fixed), f"the slope of {op.out} is a word"
        mean, variance = self.statistics.get(op.out.name, (op.mean, op.variance))
        if op.out.name in self.statistics:
            self.contribute(x, lambda out: BatchNormInputGrad(out, g, x, scale, mean, variance, epsilon, factor,
                                                               slope))
        else:
            self.contribute(x, lambda out: FrozenBatchNormInputGrad(out, g, scale, variance, epsilon, factor))
        self.contribute(scale, lambda out: BatchNormScaleGrad(out, g, x, mean, variance, epsilon))
        self.contribute(op.shift, lambda out: BiasGrad(out, g))
