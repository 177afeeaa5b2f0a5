"""Pipelined back-propagation with stale weights: when each part does what, and all parts in one process.

After Zhang and Abdelrahman (arXiv 1912.12675): with S parts, every part takes a new batch forward and an older one
back in each cycle. There is one copy of the weights: batch b meets those of part s in cycle b + s on its way forward,
and those of ``delay`` cycles later on its way back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from espalier.errors import UnsupportedError
from espalier.train.stage import Stage


class Feed(Protocol):
    """The batches of a stretch, made when they are asked for: the first part reads images, the last labels."""

    def __len__(self) -> int: ...

    def size(self, number: int) -> int:
        """How many images batch ``number`` has."""

    def images(self, number: int) -> Tensor:
        """As words or numbers, in any type that holds them."""

    def labels(self, number: int) -> Tensor: ...

    def divided(self, number: int, parts: int) -> Feed:
        """Batch ``number`` as so many micro-batches, which differ by at most one image."""


@dataclass(frozen=True, slots=True)
class Given:
    """Batches that are there: the images and the labels of each."""

    batches: Sequence[tuple[Tensor, Tensor]]

    def __len__(self) -> int:
        return len(self.batches)

    def size(self, number: int) -> int:
        return len(self.batches[number][1])

    def images(self, number: int) -> Tensor:
        return self.batches[number][0]

    def labels(self, number: int) -> Tensor:
        return self.batches[number][1]

    def divided(self, number: int, parts: int) -> Given:
        images, labels = self.batches[number]
        parts = min(parts, len(labels))
        return Given([*zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True)])


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which batch each of so many parts takes forward, and which one back, in each cycle; all count from 0."""

    parts: int

    def __post_init__(self) -> None:
        if self.parts < 1:
            raise UnsupportedError(f"A pipeline has at least 1 part, not {self.parts}")

    def delay(self, part: int) -> int:
        """Cycles from a batch's forward pass through a part to its backward pass; 0 in the last."""
        return 2 * (self.parts - 1 - part)

    def forward(self, part: int, cycle: int) -> int:
        """Below 0 before the first batch."""
        return cycle - part

    def backward(self, part: int, cycle: int) -> int:
        """Below 0 before the first batch."""
        return self.forward(part, cycle) - self.delay(part)

    def cycles(self, batches: int) -> int:
        """Until the last of so many batches is back."""
        return batches + self.delay(0) if batches else 0


def run(stages: Sequence[Stage], feed: Feed) -> None:
    """Train on whole batches with stale weights, in this process, and run the pipeline empty.

    The weights are those that worker processes get, one for each part, bit for bit.
    """
    _flow(stages, feed, stale=True)


def run_synchronously(stages: Sequence[Stage], feed: Feed, micro_batches: int) -> None:
    """As training without a pipeline: each batch in so many parts, and the weights moved when all are back.

    In fixed point its weights are the same bit for bit, in float32 but for the order of sums. Batch norms see
    micro-batches.
    """
    for number in range(len(feed)):
        _flow(stages, feed.divided(number, micro_batches), stale=False)
        for stage in stages:
            stage.update()


def _flow(stages: Sequence[Stage], feed: Feed, *, stale: bool) -> None:
    """All batches forward and back; ``stale``: weights move with each that comes back."""
    schedule = Schedule(len(stages))
    results: dict[int, Tensor] = {}
    gradients: dict[int, Tensor | None] = {}
    for cycle in range(schedule.cycles(len(feed))):
        given, returned = results, gradients
        results, gradients = {}, {}
        for number, stage in enumerate(stages):
            ahead, back = schedule.forward(number, cycle), schedule.backward(number, cycle)
            if 0 <= ahead < len(feed):
                results[number] = stage.forward(given[number - 1] if number else stage.loaded(feed.images, ahead))
            if 0 <= back < len(feed):
                second = stage.loaded(feed.labels, back) if stage.last else returned[number + 1]
                assert second is not None, "only images have no gradient"
                gradients[number] = stage.backward(second)
                if stale:
                    stage.update()
