"""Where tensors lie. Activations are a stack; gradients live in pairs."""

from __future__ import annotations

from dataclasses import dataclass

from espalier.compiler.legalise import Layer
from espalier.ir.types import MapShape
from espalier.numerics.live import block_grid


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Addresses of all tensors, and the depths that they need.

    ``activations[0]`` is the image (two groups of it, so that one can be loaded while the other is in
    use), ``activations[k+1]`` the result of layer ``k``; ``gradients[k]`` the gradient of that result.
    """

    activations: tuple[int, ...]
    gradients: tuple[int, ...]
    activation_depth: int
    gradient_depth: int


def vectors(shape: MapShape) -> int:
    """Vectors of a tensor in the activation memory."""
    return shape[0] * shape[1] * shape[2]


def bank_vectors(shape: MapShape, rows: int) -> int:
    """Vectors of a tensor in each gradient bank."""
    return -(-shape[0] // rows) * shape[1] * shape[2]


def place(layers: tuple[Layer, ...], rows: int) -> Memory:
    """Stack the activations; put gradients at the two ends of their banks in turn.

    While layer ``k`` is worked on backwards only the gradients of its result and of its source
    live, so neighbours must not overlap, and no others matter.
    """
    activations, top = [0], 2 * vectors(layers[0].in_shape)
    for layer in layers:
        activations.append(top)
        top += vectors(layer.out_shape)
    sizes = [bank_vectors(layer.out_shape, rows) for layer in layers]
    depth = max(a + b for a, b in zip(sizes, [*sizes[1:], 0], strict=True))
    gradients = tuple(0 if k % 2 == 0 else depth - size for k, size in enumerate(sizes))
    return Memory(activations=tuple(activations), gradients=gradients, activation_depth=top, gradient_depth=depth)


def table_slots(layer: Layer, rows: int) -> tuple[int, int]:
    """Segment pointers of a layer's FP list and of its BP list, without the closing one."""
    out_blocks, source_blocks, height, width = block_grid(layer.weight_shape, rows)
    return out_blocks * (height * width + 1), source_blocks * (height * width + 1)
