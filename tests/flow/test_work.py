"""What a training cost, held against the steps that it took."""

from __future__ import annotations

import pytest
import torch
from bench.training import few, tiny

from espalier.compress.cgap import Growth, Shedding, Structure, Times
from espalier.flow.work import layer_work, training_macs
from espalier.train.config import Quantise, TrainConfig
from espalier.train.loop import train
from espalier.train.step import TrainingStep

CONVOLUTION = 22 ** 2  #: useful MACs of a unit: 3 taps over 8 pixels, at the border 2, along each axis
LINEAR = 16 * 10       #: a pooled unit has 16 pixels


@pytest.mark.parametrize("quantise", [None, Quantise(probe_steps=2, start=4)])
@pytest.mark.parametrize("structure", [
    Structure(0.5, Growth(Times(1, 2)), Shedding(Times(3, 3), 0.4), looks=3),
    Structure(shedding=Shedding(Times(2, 3), 0.4)), Structure(0.5)])
def test_each_step_costs_what_its_widths_cost(monkeypatch: pytest.MonkeyPatch, structure: Structure,
                                              quantise: Quantise | None) -> None:
    """Where widths change between epochs, training MACs are those of every step and look, counted as they are taken."""
    units: list[int] = []
    call, values = TrainingStep.__call__, TrainingStep.values

    def stepped(self: TrainingStep, index: torch.Tensor, moves: torch.Tensor | None = None) -> None:
        units.append(len(self.optimiser.weights["conv.w"]))
        call(self, index, moves)

    def looked(self: TrainingStep, index: torch.Tensor | None = None, moves: torch.Tensor | None = None
               ) -> dict[str, torch.Tensor]:
        if index is not None:
            units.append(len(self.optimiser.weights["conv.w"]))
        return values(self, index, moves)

    config = TrainConfig(epochs=5, batch=50, quantise=quantise, structure=structure)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", stepped)
        patch.setattr(TrainingStep, "values", looked)
        found = train(config, few(), *tiny())
    probed = 0 if quantise is None else quantise.probe_steps + 1  # not counted, after the last change of widths
    taken = sum(units) - probed * units[-1]
    assert len(set(units)) == 1 or structure.times
    assert training_macs(found, layer_work(found), 300) == 50 * taken * (2 * CONVOLUTION + 3 * LINEAR)
