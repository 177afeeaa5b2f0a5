"""Groups of real torch networks, found by tracing, and networks of other widths that compute the same.

``CLOSE`` is what float32 loses in these small networks.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bench.channel_groups import channel_groups, resized, tensors_of
from torch import nn

from espalier.compress.growth import Birth, ChannelGroup, Member, grow, keep_units, unit_saliency
from espalier.errors import UnsupportedError
from espalier.zoo.registry import build

CLOSE = 1e-5
SHAPE = (3, 8, 8)


class Residual(nn.Module):
    """Two convolutions beside an identity, or beside a 1×1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.beside = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        within = torch.relu(self.norm(self.first(x)))
        return torch.relu(self.second(within) + self.beside(x))


class Concatenated(nn.Module):
    """Two convolutions whose channels stand side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.after = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(torch.cat([self.left(x), self.right(x)], dim=1)).mean((2, 3))


def residual_network() -> nn.Module:
    """Stem, depthwise convolution, three residual blocks, flattening of 2 × 2 pixels, linear layer."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1, groups=4), nn.ReLU(),
        Residual(4, 4, 1), Residual(4, 6, 2), Residual(6, 6, 1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 10))
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):  # statistics as after training
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            nn.init.constant_(layer.bias, 2)
    return network.eval()


def images() -> torch.Tensor:
    return torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(1))


def weights(members: tuple[Member, ...]) -> list[str]:
    return [member.name for member in members if member.name.endswith("weight")]


def test_groups_of_a_chain() -> None:
    chain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 4), nn.ReLU(),
                          nn.Linear(4, 3))
    assert channel_groups(chain, (1, 8, 8)) == (
        ChannelGroup((Member("0.bias", 0), Member("0.weight", 0)), (Member("3.weight", 1, 9),)),
        ChannelGroup((Member("3.bias", 0), Member("3.weight", 0)), (Member("5.weight", 1),)))


def test_groups_of_a_residual_network() -> None:
    groups = channel_groups(residual_network(), SHAPE)
    assert [(weights(group.made), weights(group.read)) for group in groups] == [
        (["0.weight", "1.weight", "3.weight", "5.second.weight"],
         ["5.first.weight", "6.beside.weight", "6.first.weight"]),
        (["5.first.weight", "5.norm.weight"], ["5.second.weight"]),
        (["6.first.weight", "6.norm.weight"], ["6.second.weight"]),
        (["6.beside.weight", "6.second.weight", "7.second.weight"], ["10.weight", "7.first.weight"]),
        (["7.first.weight", "7.norm.weight"], ["7.second.weight"])]
    assert Member("10.weight", 1, 4) in groups[3].read
    assert {Member("1.running_mean", 0), Member("1.running_var", 0)} <= set(groups[0].made)
    assert groups == channel_groups(residual_network(), SHAPE)


def test_a_grown_residual_network_computes_the_same() -> None:
    network = residual_network()
    tensors = tensors_of(network)
    for seed, group in enumerate(channel_groups(network, SHAPE)):
        tensors = grow(tensors, group, np.arange(group.units(tensors) // 2), Birth(noise=0.0), seed)
    grown = resized(network, tensors)
    assert [layer.out_channels for layer in grown.modules() if isinstance(layer, nn.Conv2d)] == [
        6, 6, 6, 6, 9, 9, 9, 9, 9]
    with torch.no_grad():
        assert torch.allclose(grown(images()), network(images()), rtol=0, atol=CLOSE)
    assert network[0].out_channels == 4
    assert channel_groups(grown, SHAPE) == channel_groups(network, SHAPE)


def test_a_pruned_residual_network_computes_the_same_when_nothing_listens() -> None:
    network = residual_network()
    tensors, groups = tensors_of(network), channel_groups(network, SHAPE)
    for group in groups:
        for member in group.read:
            tensors[member.name][:, : member.span] = 0
    silent, smaller = resized(network, tensors), tensors
    for group in groups:
        smaller = keep_units(smaller, group, np.arange(1, group.units(tensors)))
    pruned = resized(network, smaller)
    with torch.no_grad():
        assert torch.allclose(pruned(images()), silent(images()), rtol=0, atol=CLOSE)
    assert pruned[10].in_features == 20 and pruned[3].groups == 3


def test_newborn_units_get_useful_gradients() -> None:
    """A child's filter gets (1 - share)/share of its parent's gradient, its reader as much; the two go apart."""
    network = residual_network()
    group = channel_groups(network, SHAPE)[1]
    parents = np.array([0, 2])
    for noise in (0.0, 0.05):
        grown = resized(network, grow(tensors_of(network), group, parents, Birth(0.6, noise), seed=0))
        nn.functional.cross_entropy(grown(images()), torch.arange(6)).backward()
        made = grown[5].first.weight.grad.flatten(1)
        read = grown[5].second.weight.grad.transpose(0, 1).flatten(1)
        parent, child = made[:4][[0, 2]], made[4:]
        ratio = child.norm(dim=1) / parent.norm(dim=1)
        assert torch.allclose(ratio, torch.tensor(0.4 / 0.6), rtol=1e-3 if noise == 0 else 0.5)
        assert not torch.allclose(parent, child, rtol=0.1)
        listened = read[4:].norm(dim=1) / read[:4][[0, 2]].norm(dim=1)
        assert torch.allclose(listened, torch.tensor(1.0), rtol=1e-3 if noise == 0 else 0.5)


@pytest.mark.parametrize(("name", "shape"), [
    ("lenet5", (1, 28, 28)), ("cnn1x", (3, 32, 32)), ("resnet20", (3, 32, 32)), ("mobilenetv1", (3, 32, 32))])
def test_networks_of_the_zoo_grow(name: str, shape: tuple[int, int, int]) -> None:
    network = build(name).eval()
    tensors = tensors_of(network)
    for seed, group in enumerate(channel_groups(network, shape)):
        tensors = grow(tensors, group, np.array([0]), Birth(noise=0.0), seed)
    image = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(resized(network, tensors)(image), network(image), rtol=0, atol=CLOSE)


def test_a_fixed_shortcut_stays_as_it_is() -> None:
    """Noise would fill the shortcut's zeros; it is still no parameter to train after growth."""
    network = build("resnet20").eval()
    tensors, groups = tensors_of(network), channel_groups(network, (3, 32, 32))
    shortcuts = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert len(shortcuts) == 2
    assert {member.name for group in groups for member in (*group.made, *group.read) if member.fixed} == shortcuts
    last = next(group for group in groups if "linear.weight" in weights(group.read))
    grown = resized(network, grow(tensors, last, np.array([20]), Birth(noise=0.5), seed=0))
    widened = grown.state_dict()["layer3.0.shortcut.weight"].numpy()
    assert np.array_equal(widened, tensors["layer3.0.shortcut.weight"][[*range(64), 20]])
    assert {name for name, parameter in grown.named_parameters() if not parameter.requires_grad} == shortcuts
    gradients = {name: np.ones_like(array) for name, array in tensors.items() if name not in shortcuts}
    assert unit_saliency(tensors, gradients, last).shape == (64,)


def test_tensors_are_copies() -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    tensors = tensors_of(network)
    tensors["0.weight"][:] = 7
    assert not (network[0].weight == 7).any()
    assert (resized(network, tensors)[0].weight == 7).all() and resized(network, tensors)[0].weight.requires_grad


def test_channels_side_by_side_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^Channels are traced where layer 'after' reads all channels of one "
                                               r"layer in order, not concatenated ones: leave this network's widths as "
                                               r"they are$"):
        channel_groups(Concatenated(), SHAPE)


def test_convolution_in_groups_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^Channels are traced through convolutions in one group and depthwise "
                                               r"ones, and '1' has 2 groups: leave this network's widths as they "
                                               r"are$"):
        channel_groups(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=2)), SHAPE)


def test_other_layers_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^Channels are traced through convolutions, linear layers and batch "
                                               r"norm, and '1' is a PReLU: leave this network's widths as they are$"):
        channel_groups(nn.Sequential(nn.Conv2d(3, 4, 1), nn.PReLU(4)), SHAPE)
