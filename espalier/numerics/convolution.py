"""Convolution in the forward pass (FP), backward pass (BP) and weight update (WU), exactly.

All three are sums of products without any rounding: ``int64`` words in, ``int64`` accumulators
out (float arrays give the float operation of the same name). A linear layer is a 1×1 convolution
on a 1×1 map. Dead weights are zero words: they add nothing in FP and BP, and WU gives them none.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from espalier.numerics.window import Window


def _grouped(x: NDArray, groups: int) -> NDArray:
    return x.reshape(x.shape[0], groups, x.shape[1] // groups, -1)


def conv2d(x: NDArray, w: NDArray, window: Window, groups: int = 1) -> NDArray:
    """FP: ``y[n,o,q] = sum over i, tap of x[n,i,q*stride+tap-pad] * w[o,i,tap]``.

    Shapes: x (N, I, H, W), w (O, I/groups, KH, KW), result (N, O, OH, OW).
    """
    out_y, out_x = window.out_size(*x.shape[2:])
    weights = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
    padded = window.padded(x)
    acc = np.zeros((x.shape[0], groups, weights.shape[1], out_y * out_x), dtype=np.result_type(x, w))
    for ky in range(window.kernel[0]):
        for kx in range(window.kernel[1]):
            acc += weights[..., ky, kx] @ _grouped(window.tap(padded, ky, kx, out_y, out_x), groups)
    return acc.reshape(x.shape[0], w.shape[0], out_y, out_x)


def conv2d_input_grad(g: NDArray, w: NDArray, window: Window, in_size: tuple[int, int], groups: int = 1) -> NDArray:
    """BP: the gradient (N, I, H, W) with respect to ``x`` from ``g`` (N, O, OH, OW)."""
    height, width = in_size
    weights = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
    channels = w.shape[1] * groups
    top, left, bottom, right = window.pad
    padded = np.zeros((g.shape[0], channels, height + top + bottom, width + left + right),
                      dtype=np.result_type(g, w))
    for ky in range(window.kernel[0]):
        for kx in range(window.kernel[1]):
            part = weights[..., ky, kx].swapaxes(1, 2) @ _grouped(g, groups)
            window.tap(padded, ky, kx, *g.shape[2:])[...] += part.reshape(g.shape[0], channels, *g.shape[2:])
    return window.cropped(padded, height, width)


def conv2d_weight_grad(x: NDArray, g: NDArray, window: Window, groups: int = 1,
                       live: NDArray[np.bool_] | None = None) -> NDArray:
    """WU: the gradient (O, I/groups, KH, KW) with respect to ``w``, summed over the batch.

    Where ``live`` (of the weight's shape) is False the gradient is not wanted and is zero.
    """
    padded = window.padded(x)
    gradients = _grouped(g, groups)
    out = np.zeros((g.shape[1], x.shape[1] // groups, *window.kernel), dtype=np.result_type(x, g))
    for ky in range(window.kernel[0]):
        for kx in range(window.kernel[1]):
            seen = _grouped(window.tap(padded, ky, kx, *g.shape[2:]), groups)
            out[:, :, ky, kx] = (gradients @ seen.swapaxes(2, 3)).sum(axis=0).reshape(out.shape[:2])
    return out if live is None else np.where(live, out, 0)


def ungrouped(w: NDArray, groups: int, fill: int = 0) -> NDArray:
    """Weights (O, I/groups, KH, KW) as (O, I, KH, KW), with ``fill`` between groups."""
    if groups == 1:
        return w
    outs, own = w.shape[0] // groups, w.shape[1]
    found = np.full((w.shape[0], own * groups, *w.shape[2:]), fill, dtype=w.dtype)
    for group in range(groups):
        mine = slice(group * outs, (group + 1) * outs)
        found[mine, group * own: (group + 1) * own] = w[mine]
    return found


def bias_grad(g: NDArray) -> NDArray:
    """WU of a bias: ``g`` (N, O, OH, OW) summed over batch and pixels."""
    return g.sum(axis=(0, 2, 3))
