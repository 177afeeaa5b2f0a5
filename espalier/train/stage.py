"""One part of a network while a pipeline trains it: batches go forward, and later back, on one weight copy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from espalier.errors import UnsupportedError
from espalier.ir.differentiate import gradient_name
from espalier.ir.graph import Graph
from espalier.ir.ops import Op
from espalier.ir.types import Index, Value
from espalier.train.evaluate import element_type, run_ops
from espalier.train.native_step import Kept, NativeStep, compiled
from espalier.train.optimise import Optimiser, Update
from espalier.train.timeline import BACKWARD, FORWARD, LOAD, UPDATE, Timeline

NATIVE = "sums"  #: the gradients of all parameters as native code gives them, not yet rounded


@dataclass(slots=True)
class _UnderWay:
    """What the backward pass of a batch will need: the last part's logits; room of the native code, or values by name.
    """

    logits: Tensor | None
    kept: Kept | None = None
    values: dict[str, Tensor] = field(default_factory=dict)


class Stage:
    """Forward and backward passes of a part, and the update of its weights.

    Parameters
    ----------
    step : Graph
        The part's training step, one of :func:`espalier.ir.differentiate.differentiate_parts`. Its passes take words
        or numbers in any type and shape that hold them, and give them as native code or ``evaluate`` does.
    optimiser : Optimiser
        Of the part's parameters alone.

    Members
    -------
    last : bool
        Whether the part ends in the loss: its backward pass is given labels.
    tally : Tensor
        float64, (2,), of the last part: loss summed over images in units of its format, and images recognised.
    timeline : Timeline
        When it loaded, went forward and back, and updated.
    """

    def __init__(self, step: Graph, optimiser: Optimiser) -> None:
        self.step, self.optimiser, self.timeline = step, optimiser, Timeline()
        self.image, self.second = step.inputs
        self.last = self.second.name == "labels"
        self.result = step.outputs[1 if self.last else 0]
        self.tally = torch.zeros(2, dtype=torch.float64, device=optimiser.weight.device)
        self.native = None if optimiser.weight.is_cuda else compiled(step, optimiser.batch)
        self.rounded = self.native is None and optimiser.update is not Update.FLOAT  # a gradient, once it is there
        self.sums: dict[str, Tensor] = {}
        self.rooms: list[Kept] = []
        self.under_way: deque[_UnderWay] = deque()
        self.gradients = [gradient_name(value.name) for value in optimiser.parameters]
        self.forward_ops, self.backward_ops = _passes(step, self.second)
        made = {op.out for op in self.forward_ops} | {self.image}
        self.needed = [value.name for value in dict.fromkeys(
            value for op in self.backward_ops for value in op.inputs) if value in made]

    def loaded(self, batch: Callable[[int], Tensor], number: int) -> Tensor:
        """The images or labels of batch ``number``."""
        with self.timeline.span(LOAD):
            return batch(number)

    def forward(self, x: Tensor) -> Tensor:
        """The part's result for the next batch, on the weights as they are, or as the optimiser predicts them."""
        with self.timeline.span(FORWARD):
            return self._forward(self._carried(x, self.image))

    def backward(self, second: Tensor) -> Tensor | None:
        """Take the oldest batch under way back; the gradients of its weights add up until :meth:`update`.

        ``second`` is the gradient of its result, or its labels. Returns the gradient of what the part read; None in
        the part that reads images.
        """
        with self.timeline.span(BACKWARD):
            return self._backward(self.under_way.popleft(), self._carried(second, self.second))

    def update(self) -> None:
        """Move the weights by the gradients since the last update; there is at least one."""
        sums, self.sums = self.sums, {}
        with self.timeline.span(UPDATE):
            if self.native is not None:
                self.optimiser.step_sums(sums[NATIVE], self.native.roundings)
            else:
                self.optimiser.step(sums)

    def _forward(self, x: Tensor) -> Tensor:
        if self.native is not None:
            kept = self._room(self.native, len(x))
            result = self.native.forward(x, self.optimiser.ahead(), kept)
            self.under_way.append(_UnderWay(result if self.last else None, kept))
        else:
            values = {**self.optimiser.weights_ahead(), self.image.name: x}
            run_ops(self.forward_ops, values)
            self.optimiser.follow(values)
            result = values[self.result.name]
            self.under_way.append(_UnderWay(result if self.last else None,
                                            values={name: values[name] for name in self.needed}))
        return result

    def _room(self, native: NativeStep, images: int) -> Kept:
        """One that is free, or a new one; those for other numbers of images are given up."""
        if self.rooms and len(self.rooms[-1].magnitudes) != native.chunks(images):
            self.rooms.clear()
        return self.rooms.pop() if self.rooms else native.keeping(images)

    def _backward(self, batch: _UnderWay, second: Tensor) -> Tensor | None:
        if self.native is not None:
            return self._backward_native(self.native, batch, second)
        values = {**self.optimiser.weights, **batch.values, self.second.name: second}
        run_ops(self.backward_ops, values)
        if batch.logits is not None:
            self._count(batch.logits, second, values[self.step.outputs[0].name])
        self._add({name: values[name] for name in self.gradients})
        return values.get(gradient_name(self.image.name))

    def _backward_native(self, native: NativeStep, batch: _UnderWay, second: Tensor) -> Tensor | None:
        assert batch.kept is not None, "went forward in native code"
        gradient = second
        if batch.logits is not None:
            loss, gradient = native.loss(batch.logits, second)
            self._count(batch.logits.flatten(1), second, loss)
        through, sums = native.backward(gradient, self.optimiser.weight, self.optimiser.live, batch.kept,
                                        adding=bool(self.sums))
        self.rooms.append(batch.kept)
        self.sums = {NATIVE: sums}
        return through

    def _carried(self, words: Tensor, value: Value) -> Tensor:
        if isinstance(value.format, Index):
            return words
        kind = element_type(value.format) if self.native is None else torch.int16
        return words.to(kind).reshape(len(words), *value.shape)

    def _add(self, gradients: dict[str, Tensor]) -> None:
        if self.sums and self.rounded:
            raise UnsupportedError("The gradients of several micro-batches add up exactly in native code or in "
                                   "float32: install a C++ compiler, or take whole batches")
        self.sums = {name: self.sums[name] + sums for name, sums in gradients.items()} if self.sums else gradients

    def _count(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        self.tally += torch.stack((loss.double().sum(), (logits.argmax(dim=1) == labels).sum().double()))


def _passes(step: Graph, second: Value) -> tuple[list[Op], list[Op]]:
    """The operations that do not need the second input, and those that do."""
    later = {second}
    passes: tuple[list[Op], list[Op]] = ([], [])
    for op in step.ops:
        waits = not later.isdisjoint(op.inputs)
        passes[waits].append(op)
        if waits:
            later.add(op.out)
    return passes
