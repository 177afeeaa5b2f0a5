"""Networks and data by the names that people give them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from espalier import zoo
from espalier.data import Dataset, Split, batches, data_folder, normalise
from espalier.errors import DataError, UnsupportedError
from espalier.frontend.exported_file import is_exported_file, module_from_exported
from espalier.frontend.module_file import is_module_file, module_from_file
from espalier.frontend.onnx_import import from_onnx
from espalier.frontend.torch_export import fixed_parameters, from_torch
from espalier.ir.graph import Graph
from espalier.ir.types import Fixed
from espalier.zoo import pretrained

PRETRAINED = "pretrained:"


@dataclass(frozen=True, slots=True, eq=False)
class Imported:
    """A float network, its parameters, and those of them (by name) that its own definition does not train."""

    graph: Graph
    parameters: dict[str, NDArray]
    fixed: frozenset[str] = frozenset()


def is_pretrained(network: str) -> bool:
    """Whether ``network`` names one with published weights."""
    return network.startswith(PRETRAINED) or network.endswith(".npz")


def read_pretrained(network: str, root: Path | None = None) -> pretrained.Pretrained:
    """The network that ``pretrained:NAME`` (in the data folder ``root``) or an ``.npz`` file holds: its classes alone.

    Raises UnsupportedError for an unknown name, and the errors of the file.
    """
    name = network.removeprefix(PRETRAINED)
    if name != network and name not in pretrained.names():
        raise UnsupportedError(f"There is no pretrained network {name!r}: choose one of "
                               f"{', '.join(pretrained.names())}, or give the path of an .npz file")
    return pretrained.without_background(pretrained.load(name, data_folder(root)))


def load_network(network: str, split: Split, seed: int = 0, root: Path | None = None
                 ) -> tuple[Graph, dict[str, NDArray]]:
    """The float graph and parameters of a network, named as for :func:`import_network`."""
    found = import_network(network, split, seed, root)
    return found.graph, found.parameters


def import_network(network: str, split: Split, seed: int = 0, root: Path | None = None, *,
                   keep_batch_norm: bool = False) -> Imported:
    """Read a network.

    It is of the zoo, with weights from ``seed``; ``pretrained:NAME``, or the ``.npz`` file that holds its published
    weights; an ``.onnx`` file; a ``.pt2`` file of torch.export; or ``FILE.py:FACTORY``. The last two can run code: name
    only files that you trust. One of the zoo gets as many classes as the data has, as does a pretrained one, by a new
    last layer where they are others; its name is looked up in the data folder ``root``.
    ``keep_batch_norm``: for a training that trains batch norms; otherwise they are folded.

    Raises the errors of the frontend and of the files; UnsupportedError for an unknown name.
    """
    if network.endswith(".onnx"):
        graph, parameters = from_onnx(network, keep_batch_norm=keep_batch_norm)
        _require_classifier(graph)
        return Imported(graph, parameters)
    if is_pretrained(network):
        found = pretrained.for_classes(read_pretrained(network, root), split.train.class_count, seed)
        module, shape, name = pretrained.standardised(found).module, found.input_shape, found.name
    elif is_exported_file(network):
        (module, shape), name = module_from_exported(network), Path(network).stem
    elif is_module_file(network):
        module, shape = module_from_file(network, seed), split.train.image_shape
        name = Path(network.rpartition(":")[0]).stem
    else:
        module, shape, name = zoo.build(network, split.train.class_count, seed), zoo.input_shape(network), network
    return Imported(*from_torch(module, shape, name, keep_batch_norm=keep_batch_norm), fixed_parameters(module))


def is_network_file(network: str) -> bool:
    """Whether ``network`` is a file of another framework, with weights."""
    return network.endswith(".onnx") or is_exported_file(network)


def _require_classifier(graph: Graph) -> None:
    """Raise UnsupportedError unless ``graph`` has one image, one result and a weight to train."""
    found = len(graph.inputs), len(graph.outputs)
    if found != (1, 1) or not graph.parameters:
        raise UnsupportedError(f"Network {graph.name!r} must have one input, one output and at least one weight, not "
                               f"{found[0]}, {found[1]} and {len(graph.parameters)}: export the path from image to "
                               f"logits alone")


def require_suiting(network: str, image: tuple[int, ...], logits: tuple[int, ...], dataset: Dataset) -> None:
    """Raise DataError unless the data set has images and classes as the network does."""
    if dataset.image_shape != image:
        raise DataError(f"Network {network!r} takes images of shape {image}, and those of {dataset.name!r} have "
                        f"{dataset.image_shape}: give the data set that it was trained on")
    if (dataset.class_count,) != logits:
        raise DataError(f"Network {network!r} tells {logits[0]} classes apart, and {dataset.name!r} has "
                        f"{dataset.class_count}: give the data set that it was trained on")


def image_words(graph: Graph, dataset: Dataset, index: NDArray[np.int64]) -> NDArray[np.int64]:
    """The images of ``dataset`` at ``index`` as words of the network's image (N, C, H, W).

    Raises DataError unless their shape is that of the network.
    """
    image = graph.inputs[0]
    require_suiting(graph.name, image.shape, graph.outputs[0].shape, dataset)
    assert isinstance(image.format, Fixed), f"{image} is not in fixed point"
    return image.format.quantise(normalise(dataset.images[index]))


def training_order(dataset: Dataset, batch: int, seed: int, steps: int) -> NDArray[np.int64]:
    """The indices of ``steps`` batches (steps, batch), epoch after epoch, each in the order training has.

    Raises DataError if not even one batch can be filled.
    """
    found: list[NDArray[np.int64]] = []
    epoch = 0
    while not found or len(found) < steps:
        found += list(batches(dataset, batch, seed, epoch, drop_last=True))
        epoch += 1
    return np.stack(found[:steps])
