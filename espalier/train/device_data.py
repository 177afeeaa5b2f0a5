"""A whole data set on the device, as words, and its batches made there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from espalier.data import Dataset, normalise
from espalier.ir.types import Format
from espalier.numerics.fixed import Fixed
from espalier.train.evaluate import element_type
from espalier.train.native_code import crop

PAD = 4  #: pixels that augmentation moves an image by, at most


class DeviceData:
    """Images and labels of a data set on a device.

    Parameters
    ----------
    dataset : Dataset
    format_ : Format
        Of the network's image: words or float32.
    device : str
    augmented : bool
        Whether :meth:`moved` will be asked for.
    """

    def __init__(self, dataset: Dataset, format_: Format, device: str, augmented: bool = False) -> None:
        numbers = normalise(dataset).images
        assert not isinstance(format_, Fixed) or format_.width <= 16, "verified graphs have no wider images"
        array = format_.quantise(numbers).astype(np.int16) if isinstance(format_, Fixed) else numbers
        self.dtype = element_type(format_)
        self.size = dataset.image_shape
        self.images = torch.from_numpy(np.ascontiguousarray(array)).to(device)
        self.labels = torch.from_numpy(dataset.labels).to(device)
        self.rows, self.columns = (torch.arange(size, device=device) for size in self.size[1:])
        self.channels = torch.arange(self.size[0], device=device)[:, None, None]
        if augmented:
            self.images = functional.pad(self.images, (PAD, PAD, PAD, PAD))

    def words(self, index: Tensor, moves: Tensor | None) -> Tensor:
        """The int16 words of the images at ``index``, moved if asked; on a CPU, where native code was compiled."""
        return self.images[index] if moves is None else crop(self.images, index, moves, PAD)

    def plain(self, index: Tensor) -> Tensor:
        """The images (N, C, H, W) at ``index`` (N,)."""
        return self.images[index].to(self.dtype)

    def moved(self, index: Tensor, moves: Tensor) -> Tensor:
        """The images at ``index``, each cropped and mirrored as ``moves`` (N, 3) says: down, right, mirrored."""
        down, right, mirrored = moves[:, :, None].unbind(1)
        rows = self.rows + down
        columns = right + torch.where(mirrored > 0, self.size[2] - 1 - self.columns, self.columns)
        _, channels, height, width = self.images.shape
        planes = (index[:, None, None, None] * channels + self.channels) * height
        return self.images.take((planes + rows[:, None, :, None]) * width + columns[:, None, None, :]).to(self.dtype)


@dataclass(frozen=True, slots=True)
class DataFeed:
    """Batches of a data set (:class:`espalier.train.pipeline.Feed`): indices of images, and how each is moved.

    ``native``: images as :meth:`DeviceData.words` gives them.
    """

    data: DeviceData
    index: Sequence[Tensor]
    moves: Sequence[Tensor] | None
    native: bool

    def __len__(self) -> int:
        return len(self.index)

    def size(self, number: int) -> int:
        return len(self.index[number])

    def images(self, number: int) -> Tensor:
        index, moves = self.index[number], None if self.moves is None else self.moves[number]
        if self.native:
            return self.data.words(index, moves)
        return self.data.plain(index) if moves is None else self.data.moved(index, moves)

    def labels(self, number: int) -> Tensor:
        return self.data.labels[self.index[number]]

    def divided(self, number: int, parts: int) -> DataFeed:
        parts = min(parts, self.size(number))
        moves = None if self.moves is None else self.moves[number].tensor_split(parts)
        return DataFeed(self.data, self.index[number].tensor_split(parts), moves, self.native)


def draw_moves(count: int, seed: int, epoch: int, batch: int) -> NDArray[np.int64]:
    """What ``data.augment`` draws for a batch of ``count`` images: (count, 3) of down, right, mirrored."""
    random = np.random.RandomState([seed, epoch, batch])
    down, right = random.randint(0, 2 * PAD + 1, size=(2, count))
    return np.stack([down, right, random.randint(0, 2, size=count)], axis=1).astype(np.int64)
