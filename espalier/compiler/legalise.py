"""From operations to layers that the engine runs: one convolution with all that is fused to it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from espalier.arch.machine import MAX_KERNEL, MAX_MAP
from espalier.errors import UnsupportedError
from espalier.ir.differentiate import gradient_name
from espalier.ir.graph import Graph
from espalier.ir.ops import (
    Conv2d,
    Linear,
    LossOp,
    MaxPool,
    Relu,
    Reshape,
    SoftmaxCrossEntropy,
    SquareHinge,
)
from espalier.ir.types import Fixed, MapShape, Value
from espalier.numerics.update import GRADIENT_BITS
from espalier.numerics.window import Window

POOL = Window((2, 2), (2, 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One convolution as the engine runs it, with the rectifier and the pool behind it.

    Members
    -------
    name : str
        Of the convolution's or linear layer's result.
    x, out : str
        The stored values it reads and writes (``out`` after rectifier and pool).
    weight, bias : str, str or None
        Parameters.
    weight_shape : (O, I, KH, KW)
        A linear layer on a (C, H, W) map is a convolution with an H×W kernel.
    pad : (top, left)
    in_shape, conv_shape, out_shape : (channels, height, width)
        Of the source, of the convolution's result, and of what is stored.
    rectify, pool : bool
    x_format, weight_format, out_format : Fixed
    gradient_format : Fixed
        Of the gradient at ``out`` and, unpooled, at the convolution's result.
    input_gradient_format : Fixed or None
        Of the gradient at ``x``; None where ``x`` is the image.
    weight_gradient_format : Fixed
    """

    name: str
    x: str
    out: str
    weight: str
    bias: str | None
    weight_shape: tuple[int, int, int, int]
    pad: tuple[int, int]
    in_shape: MapShape
    conv_shape: MapShape
    out_shape: MapShape
    rectify: bool
    pool: bool
    x_format: Fixed
    weight_format: Fixed
    out_format: Fixed
    gradient_format: Fixed
    input_gradient_format: Fixed | None
    weight_gradient_format: Fixed


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """The loss at the end of a training step."""

    hinge: bool
    classes: int
    logit_format: Fixed
    gradient_format: Fixed


def legalise(graph: Graph) -> tuple[tuple[Layer, ...], Loss]:
    """The layers of a differentiated fixed-point graph, in order.

    rewrite:
        conv2d | linear(reshape?) ; relu? ; max_pool 2×2 ?   ->   Layer

    Raises UnsupportedError, naming the layer, for anything that this engine does not run.
    """
    loss = next((op for op in graph.ops if isinstance(op, LossOp)), None)
    if loss is None:
        raise UnsupportedError(f"Graph {graph.name!r} has no loss: differentiate it before compiling")
    layers: list[Layer] = []
    stored: Value = graph.inputs[0]
    if len(stored.shape) != 3:
        raise UnsupportedError(f"The input {stored.name!r} has shape {stored.shape}: this engine takes images "
                               f"(channels, height, width)")
    flat = False
    for op in graph.ops[: graph.ops.index(loss)]:
        previous = layers[-1] if layers else None
        if not isinstance(op, Conv2d | Linear | Relu | MaxPool | Reshape):
            raise UnsupportedError(f"Layer {op.out.name!r} ({type(op).__name__}) does not run on this engine: it "
                                   f"takes Conv2d, Linear, Relu, MaxPool and Reshape")
        if op.x.name != stored.name:
            raise UnsupportedError(f"Layer {op.out.name!r} does not read the layer before it: this engine runs "
                                   f"plain chains of layers, without branches")
        match op:
            case Conv2d() | Linear():
                layers.append(_layer(graph, op, previous, flat))
                flat = False
            case Reshape():
                if len(op.out.shape) != 1:
                    raise UnsupportedError(f"Layer {op.out.name!r} reshapes to {op.out.shape}: this engine only "
                                           f"flattens before a linear layer")
                _same_formats(graph, op.x, op.out)
                flat = True
            case Relu() | MaxPool() if previous is None or flat:
                raise UnsupportedError(f"Layer {op.out.name!r} ({type(op).__name__}) must follow a convolution or "
                                       f"linear layer directly")
            case Relu():
                _same_formats(graph, op.x, op.out)
                layers[-1] = replace(previous, rectify=True, out=op.out.name)
            case MaxPool():
                _same_formats(graph, op.x, op.out)
                layers[-1] = _pooled(previous, op)
        stored = op.out
    if not layers or layers[-1].rectify or layers[-1].pool or stored.name != loss.logits.name:
        raise UnsupportedError(f"Network {graph.name!r} must end in a layer whose result is the logits")
    return tuple(layers), _loss(graph, loss)


def _fixed(value: Value) -> Fixed:
    if not isinstance(value.format, Fixed):
        raise UnsupportedError(f"Value {value.name!r} is {value.format}, not fixed-point: quantise the network first")
    return value.format


def _same_formats(graph: Graph, x: Value, out: Value) -> None:
    """Between one accumulator and the next nothing is rounded, forwards or backwards."""
    if x.format != out.format:
        raise UnsupportedError(f"Layer {out.name!r} changes the format from {x.format} to {out.format}: the engine "
                               f"rounds once, behind the accumulator")
    known = {value.name: value.format for value in graph.values()}
    before, after = (known.get(gradient_name(value.name)) for value in (out, x))
    if before and after and before != after:  # an image has no gradient, nor has what nothing reads
        raise UnsupportedError(f"The gradient of {out.name!r} must have one format through rectifier, pool and "
                               f"reshape, and has {before} and then {after}")


def _layer(graph: Graph, op: Conv2d | Linear, previous: Layer | None, flat: bool) -> Layer:
    source = previous.out_shape if previous else graph.inputs[0].map_shape
    shape, window = _as_convolution(op, source, flat or len(op.x.shape) == 1)
    x_format, weight_format, out_format = _fixed(op.x), _fixed(op.w), _fixed(op.out)
    gradient = _fixed(graph.value(gradient_name(op.out.name)))
    weight_gradient = _fixed(graph.value(gradient_name(op.w.name)))
    if weight_gradient.width != GRADIENT_BITS:
        raise UnsupportedError(f"The weight gradient of {op.out.name!r} must have {GRADIENT_BITS} bits, not "
                               f"{weight_gradient}")
    if op.b is not None:
        bias_gradient = _fixed(graph.value(gradient_name(op.b.name)))
        if op.b.format != weight_format or bias_gradient != weight_gradient:
            raise UnsupportedError(f"The bias of {op.out.name!r} must have the formats of its weight ({weight_format}, "
                                   f"gradient {weight_gradient}), not {op.b.format} and {bias_gradient}")
        if not 0 <= x_format.frac <= x_format.width - 2:
            raise UnsupportedError(f"The input format {x_format} of {op.out.name!r} cannot hold the one that its bias "
                                   f"is multiplied by: use at least 2 integer bits")
    out_y, out_x = window.out_size(*source[1:])
    conv_shape = (shape[0], out_y, out_x)
    return Layer(
        name=op.out.name, x=previous.out if previous else graph.inputs[0].name, out=op.out.name, weight=op.w.name,
        bias=op.b.name if op.b is not None else None, weight_shape=shape, pad=window.pad[:2], in_shape=source,
        conv_shape=conv_shape, out_shape=conv_shape, rectify=False, pool=False, x_format=x_format,
        weight_format=weight_format, out_format=out_format, gradient_format=gradient,
        input_gradient_format=_fixed(graph.value(gradient_name(op.x.name))) if previous else None,
        weight_gradient_format=weight_gradient)


def _as_convolution(op: Conv2d | Linear, source: MapShape, flat: bool
                    ) -> tuple[tuple[int, int, int, int], Window]:
    """The weight's shape (O, I, KH, KW) and the window with which the engine runs this layer."""
    name = op.out.name
    if isinstance(op, Linear):
        height, width = source[1:]
        shape, window = (op.w.shape[0], source[0], height, width), Window((height, width))
    else:
        window = op.window
        shape = (op.w.shape[0], op.w.shape[1], *window.kernel)
        if flat:
            raise UnsupportedError(f"Layer {name!r} is a convolution on a flattened map")
        if op.groups != 1 or window.stride != (1, 1) or window.dilation != (1, 1):
            raise UnsupportedError(f"Layer {name!r} has groups {op.groups}, stride {window.stride}, dilation "
                                   f"{window.dilation}: this engine runs convolutions with all of them 1")
        if any(pad >= window.kernel[axis % 2] for axis, pad in enumerate(window.pad)):
            raise UnsupportedError(f"Layer {name!r} has padding {window.pad}: it must be smaller than the kernel "
                                   f"{window.kernel}")
    if max(window.kernel) > MAX_KERNEL or max(source[1:]) >= MAX_MAP:
        raise UnsupportedError(f"Layer {name!r} has a {window.kernel} kernel on a {source[1:]} map: this engine takes "
                               f"kernels up to {MAX_KERNEL} and maps below {MAX_MAP}")
    return shape, window


def _pooled(layer: Layer, op: MaxPool) -> Layer:
    channels, height, width = layer.conv_shape
    if op.window != POOL or height % 2 or width % 2 or layer.pool:
        raise UnsupportedError(f"Layer {op.out.name!r} pools {op.window.kernel} with stride {op.window.stride} on a "
                               f"{height}×{width} map: this engine pools 2×2 with stride 2 on even maps, once a layer")
    return replace(layer, pool=True, out=op.out.name, out_shape=(channels, height // 2, width // 2))


def _loss(graph: Graph, op: SoftmaxCrossEntropy | SquareHinge) -> Loss:
    logits, gradient = _fixed(op.logits), _fixed(graph.value(gradient_name(op.logits.name)))
    hinge = isinstance(op, SquareHinge)
    if not 0 <= logits.frac <= 16 or not 0 <= gradient.frac <= (logits.frac if hinge else 31):
        raise UnsupportedError(f"The loss unit takes logits with 0..16 fraction bits and a gradient with 0..31, for "
                               f"the square hinge no finer than the logits, not {logits} and {gradient}")
    return Loss(hinge=hinge, classes=op.logits.shape[0], logit_format=logits, gradient_format=gradient)
