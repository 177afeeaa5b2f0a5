"""Tiny data sets, and the files of each format that hold them."""

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

Examples: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.int64]]


@pytest.fixture
def grey() -> Examples:
    """Images (30, 1, 5, 4) and labels, three of each of ten classes."""
    random = np.random.RandomState(1)
    return random.randint(0, 256, (30, 1, 5, 4)).astype(np.uint8), np.arange(30, dtype=np.int64) % 10


@pytest.fixture
def colour() -> Examples:
    """Images (10, 3, 32, 32) and labels, one of each of ten classes."""
    random = np.random.RandomState(2)
    return random.randint(0, 256, (10, 3, 32, 32)).astype(np.uint8), random.permutation(10).astype(np.int64)


@pytest.fixture
def write_files() -> Callable[[Path, dict[str, bytes]], Path]:
    """Writes the files into the folder, made if need be, and returns it."""
    def write(folder: Path, files: dict[str, bytes]) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return folder
    return write


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    """An IDX file of unsigned bytes."""
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def idx_files(grey: Examples) -> dict[str, bytes]:
    """The four files of an MNIST-like set: 20 images for training, 10 for testing."""
    images, labels = grey[0][:, 0], grey[1].astype(np.uint8)
    return {"train-images-idx3-ubyte": idx_bytes(images[:20]), "train-labels-idx1-ubyte": idx_bytes(labels[:20]),
            "t10k-images-idx3-ubyte": idx_bytes(images[20:]), "t10k-labels-idx1-ubyte": idx_bytes(labels[20:])}


@pytest.fixture
def binary_batches(colour: Examples) -> dict[str, bytes]:
    """The six files of CIFAR-10's binary version: two images in each of the five for training, all ten for testing."""
    images, labels = colour
    records = [bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True)]
    train = {f"data_batch_{number + 1}.bin": b"".join(records[2 * number:2 * number + 2]) for number in range(5)}
    return {**train, "test_batch.bin": b"".join(records)}


@pytest.fixture
def python_batches(colour: Examples) -> dict[str, bytes]:
    """The six files of CIFAR-10's python version, with the same images, pickled by Python 2 and 3 in turn."""
    images, labels = colour
    writers = (python2_batch, python3_batch)
    train = {f"data_batch_{number + 1}": writers[number % 2](images[2 * number:2 * number + 2],
                                                             labels[2 * number:2 * number + 2]) for number in range(5)}
    return {**train, "test_batch": python2_batch(images, labels)}


def python3_batch(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> bytes:
    """A batch as Python 3 pickles it."""
    content = {b"data": images.reshape(len(images), -1), b"labels": [int(label) for label in labels]}
    return pickle.dumps(content, protocol=3)


def python2_batch(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> bytes:
    """A batch as Python 2 pickled it, opcode by opcode, which is what the published files hold."""
    raw = images.tobytes()
    data_type = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    data_type += b"(K\x03" + text(b"|") + b"NNN" + 2 * number(-1) + b"K\x00tb"
    shape = number(len(images)) + number(3072) + b"\x86"
    empty_array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    array = empty_array + b"(K\x01" + shape + data_type + b"\x89T" + struct.pack("<I", len(raw)) + raw + b"tb"
    listed = b"](" + b"".join(number(label) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + listed + b"u."


def text(content: bytes) -> bytes:
    """The opcode of a short byte string of Python 2."""
    return b"U" + bytes([len(content)]) + content


def number(value: int) -> bytes:
    """The opcode of a 32-bit number."""
    return b"J" + struct.pack("<i", value)
