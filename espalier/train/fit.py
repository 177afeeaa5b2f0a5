"""Whether a recipe, data and a network suit each other, before anything is trained."""

from __future__ import annotations

from collections.abc import Collection
from math import prod

import torch

from espalier.compress.graph_groups import groups_of
from espalier.compress.magnitude import Magnitude
from espalier.data import Split
from espalier.errors import DataError, UnsupportedError
from espalier.ir.fold import has_batch_norm, normed_layers
from espalier.ir.graph import Graph
from espalier.ir.ops import BatchNorm
from espalier.ir.view import conv_shape
from espalier.train.config import TrainConfig
from espalier.train.pipelining import Pipeline, Scheme


def frozen_names(config: TrainConfig, graph: Graph, fixed: Collection[str]) -> frozenset[str]:
    """The parameters that are not trained, but for running statistics, which no gradient moves anyway.

    Raises DataError if that is all of them, or a name is of none.
    """
    names = [value.name for value in graph.learned()]
    frozen = config.frozen_names(names) | frozenset(names).intersection(fixed)
    if len(frozen) == len(names):
        raise DataError(f"All {len(names)} parameters of network {graph.name!r} are frozen, and nothing would be "
                        f"trained: freeze fewer")
    return frozen


def check_fit(config: TrainConfig, split: Split, graph: Graph, fixed: Collection[str] = ()) -> None:
    """Raise DataError unless images, classes, batch, device and frozen parameters suit the network.

    Raises UnsupportedError for a network whose widths are to change and cannot, or that has no such layers as a recipe
    gives densities to, GraphError for one whose batch norms are to be folded and cannot.
    """
    frozen = frozen_names(config, graph, fixed)
    _check_batch_norm(config, split, graph)
    if config.prune is not None and isinstance(config.prune.method, Magnitude):
        config.prune.method.layer_densities({layer.w.name: conv_shape(graph, layer) for layer in graph.layers()
                                             if layer.w.name not in frozen})
    if config.pipeline is not None:
        config.pipeline.check(graph, folds=config.folds)
        if config.quantise is not None and not config.folds and has_batch_norm(graph):
            _check_pipeline(config.pipeline)
    if config.structure is not None and not groups_of(graph, frozen):
        raise DataError(f"Network {graph.name!r} has no layer whose width may change: leave 'structure' out")
    check_data(split, graph)
    if config.batch > len(split.train):
        raise DataError(f"A batch is at most the training set of {len(split.train)} images, not {config.batch}")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise DataError("This machine's torch sees no CUDA device: train on the cpu")


def check_data(split: Split, graph: Graph) -> None:
    """Raise DataError unless images and classes suit the network."""
    image, logits = graph.inputs[0], graph.outputs[0]
    if split.train.image_shape != image.shape:
        raise DataError(f"Network {graph.name!r} takes images of shape {image.shape}, and those of "
                        f"{split.train.name!r} have {split.train.image_shape}: choose another network or data set")
    if (split.train.class_count,) != logits.shape:
        raise DataError(f"Network {graph.name!r} has logits of shape {logits.shape}, and {split.train.name!r} has "
                        f"{split.train.class_count} classes: build it for as many")


def _check_pipeline(pipeline: Pipeline) -> None:
    """Of batch norms on words: their statistics and the rounding of gradients are those of a whole batch."""
    if pipeline.scheme in (Scheme.SYNCHRONOUS, Scheme.HYBRID) and pipeline.micro_batches > 1:
        raise UnsupportedError(f"Batch norms are trained in fixed point on whole batches, not on "
                               f"{pipeline.micro_batches} micro-batches: take 1, choose the scheme 'stale', or fold "
                               f"them")


def _check_batch_norm(config: TrainConfig, split: Split, graph: Graph) -> None:
    for op in graph.ops:
        if isinstance(op, BatchNorm) and config.batch * prod(op.x.shape[1:]) < 2:
            raise DataError(f"A batch norm needs at least 2 values a channel, and a batch of one image gives {op.out} "
                            f"1: take larger batches")
    if config.quantise is None or not config.folds or not normed_layers(graph) or config.tracking is None:
        return
    steps = config.quantise.start * (len(split.train) // config.batch)
    if steps and config.tracking.rule.remaining(steps):
        raise DataError(f"Nothing may remain of the initial values of untracked weights when batch norms are folded, "
                        f"and {config.tracking.rule.remaining(steps):.2g} of them would after {steps} steps: let fixed "
                        f"point start later, or lower the decay")
