"""The checks every data set passes at birth."""

import numpy as np
import pytest

from espalier.data import Dataset, Split
from espalier.errors import DataError


def images(count: int = 3, dtype: type = np.uint8) -> np.ndarray:
    return np.zeros((count, 1, 2, 2), dtype)


def labels(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_dataset_properties():
    dataset = Dataset("toy", images(), labels(0, 1, 1), ("cat", "dog"))
    assert (len(dataset), dataset.image_shape, dataset.class_count) == (3, (1, 2, 2), 2)
    assert dataset.class_names == ("cat", "dog")
    assert Dataset("toy", images(), labels(0, 1, 2), 3).class_names == ("0", "1", "2")


@pytest.mark.parametrize(("pixels", "classes", "values", "message"), [
    (images(dtype=np.int32), 3, (0, 1, 2), "Images must be uint8 or float32; those of 'toy' are int32"),
    (np.zeros((3, 2, 2), np.uint8), 3, (0, 1, 2),
     "Images must have the axes (N, C, H, W); those of 'toy' have the shape (3, 2, 2)"),
    (images(0), 3, (), "A data set must have at least one image and pixel; 'toy' is empty: shape (0, 1, 2, 2)"),
    (images(dtype=np.float32) + np.float32(np.nan), 3, (0, 1, 2),
     "Float images must be numbers in [-1, 1]; 'toy' has other values: scale it, or store uint8 pixels"),
    (images(dtype=np.float32) + 2, 3, (0, 1, 2),
     "Float images must be numbers in [-1, 1]; 'toy' has other values: scale it, or store uint8 pixels"),
    (images(), 3, (0, 1), "Every image needs one label; 'toy' has 3 images and 2 labels"),
    (images(), 3, (0, 3, 1), "Labels must be in 0..2; label 3 of example 1 of 'toy' is not"),
    (images(), ("a", "b"), (0, 1, -1), "Labels must be in 0..1; label -1 of example 2 of 'toy' is not"),
])
def test_dataset_wrong(pixels, classes, values, message):
    with pytest.raises(DataError) as error:
        Dataset("toy", pixels, labels(*values), classes)
    assert str(error.value) == message


def test_labels_of_another_type_wrong():
    with pytest.raises(DataError) as error:
        Dataset("toy", images(), np.zeros(3, np.float32), 1)
    assert str(error.value) == "Labels must be an int64 vector; those of 'toy' are float32 of shape (3,)"


def test_split_wrong():
    train = Dataset("a", images(), labels(0, 1, 2), 3)
    with pytest.raises(DataError) as error:
        Split(train, Dataset("b", np.zeros((1, 3, 2, 2), np.uint8), labels(0), 3))
    assert str(error.value) == ("Training and test images must have one shape (C, H, W), not (1, 2, 2) in 'a' and "
                                "(3, 2, 2) in 'b'")
    with pytest.raises(DataError) as error:
        Split(train, Dataset("b", images(), labels(0, 1, 0), 2))
    assert str(error.value) == ("Training and test set must have the same classes, not ('0', '1', '2') in 'a' and "
                                "('0', '1') in 'b'")
