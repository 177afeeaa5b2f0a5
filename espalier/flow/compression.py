"""Compress: a trained network -> checkpoint with fewer live weights, or with narrower ones, without training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier import __version__
from espalier.compress.precision import Precision
from espalier.compress.retraining_free import live_density
from espalier.data import Split
from espalier.errors import DataError, UnsupportedError
from espalier.flow.checkpoint_state import live_masks
from espalier.flow.compress_images import Images, recognised, taken
from espalier.flow.compress_request import CompressRequest, Method
from espalier.flow.directory import require_replaceable, whole_directory
from espalier.flow.narrow_words import bias_width, to_words, tries_equalised, with_fewest_bits
from espalier.flow.pruning import Pruned, PruningSearch
from espalier.flow.source import (
    RealNetwork,
    data_for,
    data_in_size,
    data_of,
    is_checkpoint,
    is_float,
    load_checkpoint,
    real_checkpoint,
    real_network,
)
from espalier.flow.steps import Steps
from espalier.ir.graph import Graph
from espalier.numerics.fixed import Fixed
from espalier.records import Figure, Provenance, write_json
from espalier.train.checkpoint import Checkpoint
from espalier.train.config import TrainConfig
from espalier.train.fit import check_data
from espalier.train.fold import folded
from espalier.train.loop import CHECKPOINT
from espalier.train.weight_widths import weight_bits

__all__ = ["COMPRESS", "CompressRequest", "Method", "compress_network"]

COMPRESS = "compress.json"


def compress_network(source: Path, output: Path, request: CompressRequest, *, dry_run: bool = False,
                     steps: Steps | None = None) -> dict[str, Any] | None:
    """Compress a network into the directory ``output``: prune it, then narrow its weights, as far as each is asked for.

    ``source`` is a checkpoint, the directory that holds one, an ``.onnx`` file, or ``pretrained:NAME`` or the ``.npz``
    file of published weights.

    Writes ``checkpoint.safetensors`` and ``compress.json``, both or neither; returns the content of the latter, or
    None after a dry run, which only checks. The dead weights have neither value nor momentum; rebuilt weights are
    rounded to their formats, and a network that was rebuilt, or whose weights got narrower, has no momentum.

    Raises
    ------
    DataError
        A file is missing or damaged, ``output`` holds the input or something else, or there are too few images.
    UnsupportedError
        More is to stay than lives, or no sparser network stays within the loss.
    FormatError
        A tensor is so large that no words of the width asked for hold it.
    """
    steps = steps or Steps()
    _require_apart(source, output)
    require_replaceable(output, COMPRESS)
    given, split = _read(source, request, steps)
    with steps.step("draw images"):
        _check_density(given, request)
        check_data(split, given.graph)
        images = Images.drawn(split.train, request, given.tries(request))
    if dry_run:
        return None
    with steps.step("compress"):
        found = _compressed(given, split, images, request, steps)
    with steps.step("test"):
        content = _record(given, found, split, images, request, request.command(source, output))
    with whole_directory(output, COMPRESS) as folder:
        found.checkpoint.save(folder / CHECKPOINT)
        write_json(folder / COMPRESS, content)
    steps.wrote(output / CHECKPOINT, output / COMPRESS)
    return content


@dataclass(frozen=True, slots=True, eq=False)
class _Given:
    """The network as it was given: a checkpoint that stays as it is, or one that gets words first."""

    network: Checkpoint | RealNetwork

    @property
    def graph(self) -> Graph:
        return self.network.graph

    @property
    def config(self) -> TrainConfig:
        return self.network.config

    @property
    def weights(self) -> Mapping[str, NDArray]:
        return self.network.weights if isinstance(self.network, Checkpoint) else self.network.parameters

    @property
    def trained(self) -> Checkpoint | None:
        """The checkpoint, where it is one."""
        return self.network if isinstance(self.network, Checkpoint) else self.network.trained

    def tries(self, request: CompressRequest) -> bool:
        """Whether there is a choice of channels equalised or not."""
        return isinstance(self.network, RealNetwork) and tries_equalised(self.network, request)


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """What was made of a network, and how."""

    checkpoint: Checkpoint
    pruned: Pruned | None
    precision: Precision | None
    equalised: bool


def _read(source: Path, request: CompressRequest, steps: Steps) -> tuple[_Given, Split]:
    """The network and the data."""
    root = request.data_root
    if not is_checkpoint(source):
        with steps.step("load data"):
            data = request.data or data_of(source, root)
            split = data_for(source, data, root)
        with steps.step("read network"):
            return _Given(real_network(source, split, data, root)), split
    with steps.step("read network"):
        checkpoint = load_checkpoint(source)
        checkpoint = folded(checkpoint) if is_float(checkpoint) else checkpoint
        wants_words = request.bits is not None or request.bit_loss is not None
        if not is_float(checkpoint):
            _require_no_formats(source, request)
        elif request.equalise and not wants_words:
            raise DataError("Channels are equalised for words: give --bits or --bit-loss, or leave --equalise out")
    with steps.step("load data"):
        shape = checkpoint.graph.inputs[0].shape
        split = data_in_size(request.data or checkpoint.config.data, root, shape)
    return _Given(real_checkpoint(checkpoint) if is_float(checkpoint) and wants_words else checkpoint), split


def _require_no_formats(source: Path, request: CompressRequest) -> None:
    """Raise DataError where something is asked of a checkpoint in words that only a real-valued network can get."""
    for option, value in (("--bits", request.bits), ("--equalise", request.equalise)):
        if value is not None:
            raise DataError(f"The checkpoint {source} has its number formats already: leave {option} out")


def _require_apart(source: Path, output: Path) -> None:
    held = source / CHECKPOINT if source.is_dir() else source
    if held.resolve().is_relative_to(output.resolve()):
        raise DataError(f"The output directory {output} holds the network to compress: choose another, so that both "
                        f"are kept")


def _check_density(given: _Given, request: CompressRequest) -> None:
    present = 1.0 if given.trained is None else live_density(live_masks(given.trained))
    if request.density is not None and request.density > present:
        raise UnsupportedError(f"Of the network's weights {present:.2%} live, and dead ones stay dead: give a density "
                               f"of at most {present:.4g}, not {request.density:g}")


def _compressed(given: _Given, split: Split, images: Images, request: CompressRequest, steps: Steps) -> _Found:
    """In words, then pruned, then with weights of each layer's own width."""
    network, equalised, biases = given.network, False, request.bias_bits
    if isinstance(network, RealNetwork):
        words, biases = to_words(network, split, images, request, steps), bias_width(request, network.published)
        network, equalised = words.checkpoint, words.equalised
    pruned = PruningSearch(network, images, request, steps).best() if request.prunes else None
    network = network if pruned is None else pruned.checkpoint
    if request.bit_loss is None:
        return _Found(network, pruned, None, equalised)
    narrow, precision = with_fewest_bits(network, images, request, biases, steps)
    return _Found(narrow, pruned, precision, equalised)


def _record(given: _Given, found: _Found, split: Split, images: Images, request: CompressRequest, command: str
            ) -> dict[str, Any]:
    """What ``compress.json`` holds."""
    after, live, bits = found.checkpoint, live_masks(found.checkpoint), weight_bits(found.checkpoint)
    test = split.test if request.test_images is None else taken(split.test, slice(request.test_images))
    before = recognised(given.graph, given.weights, test, request.top)
    figures = {"density": live_density(live), "live weights": sum(int(mask.sum()) for mask in live.values()),
               "saturated weights": _saturated(after), "test accuracy before": before,
               "test accuracy after": recognised(after.graph, after.weights, test, request.top),
               **({"weight bits": sum(bits[name] * int(mask.sum()) for name, mask in live.items())} if bits else {}),
               **({"choices of widths tried": found.precision.evaluations} if found.precision else {})}
    return {
        "espalier": __version__, "network": given.graph.name, "command": command,
        "method": request.method if request.prunes else None,
        "chosen": None if found.pruned is None else found.pruned.method.value, "equalised": found.equalised,
        "block": request.block, "top": request.top,
        "asked": {"density": request.density, "loss_points": request.loss, "bits": request.bits,
                  "bit_loss_points": request.bit_loss},
        "figures": [Figure(name, value, "", Provenance.MEASURED).to_json() for name, value in figures.items()],
        "layers": [{"name": name, "weights": mask.size, "live_weights": int(mask.sum()), "weight_bits": bits.get(name)}
                   for name, mask in live.items()],
        "images": {"training_set": split.train.name, "calibration": len(images.calibration or ()),
                   "selection": len(images.selection or ()), "test_set": split.test.name, "test": len(test),
                   "seed": request.seed, "selection_accuracy": _selected(found)},
    }


def _selected(found: _Found) -> float | None:
    """The accuracy on the images by which was chosen last."""
    if found.precision is not None:
        return found.precision.accuracy
    return None if found.pruned is None else found.pruned.accuracy


def _saturated(checkpoint: Checkpoint) -> int:
    """The number of weights and biases at an end of their format's range."""
    return sum(int(np.isin(checkpoint.state[value.name], (value.format.low, value.format.high)).sum())
               for value in checkpoint.graph.parameters if isinstance(value.format, Fixed))
