"""Engines that disagree, for the tests of simulation and verification."""

import pytest

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
