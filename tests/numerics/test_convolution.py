"""FP, BP and WU of convolution, and pooling, against torch autograd on whole numbers in float64: exactly equal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from espalier.errors import GraphError
from espalier.numerics import activation, convolution
from espalier.numerics.window import Window


@dataclass(frozen=True)
class Case:
    """A convolution with whole-number operands; ``groups`` divides the channels."""

    window: Window
    groups: int
    x: np.ndarray
    w: np.ndarray


def padded(x: torch.Tensor, window: Window, fill: float = 0.0) -> torch.Tensor:
    top, left, bottom, right = window.pad
    return functional.pad(x, (left, right, top, bottom), value=fill)


def leaf(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(array, dtype=torch.float64, requires_grad=True)


def words(tensor: torch.Tensor) -> list:
    """The whole numbers in ``tensor``."""
    array = tensor.detach().numpy()
    assert (array == np.rint(array)).all()
    return array.astype(np.int64).tolist()


def sizes(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


windows = st.builds(Window, sizes(1, 4), sizes(1, 3), st.tuples(*[st.integers(0, 3)] * 4), sizes(1, 3))


@st.composite
def cases(draw) -> Case:
    window, groups = draw(windows), draw(st.integers(1, 3))
    image = draw(sizes(1, 8))
    batch, ins, outs = draw(st.integers(1, 3)), draw(st.integers(1, 3)) * groups, draw(st.integers(1, 3)) * groups
    fits = [size + before + after > dilation * (kernel - 1) for size, before, after, dilation, kernel in
            zip(image, window.pad[:2], window.pad[2:], window.dilation, window.kernel, strict=True)]
    assume(all(fits))
    random = np.random.default_rng(draw(st.integers(0, 2 ** 32 - 1)))
    x = random.integers(-2 ** 15, 2 ** 15, (batch, ins, *image))
    return Case(window, groups, x, random.integers(-2 ** 15, 2 ** 15, (outs, ins // groups, *window.kernel)))


@settings(deadline=None, derandomize=True)
@given(cases())
def test_convolution_equals_autograd(case):
    x, w = leaf(case.x), leaf(case.w)
    y = functional.conv2d(padded(x, case.window), w, None, case.window.stride, 0, case.window.dilation, case.groups)
    g = np.random.default_rng(1).integers(-2 ** 15, 2 ** 15, tuple(y.shape))
    y.backward(torch.tensor(g, dtype=torch.float64))
    assert convolution.conv2d(case.x, case.w, case.window, case.groups).tolist() == words(y)
    x_grad = convolution.conv2d_input_grad(g, case.w, case.window, case.x.shape[2:], case.groups)
    assert x_grad.tolist() == words(x.grad)
    assert convolution.conv2d_weight_grad(case.x, g, case.window, case.groups).tolist() == words(w.grad)
    assert convolution.bias_grad(g).tolist() == g.sum(axis=(0, 2, 3)).tolist()


@settings(deadline=None, derandomize=True, max_examples=30)
@given(cases(), st.floats(0, 1))
def test_dead_weights_get_no_gradient(case, density):
    random = np.random.default_rng(2)
    live = random.random(case.w.shape) < density
    g = random.integers(-100, 100, convolution.conv2d(case.x, case.w, case.window, case.groups).shape)
    dense = convolution.conv2d_weight_grad(case.x, g, case.window, case.groups)
    pruned = convolution.conv2d_weight_grad(case.x, g, case.window, case.groups, live)
    assert np.array_equal(pruned, dense * live)


@settings(deadline=None, derandomize=True)
@given(cases())
def test_sum_pool_equals_autograd(case):
    channels = case.x.shape[1]
    x = leaf(case.x)
    ones = torch.ones(channels, 1, *case.window.kernel, dtype=torch.float64)
    y = functional.conv2d(padded(x, case.window), ones, None, case.window.stride, 0, case.window.dilation, channels)
    g = np.random.default_rng(3).integers(-100, 100, tuple(y.shape))
    y.backward(torch.tensor(g, dtype=torch.float64))
    assert activation.sum_pool(case.x, case.window).tolist() == words(y)
    assert activation.sum_pool_grad(g, case.window, case.x.shape[2:]).tolist() == words(x.grad)


@settings(deadline=None, derandomize=True)
@given(cases(), st.sampled_from([2, 100]))
def test_max_pool_equals_autograd(case, distinct):
    """With ties (few distinct words) torch too sends the gradient to the first maximum."""
    array = case.x % distinct
    x = leaf(array)
    y = functional.max_pool2d(padded(x, case.window, -torch.inf), case.window.kernel, case.window.stride,
                              0, case.window.dilation)
    assume(bool(y.isfinite().all()))  # verify.py refuses windows that see padding alone
    g = np.random.default_rng(4).integers(-100, 100, tuple(y.shape))
    y.backward(torch.tensor(g, dtype=torch.float64))
    pooled, argmax = activation.max_pool(array, case.window)
    assert pooled.tolist() == words(y)
    assert activation.max_pool_grad(g, argmax, case.window, array.shape[2:]).tolist() == words(x.grad)


def test_max_pool_ties_by_hand():
    x = np.array([[[[3, 3, 1, 1], [3, 3, 1, 2], [0, 0, -5, -5], [0, 4, -5, -5]]]])
    pooled, argmax = activation.max_pool(x, Window((2, 2), (2, 2)))
    assert pooled.tolist() == [[[[3, 2], [4, -5]]]]
    assert argmax.tolist() == [[[[0, 3], [3, 0]]]]
    grad = activation.max_pool_grad(np.array([[[[10, 20], [30, 40]]]]), argmax, Window((2, 2), (2, 2)), (4, 4))
    assert grad.tolist() == [[[[10, 0, 0, 0], [0, 0, 0, 20], [0, 0, 40, 0], [0, 30, 0, 0]]]]


def test_max_pool_overlaps_add_up_by_hand():
    x = np.array([[[[1, 9, 2]]]])
    window = Window((1, 2))
    pooled, argmax = activation.max_pool(x, window)
    assert (pooled.tolist(), argmax.tolist()) == ([[[[9, 9]]]], [[[[1, 0]]]])
    assert activation.max_pool_grad(np.array([[[[5, 7]]]]), argmax, window, (1, 3)).tolist() == [[[[0, 12, 0]]]]


def test_padding_never_wins_by_hand():
    pooled, argmax = activation.max_pool(np.array([[[[-32768]]]]), Window((2, 2), pad=(1, 1, 0, 0)))
    assert (pooled.tolist(), argmax.tolist()) == ([[[[-32768]]]], [[[[3]]]])


def test_convolution_by_hand():
    x = np.array([[[[1, 2, 3], [4, 5, 6], [7, 8, 9]]]])
    w = np.array([[[[1, 0], [0, -1]]]])
    window = Window((2, 2), stride=(2, 2), pad=(1, 0, 0, 1))
    assert convolution.conv2d(x, w, window).tolist() == [[[[-2, 0], [4 - 8, 6]]]]
    g = np.array([[[[1, 2], [3, 4]]]])
    assert convolution.conv2d_weight_grad(x, g, window).tolist() == [[[[3 * 4 + 4 * 6, 3 * 5],
                                                                       [1 + 2 * 3 + 3 * 7 + 4 * 9, 2 + 3 * 8]]]]
    assert convolution.conv2d_input_grad(g, w, window, (3, 3)).tolist() == [[[[0, -1, 0], [3, 0, 4], [0, -3, 0]]]]


def test_relu_by_hand():
    x = np.array([-2, 0, 3])
    y = activation.relu(x)
    assert y.tolist() == [0, 0, 3]
    assert activation.relu_grad(np.array([5, 6, 7]), y).tolist() == [0, 0, 7]


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(-100, 100), st.integers(-100, 100)), min_size=1))
def test_relu_equals_autograd(pairs):
    array, g = np.array(pairs).T
    x = leaf(array)
    y = functional.relu(x)
    y.backward(torch.tensor(g, dtype=torch.float64))
    assert activation.relu(array).tolist() == words(y)
    assert activation.relu_grad(g, activation.relu(array)).tolist() == words(x.grad)


@pytest.mark.parametrize(("count", "word"), [(1, 65536), (4, 16384), (9, 7282), (49, 1337), (64, 1024), (3, 21845)])
def test_average_reciprocal_by_hand(count, word):
    assert activation.average_reciprocal(count) == word


@given(st.integers(1, 2 ** 16))
def test_average_reciprocal_is_nearest(count):
    assert abs(activation.average_reciprocal(count) * count - 2 ** 16) * 2 <= count


@pytest.mark.parametrize("wrong", [{"kernel": (0, 1)}, {"stride": (1, 0)}, {"pad": (0, -1, 0, 0)},
                                   {"dilation": (0, 1)}])
def test_window_wrong(wrong):
    with pytest.raises(GraphError, match="^Kernel, stride and dilation must be at least 1 and padding at least 0, "):
        Window(**{"kernel": (1, 1), **wrong})


def test_window_does_not_fit_wrong():
    with pytest.raises(GraphError, match=r"^A 3×3 window \(dilation \(2, 2\)\) does not fit in a 4×8 input with "
                                         r"padding \(0, 0, 0, 0\)$"):
        Window((3, 3), dilation=(2, 2)).out_size(4, 8)


@settings(deadline=None, derandomize=True)
@given(windows, sizes(1, 9))
def test_out_size_equals_torch(window, image):
    try:
        expected = tuple(functional.max_pool2d(padded(torch.zeros(1, 1, *image), window), window.kernel,
                                               window.stride, 0, window.dilation).shape[2:])
    except RuntimeError:
        with pytest.raises(GraphError):
            window.out_size(*image)
        return
    assert window.out_size(*image) == expected


def test_padded_and_cropped_are_inverse():
    window = Window((3, 3), pad=(1, 2, 3, 0))
    x = np.arange(24).reshape(1, 2, 3, 4)
    assert window.padded(x, 7).shape == (1, 2, 7, 6)
    assert np.array_equal(window.cropped(window.padded(x, 7), 3, 4), x)
