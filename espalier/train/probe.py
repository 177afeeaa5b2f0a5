"""A short float training, thrown away, to see how large every tensor grows."""

from __future__ import annotations

import numpy as np
import torch

from espalier.data import Dataset, batches
from espalier.ir.differentiate import differentiate
from espalier.train.checkpoint import Checkpoint
from espalier.train.device_data import DeviceData
from espalier.train.optimise import Optimiser, Update
from espalier.train.ranges import Ranges, merged, of_step
from espalier.train.step import TrainingStep

LOOKS = 10  #: how often ranges are observed


def probe(start: Checkpoint, dataset: Dataset) -> Ranges:
    """The ranges of the float training graph over ``quantise.probe_steps`` steps of the run to come from ``start``."""
    config, graph, epoch = start.config, start.graph, start.position.epoch
    assert config.quantise is not None, "only a run in fixed point needs ranges"
    steps = config.quantise.probe_steps
    optimiser = Optimiser(graph.learned(), {}, Update.FLOAT, config.batch, config.device,
                          statistics=graph.statistics())
    optimiser.load(start.state)
    optimiser.set(config.sgd_of(epoch))
    data = DeviceData(dataset, graph.inputs[0].format, config.device)
    step = TrainingStep(differentiate(graph, config.loss, frozen=start.frozen), optimiser, data)
    order = np.concatenate([*batches(dataset, config.batch, config.seed, epoch, drop_last=True)])
    ranges: Ranges = {}
    for number in range(steps + 1):
        first = number * config.batch % len(order)
        step(torch.from_numpy(order[first: first + config.batch]).to(config.device))
        if number % max(1, steps // LOOKS) == 0 or number == steps:
            ranges = merged(ranges, of_step(step.graph, step.values()))
    return ranges
