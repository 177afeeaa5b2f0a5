"""Networks in parts: where they can be cut, and that the parts together are the whole."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest

from espalier import zoo
from espalier.errors import GraphError
from espalier.frontend.torch_export import from_torch
from espalier.ir.cut import cut_points, split
from espalier.ir.differentiate import differentiate, differentiate_parts, gradient_name
from espalier.ir.graph import Graph
from espalier.ir.interpret import interpret
from espalier.ir.types import Fixed
from espalier.ir.verify import verify
from espalier.train.calibrate import Headroom, Widths, quantise
from espalier.train.ranges import observe


@cache
def network(name: str, keep_batch_norm: bool = False) -> Graph:
    return from_torch(zoo.build(name), zoo.input_shape(name), name, keep_batch_norm=keep_batch_norm)[0]


def test_a_chain_is_cut_between_any_layers():
    points = [value.name for value in cut_points(network("lenet5"))]
    made = [op.out.name for op in network("lenet5").ops]
    assert points == made[:-1], "all but the logits"


@pytest.mark.parametrize("keep", [False, True])
def test_a_residual_block_is_not_cut(keep):
    """Only after an addition and its rectifier, and before the first block, does one value cross."""
    graph = network("resnet20", keep)
    for value in cut_points(graph):
        position = [op.out for op in graph.ops].index(value) + 1
        after = graph.ops[position:]
        before = {*graph.inputs, *(op.out for op in graph.ops[:position])}
        assert {read for op in after for read in op.inputs} & before == {value}
    assert 9 <= len(cut_points(graph)) < len(graph.ops) / 2


@pytest.mark.parametrize(("name", "keep"), [("lenet5", False), ("resnet20", False), ("resnet20", True)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_parts_do_the_operations_of_the_whole(name, keep, count):
    graph = network(name, keep)
    points = [value.name for value in cut_points(graph)]
    cuts = [points[(k + 1) * len(points) // (count + 1)] for k in range(count)]
    parts = split(graph, cuts[::-1])
    assert [part.outputs[0].name for part in parts[:-1]] == cuts
    assert [op for part in parts for op in part.ops] == list(graph.ops)
    assert [value for part in parts for value in part.parameters] == list(graph.parameters)
    steps = [verify(step) for step in differentiate_parts(parts)]
    whole = differentiate(graph)
    assert {op.out.name: op for step in steps for op in step.ops} == {op.out.name: op for op in whole.ops}
    assert sum(len(step.ops) for step in steps) == len(whole.ops)
    for before, after in zip(steps, steps[1:], strict=False):
        result, gradient = before.outputs[0], before.inputs[1]
        assert after.inputs[0] == result and gradient.name == gradient_name(result.name)
        assert gradient in after.outputs
    assert steps[-1].outputs[:2] == whole.outputs[:2]


def test_parts_in_fixed_point_give_the_words_of_the_whole():
    """Run one after the other and back, by the interpreter."""
    rng, (graph, real) = np.random.default_rng(0), from_torch(zoo.build("digits"), (1, 8, 8), "digits")
    images, labels = rng.random((6, 1, 8, 8)), rng.integers(0, 10, 6)
    ranges = observe(differentiate(graph), real, images, labels, len(images))
    found = quantise(graph, real, ranges, Widths(16, 16, 16), "softmax_cross_entropy", Headroom(1, 1, 1))
    state = {value.name: found.state[value.name] for value in found.graph.parameters}
    assert isinstance(found.graph.inputs[0].format, Fixed)
    tensors = {**state, found.graph.inputs[0].name: found.graph.inputs[0].format.quantise(images), "labels": labels}
    expected = interpret(differentiate(found.graph, formats=found.gradient_formats), tensors)
    cut = cut_points(found.graph)[2].name
    first, last = differentiate_parts(split(found.graph, [cut]), formats=found.gradient_formats)
    values = interpret(last, {**tensors, cut: expected[cut]})
    values |= interpret(first, {**tensors, first.inputs[1].name: values[first.inputs[1].name]})
    for output in (*first.outputs, *last.outputs):
        assert np.array_equal(values[output.name], expected[output.name]), output


def test_cuts_that_cannot_be():
    graph = network("lenet5")
    with pytest.raises(GraphError, match=re.escape("Network 'lenet5' cannot be cut at 'conv9': values that cross alone "
                                                   "from some layers to the next are conv1, ")):
        split(graph, ["conv9"])
    with pytest.raises(GraphError, match=r"^Each cut is named once, not as conv1, conv1$"):
        split(graph, ["conv1", "conv1"])
    with pytest.raises(GraphError, match=r"^Each part of a network has weights, and the one of 'lenet5' that ends in "
                                         r"'relu1' has none: leave that cut out$"):
        split(graph, ["conv1", "relu1"])
    logits = graph.outputs[0].name
    with pytest.raises(GraphError, match=f"cannot be cut at '{logits}'"):
        split(graph, [logits])
