"""The fast path equals the interpreter, word for word: every operation, random formats, saturating data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bench.draws import Draw, draws, rounded, words

from espalier.errors import FormatError, GraphError
from espalier.ir import interpret, ops
from espalier.ir.differentiate import LOSS_FORMAT, differentiate
from espalier.ir.graph import Graph
from espalier.ir.types import FLOAT, INDEX, Fixed, Format, TensorType, Value
from espalier.numerics import convolution
from espalier.numerics.window import Window
from espalier.train import convolve
from espalier.train.evaluate import evaluate, run, to_array, to_tensor


def convolution_values(draw: Draw) -> tuple[Value, Value, Window, int, tuple[int, ...]]:
    groups = draw.integer(1, 2)
    window = draw.window()
    x = draw.value("x", groups * draw.integer(1, 3), draw.integer(5, 8), draw.integer(5, 8))
    w = draw.value("w", groups * draw.integer(1, 3), x.shape[0] // groups, *window.kernel)
    return x, w, window, groups, (w.shape[0], *window.out_size(*x.shape[1:]))


def frac(value: Value) -> int:
    assert isinstance(value.format, Fixed)
    return value.format.frac


@draws
def test_conv2d(draw: Draw) -> None:
    x, w, window, groups, shape = convolution_values(draw)
    acc_frac = frac(x) + frac(w)
    out = draw.value("y", *shape, format_=draw.format(acc_frac - 30, acc_frac))
    b = draw.value("b", w.shape[0], format_=draw.format(acc_frac - 20, acc_frac)) if draw.integer(0, 1) else None
    draw.check(ops.Conv2d(out, x, w, b, window, groups))


@draws
def test_conv2d_gradients(draw: Draw) -> None:
    x, w, window, groups, shape = convolution_values(draw)
    g = draw.value("g", *shape)
    out = draw.value("gx", *x.shape, format_=draw.format(frac(g) + frac(w) - 30, frac(g) + frac(w)))
    draw.check(ops.Conv2dInputGrad(out, g, w, window, groups))
    out = draw.value("gw", *w.shape, format_=Fixed.of(32, draw.integer(frac(g) + frac(x) - 10, frac(g) + frac(x))))
    draw.check(ops.Conv2dWeightGrad(out, x, g, window, groups))
    out = draw.value("gb", w.shape[0], format_=Fixed.of(32, draw.integer(frac(g) - 10, frac(g))))
    draw.check(ops.BiasGrad(out, g))


@draws
def test_linear(draw: Draw) -> None:
    x, g = draw.value("x", draw.integer(1, 9)), draw.value("g", draw.integer(1, 9))
    w = draw.value("w", g.shape[0], x.shape[0])
    acc_frac = frac(x) + frac(w)
    b = draw.value("b", w.shape[0], format_=draw.format(acc_frac - 20, acc_frac)) if draw.integer(0, 1) else None
    draw.check(ops.Linear(draw.value("y", *g.shape, format_=draw.format(acc_frac - 30, acc_frac)), x, w, b))
    draw.check(ops.LinearInputGrad(draw.value("gx", *x.shape), g, w))
    draw.check(ops.LinearWeightGrad(draw.value("gw", *w.shape, format_=Fixed.of(32, frac(x) + frac(g) - 3)), x, g))
    draw.check(ops.BiasGrad(draw.value("gb", *g.shape, format_=Fixed.of(32, frac(g))), g))


@draws
def test_elementwise(draw: Draw) -> None:
    x = draw.value("x", 2, 3, 4)
    for format_ in (x.format, draw.format()):
        out = draw.value("y", 2, 3, 4, format_=format_)
        draw.check(ops.Relu(out, x))
        draw.check(ops.Add(out, x, draw.value("b", 2, 3, 4)))
        draw.check(ops.Reshape(Value("y", TensorType((24,), format_)), x))
        draw.check(ops.ReluGrad(out, x, draw.value("a", 2, 3, 4)))
        bound = 1 << max(0, 1 - min(frac(x), frac(out))) + draw.integer(0, 3)
        draw.check(ops.ClippedRelu(out, x, bound))
        y = draw.value("a", 2, 3, 4, format_=x.format)
        draw.check(ops.ClippedReluGrad(out, draw.value("g", 2, 3, 4), y, bound))


@draws
def test_concatenation(draw: Draw) -> None:
    for pixels in ((), (3, 4)):
        a, b = (draw.value(name, draw.integer(1, 3), *pixels) for name in ("x", "x2"))
        draw.check(ops.Concat(draw.value("y", a.shape[0] + b.shape[0], *pixels), a, b))
        g = draw.value("g", a.shape[0] + b.shape[0], *pixels)
        draw.check(ops.ConcatGrad(draw.value("gb", *b.shape), g, a.shape[0]))
        draw.check(ops.ConcatGrad(draw.value("ga", *a.shape, format_=g.format), g, 0))


@draws
def test_pools(draw: Draw) -> None:
    window = draw.window(pools=True)
    x = draw.value("x", 2, draw.integer(5, 8), draw.integer(5, 8), format_=draw.format() if draw.integer(0, 1)
                   else Fixed.of(2, 0))  # two bits: many equal maxima
    shape = (2, *window.out_size(*x.shape[1:]))
    g = draw.value("g", *shape)
    draw.check(ops.MaxPool(draw.value("y", *shape), x, window))
    draw.check(ops.MaxPoolGrad(draw.value("gx", *x.shape), g, x, window))
    draw.check(ops.AveragePool(draw.value("y", *shape), x, window))
    draw.check(ops.AveragePoolGrad(draw.value("gx", *x.shape), g, window))
    draw.check(ops.GlobalAveragePool(draw.value("y", 2, 1, 1), x))
    draw.check(ops.GlobalAveragePoolGrad(draw.value("gx", *x.shape), draw.value("g", 2, 1, 1)))


@draws
def test_losses(draw: Draw) -> None:
    classes = draw.integer(2, 12)
    logits = draw.value("z", classes, format_=draw.format(0, 16))
    labels = Value("labels", TensorType((), INDEX))
    loss = Value("loss", TensorType((), LOSS_FORMAT))
    draw.check(ops.SoftmaxCrossEntropy(loss, logits, labels), classes)
    draw.check(ops.SquareHinge(loss, logits, labels), classes)
    draw.check(ops.SoftmaxCrossEntropyGrad(draw.value("g", classes, format_=draw.format(0, 20)), logits, labels),
               classes)
    draw.check(ops.SquareHingeGrad(draw.value("g", classes, format_=draw.format(-3, frac(logits))), logits, labels),
               classes)


@pytest.mark.parametrize("way", convolve.Way)
def test_every_way_convolves_alike(way: convolve.Way) -> None:
    @draws
    def check(draw: Draw) -> None:
        x, w, window, groups, shape = convolution_values(draw)
        batch = draw.integer(1, 40)
        images, weights, gradients = (words(draw.random, Fixed.of(draw.integer(2, 16), 0), size, draw.extreme)
                                      for size in ((batch, *x.shape), w.shape, (batch, *shape)))
        a, b, c = (torch.tensor(array, dtype=torch.float64) for array in (images, weights, gradients))
        size, out = (x.shape[1], x.shape[2]), Fixed.of(draw.integer(2, 16), 0)
        shift = draw.integer(-3, 32)
        bias = draw.random.randint(-2**30, 2**30, w.shape[0]) >> draw.integer(0, 30)
        rounding = convolve.Rounding(shift, out.low, out.high)
        found = convolve.conv2d(a, b, torch.tensor(bias, dtype=torch.float64), window, groups, rounding, way=way)
        expected = convolution.conv2d(images, weights, window, groups) + bias[:, None, None]
        assert np.array_equal(found.numpy(), rounded(expected, out.width, shift))
        found = convolve.conv2d_input_grad(c, b, window, size, groups, rounding, way=way)
        expected = convolution.conv2d_input_grad(gradients, weights, window, size, groups)
        assert np.array_equal(found.numpy(), rounded(expected, out.width, shift))
        expected = convolution.conv2d_weight_grad(images, gradients, window, groups)
        assert np.array_equal(convolve.conv2d_weight_grad(a, c, window, groups, way=way).numpy(), expected)
    check()


def layered(x: Format, w: Format, y: Format) -> Graph:
    """A convolution with a branch, a pool and a linear layer, all of the same three formats."""
    def value(name: str, shape: tuple[int, ...], format_: Format) -> Value:
        return Value(name, TensorType(shape, format_))
    image, logits = value("image", (2, 6, 6), x), value("logits", (5,), y)
    w1, b1, w2 = value("c.w", (2, 2, 3, 3), w), value("c.b", (2,), w), value("f.w", (5, 18), w)
    c, r, a = value("c", (2, 6, 6), y), value("r", (2, 6, 6), y), value("a", (2, 6, 6), y)
    d, p, flat = value("d", (2, 6, 6), y), value("p", (2, 3, 3), y), value("flat", (18,), y)
    pool = Window((2, 2), (2, 2))
    same = Window((3, 3), pad=(1, 1, 1, 1))
    return Graph("layered", (image,), (w1, b1, w2), (
        ops.Conv2d(c, image, w1, b1, same), ops.Relu(r, c), ops.Conv2d(d, r, w1, None, same), ops.Add(a, r, d),
        ops.MaxPool(p, a, pool), ops.Reshape(flat, p), ops.Linear(logits, flat, w2, None)), (logits,))


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "square_hinge"])
@pytest.mark.parametrize("width", [4, 8, 16])
def test_training_step_equals_interpreter(loss: str, width: int) -> None:
    graph = layered(Fixed.of(width, width - 2), Fixed.of(width, width - 1), Fixed.of(width, width - 3))
    names = [f"{name}.grad" for name in ("c", "r", "a", "d", "p", "flat", "logits")]
    formats = {**dict.fromkeys(names, Fixed.of(width, width - 3)),
               **{f"{name}.grad": Fixed.of(32, width - 3) for name in ("c.w", "c.b", "f.w")}}
    step = differentiate(graph, loss, formats)
    random = np.random.RandomState(width)
    arrays = {value.name: words(random, value.format, value.shape, False) for value in graph.parameters}
    arrays["image"] = words(random, graph.inputs[0].format, (7, 2, 6, 6), False)
    arrays["labels"] = random.randint(0, 5, 7)
    expected = interpret.interpret(step, arrays)
    formats_of = {value.name: value.format for value in step.values()}
    got = run(step, {name: to_tensor(array, formats_of[name]) for name, array in arrays.items()})
    assert set(got) == set(expected)
    for name, array in expected.items():
        assert np.array_equal(to_array(got[name], formats_of[name]), array), name


def test_float_graph_agrees() -> None:
    """In float32 only to rounding: the sums here have under 200 terms of magnitude about one."""
    for loss in ("softmax_cross_entropy", "square_hinge"):
        step = differentiate(layered(FLOAT, FLOAT, FLOAT), loss)
        random = np.random.RandomState(1)
        arrays = {value.name: random.randn(*value.shape) / 3 for value in step.parameters}
        arrays["image"], arrays["labels"] = random.randn(7, 2, 6, 6), random.randint(0, 5, 7)
        expected = interpret.interpret(step, arrays)
        got = run(step, {name: to_tensor(array, INDEX if name == "labels" else FLOAT)
                         for name, array in arrays.items()})
        for name, array in expected.items():
            assert np.allclose(got[name].numpy(), array, rtol=1e-4, atol=1e-4), name


def test_large_drop_rounds_to_zero() -> None:
    x = Value("x", TensorType((4,), Fixed.of(16, 40)))
    for out_frac in (-18, -14, -13, -12, 20):
        op = ops.Relu(Value("y", TensorType((4,), Fixed.of(16, out_frac))), x)
        array = np.array([[-32768, -1, 1, 32767]])
        assert np.array_equal(to_array(evaluate(op, to_tensor(array, x.format)), op.out.format),
                              interpret.evaluate(op, array))


def test_sum_beyond_float64_wrong() -> None:
    def layer(inputs: int) -> ops.Linear:
        word = Fixed.of(16, 0)
        return ops.Linear(Value("y", TensorType((1,), word)), Value("x", TensorType((inputs,), word)),
                          Value("w", TensorType((1, inputs), word)), None)
    tensor = torch.zeros(1, 1, dtype=torch.float64)  # the proof goes by the declared shape
    assert evaluate(layer(1 << 23), tensor, tensor).item() == 0
    with pytest.raises(FormatError, match=r"^The training path carries sums of up to 53 bits, and Linear %y: "
                                          r"fixed<16,16,AP_RND,AP_SAT>\[1\] of 1 images needs 54: take smaller "
                                          r"batches or narrower formats$"):
        evaluate(layer(1 << 24), tensor, tensor)


def test_missing_tensor_wrong() -> None:
    graph = layered(FLOAT, FLOAT, FLOAT)
    with pytest.raises(GraphError, match=r"^Graph 'layered' needs a tensor for %image: float\[2,6,6\]$"):
        run(graph, {})


def test_tensor_shape_wrong() -> None:
    graph = layered(FLOAT, FLOAT, FLOAT)
    with pytest.raises(GraphError, match=r"^The tensor for %image: float\[2,6,6\] has shape \(2, 6, 7\)$"):
        run(graph, {"image": torch.zeros(1, 2, 6, 7)})
