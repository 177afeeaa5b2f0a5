"""The compiled steps of a network's parts, several batches under way at once, equal that of the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bench.draws import Draw, draws, words
from bench.networks import Chain
from bench.random_networks import chains

from espalier.ir.cut import cut_points, split
from espalier.ir.differentiate import differentiate, differentiate_parts
from espalier.ir.graph import Graph
from espalier.ir.ops import Conv2d, Linear
from espalier.numerics.window import Window
from espalier.train.native_step import NativeStep, compiled

LOSSES = ("softmax_cross_entropy", "square_hinge")


def check(chain: Chain, draw: Draw, cuts: list[str], loss: str) -> None:
    """Two batches go forward through all parts before either goes back."""
    whole = differentiate(chain.graph(), loss, chain.gradient_formats)
    steps = differentiate_parts(split(chain.graph(), cuts), loss, chain.gradient_formats)
    native, parts = made(compiled(whole, draw.batch)), [made(compiled(step, draw.batch)) for step in steps]
    values = {value.name: torch.tensor(words(draw.random, value.format, value.shape, draw.extreme)).double().reshape(-1)
              for value in whole.parameters}
    live = {name: torch.tensor(draw.random.rand(len(value)) < 0.6).double() for name, value in values.items()}
    image, labels = whole.inputs
    batches = [(torch.tensor(words(draw.random, image.format, (draw.batch, *image.shape), draw.extreme)).short(),
                torch.tensor(draw.random.randint(0, whole.outputs[1].shape[0], draw.batch))) for _ in range(2)]
    flat, flat_live = ([torch.cat([tensors[value.name] for value in step.parameters]) for step in steps]
                       for tensors in (values, live))
    kept = [[part.keeping(draw.batch) for _ in batches] for part in parts]
    results = []
    for number, (x, _) in enumerate(batches):
        for k, part in enumerate(parts):
            x = part.forward(x, flat[k], kept[k][number])
        results.append(x)
    for number, (images, classes) in enumerate(batches):
        loss_words, logits, sums = native.train(images, classes, torch.cat(list(values.values())),
                                                torch.cat(list(live.values())))
        found, gradient = parts[-1].loss(results[number], classes)
        assert torch.equal(found, loss_words) and torch.equal(results[number].flatten(1), logits)
        backward: list[torch.Tensor] = []
        for k in reversed(range(len(parts))):
            assert gradient is not None, "handed on to the part before"
            gradient, part_sums = parts[k].backward(gradient, flat[k], flat_live[k], kept[k][number])
            backward.insert(0, part_sums.clone())
        assert gradient is None, "no gradient is made for the image"
        assert torch.equal(torch.cat(backward), sums)


def made(native: NativeStep | None) -> NativeStep:
    assert native is not None
    return native


def between_layers(graph: Graph, place: int) -> list[str]:
    """A cut after each layer but the last: at its result (0), or at the last value that is made of it (-1)."""
    groups: list[list[str]] = []
    points = cut_points(graph)
    for op in graph.ops:
        if isinstance(op, Conv2d | Linear):
            groups.append([])
        if op.out in points:
            groups[-1].append(op.out.name)
    return [group[place] for group in groups if group]


@draws
def test_any_network_of_the_engine_in_parts(draw: Draw) -> None:
    loss = LOSSES[draw.integer(0, 1)]
    chain = draw.data.draw(chains(16, 1, loss == "square_hinge"))
    check(chain, draw, between_layers(chain.graph(), draw.integer(-1, 0)), loss)


@pytest.mark.parametrize("extreme", [False, True])
def test_every_cut_of_a_chain(extreme: bool) -> None:
    draw = Draw(None, np.random.RandomState(extreme), extreme, 5)
    for chain in (Chain((2, 8, 8)).conv(4, (3, 3), (1, 1, 1, 1)).relu().pool().conv(6, (3, 3)).relu().linear(5),
                  Chain((2, 7, 7)).conv(4, (3, 3), window=Window((3, 3), (2, 2), (1, 1, 1, 1))).relu().linear(5)):
        for value in cut_points(chain.graph()):
            check(chain, draw, [value.name], LOSSES[0])
        check(chain, draw, between_layers(chain.graph(), -1), LOSSES[0])
