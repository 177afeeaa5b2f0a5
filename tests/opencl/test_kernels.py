"""Kernels on a device equal the interpreter, word for word, whichever optimisations they have."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from bench.draws import Draw, words
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from espalier.errors import DataError
from espalier.ir import ops
from espalier.ir.graph import Graph
from espalier.ir.interpret import evaluate, interpret
from espalier.ir.types import FLOAT, Fixed, Format, TensorType, Value
from espalier.numerics.window import Window
from espalier.opencl.bundle import Bundle
from espalier.opencl.compilation import compile_kernels
from espalier.opencl.optimisations import NAMES, Optimisations, Style
from espalier.opencl.runtime import Session

CASES = settings(deadline=None, max_examples=12, derandomize=True, phases=(Phase.generate,))  # each takes a second
#: Of float32 against float64, relative to the largest result: sums of some hundred products.
FLOAT32_TOLERANCE = 2e-6


def draws(function: Callable[[Draw, Optimisations], None]) -> Callable[[], None]:
    @CASES
    @given(data=st.data())
    def test(data: st.DataObject) -> None:
        random = np.random.RandomState(data.draw(st.integers(0, 2**32 - 1)))
        draw = Draw(data, random, extreme=data.draw(st.booleans()), batch=data.draw(st.integers(1, 2)))
        names = data.draw(st.sets(st.sampled_from(NAMES)))
        function(draw, Optimisations.named(frozenset(names), data.draw(st.sampled_from([4, 16])),
                                           data.draw(st.sampled_from(Style))))

    return test


def on_device(graph: Graph, parameters: dict[str, NDArray], images: list[NDArray], options: Optimisations) -> NDArray:
    """As it comes out of the files."""
    bundle = Bundle.from_files(compile_kernels(graph, parameters, options).files(), "the test")
    assert not narrow_stores(bundle.source)
    return Session(bundle).run(*images)


def narrow_stores(source: str) -> list[str]:
    """Stores of vectors whose elements have another type than the memory that they go to."""
    found = []
    for kernel in re.split(r"^__kernel", source, flags=re.MULTILINE):
        memory = {name: type_ for type_, name in re.findall(r"\b([a-z]+)\d*\*? (?:restrict )?(\w+_ptr|_ptr)\b", kernel)}
        found += [store for store, type_, name in re.findall(r"(\*\(([a-z]+)\d+\*\)\((\w+) \+.*\) = )", kernel)
                  if memory[name] != type_]
    return found


def check(draw: Draw, op: ops.Op, options: Optimisations) -> None:
    arrays = [pruned(draw, array) if value == getattr(op, "w", None) else array
              for value, array in zip(op.inputs, draw.arrays(op), strict=True)]
    parameters = {value.name: array for value, array in zip(op.inputs, arrays, strict=True)
                  if len(array.shape) == len(value.shape)}
    images = [(value, array) for value, array in zip(op.inputs, arrays, strict=True) if value.name not in parameters]
    graph = Graph("one", tuple(value for value, _ in images),
                  tuple(value for value in op.inputs if value.name in parameters), (op,), (op.out,))
    got = on_device(graph, parameters, [array for _, array in images], options)
    assert np.array_equal(got, evaluate(op, *arrays)), op


def pruned(draw: Draw, weights: NDArray) -> NDArray:
    """As they are, or with so few live ones that they become lists, or none at all."""
    density = draw.data.draw(st.sampled_from([1.0, 0.2, 0.2, 0.0]))
    return np.where(draw.random.rand(*weights.shape) < density, weights, 0)


def frac(value: Value) -> int:
    assert isinstance(value.format, Fixed)
    return value.format.frac


@draws
def test_conv2d(draw: Draw, options: Optimisations) -> None:
    window = draw.window()
    depthwise = draw.integer(0, 2) == 0
    groups = draw.integer(1, 5) if depthwise else draw.integer(1, 2)
    x = draw.value("x", groups * (1 if depthwise else draw.integer(1, 3)), draw.integer(5, 8), draw.integer(5, 8))
    w = draw.value("w", groups * (1 if depthwise else draw.integer(1, 9)), x.shape[0] // groups, *window.kernel)
    acc_frac = frac(x) + frac(w)
    b = draw.value("b", w.shape[0], format_=draw.format(acc_frac - 20, acc_frac)) if draw.integer(0, 1) else None
    out = draw.value("y", w.shape[0], *window.out_size(*x.shape[1:]), format_=draw.format(acc_frac - 30, acc_frac))
    check(draw, ops.Conv2d(out, x, w, b, window, groups), options)


@draws
def test_linear(draw: Draw, options: Optimisations) -> None:
    x = draw.value("x", draw.integer(1, 40))
    w = draw.value("w", draw.integer(1, 20), x.shape[0])
    acc_frac = frac(x) + frac(w)
    b = draw.value("b", w.shape[0], format_=draw.format(acc_frac - 20, acc_frac)) if draw.integer(0, 1) else None
    check(draw, ops.Linear(draw.value("y", w.shape[0], format_=draw.format(acc_frac - 30, acc_frac)), x, w, b), options)


@draws
def test_elementwise(draw: Draw, options: Optimisations) -> None:
    shape = draw.integer(1, 5), 3, 4
    x = draw.value("x", *shape)
    out = draw.value("y", *shape, format_=draw.format())
    bound = 1 << max(0, 1 - min(frac(x), frac(out))) + draw.integer(0, 3)
    op = [ops.Relu(out, x), ops.ClippedRelu(out, x, bound), ops.Add(out, x, draw.value("b", *shape)),
          ops.Reshape(Value("y", TensorType((shape[0] * 12,), out.format)), x)][draw.integer(0, 3)]
    check(draw, op, options)


@draws
def test_concatenation(draw: Draw, options: Optimisations) -> None:
    pixels = ((), (3, 4))[draw.integer(0, 1)]
    a, b = (draw.value(name, draw.integer(1, 5), *pixels) for name in ("x", "x2"))
    check(draw, ops.Concat(draw.value("y", a.shape[0] + b.shape[0], *pixels), a, b), options)


@draws
def test_pools(draw: Draw, options: Optimisations) -> None:
    window = draw.window(pools=True)
    x = draw.value("x", draw.integer(1, 5), draw.integer(5, 8), draw.integer(5, 8))
    shape = (x.shape[0], *window.out_size(*x.shape[1:]))
    op = [ops.MaxPool(draw.value("y", *shape), x, window), ops.AveragePool(draw.value("y", *shape), x, window),
          ops.GlobalAveragePool(draw.value("y", x.shape[0], 1, 1), x)][draw.integer(0, 2)]
    check(draw, op, options)


def test_a_pool_whose_taps_lie_apart() -> None:
    """What its first tap sees beyond the map is none of its business: not the map's first pixel."""
    x, y = (Value(name, TensorType((1, 1, width), Fixed.of(8, 4))) for name, width in (("x", 3), ("y", 3)))
    op = ops.MaxPool(y, x, Window((1, 2), pad=(0, 1, 0, 1), dilation=(1, 2)))
    images = np.array([[[[3, 2, 1]]]])
    got = on_device(Graph("net", (x,), (), (op,), (y,)), {}, [images], Optimisations())
    assert np.array_equal(got, evaluate(op, images)) and got.reshape(-1).tolist() == [2, 3, 2]


def residual(draw: Draw, real: bool) -> Graph:
    """A branch, a shortcut, a flattening and a layer, in random formats."""
    def value(name: str, *shape: int, low: int = 0, high: int = 18) -> Value:
        return Value(name, TensorType(shape, FLOAT if real else draw.format(low, high)))

    channels, window = draw.integer(2, 6), Window((3, 3), pad=(1, 1, 1, 1))
    x, w1, w2 = value("x", 2, 6, 5), value("w1", channels, 2, 3, 3), value("w2", channels, channels, 3, 3)
    # nothing is coarser than a product, which would have to be shifted up
    a, b, c, d, f = (value(name, *shape, high=0) for name, shape in (
        ("a", (channels, 6, 5)), ("b", (channels, 6, 5)), ("c", (channels, 6, 5)), ("d", (channels, 6, 5)),
        ("f", (channels * 30,))))
    flat = Value("f", TensorType(f.shape, d.format))
    w3, y = value("w3", 3, channels * 30), value("y", 3, high=0)
    return Graph("residual", (x,), (w1, w2, w3),
                 (ops.Conv2d(a, x, w1, None, window), ops.Conv2d(b, a, w2, None, window), ops.Add(c, b, a),
                  ops.Relu(d, c), ops.Reshape(flat, d), ops.Linear(y, flat, w3, None)), (y,))


@draws
def test_residual(draw: Draw, options: Optimisations) -> None:
    graph = residual(draw, real=False)
    arrays = {value.name: pruned(draw, draw.random.randint(value.format.low, value.format.high + 1, value.shape))
              for value in graph.parameters if isinstance(value.format, Fixed)}
    image = graph.inputs[0]
    assert isinstance(image.format, Fixed)
    images = draw.random.randint(image.format.low, image.format.high + 1, (draw.batch, *image.shape))
    got = on_device(graph, arrays, [images], options)
    assert np.array_equal(got, interpret(graph, {**arrays, "x": images})["y"])


@draws
def test_real_numbers(draw: Draw, options: Optimisations) -> None:
    graph = residual(draw, real=True)
    arrays = {value.name: pruned(draw, draw.random.randn(*value.shape).astype(np.float32))
              for value in graph.parameters}
    images = draw.random.randn(draw.batch, 2, 6, 5).astype(np.float32)
    got = on_device(graph, arrays, [images], options)
    expected = interpret(graph, {**arrays, "x": images.astype(np.float64)})["y"]
    np.testing.assert_allclose(got, expected, rtol=0, atol=FLOAT32_TOLERANCE * np.abs(expected).max())


@draws
def test_few_weights(draw: Draw, options: Optimisations) -> None:
    """Maps of several vectors, read whole and by phases, with sums between maps of two layers."""
    size, stride, channels = draw.integer(8, 20), draw.integer(1, 2), 4 * draw.integer(1, 2)
    x = draw.value("x", channels, size, draw.integer(8, 40))
    window = Window((3, 3), (stride, stride), (1, 1, 1, draw.integer(0, 1)))
    near = Window((1, 1), (stride, stride), (0, 0, 0, 0))
    shape = (channels, *window.out_size(*x.shape[1:]))
    if near.out_size(*x.shape[1:]) != shape[1:]:
        near = window
    w1, w2, w3 = (draw.value(name, channels, *rest) for name, rest in (
        ("w1", (1, 3, 3)), ("w2", (channels, 3, 3)), ("w3", (channels, *near.kernel))))
    a, b, c, d = (draw.value(name, *shape, format_=draw.format(0, 0)) for name in "abcd")
    same = Window((3, 3), pad=(1, 1, 1, 1))
    graph = Graph("few", (x,), (w1, w2, w3), (
        ops.Conv2d(a, x, w1, None, window, groups=channels), ops.Conv2d(b, a, w2, None, same),
        ops.Conv2d(c, x, w3, None, near), ops.Add(d, b, c)), (d,))
    arrays = {value.name: np.where(draw.random.rand(*value.shape) < 0.2, words(draw.random, value.format, value.shape,
                                                                               draw.extreme), 0)
              for value in graph.parameters}
    images = words(draw.random, x.format, (draw.batch, *x.shape), draw.extreme)
    got = on_device(graph, arrays, [images], replace(options, lists=True, cached_writes=True))
    assert np.array_equal(got, interpret(graph, {**arrays, "x": images})["d"])


def test_sums_of_64_bits_start_at_zero() -> None:
    """Few 16-bit weights, no bias: a vector of sums is no wider than the zeros that it starts with."""
    random, format_ = np.random.RandomState(0), Fixed.of(16, 8)
    x, w = Value("x", TensorType((16, 16, 16), format_)), Value("w", TensorType((16, 16, 3, 3), format_))
    y = Value("y", TensorType((16, 16, 16), Fixed.of(16, 0)))
    graph = Graph("net", (x,), (w,), (ops.Conv2d(y, x, w, None, Window((3, 3), pad=(1, 1, 1, 1))),), (y,))
    weights = np.where(random.rand(*w.shape) < 0.1, random.randint(-32768, 32768, w.shape), 0)
    images = random.randint(-32768, 32768, (3, 16, 16, 16))
    expected = interpret(graph, {"w": weights, "x": images})["y"]
    for vector in (4, 16):
        options = Optimisations(vector=vector)
        assert f"long{vector} _ptr[" in compile_kernels(graph, {"w": weights}, options).source
        assert np.array_equal(on_device(graph, {"w": weights}, [images], options), expected)


def test_narrow_stores_are_seen() -> None:
    kernel = "__kernel void k(__global short* restrict x_ptr) {{\n  long4 _ptr[3];\n  *({}4*)(_ptr + 1) = 0;\n}}"
    assert narrow_stores(kernel.format("int")) and not narrow_stores(kernel.format("long"))


@cache
def session_of(format_: Format) -> Session:
    """Of the sum of two images."""
    a, b, y = (Value(name, TensorType((2, 3, 3), format_)) for name in "aby")
    return Session(compile_kernels(Graph("net", (a, b), (), (ops.Add(y, a, b),), (y,)), {}))


ONE = np.zeros((1, 2, 3, 3), np.int64)


@pytest.mark.parametrize(("images", "sentence"), [
    ([ONE], r"2 of NumPy's arrays, not \(ndarray\): give one for each input, of as many images as the others"),
    ([ONE, ONE.tolist()], r"2 of NumPy's arrays, not \(ndarray, list\): give one for each input, .*"),
    ([ONE, np.zeros((1, 1, 8, 8), np.int64)],
     r"images of shape \(2, 3, 3\), not \(1, 8, 8\): give an array of shape \('N', 2, 3, 3\), even for one image"),
    ([ONE, ONE[0]], r"images of shape \(2, 3, 3\), not \(3, 3\): .*"),
    ([ONE, np.array(1)], r"images of shape \(2, 3, 3\), not \(\): .*"),
    ([ONE, ONE.repeat(2, axis=0)],
     r"as many images at one input as at another, not 1 and 2: give arrays of one length"),
    ([ONE, ONE.astype(np.float32)],
     r"words of fixed<8,4,AP_RND,AP_SAT>, not float32 numbers: quantise the images to that format \(Fixed\.quantise\)"),
    ([ONE, ONE.astype(np.complex64)], r"words of .*, not complex64 numbers: .*"),
    ([ONE, ONE.astype(object)], r"words of .*, not object numbers: .*"),
    ([ONE, ONE.astype(str)], r"words of .*, not <U\d+ numbers: .*"),
    ([ONE, ONE + 128],
     r"words of fixed<8,4,AP_RND,AP_SAT>, which are in -128\.\.127, not 128\.\.128: limit the images to that range "
     r"\(Fixed\.limit\), or quantise them to that format"),
    ([ONE - 129, ONE], r"words of .*, which are in -128\.\.127, not -129\.\.-129: .*")])
def test_images_wrong(images: list[NDArray], sentence: str) -> None:
    with pytest.raises(DataError, match=rf"^Network 'net' takes {sentence}$"):
        session_of(Fixed.of(8, 4)).run(*images)


@pytest.mark.parametrize("kind", ["complex64", "object", "U4"])
def test_real_images_wrong(kind: str) -> None:
    sentence = r"^Network 'net' takes real numbers, not .* ones: convert the images to float32$"
    with pytest.raises(DataError, match=sentence):
        session_of(FLOAT).run(ONE, ONE.astype(kind))


def test_words_at_the_ends_of_their_format() -> None:
    images = np.array([-128, 127, 0], np.int16).repeat(6).reshape(1, 2, 3, 3)
    session = session_of(Fixed.of(8, 4))
    assert np.array_equal(session.run(images, np.zeros_like(images)), images)
    assert session.run(images[:0], images[:0]).shape == (0, 2, 3, 3)


def test_names_that_differ_in_punctuation_alone() -> None:
    x, y, z = (Value(name, TensorType((2, 3, 3), Fixed.of(8, 4))) for name in ("x", "a.b", "a_b"))
    graph = Graph("net", (x,), (), (ops.Relu(y, x), ops.Add(z, y, x)), (z,))
    images = np.arange(-9, 9).reshape(1, 2, 3, 3)
    got = on_device(graph, {}, [images], Optimisations(fusion=False))
    assert np.array_equal(got, np.maximum(images, 0) + images)


def test_a_bound_beyond_the_words() -> None:
    """6 in units of 2**-30 is no 32-bit word, and no 16-bit word reaches it."""
    x, y = (Value(name, TensorType((2, 3, 3), Fixed.of(16, 30))) for name in "xy")
    images = np.linspace(-32768, 32767, 18, dtype=np.int64).reshape(1, 2, 3, 3)
    graph = Graph("net", (x,), (), (ops.ClippedRelu(y, x, 6),), (y,))
    assert np.array_equal(on_device(graph, {}, [images], Optimisations()), np.maximum(images, 0))


def test_layers_that_share_their_weights() -> None:
    """The image lies otherwise than a map, and so do the weights that meet it."""
    window = Window((3, 3), pad=(1, 1, 1, 1))
    x, a, b = (Value(name, TensorType((3, 4, 4), Fixed.of(8, 4))) for name in "xab")
    w = Value("w", TensorType((3, 3, 3, 3), Fixed.of(8, 4)))
    graph = Graph("net", (x,), (w,), (ops.Conv2d(a, x, w, None, window), ops.Conv2d(b, a, w, None, window)), (b,))
    random = np.random.RandomState(0)
    weights, images = random.randint(-20, 20, (3, 3, 3, 3)), random.randint(-100, 100, (2, 3, 4, 4))
    got = on_device(graph, {"w": weights}, [images], Optimisations())
    assert np.array_equal(got, interpret(graph, {"w": weights, "x": images})["b"])


def test_running_needs_neither_tvm_nor_torch() -> None:
    program = "import sys, espalier.opencl.runtime; print(*sys.modules)"
    seen = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert "pyopencl" in seen and not {"tvm", "torch"} & set(seen)
