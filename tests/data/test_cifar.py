"""CIFAR-10 in its binary and python versions."""

import lzma
import pickle

import numpy as np
import pytest

from espalier.data import cifar_binary, cifar_python
from espalier.data.cifar_binary import CIFAR10_CLASSES
from espalier.data.source import Content, Folder
from espalier.errors import DataError


def assert_holds(split, colour):
    images, labels = colour
    for part in (split.train, split.test):
        assert np.array_equal(part.images, images)
        assert np.array_equal(part.labels, labels)
        assert part.images.dtype == np.uint8 and part.images.flags.c_contiguous
        assert part.classes == CIFAR10_CLASSES


def test_binary(binary_batches, colour, write_files, tmp_path):
    assert_holds(cifar_binary.read_split(Folder(write_files(tmp_path, binary_batches)), "cifar10"), colour)


def test_binary_xz(binary_batches, colour, write_files, tmp_path):
    write_files(tmp_path, {f"{name}.xz": lzma.compress(content) for name, content in binary_batches.items()})
    assert_holds(cifar_binary.read_split(Folder(tmp_path), "cifar10"), colour)


def test_python(python_batches, colour, write_files, tmp_path):
    assert_holds(cifar_python.read_split(Folder(write_files(tmp_path, python_batches)), "cifar10"), colour)


def test_python2_batch_is_a_true_pickle(python_batches, colour):
    batch = pickle.loads(python_batches["test_batch"], encoding="bytes")
    assert np.array_equal(batch[b"data"], colour[0].reshape(10, 3072))
    assert batch[b"labels"] == colour[1].tolist()


def test_binary_truncated_wrong(binary_batches):
    with pytest.raises(DataError) as error:
        cifar_binary.parse_batch(Content("x", binary_batches["test_batch.bin"][:-1]))
    assert str(error.value) == ("x is truncated or no CIFAR-10 batch: its 30729 bytes are not a multiple of 3073, the "
                                "bytes of one record")


def test_binary_missing_batch_wrong(binary_batches, write_files, tmp_path):
    del binary_batches["data_batch_4.bin"]
    with pytest.raises(DataError) as error:
        cifar_binary.read_split(Folder(write_files(tmp_path, binary_batches)), "cifar10")
    assert str(error.value) == (f"A file of the data set is missing: tried {tmp_path}/data_batch_4.bin, each also with "
                                ".gz and .xz; put it there")


def test_binary_label_wrong(binary_batches, write_files, tmp_path):
    binary_batches["data_batch_2.bin"] = b"\x0a" + binary_batches["data_batch_2.bin"][1:]
    with pytest.raises(DataError) as error:
        cifar_binary.read_split(Folder(write_files(tmp_path, binary_batches)), "cifar10")
    assert str(error.value) == "Labels must be in 0..9; label 10 of example 2 of 'cifar10-train' is not"


class Harmful:
    """Pickles as a call of ``print``; a real one would call something worse."""

    def __reduce__(self):
        return print, ("the pickle ran code",)


def test_python_harmful_wrong(capsys):
    content = Content("x", pickle.dumps({"data": Harmful()}, protocol=2))
    with pytest.raises(DataError) as error:
        cifar_python.parse_batch(content)
    assert "names __builtin__.print, which no CIFAR-10 file needs" in str(error.value)
    assert capsys.readouterr().out == ""


def test_python_persistent_object_wrong():
    with pytest.raises(DataError) as error:
        cifar_python.parse_batch(Content("x", b"\x80\x02Pname\n."))
    assert "refers to objects outside the file" in str(error.value)


@pytest.mark.parametrize("cut", [0, 1, 50, 3000, 6000])
def test_python_truncated_wrong(cut, python_batches):
    with pytest.raises(DataError) as error:
        cifar_python.parse_batch(Content("x", python_batches["test_batch"][:cut]))
    assert str(error.value).startswith("x is no safe, whole pickle of a CIFAR-10 batch (")
    assert str(error.value).endswith("): get the file again")


def test_python_damaged_anywhere_is_told_or_harmless(python_batches):
    """Whatever one byte is changed to, the outcome is a batch or a DataError, nothing else."""
    whole = python_batches["data_batch_2"]
    places = [*range(200), *range(len(whole) - 60, len(whole))]
    for place in places:
        for value in (0, 0x2E, 0x62, 0x63, 0x80, 0xFF):
            damaged = whole[:place] + bytes([value]) + whole[place + 1:]
            try:
                images, labels = cifar_python.parse_batch(Content("x", damaged))
            except DataError:
                continue
            assert len(images) == len(labels) == 2




@pytest.mark.parametrize(("change", "message"), [
    (lambda data, labels: [1, 2], "x must be a pickled dictionary, not list"),
    (lambda data, labels: {"labels": labels}, "x must have an array of unsigned bytes (N, 3072) under 'data'"),
    (lambda data, labels: {"data": data.astype(np.int16), "labels": labels},
     "x must have an array of unsigned bytes (N, 3072) under 'data'"),
    (lambda data, labels: {"data": np.asfortranarray(data), "labels": labels},
     "x must have an array of unsigned bytes (N, 3072) under 'data'"),
    (lambda data, labels: {"data": data[:, :99], "labels": labels},
     "The array 'data' of x must be (N, 3072) bytes, N at least 1, not (10, 99) in 990 bytes"),
    (lambda data, labels: {"data": data[:0], "labels": []},
     "The array 'data' of x must be (N, 3072) bytes, N at least 1, not (0, 3072) in 0 bytes"),
    (lambda data, labels: {"data": data}, "x must have a list of small whole numbers under 'labels'"),
    (lambda data, labels: {"data": data, "labels": [*labels[:9], 2**80]},
     "x must have a list of small whole numbers under 'labels'"),
    (lambda data, labels: {"data": data, "labels": labels[:7]},
     "Every image needs one label; x has 10 images and 7 labels"),
])
def test_python_content_wrong(change, message, colour):
    content = change(colour[0].reshape(10, -1), colour[1].tolist())
    with pytest.raises(DataError) as error:
        cifar_python.parse_batch(Content("x", pickle.dumps(content, protocol=3)))
    assert str(error.value) == message
