"""What the parts of a pipeline do when, and a trace of it that Perfetto opens."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

WAIT = "wait"  #: for another part
KEPT = 20_000  #: spans


@dataclass(frozen=True, slots=True)
class Span:
    """One thing done, in nanoseconds of a clock that the processes of a machine share."""

    what: str
    begun: int
    ended: int


class Timeline:
    """Spans of one part, one after the other.

    Members
    -------
    spans : list of Span
        The first KEPT.
    spent : Counter
        Nanoseconds by what was done.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.spent: Counter[str] = Counter()

    @contextmanager
    def span(self, what: str) -> Iterator[None]:
        """Time what is done within."""
        begun = time.perf_counter_ns()
        try:
            yield
        finally:
            ended = time.perf_counter_ns()
            self.spent[what] += ended - begun
            if len(self.spans) < KEPT:
                self.spans.append(Span(what, begun, ended))

    def busy(self) -> int:
        """Nanoseconds spent, but for those of waiting."""
        return sum(self.spent.values()) - self.spent[WAIT]

    def idle(self) -> float:
        """The part of the time so far, 0..1, that was spent waiting."""
        return self.spent[WAIT] / max(1, sum(self.spent.values()))


def trace(parts: Sequence[Timeline]) -> str:
    """A line for each part, in the JSON of Chrome's trace event format; times from the first span on.

    ``otherData`` has the seconds that each part has spent in all, by what was done.
    """
    zero = min((part.spans[0].begun for part in parts if part.spans), default=0)
    names = [{"ph": "M", "name": "thread_name", "pid": 0, "tid": number, "args": {"name": f"part {number}"}}
             for number in range(len(parts))]
    events = [{"ph": "X", "name": span.what, "pid": 0, "tid": number, "ts": (span.begun - zero) / 1000,
               "dur": (span.ended - span.begun) / 1000} for number, part in enumerate(parts) for span in part.spans]
    spent = {f"part {number}": {what: took / 1e9 for what, took in part.spent.items()}
             for number, part in enumerate(parts)}
    return json.dumps({"traceEvents": [*names, *events], "displayTimeUnit": "ms", "otherData": spent})
