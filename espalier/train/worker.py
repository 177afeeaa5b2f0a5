"""One part of a pipeline in a process of its own, by ``torch.distributed``: equal to ``pipeline.run`` bit for bit.

Rank k is part k. What a part waits for is on its way while it computes: the next result and the next gradient are asked
for before the ones at hand are worked on, and what it sends leaves behind its back.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor

from espalier.ir.types import Fixed, Value
from espalier.train.crew import talking_to
from espalier.train.pipeline import Feed, Schedule
from espalier.train.stage import Stage
from espalier.train.timeline import WAIT

RESULT, GRADIENT = 0, 1  #: tags of messages


class _Inbox:
    """Messages about ``value`` from one rank, the next asked for ahead."""

    def __init__(self, source: int, tag: int, value: Value, sizes: Sequence[int]) -> None:
        self.source, self.tag, self.value, self.sizes = source, tag, value, list(sizes)
        self._ask()

    def take(self) -> Tensor:
        found, request = self.buffer, self.request
        assert request is not None, "no more messages than batches"
        with talking_to(f"Part {self.source}"):
            request.wait()
        self._ask()
        return found

    def _ask(self) -> None:
        self.request: dist.Work | None = None
        if self.sizes:
            self.buffer = torch.empty(self.sizes.pop(0), prod(self.value.shape), dtype=_wire(self.value))
            with talking_to(f"Part {self.source}"):
                self.request = dist.irecv(self.buffer.view(torch.uint8), self.source, tag=self.tag)


class _Outbox:
    """Messages about ``value`` to one rank, one on its way at a time."""

    def __init__(self, target: int, tag: int, value: Value) -> None:
        self.target, self.tag, self.value = target, tag, value
        self.request: dist.Work | None = None

    def put(self, words: Tensor) -> None:
        self.close()
        self.sent = words.flatten(1).to(_wire(self.value)).contiguous()
        with talking_to(f"Part {self.target}"):
            self.request = dist.isend(self.sent.view(torch.uint8), self.target, tag=self.tag)

    def close(self) -> None:
        if self.request is not None:
            with talking_to(f"Part {self.target}"):
                self.request.wait()
            self.request = None


def take_part(stage: Stage, feed: Feed) -> None:
    """Train this rank's part on whole batches with stale weights, and run the pipeline empty.

    The process group is there, with as many ranks as the pipeline has parts. Raises WorkerError if another rank is gone
    or does not answer within the group's timeout.
    """
    _flow(stage, feed, stale=True)


def take_part_synchronously(stage: Stage, feed: Feed, micro_batches: int) -> None:
    """As :func:`take_part`, and as :func:`espalier.train.pipeline.run_synchronously` does."""
    for number in range(len(feed)):
        _flow(stage, feed.divided(number, micro_batches), stale=False)
        stage.update()


def _flow(stage: Stage, feed: Feed, *, stale: bool) -> None:
    number, schedule = dist.get_rank(), Schedule(dist.get_world_size())
    sizes, first = [feed.size(batch) for batch in range(len(feed))], number == 0
    came = None if first else _Inbox(number - 1, RESULT, stage.image, sizes)
    returned = None if stage.last else _Inbox(number + 1, GRADIENT, stage.second, sizes)
    on = None if stage.last else _Outbox(number + 1, RESULT, stage.result)
    back = None if first else _Outbox(number - 1, GRADIENT, stage.image)
    waiting = stage.timeline.span
    for cycle in range(schedule.cycles(len(feed))):
        ahead, behind = schedule.forward(number, cycle), schedule.backward(number, cycle)
        if 0 <= ahead < len(feed):
            with waiting(WAIT):
                x = feed.images(ahead) if came is None else came.take()
            result = stage.forward(x)
            if on is not None:
                with waiting(WAIT):
                    on.put(result)
        if 0 <= behind < len(feed):
            with waiting(WAIT):
                second = feed.labels(behind) if returned is None else returned.take()
            gradient = stage.backward(second)
            if back is not None:
                assert gradient is not None, "of what came from the part before"
                with waiting(WAIT):
                    back.put(gradient)
            if stale:
                stage.update()
    for box in (on, back):
        if box is not None:
            box.close()


def _wire(value: Value) -> torch.dtype:
    """How words or numbers travel."""
    return torch.int16 if isinstance(value.format, Fixed) else torch.float32
