"""One ONNX node: its attributes, and the window and the shape that they mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx

from espalier.errors import GraphError
from espalier.frontend.builder import Site
from espalier.frontend.onnx_file import DEFAULT_DOMAINS
from espalier.ir.types import Value
from espalier.numerics.window import Window


class Node:
    """One node with its attributes as Python values, strings decoded."""

    def __init__(self, proto: onnx.NodeProto, name: str) -> None:
        self.proto = proto
        self.operator = proto.op_type if proto.domain in DEFAULT_DOMAINS else f"{proto.domain}.{proto.op_type}"
        self.site = Site(name, f"Node {name!r} ({self.operator})")
        self._attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}

    def input(self, position: int) -> str:
        """The name of an input; empty where it is left out."""
        return self.proto.input[position] if position < len(self.proto.input) else ""

    def result_used(self, position: int, readers: Counter[str]) -> bool:
        """Whether anything reads the result at ``position``."""
        return position < len(self.proto.output) and readers[self.proto.output[position]] > 0

    def integer(self, name: str, default: int) -> int:
        return int(self._attributes.get(name, default))

    def real(self, name: str, default: float) -> float:
        return float(self._attributes.get(name, default))

    def integers(self, name: str, default: Sequence[int]) -> tuple[int, ...]:
        return tuple(int(n) for n in self._attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        found = self._attributes.get(name, default)
        return found.decode() if isinstance(found, bytes) else str(found)

    def has(self, name: str) -> bool:
        return name in self._attributes


def image_shape(target: tuple[int, ...], shape: tuple[int, ...], batch: int | None, allowzero: bool
                ) -> tuple[int, ...] | None:
    """The shape of an image after ONNX's Reshape to ``target``; None where the batch axis does not stay first.

    ``shape`` is that of an image before, ``batch`` the number of images if it is fixed.
    """
    if not target or (allowzero and 0 in target):
        return None
    elements = int(np.prod(shape))
    rest = [shape[i - 1] if size == 0 and 0 < i <= len(shape) else size for i, size in enumerate(target)][1:]
    if -1 in rest:
        known = -int(np.prod(rest))
        if known <= 0 or elements % known:
            return None
        rest = [elements // known if size == -1 else size for size in rest]
    keeps_batch = target[0] in (0, -1) or target[0] == batch
    return tuple(rest) if keeps_batch and min(rest, default=1) > 0 and int(np.prod(rest)) == elements else None


def node_window(node: Node, x: Value, kernel: tuple[int, ...]) -> Window:
    """The window of a node on two spatial axes, its automatic padding worked out for ``x``."""
    strides = node.integers("strides", (1, 1))
    dilations = node.integers("dilations", (1, 1))
    pads = node.integers("pads", (0, 0, 0, 0))
    if (len(kernel), len(strides), len(dilations), len(pads)) != (2, 2, 2, 4):
        raise GraphError(f"{node.site.label}: kernel {kernel}, strides {strides}, dilations {dilations} and pads "
                         f"{pads} must be 2, 2, 2 and 4 numbers")
    try:
        given = Window((kernel[0], kernel[1]), (strides[0], strides[1]), (pads[0], pads[1], pads[2], pads[3]),
                       (dilations[0], dilations[1]))
    except GraphError as error:
        raise GraphError(f"{node.site.label}: {error}") from error
    automatic = node.text("auto_pad", "NOTSET")
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        along = [_same_padding(x.shape[1 + i], kernel[i], strides[i], dilations[i], automatic) for i in (0, 1)]
        return replace(given, pad=(along[0][0], along[1][0], along[0][1], along[1][1]))
    if automatic == "VALID":
        return replace(given, pad=(0, 0, 0, 0))
    if automatic != "NOTSET":
        raise GraphError(f"{node.site.label}: auto_pad {automatic!r} is none of NOTSET, SAME_UPPER, SAME_LOWER, VALID")
    return given


def _same_padding(size: int, kernel: int, stride: int, dilation: int, automatic: str) -> tuple[int, int]:
    """(before, after) such that the output has ``ceil(size / stride)`` positions."""
    out = -(-size // stride)
    total = max(0, (out - 1) * stride + dilation * (kernel - 1) + 1 - size)
    small, large = total // 2, total - total // 2
    return (small, large) if automatic == "SAME_UPPER" else (large, small)
