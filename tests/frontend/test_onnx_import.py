"""Import of ONNX files: what torch writes, forms that other exporters write, and bad input."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from espalier.errors import DataError, EspalierError, GraphError, UnsupportedError
from espalier.frontend.onnx_import import from_onnx
from espalier.frontend.onnx_node import image_shape
from espalier.frontend.torch_export import from_torch
from espalier.ir.interpret import interpret
from espalier.ir.ops import Conv2d, Linear, MaxPool, Relu, Reshape

RANDOM = np.random.default_rng(0)


def model_of(nodes: Sequence[onnx.NodeProto], shape: Sequence[int | str], constants: dict[str, NDArray] | None = None,
             opset: int = 17, ir_version: int = 8, outputs: Sequence[str] = ("y",)) -> onnx.ModelProto:
    """A model of ``nodes`` from the image ``x`` to the result ``y``."""
    graph = helper.make_graph(
        list(nodes), "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def node(operator: str, inputs: str, **attributes: object) -> onnx.NodeProto:
    """A node ``"a w"`` → ``y`` named after its operator."""
    return helper.make_node(operator, inputs.split(), ["y"], name=operator.lower(), **attributes)


def weights(*shape: int) -> NDArray[np.float32]:
    return RANDOM.normal(size=shape).astype(np.float32)


@pytest.fixture
def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(),
                         nn.Linear(36, 5)).eval()


@pytest.fixture
def small() -> onnx.ModelProto:
    return model_of([node("Conv", "x conv.weight")], ["n", 1, 4, 4], {"conv.weight": weights(2, 1, 3, 3)})


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_file_that_torch_writes_is_the_torch_network(classifier: nn.Module, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.onnx.export(classifier, (torch.zeros(2, 1, 8, 8),), buffer, verbose=False)
    path = tmp_path / "classifier.onnx"
    path.write_bytes(buffer.getvalue())
    graph, state = from_onnx(path)
    expected, expected_state = from_torch(classifier, (1, 8, 8), "net")
    assert [type(op) for op in graph.ops] == [Conv2d, Relu, MaxPool, Reshape, Linear]
    assert graph.parameters == expected.parameters and set(state) == set(expected_state)
    assert all(np.array_equal(state[name], expected_state[name]) for name in state)
    images = RANDOM.normal(size=(3, 1, 8, 8))
    got = interpret(graph, {graph.inputs[0].name: images, **state})[graph.outputs[0].name]
    known = interpret(expected, {expected.inputs[0].name: images, **state})
    assert np.array_equal(got, known[expected.outputs[0].name])


def test_names() -> None:
    model = model_of([
        helper.make_node("Conv", ["x", "stem.weight"], ["a"], name="/stem/Conv"),
        helper.make_node("Relu", ["a"], ["b"], name="/act/Relu"),
        helper.make_node("Relu", ["b"], ["y"])], [1, 2, 5, 5], {"stem.weight": weights(3, 2, 2, 2)})
    graph, state = from_onnx(model)
    assert [op.out.name for op in graph.ops] == ["stem", "/act/Relu", "y"]
    assert [value.name for value in graph.inputs] == ["x"] and list(state) == ["stem.weight"]
    assert state["stem.weight"].dtype == np.float64


def test_bias_added_after_its_layer_is_folded() -> None:
    model = model_of([
        helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Add", ["a", "c"], ["b"]),
        helper.make_node("Flatten", ["b"], ["d"]), helper.make_node("MatMul", ["d", "m"], ["e"]),
        helper.make_node("Add", ["v", "e"], ["y"])],
        ["n", 2, 3, 3], {"w": weights(3, 2, 2, 2), "c": weights(3, 1, 1), "m": weights(12, 4), "v": weights(4)})
    graph, state = from_onnx(model)
    assert [type(op) for op in graph.ops] == [Conv2d, Reshape, Linear]
    assert [value.name for value in graph.parameters] == ["w", "c", "m", "v"]
    images = RANDOM.normal(size=(2, 2, 3, 3))
    conv = interpret(graph, {"x": images, **state})
    assert np.array_equal(conv[graph.outputs[0].name], conv[graph.ops[1].out.name] @ state["m"].T + state["v"])
    assert state["m"].shape == (4, 12) and state["c"].shape == (3,)


def test_gemm_factors_are_folded() -> None:
    matrix, bias = weights(4, 3), weights(1, 3)
    graph, state = from_onnx(model_of([node("Gemm", "x w b", alpha=0.5, beta=2.0)], ["n", 4], {"w": matrix, "b": bias}))
    assert np.array_equal(state["w"], 0.5 * matrix.T.astype(np.float64))
    assert np.array_equal(state["b"], 2.0 * bias[0].astype(np.float64))
    assert graph.inputs[0].shape == (4,)


def test_constant_node_and_bound_input() -> None:
    model = model_of([
        helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(np.array([-1, 4]))),
        helper.make_node("Reshape", ["x", "s"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])], ["n", 1, 2, 2])
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 2]))
    graph, state = from_onnx(model, {"w": weights(4, 2)})
    assert [value.name for value in graph.inputs] == ["x"] and [type(op) for op in graph.ops] == [Reshape, Linear]
    assert set(state) == {"w"}


def test_bound_input_wrong(small: onnx.ModelProto) -> None:
    with pytest.raises(GraphError,
                       match="^Constants are bound to inputs of the network, and it has no input 'v'; its inputs "
                       "are x$"):
        from_onnx(small, {"v": np.zeros(1)})


def test_functions_are_inlined() -> None:
    model = model_of([helper.make_node("Twice", ["x"], ["y"], domain="local")], ["n", 4])
    body = [helper.make_node("Relu", ["a"], ["t"]), helper.make_node("Relu", ["t"], ["b"])]
    opset = helper.make_opsetid("", 17)
    model.functions.append(helper.make_function("local", "Twice", ["a"], ["b"], body, [opset]))
    model.opset_import.append(helper.make_opsetid("local", 1))
    assert [type(op) for op in from_onnx(model)[0].ops] == [Relu, Relu]


@pytest.mark.parametrize(("target", "shape", "batch", "allowzero", "expected"), [
    ((-1, 12), (3, 4), None, False, (12,)), ((0, -1), (3, 4), None, False, (12,)), ((2, -1), (3, 4), 2, False, (12,)),
    ((2, -1), (3, 4), None, False, None), ((0, 0, 2, -1), (3, 4), 5, False, (3, 2, 2)),
    ((0, 5), (3, 4), 5, False, None),
    ((-1, 6), (3, 4), 1, False, None), ((0, 12), (3, 4), 1, True, None), ((), (3,), 1, False, None),
    ((0, -1, 5), (3, 4), 1, False, None)])
def test_image_shape(target: tuple[int, ...], shape: tuple[int, ...], batch: int | None, allowzero: bool,
                     expected: tuple[int, ...] | None) -> None:
    assert image_shape(target, shape, batch, allowzero) == expected


CONV, MATRIX = {"w": weights(2, 1, 3, 3)}, {"w": weights(4, 2)}
SIX = {"low": np.float32(0), "high": np.float32(6)}
PADS = {"p": np.array([0, 0, 0, 1, 0, 0, 2, 3])}


def run(model: onnx.ModelProto, images: NDArray) -> NDArray:
    graph, state = from_onnx(model)
    return interpret(graph, {"x": images, **state})[graph.outputs[0].name]


@pytest.mark.parametrize(("model", "low", "high"), [
    (model_of([node("Clip", "x low high")], ["n", 4], SIX), 0, 6),
    (model_of([node("Clip", "x", min=0.0, max=6.0)], ["n", 4], opset=10), 0, 6),
    (model_of([node("Clip", "x", min=0.0)], ["n", 4], opset=10), 0, np.inf),
    (model_of([node("Clip", "x low")], ["n", 4], SIX), 0, np.inf)])
def test_clip(model: onnx.ModelProto, low: float, high: float) -> None:
    images = 5 * RANDOM.normal(size=(9, 4))
    assert np.array_equal(run(model, images), images.clip(low, high))


def test_concat_of_several() -> None:
    model = model_of([helper.make_node("Relu", ["x"], ["r"]), node("Concat", "x r x", axis=-3)], ["n", 2, 3, 3])
    images = RANDOM.normal(size=(2, 2, 3, 3))
    assert np.array_equal(run(model, images), np.concatenate([images, images.clip(0), images], axis=1))


@pytest.mark.parametrize(("inputs", "constants", "attributes", "opset"), [
    ("x p", PADS, {}, 17), ("x", {}, {"pads": [0, 0, 0, 1, 0, 0, 2, 3]}, 10),
    ("x p v axes", {"p": np.array([0, 1, 2, 3]), "v": np.float32(0), "axes": np.array([2, -1])}, {}, 18)])
def test_padding_becomes_that_of_the_convolution(inputs: str, constants: dict[str, NDArray],
                                                 attributes: dict[str, list[int]], opset: int) -> None:
    padding = helper.make_node("Pad", inputs.split(), ["q"], **attributes)
    model = model_of([padding, node("Conv", "q w", pads=[1, 0, 0, 0])], ["n", 1, 4, 4], {**CONV, **constants}, opset)
    graph, _ = from_onnx(model)
    assert [op.window.pad for op in graph.layers()] == [(1, 1, 2, 3)]
    same = model_of([node("Conv", "x w", pads=[1, 1, 2, 3])], ["n", 1, 4, 4], CONV)
    images = RANDOM.normal(size=(2, 1, 4, 4))
    assert np.array_equal(run(model, images), run(same, images))


@pytest.mark.parametrize(("model", "message"), [
    (model_of([node("Sigmoid", "x")], ["n", 4]), r"^Node 'sigmoid' \(Sigmoid\) is not a supported layer; use ReLU or "
                                                    r"ReLU6$"),
    (model_of([node("Clip", "x r"), helper.make_node("Relu", ["x"], ["r"])][::-1], ["n", 4]),
     r"ClippedReLU is not taken with ends that are computed \('r' is computed or an input\); export with"),
    (model_of([node("Concat", "x c", axis=1)], ["n", 4], {"c": weights(1, 4)}),
     r"Concat is not taken with a part that does not depend on the image \('c' is a constant\); concatenate results"),
    (model_of([node("Pad", "x p")], ["n", 1, 4, 4], PADS),
     r"^Node 'pad' \(Pad\): Pad is not taken with anything but convolutions that read the padded map; set the padding"),
    (model_of([node("Pad", "x p")], ["n", 1, 4, 4], {"p": np.array([0, 1, 0, 0, 0, 0, 0, 0])}),
     r"Pad is not taken with padding of other axes than height and width"),
    (model_of([node("Pad", "x p", mode="edge")], ["n", 1, 4, 4], PADS),
     r"Pad is not taken with a value other than zero, or copies of the map \(mode\) \(edge, value 0.0\); pad with"),
    (model_of([node("Pad", "x r"), helper.make_node("Relu", ["x"], ["r"])][::-1], ["n", 1, 4, 4]),
     r"Pad is not taken with padding that is computed \('r' is computed or an input\); export with constant padding"),
    (model_of([node("Softmax", "x")], ["n", 4]),
     r"^Node 'softmax' \(Softmax\) is .*; let the network end in its logits"),
    (model_of([node("Relu", "x")], ["n", "c"]),
     r"^Input 'x': Input is not taken with sizes that are open .* \(shape \?×\?\)"),
    (model_of([node("Relu", "x")], []), r"^Input 'x': Input is not taken with no axis at all; use images"),
    (model_of([node("Add", "x w")], ["n", 4], {"w": weights(4)}),
     r"^Node 'add' \(Add\): Add is not taken with operands of different shapes, or a constant \(the constant 'w' of "
     r"shape"),
    (model_of([node("Conv", "x w")], ["n", 1, 4, 4], {"w": np.ones((2, 1, 3, 3), np.int32)}), "is int32"),
    (model_of([node("Gemm", "x w")], ["n", 4], {"w": np.ones((4, 2), np.complex64)}),
     r"^Node 'gemm' \(Gemm\): Linear is not taken with elements that are not .* \('w' is complex64\); export the "),
    (model_of([helper.make_node("MatMul", ["x", "w"], ["a"]), node("Add", "a c")], ["n", 4],
              {"w": weights(4, 2), "c": np.ones(2, np.complex64)}),
     r"^Node 'add' \(Add\): Linear is not taken with elements that are not .* \('c' is complex\); export the "),
    (model_of([helper.make_node("Relu", ["w"], ["y"], name="r")], ["n", 4], MATRIX),
     "^Node 'r' .* only the constant 'w'"),
    (model_of([node("Flatten", "x", axis=2)], ["n", 1, 4, 4]),
     r"\(axis 2\); flatten from axis 1, or keep the first size$"),
    (model_of([node("MaxPool", "x", kernel_shape=[2, 2], pads=[2, 0, 0, 0])], ["n", 1, 4, 4]),
     r"padding as large as the kernel or larger \(padding \(2, 0, 0, 0\), kernel \(2, 2\)\); pad by less"),
    (model_of([node("MaxPool", "x", kernel_shape=[2, 2], storage_order=1)], ["n", 1, 4, 4]), "export row-major$"),
    (model_of([helper.make_node("MatMul", ["x", "w"], ["a"]), node("MatMul", "a w")], ["n", 4], {"w": weights(4, 4)}),
     r"^Node 'matmul' \(MatMul\): .* \('w' is also the weight of another layer\)"),
    (model_of([helper.make_node("Shape", ["x"], ["s"], name="s"), node("Reshape", "x s")], ["n", 4]),
     "a fixed shape, or use"),
    (model_of([node("Relu", "x")], ["n", 4], opset=6),
     r"^net has ONNX operator set 6, and 7\.\.28 are known; convert it with"),
    (model_of([node("Relu", "x")], ["n", 4], ir_version=99), r"^net has ONNX IR version 99, and 3\.\.14 are known"),
    (model_of([helper.make_node("Dropout", ["x"], ["y", "m"])], ["n", 4], outputs=["m"]), "its mask as a result"),
    (model_of([helper.make_node("Constant", [], ["w"], name="c", value_strings=[b"a"]), node("MatMul",
     "x w")], ["n", 4]),
     r"^Node 'c' \(Constant\): .* \(sparse or text\)"),
], ids=lambda value: value[:30] if isinstance(value, str) else "")
def test_unsupported_wrong(model: onnx.ModelProto, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        from_onnx(model)


@pytest.mark.parametrize(("model", "message"), [
    (model_of([node("Conv", "x w")], ["n", 3, 4, 4], CONV),
     r"^Node 'conv' \(Conv\): a weight of shape \(2, 1, 3, 3\) in 1 "
     r"groups does not fit the 3 channels of 'x'$"),
    (model_of([node("Conv", "x w")], ["n", 1, 2, 2], CONV),
     r"^Node 'conv' \(Conv\): A 3×3 window .* does not fit in a 2×2"),
    (model_of([node("MatMul", "x w")], ["n", 3], MATRIX), r"a weight of 4 inputs does not fit the 3 features of 'x'$"),
    (model_of([node("Conv", "x w", kernel_shape=[2, 2])], ["n", 1, 4, 4], CONV),
     r"kernel_shape \(2, 2\) is not that of its"),
    (model_of([node("Conv", "x w", strides=[2])], ["n", 1, 4, 4], CONV),
     r"strides \(2,\), .* must be 2, 2, 2 and 4 numbers$"),
    (model_of([node("Conv", "x w", auto_pad="SAME")], ["n", 1, 4, 4], CONV),
     r"auto_pad 'SAME' is none of NOTSET, SAME_UPPER"),
], ids=lambda value: value[:30] if isinstance(value, str) else "")
def test_shapes_wrong(model: onnx.ModelProto, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        from_onnx(model)


def test_weights_wrong(small: onnx.ModelProto) -> None:
    array = weights(2, 1, 3, 3)
    array[1, 0, 2, 0] = np.inf
    small.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "conv.weight"))
    with pytest.raises(DataError,
                       match=r"^Node 'conv' \(Conv\): weights must be finite, and 'conv\.weight' holds inf at "
                       r"\(1, 0, 2, 0\); train again or repair the file$"):
        from_onnx(small)


def test_constant_wrong(small: onnx.ModelProto) -> None:
    small.graph.initializer[0].raw_data = small.graph.initializer[0].raw_data[:-4]
    with pytest.raises(DataError, match="'conv.weight'|conv\\.weight"):
        from_onnx(small)


def test_missing_file_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError,
                       match=r"^Cannot read the ONNX file .*none\.onnx: No such file or directory; check the path$"):
        from_onnx(tmp_path / "none.onnx")


@pytest.mark.parametrize("content", [b"", b"not a network at all", bytes(range(256))])
def test_corrupt_file_wrong(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.onnx"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"odd\.onnx .*; export"):
        from_onnx(path)


def test_every_truncation_is_an_error_of_the_file(small: onnx.ModelProto, tmp_path: Path) -> None:
    path, content = tmp_path / "cut.onnx", small.SerializeToString()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(EspalierError):
            from_onnx(path)


def test_external_data(small: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    expected = from_onnx(small)[1]["conv.weight"]
    onnx.save_model(small, path, save_as_external_data=True, location="net.bin", size_threshold=0)
    assert np.array_equal(from_onnx(str(path))[1]["conv.weight"], expected)
    (tmp_path / "net.bin").unlink()
    with pytest.raises(DataError,
                       match=r"keeps weights in another file, which is missing or too short .* put that file"):
        from_onnx(path)


def test_invalid_model_wrong() -> None:
    model = model_of([helper.make_node("Relu", ["nowhere"], ["y"])], ["n", 4])
    with pytest.raises(DataError, match="^net is not a valid ONNX network: .*; export it again$"):
        from_onnx(model)


@pytest.mark.parametrize(("attributes", "found"), [
    ({"pads": [-1, 0, 0, 0]}, r"pad=\(-1, 0, 0, 0\)"),
    ({"strides": [0, 1]}, r"stride=\(0, 1\)"),
    ({"strides": [0, 1], "auto_pad": "SAME_UPPER"}, r"stride=\(0, 1\)"),
])
def test_window_wrong(attributes: dict[str, object], found: str) -> None:
    model = model_of([node("Conv", "x w", **attributes)], ["n", 1, 4, 4], CONV)
    with pytest.raises(GraphError, match=rf"^Node 'conv' \(Conv\): Kernel, stride and dilation must be .*{found}"):
        from_onnx(model)


def test_constant_of_more_axes_than_the_layer_is_no_bias_wrong() -> None:
    first = helper.make_node("MatMul", ["x", "fc.weight"], ["m"], name="fc")
    model = model_of([first, node("Add", "m c")], ["n", 6], {"fc.weight": weights(6, 3), "c": weights(1, 1, 1, 1)})
    with pytest.raises(UnsupportedError, match=r"Add is not taken .* \(the constant 'c' of shape \(1, 1, 1, 1\)\); "):
        from_onnx(model)


def test_shape_that_is_a_matrix_wrong() -> None:
    model = model_of([node("Reshape", "x s")], ["n", 1, 4, 4], {"s": np.array([[0, -1]])})
    with pytest.raises(GraphError, match=r"^Node 'reshape' .*: the shape 's' must be a list of numbers, not \[\[0"):
        from_onnx(model)
