"""A tar archive of images with a table of classes."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from espalier.data import load, read_archive, scales
from espalier.data.image_archive import read_split
from espalier.errors import DataError

TABLE = "index,wnid,name,extra\n0,n02,a crane,x\n1,n01,bee,y\n2,n03,cat,z\n"

Write: TypeAlias = Callable[..., Path]


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A file of pixels (C, H, W)."""
    buffer = BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(files: dict[str, bytes], table: str | bytes | None = TABLE, archive: str = "images.tar") -> Path:
        with tarfile.open(tmp_path / archive, "w:gz" if archive.endswith("gz") else "w") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, BytesIO(content))
        if table is not None:
            (tmp_path / "classes.csv").write_bytes(table.encode() if isinstance(table, str) else table)
        return tmp_path
    return write


@pytest.mark.parametrize("archive", ["images.tar", "images.tar.gz"])
def test_images_have_the_numbers_of_the_table(write: Write, colour: tuple, archive: str) -> None:
    pixels = colour[0]
    folder = write({"set/n01/b.png": png(pixels[0]), "set/n03/c.PNG": png(pixels[1]), "set/n01/a.png": png(pixels[2]),
                    "set/n02/d.png": png(pixels[3]), "set/n01/notes.txt": b"passed over"}, archive=archive)
    dataset = read_archive(folder, "sample")
    assert dataset.name == "sample" and dataset.classes == ("a crane", "bee", "cat")
    assert dataset.labels.tolist() == [0, 1, 1, 2]
    assert np.array_equal(dataset.images, pixels[[3, 2, 0, 1]])


def test_scaled_and_grey_images(write: Write) -> None:
    grey = BytesIO()
    Image.fromarray(np.full((9, 7), 50, np.uint8)).save(grey, "PNG")
    folder = write({"n01/a.png": grey.getvalue(), "n02/b.png": png(np.full((3, 4, 4), 60, np.uint8))})
    dataset = read_archive(folder, "sample", size=(6, 8))
    assert dataset.image_shape == (3, 6, 8)
    assert (dataset.images == np.array([60, 50])[:, np.newaxis, np.newaxis, np.newaxis]).all()


IMAGE = png(np.zeros((3, 2, 2), np.uint8))


def test_halves(write: Write, colour: tuple) -> None:
    pixels = colour[0]
    folder = write({f"n0{1 + k % 3}/{k}.png": png(pixels[k]) for k in range(5)})
    split, again = read_split(folder, "sample"), load(str(folder))
    assert (split.train.name, split.test.name) == ("sample-train", "sample-test")
    assert (len(split.train), len(split.test)) == (2, 3)
    both = np.concatenate([split.train.images, split.test.images])
    assert sorted(map(bytes, both)) == sorted(map(bytes, pixels[:5]))
    assert np.array_equal(again.test.images, split.test.images)
    assert scales(str(folder)) and load(str(folder), image_size=(3, 4)).test.image_shape == (3, 3, 4)
    assert scales("imagenet-sample") and not scales("cifar10") and not scales("digits")


def test_one_image_cannot_be_halved(write: Write) -> None:
    with pytest.raises(DataError, match=r" must hold at least two images to halve, and has 1$"):
        read_split(write({"n01/a.png": IMAGE}), "sample")


@pytest.mark.parametrize(("files", "table", "message"), [
    ({"n01/a.png": IMAGE}, None,
     "A file of the data set is missing: tried {0}/classes.csv, each also with .gz and .xz; put it there"),
    ({"n01/a.png": IMAGE}, b"\xff\xfe",
     "{0}/classes.csv is no CSV text in UTF-8 ('utf-8' codec can't decode byte 0xff in position 0: invalid start "
     "byte): get it again"),
    ({"n01/a.png": IMAGE}, "index,wnid,name\n0,n01\n",
     "{0}/classes.csv must have a row for each class and the columns index, wnid, name"),
    ({"n01/a.png": IMAGE}, "index,wnid,name\n1,n01,bee\n",
     "The classes of {0}/classes.csv must be numbered 0, 1, 2...; row 0 has the index '1'"),
    ({"n01/a.png": IMAGE}, "index,wnid,name\n0,n01,bee\n1,n01,wasp\n",
     "Every class of {0}/classes.csv must have a folder of its own, and 'n01' stands twice"),
    ({"n09/a.png": IMAGE}, TABLE,
     "Every image must lie in the folder of a class of {0}/classes.csv, and {0}/images.tar:n09/a.png does not"),
    ({"n01/a.txt": IMAGE}, TABLE, "{0}/images.tar must hold images (.bmp, .gif, .jpeg, .jpg, .pbm, .pgm, .png, .ppm, "
     ".tif, .tiff, .webp), and has none"),
    ({"n02/a.png": IMAGE, "n01/b.png": png(np.zeros((3, 3, 2), np.uint8))}, TABLE,
     "Without an image size all images must be equally large; {0}/images.tar:n01/b.png is (C, H, W) = (3, 3, 2), the "
     "first one (3, 2, 2): give an image size"),
], ids=["no table", "no text", "columns", "numbers", "twice", "no class", "no image", "sizes"])
def test_archive_wrong(write: Write, files: dict[str, bytes], table: str | bytes | None, message: str) -> None:
    folder = write(files, table)
    with pytest.raises(DataError) as error:
        read_archive(folder, "sample")
    assert str(error.value) == message.format(folder)


def test_damaged_image_wrong(write: Write) -> None:
    folder = write({"n01/a.png": IMAGE[:40]})
    with pytest.raises(DataError, match=r"images\.tar:n01/a\.png is no readable image \(.*\): replace or remove it$"):
        read_archive(folder, "sample")


def test_archives_wrong(write: Write) -> None:
    folder = write({"n01/a.png": IMAGE})
    (folder / "more.tgz").write_bytes(b"")
    with pytest.raises(DataError) as error:
        read_archive(folder, "sample")
    assert str(error.value) == f"{folder} must hold one tar archive of images, not images.tar, more.tgz"
    for name in ("images.tar", "more.tgz"):
        (folder / name).unlink()
    with pytest.raises(DataError, match="must hold one tar archive of images, not none$"):
        read_archive(folder, "sample")
    (folder / "images.tar").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"^The archive .*images\.tar is corrupt or truncated \(.*\): get it again$"):
        read_archive(folder, "sample")


def test_size_wrong(write: Write) -> None:
    with pytest.raises(DataError, match=r"^An image size \(height, width\) must be at least \(1, 1\), not \(0, 4\)$"):
        read_archive(write({"n01/a.png": IMAGE}), "sample", size=(0, 4))
