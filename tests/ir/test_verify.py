"""Every rule of the representation, kept by what we build and told in one sentence when broken."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.errors import GraphError
from espalier.ir.differentiate import differentiate
from espalier.ir.graph import Graph
from espalier.ir.ops import (
    Add,
    AveragePool,
    AveragePoolGrad,
    BiasGrad,
    ClippedRelu,
    ClippedReluGrad,
    Concat,
    ConcatGrad,
    Conv2d,
    Conv2dInputGrad,
    Conv2dWeightGrad,
    GlobalAveragePool,
    GlobalAveragePoolGrad,
    Linear,
    LinearInputGrad,
    LinearWeightGrad,
    MaxPool,
    MaxPoolGrad,
    Op,
    Relu,
    ReluGrad,
    Reshape,
    SoftmaxCrossEntropy,
    SoftmaxCrossEntropyGrad,
    SquareHinge,
    SquareHingeGrad,
)
from espalier.ir.types import FLOAT, INDEX, Fixed, Format, TensorType, Value
from espalier.ir.verify import verify
from espalier.numerics.fixed import Overflow, Quant
from espalier.numerics.window import Window

WORD = Fixed.of(8, 4)


def value(name: str, *shape: int, format_: Format = FLOAT) -> Value:
    return Value(name, TensorType(shape, format_))


def words(name: str, frac: int, *shape: int, width: int = 8) -> Value:
    return value(name, *shape, format_=Fixed.of(width, frac))


def graph_of(*ops: Op) -> Graph:
    """A graph in which everything that ``ops`` read and none of them computes is an input."""
    results = {op.out.name for op in ops}
    read = {value.name: value for op in ops for value in op.inputs if value.name not in results}
    return Graph("net", tuple(read.values()), (), ops, (ops[-1].out,))


def error_of(graph: Graph) -> str:
    with pytest.raises(GraphError) as caught:
        verify(graph)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@settings(deadline=None, derandomize=True)
@given(st.data(), st.booleans())
def test_what_we_build_keeps_the_rules(networks, training_steps, data, trains):
    graph = data.draw(training_steps if trains else networks)
    assert verify(graph) is graph


X, Y = value("x", 2, 6, 6), value("y", 2, 6, 6)
W, B = value("w", 4, 2, 3, 3), value("b", 4)
C = value("c", 4, 6, 6)
SAME = Window((3, 3), pad=(1, 1, 1, 1))
V, M, U = value("v", 5), value("m", 3, 5), value("u", 3)
LABELS = value("labels", format_=INDEX)


@pytest.mark.parametrize(("graph", "error"), [
    (Graph("net", (), (), (), ()), "A graph has at least one input, and 'net' has none"),
    (Graph("net", (X,), (), (), ()), "A graph has at least one output, and 'net' has none"),
    (Graph("net", (X, X), (), (), (X,)), "Names in a graph are unique, and two values are named 'x': "
                                         "%x: float[2,6,6] and %x: float[2,6,6]"),
    (Graph("net", (X,), (value("x", 1),), (), (X,)), "Names in a graph are unique, and two values are named 'x': "
                                                     "%x: float[2,6,6] and %x: float[1]"),
    (Graph("net", (X,), (), (Relu(X, X),), (X,)), "Names in a graph are unique, and two values are named 'x': "
                                                  "%x: float[2,6,6] and %x: float[2,6,6]"),
    (Graph("net", (value("x", 2, 0),), (), (), (X,)), "Every size of a shape is at least 1, and %x: float[2,0] has 0"),
    (Graph("net", (X,), (), (Relu(Y, C),), (Y,)), "Operation %y: float[2,6,6] reads %c: float[4,6,6], which is not "
                                                  "defined before it"),
    (Graph("net", (X,), (), (Relu(Y, Y),), (Y,)), "Operation %y: float[2,6,6] reads %y: float[2,6,6], which is not "
                                                  "defined before it"),
    (Graph("net", (X,), (), (Relu(Y, value("x", 2, 6, 5)),), (Y,)),
     "Operation %y: float[2,6,6] reads %x: float[2,6,5], but its definition is %x: float[2,6,6]"),
    (Graph("net", (X,), (), (), (Y,)), "The output list of graph 'net' reads %y: float[2,6,6], which is not defined "
                                       "before it"),
    (Graph("net", (X,), (), (), (words("x", 4, 2, 6, 6),)),
     "The output list of graph 'net' reads %x: fixed<8,4,AP_RND,AP_SAT>[2,6,6], but its definition is "
     "%x: float[2,6,6]"),
])
def test_structure_wrong(graph, error):
    assert error_of(graph) == error


@pytest.mark.parametrize(("op", "error"), [
    (Conv2d(C, X, W, None, Window((3, 3))), "Conv2d %c: float[4,6,6]: output map %c: float[4,6,6] must have shape "
                                            "[4,4,4]"),
    (Conv2d(C, X, W, None, Window((9, 9))), "Conv2d %c: float[4,6,6]: weight %w: float[4,2,3,3] must have shape "
                                            "[4,2,9,9]"),
    (Conv2d(C, X, value("w", 4, 2, 9, 9), None, Window((9, 9))),
     "Conv2d %c: float[4,6,6]: A 9×9 window (dilation (1, 1)) does not fit in a 6×6 input with padding (0, 0, 0, 0)"),
    (Conv2d(C, X, W, value("b", 3), SAME), "Conv2d %c: float[4,6,6]: bias %b: float[3] must have shape [4]"),
    (Conv2d(C, X, W, B, SAME, 3), "Conv2d %c: float[4,6,6]: groups must divide the 2 input and 4 output channels, "
                                  "and 3 does not"),
    (Conv2d(C, X, W, B, SAME, 0), "Conv2d %c: float[4,6,6]: groups must divide the 2 input and 4 output channels, "
                                  "and 0 does not"),
    (Conv2d(C, X, W, B, SAME, 2), "Conv2d %c: float[4,6,6]: weight %w: float[4,2,3,3] must have shape [4,1,3,3]"),
    (Conv2d(C, V, W, B, SAME), "Conv2d %c: float[4,6,6]: feature map %v: float[5] must have shape [I,H,W]"),
    (Conv2d(C, X, M, B, SAME), "Conv2d %c: float[4,6,6]: weight %m: float[3,5] must have shape [O,I/groups,KH,KW]"),
    (Conv2dInputGrad(value("xg", 2, 6, 5), C, W, SAME),
     "Conv2dInputGrad %xg: float[2,6,5]: output map %c: float[4,6,6] must have shape [4,6,5]"),
    (Conv2dWeightGrad(value("wg", 4, 2, 3, 5), X, C, SAME),
     "Conv2dWeightGrad %wg: float[4,2,3,5]: weight %wg: float[4,2,3,5] must have shape [4,2,3,3]"),
    (Linear(U, X, M, None),
     "Linear %u: float[3]: vector %x: float[2,6,6] must have shape [I]; put a Reshape before it"),
    (Linear(U, V, value("m", 3, 4), None), "Linear %u: float[3]: weight %m: float[3,4] must have shape [3,5]"),
    (Linear(U, V, W, None), "Linear %u: float[3]: weight %w: float[4,2,3,3] must have shape [O,I]"),
    (Linear(V, value("v2", 5), M, None), "Linear %v: float[5]: output vector %v: float[5] must have shape [3]"),
    (Linear(U, V, M, B), "Linear %u: float[3]: bias %b: float[4] must have shape [3]"),
    (LinearInputGrad(value("vg", 4), U, M), "LinearInputGrad %vg: float[4]: weight %m: float[3,5] must have shape "
                                            "[3,4]"),
    (LinearWeightGrad(value("mg", 5, 3), V, U), "LinearWeightGrad %mg: float[5,3]: weight %mg: float[5,3] must have "
                                                "shape [5,5]"),
    (BiasGrad(value("bg", 3), C), "BiasGrad %bg: float[3]: result %bg: float[3] must have shape [4]"),
    (BiasGrad(B, M), "BiasGrad %b: float[4]: gradient %m: float[3,5] must have shape [O] or [O,H,W]"),
    (Relu(V, X), "Relu %v: float[5]: result %v: float[5] must have shape [2,6,6]"),
    (ReluGrad(Y, V, X), "ReluGrad %y: float[2,6,6]: gradient %v: float[5] must have shape [2,6,6]"),
    (ReluGrad(V, Y, X), "ReluGrad %v: float[5]: result %v: float[5] must have shape [2,6,6]"),
    (ClippedRelu(V, X, 6), "ClippedRelu %v: float[5]: result %v: float[5] must have shape [2,6,6]"),
    (ClippedRelu(Y, X, 0), "ClippedRelu %y: float[2,6,6]: the bound must be at least 1, not 0"),
    (ClippedReluGrad(Y, V, X, 6), "ClippedReluGrad %y: float[2,6,6]: gradient %v: float[5] must have shape [2,6,6]"),
    (ClippedReluGrad(V, Y, X, 6), "ClippedReluGrad %v: float[5]: result %v: float[5] must have shape [2,6,6]"),
    (Concat(C, X, value("x5", 2, 6, 5)), "Concat %c: float[4,6,6]: second operand %x5: float[2,6,5] must have shape "
                                         "[2,6,6]"),
    (Concat(C, X, value("x3", 3, 6, 6)), "Concat %c: float[4,6,6]: result %c: float[4,6,6] must have shape [5,6,6]"),
    (Concat(C, value("s"), X), "Concat %c: float[4,6,6]: %s: float[] must have channels"),
    (ConcatGrad(value("xg", 2, 6, 5), C, 0), "ConcatGrad %xg: float[2,6,5]: result %xg: float[2,6,5] must have shape "
                                             "[2,6,6]"),
    (ConcatGrad(Y, C, 3), "ConcatGrad %y: float[2,6,6]: the 2 channels from 3 on must be channels of %c: "
                          "float[4,6,6]"),
    (Add(Y, X, C), "Add %y: float[2,6,6]: second operand %c: float[4,6,6] must have shape [2,6,6]"),
    (Add(C, X, Y), "Add %c: float[4,6,6]: result %c: float[4,6,6] must have shape [2,6,6]"),
    (Reshape(V, X), "Reshape %v: float[5]: the result must have as many elements as %x: float[2,6,6], 72, and has 5"),
    (MaxPool(Y, X, Window((2, 2))), "MaxPool %y: float[2,6,6]: output map %y: float[2,6,6] must have shape [2,5,5]"),
    (AveragePool(Y, V, SAME), "AveragePool %y: float[2,6,6]: feature map %v: float[5] must have shape [C,H,W]"),
    (MaxPool(value("y", 2, 10, 6), X, Window((3, 3), pad=(3, 1, 3, 1))),
     "MaxPool %y: float[2,10,6]: every window must see some of %x: float[2,6,6], and the one at row 0 sees only "
     "padding; use less padding"),
    (AveragePool(value("y", 2, 6, 8), X, Window((3, 3), pad=(1, 1, 1, 3))),
     "AveragePool %y: float[2,6,8]: every window must see some of %x: float[2,6,6], and the one at column 7 sees only "
     "padding; use less padding"),
    (MaxPoolGrad(C, Y, X, SAME), "MaxPoolGrad %c: float[4,6,6]: result %c: float[4,6,6] must have shape [2,6,6]"),
    (AveragePoolGrad(Y, X, Window((2, 2))), "AveragePoolGrad %y: float[2,6,6]: output map %x: float[2,6,6] must have "
                                            "shape [2,5,5]"),
    (GlobalAveragePool(Y, X), "GlobalAveragePool %y: float[2,6,6]: result %y: float[2,6,6] must have shape [2,1,1]"),
    (GlobalAveragePool(Y, V), "GlobalAveragePool %y: float[2,6,6]: input %v: float[5] must have shape [C,H,W]"),
    (GlobalAveragePoolGrad(Y, X), "GlobalAveragePoolGrad %y: float[2,6,6]: gradient %x: float[2,6,6] must have shape "
                                  "[2,1,1]"),
    (GlobalAveragePoolGrad(V, X), "GlobalAveragePoolGrad %v: float[5]: result %v: float[5] must have shape [C,H,W]"),
    (SoftmaxCrossEntropy(value("loss", 1), U, LABELS), "SoftmaxCrossEntropy %loss: float[1]: result %loss: float[1] "
                                                       "must have shape []"),
    (SquareHinge(value("loss"), M, LABELS), "SquareHinge %loss: float[]: logits %m: float[3,5] must have shape "
                                            "[classes]"),
    (SquareHingeGrad(V, U, LABELS), "SquareHingeGrad %v: float[5]: result %v: float[5] must have shape [3]"),
    (SoftmaxCrossEntropyGrad(value("ug", 3), U, value("labels", 3, format_=INDEX)),
     "SoftmaxCrossEntropyGrad %ug: float[3]: labels %labels: index[3] must have shape []"),
])
def test_shapes_wrong(op, error):
    assert error_of(graph_of(op)) == error


X8, W8, Y8 = words("x", 4, 5), words("w", 3, 3, 5), words("y", 7, 3)
LOGITS = words("z", 4, 3)
LOSS = value("loss", format_=Fixed.of(48, 16))


@pytest.mark.parametrize(("op", "error"), [
    (Linear(U, X8, W8, None), "Linear %u: float[3]: float and fixed-point values do not mix, and %u: float[3] meets "
                              "%x: fixed<8,4,AP_RND,AP_SAT>[5]"),
    (Relu(value("y", format_=INDEX), LABELS), "Relu %y: index[]: an index is no quantity to compute with, and "
                                              "%labels: index[] is one"),
    (Linear(words("y", 8, 3), X8, W8, None),
     "Linear %y: fixed<8,0,AP_RND,AP_SAT>[3]: the result may have at most the 7 fraction bits of the product of "
     "%x: fixed<8,4,AP_RND,AP_SAT>[5] and %w: fixed<8,5,AP_RND,AP_SAT>[3,5], and has 8"),
    (Linear(words("y", -56, 3), X8, W8, None),
     "Linear %y: fixed<8,64,AP_RND,AP_SAT>[3]: the result drops 63 fraction bits of the product of "
     "%x: fixed<8,4,AP_RND,AP_SAT>[5] and %w: fixed<8,5,AP_RND,AP_SAT>[3,5], and at most 62 may go"),
    (Linear(words("y", 7, 3, width=17), X8, W8, None),
     "Linear %y: fixed<17,10,AP_RND,AP_SAT>[3]: the width must be in 2..16, not 17"),
    (Linear(value("y", 3, format_=Fixed(8, 4, Quant.AP_TRN, Overflow.AP_SAT)), X8, W8, None),
     "Linear %y: fixed<8,4,AP_TRN,AP_SAT>[3]: the engine rounds with AP_RND and saturates with AP_SAT, and the "
     "result's format asks for something else"),
    (Linear(value("y", 3, format_=Fixed(8, 4, Quant.AP_RND, Overflow.AP_WRAP)), X8, W8, None),
     "Linear %y: fixed<8,4,AP_RND,AP_WRAP>[3]: the engine rounds with AP_RND and saturates with AP_SAT, and the "
     "result's format asks for something else"),
    (Relu(value("y", 5, format_=Fixed(8, 4, signed=False)), X8),
     "Relu %y: ufixed<8,4,AP_RND,AP_SAT>[5]: words of the engine are signed; use fixed instead of ufixed"),
    (Linear(Y8, X8, W8, words("b", 8, 3)),
     "Linear %y: fixed<8,1,AP_RND,AP_SAT>[3]: bias %b: fixed<8,0,AP_RND,AP_SAT>[3] may have at most the 7 fraction "
     "bits of the accumulator, and has 8"),
    (Linear(Y8, X8, W8, words("b", -48, 3)),
     "Linear %y: fixed<8,1,AP_RND,AP_SAT>[3]: %b: fixed<8,56,AP_RND,AP_SAT>[3] cannot be brought from -48 to 7 "
     "fraction bits in 62 bits"),
    (LinearInputGrad(words("xg", 11, 5), Y8, W8),
     "LinearInputGrad %xg: fixed<8,-3,AP_RND,AP_SAT>[5]: the result may have at most the 10 fraction bits of the "
     "product of %y: fixed<8,1,AP_RND,AP_SAT>[3] and %w: fixed<8,5,AP_RND,AP_SAT>[3,5], and has 11"),
    (LinearWeightGrad(words("wg", 12, 3, 5, width=32), X8, Y8),
     "LinearWeightGrad %wg: fixed<32,20,AP_RND,AP_SAT>[3,5]: the result may have at most the 11 fraction bits of the "
     "product of %x: fixed<8,4,AP_RND,AP_SAT>[5] and %y: fixed<8,1,AP_RND,AP_SAT>[3], and has 12"),
    (LinearWeightGrad(words("wg", 11, 3, 5, width=33), X8, Y8),
     "LinearWeightGrad %wg: fixed<33,22,AP_RND,AP_SAT>[3,5]: the width must be in 2..32, not 33"),
    (BiasGrad(words("bg", 62, 3, width=32), Y8),
     "BiasGrad %bg: fixed<32,-30,AP_RND,AP_SAT>[3]: %y: fixed<8,1,AP_RND,AP_SAT>[3] cannot be brought from 7 to 62 "
     "fraction bits in 62 bits"),
    (ClippedRelu(words("y", -2, 5), words("x", -2, 5), 6),
     "ClippedRelu %y: fixed<8,10,AP_RND,AP_SAT>[5]: the bound 6 must be a whole number of units of "
     "%x: fixed<8,10,AP_RND,AP_SAT>[5], which are 4"),
    (ClippedReluGrad(words("gx", 4, 5), X8, words("y", 60, 5), 6),
     "ClippedReluGrad %gx: fixed<8,4,AP_RND,AP_SAT>[5]: the bound 6 must have at most 62 bits in units of "
     "%y: fixed<8,-52,AP_RND,AP_SAT>[5]"),
    (Concat(words("y", 4, 10), X8, words("x2", -60, 5)),
     "Concat %y: fixed<8,4,AP_RND,AP_SAT>[10]: %x2: fixed<8,68,AP_RND,AP_SAT>[5] cannot be brought from -60 to 4 "
     "fraction bits in 62 bits"),
    (Add(words("s", 4, 5, width=32), X8, words("x2", 4, 5)),
     "Add %s: fixed<32,28,AP_RND,AP_SAT>[5]: the width must be in 2..16, not 32"),
    (Add(words("s", 4, 5), X8, words("x2", -60, 5)),
     "Add %s: fixed<8,4,AP_RND,AP_SAT>[5]: %x2: fixed<8,68,AP_RND,AP_SAT>[5] cannot be brought from -60 to 4 fraction "
     "bits in 62 bits"),
    (SoftmaxCrossEntropy(LOSS, LOGITS, words("labels", 0)),
     "SoftmaxCrossEntropy %loss: fixed<48,32,AP_RND,AP_SAT>[]: labels are an index, and "
     "%labels: fixed<8,8,AP_RND,AP_SAT>[] is not"),
    (SoftmaxCrossEntropy(words("loss", 4), LOGITS, LABELS),
     "SoftmaxCrossEntropy %loss: fixed<8,4,AP_RND,AP_SAT>[]: the format of a loss is fixed<48,32,AP_RND,AP_SAT>"),
    (SquareHinge(LOSS, words("z", 17, 3), LABELS),
     "SquareHinge %loss: fixed<48,32,AP_RND,AP_SAT>[]: logits must have 0..16 fraction bits, and "
     "%z: fixed<8,-9,AP_RND,AP_SAT>[3] has 17"),
    (SoftmaxCrossEntropyGrad(words("zg", -1, 3), LOGITS, LABELS),
     "SoftmaxCrossEntropyGrad %zg: fixed<8,9,AP_RND,AP_SAT>[3]: the gradient must have 0..39 fraction bits, not -1"),
    (SquareHingeGrad(words("zg", 5, 3), LOGITS, LABELS),
     "SquareHingeGrad %zg: fixed<8,3,AP_RND,AP_SAT>[3]: the gradient may have at most the 4 fraction bits of the "
     "logits, and has 5"),
    (SquareHingeGrad(words("zg", -60, 3), LOGITS, LABELS),
     "SquareHingeGrad %zg: fixed<8,68,AP_RND,AP_SAT>[3]: the gradient drops 64 fraction bits of the logits, and at "
     "most 62 may go"),
])
def test_formats_wrong(op, error):
    assert error_of(graph_of(op)) == error


@pytest.mark.parametrize(("graph", "error"), [
    (Graph("net", (words("x", 4, 5, width=17),), (), (), (V,)),
     "Input %x: fixed<17,13,AP_RND,AP_SAT>[5]: the width must be in 2..16, not 17"),
    (Graph("net", (X8,), (words("w", 0, 1, width=1),), (), (V,)),
     "Parameter %w: fixed<1,1,AP_RND,AP_SAT>[1]: the width must be in 2..16, not 1"),
    (Graph("net", (X8,), (value("w", 1, format_=Fixed(8, 4, signed=False)),), (), (V,)),
     "Parameter %w: ufixed<8,4,AP_RND,AP_SAT>[1]: words of the engine are signed; use fixed instead of ufixed"),
    (Graph("net", (X8,), (value("w", 1, format_=INDEX),), (), (V,)),
     "A parameter is a quantity, not an index: %w: index[1]"),
])
def test_formats_of_inputs_and_parameters_wrong(graph, error):
    assert error_of(graph) == error


def test_gradients_of_weights_are_wide_and_so_are_their_sums():
    wide = Fixed.of(32, 8)
    parts = [LinearWeightGrad(value(f"wg{index}", 3, 5, format_=wide), X8, Y8) for index in range(2)]
    total = Add(value("wg", 3, 5, format_=wide), parts[0].out, parts[1].out)
    copy = Reshape(value("copy", 15, format_=wide), total.out)
    assert verify(graph_of(*parts, total, copy))
    mixed = Add(value("wg", 3, 5, format_=wide), parts[0].out, words("narrow", 8, 3, 5))
    assert error_of(graph_of(parts[0], mixed)) == ("Add %wg: fixed<32,24,AP_RND,AP_SAT>[3,5]: the width must be in "
                                                   "2..16, not 32")


def test_a_finer_copy_is_legal():
    assert verify(graph_of(Relu(words("y", 6, 5), X8)))
    assert verify(graph_of(BiasGrad(words("bg", 11, 3, width=32), Y8)))


def training() -> Graph:
    return differentiate(Graph("net", (V,), (M,), (Linear(U, V, M, None),), (U,)))


def test_training_outputs_wrong():
    step = training()
    loss, logits, gradient = step.outputs
    assert error_of(replace(step, outputs=(loss, gradient, logits))) == (
        "The second output of a training graph is its logits %u: float[3], not %m.grad: float[3,5]")
    assert error_of(replace(step, outputs=(loss, logits))) == (
        "A training graph returns one gradient for each of its 1 parameters, and 'net' returns 0")
    assert error_of(replace(step, outputs=(loss, logits, logits))) == (
        "The gradient of %m: float[3,5] has its shape, and output %u: float[3] has another")
    assert verify(replace(step, outputs=(loss,)))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.data())
def test_any_changed_shape_is_found(networks, data):
    """Changing one size of one definition's shape, at every use too, breaks a rule."""
    graph = data.draw(networks)
    victim = data.draw(st.sampled_from([op.out for op in graph.ops if len(op.out.shape) == 3]))
    shape = (*victim.shape[:-1], victim.shape[-1] + 1)
    changed = graph.map_values(
        lambda old: Value(old.name, TensorType(shape, old.format)) if old == victim else old)
    assert math.prod(shape) != math.prod(victim.shape)
    error_of(changed)
