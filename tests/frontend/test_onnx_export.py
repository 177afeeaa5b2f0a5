"""Export to ONNX, held against ONNX's reference evaluator and our own import."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from torch import nn

from espalier.errors import GraphError
from espalier.frontend.builder import GraphBuilder, Site
from espalier.frontend.onnx_export import to_onnx
from espalier.frontend.onnx_import import from_onnx
from espalier.frontend.torch_export import from_torch
from espalier.ir.differentiate import differentiate
from espalier.ir.graph import Graph
from espalier.ir.interpret import interpret
from espalier.ir.types import TensorType, Value
from espalier.numerics.fixed import Fixed
from espalier.numerics.window import Window

#: ONNX's reference evaluator computes in float32; results near 1 after sums of some hundred products.
FLOAT32_TOLERANCE = 1e-5


class Network(nn.Module):
    """Every operation of an inference graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2, bias=False)
        self.pool1 = nn.MaxPool2d(2, stride=1, padding=1)
        self.pool2 = nn.AvgPool2d(3, 1, 1)
        self.pool3 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv1(x))
        x = self.pool2(self.pool1(x + self.conv2(x)))
        x = self.pool3(torch.cat([nn.functional.relu6(x), x], 1))
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def imported() -> tuple[Graph, dict[str, np.ndarray]]:
    torch.manual_seed(0)
    return from_torch(Network(), (2, 9, 8), "network")


def test_round_trip_is_exact(imported: tuple[Graph, dict[str, np.ndarray]]) -> None:
    graph, state = imported
    again, again_state = from_onnx(to_onnx(graph, state))
    assert again == graph and list(again_state) == list(state)
    assert all(np.array_equal(again_state[name], state[name]) for name in state)


def test_reference_evaluator_agrees(imported: tuple[Graph, dict[str, np.ndarray]]) -> None:
    graph, state = imported
    images = np.random.default_rng(0).normal(size=(3, 2, 9, 8))
    expected = interpret(graph, {"x": images, **state})[graph.outputs[0].name]
    got, = ReferenceEvaluator(to_onnx(graph, state)).run(None, {"x": images.astype(np.float32)})
    np.testing.assert_allclose(got, expected, rtol=0, atol=FLOAT32_TOLERANCE)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    """Windows that fit in 7 × 8 and are nowhere on padding alone."""
    kernel, stride, dilation = (draw(st.tuples(st.integers(1, top), st.integers(1, top))) for top in (3, 3, 2))
    pad = tuple(draw(st.integers(0, kernel[axis] - 1)) for axis in (0, 1, 0, 1))
    return Window(kernel, stride, pad, dilation)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(window=windows(), kind=st.sampled_from(["conv", "depthwise", "max", "average"]))
def test_any_window_means_the_same_in_onnx(window: Window, kind: str) -> None:
    random = np.random.default_rng(0)
    builder, site = GraphBuilder("window"), Site("y", "Layer 'y'")
    x = builder.input("x", (2, 7, 8))
    match kind:
        case "conv" | "depthwise":
            groups = 2 if kind == "depthwise" else 1
            weight = random.normal(size=(4, 2 // groups, *window.kernel)).astype(np.float32)
            y = builder.conv2d(site, x, ("y.weight", weight), None, window, groups)
        case "max":
            y = builder.max_pool(site, x, window)
        case _:
            y = builder.average_pool(site, x, window)
    graph, state = builder.finish((y,))
    model = to_onnx(graph, state)
    assert from_onnx(model)[0] == graph
    images = random.normal(size=(2, *x.shape)).astype(np.float32)
    got, = ReferenceEvaluator(model).run(None, {"x": images})
    expected = interpret(graph, {"x": images.astype(np.float64), **state})["y"]
    np.testing.assert_allclose(got, expected, rtol=0, atol=FLOAT32_TOLERANCE)


def test_export_is_the_same_bytes_each_time(imported: tuple[Graph, dict[str, np.ndarray]]) -> None:
    assert to_onnx(*imported).SerializeToString() == to_onnx(*imported).SerializeToString()


def test_words_are_exported_as_numbers(imported: tuple[Graph, dict[str, np.ndarray]]) -> None:
    graph, state = imported
    fixed = graph.with_formats({"fc.weight": Fixed.of(16, 12)})
    words = np.arange(-12, 12).reshape(3, 8)
    model = to_onnx(fixed, {**state, "fc.weight": words})
    array = next(onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "fc.weight")
    assert array.dtype == np.float32 and np.array_equal(array, words / 4096)


def test_training_graph_wrong(imported: tuple[Graph, dict[str, np.ndarray]]) -> None:
    graph, state = imported
    with pytest.raises(GraphError,
                       match="^ONNX export takes inference graphs, and %loss: .* is part of a loss or a backward "
                       "pass; export the graph from before differentiate$"):
        to_onnx(differentiate(graph), state)


def test_state_wrong(imported: tuple[Graph, dict[str, np.ndarray]]) -> None:
    graph, state = imported
    with pytest.raises(GraphError,
                       match=r"^The array for the parameter %fc\.bias: .* has shape \(4,\); give the state of"):
        to_onnx(graph, {**state, "fc.bias": np.zeros(4)})
    del state["fc.bias"]
    with pytest.raises(GraphError,
                       match=r"^The export needs an array for the parameter %fc\.bias: .*; give it in the state$"):
        to_onnx(graph, state)


def test_output_wrong() -> None:
    value = Value("x", TensorType((3,), Fixed.of(8, 4)))
    with pytest.raises(GraphError, match="^Output 0 of graph 'n' is %x: .*, which no operation computes; add a layer$"):
        to_onnx(Graph("n", (value,), (), (), (value,)), {})
