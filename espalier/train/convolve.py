"""Convolution in FP, BP and WU on torch tensors; exact on words.

Every sum here is a sum of products in some order. As long as the sum of the products' magnitudes stays
below 2**53 (``exact.py`` proves it) each partial sum is a whole number that float64 holds, so the order
does not matter and the result is that of ``numerics/convolution.py``. What would break this is an
algorithm that multiplies anything but the operands: Winograd's or Fourier's, as cuDNN may choose. So on a
GPU only copies and matrix products are used. On a CPU words go through our own kernels on int16
(``lanes.py``); where those cannot be compiled, and for float values, through torch's own convolution.
"""

from __future__ import annotations

from enum import Enum

from torch import Tensor
from torch.nn import functional, grad

from espalier.numerics.window import Window
from espalier.train import lanes
from espalier.train.lanes import Rounding

_POINT = Window((1, 1))


class Way(Enum):
    """How a convolution is computed; all ways give the same words."""

    LANES = "lanes"    #: our kernels
    TORCH = "torch"    #: torch's convolution, on a CPU
    MATMUL = "matmul"  #: copies and matrix products


def conv2d(x: Tensor, w: Tensor, bias: Tensor | None, window: Window, groups: int = 1,
           rounding: Rounding | None = None, *, way: Way | None = None) -> Tensor:
    """FP: x (N, I, H, W), w (O, I/groups, KH, KW), bias (O,) at the scale of the sums → (N, O, OH, OW).

    Words need ``rounding``, float numbers have none. ``way`` forces one; by default device and element type decide.
    """
    match way or _way(x):
        case Way.LANES:
            assert rounding is not None, "words are rounded"
            return lanes.conv2d(x, w, bias, window, groups, rounding)
        case Way.TORCH:
            padded, pad = _symmetric(x, window)
            acc = functional.conv2d(padded, w, None, window.stride, pad, window.dilation, groups)
        case Way.MATMUL:
            acc = _conv2d_by_matmul(_pad(x, window), w, window, groups)
    return _finished(acc if bias is None else acc + bias[:, None, None], rounding)


def conv2d_input_grad(g: Tensor, w: Tensor, window: Window, in_size: tuple[int, int], groups: int = 1,
                      rounding: Rounding | None = None, *, way: Way | None = None) -> Tensor:
    """BP: g (N, O, OH, OW), w → (N, I, H, W)."""
    match way or _way(g):
        case Way.LANES:
            assert rounding is not None, "words are rounded"
            return lanes.conv2d_input_grad(g, w, window, in_size, groups, rounding)
        case Way.TORCH:
            top, left, bottom, right = window.pad
            shape = (len(g), w.shape[1] * groups, in_size[0] + top + bottom, in_size[1] + left + right)
            padded = grad.conv2d_input(shape, w, g.contiguous(), window.stride, 0, window.dilation, groups)
            acc = padded[:, :, top: top + in_size[0], left: left + in_size[1]]
        case Way.MATMUL:
            acc = _input_grad_by_matmul(g, w, window, in_size, groups)
    return _finished(acc, rounding)


def conv2d_weight_grad(x: Tensor, g: Tensor, window: Window, groups: int = 1, live: Tensor | None = None, *,
                       way: Way | None = None) -> Tensor:
    """WU: x (N, I, H, W), g (N, O, OH, OW) → (O, I/groups, KH, KW), summed over the batch.

    Where ``live`` (the result's shape) is 0 the result need not be computed and may be zero.
    """
    shape = (g.shape[1], x.shape[1] // groups, *window.kernel)
    match way or _way(x):
        case Way.LANES:
            return lanes.conv2d_weight_grad(x, g, window, groups, live)
        case Way.TORCH:
            padded, pad = _symmetric(x, window)
            return grad.conv2d_weight(padded, shape, g.contiguous(), window.stride, pad, window.dilation, groups)
        case Way.MATMUL:
            columns = _columns(_pad(x, window), window, (g.shape[2], g.shape[3]), groups)
            rows = g.transpose(0, 1).reshape(groups, g.shape[1] // groups, -1)
            return (rows @ columns.transpose(1, 2)).reshape(shape)


def linear(x: Tensor, w: Tensor, bias: Tensor | None, rounding: Rounding | None = None) -> Tensor:
    """FP: x (N, I), w (O, I), bias (O,) at the scale of the sums → (N, O)."""
    if rounding is not None and lanes.suits(x):
        return _vector(lanes.conv2d(_pixel(x), _pixel(w), bias, _POINT, 1, rounding))
    return _finished(x @ w.T if bias is None else x @ w.T + bias, rounding)


def linear_input_grad(g: Tensor, w: Tensor, rounding: Rounding | None = None) -> Tensor:
    """BP: g (N, O), w (O, I) → (N, I)."""
    if rounding is not None and lanes.suits(g):
        return _vector(lanes.conv2d_input_grad(_pixel(g), _pixel(w), _POINT, (1, 1), 1, rounding))
    return _finished(g @ w, rounding)


def linear_weight_grad(x: Tensor, g: Tensor, live: Tensor | None = None) -> Tensor:
    """WU: x (N, I), g (N, O) → (O, I), summed over the batch; ``live`` as in :func:`conv2d_weight_grad`."""
    if lanes.suits(x):
        return _vector(lanes.conv2d_weight_grad(_pixel(x), _pixel(g), _POINT, 1, live))
    return g.T @ x


def windows(padded: Tensor, window: Window, out_size: tuple[int, int]) -> Tensor:
    """The view (N, C, OH, OW, KH, KW) of what each window sees in ``padded`` (N, C, H, W)."""
    n, c, y, x = padded.stride()
    return padded.as_strided((*padded.shape[:2], *out_size, *window.kernel),
                             (n, c, y * window.stride[0], x * window.stride[1],
                              y * window.dilation[0], x * window.dilation[1]))


def _way(x: Tensor) -> Way:
    if x.is_cuda:
        return Way.MATMUL
    return Way.LANES if lanes.suits(x) else Way.TORCH


def _pixel(x: Tensor) -> Tensor:
    """A vector as a map of one pixel."""
    return x[:, :, None, None]


def _vector(x: Tensor) -> Tensor:
    return x[:, :, 0, 0]


def _finished(acc: Tensor, rounding: Rounding | None) -> Tensor:
    return acc if rounding is None else rounding(acc)


def _pad(x: Tensor, window: Window) -> Tensor:
    top, left, bottom, right = window.pad
    return functional.pad(x, (left, right, top, bottom)) if any(window.pad) else x


def _symmetric(x: Tensor, window: Window) -> tuple[Tensor, tuple[int, int]]:
    """``x`` and the padding that torch itself is to add: it knows only equal padding on both sides."""
    top, left, bottom, right = window.pad
    if (top, left) == (bottom, right):
        return x, (top, left)
    return _pad(x, window), (0, 0)


def _columns(padded: Tensor, window: Window, out_size: tuple[int, int], groups: int) -> Tensor:
    """(groups, I/groups·KH·KW, N·OH·OW): one column for each output pixel of each image."""
    seen = windows(padded, window, out_size).unflatten(1, (groups, -1))
    taps = seen.permute(1, 2, 5, 6, 0, 3, 4)
    return taps.reshape(groups, -1, len(padded) * out_size[0] * out_size[1])


def _conv2d_by_matmul(padded: Tensor, w: Tensor, window: Window, groups: int) -> Tensor:
    out_size = Window(window.kernel, window.stride, dilation=window.dilation).out_size(*padded.shape[2:])
    columns = _columns(padded, window, out_size, groups)
    y = w.reshape(groups, w.shape[0] // groups, -1) @ columns
    return y.reshape(w.shape[0], len(padded), *out_size).transpose(0, 1)


def _input_grad_by_matmul(g: Tensor, w: Tensor, window: Window, in_size: tuple[int, int], groups: int) -> Tensor:
    """The convolution of ``g``, spread out by the stride, with the turned kernel."""
    if window.stride != (1, 1):
        spread = g.new_zeros(*g.shape[:2], *((size - 1) * step + 1
                                             for size, step in zip(g.shape[2:], window.stride, strict=True)))
        spread[:, :, :: window.stride[0], :: window.stride[1]] = g
        g = spread
    edges: list[int] = []
    for axis in (1, 0):  # functional.pad begins with the last axis; a negative edge crops
        reach = window.dilation[axis] * (window.kernel[axis] - 1)
        before = reach - window.pad[axis]
        edges += [before, in_size[axis] + reach - g.shape[2 + axis] - before]
    turned = w.unflatten(0, (groups, -1)).flip(-2, -1).transpose(1, 2).flatten(0, 1)
    return _conv2d_by_matmul(functional.pad(g, edges), turned, Window(window.kernel, dilation=window.dilation), groups)
