"""The one way in which pixels become numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import overload

import numpy as np
from numpy.typing import NDArray

from espalier.data.dataset import Dataset, Images, Split

MIDDLE_GREY = 128  #: the pixel that means zero


@overload
def normalise(images: Split) -> Split: ...
@overload
def normalise(images: Dataset) -> Dataset: ...
@overload
def normalise(images: Images) -> NDArray[np.float32]: ...
def normalise(images: Split | Dataset | Images) -> Split | Dataset | NDArray[np.float32]:
    """Pixels 0..255 as float32 ``(pixel - 128) / 128`` in [-1, 1), exactly.

    In hardware this is free: the word of ``Fixed.of(8, 7)`` is the pixel with its top bit inverted, and a
    wider word with 7 or more fraction bits holds it exactly. No statistics of the data are used. Float
    images are in this form already and stay as they are. Labels and names of a data set or split stay.
    """
    match images:
        case Split(train=train, test=test):
            return Split(normalise(train), normalise(test))
        case Dataset(images=pixels):
            return replace(images, images=normalise(pixels))
        case _:
            return _numbers(images)


def _numbers(images: Images) -> NDArray[np.float32]:
    assert images.dtype in (np.dtype(np.uint8), np.dtype(np.float32)), "images are uint8 or float32"
    numbers = images.astype(np.float32, copy=False)
    if images.dtype == np.uint8:
        numbers -= MIDDLE_GREY
        numbers /= MIDDLE_GREY
    return numbers
