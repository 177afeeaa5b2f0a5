"""Reading an ONNX file: is it whole, of a version we know, and what are its constants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import external_data_helper, inliner, numpy_helper

from espalier.errors import DataError, UnsupportedError
from espalier.frontend import supported

DEFAULT_DOMAINS = ("", "ai.onnx")
FLOAT_TYPES = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)


def read_model(source: str | Path | onnx.ModelProto) -> onnx.ModelProto:
    """The model of a file (with its external data), or a given one, checked, functions inlined.

    Raises
    ------
    DataError
        The file is missing, truncated or not ONNX, or its external data is missing.
    UnsupportedError
        The file format or the operator set is of a version that we do not know.
    """
    model, name = (source, source.graph.name) if isinstance(source, onnx.ModelProto) else (_read(Path(source)), source)
    if not model.ir_version or not model.graph.ByteSize():
        raise DataError(f"{name} holds no ONNX network; export it again")
    _check_versions(model, str(name))
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise DataError(f"{name} is not a valid ONNX network: {str(error).strip().splitlines()[0]}; export it again"
                        ) from error
    return inliner.inline_local_functions(model) if model.functions else model


def _read(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except OSError as error:
        raise DataError(f"Cannot read the ONNX file {path}: {error.strerror}; check the path") from error
    except DecodeError as error:
        raise DataError(f"{path} is not a whole ONNX file ({error}); export or copy it again") from error
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise DataError(f"{path} keeps weights in another file, which is missing or too short ({error}); put that file "
                        f"beside it") from error
    return model


def _check_versions(model: onnx.ModelProto, name: str) -> None:
    if model.ir_version not in supported.IR_VERSIONS:
        raise UnsupportedError(f"{name} has ONNX IR version {model.ir_version}, and {supported.IR_VERSIONS} are known; "
                               f"convert it with onnx.version_converter or export it again")
    for opset in model.opset_import:
        if opset.domain in DEFAULT_DOMAINS and opset.version not in supported.OPSETS:
            raise UnsupportedError(f"{name} has ONNX operator set {opset.version}, and {supported.OPSETS} are known; "
                                   f"convert it with onnx.version_converter or export it again")


def tensor(proto: onnx.TensorProto, name: str) -> NDArray:
    """The array of a constant. Raises DataError where its bytes do not fill its shape."""
    try:
        return numpy_helper.to_array(proto)
    except (ValueError, TypeError) as error:
        raise DataError(f"The constant {name!r} of the ONNX network is corrupt ({error}); export it again") from error


def constants_of(model: onnx.ModelProto, bound: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """Every constant by name: initialisers, Constant nodes, and what the caller binds."""
    found = {proto.name: tensor(proto, proto.name) for proto in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.domain in DEFAULT_DOMAINS:
            found[node.output[0]] = _constant(node)
    return {**found, **{name: np.asarray(array) for name, array in bound.items()}}


def _constant(node: onnx.NodeProto) -> NDArray:
    for attribute in node.attribute:
        match attribute.name:
            case "value":
                return tensor(attribute.t, node.output[0])
            case "value_float" | "value_int" | "value_floats" | "value_ints":
                return np.asarray(onnx.helper.get_attribute_value(attribute))
    raise supported.CONSTANT.refuse(supported.WEIGHT, f"Node {node.name or node.output[0]!r} (Constant)",
                                    "sparse or text")


def image_inputs(model: onnx.ModelProto, constants: Mapping[str, NDArray]
                 ) -> Iterator[tuple[str, int, int | None, tuple[int, ...]]]:
    """The inputs that are not constants: (name, element type, batch size or None if open, shape of an image).

    Raises UnsupportedError for an input that is not a tensor, has no batch axis, or an open size.
    """
    for value in model.graph.input:
        if value.name in constants:
            continue
        where = f"Input {value.name!r}"
        if value.type.WhichOneof("value") != "tensor_type":
            raise supported.IMAGE.refuse(supported.TENSORS, where, str(value.type.WhichOneof("value")))
        type_ = value.type.tensor_type
        sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in type_.shape.dim]
        if not sizes:
            raise supported.IMAGE.refuse(supported.NO_BATCH, where)
        if any(size is None or size < 1 for size in sizes[1:]) or sizes[0] == 0:
            raise supported.IMAGE.refuse(supported.OPEN_SIZE, where, f"shape {_open(sizes)}")
        yield value.name, type_.elem_type, sizes[0], tuple(size for size in sizes[1:] if size is not None)


def _open(sizes: list[int | None]) -> str:
    return "×".join("?" if size is None else str(size) for size in sizes)
