"""IDX files."""

import gzip
import lzma

import numpy as np
import pytest

from espalier.data.idx import parse_idx, read_split
from espalier.data.source import Content
from espalier.errors import DataError

HEADER = bytes((0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2))


@pytest.mark.parametrize(("ending", "compress"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)])
def test_idx_split(ending, compress, grey, idx_files, write_files, tmp_path):
    write_files(tmp_path, {name + ending: compress(content) for name, content in idx_files.items()})
    split = read_split(tmp_path, "toy", 10)
    images, labels = grey
    assert np.array_equal(split.train.images, images[:20]) and np.array_equal(split.test.images, images[20:])
    assert np.array_equal(split.train.labels, labels[:20]) and np.array_equal(split.test.labels, labels[20:])
    assert (split.train.name, split.test.name, split.train.class_count) == ("toy-train", "toy-test", 10)


def test_idx_spelling_with_a_dot(idx_files, write_files, tmp_path):
    write_files(tmp_path, {name.replace("-idx", ".idx"): content for name, content in idx_files.items()})
    assert len(read_split(tmp_path, "toy").train) == 20


def test_idx_classes_from_labels(idx_files, write_files, tmp_path):
    write_files(tmp_path, idx_files)
    assert read_split(tmp_path, "toy").test.classes == 10


@pytest.mark.parametrize(("data", "message"), [
    (b"\x89PNG" + bytes(20), "x must begin with the IDX magic number 0x00000803 (unsigned bytes, 3 axes), not "
                             "0x89504e47: it is another kind of file"),
    (HEADER[:9], "x is truncated: an IDX header of 3 axes has 16 bytes, not 9"),
    (HEADER + bytes(3), "x is truncated or has bytes too many: its header (2, 1, 2) promises 4 bytes, and 3 follow"),
    (HEADER + bytes(5), "x is truncated or has bytes too many: its header (2, 1, 2) promises 4 bytes, and 5 follow"),
    (bytes((0, 0, 8, 3)) + bytes(12), "x is empty: its header says (0, 0, 0)"),
])
def test_idx_content_wrong(data, message):
    with pytest.raises(DataError) as error:
        parse_idx(Content("x", data), 3)
    assert str(error.value) == message


def test_idx_missing_file_wrong(idx_files, write_files, tmp_path):
    del idx_files["t10k-labels-idx1-ubyte"]
    with pytest.raises(DataError) as error:
        read_split(write_files(tmp_path, idx_files), "toy")
    assert str(error.value) == (f"A file of the data set is missing: tried {tmp_path}/t10k-labels-idx1-ubyte, "
                                f"{tmp_path}/t10k-labels.idx1-ubyte, each also with .gz and .xz; put it there")


def test_idx_count_mismatch_wrong(idx_files, write_files, tmp_path):
    idx_files["train-labels-idx1-ubyte"] = idx_files["t10k-labels-idx1-ubyte"]
    with pytest.raises(DataError) as error:
        read_split(write_files(tmp_path, idx_files), "toy")
    assert str(error.value) == "Every image needs one label; 'toy-train' has 20 images and 10 labels"


def test_idx_label_out_of_range_wrong(idx_files, write_files, tmp_path):
    with pytest.raises(DataError) as error:
        read_split(write_files(tmp_path, idx_files), "toy", 9)
    assert str(error.value) == "Labels must be in 0..8; label 9 of example 9 of 'toy-train' is not"
