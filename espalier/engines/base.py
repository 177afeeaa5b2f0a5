"""One interface for everything that can train a compiled network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from espalier.ir.graph import Graph
from espalier.numerics.update import BufferedSgd, ScalarSgd
from espalier.program.program import Program

State = Mapping[str, NDArray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What is run: the training graph (the meaning), the Program (the same for a machine), the update rules.

    Members
    -------
    graph : Graph
        Training step, from ``differentiate``.
    program : Program
    rules : mapping
        Update rule of each parameter that is trained.
    live : mapping
        Live elements of each parameter.
    """

    graph: Graph
    program: Program
    rules: Mapping[str, BufferedSgd | ScalarSgd]
    live: Mapping[str, NDArray[np.bool_]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over the images that an engine has seen: the loss (a word, numerics.loss.LOSS_FRAC), right answers."""

    loss: int
    correct: int


class Engine(Protocol):
    """Trains and runs one network.

    Images are words of the image format (N, C, H, W), in whole groups of as many as the lanes hold.
    """

    def load(self, state: State) -> None:
        """Set all weights, masters and momenta, and the scalars of batch norms."""

    def state(self) -> dict[str, NDArray]:
        """All weights, masters (``.master``) and momenta (``.momentum``), and the scalars of batch norms."""

    def train(self, images: NDArray[np.int64], labels: NDArray[np.int64], batch: int) -> Totals:
        """One step for each ``batch`` of images, in order."""

    def infer(self, images: NDArray[np.int64], labels: NDArray[np.int64]) -> Totals:
        """Forward pass and loss only."""

    def traced_step(self, images: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[str, NDArray]:
        """One step on one batch; every tensor that the machine stores, by name, and the new state.

        Names are those of the graph; ``loss`` is the batch's sum, ``correct`` the right answers,
        ``NAME.code`` the winning positions of a pooled value.
        """
