"""Import from torch modules, held against the modules' own results in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from espalier.errors import DataError, EspalierError, GraphError, UnsupportedError
from espalier.frontend.torch_export import from_torch
from espalier.ir.interpret import interpret
from espalier.ir.ops import Add, AveragePool, Conv2d, GlobalAveragePool, Linear, MaxPool, Relu, Reshape
from espalier.ir.verify import verify
from espalier.numerics.window import Window

#: Both sides compute in float64 and differ in the order of sums of some hundred numbers near 1.
FLOAT64_TOLERANCE = 1e-12


class Residual(nn.Module):
    """Every supported layer once, some as modules and some as functions, with writes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.pool1 = nn.MaxPool2d(2)
        self.branch = nn.Sequential(nn.Conv2d(8, 8, (5, 3), padding="same", groups=4, bias=False),
                                    nn.ReLU(inplace=True))
        self.shrink = nn.AvgPool2d(3, 2, 1)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.9)
        self.fc1 = nn.Linear(8, 6, bias=False)
        self.fc2 = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(functional.relu(self.conv1(x)))
        x = self.branch(x) + x
        x = self.gap(functional.dropout2d(self.shrink(x), training=self.training))
        x = self.drop(torch.flatten(x, 1))
        x = self.fc1(x).view(x.size(0), -1)
        return self.fc2(x.relu_())


class Expression(nn.Module):
    """A module of one function."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function
        self.fc = nn.Linear(4, 4)
        self.register_buffer("table", torch.ones(4))
        self.register_buffer("pair", torch.ones(2, 1, 5, 5))

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


def check_same(module: nn.Module, shape: tuple[int, int, int]) -> None:
    """The graph computes what the module computes in inference."""
    graph, state = from_torch(module, shape, "net")
    assert verify(graph) == graph
    images = np.random.default_rng(0).normal(size=(3, *shape))
    got = interpret(graph, {graph.inputs[0].name: images, **state})[graph.outputs[0].name]
    with torch.no_grad():
        expected = copy.deepcopy(module).eval().double()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=FLOAT64_TOLERANCE)


def test_whole_network() -> None:
    torch.manual_seed(0)
    module = Residual().train()
    check_same(module, (3, 16, 12))
    assert module.training and module.conv1.weight.dtype == torch.float32
    graph, state = from_torch(module, (3, 16, 12), "residual")
    assert graph.name == "residual" and [value.shape for value in graph.inputs] == [(3, 16, 12)]
    assert [value.name for value in graph.parameters] == [
        "conv1.weight", "conv1.bias", "branch.0.weight", "fc1.weight", "fc2.weight", "fc2.bias"]
    assert [type(op) for op in graph.ops] == [
        Conv2d, Relu, MaxPool, Conv2d, Relu, Add, AveragePool, GlobalAveragePool, Reshape, Linear, Relu, Linear]
    names = {op.out.name for op in graph.ops}
    assert {"conv1", "pool1", "branch.0", "branch.1", "shrink", "gap", "fc1", "fc2"} <= names
    assert graph.value("branch.0") == graph.ops[3].out and graph.ops[3].window.pad == (2, 1, 2, 1)
    for name, tensor in module.state_dict().items():
        assert state[name].dtype == np.float64
        assert np.array_equal(state[name], tensor.numpy())


@pytest.mark.parametrize(("module", "shape"), [
    (nn.Conv2d(2, 4, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), (2, 9, 13)),
    (nn.Conv2d(4, 4, 3, groups=4, padding="valid"), (4, 5, 5)),
    (nn.MaxPool2d((3, 2), stride=1, padding=(1, 0), dilation=(1, 2)), (2, 6, 7)),
    (nn.MaxPool2d(2, ceil_mode=True), (1, 4, 6)),
    (nn.MaxPool2d(3, 2, ceil_mode=True), (2, 7, 8)),
    (nn.MaxPool2d((3, 2), (4, 3), (1, 0), ceil_mode=True), (1, 10, 9)),
    (nn.ReLU6(), (2, 3, 4)),
    (nn.Hardtanh(0.0, 2.0), (2, 3, 4)),
    (Expression(lambda self, x: x.clamp(0, 1)), (2, 3, 4)),
    (Expression(lambda self, x: x.clamp(min=0)), (2, 3, 4)),
    (Expression(lambda self, x: torch.cat([x, functional.relu(x), x], 1)), (2, 3, 4)),
    (Expression(lambda self, x: torch.cat([self.fc(x.flatten(1)), x.flatten(1)], -1)), (4, 1, 1)),
    (nn.Sequential(nn.ZeroPad2d((0, 1, 2, 3)), nn.ZeroPad2d(0), nn.ZeroPad2d((1, 0, 0, 0)),
                   nn.Conv2d(2, 3, 3, 2, padding=(1, 0))), (2, 7, 8)),
    (nn.AvgPool2d((2, 3)), (2, 6, 7)),
    (nn.AvgPool2d(2, count_include_pad=False, divisor_override=4), (1, 4, 4)),
    (nn.AdaptiveAvgPool2d((2, 3)), (2, 4, 9)),
    (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)), (2, 3, 4)),
    (Expression(lambda self, x: x.mean((2, 3))), (4, 3, 3)),
    (Expression(lambda self, x: x.mean((-1, -2), keepdim=True)), (4, 3, 3)),
    (Expression(lambda self, x: functional.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1)), (4, 3, 3)),
    (Expression(lambda self, x: functional.relu(x).add_(x)), (1, 2, 2)),
    (Expression(lambda self, x: x + functional.relu_(x.clone())), (1, 2, 2)),
    (Expression(lambda self, x: self.fc(x.reshape(-1, 4).detach())), (1, 2, 2)),
    (Expression(lambda self, x: self.fc(functional.relu(x).flatten(1).contiguous())), (1, 2, 2)),
], ids=["conv", "depthwise", "max pool", "even ceil", "partial window", "partial windows",
        "relu6", "hardtanh", "clamp", "clamp below", "concat", "concat of vectors", "pad", "average pool", "divisor",
        "adaptive", "classifier", "mean",
        "keepdim", "squeeze", "add in place", "relu in place", "reshape", "contiguous"])
def test_layer(module: nn.Module, shape: tuple[int, int, int]) -> None:
    check_same(module, shape)


def test_weights_of_other_types_are_exact() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).to(dtype)
        _, state = from_torch(module, (1, 2, 2), "net")
        assert np.array_equal(state["1.weight"], module[1].weight.detach().double().numpy())


def test_write_in_place_is_seen_through_a_view() -> None:
    def forward(self: Expression, x: Tensor) -> Tensor:
        y = x * 1 if x.ndim == 0 else functional.relu(x)
        flat = y.view(x.size(0), -1)
        y.add_(x)
        return self.fc(flat)
    check_same(Expression(forward), (1, 2, 2))


def test_names_stay_unique() -> None:
    module = nn.ModuleDict({"labels": nn.ReLU(), "input": nn.ReLU(inplace=True)})
    graph, _ = from_torch(Expression(lambda self, x: module["input"](module["labels"](x))), (1, 2, 2), "n")
    names = [value.name for value in graph.values()]
    assert len(set(names)) == len(names) and "labels" not in names


@pytest.mark.parametrize(("module", "message"), [
    (nn.Sequential(nn.InstanceNorm2d(4)),
     r"^Layer '0' \(aten\.instance_norm\S*\) is not a supported layer; use BatchNorm2d directly after the convolution"),
    (nn.Sequential(nn.Sigmoid()), r"^Layer '0' \(aten\.sigmoid\.default\) is not a supported layer; use ReLU or "
     r"ReLU6$"),
    (nn.Sequential(nn.Conv2d(4, 4, 1), nn.Softmax(1)),
     r"^Layer '1' \(aten\.softmax\.int\) .*; let the network end in its"),
    (nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")),
     r"^Layer '0' \(aten\.\S*pad\S*\): Pad is not taken with a value other than zero, or copies of the map \(mode\) "
     r"\(reflect, value None\); pad with zeros$"),
    (nn.Sequential(nn.ConstantPad2d(1, 2.0), nn.Conv2d(4, 4, 3)),
     r"Pad is not taken with a value other than zero, .* \(constant, value 2\.?0?\); pad with zeros$"),
    (nn.Sequential(nn.ZeroPad2d(1), nn.ReLU()),
     r"^Layer '0' .*: Pad is not taken with anything but convolutions that read the padded map; set the padding of "
     r"the layer itself$"),
    (nn.ZeroPad2d(1), r"^Layer '\S+' .*: Pad is not taken with anything but convolutions that read the padded map; "),
    (nn.Sequential(nn.ZeroPad2d(-1), nn.Conv2d(4, 4, 3)),
     r"Pad is not taken with negative padding \(padding \(-1, -1, -1, -1\)\); take fewer pixels by"),
    (Expression(lambda self, x: functional.conv2d(functional.pad(x, (0, 0, 0, 0, 1, 0)),
                                                    torch.ones(1, 5, 1, 1, dtype=x.dtype))),
     r"Pad is not taken with padding of other axes than height and width \(padding \(0, 0, 0, 0, 1, 0\), from the last "
     r"axis on\); pad height and width only$"),
    (nn.Hardtanh(-1.0, 1.0), r"ClippedReLU is not taken with a lower end other than zero \(-1\); use a range that "
                             r"begins at 0, as ReLU6 does$"),
    (nn.Hardtanh(0.0, 0.5), r"ClippedReLU is not taken with an upper end that is no whole number in 1\.\.2\*\*20 "
                            r"\(0\.5\); use a whole number, such as 6, or ReLU$"),
    (Expression(lambda self, x: x.clamp(max=6)), r"a lower end other than zero \(-inf\)"),
    (Expression(lambda self, x: torch.cat([x, x], 2)),
     r"Concat is not taken with an axis other than the channels \(axis 2, shape \(4, 5, 5\) of an image\); "
     r"concatenate along axis 1$"),
    (Expression(lambda self, x: torch.cat([x, self.pair], 1)),
     r"a part that does not depend on the image \(b_pair\); concatenate results of layers only$"),
    (nn.Sequential(nn.ConvTranspose2d(4, 4, 3)), r"^Layer '0' \(aten\.conv_transpose2d\S*\) .*; use Conv2d"),
    (nn.AvgPool2d(2, ceil_mode=True),
     r"AveragePool is not taken with a partial last window \(ceil_mode\) \(window \(2, 2\), "
     r"stride \(2, 2\), input \(5, 5\)\); use ceil_mode=False and pad the input instead$"),
    (nn.Sequential(nn.AvgPool2d(3, padding=1, count_include_pad=False)),
     r"^Layer '0' .* with padding that the mean does not"
     r" count \(padding \(1, 1, 1, 1\)\); use count_include_pad=True, or no padding$"),
    (nn.AvgPool2d(2, divisor_override=3), r"a divisor other than the size of the window \(divisor_override 3\); leave"),
    (nn.AdaptiveAvgPool2d(2),
     r"an output size that does not divide the input size \(input \(5, 5\), output \(2, 2\)\)"),
    (Expression(lambda self, x: nn.functional.max_pool2d(x, 2, return_indices=True)[0]), "the positions of the maxima"),
    (Expression(lambda self, x: x.mean(1)),
     r"a mean over axes other than height and width \(axes \[1\]\); use mean\(dim="),
    (Expression(lambda self, x: torch.add(x, x, alpha=2)), r"a factor \(alpha\) \(alpha 2\); add with alpha=1$"),
    (Expression(lambda self, x: x + 1), r"operands of different shapes, or a constant \(other is 1\)"),
    (Expression(lambda self, x: x + x.mean((2, 3), keepdim=True)),
     r"\(shapes \(4, 5, 5\) and \(4, 1, 1\) of an image\)"),
    (Expression(lambda self, x: x.flatten()),
     r"keep the batch axis first \(a batch of 2 images becomes \(200,\)\); flatten"),
    (Expression(lambda self, x: self.fc(x[..., :4])),
     r"^Layer 'slice\S*' \(aten\.slice\.Tensor\) is not a supported layer; take "
     r"every second pixel by the stride of a convolution, with a fixed 1×1 weight if need be$"),
    (Expression(lambda self, x: x.cumsum(1)), "is not a supported layer; see docs/supported-layers.md for the layers"),
    (Expression(lambda self, x: functional.conv2d(x, self.table.view(1, 4, 1, 1))),
     "which does not depend on the image"),
    (Expression(lambda self, x: functional.linear(x.flatten(1), self.table.repeat(25)[None])),
     "is not a supported layer"),
    (Expression(lambda self, x: (x, x)), "^Network 'net' returns 2 results, and one is taken; return the logits only"),
    (Expression(lambda self, x: self.table), "^Network 'net' returns 1 results, and one is taken"),
    (Expression(lambda self, x: x if x.sum() > 0 else functional.relu(x)),
     "^Network 'net' cannot be traced by torch.export"),
], ids=lambda value: value[:30] if isinstance(value, str) else type(value).__name__)
def test_unsupported_wrong(module: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        from_torch(module, (4, 5, 5), "net")


def test_linear_on_a_map_wrong() -> None:
    with pytest.raises(UnsupportedError,
                       match=r"^Layer 'fc' \(aten\.linear\.default\): Linear is not taken with an input of "
                       r"more than one axis beside the batch \(shape \(1, 3, 4\) of an image\); flatten it to"):
        from_torch(Expression(lambda self, x: self.fc(x)), (1, 3, 4), "net")


def test_shared_weight_wrong() -> None:
    with pytest.raises(UnsupportedError,
                       match=r"\('fc\.weight' is also the weight of another layer\); give each layer"):
        from_torch(Expression(lambda self, x: self.fc(self.fc(x.flatten(1)))), (1, 2, 2), "net")


def test_buffer_as_weight_wrong() -> None:
    module = Expression(lambda self, x: functional.linear(x.flatten(1), self.fc.weight, self.table))
    with pytest.raises(UnsupportedError, match=r"not a parameter of its own \(bias is b_table\); give each layer"):
        from_torch(module, (1, 2, 2), "net")


def test_input_shape_wrong() -> None:
    with pytest.raises(GraphError,
                       match=r"^Layer 'fc2' \(Linear\) does not accept what images of shape \(3, 16, 16\) give "
                       r"it: .*; give the shape that the network was made for"):
        broken = Residual()
        broken.fc2 = nn.Linear(7, 5)
        from_torch(broken, (3, 16, 16), "net")
    with pytest.raises(GraphError, match=r"^Layer 'conv1' \(Conv2d\) does not accept"):
        from_torch(Residual(), (1, 16, 16), "net")
    with pytest.raises(GraphError,
                       match=r"^Images have a shape \(channels, height, width\) of positive sizes, not \(3, 0, 4\)$"):
        from_torch(Residual(), (3, 0, 4), "net")


def test_weights_wrong() -> None:
    module = Residual()
    with torch.no_grad():
        module.fc1.weight[2, 3] = float("nan")
    with pytest.raises(DataError,
                       match=r"^Layer 'fc1' \(aten\.linear\.default\): weights must be finite, and 'fc1\.weight' "
                       r"holds nan at \(2, 3\); train again or repair the file$"):
        from_torch(module, (3, 16, 16), "net")
    assert issubclass(DataError, EspalierError)


@pytest.mark.parametrize(("owner", "place"), [("fc1", r"Layer 'fc1' \(Linear\)"), ("", r"Network 'net' \(Residual\)")])
def test_complex_weights_wrong(owner: str, place: str) -> None:
    module = Residual()
    module.get_submodule(owner).register_parameter("twist", nn.Parameter(torch.ones(2, dtype=torch.complex64)))
    name = f"{owner}.twist" if owner else "twist"
    with pytest.raises(UnsupportedError, match=rf"^{place} has the complex weight '{name}', and weights must be real: "
                                               rf"give its real and its imaginary part a layer each$"):
        from_torch(module, (3, 16, 16), "net")


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_window_of_same_padding() -> None:
    graph, _ = from_torch(nn.Sequential(nn.Conv2d(1, 1, 4, padding="same", dilation=3)), (1, 9, 9), "net")
    assert graph.ops[0].window == Window((4, 4), (1, 1), (4, 4, 5, 5), (3, 3))


def test_an_assertion_in_forward_wrong() -> None:
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 3, "three channels"
        return x

    with pytest.raises(GraphError, match=r"^Network 'net' \(Expression\) does not accept .*: three channels; give "):
        from_torch(Expression(forward), (1, 2, 2), "net")


def test_dropping_in_inference_wrong() -> None:
    module = Expression(lambda self, x: functional.dropout(x.flatten(1)))
    with pytest.raises(UnsupportedError, match=r"native_dropout.*; use torch\.nn\.Dropout, or give the function "):
        from_torch(module, (1, 2, 2), "net")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_module_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^Network 'net' is a TorchScript module, .*; give the torch module "):
        from_torch(torch.jit.script(nn.ReLU()), (1, 2, 2), "net")
