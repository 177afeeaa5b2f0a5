"""What a command starts from: a checkpoint, or a real-valued network whose formats are chosen by a look at data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from espalier.data import Split, data_folder, load, normalise, scales
from espalier.data.draw import draws
from espalier.errors import DataError
from espalier.flow.network import import_network, is_pretrained, read_pretrained
from espalier.ir.graph import Graph
from espalier.train.calibrate import Headroom, Widths, calibrate
from espalier.train.checkpoint import Checkpoint
from espalier.train.config import Quantise, TrainConfig
from espalier.train.loop import CHECKPOINT, check_fit, prepare

CALIBRATION = 32        #: training images from which the formats of a network with published weights are chosen
CALIBRATION_BATCH = 8   #: of them at a time
FULL_BITS = 16          #: words of this width have room for larger numbers than were seen


def is_checkpoint(source: Path) -> bool:
    """Whether ``source`` is a checkpoint or its directory, and no real-valued network."""
    return source.suffix != ".onnx" and not is_pretrained(str(source))


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


def quantised(source: Path, split: Split, data: str, root: Path | None = None, bits: int | None = None) -> Checkpoint:
    """A real-valued network in fixed point, in words of ``bits`` (default: 16).

    The formats of an ONNX network are chosen from a short training, as if training went on from it; those of one with
    published weights from single training images.
    """
    found = import_network(str(source), split, root=root)
    rule = Quantise(widths=Widths(*3 * (bits or FULL_BITS,)),
                    headroom=Headroom() if bits in (None, FULL_BITS) else Headroom(0, 0))
    published = is_pretrained(str(source))
    batch = min(CALIBRATION_BATCH if published else TrainConfig().batch, len(split.train))
    network = str(source) if published else source.name
    config = TrainConfig(network=network, data=data, batch=batch, quantise=rule)
    check_fit(config, split, found.graph)
    if not published:
        return prepare(config, split, found.graph, found.parameters)
    return _calibrated(config, rule, split, found.graph, found.parameters)


def _calibrated(config: TrainConfig, rule: Quantise, split: Split, graph: Graph, parameters: dict[str, np.ndarray]
                ) -> Checkpoint:
    chosen = np.sort(draws(config.seed).permutation(len(split.train))[:CALIBRATION])
    found = calibrate(graph, parameters, normalise(split.train.images[chosen]), split.train.labels[chosen], rule.widths,
                      config.loss, batch=config.batch, headroom=rule.headroom, update=rule.update)
    return Checkpoint(found.graph, found.gradient_formats, found.state, config)


def require_no_bits(source: Path, bits: int | None) -> None:
    """Raise DataError where a width of words is asked for and the network has its formats already."""
    if bits is not None:
        raise DataError(f"The checkpoint {source} has its number formats already: leave --bits out")
