"""What parts are said to have done, against spans that a person can add up."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from espalier.train.timeline import (
    BACKWARD,
    COPY,
    FORWARD,
    KEPT,
    LOAD,
    UPDATE,
    WAIT,
    Span,
    Timeline,
    shares,
    told,
    trace,
)

SPENT = Counter({FORWARD: 20, BACKWARD: 30, UPDATE: 10, WAIT: 25, COPY: 10, LOAD: 5})


def test_shares_are_told_apart() -> None:
    assert shares(SPENT) == {"computing": 0.6, "waiting": 0.25, "copying": 0.1, "loading": 0.05}
    assert set(shares(Counter()).values()) == {0.0}


def test_a_typical_batch_is_made_of_medians() -> None:
    """Of what is done once for each, and not of what a process of all parts would not do."""
    part = Timeline()
    assert part.typical() == 0
    part.spans = [Span(what, begun, begun + took) for what, begun, took in (
        (FORWARD, 0, 20), (WAIT, 20, 500), (BACKWARD, 520, 30), (FORWARD, 550, 22), (COPY, 572, 9), (BACKWARD, 581, 90),
        (FORWARD, 671, 400), (BACKWARD, 1071, 34), (UPDATE, 1105, 5))]
    assert part.typical() == 22 + 34 + 5


def test_each_epoch_counts_for_itself() -> None:
    part = Timeline()
    part.spent = SPENT.copy()
    part.end_epoch(1)
    assert not part.spent
    part.spent[WAIT] += 7
    part.end_epoch(2)
    assert told([part, part], 1) == ("epoch 1: part 0 computing 60%, waiting 25%, copying 10%, loading 5%; "
                                     "part 1 computing 60%, waiting 25%, copying 10%, loading 5%")
    assert told([part], 2) == "epoch 2: part 0 computing 0%, waiting 100%, copying 0%, loading 0%"


def test_a_trace_begins_with_the_first_span() -> None:
    first, second = Timeline(), Timeline()
    first.spans, second.spans = [Span(FORWARD, 5000, 7000)], [Span(WAIT, 4000, 7500)]
    first.spent = Counter({FORWARD: 2_000_000_000})
    first.end_epoch(3)
    found = json.loads(trace([first, second]))
    assert [(event["name"], event["ts"], event["dur"]) for event in found["traceEvents"] if event["ph"] == "X"] == [
        (FORWARD, 1.0, 2.0), (WAIT, 0.0, 3.5)]
    assert found["otherData"] == {"part 0": {"epoch 3": {FORWARD: 2.0}}, "part 1": {}}


def test_what_fails_is_timed_and_what_is_kept_ends() -> None:
    part = Timeline()
    with pytest.raises(ZeroDivisionError), part.span(LOAD):
        raise ZeroDivisionError
    for _ in range(KEPT + 1):
        with part.span(WAIT):
            pass
    assert part.spans[0].what == LOAD and len(part.spans) == KEPT and set(part.spent) == {LOAD, WAIT}
