"""The order in which examples are seen."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from espalier.data.dataset import Dataset
from espalier.data.draw import draws
from espalier.errors import DataError


def batches(dataset: Dataset, batch: int, seed: int, epoch: int, drop_last: bool = False,
            ) -> Iterator[NDArray[np.int64]]:
    """Arrays of ``batch`` indices that visit ``dataset`` once in an order that depends on (seed, epoch) alone.

    The last array is shorter if ``batch`` does not divide the number of examples; ``drop_last`` leaves
    it out. Raises DataError (at once, not at the first array) if there would be no batch.
    """
    count = len(dataset)
    if batch < 1 or drop_last and batch > count:
        raise DataError(f"Batch size must be in 1..{count} (the images of {dataset.name!r}), not {batch}")
    order = draws(seed, epoch).permutation(count).astype(np.int64)
    end = count - count % batch if drop_last else count
    return (order[start:start + batch] for start in range(0, end, batch))
