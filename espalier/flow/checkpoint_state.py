"""The weights and masks of a checkpoint, read and changed without training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from espalier.compress.ranking import Masks
from espalier.ir.view import conv_shape
from espalier.train.checkpoint import Checkpoint
from espalier.train.optimise import Optimiser


def optimiser_of(checkpoint: Checkpoint) -> Optimiser:
    """The state of a checkpoint, to be read and pruned."""
    graph = checkpoint.graph
    found = Optimiser(graph.learned(), checkpoint.gradient_formats, checkpoint.update, batch=1,
                      statistics=graph.statistics())
    found.load(checkpoint.state)
    return found


def real_parameters(checkpoint: Checkpoint) -> dict[str, NDArray[np.float64]]:
    """The parameters of a checkpoint as real values, of weights and biases the most precise that it has."""
    statistics = {value.name: checkpoint.state[value.name].astype(np.float64)
                  for value in checkpoint.graph.statistics()}
    return optimiser_of(checkpoint).real_weights() | statistics


def live_masks(checkpoint: Checkpoint) -> Masks:
    """The live masks of the layers seen as convolutions, by the weight's name."""
    return {layer.w.name: checkpoint.live[layer.w.name].reshape(conv_shape(checkpoint.graph, layer))
            for layer in checkpoint.graph.layers()}


def with_live(checkpoint: Checkpoint, masks: Masks) -> Checkpoint:
    """The checkpoint with other live masks of layers; the dead are zero in every role."""
    optimiser = optimiser_of(checkpoint)
    optimiser.prune({layer.w.name: masks[layer.w.name].reshape(layer.w.shape) for layer in checkpoint.graph.layers()})
    return replace(checkpoint, state=optimiser.state())
