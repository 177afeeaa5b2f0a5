"""Splitting one data set."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.data import Dataset, load, stratified
from espalier.errors import DataError


@settings(deadline=None, max_examples=60)
@given(counts=st.lists(st.integers(3, 30), min_size=1, max_size=6), seed=st.integers(0, 2**32 - 1))
def test_every_class_has_its_share_and_nothing_is_lost(counts, seed):
    labels = np.random.RandomState(0).permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int64)
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    dataset = Dataset("toy", images, labels, len(counts))
    split = stratified(dataset, seed=seed)
    assert np.bincount(split.test.labels, minlength=len(counts)).tolist() == [int(n * 0.2 + 0.5) for n in counts]
    both = np.concatenate([split.train.images, split.test.images])
    assert np.array_equal(np.sort(both, axis=0), images)
    for part in (split.train, split.test):
        assert np.array_equal(part.labels, labels[part.images.reshape(-1)])
        assert (np.diff(part.images.reshape(-1).astype(int)) > 0).all()
    again = stratified(dataset, seed=seed)
    assert np.array_equal(again.test.images, split.test.images)


def test_digits_are_always_split_alike():
    first, second = load("digits"), load("digits")
    assert np.array_equal(first.test.images, second.test.images)
    assert np.bincount(first.test.labels).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]


def test_too_few_wrong():
    dataset = Dataset("toy", np.zeros((2, 1, 1, 1), np.uint8), np.array([0, 1]), 2)
    with pytest.raises(DataError) as error:
        stratified(dataset)
    assert str(error.value) == ("'toy' has too few images (2) to set 20% of each class aside for testing: give more, "
                                "or a training and a test set apart")
