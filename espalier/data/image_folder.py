"""A folder of images, one sub-folder per class, named by it.

With sub-folders ``train`` and ``test`` (each holding the class folders) that is the split; otherwise
``stratified`` makes one. Files are read in the order of their names; those that do not end as an
image does, and hidden ones, are passed over.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from espalier.data.dataset import Dataset, Split
from espalier.data.picture import ENDINGS, GREY_MODES, check_size, header_mode, read_pixels
from espalier.data.source import read_bytes
from espalier.data.stratified import stratified
from espalier.errors import DataError


def recognises(path: Path) -> bool:
    """Whether some folder in ``path``, or in its ``train``, has an image directly in it."""
    return any(_image_files(folder) for root in (path, path / "train") for folder in _folders(root))


def read_split(path: Path, name: str, size: tuple[int, int] | None = None) -> Split:
    """The images under ``path``, scaled (bilinear) to ``size`` = (H, W) if given, else of one common size.

    One channel if every image is grey, three otherwise. Raises DataError for missing, damaged or
    differently sized images and for classes that differ between ``train`` and ``test``.
    """
    check_size(size)
    roots = (path / "train", path / "test")
    if not roots[0].is_dir():
        classes = _classes(path)
        return stratified(_dataset(name, path, classes, size, _mode(path)))
    if _classes(roots[0]) != _classes(roots[1]):
        raise DataError(f"{roots[0]} and {roots[1]} must have the same class folders, not "
                        f"{', '.join(_classes(roots[0]))} and {', '.join(_classes(roots[1])) or 'none'}")
    mode = "L" if all(_mode(root) == "L" for root in roots) else "RGB"
    train, test = (_dataset(f"{name}-{root.name}", root, _classes(root), size, mode) for root in roots)
    return Split(train, test)


def _dataset(name: str, root: Path, classes: tuple[str, ...], size: tuple[int, int] | None, mode: str) -> Dataset:
    images, labels = [], []
    for label, folder in enumerate(_folders(root)):
        files = _image_files(folder)
        if not files:
            raise DataError(f"Every class folder must hold an image ({', '.join(sorted(ENDINGS))}); {folder} has none")
        for file in files:
            images.append(read_pixels(str(file), read_bytes(file), size, mode))
            labels.append(label)
            if images[-1].shape != images[0].shape:
                raise DataError(f"Without an image size all images must be equally large; {file} is (C, H, W) = "
                                f"{images[-1].shape}, the first one {images[0].shape}: scale them alike, or "
                                "give load() an image size")
    return Dataset(name, np.stack(images), np.array(labels, np.int64), classes)


def _mode(root: Path) -> str:
    """``L`` if every image under ``root`` is grey, else ``RGB``."""
    files = (file for folder in _folders(root) for file in _image_files(folder))
    return "L" if all(header_mode(file) in GREY_MODES for file in files) else "RGB"


def _classes(root: Path) -> tuple[str, ...]:
    return tuple(folder.name for folder in _folders(root))


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _image_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir()
                  if file.is_file() and file.suffix.lower() in ENDINGS and not file.name.startswith("."))
