"""Batch norms that are kept, from torch and from ONNX: the graph computes what the network does, and folds."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from bench.normed import residual, shaken
from numpy.typing import NDArray
from torch import nn

from espalier.errors import DataError, UnsupportedError
from espalier.frontend.onnx_export import to_onnx
from espalier.frontend.onnx_import import from_onnx
from espalier.frontend.torch_export import from_torch
from espalier.ir.fold import fold_batch_norm
from espalier.ir.graph import Graph
from espalier.ir.interpret import interpret
from espalier.ir.ops import BatchNorm

FLOAT64_TOLERANCE = 1e-9  #: sums of float64 products in another order
FLOAT32_TOLERANCE = 1e-5  #: the file holds float32
SHAPE = (1, 8, 8)


def logits(graph: Graph, state: dict[str, NDArray]) -> NDArray:
    images = np.random.default_rng(0).normal(size=(2, *SHAPE))
    return interpret(graph, {**state, graph.inputs[0].name: images})[graph.outputs[0].name]


def test_from_torch() -> None:
    module = shaken(residual().double().eval())
    graph, state = from_torch(module, SHAPE, "net", keep_batch_norm=True)
    images = np.random.default_rng(0).normal(size=(2, *SHAPE))
    expected = module(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_allclose(logits(graph, state), expected, rtol=0, atol=FLOAT64_TOLERANCE)
    norms = [op for op in graph.ops if isinstance(op, BatchNorm)]
    assert [op.out.name for op in norms] == ["bn1", "bn2", "bn3", "bn4"]
    assert [op.epsilon for op in norms] == [1e-5, 1e-3, 1e-5, 1e-5]
    assert [value.name for value in norms[0].inputs] == ["conv1", "bn1.weight", "bn1.bias", "bn1.running_mean",
                                                         "bn1.running_var"]
    assert list(state) == [value.name for value in graph.parameters]
    assert {value.name for value in graph.learned()} == {name for name, _ in module.named_parameters()}


def test_through_onnx_and_back() -> None:
    graph, state = from_torch(shaken(residual()), SHAPE, "net", keep_batch_norm=True)
    model = to_onnx(graph, state)
    assert [node.op_type for node in model.graph.node].count("BatchNormalization") == 4
    kept, kept_state = from_onnx(model, keep_batch_norm=True)
    assert [op.out.name for op in kept.ops] == [op.out.name for op in graph.ops]
    assert [value.name for value in kept.statistics()] == [value.name for value in graph.statistics()]
    np.testing.assert_allclose(logits(kept, kept_state), logits(graph, state), rtol=0, atol=FLOAT32_TOLERANCE)
    folded, folded_state = fold_batch_norm(kept, kept_state)
    again, again_state = from_onnx(model)
    assert folded == again and all(np.array_equal(folded_state[name], again_state[name]) for name in again_state)
    assert not any(isinstance(op, BatchNorm) for op in again.ops)


def test_without_scale_and_shift_it_gets_them() -> None:
    graph, state = from_torch(nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, affine=False), nn.Flatten(),
                                            nn.Linear(108, 2)), SHAPE, "net", keep_batch_norm=True)
    assert state["1.weight"].tolist() == [1.0] * 3 and state["1.bias"].tolist() == [0.0] * 3
    assert [value.name for value in graph.learned()] == ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight",
                                                         "3.bias"]


@pytest.mark.parametrize("module", [
    nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 3, 3)),
    nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.BatchNorm2d(3))], ids=["of the image", "of a rectifier"])
def test_place_wrong(module: nn.Module) -> None:
    with pytest.raises(UnsupportedError, match=r"BatchNorm is not taken with an input other than the result of a "
                                               r"Conv2d or Linear that nothing else reads"):
        from_torch(module, SHAPE, "net", keep_batch_norm=True)


def test_a_batch_norm_of_two_layers_wrong() -> None:
    norm = nn.BatchNorm2d(1)
    module = nn.Sequential(nn.Conv2d(1, 1, 3), norm, nn.Conv2d(1, 1, 3), norm)
    with pytest.raises(UnsupportedError, match=r"BatchNorm is not taken with a weight or bias that is not a parameter "
                                               r"of its own \('[13]\.weight' is also the weight of another layer\)"):
        from_torch(module, SHAPE, "net", keep_batch_norm=True)


def test_variance_wrong() -> None:
    module = residual()
    module.bn1.running_var.fill_(-1.0)
    with pytest.raises(DataError, match=r"^Layer 'bn1' .*: variance and epsilon must be positive together, and their "
                                        r"least sum is -0\.99999; train again or repair the file$"):
        from_torch(module, SHAPE, "net", keep_batch_norm=True)


def test_the_exported_file_is_valid() -> None:
    graph, state = from_torch(residual(), SHAPE, "net", keep_batch_norm=True)
    onnx.checker.check_model(to_onnx(graph, state), full_check=True)
