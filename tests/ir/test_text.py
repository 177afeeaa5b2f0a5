"""The text form: exact in both directions, strict about what it reads."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.errors import GraphError
from espalier.ir.graph import Graph
from espalier.ir.ops import Conv2d, Linear, MaxPool, Relu, Reshape
from espalier.ir.text import OP_KINDS, dump, load
from espalier.ir.types import FLOAT, Fixed, TensorType, Value
from espalier.numerics.fixed import Overflow, Quant
from espalier.numerics.window import Window

EXAMPLE = '''\
graph "tiny"
input %image: fixed<8,1,AP_RND,AP_SAT>[1,8,8]
parameter %conv.weight: fixed<8,1,AP_RND,AP_SAT>[2,1,3,3]
parameter %conv.bias: ufixed<8,1>[2]
parameter %fc.weight: float[3,32]
%conv: fixed<16,6,AP_RND,AP_SAT>[2,8,8] = conv2d(x=%image, w=%conv.weight, b=%conv.bias, \
window=3x3 stride 1x1 pad 1,1,1,1 dilation 1x1, groups=1)
%"onnx::Pool 1": float[2,4,4] = max_pool(x=%conv, window=2x2 stride 2x2 pad 0,0,0,0 dilation 1x1)
%flat: float[32] = reshape(x=%"onnx::Pool 1")
%fc: float[3] = linear(x=%flat, w=%fc.weight, b=none)
output %fc
output %conv
'''


def value(name: str, format_: Fixed | None, *shape: int) -> Value:
    return Value(name, TensorType(shape, format_ or FLOAT))


def example() -> Graph:
    word = Fixed.of(8, 7)
    image, w = value("image", word, 1, 8, 8), value("conv.weight", word, 2, 1, 3, 3)
    fc_w = value("fc.weight", None, 3, 32)
    b = value("conv.bias", Fixed(8, 1, Quant.AP_TRN, Overflow.AP_WRAP, signed=False), 2)
    conv, pool = value("conv", Fixed.of(16, 10), 2, 8, 8), value("onnx::Pool 1", None, 2, 4, 4)
    flat, fc = value("flat", None, 32), value("fc", None, 3)
    ops = (Conv2d(conv, image, w, b, Window((3, 3), pad=(1, 1, 1, 1))), MaxPool(pool, conv, Window((2, 2), (2, 2))),
           Reshape(flat, pool), Linear(fc, flat, fc_w, None))
    return Graph("tiny", (image,), (w, b, fc_w), ops, (fc, conv))


def test_example():
    assert dump(example()) == EXAMPLE
    assert load(EXAMPLE) == example()


@settings(deadline=None, derandomize=True)
@given(st.data(), st.booleans())
def test_load_gives_back_what_dump_wrote(networks, training_steps, data, trains):
    graph = data.draw(training_steps if trains else networks)
    text = dump(graph)
    again = load(text)
    assert again == graph
    assert dump(again) == text


@settings(deadline=None, derandomize=True)
@given(st.text(), st.text(), st.tuples(*[st.integers(1, 9)] * 4), st.tuples(*[st.integers(0, 9)] * 4))
def test_any_name_and_window_goes_through(graph_name, name, sizes, pad):
    x, y = value(name, None, 2, 2, 2), value(name + "'", None, 2, 2, 2)
    window = Window(sizes[:2], sizes[2:], pad, sizes[1:3])
    graph = Graph(graph_name, (x,), (), (MaxPool(y, x, window),), (y, x))
    text = dump(graph)
    assert load(text) == graph
    assert text.isascii()
    assert len(text.splitlines()) == 5


def test_no_inputs_no_operations():
    empty = Graph("", (), (), (), ())
    assert dump(empty) == 'graph ""\n'
    assert load('graph ""') == empty


def test_blank_lines_comments_and_line_ends_mean_nothing():
    text = "\n# a comment\n\n" + EXAMPLE.replace("\n", " \r\n\n   # another\n")
    assert load(text) == example()


def test_every_operation_has_a_name():
    assert len(OP_KINDS) == 33
    assert {"conv2d", "conv2d_input_grad", "softmax_cross_entropy_grad", "global_average_pool"} < set(OP_KINDS)


def test_dump_of_undefined_value_wrong():
    graph = example()
    with pytest.raises(GraphError, match=r"^The operation %fc: float\[3\] reads %flat: float\[32\], which the graph "
                                         r"defines nowhere$"):
        dump(replace(graph, ops=(*graph.ops[:2], *graph.ops[3:])))


def test_dump_of_other_type_wrong():
    graph = example()
    other = replace(graph, outputs=(value("fc", None, 4),))
    with pytest.raises(GraphError, match=r"^The graph's output list reads %fc: float\[4\], which the graph defines as "
                                         r"%fc: float\[3\]$"):
        dump(other)


X = 'graph "g"\ninput %x: float[1,2,2]\n'


@pytest.mark.parametrize(("text", "error"), [
    ("", 'Line 1: expected graph "name", found the end of the text'),
    ("\n# only this\n", 'Line 1: expected graph "name", found the end of the text'),
    ("input %x: float[1]", "Line 1: expected graph \"name\", found 'input %x: float[1]'"),
    ("\ngraph tiny", "Line 2: expected the graph's name in double quotes, found 'tiny'"),
    ('graph "g" "h"', "Line 1: expected the end of the line, found '\"h\"'"),
    ('graph "g"\ninputs %x: float[1]', "Line 2: expected input, parameter, output or an operation such as "
                                       "%y: float[8] = relu(x=%x), found 'inputs %x: float[1]'"),
    (X + "input y: float[1]", "Line 3: expected a name such as %conv1, found 'y: float[1]'"),
    (X + "input %é: float[1]", "Line 3: expected a name such as %conv1, found '%é: float[1]'"),
    (X + 'input %"y: float[1]', "Line 3: expected a name such as %conv1, found '%\"y: float[1]'"),
    (X + "input %y float[1]", "Line 3: expected ':', found 'float[1]'"),
    (X + "input %y: double[1]", "Line 3: expected a format (fixed<W,I,Q,O>, ufixed<W,I,Q,O>, float or index), "
                                "found 'double[1]'"),
    (X + "input %y: fixed<8>[1]", "Line 3: A fixed-point format is written fixed<W,I[,Q[,O]]>, not 'fixed<8>'"),
    (X + "input %y: fixed<80,1>[1]", "Line 3: Width of a fixed-point format must be in 1..62, not 80"),
    (X + "input %y: float", "Line 3: expected '[', found the end of the line"),
    (X + "input %y: float[1", "Line 3: expected ',' or ']', found the end of the line"),
    (X + "input %y: float[1;2]", "Line 3: expected ',' or ']', found ';2]'"),
    (X + "input %y: float[1,]", "Line 3: expected a whole number, found ']'"),
    (X + "input %y: float[01]", "Line 3: expected a whole number, found '01]'"),
    (X + "input %y: float[" + "9" * 5000 + "]", f"Line 3: expected a whole number, found '{'9' * 40}…'"),
    (X + "input %y: float[1] # y", "Line 3: expected the end of the line, found '# y'"),
    (X + "input %x: float[1]", "Line 3: expected a new name, found %x, which is defined above"),
    (X + "%x: float[1] = relu(x=%x)", "Line 3: expected a new name, found %x, which is defined above"),
    (X + "%y: float[1]", "Line 3: expected '=', found the end of the line"),
    (X + "%y: float[1] = ", "Line 3: expected an operation such as conv2d, found the end of the line"),
    (X + "%y: float[1] = relu x", "Line 3: expected '(', found 'x'"),
    (X + "%y: float[1] = relu(%x)", "Line 3: expected 'x', found '%x)'"),
    (X + "%y: float[1] = relu(x=%z)", "Line 3: expected a value defined above, found %z"),
    (X + "%y: float[1] = relu(x=%y)", "Line 3: expected a value defined above, found %y"),
    (X + "%y: float[1] = relu(x=none)", "Line 3: expected a name such as %conv1, found 'none)'"),
    (X + "%y: float[1] = relu(x=%x, y=%x)", "Line 3: expected ')', found ', y=%x)'"),
    (X + "%y: float[1] = add(a=%x)", "Line 3: expected ',', found ')'"),
    (X + "%y: float[1] = add(b=%x, a=%x)", "Line 3: expected 'a', found 'b=%x, a=%x)'"),
    (X + "%y: float[1] = max_pool(x=%x, window=2)", "Line 3: expected two whole numbers such as 5x3, found '2)'"),
    (X + "%y: float[1] = max_pool(x=%x, window=2x)", "Line 3: expected a whole number, found ')'"),
    (X + "%y: float[1] = max_pool(x=%x, window=2x2 pad 1)", "Line 3: expected 'stride', found 'pad 1)'"),
    (X + "%y: float[1] = max_pool(x=%x, window=2x2 stride 1x1 pad 0,0 dilation 1x1)",
     "Line 3: expected ',', found 'dilation 1x1)'"),
    (X + "%y: float[1] = max_pool(x=%x, window=2x0 stride 1x1 pad 0,0,0,0 dilation 1x1)",
     "Line 3: Kernel, stride and dilation must be at least 1 and padding at least 0, not Window(kernel=(2, 0), "
     "stride=(1, 1), pad=(0, 0, 0, 0), dilation=(1, 1))"),
    (X + "output %y", "Line 3: expected a value defined above, found %y"),
    (X + "output %x: float[1]", "Line 3: expected the end of the line, found ': float[1]'"),
    (X + "output %x\ninput %y: float[1]", "Line 4: expected an output, found an input; inputs, parameters, operations "
                                          "and outputs come in this order"),
    (X + "%y: float[1] = relu(x=%x)\nparameter %z: float[1]", "Line 4: expected an operation or an output, found a "
     "parameter; inputs, parameters, operations and outputs come in this order"),
])
def test_load_wrong(text, error):
    with pytest.raises(GraphError) as caught:
        load(text)
    assert str(caught.value) == error


def test_unknown_operation_wrong():
    with pytest.raises(GraphError, match=r"^Line 3: expected an operation \(conv2d, linear, .*\), found '__import__'$"):
        load(X + "%y: float[1] = __import__(x=%x)")


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.integers(0, len(EXAMPLE)), st.integers(0, 30), st.text(max_size=3))
def test_damaged_text_gives_a_graph_or_a_sentence(start, length, put):
    """Whatever is cut or written over, nothing but a GraphError with a line number comes out."""
    text = EXAMPLE[:start] + put + EXAMPLE[start + length:]
    try:
        graph = load(text)
    except GraphError as error:
        assert re.match(r"Line \d+: ", str(error))
    else:
        assert load(dump(graph)) == graph


def test_relu_is_read_without_its_module():
    """The name in the text is looked up in the closed set and never evaluated."""
    graph = load(X + "%y: float[1,2,2] = relu(x=%x)\noutput %y\n")
    assert graph.ops == (Relu(value("y", None, 1, 2, 2), value("x", None, 1, 2, 2)),)
