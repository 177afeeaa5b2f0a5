"""Which kernels run side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Turn:
    """When a kernel runs: in order in its queue, and after kernels in other queues."""

    queue: int = 0
    after: tuple[int, ...] = ()


def turns(kernels: Sequence[tuple[Sequence[str], str]]) -> list[Turn]:
    """A queue for each chain of kernels, of which one waits for the other.

    Parameters
    ----------
    kernels : sequence of (names, name)
        The buffers that each kernel reads, and the one that it alone writes, in an order in which they can run.
    """
    writers: dict[str, int] = {}
    last: list[int] = []  # of each queue
    found: list[Turn] = []
    for number, (reads, written) in enumerate(kernels):
        assert written not in writers, f"{written} has two writers, and a reader cannot wait for both"
        needed = sorted({writers[name] for name in reads if name in writers})
        ends = [queue for queue, end in enumerate(last) if end in needed]
        queue = ends[-1] if ends else len(last)
        if not ends:
            last.append(number)
        last[queue] = number
        found.append(Turn(queue, tuple(before for before in needed if found[before].queue != queue)))
        writers[written] = number
    return found
