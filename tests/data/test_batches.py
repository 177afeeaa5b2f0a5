"""The order of the examples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.data import Dataset, batches
from espalier.errors import DataError

SEEDS = st.integers(0, 2**32 - 1)


def dataset(count):
    return Dataset("toy", np.zeros((count, 1, 1, 1), np.uint8), np.zeros(count, np.int64), 1)


@settings(deadline=None, max_examples=60)
@given(count=st.integers(1, 50), batch=st.integers(1, 60), seed=SEEDS, epoch=st.integers(0, 1000))
def test_each_example_once(count, batch, seed, epoch):
    arrays = list(batches(dataset(count), batch, seed, epoch))
    assert all(len(array) == batch for array in arrays[:-1]) and 1 <= len(arrays[-1]) <= batch
    assert sorted(np.concatenate(arrays)) == list(range(count))
    assert all(array.dtype == np.int64 for array in arrays)
    again = list(batches(dataset(count), batch, seed, epoch))
    assert all(map(np.array_equal, arrays, again))


@settings(deadline=None, max_examples=60)
@given(count=st.integers(1, 50), batch=st.integers(1, 50), seed=SEEDS)
def test_drop_last_leaves_whole_batches(count, batch, seed):
    batch = min(batch, count)
    whole = list(batches(dataset(count), batch, seed, 0, drop_last=True))
    every = list(batches(dataset(count), batch, seed, 0))
    assert len(whole) == count // batch and all(len(array) == batch for array in whole)
    assert all(map(np.array_equal, whole, every))


def test_order_is_of_seed_and_epoch():
    def order(seed, epoch):
        return np.concatenate(list(batches(dataset(20), 7, seed, epoch))).tolist()
    orders = {tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_order_never_changes():
    assert np.concatenate(list(batches(dataset(10), 4, 1, 2))).tolist() == [6, 5, 4, 2, 1, 9, 0, 3, 8, 7]


@pytest.mark.parametrize(("batch", "drop_last"), [(0, False), (-3, False), (11, True)])
def test_batch_size_wrong(batch, drop_last):
    with pytest.raises(DataError) as error:
        batches(dataset(10), batch, 0, 0, drop_last)
    assert str(error.value) == f"Batch size must be in 1..10 (the images of 'toy'), not {batch}"


@pytest.mark.parametrize(("seed", "epoch", "wrong"), [(-1, 0, -1), (0, 2**32, 2**32)])
def test_seed_wrong(seed, epoch, wrong):
    with pytest.raises(DataError) as error:
        batches(dataset(10), 2, seed, epoch)
    assert str(error.value) == f"Seed, epoch and batch number must be in 0..4294967295, not {wrong}"
