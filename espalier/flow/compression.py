"""Compress: checkpoint + method -> checkpoint with fewer live weights, without training."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from espalier import __version__
from espalier.compress.lamp import Lamp
from espalier.compress.magnitude import Magnitude
from espalier.compress.network_reconstruction import Arrays, Evaluate, reconstruct_network
from espalier.compress.ranking import Masks, check_density, check_rows
from espalier.compress.retraining_free import Rule, live_density, live_weights, lowest_density
from espalier.data import Dataset, Split, normalise
from espalier.data.draw import draws
from espalier.errors import DataError, UnsupportedError
from espalier.flow.directory import require_replaceable, whole_directory
from espalier.flow.source import (
    data_for,
    data_in_size,
    data_of,
    is_checkpoint,
    load_checkpoint,
    quantised,
    require_no_bits,
)
from espalier.flow.steps import Steps
from espalier.ir.graph import Graph
from espalier.ir.types import Format
from espalier.ir.view import conv_shape
from espalier.numerics.fixed import Fixed
from espalier.records import Figure, Provenance, write_json
from espalier.train.calibrate import Widths, initial_state
from espalier.train.checkpoint import Checkpoint
from espalier.train.device_data import DeviceData
from espalier.train.evaluate import run, to_array, to_tensor
from espalier.train.loop import CHECKPOINT, check_fit
from espalier.train.optimise import Optimiser, Update
from espalier.train.step import accuracy

COMPRESS = "compress.json"
IMAGES = 1000  #: of the training set that are looked at, if it has as many


class Method(Enum):
    """What decides which weights live."""

    RULES = "rules"              #: whichever of the next three does best
    FLAT = "flat"
    TRIANGULAR = "triangular"
    RELATIVE = "relative"
    MAGNITUDE = "magnitude"      #: as in training: each layer to the same density
    LAMP = "lamp"
    RECONSTRUCT = "reconstruct"  #: the weights that live are rebuilt, too

    @property
    def tried(self) -> tuple[Method, ...]:
        """The methods that it stands for."""
        return (Method.FLAT, Method.TRIANGULAR, Method.RELATIVE) if self is Method.RULES else (self,)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressRequest:
    """How far to compress, and how.

    Parameters
    ----------
    method : str
        The value of a :class:`Method`.
    density : float or None
        Fraction of the weights that stay.
    loss : float or None
        Or: the accuracy, in points, that the sparsest network may lose on the images by which it is chosen.
    block : int
        Edge of the blocks in which weights die.
    images : int or None
        Training images to look at: those on which weights are rebuilt and those by which is chosen, half of them
        each where a method needs both. None is IMAGES, or all if there are fewer.
    data : str or None
        None is the data that the network was trained on.
    data_root : Path or None
    seed : int
        Of the draw of the images.
    top : int
        An image is recognised if its class is among so many of the largest logits.
    bits : int or None
        Width of words, if the source is real-valued; None is 16.
    """

    method: str = Method.RECONSTRUCT.value
    density: float | None = None
    loss: float | None = None
    block: int = 1
    images: int | None = None
    data: str | None = None
    data_root: Path | None = None
    seed: int = 0
    top: int = 1
    bits: int | None = None

    def __post_init__(self) -> None:
        if self.method not in [method.value for method in Method]:
            raise UnsupportedError(f"A method of compression without training is one of "
                                   f"{', '.join(method.value for method in Method)}, not {self.method!r}")
        if (self.density is None) == (self.loss is None):
            remedy = ("give --density, such as 0.1, or --loss, such as 1" if self.density is None
                      else "leave one of --density and --loss out")
            raise DataError(f"How far to compress is told by a density or by the accuracy points that may be lost: "
                            f"{remedy}")
        if self.density is not None:
            check_density(self.density)
        if self.loss is not None and not 0 <= self.loss <= 100:
            raise DataError(f"The loss allowed is in 0..100 accuracy points, not {self.loss:g}")
        if self.top < 1:
            raise DataError(f"An image is recognised by at least 1 of the largest logits, not {self.top}")
        if self.bits is not None:
            Widths(self.bits, self.bits, self.bits)
        check_rows(self.block)

    @property
    def kind(self) -> Method:
        """The method."""
        return Method(self.method)

    def command(self, source: Path, output: Path) -> str:
        """The command line that asks for this."""
        options = {"density": self.density, "loss": self.loss, "block": self.block, "images": self.images,
                   "data": self.data, "data-root": self.data_root, "seed": self.seed,
                   "top": None if self.top == 1 else self.top, "bits": self.bits}
        given = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
        return shlex.join(["espalier", "compress", str(source), "--output-dir", str(output), "--method", self.method,
                           *given])


def compress_network(source: Path, output: Path, request: CompressRequest, *, dry_run: bool = False,
                     steps: Steps | None = None) -> dict[str, Any] | None:
    """Compress a network into the directory ``output``.

    ``source`` is a checkpoint, the directory that holds one, an ``.onnx`` file, or ``pretrained:NAME`` or the ``.npz``
    file of published weights.

    Writes ``checkpoint.safetensors`` and ``compress.json``, both or neither; returns the content of the latter, or
    None after a dry run, which only checks. The dead weights have neither value nor momentum; rebuilt weights are
    rounded to their formats, and a rebuilt network has no momentum.

    Raises
    ------
    DataError
        A file is missing or damaged, ``output`` holds the input or something else, or there are too few images.
    UnsupportedError
        More is to stay than lives, or no sparser network stays within the loss.
    """
    steps = steps or Steps()
    _require_apart(source, output)
    require_replaceable(output, COMPRESS)
    checkpoint, split = _read(source, request, steps)
    with steps.step("draw images"):
        _check_density(checkpoint, request)
        check_fit(replace(checkpoint.config, device="cpu", batch=1), split, checkpoint.graph)
        images = _Images.drawn(split.train, request)
    if dry_run:
        return None
    with steps.step("compress"):
        found = _Search(checkpoint, images, request, steps).best()
    with steps.step("test"):
        content = _record(checkpoint, found, split, images, request, request.command(source, output))
    with whole_directory(output, COMPRESS) as folder:
        found.checkpoint.save(folder / CHECKPOINT)
        write_json(folder / COMPRESS, content)
    steps.wrote(output / CHECKPOINT, output / COMPRESS)
    return content


def _read(source: Path, request: CompressRequest, steps: Steps) -> tuple[Checkpoint, Split]:
    """The network and the data."""
    root = request.data_root
    if is_checkpoint(source):
        require_no_bits(source, request.bits)
        with steps.step("read network"):
            checkpoint = load_checkpoint(source)
        with steps.step("load data"):
            shape = checkpoint.graph.inputs[0].shape
            return checkpoint, data_in_size(request.data or checkpoint.config.data, root, shape)
    with steps.step("load data"):
        data = request.data or data_of(source, root)
        split = data_for(source, data, root)
    with steps.step("read network"):
        return quantised(source, split, data, root, request.bits), split


def _require_apart(source: Path, output: Path) -> None:
    held = source / CHECKPOINT if source.is_dir() else source
    if held.resolve().is_relative_to(output.resolve()):
        raise DataError(f"The output directory {output} holds the network to compress: choose another, so that both "
                        f"are kept")


def _check_density(checkpoint: Checkpoint, request: CompressRequest) -> None:
    present = live_density(_live(checkpoint))
    if request.density is not None and request.density > present:
        raise UnsupportedError(f"Of the network's weights {present:.2%} live, and dead ones stay dead: give a density "
                               f"of at most {present:.4g}, not {request.density:g}")


@dataclass(frozen=True, slots=True, eq=False)
class _Images:
    """Training images, drawn once: those on which weights are rebuilt, and others by which is chosen."""

    calibration: Dataset | None
    selection: Dataset | None

    @classmethod
    def drawn(cls, dataset: Dataset, request: CompressRequest) -> _Images:
        rebuilds = request.kind is Method.RECONSTRUCT
        chooses = request.loss is not None or len(request.kind.tried) > 1
        count = min(IMAGES, len(dataset)) if request.images is None else request.images
        least = max(1, rebuilds + chooses)
        if not least <= count <= len(dataset):
            raise DataError(f"The images to look at are {least}..{len(dataset)} of the training set {dataset.name!r}, "
                            f"not {count}")
        order = draws(request.seed).permutation(len(dataset))[:count]
        half = count // 2 if chooses else count
        apart = half if rebuilds else 0
        return cls(_taken(dataset, order[:half]) if rebuilds else None,
                   _taken(dataset, order[apart:]) if chooses else None)


def _taken(dataset: Dataset, index: NDArray[np.int64]) -> Dataset:
    return replace(dataset, images=dataset.images[index], labels=dataset.labels[index])


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """A compressed network; its accuracy is on the selection images, if there are any."""

    method: Method
    checkpoint: Checkpoint
    accuracy: float | None


class _Search:
    """The search for a network's compressed form."""

    def __init__(self, checkpoint: Checkpoint, images: _Images, request: CompressRequest, steps: Steps) -> None:
        self.checkpoint, self.images, self.request, self.steps = checkpoint, images, request, steps
        graph = checkpoint.graph
        self.real, self.live = _optimiser(checkpoint).real_weights(), _live(checkpoint)
        self.weights = {layer.w.name: self.real[layer.w.name].reshape(conv_shape(graph, layer))
                        for layer in graph.layers()}
        chosen = images.selection
        self.selection = None if chosen is None else DeviceData(chosen, graph.inputs[0].format, "cpu")

    def best(self) -> _Found:
        """The network at the density asked for, or the sparsest found within the loss."""
        tried = self.request.kind.tried
        if self.request.density is not None:
            density = self.request.density
            return max((self._pruned(method, density) for method in tried), key=lambda found: found.accuracy or 0.0)
        assert self.images.selection is not None and self.request.loss is not None
        count, whole = len(self.images.selection), self._accuracy(self.checkpoint)
        assert whole is not None
        floor = max(0, math.ceil(whole * count - self.request.loss / 100 * count - 1e-6)) / count
        self.steps.tell(f"    all weights: {whole:.2%} of {count:,} training images; at least {floor:.2%} must stay")
        outcomes = [self._sparsest(method, floor) for method in tried]
        present = live_density(self.live)
        good = [found for found in outcomes if found is not None and live_density(_live(found.checkpoint)) < present]
        if not good:
            raise UnsupportedError(f"No sparser network was found within {self.request.loss:g} accuracy points of the "
                                   f"{whole:.2%} of {count:,} training images that the whole one reaches: allow a "
                                   f"larger loss, or give a density")
        return min(good, key=lambda found: live_density(_live(found.checkpoint)))

    def _sparsest(self, method: Method, floor: float) -> _Found | None:
        return lowest_density(lambda density: self._pruned(method, density),
                              lambda found: found.accuracy is not None and found.accuracy >= floor,
                              highest=live_density(self.live))

    def _pruned(self, method: Method, density: float) -> _Found:
        if method is Method.RECONSTRUCT:
            checkpoint = self._rebuilt(density)
        else:
            checkpoint = _with_live(self.checkpoint, self._masks(method, density))
        found = _Found(method, checkpoint, self._accuracy(checkpoint))
        reached = "" if found.accuracy is None else f": {found.accuracy:.2%} of the training images looked at"
        self.steps.tell(f"    {method.value} at density {density:.2%}{reached}")
        return found

    def _masks(self, method: Method, density: float) -> Masks:
        rows = self.request.block
        match method:
            case Method.FLAT | Method.TRIANGULAR | Method.RELATIVE:
                return live_weights(Rule(method.value), self.weights, density, rows, self.live)
            case Method.MAGNITUDE:
                return Magnitude(density=density, rows=rows)(self.weights, self.live)
            case Method.LAMP:
                return Lamp(density=density, rows=rows)(self.weights, self.live)
            case Method.RULES | Method.RECONSTRUCT:
                raise AssertionError(f"{method.value} is no method of masks alone")
            case _:
                assert_never(method)

    def _rebuilt(self, density: float) -> Checkpoint:
        assert self.images.calibration is not None
        graph, update = self.checkpoint.graph, self.checkpoint.config.update
        images = _stored(normalise(self.images.calibration.images), graph.inputs[0].format)
        found = reconstruct_network(graph, self.real, self.live, density, images, _evaluator(update),
                                    self.request.block)
        state = {**self.checkpoint.state, **initial_state(graph, found.parameters, update)}
        kept = {f"{name}.live": mask for name, mask in self.checkpoint.live.items()}
        return _with_live(replace(self.checkpoint, state={**state, **kept}), found.live)

    def _accuracy(self, checkpoint: Checkpoint) -> float | None:
        return None if self.selection is None else _accuracy(checkpoint, self.selection, self.request.top)


def _evaluator(update: Update) -> Evaluate:
    """How a part of a network runs, to the bit as in training."""
    def evaluate(part: Graph, values: Arrays) -> dict[str, NDArray]:
        words = initial_state(part, values, update)
        tensors = {value.name: to_tensor((words if value in part.parameters else values)[value.name], value.format)
                   for value in (*part.inputs, *part.parameters)}
        found = run(part, tensors)
        return {value.name: _compact(to_array(found[value.name], value.format)) for value in part.outputs}
    return evaluate


def _compact(array: NDArray) -> NDArray:
    return array.astype(np.int16) if array.dtype.kind == "i" else array


def _stored(numbers: NDArray, format_: Format) -> NDArray:
    return _compact(format_.quantise(numbers)) if isinstance(format_, Fixed) else numbers


def _accuracy(checkpoint: Checkpoint, data: DeviceData, top: int) -> float:
    weights = {value.name: to_tensor(checkpoint.state[value.name], value.format)
               for value in checkpoint.graph.parameters}
    return accuracy(checkpoint.graph, weights, data, top=top)


def _optimiser(checkpoint: Checkpoint) -> Optimiser:
    """The state of a checkpoint, to be read and pruned."""
    found = Optimiser(checkpoint.graph.parameters, checkpoint.gradient_formats, checkpoint.config.update, batch=1)
    found.load(checkpoint.state)
    return found


def _live(checkpoint: Checkpoint) -> Masks:
    """The live masks of the layers seen as convolutions, by the weight's name."""
    return {layer.w.name: checkpoint.live[layer.w.name].reshape(conv_shape(checkpoint.graph, layer))
            for layer in checkpoint.graph.layers()}


def _with_live(checkpoint: Checkpoint, masks: Masks) -> Checkpoint:
    """The checkpoint with other live masks of layers; the dead are zero in every role."""
    optimiser = _optimiser(checkpoint)
    optimiser.prune({layer.w.name: masks[layer.w.name].reshape(layer.w.shape) for layer in checkpoint.graph.layers()})
    return replace(checkpoint, state=optimiser.state())


def _record(before: Checkpoint, found: _Found, split: Split, images: _Images, request: CompressRequest, command: str
            ) -> dict[str, Any]:
    """What ``compress.json`` holds."""
    after, live = found.checkpoint, _live(found.checkpoint)
    test = DeviceData(split.test, before.graph.inputs[0].format, "cpu")
    return {
        "espalier": __version__, "network": before.graph.name, "command": command,
        "method": request.method, "chosen": found.method.value, "block": request.block, "top": request.top,
        "asked": {"density": request.density, "loss_points": request.loss},
        "figures": [_figure("density", live_density(live)),
                    _figure("live weights", sum(int(mask.sum()) for mask in live.values())),
                    _figure("saturated weights", _saturated(after)),
                    _figure("test accuracy before", _accuracy(before, test, request.top)),
                    _figure("test accuracy after", _accuracy(after, test, request.top))],
        "layers": [{"name": name, "weights": mask.size, "live_weights": int(mask.sum())}
                   for name, mask in live.items()],
        "images": {"training_set": split.train.name, "calibration": len(images.calibration or ()),
                   "selection": len(images.selection or ()), "test_set": split.test.name, "test": len(split.test),
                   "seed": request.seed, "selection_accuracy": found.accuracy},
    }


def _saturated(checkpoint: Checkpoint) -> int:
    """The number of weights and biases at an end of their format's range."""
    return sum(int(np.isin(checkpoint.state[value.name], (value.format.low, value.format.high)).sum())
               for value in checkpoint.graph.parameters if isinstance(value.format, Fixed))


def _figure(name: str, value: float) -> dict[str, Any]:
    return Figure(name, value, "", Provenance.MEASURED).to_json()
