"""NumPy archives."""

import zipfile

import numpy as np
import pytest

from espalier.data.npz import read_split
from espalier.errors import DataError


def saved(tmp_path, **arrays):
    path = tmp_path / "toy.npz"
    np.savez(path, **arrays)
    return path


def test_npz_keras_names_and_channels_last(colour, tmp_path):
    images, labels = colour
    last = images.transpose(0, 2, 3, 1)
    split = read_split(saved(tmp_path, x_train=last, y_train=labels, x_test=last[:4], y_test=labels[:4]), "toy")
    assert np.array_equal(split.train.images, images) and np.array_equal(split.test.images, images[:4])
    assert split.train.images.flags.c_contiguous
    assert split.train.labels.dtype == np.int64 and split.test.class_count == 10


def test_npz_column_of_labels_and_class_names(grey, tmp_path):
    images, labels = grey
    names = np.array(list("abcdefghij"))
    column = labels[:, np.newaxis].astype(np.uint8)
    path = saved(tmp_path, train_images=images[:, 0], train_labels=column, classes=names,
                 test_images=images[:5, 0], test_labels=column[:5])
    split = read_split(path, "toy")
    assert np.array_equal(split.train.images, images) and np.array_equal(split.train.labels, labels)
    assert split.train.classes == tuple("abcdefghij")


def test_npz_labels_may_be_missing_where_the_classes_are_named(grey, tmp_path):
    images, labels = grey
    path = saved(tmp_path, images=images, labels=labels + 2, classes=np.arange(15))
    assert read_split(path, "toy").train.class_names == tuple(map(str, range(15)))


def test_npz_a_label_may_occur_in_one_set_alone(grey, tmp_path):
    images, labels = grey
    path = saved(tmp_path, x_train=images[:9], y_train=labels[:9], x_test=images[9:], y_test=labels[9:])
    assert read_split(path, "toy").train.class_count == 10


def test_npz_single_set_is_split(grey, tmp_path):
    images, labels = grey
    split = read_split(saved(tmp_path, images=images, labels=labels), "toy")
    assert (len(split.train), len(split.test)) == (20, 10)


def test_npz_floats(grey, tmp_path):
    images = (grey[0] / 255).astype(np.float64)
    split = read_split(saved(tmp_path, images=images, labels=grey[1]), "toy")
    assert split.train.images.dtype == np.float32


GOOD, NUMBERS = np.zeros((4, 1, 2, 2), np.uint8), np.array([0, 1, 0, 1])


@pytest.mark.parametrize(("arrays", "message"), [
    ({"x": GOOD}, "{} must hold the arrays x_train, y_train, x_test, y_test (or train_images, train_labels, "
                  "test_images, test_labels, or images, labels), not x"),
    ({"images": GOOD.astype(np.int32), "labels": NUMBERS}, "'images' of {} must be uint8 or float, not int32"),
    ({"images": GOOD[0, 0], "labels": NUMBERS},
     "'images' of {} must be (N, H, W), (N, C, H, W) or (N, H, W, C), not (2, 2)"),
    ({"images": GOOD, "labels": NUMBERS / 2}, "'labels' of {} must be whole numbers, not float64"),
    ({"images": GOOD, "labels": np.eye(4, dtype=int)},
     "'labels' of {} must be one label per image, (N,) or (N, 1), not (4, 4)"),
    ({"images": GOOD, "labels": NUMBERS[:3]}, "Every image needs one label; 'toy' has 4 images and 3 labels"),
    ({"images": GOOD, "labels": NUMBERS - 1}, "Labels must be in 0..0; label -1 of example 0 of 'toy' is not"),
    ({"images": GOOD, "labels": NUMBERS + 1},
     "Every label from 0 to the largest must occur, and {} has the label 2 and none that is 0: number the classes "
     "anew, or store all their names under 'classes'"),
    ({"images": GOOD, "labels": np.array([0, 10**6, 1, 3])},
     "Every label from 0 to the largest must occur, and {} has the label 1000000 and none that is 2: number the "
     "classes anew, or store all their names under 'classes'"),
    ({"images": GOOD[:0], "labels": NUMBERS[:0]},
     "A data set must have at least one image and pixel; 'toy' is empty: shape (0, 1, 2, 2)"),
    ({"images": GOOD + 1e300, "labels": NUMBERS},
     "Float images must be numbers in [-1, 1]; 'toy' has other values: scale it, or store uint8 pixels"),
])
def test_npz_wrong(arrays, message, tmp_path):
    path = saved(tmp_path, **arrays)
    with pytest.raises(DataError) as error:
        read_split(path, "toy")
    assert str(error.value) == message.format(path)


def test_npz_pickled_objects_wrong(tmp_path):
    path = saved(tmp_path, images=np.array([{"a": 1}], object), labels=NUMBERS)
    with pytest.raises(DataError, match="is no readable .npz file without pickled objects"):
        read_split(path, "toy")


@pytest.mark.parametrize("content", [b"", b"no zip at all", None])
def test_npz_damaged_wrong(content, tmp_path):
    path = saved(tmp_path, images=GOOD, labels=NUMBERS)
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    with pytest.raises(DataError) as error:
        read_split(path, "toy")
    assert str(error.value).startswith(f"{path} is no readable .npz file without pickled objects (")
    assert str(error.value).endswith("): write it again")


def test_npz_damaged_anywhere_is_told_or_harmless(tmp_path):
    """Whatever byte of its headers is changed, the outcome is a split or a DataError, nothing else."""
    path = saved(tmp_path, images=np.zeros((10, 2, 2), np.uint8), labels=np.arange(10) % 2)
    whole = path.read_bytes()
    for place in (*range(0, 200, 3), *range(len(whole) - 160, len(whole), 3)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1:])
        try:
            assert len(read_split(path, "toy").train) == 8
        except DataError:
            continue


def test_npz_members_that_are_no_arrays_are_passed_over(tmp_path):
    path = saved(tmp_path, images=np.zeros((10, 2, 2), np.uint8), labels=np.arange(10) % 2)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "words")
    assert len(read_split(path, "toy").test) == 2
