"""scikit-learn's handwritten digits, which need no file: 1,797 images of 8x8 pixels."""

from __future__ import annotations

import numpy as np

from espalier.data.dataset import Dataset, Split
from espalier.data.stratified import stratified

GREY_LEVELS = 16  #: per step of the source's pixels, which run 0..16


def read_split() -> Split:
    """Always the same 1,438 digits for training and 359 for testing, as uint8 pixels min(16·v, 255), (N, 1, 8, 8)."""
    from sklearn.datasets import load_digits  # late: it takes seconds to import, and only this data set needs it

    source = load_digits()
    images = np.minimum(source.images * GREY_LEVELS, 255).astype(np.uint8)[:, np.newaxis]
    return stratified(Dataset("digits", images, source.target.astype(np.int64), 10))
