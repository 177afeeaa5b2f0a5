"""Convolution in FP, BP and WU on torch tensors, by torch's own operations; exact on words.

Every sum here is a sum of products in some order. As long as the sum of the products' magnitudes stays
below 2**53 (``exact.py`` proves it) each partial sum is a whole number that float64 holds, so the order
does not matter and the result is that of ``numerics/convolution.py``. What would break this is an
algorithm that multiplies anything but the operands: Winograd's or Fourier's, as cuDNN may choose. So on a
GPU only copies and matrix products are used; on a CPU torch's own convolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import ldexp

from torch import Tensor
from torch.nn import functional, grad

from espalier.numerics.window import Window


@dataclass(frozen=True, slots=True)
class Rounding:
    """Shift right by ``shift`` bits (left if it is negative), round half up, and clamp into ``low..high``."""

    shift: int
    low: int
    high: int

    @property
    def scale(self) -> float:
        """What the shift multiplies sums of magnitude up to 2**53 by; beyond 53 they all become zero."""
        return ldexp(1.0, -self.shift) if self.shift <= 53 else 0.0

    def __call__(self, acc: Tensor) -> Tensor:
        """The words of sums of magnitude up to 2**53, as float64."""
        return acc.double().mul(self.scale).add_(0.5).floor_().clamp_(self.low, self.high)


class Way(Enum):
    """How a convolution is computed; all ways give the same words."""

    TORCH = "torch"    #: torch's convolution, on a CPU
    MATMUL = "matmul"  #: copies and matrix products


def conv2d(x: Tensor, w: Tensor, bias: Tensor | None, window: Window, groups: int = 1,
           rounding: Rounding | None = None, *, way: Way | None = None) -> Tensor:
    """FP: x (N, I, H, W), w (O, I/groups, KH, KW), bias (O,) at the scale of the sums → (N, O, OH, OW).

    Words need ``rounding``, float numbers have none. ``way`` forces one; by default device and element type decide.
    """
    match way or _way(x):
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
        case Way.TORCH:
            (top, left, bottom, right), (height, width) = window.pad, in_size
            pad = (min(top, bottom), min(left, right))  # torch's own padding is symmetric
            shape = (len(g), w.shape[1] * groups, height + top + bottom - 2 * pad[0], width + left + right - 2 * pad[1])
            padded = grad.conv2d_input(shape, w, g.contiguous(), window.stride, pad, window.dilation, groups)
            acc = padded[:, :, top - pad[0]: top - pad[0] + height, left - pad[1]: left - pad[1] + width]
        case Way.MATMUL:
            acc = _input_grad_by_matmul(g, w, window, in_size, groups)
    return _finished(acc, rounding)


def conv2d_weight_grad(x: Tensor, g: Tensor, window: Window, groups: int = 1, *, way: Way | None = None) -> Tensor:
    """WU: x (N, I, H, W), g (N, O, OH, OW) → (O, I/groups, KH, KW), summed over the batch."""
    shape = (g.shape[1], x.shape[1] // groups, *window.kernel)
    match way or _way(x):
        case Way.TORCH:
            padded, pad = _symmetric(x, window)
            return grad.conv2d_weight(padded, shape, g.contiguous(), window.stride, pad, window.dilation, groups)
        case Way.MATMUL:
            columns = _columns(_pad(x, window), window, (g.shape[2], g.shape[3]), groups)
            rows = g.transpose(0, 1).reshape(groups, g.shape[1] // groups, -1)
            return (rows @ columns.transpose(1, 2)).reshape(shape)


def linear(x: Tensor, w: Tensor, bias: Tensor | None, rounding: Rounding | None = None) -> Tensor:
    """FP: x (N, I), w (O, I), bias (O,) at the scale of the sums → (N, O)."""
    return _finished(x @ w.T if bias is None else x @ w.T + bias, rounding)


def linear_input_grad(g: Tensor, w: Tensor, rounding: Rounding | None = None) -> Tensor:
    """BP: g (N, O), w (O, I) → (N, I)."""
    return _finished(g @ w, rounding)


def linear_weight_grad(x: Tensor, g: Tensor) -> Tensor:
    """WU: x (N, I), g (N, O) → (O, I), summed over the batch."""
    return g.T @ x


def windows(padded: Tensor, window: Window, out_size: tuple[int, int]) -> Tensor:
    """The view (N, C, OH, OW, KH, KW) of what each window sees in ``padded`` (N, C, H, W)."""
    n, c, y, x = padded.stride()
    return padded.as_strided((*padded.shape[:2], *out_size, *window.kernel),
                             (n, c, y * window.stride[0], x * window.stride[1],
                              y * window.dilation[0], x * window.dilation[1]))


def _way(x: Tensor) -> Way:
    return Way.MATMUL if x.is_cuda else Way.TORCH


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
