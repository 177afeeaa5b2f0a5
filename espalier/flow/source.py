"""What a command starts from: a checkpoint, or a real-valued network whose formats are chosen by a look at data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from espalier.data import Split, data_folder, load, normalise, scales
from espalier.data.draw import draws
from espalier.flow.network import import_network, is_network_file, is_pretrained, read_pretrained
from espalier.ir.graph import Graph
from espalier.numerics.fixed import Fixed
from espalier.train.calibrate import Headroom, Widths, calibrate
from espalier.train.checkpoint import Checkpoint
from espalier.train.config import Quantise, TrainConfig
from espalier.train.fit import check_fit
from espalier.train.fold import folded
from espalier.train.loop import CHECKPOINT, prepare

CALIBRATION = 32        #: training images from which the formats of a network with published weights are chosen
CALIBRATION_BATCH = 8   #: of them at a time
FULL_BITS = 16          #: words of this width have room for larger numbers than were seen


def is_checkpoint(source: Path) -> bool:
    """Whether ``source`` is a checkpoint or its directory, and no real-valued network."""
    return not is_network_file(str(source)) and not is_pretrained(str(source))


def load_checkpoint(source: Path) -> Checkpoint:
    """A checkpoint, or the one in a directory."""
    return Checkpoint.load(source / CHECKPOINT if source.is_dir() else source)


def data_of(source: Path, root: Path | None) -> str:
    """The data that a real-valued network was trained on, or the one that needs no files where that is unknown."""
    return read_pretrained(str(source), root).data if is_pretrained(str(source)) else "digits"


def data_for(source: Path, data: str, root: Path | None) -> Split:
    """A data set, its images in the size of the real-valued network if they come in any."""
    if not is_pretrained(str(source)):
        return load(data, root)
    return data_in_size(data, root, read_pretrained(str(source), root).input_shape)


def data_in_size(data: str, root: Path | None, shape: tuple[int, ...]) -> Split:
    """A data set, its images of ``shape`` (C, H, W) if they come in any size."""
    size = (shape[1], shape[2]) if len(shape) == 3 and scales(data) else None
    return load(data, data_folder(root), size)


@dataclass(frozen=True, slots=True, eq=False)
class RealNetwork:
    """A real-valued network, and the checkpoint that its words will go to.

    Parameters
    ----------
    graph : Graph
        Float, without batch norms.
    parameters : mapping of ndarray
    config : TrainConfig
    published : bool
        Whether its weights were published; those of an ONNX or ``.pt2`` file may be anything.
    trained : Checkpoint or None
        The float checkpoint that it comes from: masks, log and position stay.
    """

    graph: Graph
    parameters: Mapping[str, NDArray]
    config: TrainConfig
    published: bool = False
    trained: Checkpoint | None = None


def real_network(source: Path, split: Split, data: str, root: Path | None = None) -> RealNetwork:
    """The network of an ``.onnx`` or ``.pt2`` file, ``pretrained:NAME`` or the ``.npz`` file of published weights."""
    found = import_network(str(source), split, root=root)
    published = is_pretrained(str(source))
    batch = min(CALIBRATION_BATCH if published else TrainConfig().batch, len(split.train))
    config = TrainConfig(network=str(source) if published else source.name, data=data, batch=batch)
    return RealNetwork(found.graph, found.parameters, config, published)


def real_checkpoint(checkpoint: Checkpoint) -> RealNetwork:
    """The network of a float checkpoint, its batch norms folded."""
    plain = folded(checkpoint)
    return RealNetwork(plain.graph, plain.weights, plain.config, trained=plain)


def in_words(network: RealNetwork, split: Split, widths: Widths) -> Checkpoint:
    """The network in fixed point.

    The formats of a network of ONNX or torch.export are chosen from a short training, as if training went on from it;
    those of others from single training images. Momenta start from zero.
    """
    full = widths == Widths(*3 * (FULL_BITS,))
    rule = replace(network.config.quantise or Quantise(), widths=widths, start=0,
                   headroom=Headroom() if full else Headroom(0, 0))
    config = replace(network.config, quantise=rule)
    check_fit(replace(config, frozen=()), split, network.graph)
    if not network.published and network.trained is None:
        return prepare(config, split, network.graph, network.parameters)
    chosen = np.sort(draws(config.seed).permutation(len(split.train))[:CALIBRATION])
    found = calibrate(network.graph, network.parameters, normalise(split.train.images[chosen]),
                      split.train.labels[chosen], rule.widths, config.loss, batch=config.batch,
                      headroom=rule.headroom, update=rule.update)
    if network.trained is None:
        return Checkpoint(found.graph, found.gradient_formats, found.state, config)
    masks = {f"{name}.live": mask for name, mask in network.trained.live.items()}
    return replace(network.trained, graph=found.graph, gradient_formats=found.gradient_formats,
                   state={**found.state, **masks}, config=config)


def quantised(source: Path, split: Split, data: str, root: Path | None = None) -> Checkpoint:
    """A real-valued network in fixed point, in words of 16 bits."""
    return in_words(real_network(source, split, data, root), split, Widths())


def is_float(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint has no number formats yet."""
    return not isinstance(checkpoint.graph.inputs[0].format, Fixed)
