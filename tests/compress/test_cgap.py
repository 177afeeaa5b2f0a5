"""Which units split and leave, within what size, and that a network goes on moving as it did."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.compress.cgap import Growth, Shedding, Size, Structure, Times, grown, grown_momenta, seeded, shed
from espalier.compress.growth import Birth, ChannelGroup, Member
from espalier.errors import EspalierError, UnsupportedError

#: a (4 units) is read by b (6 units) by 2 positions a unit, and b by c.
GROUPS = (ChannelGroup((Member("a", 0), Member("a.bias", 0)), (Member("b", 1, 2),)),
          ChannelGroup((Member("b", 0),), (Member("c", 1),)))
PIXELS = {"a": 9, "b": 4, "c": 1}
Tensors = dict[str, np.ndarray]


def tensors(a: int = 4, b: int = 6, seed: int = 0) -> Tensors:
    random = np.random.RandomState(seed)
    return {"a": random.randn(a, 3), "a.bias": random.randn(a), "b": random.randn(b, 2 * a), "c": random.randn(5, b)}


def size(network: Tensors) -> Size:
    return Size.of(network, GROUPS, PIXELS)


def scores(*units: list[float]) -> list[np.ndarray]:
    return [np.array(each, dtype=np.float64) for each in units]


def test_sizes_by_hand() -> None:
    found = size(tensors())
    assert found.widths == (4, 6) and found.weights() == 12 + 48 + 30 and found.macs() == 12 * 9 + 48 * 4 + 30
    assert found.weights((5, 2)) == size(tensors(5, 2)).weights() == 15 + 20 + 10
    assert found.macs((5, 2)) == size(tensors(5, 2)).macs()


def test_times() -> None:
    assert Times(1, 2, 0.25).all == (1, 1.25, 1.5, 1.75, 2) and Times(1, 1.9).all == (1,)
    assert len(Times(0.1, 0.7, 0.2).all) == 4  # although 0.1 + 3 · 0.2 is above 0.7
    structure = Structure(1.0, Growth(Times(1, 2)), Shedding(Times(2.5, 3), 0.5))
    assert structure.times == (1, 2, 2.5) and structure.end == 2.5
    assert structure.due_steps(10) == {10: 1, 20: 2, 25: 2.5}
    assert Structure(0.5).end == 0 and not Structure(0.5).due_steps(10)


def test_the_most_salient_split_as_far_as_there_is_room() -> None:
    now, saliency = size(tensors()), scores([4, 3, 2, 1], [1, 2, 3, 4, 5, 6])
    assert [parents.tolist() for parents in Growth(Times(1, 1), 0.5, 9).parents(saliency, now, now)] == [[0, 1],
                                                                                                    [3, 4, 5]]
    room = Growth(Times(1, 1), 0.5, 1.6).parents(saliency, now, now)
    assert [parents.tolist() for parents in room] == [[0], [4, 5]]
    assert now.weights((5, 8)) <= 1.6 * now.weights() < now.weights((6, 8))
    assert all(not len(parents) for parents in Growth(Times(1, 1), 0.5, 0.9).parents(saliency, now, now))


def test_the_least_salient_leave_as_multiples_of_the_mean() -> None:
    now, rule = size(tensors()), Shedding(Times(1, 1), weights=0.6)
    kept = rule.kept(scores([10, 10, 1, 10], [0.1, 0.1, 0.03, 0.04, 0.1, 0.1]), now, now, 1)
    assert [units.tolist() for units in kept] == [[0, 1, 3], [0, 1, 4, 5]]
    assert now.weights((3, 4)) <= 0.6 * now.weights() < now.weights((3, 5))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(0, 99), st.floats(0.1, 0.9), st.floats(0.1, 1), st.integers(1, 5))
def test_what_is_left_is_within_the_budgets_at_the_end(seed: int, weights: float, macs: float, times: int) -> None:
    random, network = np.random.RandomState(seed), tensors(8, 12)
    named, rule = size(tensors(8, 12)), Shedding(Times(1, times), weights, macs)
    sizes = [named.weights()]
    for time in rule.times.all:
        now = size(network)
        kept = rule.kept([random.rand(width) for width in now.widths], now, named, time)
        network = shed(network, GROUPS, kept)
        sizes.append(size(network).weights())
    assert sizes == sorted(sizes, reverse=True)
    last = size(network)
    assert last.widths == (1, 1) or (last.weights() <= weights * named.weights() and last.macs() <= macs * named.macs())


@settings(deadline=None, max_examples=10, derandomize=True)
@given(st.integers(0, 99), st.floats(0.3, 0.7))
def test_two_sizes_are_met_at_once(seed: int, skew: float) -> None:
    """A layer of many MACs and few weights before one of the opposite, whichever has the units of less saliency."""
    now = Size((64, 64), ((27, 1024, (0,)), (9, 256, (0, 1)), (640, 1, (1,))))
    random = np.random.RandomState(seed)
    saliency = [random.rand(64) + skew, random.rand(64) ** 3 + 1 - skew]
    kept = Shedding(Times(1, 1), 0.4, 0.45).kept(saliency, now, now, 1)
    widths = [len(units) for units in kept]
    assert 0.37 < now.weights(widths) / now.weights() <= 0.4 and 0.42 < now.macs(widths) / now.macs() <= 0.45


def test_equal_units_leave_youngest_first_and_each_group_keeps_one() -> None:
    now = size(tensors())
    kept = Shedding(Times(1, 1), weights=0.01).kept(scores([1] * 4, [1] * 6), now, now, 1)
    assert [units.tolist() for units in kept] == [[0], [0]]
    some = Shedding(Times(1, 1), weights=0.8).kept(scores([1] * 4, [1] * 6), now, now, 1)
    assert [units.tolist() for units in some] == [[0, 1, 2, 3], [0, 1, 2, 3]]


def test_of_units_without_any_saliency_some_leave() -> None:
    now = size(tensors())
    kept = Shedding(Times(1, 1), weights=0.5).kept(scores([0] * 4, [0] * 6), now, now, 1)
    assert now.weights([len(units) for units in kept]) <= 45


def test_a_seed_keeps_the_variance_of_sums() -> None:
    network = tensors()
    found = seeded(network, GROUPS, 0.5)
    assert size(found).widths == (2, 3)
    assert np.array_equal(found["a"], network["a"][:2])
    assert np.allclose(found["b"], network["b"][:3, :4] * np.sqrt(2)) and np.allclose(
        found["c"], network["c"][:, :3] * np.sqrt(2))
    assert size(seeded(network, GROUPS, 0.01)).widths == (1, 1)
    fixed = (ChannelGroup(GROUPS[0].made, (Member("b", 1, 2, fixed=True),)),)
    assert np.array_equal(seeded(network, fixed, 0.5)["b"], network["b"][:, :4])


def test_a_grown_network_goes_on_as_it_did() -> None:
    """A step along the momenta and then a growth is the growth and then the step, but for what readers multiply."""
    network, momenta, parents = tensors(), tensors(seed=1), (np.array([2, 0]), np.array([5]))
    birth, step = Birth(noise=0.0), 0.125
    after = grown({name: network[name] - step * momenta[name] for name in network}, GROUPS, parents, birth, (0,))
    larger, faster = grown(network, GROUPS, parents, birth, (0,)), grown_momenta(momenta, GROUPS, parents, birth)
    for name in network:
        assert np.allclose(larger[name] - step * faster[name], after[name], rtol=0, atol=1e-12)


def test_groups_and_growths_have_noise_of_their_own() -> None:
    network, parents = tensors(4, 4), (np.array([0]), np.array([0]))
    first, again, other = (grown(network, GROUPS, parents, Birth(), (3, number)) for number in (0, 0, 1))
    assert all(np.array_equal(first[name], again[name]) for name in network)
    assert not np.array_equal(first["a"], other["a"])


@pytest.mark.parametrize(("make", "sentence"), [
    (lambda: Times(0, 1), r"^Units are born and leave at times above 0, from a start to an end that is no earlier, "
                          r"each some time after the other, not at 0\.\.1 every 1.0 epochs$"),
    (lambda: Times(2, 1), r"not at 2\.\.1 every 1.0 epochs$"), (lambda: Times(1, 1, 0), r"not at 1\.\.1 every 0 epoch"),
    (lambda: Growth(Times(1, 1), 0), r"^Above 0 and at most all units split at a growth, not 0$"),
    (lambda: Growth(Times(1, 1), bound=0), r"^The most weights to grow to are a part above 0 of those of the network, "
                                           r"not 0$"),
    (lambda: Shedding(Times(1, 1)), r"^Units leave until weights or MACs are a part above 0 and below 1 of those of the"
                                    r" network, not 1.0 and 1.0$"),
    (lambda: Shedding(Times(1, 1), macs=0), r"not 1.0 and 0$"),
    (lambda: Structure(0), r"^A network starts from a part above 0 and at most 1 of its units, not 0$"),
    (lambda: Structure(looks=0), r"^Saliency is summed over at least 1 batch, not 0$"),
    (lambda: Structure(1, Growth(Times(1, 3)), Shedding(Times(3, 4), 0.5)),
     r"^Units leave after the last growth, at epoch 3, not from epoch 3 on: start later$"),
])
def test_structure_wrong(make, sentence: str) -> None:
    with pytest.raises(UnsupportedError, match=sentence):
        make()
    assert issubclass(UnsupportedError, EspalierError)
