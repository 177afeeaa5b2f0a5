"""Every fixed-point operation of random training steps against its definition in exact fractions, by plain loops."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.errors import GraphError
from espalier.ir.differentiate import differentiate
from espalier.ir.graph import Graph
from espalier.ir.interpret import evaluate, interpret
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
from espalier.ir.types import FLOAT, INDEX, Fixed, TensorType, Value
from espalier.ir.verify import verify
from espalier.numerics.loss import SoftmaxCrossEntropy as SoftmaxUnit
from espalier.numerics.loss import SquareHinge as HingeUnit
from espalier.numerics.window import Window

Reals = dict[tuple[int, ...], Fraction]  #: real numbers by index, batch first; missing ones are zero


def reals(array: np.ndarray, value: Value) -> Reals:
    assert isinstance(value.format, Fixed)
    return {index: Fraction(int(array[index])) / Fraction(2) ** value.format.frac for index in np.ndindex(array.shape)}


def word(real: Fraction, format_: Fixed) -> int:
    """The engine's one rounding: half up, then saturate."""
    nearest = math.floor(real * Fraction(2) ** format_.frac + Fraction(1, 2))
    return min(max(nearest, -2 ** (format_.width - 1)), 2 ** (format_.width - 1) - 1)


def reciprocal(count: int) -> Fraction:
    """1/count with 16 fraction bits, as average pooling multiplies by."""
    return Fraction(round(Fraction(2 ** 16, count)), 2 ** 16)


def taps(window: Window, x: Value | tuple[int, ...], y: Value | tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """(output row, column, kernel row, column, input row, column) of every tap inside the image."""
    in_size = (x.shape if isinstance(x, Value) else x)[-2:]
    out_size = (y.shape if isinstance(y, Value) else y)[-2:]
    for oy, ox, ky, kx in product(*map(range, (*out_size, *window.kernel))):
        iy = oy * window.stride[0] + ky * window.dilation[0] - window.pad[0]
        ix = ox * window.stride[1] + kx * window.dilation[1] - window.pad[1]
        if 0 <= iy < in_size[0] and 0 <= ix < in_size[1]:
            yield oy, ox, ky, kx, iy, ix


def convolved(op: Conv2d | Conv2dInputGrad | Conv2dWeightGrad, x: Value, w: Value, y: Value, batch: int
              ) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Indices (of x, of w, of y) that meet in one product of the convolution."""
    ins, outs = x.shape[0] // op.groups, y.shape[0] // op.groups
    positions = list(taps(op.window, x, y))
    for n, group, o, i in product(range(batch), range(op.groups), range(outs), range(ins)):
        for oy, ox, ky, kx, iy, ix in positions:
            yield (n, group * ins + i, iy, ix), (group * outs + o, i, ky, kx), (n, group * outs + o, oy, ox)


def winners(x: Reals, op: MaxPool | MaxPoolGrad, y: Value, batch: int) -> dict[tuple[int, ...], tuple[int, ...]]:
    """For each output index the input index with the largest number; the first of equals."""
    best: dict[tuple[int, ...], tuple[int, ...]] = {}
    for n, c in product(range(batch), range(y.shape[0])):
        for oy, ox, _, _, iy, ix in taps(op.window, op.x, y):
            there = best.setdefault((n, c, oy, ox), (n, c, iy, ix))
            if x[n, c, iy, ix] > x[there]:
                best[n, c, oy, ox] = (n, c, iy, ix)
    return best


def defined(op: Op, batch: int, *args: Reals) -> Reals:
    """The exact result of ``op`` before rounding, straight from its definition."""
    out: Reals = defaultdict(Fraction)
    match op:
        case Conv2d(out=y, x=x, w=w, b=b):
            for ix, iw, iy in convolved(op, x, w, y, batch):
                out[iy] += args[0][ix] * args[1][iw]
            for index in np.ndindex(batch, *y.shape) if b is not None else ():
                out[index] += args[2][index[1:2]]
        case Conv2dInputGrad(out=x, g=y, w=w):
            for ix, iw, iy in convolved(op, x, w, y, batch):
                out[ix] += args[0][iy] * args[1][iw]
        case Conv2dWeightGrad(out=w, x=x, g=y):
            for ix, iw, iy in convolved(op, x, w, y, batch):
                out[iw] += args[0][ix] * args[1][iy]
        case Linear(w=w, b=b):
            for n, o in product(range(batch), range(w.shape[0])):
                out[n, o] = sum((args[0][n, i] * args[1][o, i] for i in range(w.shape[1])), Fraction(0))
                out[n, o] += args[2][(o,)] if b is not None else 0
        case LinearInputGrad(w=w):
            for n, o, i in product(range(batch), *map(range, w.shape)):
                out[n, i] += args[0][n, o] * args[1][o, i]
        case LinearWeightGrad(out=w):
            for n, o, i in product(range(batch), *map(range, w.shape)):
                out[o, i] += args[0][n, i] * args[1][n, o]
        case BiasGrad():
            for index, real in args[0].items():
                out[index[1:2]] += real
        case Relu():
            out.update({index: max(real, Fraction(0)) for index, real in args[0].items()})
        case ReluGrad():
            out.update({index: real for index, real in args[0].items() if args[1][index] > 0})
        case ClippedRelu(bound=bound):
            out.update({index: min(max(real, Fraction(0)), Fraction(bound)) for index, real in args[0].items()})
        case ClippedReluGrad(bound=bound):
            out.update({index: real for index, real in args[0].items() if 0 < args[1][index] < bound})
        case Concat(a=a):
            out.update(args[0])
            out.update({(n, a.shape[0] + c, *rest): real for (n, c, *rest), real in args[1].items()})
        case ConcatGrad(out=x, first=first):
            out.update({(n, c - first, *rest): real for (n, c, *rest), real in args[0].items()
                        if first <= c < first + x.shape[0]})
        case MaxPool(out=y):
            out.update({index: args[0][winner] for index, winner in winners(args[0], op, y, batch).items()})
        case MaxPoolGrad(g=y):
            for index, winner in winners(args[1], op, y, batch).items():
                out[winner] += args[0][index]
        case AveragePool(out=y, x=x, window=window):
            for n, c, tap in product(range(batch), range(y.shape[0]), list(taps(window, x, y))):
                out[n, c, *tap[:2]] += args[0][n, c, *tap[4:]] * reciprocal(math.prod(window.kernel))
        case AveragePoolGrad(out=x, g=y, window=window):
            for n, c, tap in product(range(batch), range(y.shape[0]), list(taps(window, x, y))):
                out[n, c, *tap[4:]] += args[0][n, c, *tap[:2]] * reciprocal(math.prod(window.kernel))
        case GlobalAveragePool(x=x):
            for index, real in args[0].items():
                out[*index[:2], 0, 0] += real * reciprocal(math.prod(x.shape[1:]))
        case GlobalAveragePoolGrad(out=x):
            for index in np.ndindex(batch, *x.shape):
                out[index] = args[0][*index[:2], 0, 0] * reciprocal(math.prod(x.shape[1:]))
        case Add():
            out.update({index: real + args[1][index] for index, real in args[0].items()})
        case Reshape(out=y):
            out.update(zip(np.ndindex(batch, *y.shape), args[0].values(), strict=True))
        case _:
            raise AssertionError(op)
    return out


def assert_is_defined(op: Op, arrays: dict[str, np.ndarray], batch: int) -> None:
    """The words of one operation are those of its definition."""
    format_ = op.out.format
    assert isinstance(format_, Fixed)
    exact = defined(op, batch, *(reals(arrays[value.name], value) for value in op.inputs))
    result = arrays[op.out.name]
    expected = [word(exact.get(index, Fraction(0)), format_) for index in np.ndindex(result.shape)]
    assert result.ravel().tolist() == expected, op


def random_words(graph: Graph, random: np.random.Generator, batch: int) -> dict[str, np.ndarray]:
    arrays = {value.name: random.integers(value.format.low, value.format.high + 1, value.shape)
              for value in graph.parameters}
    image = graph.inputs[0]
    arrays["image"] = random.integers(image.format.low, image.format.high + 1, (batch, *image.shape))
    arrays["labels"] = random.integers(0, graph.outputs[1].shape[0], batch)
    return arrays


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.data(), st.integers(0, 1000))
def test_every_operation_is_its_definition(training_steps, data, seed):
    graph, batch = verify(data.draw(training_steps)), 2
    arrays = interpret(graph, random_words(graph, np.random.default_rng(seed), batch))
    for op in graph.ops:
        match op:
            case SoftmaxCrossEntropy() | SquareHinge() | SoftmaxCrossEntropyGrad() | SquareHingeGrad():
                assert_is_the_loss_unit(op, arrays)
            case _:
                assert_is_defined(op, arrays, batch)


def assert_is_the_loss_unit(op: SoftmaxCrossEntropy | SquareHinge | SoftmaxCrossEntropyGrad | SquareHingeGrad,
                            arrays: dict[str, np.ndarray]) -> None:
    kind = SoftmaxUnit if isinstance(op, SoftmaxCrossEntropy | SoftmaxCrossEntropyGrad) else HingeUnit
    unit = kind(logit_frac=op.logits.format.frac, grad_width=op.out.format.width, grad_frac=op.out.format.frac)
    compute = unit.loss if isinstance(op, SoftmaxCrossEntropy | SquareHinge) else unit.grad
    assert np.array_equal(arrays[op.out.name], compute(arrays[op.logits.name], arrays["labels"]))


def value(name: str, frac: int, *shape: int, width: int = 8) -> Value:
    return Value(name, TensorType(shape, Fixed.of(width, frac)))


def test_linear_by_hand():
    """x 4, w 3, b 2 fraction bits: sums at 7, result at 3 — halves go up, and 8 bits saturate."""
    op = Linear(value("y", 3, 3), value("x", 4, 2), value("w", 3, 3, 2), value("b", 2, 3))
    x, w, b = np.array([[1, 8]]), np.array([[0, 1], [-1, -1], [120, 120]]), np.array([0, 0, 1])
    # 8/128, -9/128, (1080 + 32)/128 are 0.5, -0.5625 and 69.5 units of the result
    assert evaluate(op, x, w, b).tolist() == [[1, -1, 70]]
    assert evaluate(op, x, w, np.array([100, -127, 127])).tolist() == [[127, -128, 127]]


def test_add_aligns_fractions_by_hand():
    op = Add(value("y", 2, 3), value("a", 4, 3), value("b", 2, 3))
    assert evaluate(op, np.array([[1, 2, -2]]), np.array([[3, 3, 127]])).tolist() == [[3, 4, 127]]


def test_clipped_relu_by_hand():
    """Six is 24 units of a quarter, and stops the gradient as zero does; the result may be coarser."""
    op = ClippedRelu(value("y", 0, 5), value("x", 2, 5), 6)
    assert evaluate(op, np.array([[-5, 1, 2, 23, 99]])).tolist() == [[0, 0, 1, 6, 6]]
    grad = ClippedReluGrad(value("gx", 3, 4), value("g", 3, 4), value("y", 2, 4), 6)
    assert evaluate(grad, np.array([[7, 7, 7, 7]]), np.array([[0, 1, 23, 24]])).tolist() == [[0, 7, 7, 0]]
    coarse = ClippedRelu(value("y", -1, 3), value("x", -1, 3), 6)
    assert evaluate(coarse, np.array([[2, 3, 4]])).tolist() == [[2, 3, 3]]


def test_concat_by_hand():
    """Each part is rounded by itself."""
    op = Concat(value("y", 1, 3), value("a", 2, 1), value("b", 0, 2))
    assert evaluate(op, np.array([[3]]), np.array([[1, 100]])).tolist() == [[2, 2, 127]]
    grad = ConcatGrad(value("gb", 0, 2), value("g", 1, 3), 1)
    assert evaluate(grad, np.array([[8, 1, -1]])).tolist() == [[1, 0]]


def test_average_pool_by_hand():
    """A third is 21845 · 2^-16, a little less, and the mean of three ones still rounds to one; halves go up."""
    op = AveragePool(value("y", 0, 1, 1, 1), value("x", 0, 1, 1, 3), Window((1, 3)))
    assert evaluate(op, np.array([[[[1, 1, 1]]]])).tolist() == [[[[1]]]]
    halves = AveragePool(value("y", 0, 1, 1, 1), value("x", 0, 1, 1, 2), Window((1, 2)))
    assert [evaluate(halves, np.array([[[[0, x]]]])).item() for x in (1, -1, 3, -3)] == [1, 0, 2, -1]


def test_a_result_may_be_finer_than_its_input():
    """A copy into a format with more fraction bits shifts left, and saturates."""
    op = Relu(value("y", 6, 3), value("x", 4, 3))
    assert evaluate(op, np.array([[-5, 5, 100]])).tolist() == [[0, 20, 127]]


def test_one_training_step_by_hand():
    """One weight, one image: z = 2·1.5 = 3 against targets -1: gradient 4, weight gradient 8."""
    x, w, z = value("image", 2, 1), value("w", 3, 1, 1), value("z", 4, 1)
    graph = Graph("one", (x,), (w,), (Linear(z, x, w, None),), (z,))
    step = verify(differentiate(graph, "square_hinge", {"z.grad": Fixed.of(8, 4), "w.grad": Fixed.of(32, 5)}))
    arrays = interpret(step, {"image": np.array([[8]]), "w": np.array([[12]]), "labels": np.array([0])})
    assert arrays["z"].tolist() == [[48]]
    assert (arrays["loss"].tolist(), arrays["z.grad"].tolist(), arrays["w.grad"].tolist()) == ([0], [[0]], [[0]])
    arrays = interpret(step, {"image": np.array([[8]]), "w": np.array([[-12]]), "labels": np.array([0])})
    assert arrays["z"].tolist() == [[-48]]
    assert arrays["loss"].tolist() == [8 << 16]
    assert (arrays["z.grad"].tolist(), arrays["w.grad"].tolist()) == ([[-64]], [[-8 << 5]])


def linear_graph() -> Graph:
    x, w, y = (Value(name, TensorType(shape, FLOAT)) for name, shape in (("image", (2,)), ("w", (3, 2)), ("y", (3,))))
    return Graph("net", (x,), (w,), (Linear(y, x, w, None),), (y,))


def test_float_runs_in_floating_point():
    result = interpret(linear_graph(), {"image": np.array([[0.5, 0.25]]), "w": np.array([[1, 2], [0, 0], [3, -1.5]])})
    assert result["y"].tolist() == [[1.0, 0.0, 1.125]]
    assert set(result) == {"image", "w", "y"}


def test_missing_tensor_wrong():
    with pytest.raises(GraphError, match=r"^Graph 'net' needs a tensor for %w: float\[3,2\]$"):
        interpret(linear_graph(), {"image": np.zeros((1, 2))})


def test_input_shape_wrong():
    with pytest.raises(GraphError, match=r"^The tensor for %image: float\[2\] has shape \(3,\)$"):
        interpret(linear_graph(), {"image": np.zeros((1, 3)), "w": np.zeros((3, 2))})


def test_parameter_shape_wrong():
    with pytest.raises(GraphError, match=r"^The tensor for %w: float\[3,2\] has shape \(2, 3\)$"):
        interpret(linear_graph(), {"image": np.zeros((1, 2)), "w": np.zeros((2, 3))})


def test_labels_need_a_batch_axis():
    step = differentiate(linear_graph())
    assert step.inputs[1].format == INDEX
    arrays = interpret(step, {"image": np.zeros((2, 2)), "w": np.zeros((3, 2)), "labels": np.array([0, 2])})
    assert np.allclose(arrays["loss"], np.log(3), rtol=0, atol=1e-12)
