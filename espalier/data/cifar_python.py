"""The python version of CIFAR-10: pickled dictionaries of a pixel array and a list of labels.

A pickle can run any program, so these are read by an unpickler that knows nothing but the three names
those files use, and stands its own inert classes in for them: no code from the file, and none of
NumPy's, runs while it is read.
"""

from __future__ import annotations

import io
import pickle
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from espalier.data.cifar_binary import CIFAR10_CLASSES, IMAGE_BYTES, IMAGE_SHAPE, TEST_BATCH, TRAIN_BATCHES
from espalier.data.dataset import Dataset, Split
from espalier.data.source import Content, Source, read, stored_name
from espalier.errors import DataError

#: What reading a damaged pickle may raise (its documentation: "not necessarily limited to" UnpicklingError).
PICKLE_ERRORS = (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError, TypeError,
                 ValueError, OverflowError, MemoryError)


class PickledType:
    """Stands in for ``numpy.dtype``: keeps the code it was made with, such as ``u1``."""

    def __init__(self, code: object = None, *_: object) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        """Byte order and field layout do not matter for single bytes."""


class PickledArray:
    """Stands in for ``numpy.ndarray`` and the function that rebuilds one: keeps shape, type and bytes."""

    def __init__(self, *_: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


#: Every global the files of the python version name, by either of NumPy's module names.
STAND_INS = {("numpy", "dtype"): PickledType, ("numpy", "ndarray"): PickledArray,
             ("numpy.core.multiarray", "_reconstruct"): PickledArray,
             ("numpy._core.multiarray", "_reconstruct"): PickledArray}


class Unpickler(pickle.Unpickler):
    """Reads dictionaries, lists, numbers, strings and arrays; refuses every other object."""

    def find_class(self, module: str, name: str) -> type[PickledType | PickledArray]:
        if (module, name) not in STAND_INS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no CIFAR-10 file needs")
        return STAND_INS[module, name]

    def persistent_load(self, pid: object) -> NoReturn:
        raise pickle.UnpicklingError("it refers to objects outside the file")


def recognises(source: Source) -> bool:
    """Whether ``source`` holds the first batch of the python version."""
    return stored_name(source, TRAIN_BATCHES[0]) is not None


def read_split(source: Source, name: str) -> Split:
    """All six batches. Raises DataError if one is missing, damaged or unsafe, or if images and labels disagree."""
    return Split(_dataset(source, f"{name}-train", TRAIN_BATCHES), _dataset(source, f"{name}-test", (TEST_BATCH,)))


def _dataset(source: Source, name: str, batches: tuple[str, ...]) -> Dataset:
    images, labels = zip(*(parse_batch(read(source, batch)) for batch in batches), strict=True)
    return Dataset(name, np.concatenate(images), np.concatenate(labels), CIFAR10_CLASSES)


def parse_batch(content: Content) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 3, 32, 32) and labels (N,) of one pickled batch."""
    batch = unpickle(content)
    images = _pixels(content.place, batch.get("data"))
    labels = batch.get("labels")
    if not isinstance(labels, list) or not all(isinstance(label, int) and abs(label) < 256 for label in labels):
        raise DataError(f"{content.place} must have a list of small whole numbers under 'labels'")
    if len(labels) != len(images):
        raise DataError(f"Every image needs one label; {content.place} has {len(images)} images and "
                        f"{len(labels)} labels")
    return images, np.array(labels, np.int64)


def unpickle(content: Content) -> dict[str, object]:
    """The dictionary in a batch file, its keys as text. Raises DataError if it is damaged, unsafe or no dictionary."""
    try:
        batch = Unpickler(io.BytesIO(content.data), encoding="bytes").load()
    except PICKLE_ERRORS as error:
        raise DataError(f"{content.place} is no safe, whole pickle of a CIFAR-10 batch ({error}): "
                        "get the file again") from error
    if not isinstance(batch, dict):
        raise DataError(f"{content.place} must be a pickled dictionary, not {type(batch).__name__}")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in batch.items()}


def _pixels(place: str, pickled: object) -> NDArray[np.uint8]:
    """The (N, 3072) byte array in ``pickled`` as images."""
    match pickled:
        case PickledArray(state=(_, (int() as count, int() as row), PickledType(code="u1"), 0, bytes() as raw)):
            if count < 1 or row != IMAGE_BYTES or len(raw) != count * row:
                raise DataError(f"The array 'data' of {place} must be (N, {IMAGE_BYTES}) bytes, N at least 1, not "
                                f"({count}, {row}) in {len(raw)} bytes")
            return np.frombuffer(bytearray(raw), np.uint8).reshape(-1, *IMAGE_SHAPE)
        case _:
            raise DataError(f"{place} must have an array of unsigned bytes (N, {IMAGE_BYTES}) under 'data'")
