"""The cropped-digits format of SVHN: MATLAB files with X (32, 32, 3, N) and y (N, 1), where label 10 is the digit 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from espalier.data.dataset import Dataset, Split
from espalier.data.matlab import parse_matlab
from espalier.data.source import Content, Folder, read, stored_name
from espalier.errors import DataError

TRAIN_FILE = "train_32x32.mat"
TEST_FILE = "test_32x32.mat"


def recognises(path: Path) -> bool:
    """Whether ``path`` is a folder with the training file."""
    return stored_name(Folder(path), TRAIN_FILE) is not None


def read_split(path: Path, name: str) -> Split:
    """Both files in the folder ``path``. Raises DataError if one is missing, damaged or holds something else."""
    return Split(_dataset(path, f"{name}-train", TRAIN_FILE), _dataset(path, f"{name}-test", TEST_FILE))


def _dataset(path: Path, name: str, file: str) -> Dataset:
    images, labels = parse_mat(read(Folder(path), file))
    return Dataset(name, images, labels, 10)


def parse_mat(content: Content) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 3, H, W) and labels (N,), digit 0 as 0."""
    variables = parse_matlab(content)
    pixels, digits = variables.get("X"), variables.get("y")
    if pixels is None or digits is None:
        raise DataError(f"{content.place} must hold the variables X and y, as SVHN's cropped digits do")
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[2] != 3:
        raise DataError(f"X of {content.place} must be uint8 (H, W, 3, N), not {pixels.dtype} {pixels.shape}")
    return np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)), _labels(content.place, digits)


def _labels(place: str, digits: NDArray[np.generic]) -> NDArray[np.int64]:
    if digits.dtype.kind not in "uif" or not np.isin(digits, range(1, 11)).all():
        raise DataError(f"y of {place} must hold the labels 1..10 (10 is the digit 0)")
    return digits.reshape(-1).astype(np.int64) % 10
