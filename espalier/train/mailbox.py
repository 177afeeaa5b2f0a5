"""Messages between neighbouring parts of a pipeline: through memory that both share, or through the process group."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from espalier.ir.types import Fixed, Value
from espalier.train.crew import Crew, talking_to
from espalier.train.stage import Stage
from espalier.train.timeline import COPY, WAIT, Timeline

RESULT, GRADIENT = 0, 1  #: tags of messages
SLOTS = 4                #: messages in a ring
SHARED = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Rings:
    """Memory for the messages that come and go, each (SLOTS, images, elements), where the neighbour maps it, too.

    A part cannot be more than three messages ahead of the one that reads them, because it waits for what that one
    sends back: SLOTS suffice, and nobody has to say that a slot is free.
    """

    came: Tensor | None = None      #: results of the part before
    returned: Tensor | None = None  #: gradients of the part after
    on: Tensor | None = None        #: results to the part after
    back: Tensor | None = None      #: gradients to the part before

    @classmethod
    def between(cls, crew: Crew, stage: Stage, images: int) -> Rings:
        """Of all processes of a crew, which call this together, for batches of so many images."""
        first, last = crew.rank == 0, crew.rank == crew.size - 1
        on = None if last else _Room.new(stage.result, images)
        back = None if first else _Room.new(stage.image, images)
        try:
            known = crew.gather((None if on is None else on.path, None if back is None else back.path))
            came = None if first else _opened(known[crew.rank - 1][0], stage.image, images)
            returned = None if last else _opened(known[crew.rank + 1][1], stage.second, images)
            theirs = crew.gather((came is not None, returned is not None))  # all have looked
        finally:
            for room in (on, back):
                if room is not None:
                    os.unlink(room.path)
        return cls(came, returned, on.words if on is not None and theirs[crew.rank + 1][0] else None,
                   back.words if back is not None and theirs[crew.rank - 1][1] else None)


@dataclass(frozen=True, slots=True)
class _Room:
    path: str
    words: Tensor

    @classmethod
    def new(cls, value: Value, images: int) -> _Room | None:
        """None where there is no room for it."""
        handle, path = tempfile.mkstemp(prefix="espalier-", dir=SHARED if SHARED.is_dir() else None)
        try:
            os.posix_fallocate(handle, 0, _bytes(value, images))
        except OSError:
            os.unlink(path)
            return None
        finally:
            os.close(handle)
        return cls(path, _mapped(path, value, images))


def _opened(path: str | None, value: Value, images: int) -> Tensor | None:
    """The memory at ``path``, if that is on this machine."""
    if path is None or not os.path.exists(path) or os.path.getsize(path) != _bytes(value, images):
        return None
    return _mapped(path, value, images)


def _mapped(path: str, value: Value, images: int) -> Tensor:
    count = SLOTS * images * prod(value.shape)
    return torch.from_file(path, shared=True, size=count, dtype=_wire(value)).view(SLOTS, images, prod(value.shape))


def _bytes(value: Value, images: int) -> int:
    return SLOTS * images * prod(value.shape) * _wire(value).itemsize


def _wire(value: Value) -> torch.dtype:
    """How words or numbers travel."""
    return torch.int16 if isinstance(value.format, Fixed) else torch.float32


class Inbox:
    """Messages about ``value`` from one rank, of so many images each, the next asked for ahead.

    Where they come through a ring, the process group carries the news that they are there. ``timeline`` gets the times
    of waiting and of copying.
    """

    def __init__(self, source: int, tag: int, value: Value, sizes: Sequence[int], ring: Tensor | None,
                 timeline: Timeline) -> None:
        self.source, self.tag, self.value, self.sizes, self.ring, self.count = source, tag, value, list(sizes), ring, 0
        self.timeline = timeline
        self._ask()

    def take(self) -> Tensor:
        """The next message, (images, elements); it is the caller's own."""
        found, size, request = self.buffer, self.size, self.request
        assert request is not None, "no more messages than batches"
        with self.timeline.span(WAIT), talking_to(f"Part {self.source}"):
            request.wait()
        with self.timeline.span(COPY):
            if self.ring is not None:
                found = self.ring[self.count % SLOTS, :size].clone()
            self.count += 1
            self._ask()
        return found

    def _ask(self) -> None:
        self.request: dist.Work | None = None
        if self.sizes:
            self.size = self.sizes.pop(0)
            self.buffer = (torch.empty(self.size, prod(self.value.shape), dtype=_wire(self.value))
                           if self.ring is None else torch.empty(1, dtype=torch.uint8))
            with talking_to(f"Part {self.source}"):
                self.request = dist.irecv(self.buffer.view(torch.uint8), self.source, tag=self.tag)


class Outbox:
    """Messages about ``value`` to one rank, one on its way at a time; ``timeline`` as in :class:`Inbox`."""

    def __init__(self, target: int, tag: int, value: Value, ring: Tensor | None, timeline: Timeline) -> None:
        self.target, self.tag, self.value, self.ring, self.count = target, tag, value, ring, 0
        self.timeline = timeline
        self.request: dist.Work | None = None

    def put(self, words: Tensor) -> None:
        """Send (images, ...) words or numbers."""
        self.close()
        with self.timeline.span(COPY), talking_to(f"Part {self.target}"):
            if self.ring is None:
                self.sent = words.flatten(1).to(_wire(self.value)).contiguous()
            else:
                self.ring[self.count % SLOTS, :len(words)] = words.flatten(1)
                self.sent = torch.zeros(1, dtype=torch.uint8)
            self.count += 1
            self.request = dist.isend(self.sent.view(torch.uint8), self.target, tag=self.tag)

    def close(self) -> None:
        """Wait until the last message has left."""
        if self.request is not None:
            with self.timeline.span(WAIT), talking_to(f"Part {self.target}"):
                self.request.wait()
            self.request = None
