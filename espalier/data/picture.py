"""One image file: is it whole, of a kind that bytes hold, and what are its pixels."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from espalier.errors import DataError

ENDINGS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
IMAGE_ERRORS = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError)
GREY_MODES = frozenset({"1", "L"})
#: Modes with 8 bits a channel or less, which become grey or RGB without loss of range.
MODES = GREY_MODES | {"LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"}


def check_size(size: tuple[int, int] | None) -> None:
    """Raise DataError for an image size (H, W) below one pixel."""
    if size is not None and min(size) < 1:
        raise DataError(f"An image size (height, width) must be at least (1, 1), not {size}")


def read_pixels(place: str, content: bytes, size: tuple[int, int] | None, mode: str) -> NDArray[np.uint8]:
    """The pixels (C, H, W) of a file's ``content`` in mode ``L`` or ``RGB``, scaled (bilinear) to ``size`` if given.

    Raises DataError, naming ``place``, if the image is damaged or its pixels do not fit bytes.
    """
    image = _opened(place, content).convert(mode)
    if size is not None:
        height, width = size
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.uint8)
    return pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _opened(place: str, content: bytes) -> Image.Image:
    """The whole image, decoded."""
    try:
        with Image.open(BytesIO(content)) as opened:
            opened.load()
            image = opened.copy()
    except IMAGE_ERRORS as error:
        raise DataError(f"{place} is no readable image ({error}): replace or remove it") from error
    if image.mode not in MODES:
        raise DataError(f"Images must have at most 8 bits a channel, and {place} has the pixel mode {image.mode!r}: "
                        "save it with 8 bits")
    return image


def header_mode(file: Path) -> str:
    """The pixel mode of an image file, from its header alone. Raises DataError if it is damaged."""
    try:
        with Image.open(file) as image:
            return image.mode
    except IMAGE_ERRORS as error:
        raise DataError(f"{file} is no readable image ({error}): replace or remove it") from error
