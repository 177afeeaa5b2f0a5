"""From a network in float32 with batch norms to the same without them, in the middle of a training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from espalier.errors import UnsupportedError
from espalier.ir.fold import fold_batch_norm, has_batch_norm, normed_layers
from espalier.train.calibrate import initial_state
from espalier.train.checkpoint import Checkpoint
from espalier.train.optimise import Update


def folded(checkpoint: Checkpoint) -> Checkpoint:
    """The same network with each batch norm folded into the layer before it, by its running statistics.

    Itself where there is none. Live masks stay. The momenta of the weights and
    biases that batch norms were folded into start from zero, because their steps have another scale now; others stay.
    Such a layer is frozen, its weight and its bias, where its weight was.

    Raises the errors of :func:`espalier.ir.fold.fold_batch_norm`, and UnsupportedError in fixed point.
    """
    if not has_batch_norm(checkpoint.graph):
        return checkpoint
    if checkpoint.update is not Update.FLOAT:
        raise UnsupportedError(f"Batch norms that were trained in fixed point are not folded into the layers before "
                               f"them, and {checkpoint.graph.name!r} has such: train with quantise.batch_norm 'folded'")
    norms = normed_layers(checkpoint.graph)
    graph, parameters = fold_batch_norm(checkpoint.graph, checkpoint.weights)
    pairs = [(layer.w.name, layer.b.name) for layer in graph.layers() if layer.b is not None and layer.w.name in norms]
    changed = {name for pair in pairs for name in pair}
    state = initial_state(graph, parameters, checkpoint.update)
    for value in graph.parameters:
        live, momentum = f"{value.name}.live", f"{value.name}.momentum"
        state |= _kept(checkpoint, live) | ({} if value.name in changed else _kept(checkpoint, momentum))
    frozen = {value.name for value in graph.parameters if value.name in checkpoint.frozen - changed} | {
        name for weight, bias in pairs if weight in checkpoint.frozen for name in (weight, bias)}
    return replace(checkpoint, graph=graph, state=state, frozen=frozenset(frozen))


def _kept(checkpoint: Checkpoint, name: str) -> dict[str, NDArray]:
    return {name: np.array(checkpoint.state[name])} if name in checkpoint.state else {}
