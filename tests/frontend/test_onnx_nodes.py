"""ONNX's own node cases for every operator that the table of supported layers claims.

Each is either run and correct, or refused with UnsupportedError for a reason that stands in the
operator's row; none is skipped. The counts are printed at the end of the test run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from bench.onnx_cases import FLOAT32_TOLERANCE, PRINTED_TOLERANCE, imported, load_cases, operator_of, wide
from numpy.typing import NDArray
from onnx.backend.test.case.test_case import TestCase as NodeCase

from espalier.errors import UnsupportedError
from espalier.frontend import supported
from espalier.frontend.onnx_import import from_onnx
from espalier.frontend.onnx_training import momentum_from_onnx
from espalier.frontend.supported import Layer
from espalier.ir.interpret import interpret
from espalier.numerics.fixed import Fixed
from espalier.numerics.update import BufferedSgd, master_format

if TYPE_CHECKING:
    from conftest import NodeCaseTally

#: A learning rate, momentum and decay have 16-bit words: each term of an update, below 1, is off by at most 2**-16.
FACTOR_TOLERANCE = 3 * 2.0 ** -16

WEIGHT = Fixed.of(16, 12)   #: holds the numbers of the Momentum cases, which are below 8
GRADIENT_FRAC = 24


@pytest.fixture(scope="module")
def all_cases() -> list[NodeCase]:
    return load_cases()


def run_graph(case: NodeCase) -> None:
    """Import the case's model, interpret it, and compare each result."""
    graph, state, images, expected = imported(case)
    known = interpret(graph, {**state, **images})
    for value, array in zip(graph.outputs, expected, strict=True):
        np.testing.assert_allclose(known[value.name], array, rtol=0,
                                   atol=PRINTED_TOLERANCE.get(case.name, FLOAT32_TOLERANCE))


def run_momentum(case: NodeCase) -> None:
    """Do the case's update on words through the gradient accumulation buffer, and compare as numbers."""
    node = case.model.graph.node[0]
    (inputs, results), = case.data_sets
    tensors = dict(zip(node.input, inputs, strict=True))
    expected = dict(zip(node.output, results, strict=True))
    update = momentum_from_onnx(case.model, tensors)
    rule = BufferedSgd.of(weight=WEIGHT, grad_frac=GRADIENT_FRAC, learning_rate=update.learning_rate, batch=1,
                          momentum=update.momentum, weight_decay=update.weight_decay)
    scale = 2.0 ** master_format(WEIGHT).frac
    for names in update.tensors:
        master = np.rint(tensors[names.weight] * scale).astype(np.int64)
        velocity = np.rint(update.learning_rate * tensors[names.momentum] * scale).astype(np.int64)
        gradient = np.rint(tensors[names.gradient] * 2.0 ** GRADIENT_FRAC).astype(np.int64)
        master, velocity, _ = rule(master, velocity, gradient)
        np.testing.assert_allclose(master / scale, expected[names.new_weight], rtol=0, atol=FACTOR_TOLERANCE)
        np.testing.assert_allclose(velocity / scale, update.learning_rate * expected[names.new_momentum], rtol=0,
                                   atol=FACTOR_TOLERANCE)


def documented_reason(error: UnsupportedError, layer: Layer) -> str | None:
    """The rule of the table that a refusal quotes."""
    rules = [limit.rule for limit in (*layer.limits, *supported.IMAGE.limits)]
    return next((rule for rule in rules if f" with {rule}" in str(error)), None)


def run_or_refuse(case: NodeCase, run: Callable[[NodeCase], None], layer: Layer, operator: str,
                  tally: NodeCaseTally) -> None:
    try:
        run(case)
    except UnsupportedError as error:
        reason = documented_reason(error, layer)
        assert reason is not None, f"{case.name} is refused for a reason that is not in the table: {error}"
        tally.refused.setdefault(f"{operator} with {reason}", []).append(case.name)
    else:
        tally.run.append(case.name)


ROWS = [(operator, layer) for layer in supported.LAYERS for operator in layer.onnx]


@pytest.mark.parametrize(("operator", "layer"), ROWS, ids=[operator for operator, _ in ROWS])
def test_every_case_of_the_operator(operator: str, layer: Layer, all_cases: list[NodeCase],
                                    node_case_tally: NodeCaseTally) -> None:
    cases = [case for case in all_cases if operator_of(case) == operator]
    assert cases, f"ONNX has no case of {operator}"
    run = run_momentum if layer is supported.MOMENTUM else run_graph
    for case in cases:
        run_or_refuse(case, run, layer, operator, node_case_tally)


@pytest.mark.parametrize("name", ["test_batchnorm_example", "test_batchnorm_epsilon"])
def test_batch_norm_after_a_convolution(name: str, all_cases: list[NodeCase]) -> None:
    """These cases normalise the image itself; after a convolution that copies it they have the form that is taken."""
    case = next(case for case in all_cases if case.name == name)
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    norm = model.graph.node[0]
    ((images, *statistics), (expected,)), = case.data_sets
    copying = onnx.helper.make_node("Conv", [norm.input[0], "copying"], ["copied"])
    bound = dict(zip(norm.input[1:], statistics, strict=True))
    model.graph.initializer.append(onnx.numpy_helper.from_array(
        np.eye(images.shape[1], dtype=np.float32)[:, :, np.newaxis, np.newaxis], "copying"))
    norm.input[0] = "copied"
    model.graph.node.insert(0, copying)
    graph, state = from_onnx(model, bound)
    known = interpret(graph, {**state, graph.inputs[0].name: wide(images)})
    np.testing.assert_allclose(known[graph.outputs[0].name], expected, rtol=0, atol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize(("name", "reduce"), [("test_sce_sum", np.sum), ("test_sce_mean", np.mean)])
def test_reductions_are_of_the_loss_of_each_image(name: str, reduce: Callable[[NDArray], float],
                                                  all_cases: list[NodeCase]) -> None:
    case = next(case for case in all_cases if case.name == name)
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    attribute = next(a for a in model.graph.node[0].attribute if a.name == "reduction")
    attribute.s = b"none"
    (inputs, expected), = case.data_sets
    graph, _ = from_onnx(model)
    known = interpret(graph, {value.name: wide(array) for value, array in zip(graph.inputs, inputs, strict=True)})
    np.testing.assert_allclose(reduce(known[graph.outputs[0].name]), expected[0], rtol=0, atol=FLOAT32_TOLERANCE)


def test_momentum_wrong(all_cases: list[NodeCase]) -> None:
    case = next(case for case in all_cases if case.name == "test_momentum")
    tensors = dict(zip(case.model.graph.node[0].input, case.data_sets[0][0], strict=True))
    with pytest.raises(UnsupportedError, match=r"a gradient factor other than 1 .* \(beta 0.1.*\); use beta=1$"):
        momentum_from_onnx(case.model, {**tensors, "T": np.array(1)})
    relu = next(case for case in all_cases if case.name == "test_relu")
    with pytest.raises(UnsupportedError, match="is not one Momentum node; give a model of that node alone$"):
        momentum_from_onnx(relu.model, {})
