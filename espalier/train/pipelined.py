"""Stretches of training steps through a pipeline, on the state of one optimiser: in one process, or one for each part.

Between stretches every process has the whole state, so that what decides on live weights, widths and records sees a
network as ever.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from espalier.ir.cut import split
from espalier.ir.differentiate import differentiate_parts
from espalier.train import pipeline, worker
from espalier.train.checkpoint import Checkpoint
from espalier.train.crew import Crew
from espalier.train.device_data import DataFeed, DeviceData
from espalier.train.mailbox import Rings
from espalier.train.optimise import Optimiser, Sgd, state_names
from espalier.train.pipelining import Pipeline, Scheme
from espalier.train.stage import Stage
from espalier.train.timeline import COPY, WAIT, Timeline


class PipelinedSteps:
    """Trains the network of ``start`` through a pipeline.

    Parameters
    ----------
    told : Pipeline
        With cuts.
    start : Checkpoint
        Its network, formats and recipe.
    optimiser : Optimiser
        The whole network's; stretches begin and end with its state.
    data : DeviceData
    crew : Crew
    tally : Tensor
        Loss and images recognised are added to it, as :class:`espalier.train.step.TrainingStep` does.
    """

    def __init__(self, told: Pipeline, start: Checkpoint, optimiser: Optimiser, data: DeviceData, crew: Crew,
                 tally: Tensor) -> None:
        self.told, self.optimiser, self.data, self.crew, self.tally = told, optimiser, data, crew, tally
        self.parts = split(start.graph, told.cuts)
        steps = differentiate_parts(self.parts, start.config.loss, start.gradient_formats, start.frozen)
        schedule, config = pipeline.Schedule(len(self.parts)), start.config
        numbers = range(len(self.parts)) if crew.alone else [crew.rank]
        self.stages = [Stage(steps[number], Optimiser(
            self.parts[number].learned(), start.gradient_formats, start.update, config.batch, config.device,
            start.frozen, self.parts[number].statistics(),
            delay=schedule.delay(number) if told.scheme is Scheme.COMPENSATED else 0)) for number in numbers]
        self.rings = Rings() if crew.alone else Rings.between(crew, self.stages[0], config.batch)

    @property
    def timelines(self) -> list[Timeline]:
        """Of the parts that this process plays."""
        return [stage.timeline for stage in self.stages]

    def __call__(self, index: Sequence[Tensor], moves: Sequence[Tensor] | None, sgd: Sgd, *, stale: bool) -> None:
        """Train on the images at each of ``index`` (batch,) and run the pipeline empty."""
        feed = DataFeed(self.data, index, moves, native=self.stages[0].native is not None)
        for stage in self.stages:
            stage.optimiser.set(sgd)
            stage.optimiser.take_over(self.optimiser)
        if self.crew.alone:
            if stale:
                pipeline.run(self.stages, feed)
            else:
                pipeline.run_synchronously(self.stages, feed, self.told.micro_batches)
        elif stale:
            worker.take_part(self.stages[0], feed, self.rings)
        else:
            worker.take_part_synchronously(self.stages[0], feed, self.told.micro_batches, self.rings)
        timeline = self.stages[0].timeline
        with timeline.span(WAIT):
            self.crew.meet()
        with timeline.span(COPY):
            self._collect()

    def _collect(self) -> None:
        """Give all processes the state of all parts."""
        for stage in self.stages:
            self.optimiser.take_over(stage.optimiser)
        moved = [self.optimiser.part(role) for role in state_names("", self.optimiser.update) if role != "live"]
        for number, part in enumerate(self.parts):
            for tensors in moved:
                for value in part.learned():
                    if value.name in tensors:  # scalars have no masters
                        self.crew.spread(tensors[value.name], number)
            for value in part.statistics():
                self.crew.spread(self.optimiser.statistics[value.name], number)
        last = self.stages[-1].tally
        self.crew.spread(last, len(self.parts) - 1)
        self.tally += last
        last.zero_()
