"""Notes on the content of data sets."""

import numpy as np
import pytest

from espalier.data import Dataset
from espalier.data.checksums import STANDARDS, Standard, checksum_note, content_digest


@pytest.fixture
def dataset():
    return Dataset("toy-train", np.arange(8, dtype=np.uint8).reshape(2, 1, 2, 2), np.array([0, 1]), 2)


def test_digest_is_of_elements_not_of_layout(dataset):
    turned = Dataset("t", np.asfortranarray(dataset.images), dataset.labels, 2)
    assert content_digest(turned) == content_digest(dataset)
    other = Dataset("t", dataset.images, dataset.labels[::-1].copy(), 2)
    assert content_digest(other) != content_digest(dataset)


@pytest.mark.parametrize(("images", "same", "verdict"), [
    (2, True, "is the toy set"),
    (2, False, "is not the toy set: as many images, but other content"),
    (9, False, "is not the toy set: 2 images instead of 9"),
    (2, None, "has as many images as the toy set; its content was not compared"),
])
def test_note(images, same, verdict, dataset, monkeypatch):
    digest = content_digest(dataset)
    known = None if same is None else digest if same else "0" * 64
    monkeypatch.setattr("espalier.data.checksums.STANDARDS", (Standard("toy-train", "the toy set", images, known),))
    assert checksum_note(dataset) == f"toy-train {verdict} (sha256 {digest})"


def test_standards_are_well_formed():
    assert len({standard.name for standard in STANDARDS}) == len(STANDARDS) == 10
    assert all(standard.sha256 is None or len(bytes.fromhex(standard.sha256)) == 32 for standard in STANDARDS)
