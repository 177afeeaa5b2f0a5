"""The backward pass of random float networks against torch autograd, and its structure at branches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from espalier.errors import GraphError
from espalier.ir.differentiate import LOSSES, differentiate, gradient_name
from espalier.ir.graph import Graph
from espalier.ir.interpret import interpret
from espalier.ir.ops import (
    Add,
    AveragePool,
    ClippedRelu,
    Concat,
    Conv2d,
    GlobalAveragePool,
    Linear,
    MaxPool,
    Op,
    Relu,
    Reshape,
)
from espalier.ir.types import FLOAT, INDEX, Fixed, TensorType, Value
from espalier.ir.verify import verify
from espalier.numerics.window import Window

FLOAT64_TOLERANCE = 1e-9  #: relative: sums of some hundred float64 products in another order


def torch_op(op: Op, known: dict[str, torch.Tensor]) -> torch.Tensor:
    """A forward operation in torch."""
    def pad(x: Value, window: Window, fill: float) -> torch.Tensor:
        top, left, bottom, right = window.pad
        return functional.pad(known[x.name], (left, right, top, bottom), value=fill)

    match op:
        case Conv2d(x=x, w=w, b=b, window=window, groups=groups):
            return functional.conv2d(pad(x, window, 0), known[w.name], None if b is None else known[b.name],
                                     window.stride, 0, window.dilation, groups)
        case Linear(x=x, w=w, b=b):
            return functional.linear(known[x.name], known[w.name], None if b is None else known[b.name])
        case Relu(x=x):
            return functional.relu(known[x.name])
        case ClippedRelu(x=x, bound=bound):
            return functional.hardtanh(known[x.name], 0.0, float(bound))
        case Concat(a=a, b=b):
            return torch.cat([known[a.name], known[b.name]], 1)
        case MaxPool(x=x, window=window):
            return functional.max_pool2d(pad(x, window, -torch.inf), window.kernel, window.stride, 0, window.dilation)
        case AveragePool(x=x, window=window):
            kernel = torch.full((x.shape[0], 1, *window.kernel), 1 / np.prod(window.kernel), dtype=torch.float64)
            return functional.conv2d(pad(x, window, 0), kernel, None, window.stride, 0, window.dilation, x.shape[0])
        case GlobalAveragePool(x=x):
            return functional.adaptive_avg_pool2d(known[x.name], 1)
        case Add(a=a, b=b):
            return known[a.name] + known[b.name]
        case Reshape(x=x, out=out):
            return known[x.name].reshape(-1, *out.shape)
        case _:
            raise AssertionError(op)


def torch_step(graph: Graph, loss: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Loss per image, logits and the gradient of every parameter, by torch autograd in float64."""
    known = {name: torch.tensor(array, requires_grad=name != "labels") for name, array in arrays.items()}
    for op in graph.ops:
        known[op.out.name] = torch_op(op, known)
    logits, labels = known[graph.outputs[0].name], known["labels"]
    if loss == "softmax_cross_entropy":
        losses = functional.cross_entropy(logits, labels, reduction="none")
    else:
        target = 2.0 * functional.one_hot(labels, logits.shape[1]) - 1
        losses = (functional.relu(1 - target * logits) ** 2).sum(1) / 2
    losses.sum().backward()
    gradients = {gradient_name(parameter.name): known[parameter.name].grad.numpy() for parameter in graph.parameters}
    return {"loss": losses.detach().numpy(), graph.outputs[0].name: logits.detach().numpy(), **gradients}


def random_arrays(graph: Graph, seed: int, batch: int = 3) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    arrays = {parameter.name: random.normal(size=parameter.shape) for parameter in graph.parameters}
    return {"image": random.normal(size=(batch, *graph.inputs[0].shape)), **arrays,
            "labels": random.integers(0, graph.outputs[0].shape[0], batch)}


def assert_equals_torch(graph: Graph, loss: str, seed: int) -> None:
    arrays = random_arrays(graph, seed)
    step = verify(differentiate(verify(graph), loss))
    result = interpret(step, arrays)
    expected = torch_step(graph, loss, arrays)
    assert [value.name for value in step.outputs] == list(expected)
    for name, array in expected.items():
        scale = max(1.0, float(np.abs(array).max()))
        np.testing.assert_allclose(result[name], array, rtol=0, atol=FLOAT64_TOLERANCE * scale, err_msg=name)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(st.data(), st.sampled_from(sorted(LOSSES)), st.integers(0, 1000))
def test_gradients_equal_autograd(networks, data, loss, seed):
    assert_equals_torch(data.draw(networks), loss, seed)


def value(name: str, *shape: int) -> Value:
    return Value(name, TensorType(shape, FLOAT))


IMAGE, LOGITS = value("image", 4), value("logits", 3)
W1, W2, HIDDEN = value("w1", 4, 4), value("w2", 3, 4), value("hidden", 4)


def test_one_reader_by_hand():
    """Each layer: the gradient of its input, then of its weight; none for the image."""
    graph = Graph("net", (IMAGE,), (W1, W2), (Linear(HIDDEN, IMAGE, W1, None), Linear(LOGITS, HIDDEN, W2, None)),
                  (LOGITS,))
    step = differentiate(graph)
    assert [op.out.name for op in step.ops] == ["hidden", "logits", "loss", "logits.grad", "hidden.grad", "w2.grad",
                                                "w1.grad"]
    assert [output.name for output in step.outputs] == ["loss", "logits", "w1.grad", "w2.grad"]
    assert step.inputs[1] == Value("labels", TensorType((), INDEX))


def test_three_readers_add_up_in_order():
    """The gradient of ``hidden`` is a sum of three parts, the last reader's first."""
    a, b = value("a", 4), value("b", 4)
    graph = Graph("net", (IMAGE,), (W1, W2), (
        Linear(HIDDEN, IMAGE, W1, None), Relu(a, HIDDEN), Add(b, a, HIDDEN), Linear(LOGITS, b, W2, None)), (LOGITS,))
    assert_equals_torch(graph, "softmax_cross_entropy", 1)
    third = Graph("net", graph.inputs, graph.parameters,
                  (*graph.ops[:3], Add(value("c", 4), b, HIDDEN), Linear(LOGITS, value("c", 4), W2, None)), (LOGITS,))
    assert_equals_torch(third, "square_hinge", 2)
    names = [op.out.name for op in differentiate(third).ops if op.out.name.startswith("hidden.grad")]
    assert names == ["hidden.grad.0", "hidden.grad.1", "hidden.grad.sum1", "hidden.grad.2", "hidden.grad"]


def test_one_operation_reads_a_value_twice():
    double = value("double", 4)
    graph = Graph("net", (IMAGE,), (W1, W2), (
        Linear(HIDDEN, IMAGE, W1, None), Add(double, HIDDEN, HIDDEN), Linear(LOGITS, double, W2, None)), (LOGITS,))
    assert_equals_torch(graph, "softmax_cross_entropy", 3)


def test_a_weight_shared_by_two_layers():
    again = value("again", 4)
    graph = Graph("net", (IMAGE,), (W1, W2), (Linear(HIDDEN, IMAGE, W1, None), Linear(again, HIDDEN, W1, None),
                                              Linear(LOGITS, again, W2, None)), (LOGITS,))
    assert_equals_torch(graph, "square_hinge", 4)
    wide = Fixed.of(32, 7)
    words = graph.with_formats({name.name: Fixed.of(8, 4) for name in graph.values()})
    formats = {f"{name}.grad": Fixed.of(8, 4) for name in ("logits", "again", "hidden")}
    verify(differentiate(words, formats=formats | {"w1.grad": wide, "w2.grad": wide}))


def test_operations_that_lead_nowhere_add_nothing():
    graph = Graph("net", (IMAGE,), (W1, W2), (
        Linear(HIDDEN, IMAGE, W1, None), Relu(value("dead", 4), HIDDEN), Relu(value("deader", 4), value("dead", 4)),
        Linear(LOGITS, HIDDEN, W2, None)), (LOGITS,))
    assert_equals_torch(graph, "softmax_cross_entropy", 5)
    assert differentiate(graph).value("hidden.grad") == value("hidden.grad", 4)


def test_formats_of_the_gradients():
    graph = Graph("net", (IMAGE,), (W2,), (Linear(LOGITS, IMAGE, W2, None),), (LOGITS,))
    step = differentiate(graph, formats={"logits.grad": Fixed.of(8, 7)})
    assert step.value("logits.grad").format == Fixed.of(8, 7)
    assert step.value("w2.grad").format == FLOAT
    words = differentiate(graph.with_formats({"logits": Fixed.of(8, 4)}))
    assert words.value("loss").format == Fixed.of(48, 16)


def simple() -> Graph:
    return Graph("net", (IMAGE,), (W2,), (Linear(LOGITS, IMAGE, W2, None),), (LOGITS,))


def test_unknown_loss_wrong():
    with pytest.raises(GraphError, match=r"^Unknown loss 'mse': it is one of softmax_cross_entropy, square_hinge$"):
        differentiate(simple(), "mse")


def test_outputs_wrong():
    with pytest.raises(GraphError, match=r"^Training needs a network with one vector of logits as output, and 'net' "
                                         r"has %logits: float\[3\], %image: float\[4\]$"):
        differentiate(Graph("net", (IMAGE,), (W2,), simple().ops, (LOGITS, IMAGE)))


def test_differentiated_twice_wrong():
    step = differentiate(simple())
    again = Graph("net", step.inputs, step.parameters, step.ops, (value("logits.grad", 3),))
    with pytest.raises(GraphError, match=r"^The graph already holds a backward pass: %logits.grad: float\[3\]$"):
        differentiate(again)


def test_parameter_that_leads_nowhere_wrong():
    with pytest.raises(GraphError, match=r"^Every parameter trained must lead to the logits, and %w1: float\[4,4\] "
                                         r"does not; remove it$"):
        differentiate(Graph("net", (IMAGE,), (W1, W2), simple().ops, (LOGITS,)))
