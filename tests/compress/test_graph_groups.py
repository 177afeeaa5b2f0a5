"""Groups of a graph are those that the library finds in its module, and a resized graph computes what it should."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bench import normed as normed_network
from bench.channel_groups import channel_groups
from torch import nn

from espalier import zoo
from espalier.compress.graph_groups import groups_of, resized
from espalier.compress.growth import Birth, ChannelGroup, Member, grow, keep_units
from espalier.errors import UnsupportedError
from espalier.frontend.torch_export import fixed_parameters, from_torch
from espalier.ir import ops
from espalier.ir.graph import Graph
from espalier.ir.interpret import interpret
from espalier.ir.types import FLOAT, TensorType, Value
from espalier.numerics.window import Window

CLOSE = 1e-9  #: what float64 loses in these small networks
SHAPE = (3, 8, 8)


class Residual(nn.Module):
    """Two convolutions beside an identity, or beside a fixed 1×1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(inputs, outputs, 3, 1, 1), nn.Conv2d(outputs, outputs, 3, 1, 1)
        narrow = inputs != outputs
        self.beside = nn.Conv2d(inputs, outputs, 1, bias=False).requires_grad_(False) if narrow else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.beside(x))


def residual_network() -> nn.Module:
    """Stem, depthwise convolution, residual blocks, flattening of 4 × 4 pixels, two linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1, groups=4), Residual(4, 4),
                         Residual(4, 6), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 7), nn.ReLU(), nn.Linear(7, 5))


def trained_parts(group: ChannelGroup) -> tuple[set[Member], set[Member]]:
    return {member for member in group.made if not member.name.startswith("bn")}, set(group.read)


@pytest.mark.parametrize("make", [residual_network, lambda: zoo.build("digits")])
def test_they_are_those_of_the_library(make) -> None:
    module = make()
    shape = SHAPE if len(module) > 8 else (1, 8, 8)
    graph, _ = from_torch(module, shape, "net")
    assert groups_of(graph, fixed_parameters(module)) == channel_groups(module, shape)


def test_those_of_resnet_20_are_those_of_the_library() -> None:
    """But for what folding adds and takes: parameters of batch norm go, and its biases come."""
    module = zoo.build("resnet20")
    graph, parameters = from_torch(module, (3, 32, 32), "resnet20")
    found, theirs = groups_of(graph, fixed_parameters(module)), channel_groups(module, (3, 32, 32))

    def weights(group: ChannelGroup) -> tuple[set[Member], ...]:
        return tuple({member for member in members if member.name in parameters and member.name.endswith("weight")}
                     for members in (group.made, group.read))
    assert [weights(group) for group in found] == [weights(group) for group in theirs] and len(found) == 12
    assert sum(member.fixed for group in found for member in group.made) == 2


def test_a_grown_graph_computes_the_same() -> None:
    module = residual_network()
    graph, parameters = from_torch(module, SHAPE, "net")
    images = np.random.RandomState(0).randn(3, *SHAPE)
    before = interpret(graph, {**parameters, graph.inputs[0].name: images})[graph.outputs[0].name]
    tensors = dict(parameters)
    for group in groups_of(graph, fixed_parameters(module)):
        tensors = grow(tensors, group, np.arange(group.units(tensors) // 2), Birth(noise=0.0), 0)
    larger = resized(graph, {name: array.shape for name, array in tensors.items()})
    assert [layer.w.shape[0] for layer in larger.layers()] == [6, 6, 6, 6, 9, 9, 9, 10, 5]
    depthwise = larger.layers()[1]
    assert isinstance(depthwise, ops.Conv2d) and depthwise.groups == 6
    after = interpret(larger, {**tensors, graph.inputs[0].name: images})[graph.outputs[0].name]
    assert np.allclose(after, before, rtol=0, atol=CLOSE)


def test_channels_of_image_and_logits_and_frozen_ones_stay() -> None:
    def value(name: str, *shape: int) -> Value:
        return Value(name, TensorType(shape, FLOAT))
    image, w, v, inner, logits = (value("image", 4), value("w", 4, 4), value("v", 3, 4), value("inner", 4),
                                  value("logits", 3))
    layers = (ops.Linear(inner, image, w, None), ops.Linear(logits, inner, v, None))
    chain = Graph("chain", (image,), (w, v), layers, (logits,))
    assert groups_of(chain) == (ChannelGroup((Member("w", 0),), (Member("v", 1),)),)
    assert groups_of(chain, {"w"}) == ()
    added, last = value("added", 4), value("logits", 3)
    tied = Graph("tied", (image,), (w, v), (layers[0], ops.Add(added, inner, image), ops.Linear(last, added, v, None)),
                 (last,))
    assert groups_of(tied) == ()


def test_channels_that_cannot_be_traced_wrong() -> None:
    graph, _ = from_torch(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1, groups=2)), SHAPE, "net")
    with pytest.raises(UnsupportedError, match=r"^Channels are traced through layers in one group or depthwise, and "
                                               r"operations that keep their number and order, and Conv2d '1' is none: "
                                               r"leave this network's widths as they are$"):
        groups_of(graph)


def test_window_of_a_resized_layer_stays() -> None:
    graph, _ = from_torch(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Flatten(), nn.Linear(64, 5)), SHAPE, "net")
    conv = resized(graph, {"0.weight": (2, 3, 3, 3), "0.bias": (2,), "2.weight": (5, 32)}).layers()[0]
    assert isinstance(conv, ops.Conv2d) and conv.window == Window((3, 3), (2, 2), (1, 1, 1, 1))


def test_batch_norms_are_in_the_groups_of_their_channels() -> None:
    """Those that the library finds in the module; running statistics are not trained, and so fixed here."""
    module = normed_network.residual()
    graph, parameters = from_torch(module, (1, 8, 8), "net", keep_batch_norm=True)
    found, theirs = groups_of(graph), channel_groups(module, (1, 8, 8))
    assert [{(member.name, member.axis, member.span) for member in group.made} for group in found] == [
        {(member.name, member.axis, member.span) for member in group.made} for group in theirs]
    assert [set(group.read) for group in found] == [set(group.read) for group in theirs]
    fixed = {member.name for group in found for member in group.made if member.fixed}
    assert fixed == {value.name for value in graph.statistics()}


def test_a_grown_graph_with_batch_norms_computes_the_same() -> None:
    graph, parameters = normed_network.normed(normed_network.shaken(normed_network.residual()))
    images = np.random.RandomState(0).randn(3, 1, 8, 8)
    before = interpret(graph, {**parameters, graph.inputs[0].name: images})[graph.outputs[0].name]
    tensors = dict(parameters)
    for group in groups_of(graph):
        tensors = grow(tensors, group, np.arange(group.units(tensors) // 2), Birth(noise=0.0), 0)
    larger = resized(graph, {name: array.shape for name, array in tensors.items()})
    assert [value.shape for value in larger.statistics()] == 6 * [(9,)] + 2 * [(18,)]
    after = interpret(larger, {**tensors, graph.inputs[0].name: images})[graph.outputs[0].name]
    assert np.allclose(after, before, rtol=0, atol=CLOSE)
    halved = {name: keep_units(tensors, groups_of(larger)[0], np.arange(4))[name] for name in tensors}
    assert halved["bn1.running_var"].shape == halved["bn2.running_mean"].shape == (4,)
