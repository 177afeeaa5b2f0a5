"""SVHN's MATLAB files."""

from io import BytesIO

import numpy as np
import pytest
import scipy.io

from espalier.data.source import Content
from espalier.data.svhn import parse_mat, read_split
from espalier.errors import DataError


def mat(**variables) -> bytes:
    file = BytesIO()
    scipy.io.savemat(file, variables, do_compression=True)
    return file.getvalue()


@pytest.fixture
def svhn_file(colour):
    """The ten images, with digit 0 labelled 10 as SVHN does."""
    images, labels = colour
    return mat(X=images.transpose(2, 3, 1, 0), y=np.where(labels == 0, 10, labels).astype(np.uint8)[:, np.newaxis])


def test_svhn(svhn_file, colour, write_files, tmp_path):
    split = read_split(write_files(tmp_path, {"train_32x32.mat": svhn_file, "test_32x32.mat": svhn_file}), "svhn")
    for part in (split.train, split.test):
        assert np.array_equal(part.images, colour[0]) and np.array_equal(part.labels, colour[1])
        assert part.images.flags.c_contiguous and part.class_count == 10


def test_svhn_missing_wrong(svhn_file, write_files, tmp_path):
    with pytest.raises(DataError) as error:
        read_split(write_files(tmp_path, {"train_32x32.mat": svhn_file}), "svhn")
    assert str(error.value) == (f"A file of the data set is missing: tried {tmp_path}/test_32x32.mat, each also with "
                                ".gz and .xz; put it there")


@pytest.mark.parametrize("cut", [3, 100, 1000, 20_000])
def test_svhn_truncated_wrong(cut, svhn_file):
    with pytest.raises(DataError) as error:
        parse_mat(Content("x", svhn_file[:cut]))
    assert str(error.value).startswith("x is no readable MATLAB 5 file (")
    assert str(error.value).endswith("): get the file again")


X, Y = np.zeros((4, 4, 3, 2), np.uint8), np.array([[1], [10]], np.uint8)


@pytest.mark.parametrize(("variables", "message"), [
    ({"X": X}, "x must hold the variables X and y, as SVHN's cropped digits do"),
    ({"X": X.astype(float), "y": Y}, "X of x must be uint8 (H, W, 3, N), not float64 (4, 4, 3, 2)"),
    ({"X": X[:, :, :1], "y": Y}, "X of x must be uint8 (H, W, 3, N), not uint8 (4, 4, 1, 2)"),
    ({"X": X, "y": Y - 1}, "y of x must hold the labels 1..10 (10 is the digit 0)"),
    ({"X": X, "y": Y + 0.5}, "y of x must hold the labels 1..10 (10 is the digit 0)"),
    ({"X": X, "y": "text"}, "x must hold the variables X and y, as SVHN's cropped digits do"),
])
def test_svhn_content_wrong(variables, message):
    with pytest.raises(DataError) as error:
        parse_mat(Content("x", mat(**variables)))
    assert str(error.value) == message


def test_svhn_count_mismatch_wrong(write_files, tmp_path):
    file = mat(X=X, y=Y[:1])
    with pytest.raises(DataError) as error:
        read_split(write_files(tmp_path, {"train_32x32.mat": file, "test_32x32.mat": file}), "svhn")
    assert str(error.value) == "Every image needs one label; 'svhn-train' has 2 images and 1 labels"
