"""What happens to the live set between the steps of a training: blocks shrink, die, are exchanged or tracked."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from espalier.compress.group_lasso import shrink
from espalier.compress.ranking import all_live
from espalier.compress.rigl import exchange
from espalier.ir.differentiate import gradient_name
from espalier.train.calibrate import weight_words
from espalier.train.config import Prune, TrainConfig
from espalier.train.optimise import Optimiser
from espalier.train.step import TrainingStep

Batch = tuple[torch.Tensor, torch.Tensor | None]  #: indices of images, and how each is moved


class Sparsity:
    """Changes the weights and live masks of a training, as its recipe says.

    Parameters
    ----------
    config : TrainConfig
    steps : int
        Of an epoch.
    layers : mapping
        The shape of each layer's weights as a convolution (O, I, KH, KW), by name, without the frozen ones.
    initial : mapping of ndarray
        The parameters before the first step, in real numbers.
    """

    def __init__(self, config: TrainConfig, steps: int, layers: Mapping[str, tuple[int, ...]],
                 initial: Mapping[str, NDArray]) -> None:
        self.config, self.layers, self.initial = config, layers, initial
        prune, tracking = config.prune, config.tracking
        lasso = None if prune is None else prune.lasso
        self.due = {} if prune is None else prune.schedule.due_steps(steps)
        self.exchanges = {} if prune is None or prune.exchange is None else prune.exchange.due_steps(steps)
        self.shrinks = {} if lasso is None else lasso.due_steps(steps)
        self.tracked = frozenset() if tracking is None else tracking.due_steps(steps, config.epochs)

    @property
    def pauses(self) -> set[int]:
        """The steps (over all epochs) before which, or after the one before, something is due."""
        return {*self.due, *self.exchanges, *self.shrinks, *self.tracked, *(step + 1 for step in self.tracked)}

    def before(self, number: int, optimiser: Optimiser, step: TrainingStep, batch: Batch, learning_rate: float) -> None:
        """What is due before step ``number`` (over all epochs), which will be on ``batch``."""
        prune = self.config.prune
        if number in self.tracked:
            self._keep(optimiser, all_live(self._live(optimiser)))
        if prune is None:
            return
        if number in self.shrinks:
            self._shrink(optimiser, prune, learning_rate * self.shrinks[number])
        if number in self.due or number in self.exchanges:
            self._prune(number, optimiser, step, batch, prune)

    def after(self, number: int, optimiser: Optimiser) -> None:
        """What is due after step ``number``."""
        tracking = self.config.tracking
        if tracking is None or number not in self.tracked:
            return
        initial = {name: self.initial[name].reshape(shape) for name, shape in self.layers.items()}
        found = tracking.rule(self._weights(optimiser), initial, number)
        self._set(optimiser, found.weights)
        if not tracking.rule.remaining(number):
            self._keep(optimiser, found.tracked)

    def gradients(self, step: TrainingStep, batch: Batch) -> dict[str, NDArray]:
        """The gradients of all weights, dead ones too, on a batch."""
        values = step.values(*batch)
        return {name: values[gradient_name(name)].cpu().numpy().reshape(shape) for name, shape in self.layers.items()}

    def _prune(self, number: int, optimiser: Optimiser, step: TrainingStep, batch: Batch, prune: Prune) -> None:
        weights, live = self._weights(optimiser), self._live(optimiser)
        if number in self.due:
            live = prune.method(weights, live, prune.schedule.progress(self.due[number]))
        if prune.exchange is not None and number in self.exchanges:
            live = exchange(weights, self.gradients(step, batch), live,
                            prune.exchange.fraction_at(self.exchanges[number]), prune.method.rows)
        self._keep(optimiser, live)

    def _shrink(self, optimiser: Optimiser, prune: Prune, strength: float) -> None:
        self._set(optimiser, {name: shrink(weights, strength, prune.method.rows)
                              for name, weights in self._weights(optimiser).items()})

    def _weights(self, optimiser: Optimiser) -> dict[str, NDArray[np.float64]]:
        real = optimiser.real_weights()
        return {name: real[name].reshape(shape) for name, shape in self.layers.items()}

    def _live(self, optimiser: Optimiser) -> dict[str, NDArray[np.bool_]]:
        state = optimiser.state()
        return {name: state[f"{name}.live"].reshape(shape) for name, shape in self.layers.items()}

    def _keep(self, optimiser: Optimiser, live: Mapping[str, NDArray[np.bool_]]) -> None:
        shapes = {value.name: value.shape for value in optimiser.parameters}
        optimiser.prune({name: mask.reshape(shapes[name]) for name, mask in live.items()})

    def _set(self, optimiser: Optimiser, real: Mapping[str, NDArray[np.float64]]) -> None:
        state = optimiser.state()
        for value in optimiser.parameters:
            if value.name in real:
                state |= weight_words(value, real[value.name].reshape(value.shape), optimiser.update)
        optimiser.load(state)
