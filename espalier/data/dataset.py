"""What every reader returns: labelled images, checked at birth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from espalier.errors import DataError

Images: TypeAlias = NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Labelled images of one shape.

    Raises DataError if there are no images, if counts, shapes or types are not as below, if a label
    is no class, or if a float image is not finite.

    Parameters
    ----------
    name : str
        For messages and reports, such as ``mnist-train``.
    images : ndarray of uint8 or float32, (N, C, H, W)
        uint8 pixels are 0..255 as stored in the file; float32 values lie in [-1, 1] (see ``normalise``).
    labels : ndarray of int64, (N,)
        0..class_count-1.
    classes : int or tuple of str
        How many classes, or their names in order of the label.
    checksum : str
        Note on the content: which standard data set it is, or that it is unknown. Empty if not computed.
    """

    name: str
    images: Images
    labels: NDArray[np.int64]
    classes: int | tuple[str, ...]
    checksum: str = ""

    def __post_init__(self) -> None:
        check_images(self.name, self.images)
        check_labels(self.name, self.labels, len(self.images), self.class_count)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def class_count(self) -> int:
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names given, or the labels in decimal."""
        return tuple(map(str, range(self.classes))) if isinstance(self.classes, int) else self.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.images.shape
        return channels, height, width


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """A training set and a test set with the same image shape and classes."""

    train: Dataset
    test: Dataset

    def __post_init__(self) -> None:
        if self.train.image_shape != self.test.image_shape:
            raise DataError(f"Training and test images must have one shape (C, H, W), not {self.train.image_shape} in "
                            f"{self.train.name!r} and {self.test.image_shape} in {self.test.name!r}")
        if self.train.classes != self.test.classes:
            raise DataError(f"Training and test set must have the same classes, not {self.train.class_names} in "
                            f"{self.train.name!r} and {self.test.class_names} in {self.test.name!r}")


def check_images(name: str, images: NDArray[np.generic]) -> None:
    """Raise DataError unless ``images`` is a non-empty (N, C, H, W) array of uint8 or of float32 in [-1, 1]."""
    if images.dtype not in (np.dtype(np.uint8), np.dtype(np.float32)):
        raise DataError(f"Images must be uint8 or float32; those of {name!r} are {images.dtype}")
    if images.ndim != 4:
        raise DataError(f"Images must have the axes (N, C, H, W); those of {name!r} have the shape {images.shape}")
    if not images.size:
        raise DataError(f"A data set must have at least one image and pixel; {name!r} is empty: shape {images.shape}")
    if images.dtype == np.float32 and not (abs(images) <= 1).all():
        raise DataError(f"Float images must be numbers in [-1, 1]; {name!r} has other values: "
                        "scale it, or store uint8 pixels")


def check_labels(name: str, labels: NDArray[np.int64], images: int, classes: int) -> None:
    """Raise DataError unless ``labels`` is int64, one per image, each in 0..classes-1."""
    if labels.dtype != np.int64 or labels.ndim != 1:
        raise DataError(f"Labels must be an int64 vector; those of {name!r} are {labels.dtype} of shape {labels.shape}")
    if len(labels) != images:
        raise DataError(f"Every image needs one label; {name!r} has {images} images and {len(labels)} labels")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise DataError(f"Labels must be in 0..{classes - 1}; label {labels[wrong[0]]} of example "
                        f"{wrong[0]} of {name!r} is not")
