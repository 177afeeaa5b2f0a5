"""The binary version of CIFAR-10: records of one label byte and 3x32x32 planar pixel bytes.

Five training batches and one test batch, plain, ``.gz`` or ``.xz``, in a folder or a tar archive.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from espalier.data.dataset import Dataset, Split
from espalier.data.source import Content, Source, read, stored_name
from espalier.errors import DataError

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGE_SHAPE = (3, 32, 32)
IMAGE_BYTES = 3 * 32 * 32
RECORD_BYTES = 1 + IMAGE_BYTES
TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_BATCH = "test_batch"


def recognises(source: Source) -> bool:
    """Whether ``source`` holds the first batch of the binary version."""
    return stored_name(source, f"{TRAIN_BATCHES[0]}.bin") is not None


def read_split(source: Source, name: str) -> Split:
    """All six batches. Raises DataError if one is missing, corrupt or truncated, or a label is no class."""
    return Split(_dataset(source, f"{name}-train", TRAIN_BATCHES), _dataset(source, f"{name}-test", (TEST_BATCH,)))


def _dataset(source: Source, name: str, batches: tuple[str, ...]) -> Dataset:
    records = np.concatenate([parse_batch(read(source, f"{batch}.bin")) for batch in batches])
    images = np.ascontiguousarray(records[:, 1:]).reshape(-1, *IMAGE_SHAPE)
    return Dataset(name, images, records[:, 0].astype(np.int64), CIFAR10_CLASSES)


def parse_batch(content: Content) -> NDArray[np.uint8]:
    """The records of one file, (N, 3073): label, then red, green and blue planes."""
    if len(content.data) % RECORD_BYTES:
        raise DataError(f"{content.place} is truncated or no CIFAR-10 batch: its {len(content.data)} bytes are not a "
                        f"multiple of {RECORD_BYTES}, the bytes of one record")
    return np.frombuffer(content.data, np.uint8).reshape(-1, RECORD_BYTES)
