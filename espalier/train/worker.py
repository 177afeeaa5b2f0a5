"""One part of a pipeline in a process of its own, by ``torch.distributed``: equal to ``pipeline.run`` bit for bit.

Rank k is part k. What a part waits for is on its way while it computes: the next result and the next gradient are asked
for before the ones at hand are worked on, and what it sends leaves behind its back.
"""

from __future__ import annotations

import torch.distributed as dist

from espalier.train.mailbox import GRADIENT, RESULT, Inbox, Outbox, Rings
from espalier.train.pipeline import Feed, Schedule
from espalier.train.stage import Stage

NO_RINGS = Rings()


def take_part(stage: Stage, feed: Feed, rings: Rings = NO_RINGS) -> None:
    """Train this rank's part on whole batches with stale weights, and run the pipeline empty.

    The process group is there, with as many ranks as the pipeline has parts. Raises WorkerError if another rank is gone
    or does not answer within the group's timeout.
    """
    _flow(stage, feed, rings, stale=True)


def take_part_synchronously(stage: Stage, feed: Feed, micro_batches: int, rings: Rings = NO_RINGS) -> None:
    """As :func:`take_part`, and as :func:`espalier.train.pipeline.run_synchronously` does."""
    for number in range(len(feed)):
        _flow(stage, feed.divided(number, micro_batches), rings, stale=False)
        stage.update()


def _flow(stage: Stage, feed: Feed, rings: Rings, *, stale: bool) -> None:
    number, schedule = dist.get_rank(), Schedule(dist.get_world_size())
    sizes, first = [feed.size(batch) for batch in range(len(feed))], number == 0
    came = None if first else Inbox(number - 1, RESULT, stage.image, sizes, rings.came, stage.timeline)
    returned = None if stage.last else Inbox(number + 1, GRADIENT, stage.second, sizes, rings.returned, stage.timeline)
    on = None if stage.last else Outbox(number + 1, RESULT, stage.result, rings.on, stage.timeline)
    back = None if first else Outbox(number - 1, GRADIENT, stage.image, rings.back, stage.timeline)
    for cycle in range(schedule.cycles(len(feed))):
        ahead, behind = schedule.forward(number, cycle), schedule.backward(number, cycle)
        if 0 <= ahead < len(feed):
            result = stage.forward(stage.loaded(feed.images, ahead) if came is None else came.take())
            if on is not None:
                on.put(result)
        if 0 <= behind < len(feed):
            gradient = stage.backward(stage.loaded(feed.labels, behind) if returned is None else returned.take())
            if back is not None:
                assert gradient is not None, "of what came from the part before"
                back.put(gradient)
            if stale:
                stage.update()
    for box in (on, back):
        if box is not None:
            box.close()
