"""A published network, and engines that disagree, for the tests of compression, simulation and verification."""

from pathlib import Path

import numpy as np
import pytest
from bench import published

from espalier.engines.rtl import RtlEngine


@pytest.fixture
def wrong_engine(monkeypatch):
    """The RTL with one bit of one word turned over, whenever it is looked at."""
    traced, state = RtlEngine.traced_step, RtlEngine.state

    def turned(words):
        words = words.copy()
        words.reshape(-1)[3] ^= 1
        return words

    monkeypatch.setattr(RtlEngine, "traced_step", lambda self, images, labels: {
        **(found := traced(self, images, labels)), "fc": turned(found["fc"])})
    monkeypatch.setattr(RtlEngine, "state", lambda self: {
        **(found := state(self)), "conv.weight": turned(found["conv.weight"])})


@pytest.fixture(scope="module")
def mobile(tmp_path_factory) -> Path:
    """A folder with a network of TFLite operators for images (3, 8, 8), and with pictures of its two classes."""
    folder, random = tmp_path_factory.mktemp("mobile"), np.random.default_rng(1)
    np.savez(folder / "mobile.npz", **published.tflite_arrays(random))
    published.save_sample(folder, random, 20)
    return folder
