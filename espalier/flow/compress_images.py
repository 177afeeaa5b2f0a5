"""The images that compress looks at, and how many of them a network recognises."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from espalier.data import Dataset
from espalier.data.draw import draws
from espalier.errors import DataError
from espalier.flow.compress_request import CompressRequest, Method
from espalier.ir.graph import Graph
from espalier.train.device_data import DeviceData
from espalier.train.evaluate import to_tensor
from espalier.train.step import accuracy

IMAGES = 1000  #: of the training set that are looked at, if it has as many
SEEN = 32      #: of these, the images from which the statistics of channels are taken


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """Training images, drawn once.

    Parameters
    ----------
    calibration : Dataset or None
        On which weights are rebuilt.
    selection : Dataset or None
        Others, by which is chosen.
    seen : Dataset
        The first of both.
    """

    calibration: Dataset | None
    selection: Dataset | None
    seen: Dataset

    @classmethod
    def drawn(cls, dataset: Dataset, request: CompressRequest, chooses: bool = False) -> Images:
        """The images for ``request``; ``chooses``: there is something to choose besides what it says."""
        rebuilds = request.prunes and request.kind is Method.RECONSTRUCT
        chooses = (chooses or request.loss is not None or request.bit_loss is not None
                   or request.prunes and len(request.kind.tried) > 1)
        count = min(IMAGES, len(dataset)) if request.images is None else request.images
        least = max(1, rebuilds + chooses)
        if not least <= count <= len(dataset):
            raise DataError(f"The images to look at are {least}..{len(dataset)} of the training set {dataset.name!r}, "
                            f"not {count}")
        order = draws(request.seed).permutation(len(dataset))[:count]
        half = count // 2 if chooses else count
        apart = half if rebuilds else 0
        return cls(taken(dataset, order[:half]) if rebuilds else None,
                   taken(dataset, order[apart:]) if chooses else None, taken(dataset, order[:SEEN]))


def taken(dataset: Dataset, index: NDArray[np.int64] | slice) -> Dataset:
    """Some images of a data set."""
    return replace(dataset, images=dataset.images[index], labels=dataset.labels[index])


def recognised(graph: Graph, parameters: Mapping[str, NDArray], dataset: Dataset, top: int) -> float:
    """The accuracy of a network in floating point or fixed point."""
    return recognised_of(graph, parameters, DeviceData(dataset, graph.inputs[0].format, "cpu"), top)


def recognised_of(graph: Graph, parameters: Mapping[str, NDArray], data: DeviceData, top: int) -> float:
    """As :func:`recognised`, of images that are words (or numbers) already."""
    weights = {value.name: to_tensor(parameters[value.name], value.format) for value in graph.parameters}
    return accuracy(graph, weights, data, top=top)


def least_accuracy(whole: float, loss_points: float, count: int) -> float:
    """The accuracy on ``count`` images that must stay of the ``whole``, in whole images."""
    return max(0, math.ceil(whole * count - loss_points / 100 * count - 1e-6)) / count
