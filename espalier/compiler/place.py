"""Where tensors lie. Activations are a stack, partly spilled; gradients live as long as a step reads them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from espalier.compiler.backward import Backward, backward
from espalier.compiler.legalise import Layer
from espalier.compiler.spill import stack
from espalier.ir.types import MapShape
from espalier.numerics.live import block_grid
from espalier.program.words import Opcode


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Addresses of all tensors, and the depths that they need.

    ``activations`` has every stored value by name. The image is there twice, one group behind the other, so that one
    can be loaded while the other is in use. ``gradients`` has those of layers' stored results, by the results' names,
    that anything needs; ``copies`` those of results that FP puts there, too, since they are added to others, or others
    to them, or a batch norm sums them up. ``spilled``, ``refetches`` and ``fences`` are those of
    :class:`espalier.compiler.spill.Stack`.
    """

    activations: Mapping[str, int]
    gradients: Mapping[str, int]
    copies: Mapping[str, int]
    activation_depth: int
    gradient_depth: int
    spilled: tuple[str, ...] = ()
    refetches: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    fences: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lifetime:
    """Of a gradient, or of a result of FP, of so many bank vectors, from the step that first writes it to the last that
    reads it.
    """

    value: str
    size: int
    first: int
    last: int

    def meets(self, other: _Lifetime) -> bool:
        return self.first <= other.last and other.first <= self.last


def vectors(shape: MapShape) -> int:
    """Vectors of a tensor."""
    return shape[0] * shape[1] * shape[2]


def held_vectors(shape: MapShape, rows: int, elements: int) -> int:
    """Vectors of a tensor in the activation memory of the processing element that has the most of it.

    It has every so manyth block of ``rows`` channels.
    """
    channels, height, width = shape
    blocks = -(-channels // rows)
    cut = blocks * rows - channels if (blocks - 1) % elements == 0 else 0  # the last block is among the most
    return (-(-blocks // elements) * rows - cut) * height * width


def bank_vectors(shape: MapShape, rows: int) -> int:
    """Vectors of a tensor in each gradient bank."""
    return -(-shape[0] // rows) * shape[1] * shape[2]


def place(layers: tuple[Layer, ...], rows: int, activation_depth: int | None = None, *, spill: bool = False,
          elements: int = 1, streamed: Collection[int] = ()) -> Memory:
    """Stack the activations; put each gradient where no other lies that lives at the same time.

    Where the stack is deeper than ``activation_depth`` and there is external memory to ``spill`` to, activations are
    spilled as that makes necessary; without a depth, as for the least that there can be. ``streamed`` has the numbers
    of the layers whose weights lie in external memory.

    Every processing element has the whole image and all gradients, and its part of each activation.

    Gradients take the two ends of the banks in turn, one after the other, which for a chain of layers, where neighbours
    alone live at the same time, is the best that can be. Where they do not find room so, the banks become deeper.
    """
    activations, top = {layers[0].x: 0}, 2 * vectors(layers[0].in_shape)
    for layer in layers:
        activations[layer.out] = top
        top += held_vectors(layer.out_shape, rows, elements)
    plan = backward(layers)
    memory = _gradients(layers, plan, rows, activations, top)
    if not spill or (activation_depth is not None and top <= activation_depth):
        return memory
    found = stack(layers, plan, activation_depth, lambda shape: held_vectors(shape, rows, elements), streamed)
    return replace(memory, activations=found.places, activation_depth=found.depth, spilled=found.spilled,
                   refetches=found.refetches, fences=found.fences)


def _gradients(layers: tuple[Layer, ...], plan: Backward, rows: int, activations: Mapping[str, int], top: int
               ) -> Memory:
    found, depth = _fitted(_lifetimes(layers, plan, rows))
    copies, copied = _fitted(_copied(layers, rows))
    gradients = {layer.out: found[plan.owner(layer.out)] for layer in layers if layer.out in plan.complete}
    return Memory(activations=activations, gradients=gradients, copies=copies, activation_depth=top,
                  gradient_depth=max(depth, copied))


def _lifetimes(layers: tuple[Layer, ...], plan: Backward, rows: int) -> list[_Lifetime]:
    """Of every gradient that has a place of its own, in the order in which they come to be."""
    first, last = {layers[-1].out: -1}, {layers[-1].out: -1}
    for number, step in enumerate(plan.steps):
        layer = layers[step.layer]
        read = [layer.out]
        if step.opcode != Opcode.UPDATE:
            first.setdefault(layer.x, number)
            read += [layer.x] if step.add is None else [layer.x, step.add]
        for value in read:
            last[plan.owner(value)] = number
    shapes = {layer.out: layer.out_shape for layer in layers}
    return [_Lifetime(value=value, size=bank_vectors(shapes[value], rows), first=begin, last=last[value])
            for value, begin in first.items()]


def _copied(layers: tuple[Layer, ...], rows: int) -> list[_Lifetime]:
    """Of every result that FP puts among the gradients, too, in the order of the layers."""
    last: dict[str, int] = {}
    for k, layer in enumerate(layers):
        summed = [] if layer.addend is None else [layer.addend, layer.out]
        last |= dict.fromkeys([*summed, layer.x] if layer.norm else summed, k)
    return [_Lifetime(value=layer.out, size=bank_vectors(layer.out_shape, rows), first=k, last=last[layer.out])
            for k, layer in enumerate(layers) if layer.out in last]


def _fitted(lifetimes: list[_Lifetime]) -> tuple[dict[str, int], int]:
    """The places of all, and how deep the banks are then."""
    depth = max((sum(other.size for other in lifetimes if other.first <= item.first <= other.last)
                 for item in lifetimes), default=0)
    while (found := _placed(lifetimes, depth)) is None:
        depth += max(1, depth >> 6)
    return found, depth


def _placed(lifetimes: list[_Lifetime], depth: int) -> dict[str, int] | None:
    """The places of all in banks so deep, or None."""
    placed: list[tuple[_Lifetime, int]] = []
    for number, item in enumerate(lifetimes):
        taken = sorted((base, base + other.size) for other, base in placed if other.meets(item))
        ends = accumulate((end for _, end in taken), max, initial=0)
        starts = [*(base for base, _ in taken), depth]
        gaps = [(end, start) for end, start in zip(ends, starts, strict=True) if start - end >= item.size]
        if not gaps:
            return None
        placed.append((item, gaps[0][0] if number % 2 == 0 else gaps[-1][1] - item.size))
    return {item.value: base for item, base in placed}


def phases(layer: Layer) -> list[tuple[int, int]]:
    """The phases (y, x) of the source map in which BP of a strided layer walks it; those without a pixel are left out.

    A phase has each ``stride``-th row and column from its own on, and the taps that reach them.
    """
    return [(y, x) for y in range(min(layer.stride[0], layer.in_shape[1]))
            for x in range(min(layer.stride[1], layer.in_shape[2]))]


@dataclass(frozen=True, slots=True)
class PhaseAxis:
    """One axis of a phase: a convolution of stride 1 over the gradient, whose taps are some of the layer's, mirrored.

    Members
    -------
    taps : int
        At least as many as the padding before needs: those beyond the kernel are dead.
    pad : int
        Rows or columns before the map.
    size : int
        Results.
    first : int
        The layer's tap that is the last of this phase; the others are a stride further each.
    crossing : bool
        Whether the layer pools what lanes of two tiles hold: its one tap reaches the gradient from either.
    """

    taps: int
    pad: int
    size: int
    first: int
    crossing: bool = False

    @classmethod
    def of(cls, layer: Layer, axis: int, phase: int) -> PhaseAxis:
        """Of the ``axis`` (0: y) of ``phase``: source pixel ``stride * q + phase`` meets gradient pixel
        ``q + ahead - t`` at tap ``first + stride * t``."""
        stride, pad, kernel = layer.stride[axis], layer.pad[axis], layer.weight_shape[2 + axis]
        if layer.crossing[axis]:
            return cls(2, 1, 1, 0, crossing=True)
        ahead, first = divmod(phase + pad, stride)
        taps = max(-(-(kernel - first) // stride), ahead + 1)
        return cls(taps, taps - 1 - ahead, -(-(layer.in_shape[1 + axis] - phase) // stride), first)

    def places(self, tap: int, stride: int) -> Sequence[int]:
        """Where the layer's ``tap`` is in this phase's list; nowhere, where it is in another's."""
        if self.crossing:
            return range(self.taps)
        number, rest = divmod(tap - self.first, stride)
        return () if rest else (self.taps - 1 - number,)


def table_slots(layer: Layer, rows: int, elements: int = 1) -> tuple[int, int]:
    """Segment pointers of a layer's FP list and of a processing element's BP lists, each without the closing one."""
    out_blocks, source_blocks, height, width = block_grid(layer.weight_shape, rows)
    source_blocks = -(-source_blocks // elements)
    backward_slots = sum(source_blocks * (PhaseAxis.of(layer, 0, y).taps * PhaseAxis.of(layer, 1, x).taps + 1)
                         for y, x in phases(layer))
    return out_blocks * (height * width + 1), backward_slots
