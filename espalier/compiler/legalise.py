"""From operations to layers that the engine runs: one convolution with all that is fused to it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple, assert_never

from espalier.arch.machine import MAX_KERNEL, MAX_MAP, MAX_STRIDE_SHIFT
from espalier.errors import UnsupportedError
from espalier.ir.differentiate import gradient_name
from espalier.ir.graph import Graph
from espalier.ir.interpret import units
from espalier.ir.ops import (
    Add,
    AveragePool,
    BatchMean,
    BatchNorm,
    BatchNormInputGrad,
    BatchVariance,
    ClippedRelu,
    Conv2d,
    GlobalAveragePool,
    Linear,
    LossOp,
    MaxPool,
    Relu,
    Reshape,
    RunningMean,
    RunningVariance,
    SoftmaxCrossEntropy,
    SquareHinge,
)
from espalier.ir.types import Fixed, MapShape, Value
from espalier.numerics.activation import AVERAGE_FRAC, average_reciprocal
from espalier.numerics.update import GRADIENT_BITS
from espalier.numerics.window import Window

POOL = Window((2, 2), (2, 2))

Summing = Conv2d | Linear | BatchNorm | AveragePool | GlobalAveragePool
SUPPORTED = (Conv2d, Linear, BatchNorm, AveragePool, GlobalAveragePool, Relu, ClippedRelu, MaxPool, Add, Reshape)
OF_BATCH_NORM = (BatchMean, BatchVariance, RunningMean, RunningVariance)


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """What makes a layer a batch norm: a depthwise 1×1 convolution whose weights and biases are made of scalars.

    Members
    -------
    mean, variance : str
        The running statistics. Scale and shift are the layer's ``weight`` and ``bias``.
    epsilon : float
    slope_format : Fixed or None
        Of what its input is multiplied by in BP; None where that has no gradient.
    """

    mean: str
    variance: str
    epsilon: float
    slope_format: Fixed | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One convolution as the engine runs it, with what is added, the rectifier and the pool behind it.

    Members
    -------
    name : str
        Of the convolution's or linear layer's result.
    x, out : str
        The stored values it reads and writes (``out`` after sum, rectifier and pool).
    addend : str or None
        The stored value that is added to its words.
    weight, bias : str, str or None
        Parameters. A layer that averages has no ``weight``, but one ``constant`` word for all its taps.
    weight_shape : (O, I, KH, KW)
        A linear layer on a (C, H, W) map is a convolution with an H×W kernel. Between the taps of a dilated kernel and
        between groups there are no weights (:func:`espalier.compiler.lists.weight_numbers`).
    groups, dilation, stride, pad : int, (y, x), (y, x), (top, left)
    in_shape, conv_shape, out_shape : (channels, height, width)
        Of the source, of the convolution's result, and of what is stored.
    rectify, pool : bool
    unpooled, pooled : Layer or None, str
        Where there is a pool, the layer without it and what comes behind it; and the pool's own value.
    clip : int
        The word to which the rectifier clips what is larger; 0: to none.
    x_format, weight_format, out_format : Fixed
    gradient_format : Fixed
        Of the gradient at ``out`` and, unpooled, at the convolution's result.
    input_gradient_format : Fixed or None
        Of the gradient at ``x``; None where nothing before it is trained.
    weight_gradient_format : Fixed or None
        None where no weight is trained: without a ``weight``, with one that is frozen, and of a batch norm.
    norm : Norm or None
        Of a batch norm.
    in_tiles : bool
        Whether lanes hold tiles of its maps (``tiling.py``), and shapes are those of a tile.
    reach, apart : (y, x)
        How many tiles of the grid lie from one that holds a part of the source to the next, and of the result: more
        than one where a map is smaller than the grid.
    """

    name: str
    x: str
    out: str
    addend: str | None = None
    weight: str | None
    constant: int = 0
    bias: str | None
    weight_shape: tuple[int, int, int, int]
    groups: int
    dilation: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]
    in_shape: MapShape
    conv_shape: MapShape
    out_shape: MapShape
    rectify: bool = False
    pool: bool = False
    unpooled: Layer | None = None
    pooled: str = ""
    clip: int = 0
    x_format: Fixed
    weight_format: Fixed
    out_format: Fixed
    gradient_format: Fixed
    input_gradient_format: Fixed | None
    weight_gradient_format: Fixed | None
    norm: Norm | None = None
    in_tiles: bool = False
    reach: tuple[int, int] = (1, 1)
    apart: tuple[int, int] = (1, 1)

    @property
    def crossing(self) -> tuple[bool, bool]:
        """Along which axes it pools what several lanes hold."""
        y, x = (self.pool and after > before for before, after in zip(self.reach, self.apart, strict=True))
        return y, x

    @property
    def trained(self) -> bool:
        """Whether there is WU."""
        return self.weight_gradient_format is not None or self.norm is not None

    @property
    def depthwise(self) -> bool:
        """Whether each channel has weights of its own and no others."""
        return self.groups == self.weight_shape[0] == self.weight_shape[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """The loss at the end of a training step."""

    hinge: bool
    classes: int
    logit_format: Fixed
    gradient_format: Fixed


def legalise(graph: Graph, frozen: Collection[str] = ()) -> tuple[tuple[Layer, ...], Loss]:
    """The layers of a differentiated fixed-point graph, in order; parameters that are ``frozen`` are not trained.

    rewrite:
        conv2d | linear(reshape?) | batch_norm | average_pool | global_average_pool ; add? ; (clipped_)relu? ;
        max_pool 2×2 ?   ->   Layer

    Raises UnsupportedError, naming the layer, for anything that this engine does not run.
    """
    loss = next((op for op in graph.ops if isinstance(op, LossOp)), None)
    if loss is None:
        raise UnsupportedError(f"Graph {graph.name!r} has no loss: differentiate it before compiling")
    image = graph.inputs[0]
    if len(image.shape) != 3:
        raise UnsupportedError(f"The input {image.name!r} has shape {image.shape}: this engine takes images "
                               f"(channels, height, width)")
    found = _Layers(graph, loss)
    for op in graph.ops[: graph.ops.index(loss)]:
        if isinstance(op, OF_BATCH_NORM):
            continue
        if not isinstance(op, SUPPORTED):
            raise UnsupportedError(f"Layer {op.out.name!r} ({type(op).__name__}) does not run on this engine: it "
                                   f"takes {', '.join(kind.__name__ for kind in SUPPORTED)}")
        match op:
            case Conv2d() | Linear() | BatchNorm() | AveragePool() | GlobalAveragePool():
                found.append(op)
            case Reshape():
                found.flatten(op)
            case Add():
                found.add(op)
            case Relu() | ClippedRelu():
                found.rectify(op)
            case MaxPool():
                found.pool(op)
            case _:
                assert_never(op)
    last, logits = found.layers[-1] if found.layers else None, found.flat.get(loss.logits.name, loss.logits.name)
    if last is None or last.rectify or last.pool or last.out != logits or last.conv_shape[1:] != (1, 1):
        raise UnsupportedError(f"Network {graph.name!r} must end in a layer whose result is the logits")
    return trained(found.layers, frozen), _loss(graph, loss)


def trained(layers: Sequence[Layer], frozen: Collection[str]) -> tuple[Layer, ...]:
    """``layers`` without the gradients that nothing needs: of frozen weights, and of what only these would use."""
    found: list[Layer] = []
    for layer in layers:
        if layer.norm and (layer.weight in frozen or layer.bias in frozen):
            raise UnsupportedError(f"Scale and shift of the batch norm {layer.name!r} are frozen: fold it into the "
                                   f"layer before it")
        needed = needed_gradients(found)
        found.append(replace(
            layer, input_gradient_format=layer.input_gradient_format if layer.x in needed else None,
            weight_gradient_format=None if layer.weight in frozen else layer.weight_gradient_format))
    return tuple(found)


def needed_gradients(layers: Sequence[Layer]) -> set[str]:
    """The stored results behind which something is trained."""
    needed: set[str] = set()
    for layer in layers:
        if layer.trained or layer.input_gradient_format is not None or layer.addend in needed:
            needed.add(layer.out)
    return needed


class _Layers:
    """The layers of a graph as they are found, from the image on."""

    def __init__(self, graph: Graph, loss: LossOp) -> None:
        self.graph = graph
        self.forward = graph.ops[: graph.ops.index(loss)]
        self.layers: list[Layer] = []
        self.flat: dict[str, str] = {}  #: what a flattened value is made of

    def append(self, op: Summing) -> None:
        """A layer of its own."""
        stored = self.flat.get(op.x.name, op.x.name)
        source = next((layer for layer in self.layers if layer.out == stored), None)
        if source is None and stored != self.graph.inputs[0].name:
            raise UnsupportedError(f"Layer {op.out.name!r} reads {op.x.name!r}, which this engine does not keep: of a "
                                   f"layer with a rectifier or a pool it keeps what these make")
        if gradient_name(op.out.name) not in {value.name for value in self.graph.values()}:
            raise UnsupportedError(f"Layer {op.out.name!r} does not lead to the logits: remove it")
        flat = stored != op.x.name or len(op.x.shape) == 1
        if isinstance(op, BatchNorm):
            self._check_norm(op, source)
        self.layers.append(_layer(self.graph, op, stored, source, flat))

    def _check_norm(self, op: BatchNorm, source: Layer | None) -> None:
        """A batch norm needs its input in both memories at once, and adds two parts to that one's gradient."""
        readers = [other for other in self.forward if op.x in other.inputs and not isinstance(other, OF_BATCH_NORM)]
        if source is None or source.addend is not None or readers != [op]:
            raise UnsupportedError(f"Batch norm {op.out.name!r} must be all that reads the result of one layer, which "
                                   f"is no sum")

    def flatten(self, op: Reshape) -> None:
        if len(op.out.shape) != 1:
            raise UnsupportedError(f"Layer {op.out.name!r} reshapes to {op.out.shape}: this engine only "
                                   f"flattens before a linear layer")
        _same_formats(self.graph, op.x, op.out)
        self.flat[op.out.name] = self.flat.get(op.x.name, op.x.name)

    def rectify(self, op: Relu | ClippedRelu) -> None:
        at = self._made_for(op)
        clip = units(op.bound, op.x) if isinstance(op, ClippedRelu) else 0
        if isinstance(op, ClippedRelu) and not clip:
            raise UnsupportedError(f"Layer {op.out.name!r} clips at {op.bound}, which is less than one unit of "
                                   f"{op.x.format}: give it a finer format")
        before = self.layers[at].clip
        self.layers[at] = replace(self.layers[at], out=op.out.name, rectify=True,
                                  clip=min(before, clip) if before and clip else before or clip)

    def pool(self, op: MaxPool) -> None:
        at = self._made_for(op)
        self.layers[at] = _pooled(self.layers[at], op)

    def _made_for(self, op: Relu | ClippedRelu | MaxPool) -> int:
        """The layer to which ``op`` can be fused."""
        at = self._maker(op.x)
        if at is None:
            raise UnsupportedError(f"Layer {op.out.name!r} ({type(op).__name__}) must follow a convolution or "
                                   f"linear layer directly")
        self._only_reader(op.x, op)
        _same_formats(self.graph, op.x, op.out)
        return at

    def add(self, op: Add) -> None:
        """Fuse a sum to the later of the layers that make its two values."""
        makers = [(-1 if at is None else at, value) for value in (op.a, op.b) for at in [self._maker(value)]]
        (before, addend), (at, value) = sorted(makers, key=lambda maker: maker[0])
        layer = self.layers[at]
        if before < 0 or before == at or layer.rectify or layer.pool or layer.addend is not None:
            raise UnsupportedError(f"Layer {op.out.name!r} (Add) must add the results of two layers, and the later of "
                                   f"them must have no rectifier, pool or sum of its own")
        self._only_reader(value, op)
        for each in (value, addend):
            _same_formats(self.graph, each, op.out)
        self.layers[at] = replace(layer, out=op.out.name, addend=addend.name)

    def _maker(self, value: Value) -> int | None:
        return next((k for k, layer in enumerate(self.layers) if layer.out == value.name), None)

    def _only_reader(self, value: Value, op: Relu | ClippedRelu | MaxPool | Add) -> None:
        """What is fused is not stored."""
        for other in self.forward:
            if other is not op and value in other.inputs:
                raise UnsupportedError(f"Layers {op.out.name!r} and {other.out.name!r} both read {value.name!r}, which "
                                       f"this engine does not keep, for it is fused to the first of them")


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
        raise UnsupportedError(f"The gradient of {out.name!r} must have one format through rectifier, pool, sum and "
                               f"reshape, and has {before} and then {after}")


def _layer(graph: Graph, op: Summing, stored: str, source: Layer | None, flat: bool) -> Layer:
    in_shape = source.out_shape if source else graph.inputs[0].map_shape
    shape, window, groups = _as_convolution(op, in_shape, flat)
    out_y, out_x = window.out_size(*in_shape[1:])
    conv_shape = (shape[0], out_y, out_x)
    input_gradient = _fixed(graph.value(gradient_name(op.x.name))) if source else None
    match op:
        case Conv2d() | Linear():
            weights = _learned(graph, op)
        case BatchNorm():
            weights = _factors(op)
        case _:
            weights = _average(graph, op, window, input_gradient)
    return Layer(
        name=op.out.name, x=stored, out=op.out.name, weight=weights.name, constant=weights.constant, bias=weights.bias,
        weight_shape=shape, groups=groups, dilation=window.dilation, stride=_stride(op, window, in_shape, conv_shape),
        pad=window.pad[:2], in_shape=in_shape, conv_shape=conv_shape, out_shape=conv_shape, x_format=_fixed(op.x),
        weight_format=weights.format, out_format=_fixed(op.out),
        gradient_format=_fixed(graph.value(gradient_name(op.out.name))), input_gradient_format=input_gradient,
        weight_gradient_format=weights.gradient_format,
        norm=_norm(graph, op, input_gradient is not None) if isinstance(op, BatchNorm) else None)


class _Weights(NamedTuple):
    """What a layer multiplies by: a parameter, or a constant."""

    format: Fixed
    name: str | None = None
    bias: str | None = None
    gradient_format: Fixed | None = None
    constant: int = 0


def _learned(graph: Graph, op: Conv2d | Linear) -> _Weights:
    weight_format = _fixed(op.w)
    weight_gradient = _fixed(graph.value(gradient_name(op.w.name)))
    if weight_gradient.width != GRADIENT_BITS:
        raise UnsupportedError(f"The weight gradient of {op.out.name!r} must have {GRADIENT_BITS} bits, not "
                               f"{weight_gradient}")
    if op.b is not None:
        bias_gradient = _fixed(graph.value(gradient_name(op.b.name)))
        if op.b.format != weight_format or bias_gradient != weight_gradient:
            raise UnsupportedError(f"The bias of {op.out.name!r} must have the formats of its weight ({weight_format}, "
                                   f"gradient {weight_gradient}), not {op.b.format} and {bias_gradient}")
        _check_one(op.x, f"{op.out.name!r}", "bias")
    return _Weights(weight_format, op.w.name, None if op.b is None else op.b.name, weight_gradient)


def _factors(op: BatchNorm) -> _Weights:
    _check_one(op.x, f"{op.out.name!r}", "offset")
    assert op.factor is not None, "a batch norm in fixed point has one"
    return _Weights(op.factor, op.scale.name, op.shift.name)


def _norm(graph: Graph, op: BatchNorm, has_gradient: bool) -> Norm:
    """What belongs to a batch norm of a training graph, where statistics are those of the batch."""
    running = {type(other): other.running.name for other in graph.ops
               if isinstance(other, RunningMean | RunningVariance) and other.batch in (op.mean, op.variance)}
    if len(running) != 2:
        raise UnsupportedError(f"Scale and shift of the batch norm {op.out.name!r} are frozen: fold it into the layer "
                               f"before it")
    slope = next((other.slope for other in graph.ops if isinstance(other, BatchNormInputGrad)
                  and other.scale == op.scale), None) if has_gradient else None
    return Norm(mean=running[RunningMean], variance=running[RunningVariance], epsilon=op.epsilon, slope_format=slope)


def _check_one(x: Value, name: str, what: str) -> None:
    """A bias is the weight of the constant one, which has to be a word of the input."""
    x_format = _fixed(x)
    if not 0 <= x_format.frac <= x_format.width - 2:
        raise UnsupportedError(f"The input format {x_format} of {name} cannot hold the one that its {what} is "
                               f"multiplied by: use at least 2 integer bits")


def _average(graph: Graph, op: AveragePool | GlobalAveragePool, window: Window, input_gradient: Fixed | None
             ) -> _Weights:
    """The reciprocal of the window's size as the weight of every tap, without the zeros at its end.

    Unless a result is finer than the products are then.
    """
    word, frac = average_reciprocal(prod(window.kernel)), AVERAGE_FRAC
    finest = [_fixed(op.out).frac - _fixed(op.x).frac]
    if input_gradient is not None:
        finest.append(input_gradient.frac - _fixed(graph.value(gradient_name(op.out.name))).frac)
    while word % 2 == 0 and frac > max(finest):
        word, frac = word >> 1, frac - 1
    return _Weights(Fixed.of(word.bit_length() + 1, frac), constant=word)


def _as_convolution(op: Summing, source: MapShape, flat: bool) -> tuple[tuple[int, int, int, int], Window, int]:
    """The weight's shape (O, I, KH, KW), the window and the groups with which the engine runs this layer."""
    name, channels, size = op.out.name, source[0], source[1:]
    if flat and not isinstance(op, Linear | BatchNorm):
        raise UnsupportedError(f"Layer {name!r} reads a flattened map, as only linear layers can")
    match op:
        case Linear():
            outs, window, groups = op.w.shape[0], Window(size), 1
        case GlobalAveragePool():
            outs, window, groups = channels, Window(size), channels
        case BatchNorm() if op.x.shape[0] == channels:
            outs, window, groups = channels, Window((1, 1)), channels
        case BatchNorm():
            raise UnsupportedError(f"Batch norm {name!r} reads a flattened map: put it before that")
        case AveragePool(window=window):
            outs, groups = channels, channels
        case Conv2d(window=window, groups=groups):
            outs = op.w.shape[0]
        case _:
            assert_never(op)
    kernel = tuple((taps - 1) * step + 1 for taps, step in zip(window.kernel, window.dilation, strict=True))
    if any(pad >= kernel[axis % 2] for axis, pad in enumerate(window.pad)):
        raise UnsupportedError(f"Layer {name!r} has padding {window.pad}: it must be smaller than the kernel {kernel}")
    if max(kernel) > MAX_KERNEL or max(size) >= MAX_MAP:
        raise UnsupportedError(f"Layer {name!r} has a {kernel} kernel on a {size} map: this engine takes "
                               f"kernels up to {MAX_KERNEL} and maps below {MAX_MAP}")
    return (outs, channels, kernel[0], kernel[1]), window, groups


def _stride(op: Summing, window: Window, source: MapShape, result: MapShape) -> tuple[int, int]:
    """Of what has one result along an axis it does not matter."""
    stride = tuple(1 if out == 1 else step for step, out in zip(window.stride, result[1:], strict=True))
    for step, size in zip(stride, source[1:], strict=True):
        if step.bit_count() != 1 or step > min(1 << MAX_STRIDE_SHIFT, size):
            raise UnsupportedError(f"Layer {op.out.name!r} has a stride of {window.stride} on a {source[1:]} map: this "
                                   f"engine takes strides that are powers of two up to {1 << MAX_STRIDE_SHIFT}, and no "
                                   f"larger than the map")
    return stride[0], stride[1]


def _pooled(layer: Layer, op: MaxPool) -> Layer:
    channels, height, width = layer.conv_shape
    if op.window != POOL or height % 2 or width % 2 or layer.pool or layer.addend is not None:
        raise UnsupportedError(f"Layer {op.out.name!r} pools {op.window.kernel} with stride {op.window.stride} on a "
                               f"{height}×{width} map: this engine pools 2×2 with stride 2 on even maps, once a layer, "
                               f"not behind a sum")
    return replace(layer, pool=True, out=op.out.name, out_shape=(channels, height // 2, width // 2), unpooled=layer,
                   pooled=op.out.name)


def _loss(graph: Graph, op: SoftmaxCrossEntropy | SquareHinge) -> Loss:
    logits, gradient = _fixed(op.logits), _fixed(graph.value(gradient_name(op.logits.name)))
    hinge = isinstance(op, SquareHinge)
    if not 0 <= logits.frac <= 16 or not 0 <= gradient.frac <= (logits.frac if hinge else 31):
        raise UnsupportedError(f"The loss unit takes logits with 0..16 fraction bits and a gradient with 0..31, for "
                               f"the square hinge no finer than the logits, not {logits} and {gradient}")
    return Loss(hinge=hinge, classes=op.logits.shape[0], logit_format=logits, gradient_format=gradient)
