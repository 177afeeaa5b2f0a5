"""Exact convolution and pooling on a CPU by the engine's own dataflow, compiled for its vector unit (lanes.cpp).

A tensor (N, C, H, W) of words of up to 16 bits lies in memory as int16 in the order (C, H, W, N): the images
of a batch are the lanes, over which one weight is broadcast. Zero weights cost nothing in FP and BP, and WU
computes only the gradients of live weights where a mask is given. torch's elementwise operations keep
this order of memory, so that a training step stays in it. Where there is no C++ compiler :func:`kernels`
is None and torch takes over.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from importlib import resources
from math import ldexp

import torch
from torch import Tensor

from espalier.errors import ToolError
from espalier.native import build_library
from espalier.numerics.window import Window

OPTIONS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math")


class _Plan(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in (
        "images", "channels", "height", "width", "top", "left", "spread_y", "spread_x", "buffer_height",
        "buffer_width", "outputs", "groups", "kernel_y", "kernel_x", "stride_y", "stride_x", "dilation_y",
        "dilation_x", "out_height", "out_width")]


class _Rounding(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("shift", "low", "high")]


@dataclass(frozen=True, slots=True)
class Rounding:
    """Shift right by ``shift`` bits (left if it is negative), round half up, and clamp into ``low..high``."""

    shift: int
    low: int
    high: int

    def __call__(self, acc: Tensor) -> Tensor:
        """The words of sums of magnitude up to 2**53, as float64."""
        scale = ldexp(1.0, -self.shift) if self.shift <= 53 else 0.0
        return acc.double().mul(scale).add_(0.5).floor_().clamp_(self.low, self.high)


@cache
def kernels() -> ctypes.CDLL | None:
    """The compiled kernels; None where they cannot be compiled, or ``ESPALIER_NATIVE=0`` forbids it."""
    if os.environ.get("ESPALIER_NATIVE") == "0":
        return None
    try:
        source = resources.files("espalier.train").joinpath("lanes.cpp").read_text()
        library = ctypes.CDLL(str(build_library(source, OPTIONS)))
    except (ToolError, OSError):
        return None
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    for name, arguments in (("convolve", [pointer] * 6 + [count]), ("weight_gradient", [pointer] * 5 + [count]),
                            ("max_pool", [pointer] * 3), ("max_pool_gradient", [pointer] * 4)):
        function = getattr(library, f"lanes_{name}")
        function.restype, function.argtypes = None, arguments
    library.lanes_keep_memory()
    return library


def suits(x: Tensor) -> bool:
    """Whether the kernels take ``x``: words (of up to 16 bits, as int16 or float64) on a CPU."""
    return x.dtype in (torch.int16, torch.float64) and not x.is_cuda and kernels() is not None


def conv2d(x: Tensor, w: Tensor, bias: Tensor | None, window: Window, groups: int, rounding: Rounding
           ) -> Tensor:
    """FP: x (N, I, H, W), w (O, I/groups, KH, KW), bias (O,) as sums → (N, O, OH, OW)."""
    top, left, bottom, right = window.pad
    height, width = x.shape[2:]
    plan = _Plan(len(x), x.shape[1], height, width, top, left, 1, 1, height + top + bottom, width + left + right,
                 w.shape[0], groups, *window.kernel, *window.stride, *window.dilation,
                 *window.out_size(height, width))
    return _convolved(plan, x, w, bias, rounding)


def conv2d_input_grad(g: Tensor, w: Tensor, window: Window, in_size: tuple[int, int], groups: int,
                      rounding: Rounding) -> Tensor:
    """BP: g (N, O, OH, OW), w → (N, I, H, W): a convolution of ``g``, spread by the stride, with the turned kernel."""
    turned = w.unflatten(0, (groups, -1)).flip(-2, -1).transpose(1, 2).flatten(0, 1)
    reach = [dilation * (kernel - 1) for dilation, kernel in zip(window.dilation, window.kernel, strict=True)]
    plan = _Plan(len(g), g.shape[1], g.shape[2], g.shape[3], reach[0] - window.pad[0], reach[1] - window.pad[1],
                 *window.stride, in_size[0] + reach[0], in_size[1] + reach[1], turned.shape[0], groups,
                 *window.kernel, 1, 1, *window.dilation, *in_size)
    return _convolved(plan, g, turned, None, rounding)


def conv2d_weight_grad(x: Tensor, g: Tensor, window: Window, groups: int, live: Tensor | None) -> Tensor:
    """WU: x (N, I, H, W), g (N, O, OH, OW) → (O, I/groups, KH, KW), zero where ``live`` is."""
    top, left, bottom, right = window.pad
    height, width = x.shape[2:]
    plan = _Plan(len(x), x.shape[1], height, width, top, left, 1, 1, height + top + bottom, width + left + right,
                 g.shape[1], groups, *window.kernel, *window.stride, *window.dilation, *g.shape[2:])
    source, gradient = _lanes(x), _lanes(g)
    wanted = None if live is None else live.reshape(-1).to(torch.uint8)
    sums = torch.empty(g.shape[1], x.shape[1] // groups, *window.kernel, dtype=torch.float64)
    _library().lanes_weight_gradient(ctypes.byref(plan), source.data_ptr(), gradient.data_ptr(),
                                     None if wanted is None else wanted.data_ptr(), sums.data_ptr(),
                                     torch.get_num_threads())
    return sums


def pools(window: Window) -> bool:
    """Whether the kernels know a pooling window: no padding, no dilation, no overlap."""
    apart = all(step >= size for step, size in zip(window.stride, window.kernel, strict=True))
    return apart and not any(window.pad) and window.dilation == (1, 1)


def max_pool(x: Tensor, window: Window) -> Tensor:
    """The maxima (N, C, OH, OW)."""
    source = _lanes(x)
    plan = _pool_plan(x, window)
    out = torch.empty(plan.channels, plan.out_height, plan.out_width, plan.images, dtype=torch.int16)
    _library().lanes_max_pool(ctypes.byref(plan), source.data_ptr(), out.data_ptr())
    return out.permute(3, 0, 1, 2)


def max_pool_grad(g: Tensor, x: Tensor, window: Window) -> Tensor:
    """Each word of ``g`` at the first largest word of its window, zero elsewhere."""
    source, gradient = _lanes(x), _lanes(g)
    plan = _pool_plan(x, window)
    out = torch.empty(plan.channels, plan.height, plan.width, plan.images, dtype=torch.int16)
    _library().lanes_max_pool_gradient(ctypes.byref(plan), gradient.data_ptr(), source.data_ptr(), out.data_ptr())
    return out.permute(3, 0, 1, 2)


def _pool_plan(x: Tensor, window: Window) -> _Plan:
    n, channels, height, width = x.shape
    return _Plan(n, channels, height, width, 0, 0, 1, 1, height, width, channels, channels, *window.kernel,
                 *window.stride, 1, 1, *window.out_size(height, width))


def _convolved(plan: _Plan, source: Tensor, weights: Tensor, bias: Tensor | None, rounding: Rounding) -> Tensor:
    source, weights = _lanes(source), weights.to(torch.int16).contiguous()
    start = torch.zeros(plan.outputs, dtype=torch.int64) if bias is None else bias.to(torch.int64).contiguous()
    told = _Rounding(max(-63, min(63, rounding.shift)), rounding.low, rounding.high)
    out = torch.empty(plan.outputs, plan.out_height, plan.out_width, plan.images, dtype=torch.int16)
    _library().lanes_convolve(ctypes.byref(plan), source.data_ptr(), weights.data_ptr(), start.data_ptr(),
                              ctypes.byref(told), out.data_ptr(), torch.get_num_threads())
    return out.permute(3, 0, 1, 2)


def _lanes(x: Tensor) -> Tensor:
    """``x`` (N, C, H, W) as int16 in the order (C, H, W, N) of memory: copied only if it is not so already."""
    return x.permute(1, 2, 3, 0).to(torch.int16).contiguous()


def _library() -> ctypes.CDLL:
    library = kernels()
    assert library is not None, "suits() was asked first"
    return library
