"""Batch norm is folded into the layer before it, from torch and from ONNX, and refused anywhere else."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from espalier import zoo
from espalier.errors import DataError, GraphError, UnsupportedError
from espalier.frontend.onnx_import import from_onnx
from espalier.frontend.torch_export import fixed_parameters, from_torch
from espalier.ir.interpret import interpret
from espalier.ir.ops import Conv2d, Linear

#: Both sides compute in float64; the folded weights are rounded once more, and sums have another order.
FLOAT64_TOLERANCE = 1e-9


def trained(module: nn.Module, seed: int = 0) -> nn.Module:
    """``module`` with batch norms that have statistics, factors and offsets unlike those they start with."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.running_mean is not None:
            layer.running_mean.normal_(0, 0.3, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
            if layer.affine:
                with torch.no_grad():
                    layer.weight.uniform_(0.5, 1.5, generator=generator)
                    layer.bias.normal_(0, 0.3, generator=generator)
    return module


def check_same(module: nn.Module, shape: tuple[int, int, int]) -> None:
    graph, state = from_torch(module, shape, "net")
    images = np.random.default_rng(0).normal(size=(2, *shape))
    got = interpret(graph, {graph.inputs[0].name: images, **state})[graph.outputs[0].name]
    with torch.no_grad():
        expected = copy.deepcopy(module).eval().double()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=FLOAT64_TOLERANCE)


class Expression(nn.Module):
    """A convolution, a batch norm and a function of both."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@pytest.mark.parametrize("module", [
    nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
    nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False, eps=0.1)),
    nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
                  nn.Conv2d(6, 2, 1, bias=False), nn.BatchNorm2d(2)),
    nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout2d(), nn.BatchNorm2d(4)),
    nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout2d(), nn.BatchNorm2d(4)),
    nn.Sequential(nn.Flatten(), nn.Linear(108, 5), nn.BatchNorm1d(5), nn.ReLU()),
    Expression(lambda self, x: functional.relu(self.bn(self.conv(x))) + x),
    Expression(lambda self, x: (y := self.bn(self.conv(x))) + y),
], ids=["bias", "not affine", "depthwise", "twice", "dropout", "linear", "residual", "read twice"])
def test_folded_from_torch(module: nn.Module) -> None:
    torch.manual_seed(0)
    check_same(trained(module), (3, 6, 6))


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv1"])
def test_networks_of_the_zoo(name: str) -> None:
    check_same(trained(zoo.build(name)), (3, 16, 16))  # both end in a mean over whatever map is left


def test_fixed_parameters_keep_their_names() -> None:
    module = zoo.build("resnet20")
    _, state = from_torch(module, (3, 8, 8), "net")
    fixed = fixed_parameters(module)
    assert fixed == {"layer2.0.shortcut.weight", "layer3.0.shortcut.weight"} and fixed < state.keys()
    for name in fixed:
        assert np.unique(state[name]).tolist() == [0, 1]


@pytest.mark.parametrize("bias", [False, True])
def test_weights_and_names_are_those_of_torchs_fusion(bias: bool) -> None:
    module = trained(Expression(lambda self, x: self.bn(self.conv(x))).double().eval())
    if not bias:
        module.conv.bias = None
    fused = fuse_conv_bn_eval(module.conv, module.bn)
    graph, state = from_torch(module, (3, 6, 6), "net")
    assert [type(op) for op in graph.ops] == [Conv2d] and graph.ops[0].out.name == "conv"
    assert list(state) == [value.name for value in graph.parameters] == ["conv.weight", "conv.bias"]
    for name in state:
        np.testing.assert_allclose(state[name], fused.get_parameter(name.removeprefix("conv.")).detach().numpy(),
                                   rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("function", "found"), [
    (lambda self, x: self.bn(x), "it reads 'x'"),
    (lambda self, x: self.bn(functional.relu(self.conv(x))), "it reads 'relu'"),
    (lambda self, x: (y := self.conv(x)) + self.bn(y), "it reads 'conv'"),
    (lambda self, x: self.bn(y := self.conv(x)) + y, "it reads 'conv'"),
    (lambda self, x: self.bn(functional.dropout(y := self.conv(x), training=self.training)) + y, "it reads 'conv'"),
], ids=["image", "after relu", "read before", "read after", "read under another name"])
def test_elsewhere_wrong(function: object, found: str) -> None:
    with pytest.raises(UnsupportedError) as error:
        from_torch(Expression(function), (3, 6, 6), "net")
    assert str(error.value) == (
        "Layer 'bn' (aten._native_batch_norm_legit_no_training.default): BatchNorm is not taken with an input other "
        f"than the result of a Conv2d or Linear that nothing else reads ({found}); put it directly after that layer, "
        "or make it a 1×1 Conv2d of one group a channel")


def test_the_remedy_works() -> None:
    module = Expression(lambda self, x: self.scale(functional.relu(self.conv(x))))
    trained(module)
    module.scale = nn.Conv2d(3, 3, 1, groups=3, bias=False)
    with torch.no_grad():
        module.scale.weight.fill_(1)
    module.scale = nn.Sequential(module.scale, module.bn)
    check_same(module, (3, 6, 6))


@pytest.mark.parametrize("function", [
    lambda self, x: functional.batch_norm(self.conv(x), None, None, training=True),
    lambda self, x: functional.batch_norm(self.conv(x), self.bn.running_mean, self.bn.running_var, training=True)])
def test_statistics_of_the_batch_wrong(function: object) -> None:
    with pytest.raises(UnsupportedError, match=r"^Layer .*BatchNorm is not taken with the statistics of the batch "
                       r"\(training mode, or none tracked\); use track_running_stats=True, and export in inference"):
        from_torch(Expression(function), (3, 6, 6), "net")


def test_statistics_that_are_no_buffer_wrong() -> None:
    module = Expression(lambda self, x: functional.batch_norm(self.conv(x), self.mean, self.bn.running_var))
    module.mean = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(UnsupportedError, match=r"BatchNorm is not taken with a weight or bias that is not a "
                       r"parameter of its own \(running_mean is c_mean\)"):
        from_torch(module, (3, 6, 6), "net")


def test_variance_wrong() -> None:
    module = Expression(lambda self, x: self.bn(self.conv(x)))
    module.bn.running_var[1] = -0.5
    with pytest.raises(DataError, match=r"^Layer 'bn' \(\S*\): variance and epsilon must be positive together, and "
                       r"their least sum is -0\.49\d*; train again or repair the file$"):
        from_torch(module, (3, 6, 6), "net")


def model(convolution: dict[str, NDArray], norm: dict[str, NDArray], opset: int = 17,
          outputs: tuple[str, ...] = ("y",), **attributes: float) -> onnx.ModelProto:
    """``x`` → Conv → BatchNormalization → ``y``."""
    nodes = [helper.make_node("Conv", ["x", *convolution], ["c"], name="conv"),
             helper.make_node("BatchNormalization", ["c", *norm], list(outputs), name="bn", **attributes)]
    constants = [numpy_helper.from_array(array, name) for name, array in {**convolution, **norm}.items()]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4, 5])
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in outputs]
    graph = helper.make_graph(nodes, "net", [image], results, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def numbers(channels: int) -> dict[str, NDArray]:
    random = np.random.default_rng(1)
    return {"bn.weight": random.uniform(0.5, 1.5, channels), "bn.bias": random.normal(size=channels),
            "mean": random.normal(size=channels), "var": random.uniform(0.5, 2, channels)}


def float32(arrays: dict[str, NDArray]) -> dict[str, NDArray]:
    return {name: array.astype(np.float32) for name, array in arrays.items()}


@pytest.mark.parametrize(("weight", "bias", "parameters"), [
    ("stem.weight", None, ["stem.weight", "stem.bias"]), ("w", None, ["w", "bn.bias"]), ("w", "b", ["w", "b"])])
def test_folded_from_onnx(weight: str, bias: str | None, parameters: list[str]) -> None:
    random = np.random.default_rng(0)
    convolution = float32({weight: random.normal(size=(2, 3, 3, 3)), **({bias: random.normal(size=2)} if bias else {})})
    norm = float32(numbers(2))
    graph, state = from_onnx(model(convolution, norm, epsilon=0.25))
    images = random.normal(size=(2, 3, 4, 5))
    got = interpret(graph, {"x": images, **state})[graph.outputs[0].name]
    tensors = {name: torch.from_numpy(array.astype(np.float64)) for name, array in {**convolution, **norm}.items()}
    plain = functional.conv2d(torch.from_numpy(images), tensors[weight], tensors[bias] if bias else None)
    expected = functional.batch_norm(plain, tensors["mean"], tensors["var"], tensors["bn.weight"], tensors["bn.bias"],
                                     eps=0.25)
    np.testing.assert_allclose(got, expected.numpy(), rtol=0, atol=FLOAT64_TOLERANCE)
    assert list(state) == [value.name for value in graph.parameters] == parameters


@pytest.mark.parametrize(("opset", "attributes", "outputs", "reason"), [
    (17, {"training_mode": 1}, ("y", "m2", "v2"), r"the statistics of the batch \(training mode, or none tracked\)"),
    (9, {}, ("y", "m2", "v2", "m3", "v3"), r"the statistics of the batch"),
    (8, {"spatial": 0}, ("y",), r"statistics of each pixel \(spatial=0\); use one mean and variance a channel$")])
def test_from_onnx_wrong(opset: int, attributes: dict[str, int], outputs: tuple[str, ...], reason: str) -> None:
    weight = {"w": np.ones((2, 3, 1, 1), np.float32)}
    refusal = rf"^Node 'bn' \(BatchNormalization\): BatchNorm is not taken with {reason}"
    with pytest.raises(UnsupportedError, match=refusal):
        from_onnx(model(weight, float32(numbers(2)), opset=opset, outputs=outputs, **attributes))


def test_channels_wrong() -> None:
    weight = {"w": np.ones((2, 3, 1, 1), np.float32)}
    with pytest.raises(GraphError, match=r"^Node 'bn' \(BatchNormalization\): a batch norm of 4 channels does not fit "
                       r"the 2 channels of 'conv'$"):
        from_onnx(model(weight, float32(numbers(4))))


def test_a_constant_added_is_not_folded_where_the_sum_before_is_read_under_another_name() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Identity", ["c"], ["d"]),
             helper.make_node("Add", ["d", "k"], ["e"]), helper.make_node("Add", ["e", "c"], ["y"])]
    graph = helper.make_graph(nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 2, 2])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
                              [numpy_helper.from_array(np.ones(shape, np.float32), name)
                               for name, shape in (("w", (1, 1, 1, 1)), ("k", (1, 1, 1)))])
    with pytest.raises(UnsupportedError, match=r"a constant \(the constant 'k' of shape \(1, 1, 1\)\)"):
        from_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_linear_keeps_its_place() -> None:
    graph, state = from_torch(trained(nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3),
                                                    nn.ReLU(), nn.Linear(3, 2))), (1, 2, 2), "net")
    assert [op.out.name for op in graph.ops if isinstance(op, Linear)] == ["1", "4"]
    assert [value.name for value in graph.parameters] == ["1.weight", "1.bias", "4.weight", "4.bias"]
    assert set(state) == {value.name for value in graph.parameters}
