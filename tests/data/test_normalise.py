"""Pixels to numbers."""

from fractions import Fraction

import numpy as np

from espalier.data import Dataset, Split, normalise
from espalier.numerics.fixed import Fixed

ALL_PIXELS = np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1)


def test_every_pixel_exactly():
    numbers = normalise(ALL_PIXELS)
    assert numbers.dtype == np.float32
    assert [Fraction(float(number)) for number in numbers.flat] == [Fraction(p - 128, 128) for p in range(256)]


def test_input_is_not_changed():
    before = ALL_PIXELS.copy()
    normalise(ALL_PIXELS)
    assert np.array_equal(before, ALL_PIXELS)


def test_words_are_pixels_with_the_top_bit_inverted():
    words = Fixed.of(8, 7).quantise(normalise(ALL_PIXELS))
    assert np.array_equal(words & 0xFF, ALL_PIXELS ^ np.uint8(0x80))


def test_floats_stay():
    floats = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 1, 2, 2)
    assert np.array_equal(normalise(floats), floats)


def test_dataset_and_split():
    dataset = Dataset("toy", ALL_PIXELS, np.zeros(256, np.int64), ("only",), "noted")
    split = normalise(Split(dataset, dataset))
    for part in (split.train, split.test, normalise(dataset)):
        assert np.array_equal(part.images, normalise(ALL_PIXELS))
        assert (part.name, part.classes, part.checksum) == ("toy", ("only",), "noted")
        assert np.array_equal(normalise(part).images, part.images)
