"""Which activations leave the chip between FP and BP, and where they lie while they are on it.

Activations are a stack: the first that FP makes is the last that BP and WU read. Where not all of them fit the
activation memory, some go to external memory as they are made and come back, to the same place, during the step before
the first that needs them. What a step reads, and what comes for the next, is on chip at the same time.

A layer that is done sooner than its results have left waits for them, so first to leave are those that take the most
products. Then goes the image, which comes from outside before FP, where otherwise two groups of it are on chip; at last
results of layers whose weights stream, the fewest for each result first: no weights come in while results go out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import prod

from espalier.compiler.backward import Backward
from espalier.compiler.legalise import Layer
from espalier.ir.types import MapShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Addresses of all activations on chip, the depth that they need, and those that are spilled, the oldest first.

    Times are numbers of layers in FP, then that of the loss, then those of the backward pass's steps.
    ``refetches`` has, for a time, what has to be asked back before its commands (-1: before all); ``fences`` the times
    before which it has to be there, and nothing else has to.
    """

    places: Mapping[str, int]
    depth: int
    spilled: tuple[str, ...] = ()
    refetches: Mapping[int, tuple[str, ...]]
    fences: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Value:
    """An activation of so many vectors: when it is made, when FP reads it last, and when BP and WU first and last.

    Those of the lowest ``rank`` leave first.
    """

    name: str
    vectors: int
    rank: tuple[bool, bool, float]
    image: bool
    made: int
    forward: int
    returns: int | None
    last: int

    def size(self, spilled: bool) -> int:
        return self.vectors if spilled or not self.image else 2 * self.vectors

    def spans(self, spilled: bool) -> list[tuple[int, int]]:
        """The times in which it is on chip."""
        if not spilled:
            return [(self.made, self.last)]
        return [(self.made, self.forward), *((time - 1, self.last) for time in self.fetched if time > 0)]

    @property
    def fetched(self) -> list[int]:
        """The times before which it comes, where it is spilled."""
        return [0] * self.image + [time for time in (self.returns,) if time is not None]

    @property
    def leaves(self) -> bool:
        """Whether it is the image, or there is a time between at which nothing needs it."""
        return self.image or self.returns is not None and self.returns - 1 > self.forward + 1


def stack(layers: tuple[Layer, ...], plan: Backward, depth: int | None, held: Callable[[MapShape], int] = prod,
          streamed: Collection[int] = ()) -> Stack:
    """Place the activations in a memory so deep, spilling what that takes; None: in the least that there can be.

    If even that does not fit ``depth``, the least is what comes back. The image lies at the beginning. ``held`` says
    how many vectors of an activation a processing element has; of the image it has all. ``streamed`` has the numbers of
    the layers whose weights lie in external memory.
    """
    values = _values(layers, plan, held, streamed)
    leaving = [value.name for value in sorted(values, key=lambda value: value.rank) if value.leaves]
    least = max(sum(value.size(value.leaves) for value in values if _lives(value, value.leaves, time))
                for time in range(max(value.last for value in values) + 1))
    depth = least if depth is None else max(least, depth)
    spilled = set(leaving)
    while _placed(values, spilled, depth) is None:
        depth += max(1, depth >> 6)
    for name in reversed(leaving):
        if _placed(values, spilled - {name}, depth) is not None:
            spilled.remove(name)
    return _stack(values, spilled, depth)


def _stack(values: list[_Value], spilled: set[str], depth: int) -> Stack:
    places = _placed(values, spilled, depth)
    assert places is not None, "they were found to fit"
    refetches: dict[int, tuple[str, ...]] = {}
    for value in values:
        for time in value.fetched if value.name in spilled else ():
            refetches[time - 1] = (*refetches.get(time - 1, ()), value.name)
    return Stack(places=places, depth=depth, spilled=tuple(value.name for value in values if value.name in spilled),
                 refetches=refetches, fences=frozenset(time + 1 for time in refetches))


def _values(layers: tuple[Layer, ...], plan: Backward, held: Callable[[MapShape], int], streamed: Collection[int]
            ) -> list[_Value]:
    """All stored activations, the image first, in the order in which they are made."""
    loss = len(layers)
    reads: dict[str, list[int]] = {layers[0].x: []}
    for k, layer in enumerate(layers):
        reads[layer.out] = [k]
        reads[layer.x].append(k)
    reads[layers[-1].out].append(loss)
    for number, step in enumerate(plan.steps):
        reads[layers[step.layer].x].append(loss + 1 + number)
    shapes: dict[str, MapShape] = {layers[0].x: layers[0].in_shape, **{layer.out: layer.out_shape for layer in layers}}
    made = {layer.out: k for k, layer in enumerate(layers)}
    found = []
    for name, times in reads.items():
        image = name not in made
        forward, later = [t for t in times if t <= loss], [t for t in times if t > loss]
        rank = (False, True, 0.0) if image else _rank(layers[made[name]], streams=made[name] in streamed)
        found.append(_Value(name=name, vectors=prod(shapes[name]) if image else held(shapes[name]), rank=rank,
                            image=image, made=made.get(name, 0), forward=max(forward, default=0), last=max(times),
                            returns=later[0] if later else None))
    return found


def _rank(layer: Layer, *, streams: bool) -> tuple[bool, bool, float]:
    """Of a layer's result, by the weights or, where they are on chip, the products that make it."""
    cost = prod(layer.weight_shape) if streams else -prod(layer.weight_shape) * prod(layer.conv_shape[1:])
    return streams, False, cost / prod(layer.out_shape)


def _lives(value: _Value, spilled: bool, time: int) -> bool:
    return any(first <= time <= last for first, last in value.spans(spilled))


def _placed(values: list[_Value], spilled: set[str], depth: int) -> dict[str, int] | None:
    """The places of all in a memory so deep, or None: the image, then the largest first, each as low as it can lie."""
    image, *others = values
    placed: list[tuple[_Value, int]] = []
    for value in (image, *sorted(others, key=lambda value: -value.vectors)):
        away = value.name in spilled
        taken = sorted((base, base + other.size(other.name in spilled)) for other, base in placed
                       if _meet(value.spans(away), other.spans(other.name in spilled)))
        ends = accumulate((end for _, end in taken), max, initial=0)
        starts = [*(base for base, _ in taken), depth]
        base = next((end for end, start in zip(ends, starts, strict=True) if start - end >= value.size(away)), None)
        if base is None:
            return None
        placed.append((value, base))
    return {value.name: base for value, base in placed}


def _meet(ours: list[tuple[int, int]], theirs: list[tuple[int, int]]) -> bool:
    return any(first <= last and begin <= end for first, end in ours for begin, last in theirs)
