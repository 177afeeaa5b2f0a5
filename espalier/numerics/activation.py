"""Rectifiers, pooling and concatenation, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from espalier.numerics.window import Window

AVERAGE_FRAC = 16  #: fraction bits of the reciprocal that average pooling multiplies by


def relu(x: NDArray) -> NDArray:
    """``max(x, 0)``."""
    return np.maximum(x, 0)


def relu_grad(g: NDArray, y: NDArray) -> NDArray:
    """The gradient passes where the rectifier's output ``y`` is positive."""
    return np.where(y > 0, g, 0)


def clipped_relu(x: NDArray, bound: int) -> NDArray:
    """``min(max(x, 0), bound)``, the bound in units of ``x``."""
    return np.clip(x, 0, bound)


def clipped_relu_grad(g: NDArray, y: NDArray, bound: int) -> NDArray:
    """The gradient passes where the output ``y`` is above zero and below ``bound`` (in units of ``y``)."""
    return np.where((y > 0) & (y < bound), g, 0)


def concat(a: NDArray, b: NDArray) -> NDArray:
    """The channels of ``a`` (N, A, ...), then those of ``b`` (N, B, ...)."""
    return np.concatenate([a, b], axis=1)


def concat_grad(g: NDArray, first: int, channels: int) -> NDArray:
    """The gradient of one part: ``channels`` channels of ``g`` (N, C, ...) from ``first`` on."""
    return g[:, first: first + channels]


def max_pool(x: NDArray, window: Window) -> tuple[NDArray, NDArray[np.int64]]:
    """The largest word under the window, and the first position (row-major in the window) that holds it.

    Shapes: x (N, C, H, W); both results (N, C, OH, OW). Padding never wins against a word.
    """
    out_y, out_x = window.out_size(*x.shape[2:])
    lowest = np.iinfo(np.int64).min if x.dtype.kind == "i" else -np.inf
    padded = window.padded(x, lowest)
    seen = np.stack([window.tap(padded, ky, kx, out_y, out_x)
                     for ky in range(window.kernel[0]) for kx in range(window.kernel[1])])
    argmax = seen.argmax(axis=0)
    return np.take_along_axis(seen, argmax[None], axis=0)[0], argmax


def max_pool_grad(g: NDArray, argmax: NDArray[np.int64], window: Window, in_size: tuple[int, int]) -> NDArray:
    """Send each gradient (N, C, OH, OW) to the input position that won; overlaps add up."""
    return _scatter(lambda ky, kx: np.where(argmax == ky * window.kernel[1] + kx, g, 0), g, window, in_size)


def average_reciprocal(count: int) -> int:
    """The word of ``1/count`` with :data:`AVERAGE_FRAC` fraction bits, exact for powers of two."""
    return ((1 << AVERAGE_FRAC) + count // 2) // count


def sum_pool(x: NDArray, window: Window) -> NDArray:
    """The sum under the window (padding counts as zero): the exact part of average pooling."""
    out_y, out_x = window.out_size(*x.shape[2:])
    padded = window.padded(x)
    taps = (window.tap(padded, ky, kx, out_y, out_x)
            for ky in range(window.kernel[0]) for kx in range(window.kernel[1]))
    return sum(taps, np.zeros((*x.shape[:2], out_y, out_x), dtype=x.dtype))


def sum_pool_grad(g: NDArray, window: Window, in_size: tuple[int, int]) -> NDArray:
    """The gradient of :func:`sum_pool`: each gradient to every position of its window."""
    return _scatter(lambda ky, kx: g, g, window, in_size)


def _scatter(part: Callable[[int, int], NDArray], g: NDArray, window: Window, in_size: tuple[int, int]) -> NDArray:
    top, left, bottom, right = window.pad
    padded = np.zeros((*g.shape[:2], in_size[0] + top + bottom, in_size[1] + left + right), dtype=g.dtype)
    for ky in range(window.kernel[0]):
        for kx in range(window.kernel[1]):
            window.tap(padded, ky, kx, *g.shape[2:])[...] += part(ky, kx)
    return window.cropped(padded, *in_size)
