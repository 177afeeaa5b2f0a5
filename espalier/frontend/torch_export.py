"""From a torch module, through ``torch.export``, to a float graph."""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from espalier.errors import GraphError, UnsupportedError
from espalier.frontend import supported
from espalier.frontend.builder import GraphBuilder, Norm, Site
from espalier.frontend.supported import Layer
from espalier.frontend.torch_call import Call, call_of, conv_window, pool_window, site_of
from espalier.ir.graph import Graph
from espalier.ir.types import Value
from espalier.numerics.window import Window

BATCH = 2  #: images in the traced batch: not 1, so that a shape which loses the batch axis is seen


def from_torch(module: torch.nn.Module, input_shape: tuple[int, int, int], name: str, *, keep_batch_norm: bool = False
               ) -> tuple[Graph, dict[str, NDArray[np.float64]]]:
    """Import ``module`` as it is in inference, for images of ``input_shape`` (C, H, W).

    Parameters are named as in ``state_dict``; a value has the name of its module (``"conv1"``), or,
    for a function called in ``forward``, the module's and the function's (``"block.relu"``). A batch norm
    is folded into the layer before it, which gets a bias if it has none. The module stays untouched,
    whatever its mode and device.

    Parameters
    ----------
    keep_batch_norm : bool
        Batch norms become operations of the graph instead, to be trained in float. One without scale and shift
        (``affine=False``) gets them, as 1 and 0.

    Raises
    ------
    UnsupportedError
        A layer or option that the table does not take, a complex weight, or a module that ``torch.export``
        does not take.
    GraphError
        The module does not accept that input shape.
    DataError
        A weight is not finite.
    """
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise GraphError(f"Images have a shape (channels, height, width) of positive sizes, not {input_shape}")
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedError(f"Network {name!r} is a TorchScript module, which torch.export does not take; give the "
                               f"torch module that it was made from")
    _require_real(module, name)
    inference = copy.deepcopy(module).to(device="cpu", dtype=torch.float64).eval()  # exact for every narrower weight
    images = torch.zeros(BATCH, *input_shape, dtype=torch.float64)
    _try(inference, images, name)
    program = _export(inference, images, name)
    return _Importer(program, name, keep_batch_norm).run()


def fixed_parameters(module: torch.nn.Module) -> frozenset[str]:
    """The names, as :func:`from_torch` gives them, of the parameters that are not to be trained.

    They are those whose ``requires_grad`` is False, such as the shortcuts between the stages of a ResNet of the zoo.
    """
    return frozenset(name for name, weight in module.named_parameters() if not weight.requires_grad)


def _require_real(module: torch.nn.Module, name: str) -> None:
    """Raise UnsupportedError for a weight whose imaginary part the conversion to float64 would drop."""
    found = next((key for key, weight in module.named_parameters() if weight.is_complex()), None)
    if found is not None:
        path = found.rpartition(".")[0]
        raise UnsupportedError(f"{_place(module, path, name)} has the complex weight {found!r}, and weights must be "
                               f"real: give its real and its imaginary part a layer each")


def _place(module: torch.nn.Module, path: str, name: str) -> str:
    """The layer at ``path`` of the network ``name``, with its kind, for messages."""
    kind = type(module.get_submodule(path)).__name__
    return f"Layer {path!r} ({kind})" if path else f"Network {name!r} ({kind})"


def _try(module: torch.nn.Module, images: torch.Tensor, name: str) -> None:
    """Run once, so that a shape that does not fit is reported with the layer it does not fit."""
    entered: list[str] = []
    paths = {child: path for path, child in module.named_modules()}
    hooks = [child.register_forward_pre_hook(lambda called, _: entered.append(paths[called])) for child in paths]
    try:
        with torch.no_grad():
            module(images)
    except (RuntimeError, ValueError, TypeError, LookupError, AssertionError) as error:
        where = _place(module, entered[-1] if entered else "", name)
        raise GraphError(f"{where} does not accept what images of shape {tuple(images.shape[1:])} give it: "
                         f"{_first_line(error)}; give the shape that the network was made for, and take any batch size "
                         f"in forward") from error
    finally:
        for hook in hooks:
            hook.remove()


def _export(module: torch.nn.Module, images: torch.Tensor, name: str) -> ExportedProgram:
    """The functional form (no operation writes in place) with layers kept whole."""
    try:
        program = torch.export.export(module, (images,))
        with warnings.catch_warnings():  # torch 2.13 copies a class that it deprecated itself
            warnings.simplefilter("ignore", FutureWarning)
            functional: ExportedProgram = program.run_decompositions({})
            return functional
    except (RuntimeError, ValueError, TypeError) as error:
        raise UnsupportedError(f"Network {name!r} cannot be traced by torch.export: {_first_line(error)}; keep forward "
                               f"free of control flow that depends on data") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


class _Importer:
    """Walks the exported operations in order."""

    def __init__(self, program: ExportedProgram, name: str, keep_batch_norm: bool) -> None:
        self.program = program
        self.name = name
        self.builder = GraphBuilder(name, keep_batch_norm=keep_batch_norm)
        self.values: dict[Node, Value] = {}
        self.parameters: dict[Node, tuple[str, NDArray[np.float64]]] = {}
        self.buffers: dict[Node, tuple[str, NDArray[np.float64]]] = {}

    def run(self) -> tuple[Graph, dict[str, NDArray[np.float64]]]:
        for node in self.program.graph.nodes:
            match node.op:
                case "placeholder":
                    self._placeholder(node)
                case "call_function" if node.target is operator.getitem:
                    self.values[node] = self._first_result(node)
                case "call_function":
                    self.values[node] = self._layer(call_of(node))
                case "output":
                    return self.builder.finish((self._output(node),))
                case _:
                    raise supported.unsupported(f"Layer {node.name!r} ({node.op})", node.op)
        raise AssertionError("an exported graph has an output")

    def _placeholder(self, node: Node) -> None:
        spec = next(s for s in self.program.graph_signature.input_specs if s.arg.name == node.name)
        match spec.kind:
            case InputKind.USER_INPUT:
                self.values[node] = self.builder.input(node.name, tuple(node.meta["val"].shape[1:]))
            case InputKind.PARAMETER:
                tensor = self.program.state_dict[spec.target]
                self.parameters[node] = (spec.target, tensor.detach().double().numpy())
            case InputKind.BUFFER:
                tensors = self.program.state_dict if spec.persistent else self.program.constants
                self.buffers[node] = spec.target, tensors[spec.target].detach().double().numpy()
            case _:  # a constant: refused where it is read
                pass

    def _first_result(self, node: Node) -> Value:
        """Of an operator of several results, the one that is taken."""
        source, index = node.args
        if index != 0 or source not in self.values:
            raise supported.unsupported(site_of(node).label, str(source))
        return self.values[cast(Node, source)]

    def _output(self, node: Node) -> Value:
        results = node.args[0]
        assert isinstance(results, tuple)
        result = results[0] if len(results) == 1 else None
        if not isinstance(result, Node) or result not in self.values:
            raise UnsupportedError(f"Network {self.name!r} returns {len(results)} results, and one is taken; return "
                                   f"the logits only, as a tensor that depends on the image")
        return self.values[result]

    def _value(self, call: Call, layer: Layer, name: str, limit: supported.Limit) -> Value:
        node = call.node(name)
        if node is None or node not in self.values:
            raise layer.refuse(limit, call.site.label, f"{name} is {call[name]}")
        return self.values[node]

    def _weights(self, call: Call, layer: Layer
                 ) -> tuple[tuple[str, NDArray[np.float64]], tuple[str, NDArray[np.float64]] | None]:
        weight = self._parameter(call, layer, "weight")
        return weight, None if call["bias"] is None else self._parameter(call, layer, "bias")

    def _parameter(self, call: Call, layer: Layer, role: str) -> tuple[str, NDArray[np.float64]]:
        node = call.node(role)
        if node is None or node not in self.parameters:
            raise layer.refuse(supported.WEIGHT, call.site.label, f"{role} is {call[role]}")
        return self.parameters[node]

    def _layer(self, call: Call) -> Value:
        """The value of one call; refuses what stands in no row of the table."""
        build = self.builder
        match call.operator:
            case "conv2d.default" | "conv2d.padding":
                weight, bias = self._weights(call, supported.CONV2D)
                x = self._value(call, supported.CONV2D, "input", supported.WEIGHT)
                return build.conv2d(call.site, x, weight, bias, conv_window(call, weight[1].shape[2:]),
                                    call.numbers("groups")[0])
            case "linear.default":
                weight, bias = self._weights(call, supported.LINEAR)
                x = self._value(call, supported.LINEAR, "input", supported.WEIGHT)
                return build.linear(call.site, x, weight, bias)
            case name if name in supported.BATCH_NORM.torch:
                return self._batch_norm(call)
            case "_native_batch_norm_legit.no_stats" | "_native_batch_norm_legit_functional.default":
                raise supported.BATCH_NORM.refuse(supported.BATCH_STATISTICS, call.site.label)
            case "relu.default":
                return build.relu(call.site, self._only(call))
            case name if name in supported.CLIPPED_RELU.torch:
                return self._clipped_relu(call)
            case "max_pool2d.default":
                ceil_mode = bool(call["ceil_mode"])
                return build.max_pool(call.site, self._only(call), pool_window(call), ceil_mode=ceil_mode)
            case "max_pool2d_with_indices.default":
                raise supported.MAX_POOL.refuse(supported.INDICES, call.site.label)
            case "avg_pool2d.default":
                return self._average_pool(call)
            case "adaptive_avg_pool2d.default":
                return self._adaptive_average_pool(call)
            case "mean.dim":
                return self._mean(call)
            case "add.Tensor":
                return self._add(call)
            case "cat.default":
                return self._concat(call)
            case name if name in supported.PAD.torch:
                return self._pad(call)
            case name if name in supported.RESHAPE.torch:
                return self._reshape(call)
            case name if name in (*supported.DROPOUT.torch, *supported.IDENTITY.torch):
                return self._only(call)
            case _:
                raise supported.unsupported(call.site.label, call.operator)

    def _only(self, call: Call) -> Value:
        """The one tensor that a call reads."""
        first = next(iter(call.arguments))
        node = call.node(first)
        if node is None or node not in self.values:
            raise UnsupportedError(f"{call.site.label} reads {call[first]}, which does not depend on the image; "
                                   f"compute it outside the network")
        return self.values[node]

    def _batch_norm(self, call: Call) -> Value:
        x = self._value(call, supported.BATCH_NORM, "input", supported.NOT_AFTER_LAYER)
        scale, shift, mean, variance = (
            self._channel_numbers(call, role, np.full(x.shape[0], absent))
            for role, absent in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)))
        norm = Norm(scale, shift, mean, variance, call.number("eps", 0.0))
        aliases = {node for node, value in self.values.items() if value == x}
        readers = {user for node in aliases for user in node.users} - aliases
        return self.builder.batch_norm(call.site, x, norm, sole_reader=len(readers) == 1)

    def _channel_numbers(self, call: Call, role: str, absent: NDArray[np.float64]
                         ) -> tuple[str, NDArray[np.float64]]:
        """A parameter or buffer of a batch norm with its name; ``absent`` where it has none."""
        node = call.node(role)
        if node is None:
            return f"{call.site.name}.{role}", absent
        if node in self.parameters:
            return self.parameters[node]
        if node not in self.buffers:
            raise supported.BATCH_NORM.refuse(supported.WEIGHT, call.site.label, f"{role} is {call[role]}")
        return self.buffers[node]

    def _average_pool(self, call: Call) -> Value:
        x, window = self._only(call), pool_window(call)
        divisor = call["divisor_override"]
        if divisor is not None and divisor != window.kernel[0] * window.kernel[1]:
            raise supported.AVERAGE_POOL.refuse(supported.DIVISOR, call.site.label, f"divisor_override {divisor}")
        return self.builder.average_pool(call.site, x, window, ceil_mode=bool(call["ceil_mode"]),
                                         counts_padding=bool(call["count_include_pad"]))

    def _adaptive_average_pool(self, call: Call) -> Value:
        x, size = self._only(call), call.pair("output_size")
        if size == (1, 1):
            return self.builder.global_average_pool(call.site, x)
        if x.shape[1] % size[0] or x.shape[2] % size[1]:
            raise supported.AVERAGE_POOL.refuse(supported.UNEVEN_OUTPUT, call.site.label,
                                                f"input {x.shape[1:]}, output {size}")
        kernel = (x.shape[1] // size[0], x.shape[2] // size[1])
        return self.builder.average_pool(call.site, x, Window(kernel, stride=kernel))

    def _mean(self, call: Call) -> Value:
        x = self._only(call)
        rank = 1 + len(x.shape)
        axes = sorted(axis % rank for axis in call.numbers("dim"))
        if axes != [2, 3] or rank != 4:
            raise supported.GLOBAL_AVERAGE_POOL.refuse(supported.OTHER_AXES, call.site.label, f"axes {call['dim']}")
        mean = self.builder.global_average_pool(call.site, x)
        if call["keepdim"]:
            return mean
        return self.builder.reshape(Site(f"{call.site.name}.flat", call.site.label), mean, x.shape[:1])

    def _add(self, call: Call) -> Value:
        if call["alpha"] != 1:
            raise supported.ADD.refuse(supported.ADD_ALPHA, call.site.label, f"alpha {call['alpha']}")
        a, b = (self._value(call, supported.ADD, name, supported.ADD_SHAPES) for name in ("self", "other"))
        return self.builder.add(call.site, a, b)

    def _clipped_relu(self, call: Call) -> Value:
        x = self._only(call)
        match call.operator:
            case "relu6.default":
                low, high = 0.0, 6.0
            case "hardtanh.default":
                low, high = call.number("min_val", 0.0), call.number("max_val", 0.0)
            case _:
                low, high = call.number("min", -np.inf), call.number("max", np.inf)
        return self.builder.clipped_relu(call.site, x, low, high)

    def _concat(self, call: Call) -> Value:
        nodes = call["tensors"]
        assert isinstance(nodes, Sequence), (call.site.label, nodes)
        parts = []
        for node in nodes:
            if not isinstance(node, Node) or node not in self.values:
                raise supported.CONCAT.refuse(supported.CONSTANT_PART, call.site.label, f"{node}")
            parts.append(self.values[node])
        return self.builder.concat(call.site, parts, call.numbers("dim")[0])

    def _pad(self, call: Call) -> Value:
        x, sizes = self._only(call), call.numbers("pad")
        mode = call.arguments.get("mode", "constant")
        if mode != "constant" or call.number("value", 0.0):
            raise supported.PAD.refuse(supported.PAD_VALUE, call.site.label, f"{mode}, value {call['value']}")
        left, right, top, bottom, *others = (*sizes, *(4 - len(sizes)) * (0,))
        if any(others):
            raise supported.PAD.refuse(supported.PAD_AXES, call.site.label, f"padding {sizes}, from the last axis on")
        return self.builder.pad(call.site, x, (top, left, bottom, right))

    def _reshape(self, call: Call) -> Value:
        x, shape = self._only(call), call.result_shape
        if not shape or shape[0] != BATCH:
            raise supported.RESHAPE.refuse(supported.BATCH_AXIS, call.site.label,
                                           f"a batch of {BATCH} images becomes {shape}")
        return self.builder.reshape(call.site, x, shape[1:])
