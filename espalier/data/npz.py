"""NumPy archives: ``x_train, y_train, x_test, y_test`` (or ``train_images, train_labels, ...``, or ``images, labels``).

Images are uint8, or floats in [-1, 1]; (N, H, W), (N, C, H, W) or (N, H, W, C). Four axes are taken as
N C H W unless only the last axis is 1 or 3 long. A single set is split by ``stratified``. Class names may
stand under ``classes``; without them every label from 0 to the largest must occur. Pickled arrays are
refused.
"""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from espalier.data.dataset import Dataset, Images, Split
from espalier.data.source import read_bytes
from espalier.data.stratified import stratified
from espalier.errors import DataError

#: The names of (training images, training labels, test images, test labels) that are understood.
KEYS = (("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"))
SINGLE_KEYS = ("images", "labels")

#: What reading a damaged archive may raise: the errors of ZIP, of its compressions and of NumPy's array headers.
NPZ_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, OSError, EOFError, KeyError, TypeError,
              ValueError, RuntimeError, OverflowError, MemoryError)


def recognises(path: Path) -> bool:
    """Whether ``path`` is a file called ``.npz``."""
    return path.suffix == ".npz" and path.is_file()


def read_split(path: Path, name: str) -> Split:
    """The arrays of ``path``. Raises DataError if it is damaged, holds other arrays, or they disagree."""
    arrays = _arrays(path)
    keys = next((keys for keys in KEYS if set(keys) <= set(arrays)), None)
    if keys is None:
        whole = _dataset(path, arrays, SINGLE_KEYS, name, _classes(path, arrays, SINGLE_KEYS[1:]))
        return stratified(whole)
    classes = _classes(path, arrays, keys[1::2])
    return Split(_dataset(path, arrays, keys[:2], f"{name}-train", classes),
                 _dataset(path, arrays, keys[2:], f"{name}-test", classes))


def _arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    content = read_bytes(path)
    try:
        with np.load(BytesIO(content), allow_pickle=False) as archive:
            members = {key: archive[key] for key in archive.files}
    except NPZ_ERRORS as error:
        raise DataError(f"{path} is no readable .npz file without pickled objects ({error}): write it again") from error
    arrays = {key: value for key, value in members.items() if isinstance(value, np.ndarray)}  # others come as bytes
    if not set(SINGLE_KEYS) <= set(arrays) and not any(set(keys) <= set(arrays) for keys in KEYS):
        raise DataError(f"{path} must hold the arrays {', '.join(KEYS[0])} (or {', '.join(KEYS[1])}, or "
                        f"{', '.join(SINGLE_KEYS)}), not {', '.join(sorted(arrays)) or 'none'}")
    return arrays


def _classes(path: Path, arrays: dict[str, NDArray[np.generic]], keys: tuple[str, ...]) -> int | tuple[str, ...]:
    """The names under ``classes``, or as many classes as there are labels.

    Raises DataError where a label below the largest never occurs: labels from 1, or wild ones, would
    become classes without images.
    """
    if "classes" in arrays:
        return tuple(map(str, arrays["classes"].reshape(-1)))
    found = np.unique(np.concatenate([_labels(path, key, arrays[key]) for key in keys]))
    found = found[found >= 0]
    skipped = np.flatnonzero(found != np.arange(len(found)))
    if skipped.size:
        raise DataError(f"Every label from 0 to the largest must occur, and {path} has the label {found[-1]} and none "
                        f"that is {skipped[0]}: number the classes anew, or store all their names under 'classes'")
    return max(1, len(found))


def _dataset(path: Path, arrays: dict[str, NDArray[np.generic]], keys: tuple[str, ...], name: str,
             classes: int | tuple[str, ...]) -> Dataset:
    images, labels = keys
    return Dataset(name, _images(path, images, arrays[images]), _labels(path, labels, arrays[labels]), classes)


def _images(path: Path, key: str, array: NDArray[np.generic]) -> Images:
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DataError(f"{key!r} of {path} must be uint8 or float, not {array.dtype}")
    if array.ndim not in (3, 4):
        raise DataError(f"{key!r} of {path} must be (N, H, W), (N, C, H, W) or (N, H, W, C), not {array.shape}")
    if array.ndim == 3:
        array = array[:, np.newaxis]
    elif array.shape[3] in (1, 3) and array.shape[1] not in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.dtype == np.uint8:
        return array.astype(np.uint8, order="C")
    with np.errstate(over="ignore"):  # becomes infinite, which Dataset refuses
        return array.astype(np.float32, order="C")


def _labels(path: Path, key: str, array: NDArray[np.generic]) -> NDArray[np.int64]:
    if array.dtype.kind not in "ui":
        raise DataError(f"{key!r} of {path} must be whole numbers, not {array.dtype}")
    if array.ndim not in (1, 2) or array.ndim == 2 and array.shape[1] != 1:
        raise DataError(f"{key!r} of {path} must be one label per image, (N,) or (N, 1), not {array.shape}")
    return array.reshape(-1).astype(np.int64)
