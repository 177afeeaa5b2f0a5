"""A tar archive of images in class folders, and beside it ``classes.csv``: the number and the name of each class.

The columns ``index``, ``wnid`` (the folder) and ``name`` are read. So a sample of ImageNet keeps ImageNet's
class numbers, which trained networks answer with. It is one set of images, which is halved where a split is needed.
"""

from __future__ import annotations

import csv
from io import StringIO
from pathlib import Path

import numpy as np

from espalier.data.dataset import Dataset, Split
from espalier.data.draw import draws
from espalier.data.picture import ENDINGS, check_size, read_pixels
from espalier.data.source import Folder, read, tar_members
from espalier.errors import DataError

CLASSES_FILE = "classes.csv"
COLUMNS = ("index", "wnid", "name")
SPLIT_SEED = 0
ARCHIVE_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.xz")


def read_archive(folder: Path, name: str, size: tuple[int, int] | None = None) -> Dataset:
    """The images of the one archive in ``folder``, in colour, ordered by class number, then by file name.

    Scaled (bilinear) to ``size`` = (H, W) if given, else of one common size; files that do not end as an image does
    are passed over. Raises DataError if the archive or ``classes.csv`` is missing, damaged or not as above,
    or if an image is damaged, of another size than the first, or in a folder that is no class.
    """
    check_size(size)
    classes = _classes(folder)
    numbers = {wnid: number for number, (wnid, _) in enumerate(classes)}
    archive = _archive(folder)
    members = {path: content for path, content in tar_members(archive).items() if path.suffix.lower() in ENDINGS}
    for path in members:
        if path.parent.name not in numbers:
            raise DataError(f"Every image must lie in the folder of a class of {folder / CLASSES_FILE}, and "
                            f"{archive}:{path} does not")
    images, labels = [], []
    for path in sorted(members, key=lambda path: (numbers[path.parent.name], path.name)):
        images.append(read_pixels(f"{archive}:{path}", members[path], size, "RGB"))
        labels.append(numbers[path.parent.name])
        if images[-1].shape != images[0].shape:
            raise DataError(f"Without an image size all images must be equally large; {archive}:{path} is (C, H, W) = "
                            f"{images[-1].shape}, the first one {images[0].shape}: give an image size")
    if not images:
        raise DataError(f"{archive} must hold images ({', '.join(sorted(ENDINGS))}), and has none")
    return Dataset(name, np.stack(images), np.array(labels, np.int64), tuple(title for _, title in classes))


def recognises(folder: Path) -> bool:
    """Whether the folder has a table of classes."""
    return (folder / CLASSES_FILE).is_file()


def read_split(folder: Path, name: str, size: tuple[int, int] | None = None) -> Split:
    """The images that :func:`read_archive` reads in two halves, drawn at random, but always the same.

    The halves have different images, not the same share of each class: a sample may hold one image of each.
    """
    whole = read_archive(folder, name, size)
    chosen = np.zeros(len(whole), bool)
    chosen[draws(SPLIT_SEED).permutation(len(whole))[:len(whole) // 2]] = True
    if not chosen.any():
        raise DataError(f"{folder} must hold at least two images to halve, and has {len(whole)}")
    train, test = (Dataset(f"{name}-{part}", whole.images[own], whole.labels[own], whole.classes)
                   for part, own in (("train", chosen), ("test", ~chosen)))
    return Split(train, test)


def _archive(folder: Path) -> Path:
    found = sorted(name for name in Folder(folder).names() if name.endswith(ARCHIVE_ENDINGS))
    if len(found) != 1:
        raise DataError(f"{folder} must hold one tar archive of images, not {', '.join(found) or 'none'}")
    return folder / found[0]


def _classes(folder: Path) -> list[tuple[str, str]]:
    """Folder and name of each class, by its number."""
    content = read(Folder(folder), CLASSES_FILE)
    try:
        rows = list(csv.DictReader(StringIO(content.data.decode("utf-8")), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{content.place} is no CSV text in UTF-8 ({error}): get it again") from error
    if not rows or any(row.get(column) is None for row in rows for column in COLUMNS):
        raise DataError(f"{content.place} must have a row for each class and the columns {', '.join(COLUMNS)}")
    for number, row in enumerate(rows):
        if row["index"] != str(number):
            raise DataError(f"The classes of {content.place} must be numbered 0, 1, 2...; row {number} has the index "
                            f"{row['index']!r}")
    folders = [row["wnid"] for row in rows]
    if len(set(folders)) != len(folders):
        twice = next(wnid for wnid in folders if folders.count(wnid) > 1)
        raise DataError(f"Every class of {content.place} must have a folder of its own, and {twice!r} stands twice")
    return [(row["wnid"], row["name"]) for row in rows]
