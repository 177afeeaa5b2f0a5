"""The native code of the training path (native/step.cpp): compiled, loaded, and its structures in Python."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from espalier.errors import ToolError
from espalier.native import build_library

OPTIONS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math")
SOURCE = Path(__file__).parent / "native" / "step.cpp"
NONE = -1


def _structure(name: str, fields: list[tuple[str, type]]) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": fields})


def _counts(names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_int64) for name in names.split()]


def _numbers(names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_double) for name in names.split()]


Map = _structure("Map", _counts("arena offset channels height width top left full_height full_width owner"))
Window = _structure("Window", _counts("channels outputs groups kernel_y kernel_x stride_y stride_x dilation_y "
                                        "dilation_x out_height out_width"))
Pool = _structure("Pool", _counts("kernel_y kernel_x stride_y stride_x dilation_y dilation_x pad_y pad_x apart"))
Rounding = _structure("Rounding", _counts("shift low high"))
Operation = _structure("Operation", [
    *_counts("kind source second mask target mask_high first"), ("window", Window),
    *_counts("pad_y pad_x turned weights bias bias_shift"), ("pool", Pool), ("rounding", Rounding),
    *_counts("same shift second_shift reciprocal")])
UpdateRule = _structure("UpdateRule", [*_counts("count"), *_numbers(
    "scale gradient_low gradient_high rate momentum decay lasting sudden narrowing low high wide_low wide_high")])
Program = _structure("Program", [
    ("maps", ctypes.c_void_p), ("operations", ctypes.c_void_p), *_counts("map_count images chunks"),
    ("arena_sizes", ctypes.c_int64 * 2), ("kept", ctypes.c_void_p), ("passing", ctypes.c_void_p),
    ("magnitudes", ctypes.c_void_p)])

(CONVOLVE, WEIGHT_GRADIENT, BIAS_GRADIENT, MAX_POOL, MAX_POOL_GRADIENT, AVERAGE_POOL, AVERAGE_POOL_GRADIENT, COMBINE,
 SPREAD, CONCAT) = range(10)  # as in step.cpp


@cache
def library() -> ctypes.CDLL | None:
    """The native code; None where it cannot be compiled, or ``ESPALIER_NATIVE=0`` forbids it."""
    if os.environ.get("ESPALIER_NATIVE") == "0":
        return None
    try:
        found = ctypes.CDLL(str(build_library(SOURCE, OPTIONS)))
    except (ToolError, OSError):
        return None
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    found.lanes.restype = count
    found.lanes_run.restype = found.lanes_crop.restype = found.lanes_update.restype = None
    found.lanes_run.argtypes = [pointer, count, count, pointer, pointer, count, pointer, count, pointer, pointer, count]
    found.lanes_crop.argtypes = [pointer] * 3 + [count] * 5 + [pointer]
    found.lanes_update.argtypes = [pointer, count, *[pointer] * 5]
    return found


def crop(images: Tensor, index: Tensor, moves: Tensor, pad: int) -> Tensor:
    """Images (N, C, H, W) at ``index`` (N,) of padded int16 ``images``, moved by ``moves`` (N, 3) in the padding."""
    code = library()
    assert code is not None, "library() was asked first"
    _, channels, height, width = images.shape
    out = torch.empty(len(index), channels, height - 2 * pad, width - 2 * pad, dtype=torch.int16)
    code.lanes_crop(images.data_ptr(), index.data_ptr(), moves.data_ptr(), len(index), channels, *out.shape[2:], pad,
                    out.data_ptr())
    return out
