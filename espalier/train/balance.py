"""Where to cut a network so that the parts of a pipeline take equally long."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from math import prod

import torch

from espalier.data import Dataset
from espalier.errors import UnsupportedError
from espalier.ir.types import Fixed
from espalier.train.checkpoint import Checkpoint
from espalier.train.crew import ALONE, Crew
from espalier.train.device_data import DeviceData
from espalier.train.optimise import Optimiser
from espalier.train.pipelined import PipelinedSteps
from espalier.train.pipelining import Pipeline, candidates

LINK = 1e9   #: bytes a second that one process gives another on the same machine, roughly
BATCHES = 10  #: that are timed
WARM_UP = 10  #: batches before
TRIALS = 3   #: of cuts into parts that are timed as wholes, before single segments move


def even_cuts(start: Checkpoint, data: Dataset, crew: Crew) -> tuple[str, ...]:
    """The cuts with which the parts of ``start``'s pipeline take equally long here, as far as that can be.

    The first process of the crew times the segments, one after the other. Parts are timed as they will run, each in its
    process while the others are at work: they share memory and caches. All processes call this together, and find the
    same. Nothing of ``start`` changes.

    How long exact sums take depends on how large words are, and gradients of the first batches are small: all is timed
    behind some batches.
    """
    told = start.config.pipeline
    assert told is not None, "the run is one of a pipeline"
    if told.parts == 1:
        return ()
    start = further(start, data)
    values = candidates(start.graph, folds=start.config.quantise is not None)
    crossing = [prod(value.shape) * (2 if isinstance(value.format, Fixed) else 4) * start.config.batch / LINK
                for value in values]

    def seconds(cuts: tuple[int, ...]) -> list[float]:
        names = [values[number].name for number in cuts]
        if len(cuts) + 1 == crew.size:
            return part_seconds(start, data, names, crew)
        return crew.gather([] if crew.rank else part_seconds(start, data, names))[0]

    return tuple(values[number].name for number in settled_cuts(seconds, crossing, told.parts))


def further(start: Checkpoint, data: Dataset, batches: int = WARM_UP) -> Checkpoint:
    """``start`` after so many batches more."""
    steps, optimiser = _steps(start, data, (), ALONE)
    places = torch.arange(batches * start.config.batch, device=start.config.device).remainder(len(data))
    steps(places.split(start.config.batch), None, start.config.sgd, stale=False)
    return replace(start, state=optimiser.state())


def part_seconds(start: Checkpoint, data: Dataset, cuts: Sequence[str], crew: Crew = ALONE) -> list[float]:
    """What each part between ``cuts`` takes for a batch, forward and back and with its update.

    By the medians of some batches; in this process, or each part in its process of a ``crew``.
    """
    steps, _ = _steps(start, data, cuts, crew)
    for count in (1, BATCHES):  # the first for caches
        for timeline in steps.timelines:
            timeline.spans.clear()
        batch = torch.arange(start.config.batch, device=start.config.device)
        steps([batch] * count, None, start.config.sgd, stale=not crew.alone)
    own = [timeline.typical() / 1e9 for timeline in steps.timelines]
    return own if crew.alone else [seconds for part in crew.gather(own) for seconds in part]


def _steps(start: Checkpoint, data: Dataset, cuts: Sequence[str], crew: Crew) -> tuple[PipelinedSteps, Optimiser]:
    """Stretches of training of ``start``'s network, cut in parts, and the whole's optimiser."""
    config, device = start.config, start.config.device
    optimiser = Optimiser(start.graph.learned(), start.gradient_formats, start.update, config.batch, device,
                          start.frozen, start.graph.statistics())
    optimiser.set(config.sgd)
    optimiser.load(start.state)
    loaded = DeviceData(data, start.graph.inputs[0].format, device)
    tally = torch.zeros(2, dtype=torch.float64, device=device)
    return PipelinedSteps(Pipeline(micro_batches=1).with_cuts(cuts), start, optimiser, loaded, crew, tally), optimiser


def settled_cuts(seconds: Callable[[tuple[int, ...]], Sequence[float]], crossing: Sequence[float], parts: int
                 ) -> tuple[int, ...]:
    """The cut points of :func:`balanced_cuts`, moved where parts timed as wholes are more even for it.

    Layers take another time alone than behind others. So the segments of a part are scaled to what it takes as a whole,
    and cut anew, until nothing moves or TRIALS cuts were tried. From the best of them, one segment after the other
    leaves the slowest part for one beside it, as long as that helps.

    Parameters
    ----------
    seconds : callable
        From cut points, by number, to what each part between them takes.
    crossing, parts
        As of :func:`balanced_cuts`.
    """
    tried: dict[tuple[int, ...], list[float]] = {}

    def taken(cuts: tuple[int, ...]) -> list[float]:
        wholes, costs = seconds(cuts), [0.0, *(crossing[cut] for cut in cuts), 0.0]
        tried[cuts] = [whole + sum(beside) for whole, beside in zip(wholes, pairwise(costs), strict=True)]
        return [*wholes]

    def best() -> tuple[int, ...]:
        return min(tried, key=lambda cuts: max(tried[cuts]))

    segments = seconds(tuple(range(len(crossing))))
    cuts = balanced_cuts(segments, crossing, parts)
    while cuts not in tried and len(tried) < TRIALS:
        segments = _scaled(segments, cuts, taken(cuts))
        cuts = balanced_cuts(segments, crossing, parts)
    found = None
    while found != best():
        found = best()
        slowest = tried[found].index(max(tried[found]))
        for cuts in [cuts for cuts in _relieved(found, slowest, len(crossing)) if cuts not in tried]:
            taken(cuts)
    return found


def _scaled(segments: Sequence[float], cuts: Sequence[int], wholes: Sequence[float]) -> list[float]:
    """The segments, so that those of each part between ``cuts`` take as long as it does as a whole."""
    scaled: list[float] = []
    for (first, last), whole in zip(pairwise((0, *(cut + 1 for cut in cuts), len(segments))), wholes, strict=True):
        scaled += [seconds * whole / sum(segments[first:last]) for seconds in segments[first:last]]
    return scaled


def _relieved(cuts: tuple[int, ...], part: int, end: int) -> Iterator[tuple[int, ...]]:
    """The cuts with one segment less in a part, which the one before or behind it has."""
    first, last = (-1, *cuts, end)[part: part + 2]
    if last - first > 1:
        if part:
            yield *cuts[:part - 1], first + 1, *cuts[part:]
        if last < end:
            yield *cuts[:part], last - 1, *cuts[part + 1:]


def balanced_cuts(seconds: Sequence[float], crossing: Sequence[float], parts: int) -> tuple[int, ...]:
    """The cut points, by number, between which the slowest of so many parts is the fastest possible.

    Of equal ones, those that come first. By dynamic programming over the segments.

    Parameters
    ----------
    seconds : sequence of float
        What each segment of the network takes, forward and back; segments lie between neighbouring cut points.
    crossing : sequence of float
        What each cut costs either of its parts, in seconds; one fewer than segments.
    parts : int

    Raises
    ------
    UnsupportedError
        There are fewer segments than parts.
    """
    count = len(seconds)
    assert len(crossing) == count - 1, "cut points lie between segments"
    if not 1 <= parts <= count:
        raise UnsupportedError(f"This network is cut in 1..{count} parts, not {parts}")

    def part(first: int, last: int) -> float:
        return (sum(seconds[first:last]) + (crossing[first - 1] if first else 0.0)
                + (crossing[last - 1] if last < count else 0.0))

    @cache
    def best(first: int, left: int) -> tuple[float, tuple[int, ...]]:
        """The slowest of ``left`` parts from segment ``first`` on, and their cuts."""
        if left == 1:
            return part(first, count), ()
        found = []
        for last in range(first + 1, count - left + 2):
            slowest, cuts = best(last, left - 1)
            found.append((max(part(first, last), slowest), (last - 1, *cuts)))
        return min(found)

    return best(0, parts)[1]
