"""Units split without a change of what the network computes, and leave with everything that is theirs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.compress.growth import (
    Birth,
    ChannelGroup,
    Member,
    grow,
    keep_units,
    most_salient,
    unit_saliency,
)
from espalier.errors import UnsupportedError

Tensors = dict[str, np.ndarray]

#: Two layers whose outputs are added, read by a third that sees 2 pixels of each channel.
GROUP = ChannelGroup((Member("a.bias", 0), Member("a.weight", 0), Member("b.weight", 0)), (Member("c.weight", 1, 2),))


def tensors(seed: int = 0, units: int = 4) -> Tensors:
    random = np.random.RandomState(seed)
    return {"a.weight": random.randn(units, 3, 1, 1), "a.bias": random.randn(units),
            "b.weight": random.randn(units, 3, 1, 1), "c.weight": random.randn(5, 2 * units),
            "other": random.randn(2, 2)}


def output(network: Tensors, pixels: np.ndarray) -> np.ndarray:
    """The network on images (N, 3, 2): a rectified sum of two 1×1 convolutions, flattened, and a linear layer."""
    added = np.einsum("oi,nip->nop", (network["a.weight"] + network["b.weight"])[:, :, 0, 0], pixels)
    active = np.maximum(added + network["a.bias"][:, np.newaxis], 0)
    return active.reshape(len(pixels), -1) @ network["c.weight"].T


def test_a_birth_by_hand() -> None:
    group = ChannelGroup((Member("w", 0),), (Member("v", 1, 2),))
    network = {"w": np.array([[1.0], [2.0]]), "v": np.array([[10.0, 20.0, 30.0, 40.0]])}
    grown = grow(network, group, np.array([1]), Birth(share=0.75, noise=0.0), seed=0)
    assert grown["w"].tolist() == [[1], [2], [2]] and grown["v"].tolist() == [[10, 20, 22.5, 30, 7.5, 10]]
    assert network["w"].shape == (2, 1) and network["v"].shape == (1, 4)


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.integers(0, 999), st.integers(1, 6), st.floats(0.1, 0.9), st.data())
def test_the_function_is_kept(seed: int, units: int, share: float, data: st.DataObject) -> None:
    """Exactly without noise (to a rounding); of second order in the noise where the rectifiers do not switch."""
    network, pixels = tensors(seed, units), np.random.RandomState(seed + 1).randn(20, 3, 2)
    parents = np.array(data.draw(st.lists(st.integers(0, units - 1), unique=True)), dtype=np.int64)
    before = output(network, pixels)
    grown = grow(network, GROUP, parents, Birth(share=share, noise=0.0), seed)
    assert GROUP.units(grown) == units + len(parents)
    assert np.allclose(output(grown, pixels), before, rtol=0, atol=1e-11)
    assert np.array_equal(grown["other"], network["other"])
    noisy = grow(network | {"a.bias": np.full(units, 100.0)}, GROUP, parents, Birth(share=share, noise=0.1), seed)
    assert np.allclose(output(noisy, pixels), output(network | {"a.bias": np.full(units, 100.0)}, pixels),
                       rtol=0, atol=1e-9)
    assert np.array_equal(noisy["a.weight"], grow(network, GROUP, parents, Birth(share=share, noise=0.1), seed)[
        "a.weight"])


def test_noise_drives_parent_and_child_apart_and_no_further() -> None:
    network = tensors()
    grown = grow(network, GROUP, np.array([2, 0]), Birth(share=0.5, noise=0.1), seed=1)
    for name in ("a.weight", "b.weight"):
        size = np.sqrt((network[name] ** 2).mean(axis=(1, 2, 3)))
        for parent, child in ((2, 4), (0, 5)):
            apart = np.abs(grown[name][parent] - grown[name][child])
            assert 0 < apart.max() <= 0.1 * size[parent] + 1e-12
        assert np.array_equal(grown[name][[1, 3]], network[name][[1, 3]])
    assert np.array_equal(grown["a.bias"], network["a.bias"][[0, 1, 2, 3, 2, 0]])


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.integers(0, 999), st.integers(1, 6), st.floats(0.1, 0.9))
def test_readers_may_share_each_in_parts_of_its_own(seed: int, units: int, share: float) -> None:
    """The function is kept; parts stay within the spread; weights that are not trained share alike."""
    network, parents = tensors(seed, units), np.arange(units)
    spread = min(share, 1 - share) / 2
    birth = Birth(share=share, noise=0.0, spread=spread)
    grown = grow(network, GROUP, parents, birth, seed)
    pixels = np.random.RandomState(seed + 1).randn(20, 3, 2)
    assert np.allclose(output(grown, pixels), output(network, pixels), rtol=0, atol=1e-11)
    parts = grown["c.weight"][:, : 2 * units] / network["c.weight"]
    assert np.abs(parts - share).max() <= spread + 1e-9 and len(np.unique(parts.round(9))) == parts.size
    fixed = ChannelGroup(GROUP.made, (Member("c.weight", 1, 2, fixed=True),))
    assert np.allclose(grow(network, fixed, parents, birth, seed)["c.weight"][:, : 2 * units],
                       share * network["c.weight"])


def test_shares_of_their_own_give_parent_and_child_gradients_of_different_directions() -> None:
    """At birth, without noise: the gradient of a filter is that of its unit's readers, times the image."""
    network, chosen = tensors(3), np.array([1, 2])
    upstream = np.random.RandomState(4).randn(50, 5)  # dL/d(output) of 50 images
    pixels = np.random.RandomState(5).randn(50, 3, 2)

    def cosines(birth: Birth) -> np.ndarray:
        grown = grow(network | {"a.bias": np.full(4, 9.0)}, GROUP, chosen, birth, 0)
        felt = (upstream @ grown["c.weight"]).reshape(50, 6, 2)  # every unit is active
        gradients = np.einsum("nop,nip->oi", felt, pixels)
        parents, children = gradients[chosen], gradients[4:]
        return (parents * children).sum(axis=1) / (np.linalg.norm(parents, axis=1) * np.linalg.norm(children, axis=1))

    assert np.allclose(cosines(Birth(0.6, 0.0)), 1)
    assert cosines(Birth(0.6, 0.0, 0.4)).max() < 0.99


def test_saliency_by_hand() -> None:
    weights = {"a.weight": np.array([[1.0, -2.0], [3.0, 0.0]]), "b.weight": np.array([[1.0, 1.0], [1.0, -1.0]])}
    gradients = {"a.weight": np.array([[1.0, 1.0], [-1.0, 5.0]]), "b.weight": np.array([[0.5, 0.5], [2.0, 2.0]])}
    assert unit_saliency(weights, gradients, GROUP).tolist() == [4, 7]


def test_the_most_salient() -> None:
    saliency = np.array([1.0, 3.0, 2.0, 3.0, 0.0])
    assert [most_salient(saliency, fraction).tolist() for fraction in (0, 0.2, 0.4, 0.6, 1)] == [
        [], [1], [1, 3], [1, 2, 3], [0, 1, 2, 3, 4]]


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.integers(0, 99), st.lists(st.integers(0, 5), unique=True, min_size=1))
def test_kept_units_compute_what_they_did(seed: int, kept: list[int]) -> None:
    """Units that nothing listens to can leave."""
    network, pixels = tensors(seed, 6), np.random.RandomState(seed).randn(20, 3, 2)
    for unit in set(range(6)) - set(kept):
        network["c.weight"][:, 2 * unit: 2 * unit + 2] = 0
    smaller = keep_units(network, GROUP, np.array(kept))
    assert GROUP.units(smaller) == len(kept) and smaller["c.weight"].shape == (5, 2 * len(kept))
    assert np.allclose(output(smaller, pixels), output(network, pixels), rtol=0, atol=1e-11)


def test_a_layer_that_reads_itself() -> None:
    """Its weight has the units on both axes."""
    group = ChannelGroup((Member("w", 0),), (Member("w", 1),))
    network = {"w": np.array([[1.0, 2.0], [3.0, 4.0]])}
    grown = grow(network, group, np.array([0]), Birth(share=0.5, noise=0), seed=0)
    assert grown["w"].tolist() == [[0.5, 2, 0.5], [1.5, 4, 1.5], [0.5, 2, 0.5]]
    assert keep_units(network, group, np.array([1]))["w"].tolist() == [[4]]


def test_birth_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^A parent's share is above 0 and below 1, so that parent and child "
                                               r"both learn, not 1.0$"):
        Birth(share=1.0)
    with pytest.raises(UnsupportedError, match=r"^The noise at a birth is at least 0, not -0.1$"):
        Birth(noise=-0.1)
    with pytest.raises(UnsupportedError, match=r"^The spread of the shares at a birth is at least 0 and at most 0.4, "
                                               r"as from 0.6 to nothing or all, not 0.5$"):
        Birth(spread=0.5)


def test_units_wrong() -> None:
    for units in ([0, 0], [4], [-1]):
        with pytest.raises(UnsupportedError, match=r"^Units are chosen once each from 0\.\.3, not as \["):
            grow(tensors(), GROUP, np.array(units), Birth(), 0)
    with pytest.raises(UnsupportedError, match=r"^A layer keeps at least one unit: raise the fraction that stays$"):
        keep_units(tensors(), GROUP, np.array([], dtype=np.int64))
    with pytest.raises(UnsupportedError, match=r"^The fraction of units that grow or stay is 0\.\.1, not 2$"):
        most_salient(np.zeros(3), 2)
