"""Dividing one data set into a training and a test set."""

from __future__ import annotations

import numpy as np

from espalier.data.dataset import Dataset, Split
from espalier.data.draw import draws
from espalier.errors import DataError

TEST_FRACTION = 0.2
SPLIT_SEED = 0


def stratified(dataset: Dataset, test_fraction: float = TEST_FRACTION, seed: int = SPLIT_SEED) -> Split:
    """A split with the same share of test examples in every class, always the same for the same data and seed.

    Of the ``n`` examples of a class, ``floor(n * test_fraction + 1/2)``, drawn at random, are for
    testing; both sets keep the order of ``dataset``. Raises DataError if either would be empty.
    """
    random = draws(seed)
    is_test = np.zeros(len(dataset), bool)
    for label in range(dataset.class_count):
        members = random.permutation(np.flatnonzero(dataset.labels == label))
        is_test[members[:int(len(members) * test_fraction + 0.5)]] = True
    if is_test.all() or not is_test.any():
        raise DataError(f"{dataset.name!r} has too few images ({len(dataset)}) to set {test_fraction:.0%} of each "
                        "class aside for testing: give more, or a training and a test set apart")
    train, test = (Dataset(f"{dataset.name}-{part}", dataset.images[chosen], dataset.labels[chosen], dataset.classes)
                   for part, chosen in (("train", ~is_test), ("test", is_test)))
    return Split(train, test)
