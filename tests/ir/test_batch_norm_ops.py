"""Batch norm in a training graph against torch's modules: values, gradients and running statistics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from bench.normed import normed, residual, shaken
from torch import nn
from torch.nn import functional

from espalier.errors import GraphError
from espalier.ir.differentiate import differentiate, gradient_name, next_name
from espalier.ir.graph import Graph
from espalier.ir.interpret import interpret
from espalier.ir.ops import (
    BatchMean,
    BatchNorm,
    BatchNormInputGrad,
    BatchNormScaleGrad,
    BatchVariance,
    BiasGrad,
    FrozenBatchNormInputGrad,
    Op,
    RunningMean,
    RunningVariance,
)
from espalier.ir.text import dump, load
from espalier.ir.types import FLOAT, Fixed, TensorType, Value
from espalier.ir.verify import verify

FLOAT64_TOLERANCE = 1e-9  #: relative to the largest number of a tensor: sums in another order
BATCH = 5


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.normal(size=(BATCH, 1, 8, 8)), random.integers(0, 10, BATCH)


def assert_close(found: np.ndarray, expected: torch.Tensor, name: str) -> None:
    reference = expected.detach().numpy()
    assert np.abs(found - reference).max() <= FLOAT64_TOLERANCE * max(1.0, np.abs(reference).max()), name


def step_of(module: nn.Module, frozen: tuple[str, ...] = ()) -> tuple[Graph, dict[str, np.ndarray]]:
    graph, state = normed(module)
    return verify(differentiate(graph, frozen=frozen)), state


def assert_equals_torch(module: nn.Module, step: Graph, state: dict[str, np.ndarray], seed: int
                        ) -> dict[str, np.ndarray]:
    """Loss, logits, gradients and next statistics of a batch; returns all values."""
    images, labels = drawn(seed)
    found = interpret(step, {**state, step.inputs[0].name: images, "labels": labels})
    module.zero_grad()
    logits = module(torch.from_numpy(images))
    functional.cross_entropy(logits, torch.from_numpy(labels), reduction="sum").backward()
    assert_close(found["fc2"], logits, "logits")
    for name, parameter in module.named_parameters():
        assert_close(found[gradient_name(name)], parameter.grad, name)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_those_of_autograd(seed: int) -> None:
    module = shaken(residual(seed).double(), seed).train()
    step, state = step_of(module)
    assert_equals_torch(module, step, state, seed)


def test_running_statistics_are_those_of_torch_over_several_steps() -> None:
    module = shaken(residual().double()).train()
    step, state = step_of(module)
    statistics = [value.name for value in normed(module)[0].statistics()]
    assert [value.name for value in step.statistics()] == statistics and len(statistics) == 8
    for seed in range(4):
        found = assert_equals_torch(module, step, state, seed)
        state |= {name: found[next_name(name)] for name in statistics}
        for name, buffer in module.named_buffers():
            if name in statistics:
                assert_close(state[name], buffer, name)


def test_a_frozen_batch_norm_is_that_of_torch_in_inference() -> None:
    """One of which only the scale is frozen goes on by the statistics of the batch."""
    module = shaken(residual().double()).train()
    module.bn1.eval()
    module.bn4.eval()
    frozen = ("bn1.weight", "bn1.bias", "bn4.weight", "bn4.bias", "bn2.weight")
    step, state = step_of(module, frozen)
    found = assert_equals_torch(module, step, state, 0)
    follows = {name for name in state if next_name(name) in found}
    assert follows == {f"bn{number}.running_{kind}" for number in (2, 3) for kind in ("mean", "var")}
    position = [value.name for value in step.parameters].index("bn1.running_mean")
    assert step.outputs[2 + position] == step.value("bn1.running_mean")


def test_inference_uses_the_running_statistics() -> None:
    module = shaken(residual().double()).eval()
    graph, state = normed(module)
    images, _ = drawn(0)
    found = interpret(graph, {**state, graph.inputs[0].name: images})[graph.outputs[0].name]
    assert_close(found, module(torch.from_numpy(images)), "logits")


def test_the_text_says_it_all() -> None:
    step, _ = step_of(residual(), ("bn1.weight", "bn1.bias"))
    text = dump(step)
    assert load(text) == step
    assert "shift=%bn2.bias, mean=%bn2.running_mean.batch, variance=%bn2.running_var.batch, epsilon=0.001)" in text
    with pytest.raises(GraphError, match=r"^Line \d+: expected a number, found 'much\)'$"):
        load(text.replace("epsilon=0.001", "epsilon=much"))


def test_a_variance_of_one_value_stays_as_it_is() -> None:
    x, c = value("x", 2), value("c", 2)
    found = interpret(Graph("one", (x,), (c,), (RunningVariance(value("y", 2), c, c, x),), (value("y", 2),)),
                      {"x": np.ones((1, 2)), "c": np.array([1.0, 2.0])})
    assert found["y"].tolist() == [1.0, 2.0]


def value(name: str, *shape: int) -> Value:
    return Value(name, TensorType(shape, FLOAT))


X, G, Y, C, M, V, S = (value("x", 4, 2, 2), value("g", 4, 2, 2), value("y", 4, 2, 2), value("c", 4), value("m", 4),
                       value("v", 4), value("s", 4))
FEW, FLAT = value("few", 3), value("flat", 4, 2)
NORM = BatchNorm(Y, X, C, S, M, V, 1e-5)


@pytest.mark.parametrize(("op", "rule"), [
    (replace(NORM, out=G, x=value("x", 4, 2, 1)), r"result %g: float\[4,2,2\] must have shape \[4,2,1\]"),
    (replace(NORM, x=FLAT, out=value("y", 4, 2)), r"%flat: float\[4,2\] must have shape \[C\] or \[C,H,W\]"),
    (replace(NORM, scale=FEW), r"scale %few: float\[3\] must have shape \[4\]"),
    (replace(NORM, shift=FEW), r"shift %few: float\[3\] must have shape \[4\]"),
    (replace(NORM, mean=FEW), r"mean %few: float\[3\] must have shape \[4\]"),
    (replace(NORM, variance=FEW), r"variance %few: float\[3\] must have shape \[4\]"),
    (replace(NORM, epsilon=-1.0), r"epsilon must be a number of at least 0, not -1\.0"),
    (replace(NORM, epsilon=float("inf")), r"epsilon must be a number of at least 0, not inf"),
    (BatchMean(FEW, X), r"result %few: float\[3\] must have shape \[4\]"),
    (BatchVariance(C, X, FEW), r"mean %few: float\[3\] must have shape \[4\]"),
    (RunningMean(C, FEW, M, X), r"running %few: float\[3\] must have shape \[4\]"),
    (RunningVariance(C, V, FEW, X), r"batch %few: float\[3\] must have shape \[4\]"),
    (BatchNormInputGrad(Y, value("g", 4), X, C, M, V, 0.0), r"gradient %g: float\[4\] must have shape \[4,2,2\]"),
    (FrozenBatchNormInputGrad(Y, G, FEW, V, 0.0), r"scale %few: float\[3\] must have shape \[4\]"),
    (BatchNormScaleGrad(FEW, G, X, M, V, 0.0), r"result %few: float\[3\] must have shape \[4\]"),
])
def test_shapes_wrong(op: Op, rule: str) -> None:
    graph = Graph("net", tuple(dict.fromkeys(op.inputs)), (), (op,), (op.out,))
    with pytest.raises(GraphError, match=rf"^{type(op).__name__} \S+ \S+ {rule}$"):
        verify(graph)


def words(name: str, frac: int = 4, *shape: int) -> Value:
    return Value(name, TensorType(shape or (4, 2, 2), Fixed.of(8, frac)))


XW, GW, YW = words("x"), words("g"), words("y")
FACTOR, FINE, TRUNCATED = Fixed.of(8, 4), Fixed.of(8, 3), Fixed.parse("fixed<8,4>")
NORM_W = BatchNorm(YW, XW, C, S, M, V, 1e-5, FACTOR)
GRAD_W = BatchNormInputGrad(YW, GW, XW, C, M, V, 1e-5, FACTOR, FACTOR)
FROZEN_W = FrozenBatchNormInputGrad(YW, GW, C, V, 1e-5, FACTOR)


def graph_of(op: Op) -> Graph:
    return Graph("net", tuple(dict.fromkeys(op.inputs)), (), (op,), (op.out,))


@pytest.mark.parametrize("op", [
    NORM_W, GRAD_W, FROZEN_W, BatchMean(C, XW), BatchVariance(C, XW, M), RunningMean(C, S, M, XW),
    RunningVariance(C, S, V, XW), BatchNormScaleGrad(C, GW, XW, M, V, 1e-5), BiasGrad(C, GW)])
def test_words_and_scalars_meet_here(op: Op) -> None:
    graph = verify(graph_of(op))
    assert load(dump(graph)) == graph


ENGINE = r"the engine rounds with AP_RND and saturates with AP_SAT, and the {}'s format asks for something else"


@pytest.mark.parametrize(("op", "rule"), [
    (replace(NORM_W, scale=words("c", 4, 4)), r"of what a batch norm has one of for each channel all is float, and "
                                              r"%c: fixed<8,4,AP_RND,AP_SAT>\[4\] is not"),
    (replace(NORM_W, out=Y), r"float and fixed-point values do not mix, and %y: float\[4,2,2\] meets %x: .*"),
    (replace(NORM_W, factor=None), r"a batch norm of words has a format of its factor, and this one has none; choose "
                                   r"formats anew \(calibrate\), or fold it into the layer before it first "
                                   r"\(fold_batch_norm\)"),
    (replace(GRAD_W, slope=None), r"a batch norm of words has a format of its slope, and this one has none; .*"),
    (replace(NORM, factor=FACTOR), r"a batch norm of float values multiplies them by no words, and this one has a "
                                   r"format of such"),
    (replace(NORM_W, x=words("x", 7)), r"one must be a word of %x: \S+, with 0\.\.6 fraction bits, not 7"),
    (replace(GRAD_W, x=words("x", -1)), r"one must be a word of %x: \S+, with 0\.\.6 fraction bits, not -1"),
    (replace(NORM_W, factor=TRUNCATED), ENGINE.format("factor")),
    (replace(GRAD_W, slope=TRUNCATED), ENGINE.format("slope")),
    (replace(NORM_W, factor=Fixed.of(8, 63)), r"its factor must have -62\.\.62 fraction bits, not 63"),
    (replace(NORM_W, out=words("y", 9)), r"the result may have at most the 8 fraction bits of the product of %x: \S+ "
                                         r"and its factor, and has 9"),
    (replace(GRAD_W, out=words("y", 8), slope=FINE), r"the result may have at most the 7 fraction bits of the product "
                                                     r"of %x: \S+ and its slope, and has 8"),
    (replace(FROZEN_W, out=words("y", 8), factor=FINE), r"the result may have at most the 7 fraction bits of the "
                                                        r"product of %g: \S+ and its factor, and has 8"),
    (replace(NORM_W, epsilon=0.0), r"epsilon must be a number of at least 1\.18e-38, not 0\.0"),
    (BatchMean(C, words("x", 63)), r"%x: \S+ must have -62\.\.62 fraction bits, not 63")])
def test_words_wrong(op: Op, rule: str) -> None:
    with pytest.raises(GraphError, match=rf"^{type(op).__name__} \S+ \S+ {rule}$"):
        verify(graph_of(op))


@pytest.mark.parametrize(("op", "rule"), [
    (replace(NORM_W, factor=Fixed.of(17, 4)), r"BatchNorm \S+ \S+, factor: the width must be in 2\.\.16, not 17"),
    (replace(GRAD_W, slope=Fixed.of(1, 0)), r"BatchNormInputGrad \S+ \S+, slope: the width must be in 2\.\.16, not 1")])
def test_width_of_factors_wrong(op: Op, rule: str) -> None:
    with pytest.raises(GraphError, match=rf"^{rule}$"):
        verify(graph_of(op))


def test_a_format_that_is_none_wrong() -> None:
    text = dump(graph_of(NORM_W))
    assert "epsilon=1e-05, factor=fixed<8,4,AP_RND,AP_SAT>)" in text
    with pytest.raises(GraphError, match=r"^Line \d+: expected a fixed-point format, found float$"):
        load(text.replace("factor=fixed<8,4,AP_RND,AP_SAT>", "factor=float"))


def test_differentiated_twice_wrong() -> None:
    step, _ = step_of(residual())
    again = Graph("again", step.inputs[:1], step.parameters,
                  tuple(op for op in step.ops if not op.out.name.endswith(".grad")), (step.value("fc2"),))
    with pytest.raises(GraphError, match=r"^The graph already holds a training step: %bn1\.running_mean\.batch: "
                                         r"float\[6\]$"):
        differentiate(again)
