"""Where the random numbers of this package come from."""

from __future__ import annotations

import numpy as np

from espalier.errors import DataError

SEED_LIMIT = 2 ** 32


def draws(seed: int, *place: int) -> np.random.RandomState:
    """A source of random numbers that depends on ``seed`` and on ``place`` (such as epoch and batch) alone.

    Its stream is frozen: NumPy promises that ``RandomState`` never changes, and does not for ``Generator``.
    Raises DataError unless all numbers are in 0..2**32-1.
    """
    wrong = next((number for number in (seed, *place) if not 0 <= number < SEED_LIMIT), None)
    if wrong is not None:
        raise DataError(f"Seed, epoch and batch number must be in 0..{SEED_LIMIT - 1}, not {wrong}")
    return np.random.RandomState([seed, *place])
