"""Layers seen as convolutions, as the engine runs them."""

from __future__ import annotations

from typing import assert_never

from espalier.ir.graph import Graph
from espalier.ir.ops import Conv2d, Linear, Reshape


def conv_shape(graph: Graph, layer: Conv2d | Linear) -> tuple[int, int, int, int]:
    """The shape (O, I/groups, KH, KW) of a layer's weight as that of a convolution.

    A linear layer that reads a flattened (C, H, W) value is a convolution with a kernel as large as the
    whole map, (O, C, H, W); any other linear layer is a 1×1 convolution, (O, I, 1, 1). The elements
    and their order are those of the weight itself, so that ``weight.reshape(conv_shape(...))`` is it.
    """
    match layer:
        case Conv2d(w=w):
            out_channels, in_channels, height, width = w.shape
            return out_channels, in_channels, height, width
        case Linear(x=x, w=w):
            out_channels, in_channels = w.shape
            match graph.producer(x):
                case Reshape(x=source) if len(source.shape) == 3:
                    channels, height, width = source.shape
                    return out_channels, channels, height, width
                case _:
                    return out_channels, in_channels, 1, 1
        case _:
            assert_never(layer)
