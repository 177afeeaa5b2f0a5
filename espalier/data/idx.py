"""The IDX format of MNIST and Fashion-MNIST, plain, ``.gz`` or ``.xz``.

A file is two zero bytes, a type code (8: unsigned byte), the number of axes, each axis length as a
big-endian 32-bit number, then the elements, last axis fastest (described on the MNIST home page).
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from espalier.data.dataset import Dataset, Split
from espalier.data.source import Content, Folder, Source, read, stored_name
from espalier.errors import DataError

UNSIGNED_BYTE = 0x08

FASHION_MNIST_CLASSES = ("T-shirt/top", "trouser", "pullover", "dress", "coat",
                         "sandal", "shirt", "sneaker", "bag", "ankle boot")


def recognises(path: Path) -> bool:
    """Whether ``path`` is a folder with IDX training images of the usual name."""
    return stored_name(Folder(path), *spellings("train", "images", 3)) is not None


def read_split(path: Path, name: str, classes: int | tuple[str, ...] | None = None) -> Split:
    """The four IDX files in the folder ``path``; without ``classes``, as many as the largest label tells.

    Raises DataError if a file is missing, corrupt, truncated or not IDX, or if images and labels disagree.
    """
    source = Folder(path)
    train_images, train_labels = read_part(source, "train")
    test_images, test_labels = read_part(source, "t10k")
    if classes is None:
        classes = int(max(train_labels.max(), test_labels.max())) + 1
    return Split(Dataset(f"{name}-train", train_images, train_labels, classes),
                 Dataset(f"{name}-test", test_images, test_labels, classes))


def read_part(source: Source, part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 1, H, W) and labels (N,) of ``part``, which is ``train`` or ``t10k``."""
    images = parse_idx(read(source, *spellings(part, "images", 3)), axes=3)
    labels = parse_idx(read(source, *spellings(part, "labels", 1)), axes=1)
    return images[:, np.newaxis], labels.astype(np.int64)


def spellings(part: str, kind: str, axes: int) -> tuple[str, ...]:
    """The names under which mirrors keep one file: ``train-images-idx3-ubyte`` or ``train-images.idx3-ubyte``."""
    return tuple(f"{part}-{kind}{mark}idx{axes}-ubyte" for mark in "-.")


def parse_idx(content: Content, axes: int) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes with that many axes. Raises DataError if it is anything else."""
    place, data = content.place, content.data
    start = 4 + 4 * axes
    if data[:4] != bytes((0, 0, UNSIGNED_BYTE, axes)):
        raise DataError(f"{place} must begin with the IDX magic number 0x{UNSIGNED_BYTE << 8 | axes:08x} (unsigned "
                        f"bytes, {axes} axes), not 0x{data[:4].hex()}: it is another kind of file")
    if len(data) < start:
        raise DataError(f"{place} is truncated: an IDX header of {axes} axes has {start} bytes, not {len(data)}")
    shape = struct.unpack(f">{axes}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise DataError(f"{place} is truncated or has bytes too many: its header {shape} promises {math.prod(shape)} "
                        f"bytes, and {len(data) - start} follow")
    if not math.prod(shape):
        raise DataError(f"{place} is empty: its header says {shape}")
    return np.frombuffer(bytearray(data), np.uint8, offset=start).reshape(shape)
