"""Building a float graph layer by layer: what the torch and the ONNX importer share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from espalier.errors import DataError, GraphError, UnsupportedError
from espalier.frontend import supported
from espalier.frontend.supported import Layer
from espalier.ir.graph import Graph
from espalier.ir.ops import (
    Add,
    AveragePool,
    BatchNorm,
    ClippedRelu,
    Concat,
    Conv2d,
    GlobalAveragePool,
    Linear,
    MaxPool,
    Op,
    Relu,
    Reshape,
    SoftmaxCrossEntropy,
)
from espalier.ir.types import FLOAT, INDEX, TensorType, Value
from espalier.ir.verify import verify
from espalier.numerics.batch_norm import check_variance, folded
from espalier.numerics.window import Window

RESERVED = frozenset({"labels", "loss"})  #: names that ``differentiate`` gives
LARGEST_BOUND = 1 << 20                   #: of a clipped rectifier


@dataclass(frozen=True, slots=True)
class Site:
    """Where in the user's network a layer stands.

    Parameters
    ----------
    name : str
        Wanted for the layer's value.
    label : str
        For messages: ``"Layer 'pool1' (aten.max_pool2d.default)"``.
    """

    name: str
    label: str


@dataclass(frozen=True, slots=True)
class Norm:
    """A batch norm in inference: ``(y - mean) / sqrt(variance + epsilon) * scale + shift``, each (name, array (C,))."""

    scale: tuple[str, NDArray[np.float64]]
    shift: tuple[str, NDArray[np.float64]]
    mean: tuple[str, NDArray[np.float64]]
    variance: tuple[str, NDArray[np.float64]]
    epsilon: float

    @property
    def numbers(self) -> tuple[tuple[str, NDArray[np.float64]], ...]:
        """Scale, shift, mean and variance."""
        return self.scale, self.shift, self.mean, self.variance


@dataclass(frozen=True, slots=True)
class _Padded:
    """What a value is that only a convolution may read: ``x`` with zeros around it (top, left, bottom, right)."""

    x: Value
    pad: tuple[int, int, int, int]
    label: str


class GraphBuilder:
    """A float :class:`Graph` and its parameters (float64, by name) in the making.

    Each method appends one layer and returns its value. What the table of supported layers does
    not take raises UnsupportedError with the site's label; shapes that do not fit raise GraphError,
    parameters that are not finite raise DataError.

    ``keep_batch_norm``: batch norms become operations of their own, to be trained, instead of being folded.
    """

    def __init__(self, name: str, *, keep_batch_norm: bool = False) -> None:
        self.name = name
        self.keep_batch_norm = keep_batch_norm
        self.inputs: list[Value] = []
        self.parameters: list[Value] = []
        self.ops: list[Op] = []
        self.state: dict[str, NDArray[np.float64]] = {}
        self._names: set[str] = set(RESERVED)
        self._padded: dict[Value, _Padded] = {}

    def input(self, name: str, shape: tuple[int, ...], *, labels: bool = False) -> Value:
        """An input of ``shape`` without the batch axis; ``labels`` are whole numbers."""
        type_ = TensorType(shape, INDEX if labels else FLOAT)
        value = Value(name if labels else self._unique(name), type_)
        self._names.add(value.name)
        self.inputs.append(value)
        return value

    def _unique(self, name: str) -> str:
        candidates = (name, *(f"{name}_{i}" for i in range(1, len(self._names) + 2)))
        found = next(candidate for candidate in candidates if candidate not in self._names)
        self._names.add(found)
        return found

    def _value(self, site: Site, shape: tuple[int, ...]) -> Value:
        return Value(self._unique(site.name), TensorType(shape, FLOAT))

    def _emit(self, op: Op) -> Value:
        for value in op.inputs:
            self._require_unpadded(value)
        self.ops.append(op)
        return op.out

    def _parameter(self, layer: Layer, site: Site, name: str, array: ArrayLike) -> Value:
        if np.iscomplexobj(array):
            raise layer.refuse(supported.ELEMENTS, site.label, f"{name!r} is complex")
        words = np.asarray(array, dtype=np.float64)
        if name in self.state:
            raise layer.refuse(supported.WEIGHT, site.label, f"{name!r} is also the weight of another layer")
        if not np.isfinite(words).all():
            raise DataError(f"{site.label}: weights must be finite, and {name!r} holds {_first_odd(words)}; "
                            f"train again or repair the file")
        if name in self._names:
            raise GraphError(f"{site.label}: the parameter {name!r} has the name of another value; rename one of them")
        self._names.add(name)
        self.state[name] = words
        return Value(name, TensorType(words.shape, FLOAT))

    def _layer_parameters(self, layer: Layer, site: Site, weight: tuple[str, ArrayLike],
                          bias: tuple[str, ArrayLike] | None) -> tuple[Value, Value | None]:
        w = self._parameter(layer, site, *weight)
        b = None if bias is None else self._parameter(layer, site, *bias)
        self.parameters += [w] if b is None else [w, b]
        return w, b

    def conv2d(self, site: Site, x: Value, weight: tuple[str, ArrayLike], bias: tuple[str, ArrayLike] | None,
               window: Window, groups: int) -> Value:
        """A convolution; ``weight`` and ``bias`` are (name, array)."""
        layer = supported.CONV2D
        x, pad = self._unpadded(x, window.pad)
        window = replace(window, pad=pad)
        self._plane(layer, site, x)
        layer.check(site.label, kernel=window.kernel, stride=window.stride, padding=window.pad,
                    dilation=window.dilation, groups=groups)
        w, b = self._layer_parameters(layer, site, weight, bias)
        if w.shape[1] * groups != x.shape[0] or w.shape[0] % groups:
            raise GraphError(f"{site.label}: a weight of shape {w.shape} in {groups} groups does not fit the "
                             f"{x.shape[0]} channels of {x.name!r}")
        shape = (w.shape[0], *_out_size(site, window, x))
        return self._emit(Conv2d(self._value(site, shape), x, w, b, window, groups))

    def linear(self, site: Site, x: Value, weight: tuple[str, ArrayLike], bias: tuple[str, ArrayLike] | None) -> Value:
        """A fully connected layer; ``weight`` (O, I) and ``bias`` (O,) are (name, array)."""
        layer = supported.LINEAR
        if len(x.shape) != 1:
            raise layer.refuse(supported.VECTORS, site.label, f"shape {x.shape} of an image")
        w, b = self._layer_parameters(layer, site, weight, bias)
        if w.shape[1:] != x.shape:
            raise GraphError(f"{site.label}: a weight of {w.shape[1]} inputs does not fit the {x.shape[0]} features "
                             f"of {x.name!r}")
        return self._emit(Linear(self._value(site, w.shape[:1]), x, w, b))

    def fold_bias(self, site: Site, y: Value, name: str, array: NDArray) -> Value | None:
        """Make a constant added to ``y`` the bias of the layer that computed it; None where that cannot be.

        It can where that layer has no bias yet, nothing else has read ``y``, and ``array`` is one number
        a channel, or one number.
        """
        op = self._unread_layer(y)
        bias = per_channel(array, y.shape)
        if op is None or op.b is not None or bias is None:
            return None
        self._give_bias(op, site, name, bias)
        return y

    def batch_norm(self, site: Site, y: Value, norm: Norm, *, sole_reader: bool) -> Value:
        """Fold a batch norm into the layer that computed ``y``, which becomes the normalised value; or keep it.

        ``sole_reader``: nothing later reads ``y`` as it was. A layer without bias gets one, named as its
        weight (``"conv1.weight"`` → ``"conv1.bias"``), else as the shift.
        """
        layer = supported.BATCH_NORM
        normed = self.keep_batch_norm and any(op.out == y and isinstance(op, BatchNorm) for op in self.ops)
        op = self._unread_layer(y) if sole_reader else None
        if op is None and not (sole_reader and normed and not self._is_read(y)):
            raise layer.refuse(supported.NOT_AFTER_LAYER, site.label, f"it reads {y.name!r}")
        if any(numbers.shape != y.shape[:1] for _, numbers in norm.numbers):
            raise GraphError(f"{site.label}: a batch norm of {norm.mean[1].size} channels does not fit the "
                             f"{y.shape[0]} channels of {y.name!r}")
        check_variance(site.label, norm.variance[1], norm.epsilon)
        if self.keep_batch_norm or op is None:
            return self._keep(site, y, norm)
        self._fold(op, site, norm)
        return y

    def _keep(self, site: Site, y: Value, norm: Norm) -> Value:
        parameters = [self._parameter(supported.BATCH_NORM, site, *numbers) for numbers in norm.numbers]
        self.parameters += parameters
        scale, shift, mean, variance = parameters
        return self._emit(BatchNorm(self._value(site, y.shape), y, scale, shift, mean, variance, norm.epsilon))

    def _fold(self, op: Conv2d | Linear, site: Site, norm: Norm) -> None:
        weight, bias = folded(self.state[op.w.name], None if op.b is None else self.state[op.b.name],
                              *(array for _, array in norm.numbers), epsilon=norm.epsilon)
        self.state[op.w.name] = weight
        if op.b is None:
            own = op.w.name.removesuffix(".weight")
            self._give_bias(op, site, norm.shift[0] if own == op.w.name else f"{own}.bias", bias)
        else:
            self.state[op.b.name] = bias

    def _unread_layer(self, y: Value) -> Conv2d | Linear | None:
        """The layer with weights that computed ``y``, if that is one and no operation has read ``y``."""
        if self._is_read(y):
            return None
        op = next((op for op in self.ops if op.out == y), None)
        return op if isinstance(op, Conv2d | Linear) else None

    def _is_read(self, y: Value) -> bool:
        return any(y in op.inputs for op in self.ops)

    def _give_bias(self, op: Conv2d | Linear, site: Site, name: str, bias: NDArray) -> None:
        layer = supported.CONV2D if isinstance(op, Conv2d) else supported.LINEAR
        b = self._parameter(layer, site, name, bias)
        self.parameters.insert(self.parameters.index(op.w) + 1, b)
        self.ops[self.ops.index(op)] = replace(op, b=b)

    def pad(self, site: Site, x: Value, pad: tuple[int, int, int, int]) -> Value:
        """``x`` with zeros around it (top, left, bottom, right), as which the convolutions that read it take them."""
        layer = supported.PAD
        self._plane(layer, site, x)
        if min(pad) < 0:
            raise layer.refuse(supported.CROPPING, site.label, f"padding {pad}")
        if not any(pad):
            return x
        x, pad = self._unpadded(x, pad)
        channels, height, width = x.shape
        value = self._value(site, (channels, height + pad[0] + pad[2], width + pad[1] + pad[3]))
        self._padded[value] = _Padded(x, pad, site.label)
        return value

    def _unpadded(self, x: Value, pad: tuple[int, int, int, int]) -> tuple[Value, tuple[int, int, int, int]]:
        """What ``x`` has zeros around, if it has, and ``pad`` with those."""
        if x not in self._padded:
            return x, pad
        before = self._padded[x]
        top, left, bottom, right = (own + more for own, more in zip(pad, before.pad, strict=True))
        return before.x, (top, left, bottom, right)

    def _require_unpadded(self, value: Value) -> None:
        if value in self._padded:
            raise supported.PAD.refuse(supported.NOT_BEFORE_CONV2D, self._padded[value].label)

    def relu(self, site: Site, x: Value) -> Value:
        return self._emit(Relu(self._value(site, x.shape), x))

    def clipped_relu(self, site: Site, x: Value, low: float, high: float) -> Value:
        """``x`` between ``low`` and ``high``; without an upper end where that is infinite."""
        layer = supported.CLIPPED_RELU
        if low != 0:
            raise layer.refuse(supported.LOWER_END, site.label, f"{low:g}")
        if high == np.inf:
            return self.relu(site, x)
        if not 1 <= high <= LARGEST_BOUND or high != int(high):
            raise layer.refuse(supported.UPPER_END, site.label, f"{high:g}")
        return self._emit(ClippedRelu(self._value(site, x.shape), x, int(high)))

    def concat(self, site: Site, parts: Sequence[Value], axis: int) -> Value:
        """The channels of one part after the other; ``axis`` counts from the batch axis."""
        layer = supported.CONCAT
        whole, *others = parts
        if not whole.shape or axis not in (1, -len(whole.shape)):
            raise layer.refuse(supported.CONCAT_AXIS, site.label, f"axis {axis}, shape {whole.shape} of an image")
        for part in others:
            if part.shape[:1] + whole.shape[1:] != part.shape:
                raise GraphError(f"{site.label}: parts of shapes {whole.shape} and {part.shape} of an image do not fit "
                                 f"together")
            shape = (whole.shape[0] + part.shape[0], *whole.shape[1:])
            whole = self._emit(Concat(self._value(site, shape), whole, part))
        return whole

    def max_pool(self, site: Site, x: Value, window: Window, *, ceil_mode: bool = False) -> Value:
        """A partial last window of ``ceil_mode`` becomes padding behind the input, which never wins."""
        layer = supported.MAX_POOL
        self._pool(layer, site, x, window)
        if ceil_mode:
            window = _reaching(window, x, _ceil_size(window, x))
        return self._emit(MaxPool(self._value(site, (x.shape[0], *_out_size(site, window, x))), x, window))

    def average_pool(self, site: Site, x: Value, window: Window, *, ceil_mode: bool = False,
                     counts_padding: bool = True) -> Value:
        layer = supported.AVERAGE_POOL
        self._pool(layer, site, x, window)
        if ceil_mode and _ceil_size(window, x) != _out_size(site, window, x):
            raise layer.refuse(supported.CEIL_MODE, site.label, f"window {window.kernel}, stride {window.stride}, "
                               f"input {x.shape[1:]}")
        if any(window.pad) and not counts_padding:
            raise layer.refuse(supported.COUNT_WITHOUT_PADDING, site.label, f"padding {window.pad}")
        return self._emit(AveragePool(self._value(site, (x.shape[0], *_out_size(site, window, x))), x, window))

    def _pool(self, layer: Layer, site: Site, x: Value, window: Window) -> None:
        self._plane(layer, site, x)
        layer.check(site.label, kernel=window.kernel, stride=window.stride, padding=window.pad,
                    dilation=window.dilation)
        extent = tuple(d * (k - 1) + 1 for k, d in zip(window.kernel, window.dilation, strict=True))
        if any(pad >= extent[i % 2] for i, pad in enumerate(window.pad)):
            raise layer.refuse(supported.WIDE_POOL_PADDING, site.label, f"padding {window.pad}, kernel {window.kernel}")

    def global_average_pool(self, site: Site, x: Value) -> Value:
        self._plane(supported.GLOBAL_AVERAGE_POOL, site, x)
        return self._emit(GlobalAveragePool(self._value(site, (x.shape[0], 1, 1)), x))

    def add(self, site: Site, a: Value, b: Value) -> Value:
        if a.shape != b.shape:
            raise supported.ADD.refuse(supported.ADD_SHAPES, site.label, f"shapes {a.shape} and {b.shape} of an image")
        return self._emit(Add(self._value(site, a.shape), a, b))

    def reshape(self, site: Site, x: Value, shape: tuple[int, ...]) -> Value:
        """``x`` as ``shape`` (of an image); ``x`` itself where it has that shape already."""
        if shape == x.shape:
            return x
        if np.prod(shape, dtype=np.int64) != np.prod(x.shape, dtype=np.int64):
            raise supported.RESHAPE.refuse(supported.BATCH_AXIS, site.label, f"an image of shape {x.shape} to {shape}")
        return self._emit(Reshape(self._value(site, shape), x))

    def softmax_cross_entropy(self, site: Site, logits: Value, labels: Value) -> Value:
        if len(logits.shape) != 1:
            raise supported.SOFTMAX_CROSS_ENTROPY.refuse(supported.VECTORS, site.label,
                                                         f"logits of shape {logits.shape} for an image")
        return self._emit(SoftmaxCrossEntropy(self._value(site, ()), logits, labels))

    def _plane(self, layer: Layer, site: Site, x: Value) -> None:
        if len(x.shape) != 3:
            raise layer.refuse(supported.PLANE, site.label, f"shape {x.shape} of an image")

    def finish(self, outputs: tuple[Value, ...]) -> tuple[Graph, dict[str, NDArray[np.float64]]]:
        """The verified graph and its parameters."""
        for value in outputs:
            self._require_unpadded(value)
        if not self.ops and not self.inputs:
            raise UnsupportedError(f"Network {self.name!r} has no layer; give one that computes something")
        graph = Graph(self.name, tuple(self.inputs), tuple(self.parameters), tuple(self.ops), outputs)
        return verify(graph), self.state


def per_channel(array: NDArray, shape: tuple[int, ...]) -> NDArray | None:
    """``array`` as one number for each channel of a batch of images of ``shape``; None where it is not that."""
    full = (1, *shape)
    if array.ndim > len(full):  # the sum would have more axes than the layer's result
        return None
    if array.size == 1:
        return np.full(shape[0], array.item())
    aligned = (1,) * (len(full) - array.ndim) + array.shape
    if aligned != (1, shape[0], *(1,) * (len(shape) - 1)):
        return None
    return array.reshape(-1)


def _out_size(site: Site, window: Window, x: Value) -> tuple[int, int]:
    try:
        return window.out_size(*x.shape[1:])
    except GraphError as error:
        raise GraphError(f"{site.label}: {error}") from error


def _ceil_size(window: Window, x: Value) -> tuple[int, int]:
    """The output size with ceil_mode: rounded up, without windows that start in the padding after the input."""
    def along(axis: int) -> int:
        before, after = window.pad[axis], window.pad[axis + 2]
        extent = window.dilation[axis] * (window.kernel[axis] - 1) + 1
        stride, size = window.stride[axis], x.shape[1 + axis]
        count = -((extent - size - before - after) // stride) + 1
        return count - 1 if (count - 1) * stride >= size + before else count
    return along(0), along(1)


def _reaching(window: Window, x: Value, size: tuple[int, int]) -> Window:
    """``window`` with as much more padding behind ``x`` as ``size`` positions need."""
    def behind(axis: int) -> int:
        extent = window.dilation[axis] * (window.kernel[axis] - 1) + 1
        reach = (size[axis] - 1) * window.stride[axis] + extent - window.pad[axis] - x.shape[1 + axis]
        return max(window.pad[axis + 2], reach)
    return replace(window, pad=(*window.pad[:2], behind(0), behind(1)))


def _first_odd(words: NDArray[np.float64]) -> str:
    odd = np.argwhere(~np.isfinite(words))[0]
    return f"{words[tuple(odd)]} at {tuple(int(i) for i in odd)}"
