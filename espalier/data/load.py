"""One door to every data set: by name or by path."""

from __future__ import annotations

import os
from pathlib import Path

from espalier.data import cifar_binary, cifar_python, digits, idx, image_archive, image_folder, npz, svhn
from espalier.data.checksums import annotated
from espalier.data.dataset import Split
from espalier.data.source import Archive, Folder, Source
from espalier.errors import DataError

ROOT_VARIABLE = "ESPALIER_DATA"

#: Where each named data set is looked for, under the root, in order; the root itself comes last.
PLACES: dict[str, tuple[str, ...]] = {
    "mnist": ("mnist", "MNIST/raw"),
    "fashion-mnist": ("fashion-mnist", "FashionMNIST/raw"),
    "cifar10": ("cifar10",),
    "svhn": ("svhn", "SVHN"),
    "imagenet-sample": ("imagenet-sample",),
}
#: In a folder with CIFAR-10, what may hold the batches: itself, or what the published archives are or unpack to.
CIFAR_PLACES = ("", "cifar-10-batches-bin", "cifar-10-batches-py", "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz")
ARCHIVE_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.xz")


def names() -> tuple[str, ...]:
    """The data sets that ``load`` knows by name."""
    return ("digits", *PLACES)


def load(name_or_path: str, root: Path | None = None, image_size: tuple[int, int] | None = None) -> Split:
    """The data set of that name, or the one at that path, its format found out from what is there.

    A name (see ``names``) wins over a path; write ``./mnist`` for a folder called like one. ``digits``
    needs no files. Others are looked for under ``root``, which defaults to the environment variable
    ESPALIER_DATA. A path may be a folder (IDX, CIFAR-10 binary or python, SVHN, an archive of images beside
    ``classes.csv``, images in class folders), an ``.npz`` file or a tar archive of CIFAR-10. ``image_size`` (H, W) is
    for image folders and archives only (see :func:`scales`).

    Raises DataError if nothing is found (with the paths tried) or the files are not what they should be.
    """
    if name_or_path == "digits":
        split = digits.read_split()
    elif name_or_path in PLACES:
        split = _load_named(name_or_path, _root(name_or_path, root), image_size)
    else:
        split = _load_path(Path(name_or_path), image_size)
    height, width = split.train.image_shape[1:]
    if image_size not in (None, (height, width)):
        raise DataError(f"Only image folders and archives are scaled; {name_or_path!r} has images of {height}x{width}: "
                        f"leave the image size {image_size} out")
    return annotated(split)


def scales(name_or_path: str) -> bool:
    """Whether images of that data set come in the size asked for: it is of pictures, in folders or an archive."""
    if name_or_path in ("digits", *PLACES):
        return name_or_path == "imagenet-sample"
    return image_archive.recognises(Path(name_or_path)) or image_folder.recognises(Path(name_or_path))


def data_folder(root: Path | None = None) -> Path | None:
    """The folder of the named data sets: ``root``, else that of ESPALIER_DATA, else none."""
    named = os.environ.get(ROOT_VARIABLE, "")
    return root if root is not None or not named else Path(named)


def _root(name: str, root: Path | None) -> Path:
    folder = data_folder(root)
    if folder is None:
        raise DataError(f"Data set {name!r} needs the folder that holds it: give it, or set {ROOT_VARIABLE} "
                        "(only 'digits' needs none)")
    return folder


def _load_named(name: str, root: Path, image_size: tuple[int, int] | None) -> Split:
    tried = [root / place for place in (*PLACES[name], "")]
    for path in tried:
        match name:
            case "mnist" if idx.recognises(path):
                return idx.read_split(path, name, 10)
            case "fashion-mnist" if idx.recognises(path):
                return idx.read_split(path, name, idx.FASHION_MNIST_CLASSES)
            case "svhn" if svhn.recognises(path):
                return svhn.read_split(path, name)
            case "imagenet-sample" if image_archive.recognises(path):
                return image_archive.read_split(path, name, image_size)
            case "cifar10" if (split := _cifar(path, name)) is not None:
                return split
            case _:
                continue
    raise DataError(f"Data set {name!r} is not in {', '.join(map(str, tried))}: put its original files into one of "
                    f"these, or point the data folder or {ROOT_VARIABLE} elsewhere")


def _load_path(path: Path, image_size: tuple[int, int] | None) -> Split:
    if not path.exists():
        raise DataError(f"There is no data set {str(path)!r}: give one of {', '.join(names())}, or the path of an "
                        "existing folder or file")
    name = path.name.split(".")[0] or path.resolve().name
    if idx.recognises(path):
        return idx.read_split(path, name)
    if svhn.recognises(path):
        return svhn.read_split(path, name)
    if npz.recognises(path):
        return npz.read_split(path, name)
    if (split := _cifar(path, name)) is not None:
        return split
    if image_archive.recognises(path):
        return image_archive.read_split(path, name, image_size)
    if image_folder.recognises(path):
        return image_folder.read_split(path, name, image_size)
    raise DataError(f"{path} holds no data set of a known format: give a folder with IDX files, CIFAR-10 batches, "
                    "SVHN's train_32x32.mat and test_32x32.mat, an archive of images beside classes.csv, or one image "
                    "folder per class; an .npz file; or a tar archive of CIFAR-10")


def _cifar(path: Path, name: str) -> Split | None:
    """CIFAR-10 at ``path`` or at one of its usual places in it; None if there is none."""
    for place in (path / place for place in CIFAR_PLACES):
        source = _source(place)
        if source is not None and cifar_binary.recognises(source):
            return cifar_binary.read_split(source, name)
        if source is not None and cifar_python.recognises(source):
            return cifar_python.read_split(source, name)
    return None


def _source(path: Path) -> Source | None:
    if path.is_dir():
        return Folder(path)
    if path.is_file() and path.name.endswith(ARCHIVE_ENDINGS):
        return Archive.open(path)
    return None
