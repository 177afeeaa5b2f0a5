"""Newborn units learn, and not what their parents learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bench.training import digits, tiny

from espalier.compress.cgap import Growth, Structure, Times
from espalier.compress.growth import Birth
from espalier.data import normalise
from espalier.ir.differentiate import differentiate
from espalier.train.checkpoint import Checkpoint
from espalier.train.config import TrainConfig
from espalier.train.evaluate import run
from espalier.train.loop import CHECKPOINT, train
from espalier.train.structure import changed, named_size

PARENTS = np.array([0, 1])
BEFORE = TrainConfig(epochs=1, batch=32, quantise=None, structure=Structure(0.5))


def filter_gradients(found: Checkpoint) -> np.ndarray:
    """(units, values) over 500 training images."""
    step = differentiate(found.graph, found.config.loss, {})
    image, labels = step.inputs
    values = run(step, {**{name: torch.from_numpy(array) for name, array in found.weights.items()},
                        image.name: torch.from_numpy(normalise(digits().train.images[:500])),
                        labels.name: torch.from_numpy(digits().train.labels[:500])})
    return values["conv.w.grad"].numpy().reshape(5, -1).astype(np.float64)


def kinship(found: Checkpoint) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of the gradients of children and parents, and the length of the former over the latter."""
    gradients = filter_gradients(found)
    parents, children = gradients[PARENTS], gradients[3:]
    lengths, whole = np.linalg.norm(children, axis=1), np.linalg.norm(parents, axis=1)
    return (parents * children).sum(axis=1) / (lengths * whole), lengths / whole


@pytest.mark.parametrize("birth", [Birth(), Birth(spread=0.4)])
def test_gradients_of_newborn_units(birth: Birth, tmp_path: Path) -> None:
    """Units that share alike start along with their parents and part; those that do not, differ from the start."""
    graph, parameters = tiny()
    before = train(BEFORE, digits(), graph, parameters)
    grows = replace(BEFORE, epochs=2, structure=Structure(0.5, Growth(Times(1, 1), birth=birth)))
    real = {name: array.astype(np.float64) for name, array in before.weights.items()}
    born = changed(replace(before, config=grows), real, [np.array([3.0, 2, 1])], named_size(graph, ()), 1)
    cosines, lengths = kinship(born)
    assert (cosines.min() > 0.99) == (birth.spread == 0) and 0.2 < lengths.min() <= lengths.max() < 2
    longer = replace(BEFORE, epochs=3)
    replace(born, config=longer).save(tmp_path / CHECKPOINT)
    cosines, lengths = kinship(train(longer, digits(), graph, parameters, tmp_path))
    assert cosines.mean() < 0.95 and 0.2 < lengths.min() <= lengths.max() < 2
