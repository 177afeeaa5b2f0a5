"""The rules by their thresholds, and the search by networks of which the answer is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.compress.retraining_free import FIRST_THRESHOLD, Rule, live_weights, sparsest
from espalier.errors import UnsupportedError


def network(seed: int = 0) -> dict[str, np.ndarray]:
    """Three layers, the later the smaller weights."""
    random = np.random.RandomState(seed)
    return {f"conv{k}": random.randn(8, 4, 3, 3) / (k + 1) for k in range(3)}


def density_of(live: dict[str, np.ndarray]) -> float:
    return sum(mask.sum() for mask in live.values()) / sum(mask.size for mask in live.values())


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.sampled_from(Rule), st.floats(0.02, 1.0), st.integers(0, 99))
def test_each_layer_has_a_threshold_and_the_network_the_density_asked_for(rule: Rule, density: float, seed: int):
    weights = network(seed)
    live = live_weights(rule, weights, density)
    assert abs(density_of(live) - density) <= 3 / 864
    for name, mask in live.items():
        magnitude = np.abs(weights[name])
        assert not mask.any() or mask.all() or magnitude[mask].min() >= magnitude[~mask].max()


def thresholds(rule: Rule) -> list[float]:
    weights = network()
    live = live_weights(rule, weights, 0.5)
    return [np.abs(weights[name])[~mask].max() for name, mask in live.items()]


def test_thresholds_by_rule():
    flat, triangular = thresholds(Rule.FLAT), thresholds(Rule.TRIANGULAR)
    assert np.allclose(flat, flat[0], rtol=0.05)
    assert np.allclose(np.array(triangular) / triangular[2], [FIRST_THRESHOLD, (1 + FIRST_THRESHOLD) / 2, 1], rtol=0.1)
    relative = live_weights(Rule.RELATIVE, network(), 0.25)
    assert all(mask.sum() == mask.size // 4 for mask in relative.values())


def test_blocks_live_as_a_whole():
    live = live_weights(Rule.FLAT, network(), 0.5, rows=4)
    for mask in live.values():
        blocks = mask.reshape(2, 4, 1, 4, 9).sum(axis=(1, 3))
        assert set(np.unique(blocks)) <= {0, 16}


def test_the_search_finds_the_best_rule_and_the_density_at_the_floor():
    weights = network()

    def accuracy(live):  # only the first layer matters, and half of it
        return min(1.0, 0.5 + live["conv0"].mean())

    found = sparsest(weights, accuracy, 0.9)
    assert found.rule is Rule.TRIANGULAR  # kindest to the first layer
    assert found.accuracy >= 0.9 and found.density == density_of(found.live)
    flat = sparsest(weights, accuracy, 0.9, rules=(Rule.FLAT,))
    assert found.density < flat.density < 0.4


def test_nothing_dies_where_every_weight_matters():
    found = sparsest(network(), lambda live: density_of(live), 1.0)
    assert found.density == 1.0 and found.accuracy == 1.0


def test_a_floor_that_is_never_reached_wrong():
    with pytest.raises(UnsupportedError, match=r"^The network reaches an accuracy of 60.00% with all its weights, and "
                                               r"at least 70.00% was asked for: allow a larger loss$"):
        sparsest(network(), lambda live: 0.6, 0.7)
