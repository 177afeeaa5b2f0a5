"""What the parts of a pipeline do when, and a trace of it that Perfetto opens."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

FORWARD, BACKWARD, UPDATE = "forward", "backward", "update"
WAIT = "wait"  #: for another part
COPY = "copy"  #: of messages, and of the state that all get between stretches
LOAD = "load"  #: images and labels of a batch
TOLD = {"computing": (FORWARD, BACKWARD, UPDATE), "waiting": (WAIT,), "copying": (COPY,), "loading": (LOAD,)}
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
        Nanoseconds by what was done, in the epoch under way.
    epochs : dict of Counter
        The same of each epoch that is done, by its number.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.spent: Counter[str] = Counter()
        self.epochs: dict[int, Counter[str]] = {}

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

    def typical(self) -> float:
        """Nanoseconds of a batch: the median of each thing that is done once for it, but waiting and copying."""
        taken: dict[str, list[int]] = {}
        for span in self.spans:
            if span.what not in (WAIT, COPY):
                taken.setdefault(span.what, []).append(span.ended - span.begun)
        return sum(median(times) for times in taken.values())

    def end_epoch(self, number: int) -> None:
        """Count anew from here on."""
        self.epochs[number], self.spent = self.spent, Counter()


def shares(spent: Counter[str]) -> dict[str, float]:
    """The parts of the time, 0..1, by what people are told."""
    whole = max(1, spent.total())
    return {told: sum(spent[what] for what in kinds) / whole for told, kinds in TOLD.items()}


def told(parts: Sequence[Timeline], epoch: int) -> str:
    """A line about an epoch that is done."""
    lines = (", ".join(f"{what} {share:.0%}" for what, share in shares(part.epochs[epoch]).items()) for part in parts)
    return f"epoch {epoch}: " + "; ".join(f"part {number} {line}" for number, line in enumerate(lines))


def trace(parts: Sequence[Timeline]) -> str:
    """A line for each part, in the JSON of Chrome's trace event format; times from the first span on.

    ``otherData`` has the seconds that each part has spent in each epoch, by what was done.
    """
    zero = min((part.spans[0].begun for part in parts if part.spans), default=0)
    names = [{"ph": "M", "name": "thread_name", "pid": 0, "tid": number, "args": {"name": f"part {number}"}}
             for number in range(len(parts))]
    events = [{"ph": "X", "name": span.what, "pid": 0, "tid": number, "ts": (span.begun - zero) / 1000,
               "dur": (span.ended - span.begun) / 1000} for number, part in enumerate(parts) for span in part.spans]
    spent = {f"part {number}": {f"epoch {epoch}": {what: took / 1e9 for what, took in spent.items()}
                                for epoch, spent in part.epochs.items()} for number, part in enumerate(parts)}
    return json.dumps({"traceEvents": [*names, *events], "displayTimeUnit": "ms", "otherData": spent})
