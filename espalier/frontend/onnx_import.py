"""From an ONNX network to a float graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from espalier.errors import DataError, GraphError, UnsupportedError
from espalier.frontend import supported
from espalier.frontend.builder import GraphBuilder, Norm, per_channel
from espalier.frontend.onnx_file import FLOAT_TYPES, constants_of, image_inputs, read_model
from espalier.frontend.onnx_node import Node, image_shape, node_window
from espalier.frontend.supported import Layer
from espalier.ir.graph import Graph
from espalier.ir.types import Value

Named = tuple[str, NDArray]  #: a constant with its name


def from_onnx(source: str | Path | onnx.ModelProto, constants: Mapping[str, NDArray] | None = None, *,
              keep_batch_norm: bool = False) -> tuple[Graph, dict[str, NDArray[np.float64]]]:
    """Import an ONNX file or model as a float graph and its float64 parameters by name.

    Parameters are named as the initialisers; a value has the name of the layer that its weight
    names (``"conv1.weight"`` → ``"conv1"``), else of its node, else of its result.

    Parameters
    ----------
    source : path or ModelProto
    constants : mapping
        Arrays to bind inputs to, so that they become parameters.
    keep_batch_norm : bool
        Batch norms become operations of the graph, to be trained in float, instead of being folded into the
        layers before them.

    Raises
    ------
    DataError
        The file is missing, corrupt or lacks its external data, or a weight is not finite.
    UnsupportedError
        A version, layer or option that the table of supported layers does not take.
    GraphError
        Shapes that do not fit each other.
    """
    model = read_model(source)
    unknown = sorted(set(constants or {}) - {value.name for value in model.graph.input})
    if unknown:
        raise GraphError(f"Constants are bound to inputs of the network, and it has no input {unknown[0]!r}; its "
                         f"inputs are {', '.join(value.name for value in model.graph.input)}")
    return _Importer(model, constants_of(model, constants or {}), keep_batch_norm).run()


class _Importer:
    """Walks the nodes in order."""

    def __init__(self, model: onnx.ModelProto, constants: Mapping[str, NDArray], keep_batch_norm: bool) -> None:
        self.graph = model.graph
        self.constants = dict(constants)
        self.builder = GraphBuilder(model.graph.name or "network", keep_batch_norm=keep_batch_norm)
        self.values: dict[str, Value] = {}
        self.batch: int | None = None
        self.readers = Counter(name for node in model.graph.node for name in node.input)
        self.readers.update(output.name for output in model.graph.output)
        self.element_types: dict[str, int] = {}
        self._read_inputs(model)

    def _read_inputs(self, model: onnx.ModelProto) -> None:
        labels = {node.input[1] for node in model.graph.node if node.op_type == "SoftmaxCrossEntropyLoss"}
        for name, element_type, batch, shape in image_inputs(model, self.constants):
            self.element_types[name] = element_type
            self.batch = batch if self.batch is None else self.batch
            self.values[name] = self.builder.input(name, shape, labels=name in labels)

    def run(self) -> tuple[Graph, dict[str, NDArray[np.float64]]]:
        for proto in self.graph.node:
            node = Node(proto, self._name(proto))
            if node.operator != "Constant":
                self.values[proto.output[0]] = self._layer(node)
        return self.builder.finish(tuple(self._output(output.name) for output in self.graph.output))

    def _output(self, name: str) -> Value:
        if name in self.constants:
            raise supported.CONSTANT.refuse(supported.CONSTANT_RESULT, f"Output {name!r}")
        if name not in self.values:
            raise UnsupportedError(f"Output {name!r} of the network is not the first result of a node; "
                                   f"return the logits only")
        return self.values[name]

    def _name(self, proto: onnx.NodeProto) -> str:
        weight = next((name for name in proto.input if name in self.constants and name.endswith(".weight")), None)
        return weight.removesuffix(".weight") if weight else proto.name or proto.output[0]

    def _layer(self, node: Node) -> Value:
        """The value of one node; refuses what stands in no row of the table."""
        build = self.builder
        match node.operator:
            case "Conv":
                return self._conv(node)
            case "Gemm":
                return self._gemm(node)
            case "MatMul":
                return self._matmul(node)
            case "BatchNormalization":
                return self._batch_norm(node)
            case "Relu":
                return build.relu(node.site, self._value(node, 0, supported.RELU))
            case "Clip":
                return self._clip(node)
            case "MaxPool":
                return self._max_pool(node)
            case "AveragePool":
                x = self._plane(node, supported.AVERAGE_POOL)
                return build.average_pool(node.site, x, node_window(node, x, node.integers("kernel_shape", ())),
                                          ceil_mode=bool(node.integer("ceil_mode", 0)),
                                          counts_padding=bool(node.integer("count_include_pad", 0)))
            case "GlobalAveragePool":
                return build.global_average_pool(node.site, self._plane(node, supported.GLOBAL_AVERAGE_POOL))
            case "Add":
                return self._add(node)
            case "Concat":
                parts = [self._part(node, position) for position in range(len(node.proto.input))]
                return build.concat(node.site, parts, node.integer("axis", 1))
            case "Pad":
                return self._pad(node)
            case "Flatten":
                return self._flatten(node)
            case "Reshape":
                return self._reshape(node)
            case "Identity":
                return self._value(node, 0, supported.IDENTITY)
            case "Dropout":
                return self._dropout(node)
            case "SoftmaxCrossEntropyLoss":
                return self._softmax_cross_entropy(node)
            case _:
                raise supported.unsupported(node.site.label, node.operator)

    def _value(self, node: Node, position: int, layer: Layer) -> Value:
        """The value of an input of floating-point numbers that depends on the image."""
        name = node.input(position)
        if name in self.constants:
            raise UnsupportedError(f"{node.site.label} reads only the constant {name!r}; compute it before the export")
        if name not in self.values:
            raise UnsupportedError(f"{node.site.label} reads {name!r}, a result that is not taken from its node; use "
                                   f"first results only")
        if self.element_types.get(name, onnx.TensorProto.FLOAT) not in FLOAT_TYPES:
            raise layer.refuse(supported.ELEMENTS, node.site.label,
                               f"{name!r} is {onnx.TensorProto.DataType.Name(self.element_types[name])}")
        return self.values[name]

    def _plane(self, node: Node, layer: Layer) -> Value:
        x = self._value(node, 0, layer)
        if len(x.shape) != 3:
            raise layer.refuse(supported.PLANE, node.site.label, f"shape {x.shape} of an image")
        return x

    def _constant(self, node: Node, position: int, layer: Layer, limit: supported.Limit) -> Named:
        name = node.input(position)
        if name not in self.constants:
            raise layer.refuse(limit, node.site.label, f"{name!r} is computed or an input")
        array = self.constants[name]
        if limit is supported.WEIGHT and array.dtype.kind in "iubc":
            raise layer.refuse(supported.ELEMENTS, node.site.label, f"{name!r} is {array.dtype}")
        return name, array

    def _optional_constant(self, node: Node, position: int, layer: Layer, limit: supported.Limit) -> Named | None:
        return self._constant(node, position, layer, limit) if node.input(position) else None

    def _conv(self, node: Node) -> Value:
        layer = supported.CONV2D
        x = self._plane(node, layer)
        weight = self._constant(node, 1, layer, supported.WEIGHT)
        bias = self._optional_constant(node, 2, layer, supported.WEIGHT)
        if weight[1].ndim != 4:
            raise layer.refuse(supported.PLANE, node.site.label, f"weight of shape {weight[1].shape}")
        kernel = weight[1].shape[2:]
        if node.integers("kernel_shape", kernel) != kernel:
            raise GraphError(f"{node.site.label}: kernel_shape {node.integers('kernel_shape', kernel)} is not that of "
                             f"its weight, {kernel}")
        return self.builder.conv2d(node.site, x, weight, bias, node_window(node, x, kernel), node.integer("group", 1))

    def _gemm(self, node: Node) -> Value:
        """alpha·x·W + beta·c, with alpha and beta folded into the weight and the bias."""
        layer = supported.LINEAR
        if node.integer("transA", 0):
            raise layer.refuse(supported.TRANSPOSED_INPUT, node.site.label)
        x = self._value(node, 0, layer)
        name, matrix = self._constant(node, 1, layer, supported.WEIGHT)
        if matrix.ndim != 2:
            raise layer.refuse(supported.MATRIX, node.site.label, f"shape {matrix.shape}")
        weight = (matrix if node.integer("transB", 0) else matrix.T).astype(np.float64) * node.real("alpha", 1.0)
        bias = self._optional_constant(node, 2, layer, supported.WEIGHT)
        if bias is not None:
            numbers = per_channel(bias[1].astype(np.float64), weight.shape[:1])
            if numbers is None:
                raise layer.refuse(supported.BIAS_SHAPE, node.site.label, f"shape {bias[1].shape}")
            bias = bias[0], numbers * node.real("beta", 1.0)
        return self.builder.linear(node.site, x, (name, weight), bias)

    def _matmul(self, node: Node) -> Value:
        layer = supported.LINEAR
        x = self._value(node, 0, layer)
        name, matrix = self._constant(node, 1, layer, supported.WEIGHT)
        if matrix.ndim != 2:
            raise layer.refuse(supported.MATRIX, node.site.label, f"shape {matrix.shape}")
        return self.builder.linear(node.site, x, (name, matrix.T), None)

    def _clip(self, node: Node) -> Value:
        """Ends are attributes in operator sets before 11, later constants; without them there is no end."""
        layer = supported.CLIPPED_RELU
        x = self._value(node, 0, layer)
        ends = []
        for position, name, absent in ((1, "min", -np.inf), (2, "max", np.inf)):
            given = self._optional_constant(node, position, layer, supported.CLIP_CONSTANTS)
            end = node.real(name, absent) if given is None else float(given[1].reshape(()))
            ends.append(absent if abs(end) >= np.finfo(np.float32).max else end)
        return self.builder.clipped_relu(node.site, x, *ends)

    def _part(self, node: Node, position: int) -> Value:
        name = node.input(position)
        if name in self.constants:
            raise supported.CONCAT.refuse(supported.CONSTANT_PART, node.site.label, f"{name!r} is a constant")
        return self._value(node, position, supported.CONCAT)

    def _pad(self, node: Node) -> Value:
        """Sizes are an attribute in operator sets before 11, later a constant, with the axes in another."""
        layer = supported.PAD
        x = self._plane(node, layer)
        given, axes = (self._optional_constant(node, position, layer, supported.CONSTANT_PADDING)
                       for position in (1, 3))
        value = self._optional_constant(node, 2, layer, supported.CONSTANT_PADDING)
        mode, fill = node.text("mode", "constant"), node.real("value", 0.0) if value is None else value[1].reshape(())
        if mode != "constant" or fill:
            raise layer.refuse(supported.PAD_VALUE, node.site.label, f"{mode}, value {fill}")
        sizes = node.integers("pads", ()) if given is None else tuple(int(size) for size in given[1])
        named = range(4) if axes is None else [int(axis) % 4 for axis in axes[1]]
        if len(sizes) != 2 * len(named):
            raise GraphError(f"{node.site.label}: pads {sizes} must be two numbers for each of the {len(named)} axes")
        before = dict(zip(named, sizes, strict=False))
        after = dict(zip(named, sizes[len(named):], strict=True))
        if any(sides.get(axis, 0) for sides in (before, after) for axis in (0, 1)):
            raise layer.refuse(supported.PAD_AXES, node.site.label, f"pads {sizes}")
        top, left, bottom, right = (sides.get(axis, 0) for sides in (before, after) for axis in (2, 3))
        return self.builder.pad(node.site, x, (top, left, bottom, right))

    def _max_pool(self, node: Node) -> Value:
        layer = supported.MAX_POOL
        x = self._plane(node, layer)
        if node.result_used(1, self.readers):
            raise layer.refuse(supported.INDICES, node.site.label)
        if node.integer("storage_order", 0):
            raise layer.refuse(supported.STORAGE_ORDER, node.site.label)
        return self.builder.max_pool(node.site, x, node_window(node, x, node.integers("kernel_shape", ())),
                                     ceil_mode=bool(node.integer("ceil_mode", 0)))

    def _add(self, node: Node) -> Value:
        """A sum of two values, or a constant that becomes the bias of the layer before."""
        layer = supported.ADD
        fixed = [position for position in (0, 1) if node.input(position) in self.constants]
        if not fixed:
            return self.builder.add(node.site, self._value(node, 0, layer), self._value(node, 1, layer))
        name, array = self._constant(node, fixed[0], layer, supported.ADD_SHAPES)
        y = self._value(node, 1 - fixed[0], layer)
        folded = self.builder.fold_bias(node.site, y, name, array) if self._read_once(y) else None
        if folded is None:
            raise layer.refuse(supported.ADD_SHAPES, node.site.label, f"the constant {name!r} of shape {array.shape}")
        return folded

    def _read_once(self, y: Value) -> bool:
        """Whether one node alone reads ``y``, under whatever names: each name but the first is one reading of it."""
        names = [name for name, value in self.values.items() if value == y]
        return sum(self.readers[name] for name in names) == len(names)

    def _batch_norm(self, node: Node) -> Value:
        layer = supported.BATCH_NORM
        y = self._value(node, 0, layer)
        if node.integer("training_mode", 0) or any(node.result_used(i, self.readers) for i in range(1, 5)):
            raise layer.refuse(supported.BATCH_STATISTICS, node.site.label)
        if not node.integer("spatial", 1):
            raise layer.refuse(supported.PIXEL_STATISTICS, node.site.label)
        constants = (self._constant(node, position, layer, supported.WEIGHT) for position in (1, 2, 3, 4))
        scale, shift, mean, variance = ((name, array.astype(np.float64)) for name, array in constants)
        norm = Norm(scale, shift, mean, variance, node.real("epsilon", 1e-5))
        return self.builder.batch_norm(node.site, y, norm, sole_reader=self._read_once(y))

    def _flatten(self, node: Node) -> Value:
        x = self._value(node, 0, supported.RESHAPE)
        axis = node.integer("axis", 1)
        if axis not in (1, 1 - (1 + len(x.shape))):
            raise supported.RESHAPE.refuse(supported.BATCH_AXIS, node.site.label, f"axis {axis}")
        return self.builder.reshape(node.site, x, (int(np.prod(x.shape)),))

    def _reshape(self, node: Node) -> Value:
        x = self._value(node, 0, supported.RESHAPE)
        name, sizes = self._constant(node, 1, supported.RESHAPE, supported.CONSTANT_SHAPE)
        if sizes.ndim != 1:
            raise GraphError(f"{node.site.label}: the shape {name!r} must be a list of numbers, not {sizes.tolist()}")
        target = tuple(int(size) for size in sizes)
        shape = image_shape(target, x.shape, self.batch, bool(node.integer("allowzero", 0)))
        if shape is None:
            raise supported.RESHAPE.refuse(supported.BATCH_AXIS, node.site.label,
                                           f"images of shape {x.shape} to {target}")
        return self.builder.reshape(node.site, x, shape)

    def _dropout(self, node: Node) -> Value:
        layer = supported.DROPOUT
        x = self._value(node, 0, layer)
        if node.result_used(1, self.readers):
            raise layer.refuse(supported.MASK, node.site.label)
        training = self._optional_constant(node, 2, layer, supported.TRAINING_MODE)
        ratio = self.constants.get(node.input(1))
        if training is not None and training[1].any() and (ratio is None or ratio.any()):
            raise layer.refuse(supported.TRAINING_MODE, node.site.label)
        return x

    def _softmax_cross_entropy(self, node: Node) -> Value:
        layer = supported.SOFTMAX_CROSS_ENTROPY
        logits = self._value(node, 0, layer)
        if node.input(2):
            raise layer.refuse(supported.LOSS_WEIGHTS, node.site.label)
        if node.has("ignore_index"):
            raise layer.refuse(supported.IGNORE_INDEX, node.site.label)
        if node.result_used(1, self.readers):
            raise layer.refuse(supported.LOG_PROBABILITY, node.site.label)
        if node.text("reduction", "mean") != "none":
            raise layer.refuse(supported.REDUCTION, node.site.label, node.text("reduction", "mean"))
        if node.input(1) not in self.values:
            raise DataError(f"{node.site.label}: the labels {node.input(1)!r} must be an input of the network")
        return self.builder.softmax_cross_entropy(node.site, logits, self.values[node.input(1)])
