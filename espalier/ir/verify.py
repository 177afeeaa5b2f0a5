"""What the types of a graph cannot say: the rules that every graph keeps."""

from __future__ import annotations

from typing import assert_never

from espalier.errors import GraphError
from espalier.ir.differentiate import gradient_name
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
from espalier.ir.types import Value
from espalier.ir.verify_batch_norm import verify_batch_norm
from espalier.ir.verify_formats import verify_format, verify_formats
from espalier.numerics.window import Window

LossOrGrad = SoftmaxCrossEntropy | SoftmaxCrossEntropyGrad | SquareHinge | SquareHingeGrad


def verify(graph: Graph) -> Graph:
    """Return ``graph`` if it keeps every rule of the representation.

    Names are unique; everything read is defined before it is read, with that very type; the shapes
    of each operation fit together; formats are such that the operation is exact and rounds once
    (see ``verify_formats.py``); a training graph's outputs are loss, logits and gradients in order.

    Raises
    ------
    GraphError
        The first rule broken, with the operation and the value.
    """
    known: dict[str, Value] = {}
    for value in (*graph.inputs, *graph.parameters):
        _define(known, value)
        verify_format(value, is_parameter=value in graph.parameters)
    if not graph.inputs:
        raise GraphError(f"A graph has at least one input, and {graph.name!r} has none")
    wide: set[str] = set()
    for op in graph.ops:
        for value in op.inputs:
            _defined(known, value, f"Operation {op.out}")
        verify_shapes(op)
        verify_formats(op, wide)
        _define(known, op.out)
    if not graph.outputs:
        raise GraphError(f"A graph has at least one output, and {graph.name!r} has none")
    for value in graph.outputs:
        _defined(known, value, f"The output list of graph {graph.name!r}")
    _training_outputs(graph)
    return graph


def _define(known: dict[str, Value], value: Value) -> None:
    if value.name in known:
        raise GraphError(f"Names in a graph are unique, and two values are named {value.name!r}: "
                         f"{known[value.name]} and {value}")
    if any(size < 1 for size in value.shape):
        raise GraphError(f"Every size of a shape is at least 1, and {value} has {min(value.shape)}")
    known[value.name] = value


def _defined(known: dict[str, Value], value: Value, reader: str) -> None:
    if value.name not in known:
        raise GraphError(f"{reader} reads {value}, which is not defined before it")
    if known[value.name] != value:
        raise GraphError(f"{reader} reads {value}, but its definition is {known[value.name]}")


def _training_outputs(graph: Graph) -> None:
    """A graph whose first of several outputs is a loss returns loss, logits and gradients; a part's input's last."""
    loss = graph.producer(graph.outputs[0])
    if len(graph.outputs) == 1 or not isinstance(loss, SoftmaxCrossEntropy | SquareHinge):
        return
    if graph.outputs[1] != loss.logits:
        raise GraphError(f"The second output of a training graph is its logits {loss.logits}, not {graph.outputs[1]}")
    gradients = tuple(value for value in graph.outputs[2:] if value.name != gradient_name(graph.inputs[0].name))
    if len(gradients) != len(graph.parameters):
        raise GraphError(f"A training graph returns one gradient for each of its {len(graph.parameters)} parameters, "
                         f"and {graph.name!r} returns {len(gradients)}")
    for parameter, gradient in zip(graph.parameters, gradients, strict=True):
        if parameter.shape != gradient.shape:
            raise GraphError(f"The gradient of {parameter} has its shape, and output {gradient} has another")


def _fail(op: Op, rule: str) -> GraphError:
    return GraphError(f"{type(op).__name__} {op.out}: {rule}")


def _shape(op: Op, role: str, value: Value, expected: tuple[int, ...]) -> None:
    if value.shape != expected:
        raise _fail(op, f"{role} {value} must have shape [{','.join(map(str, expected))}]")


def _rank(op: Op, role: str, value: Value, rank: int, axes: str) -> None:
    if len(value.shape) != rank:
        raise _fail(op, f"{role} {value} must have shape {axes}")


def verify_shapes(op: Op) -> None:
    """Raise GraphError unless the shapes of the operation's values fit together."""
    match op:
        case Conv2d(out=out, x=x, w=w, b=b, window=window, groups=groups):
            _conv2d(op, x=x, w=w, y=out, window=window, groups=groups)
            if b is not None:
                _shape(op, "bias", b, w.shape[:1])
        case Linear(out=out, x=x, w=w, b=b):
            _linear(op, x=x, w=w, y=out)
            if b is not None:
                _shape(op, "bias", b, w.shape[:1])
        case MaxPool(out=out, x=x, window=window) | AveragePool(out=out, x=x, window=window):
            _pool(op, x=x, y=out, window=window)
        case MaxPoolGrad(out=out, g=g, x=x, window=window):
            _pool(op, x=x, y=g, window=window)
            _shape(op, "result", out, x.shape)
        case AveragePoolGrad(out=out, g=g, window=window):
            _pool(op, x=out, y=g, window=window)
        case GlobalAveragePool(out=out, x=x):
            _rank(op, "input", x, 3, "[C,H,W]")
            _shape(op, "result", out, (x.shape[0], 1, 1))
        case GlobalAveragePoolGrad(out=out, g=g):
            _rank(op, "result", out, 3, "[C,H,W]")
            _shape(op, "gradient", g, (out.shape[0], 1, 1))
        case Relu(out=out, x=x):
            _shape(op, "result", out, x.shape)
        case ClippedRelu(out=out, x=x, bound=bound):
            _shape(op, "result", out, x.shape)
            _bound(op, bound)
        case ClippedReluGrad(out=out, g=g, y=y, bound=bound):
            _shape(op, "gradient", g, y.shape)
            _shape(op, "result", out, y.shape)
            _bound(op, bound)
        case (BatchNorm() | BatchMean() | BatchVariance() | RunningMean() | RunningVariance() | BatchNormInputGrad()
              | FrozenBatchNormInputGrad() | BatchNormScaleGrad()):
            verify_batch_norm(op)
        case ReluGrad(out=out, g=g, y=y):
            _shape(op, "gradient", g, y.shape)
            _shape(op, "result", out, y.shape)
        case Add(out=out, a=a, b=b):
            _shape(op, "second operand", b, a.shape)
            _shape(op, "result", out, a.shape)
        case Concat(out=out, a=a, b=b):
            _ranked(op, a, b)
            _shape(op, "second operand", b, (b.shape[0], *a.shape[1:]))
            _shape(op, "result", out, (a.shape[0] + b.shape[0], *a.shape[1:]))
        case ConcatGrad(out=out, g=g, first=first):
            _ranked(op, g, out)
            _shape(op, "result", out, (out.shape[0], *g.shape[1:]))
            if not 0 <= first <= g.shape[0] - out.shape[0]:
                raise _fail(op, f"the {out.shape[0]} channels from {first} on must be channels of {g}")
        case Reshape(out=out, x=x):
            _reshape(op, x, out)
        case Conv2dInputGrad(out=out, g=g, w=w, window=window, groups=groups):
            _conv2d(op, x=out, w=w, y=g, window=window, groups=groups)
        case Conv2dWeightGrad(out=out, x=x, g=g, window=window, groups=groups):
            _conv2d(op, x=x, w=out, y=g, window=window, groups=groups)
        case LinearInputGrad(out=out, g=g, w=w):
            _linear(op, x=out, w=w, y=g)
        case LinearWeightGrad(out=out, x=x, g=g):
            _linear(op, x=x, w=out, y=g)
        case BiasGrad(out=out, g=g):
            if len(g.shape) not in (1, 3):
                raise _fail(op, f"gradient {g} must have shape [O] or [O,H,W]")
            _shape(op, "result", out, g.shape[:1])
        case SoftmaxCrossEntropy() | SquareHinge() | SoftmaxCrossEntropyGrad() | SquareHingeGrad():
            _loss(op)
        case _:
            assert_never(op)


def _conv2d(op: Op, *, x: Value, w: Value, y: Value, window: Window, groups: int) -> None:
    """``x`` (I, H, W), ``w`` (O, I/groups, KH, KW) and ``y`` (O, OH, OW) are those of a convolution."""
    _rank(op, "feature map", x, 3, "[I,H,W]")
    _rank(op, "weight", w, 4, "[O,I/groups,KH,KW]")
    if groups < 1 or x.shape[0] % groups or w.shape[0] % groups:
        raise _fail(op, f"groups must divide the {x.shape[0]} input and {w.shape[0]} output channels, "
                        f"and {groups} does not")
    _shape(op, "weight", w, (w.shape[0], x.shape[0] // groups, *window.kernel))
    _shape(op, "output map", y, (w.shape[0], *_out_size(op, x, window)))


def _linear(op: Op, *, x: Value, w: Value, y: Value) -> None:
    """``x`` (I,), ``w`` (O, I) and ``y`` (O,) are those of a fully connected layer."""
    _rank(op, "vector", x, 1, "[I]; put a Reshape before it")
    _rank(op, "weight", w, 2, "[O,I]")
    _shape(op, "weight", w, (w.shape[0], x.shape[0]))
    _shape(op, "output vector", y, (w.shape[0],))


def _pool(op: Op, *, x: Value, y: Value, window: Window) -> None:
    """``x`` (C, H, W) and ``y`` (C, OH, OW) are those of pooling, and no window sees padding alone."""
    _rank(op, "feature map", x, 3, "[C,H,W]")
    out_size = _out_size(op, x, window)
    _shape(op, "output map", y, (x.shape[0], *out_size))
    for axis in (0, 1):
        for position in range(out_size[axis]):
            start = position * window.stride[axis] - window.pad[axis]
            taps = range(start, start + window.kernel[axis] * window.dilation[axis], window.dilation[axis])
            if not any(0 <= tap < x.shape[1 + axis] for tap in taps):
                raise _fail(op, f"every window must see some of {x}, and the one at {'row' if axis == 0 else 'column'} "
                                f"{position} sees only padding; use less padding")


def _ranked(op: Op, *values: Value) -> None:
    for value in values:
        if not value.shape:
            raise _fail(op, f"{value} must have channels")


def _bound(op: Op, bound: int) -> None:
    if bound < 1:
        raise _fail(op, f"the bound must be at least 1, not {bound}")


def _out_size(op: Op, x: Value, window: Window) -> tuple[int, int]:
    try:
        return window.out_size(*x.shape[1:])
    except GraphError as error:
        raise _fail(op, str(error)) from None


def _reshape(op: Op, x: Value, out: Value) -> None:
    before, after = 1, 1
    for size in x.shape:
        before *= size
    for size in out.shape:
        after *= size
    if before != after:
        raise _fail(op, f"the result must have as many elements as {x}, {before}, and has {after}")


def _loss(op: LossOrGrad) -> None:
    _rank(op, "logits", op.logits, 1, "[classes]")
    _shape(op, "labels", op.labels, ())
    match op:
        case SoftmaxCrossEntropy() | SquareHinge():
            _shape(op, "result", op.out, ())
        case SoftmaxCrossEntropyGrad() | SquareHingeGrad():
            _shape(op, "result", op.out, op.logits.shape)
        case _:
            assert_never(op)
