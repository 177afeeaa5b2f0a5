"""Crops and mirror images."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.data.augment import augment
from espalier.data.normalise import normalise


def pictures(count=6, height=5, width=7):
    return np.random.RandomState(3).randint(0, 256, (count, 3, height, width)).astype(np.uint8)


def candidates(image, pad):
    """Every crop of the padded image, plain and mirrored, by plain loops."""
    _, height, width = image.shape
    padded = np.full((3, height + 2 * pad, width + 2 * pad), 128, np.uint8)
    padded[:, pad:pad + height, pad:pad + width] = image
    crops = [padded[:, y:y + height, x:x + width] for y in range(2 * pad + 1) for x in range(2 * pad + 1)]
    return [*crops, *(crop[:, :, ::-1] for crop in crops)]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 99), batch=st.integers(0, 99), pad=st.integers(0, 4))
def test_each_image_is_a_crop_or_its_mirror(seed, epoch, batch, pad):
    images = pictures()
    before = images.copy()
    changed = augment(images, seed, epoch, batch, pad)
    assert changed.shape == images.shape and changed.dtype == images.dtype
    for image, new in zip(images, changed, strict=True):
        assert any(np.array_equal(new, candidate) for candidate in candidates(image, pad))
    assert np.array_equal(images, before)
    assert np.array_equal(augment(images, seed, epoch, batch, pad), changed)


def test_draw_is_of_seed_epoch_and_batch():
    images = pictures(12)
    results = {augment(images, *numbers).tobytes() for numbers in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))}
    assert len(results) == 4


def test_every_offset_and_both_sides_occur():
    image = np.zeros((1, 1, 9, 9), np.uint8)
    image[0, 0, 4, 2] = 255
    many = augment(np.repeat(image, 3000, axis=0), 0, 0, 0, pad=2)
    _, _, rows, columns = np.nonzero(many == 255)
    assert set(rows) == set(range(2, 7))
    assert set(columns) == set(range(0, 9))
    assert 1350 < (columns < 4).sum() + (columns == 4).sum() / 2 < 1650


@pytest.mark.parametrize("pad", [0, 4])
def test_commutes_with_normalise(pad):
    images = pictures()
    assert np.array_equal(normalise(augment(images, 5, 6, 7, pad)), augment(normalise(images), 5, 6, 7, pad))
