import itertools

import numpy as np
from bench.networks import Chain
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.arch.machine import ROWS
from espalier.compiler.backward import backward
from espalier.compiler.place import bank_vectors, place, vectors
from espalier.numerics.window import Window
from espalier.program.words import Opcode


@st.composite
def layers(draw):
    """The layers of a random chain of convolutions and linear layers."""
    chain = Chain((draw(st.integers(1, 5)), draw(st.integers(2, 12)), draw(st.integers(2, 12))))
    for _ in range(draw(st.integers(0, 4))):
        chain.conv(draw(st.integers(1, 40)), (3, 2), (1, 0, 1, 1))
        if not (chain.x.shape[1] % 2 or chain.x.shape[2] % 2) and draw(st.booleans()):
            chain.pool()
    for _ in range(draw(st.integers(1, 3))):
        chain.linear(draw(st.integers(1, 40)))
    return chain.layers()


def disjoint(spans):
    return all(end <= start for (_, end), (start, _) in itertools.pairwise(sorted(spans)))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(layers=layers(), rows=st.sampled_from(ROWS), elements=st.sampled_from([1, 1, 2, 4]))
def test_live_tensors_do_not_overlap(layers, rows, elements):
    memory = place(layers, rows, elements=elements)
    activations = [(0, 2 * vectors(layers[0].in_shape))]  # two groups of images
    for layer in layers:
        channels, height, width = layer.out_shape
        held = np.bincount(np.arange(channels) // rows % elements).max() * height * width
        assert elements > 1 or held == vectors(layer.out_shape)
        activations.append((memory.activations[layer.out], memory.activations[layer.out] + held))
    assert memory.activations["image"] == 0
    assert disjoint(activations)  # all live from FP to BP
    assert max(end for _, end in activations) == memory.activation_depth
    gradients = [(memory.gradients[layer.out], memory.gradients[layer.out] + bank_vectors(layer.out_shape, rows))
                 for layer in layers]
    assert all(disjoint(pair) for pair in itertools.pairwise(gradients))  # source and result of one BP
    assert all(start >= 0 and end <= memory.gradient_depth for start, end in gradients)


@st.composite
def branched(draw):
    """The layers of residual blocks, with projections or without."""
    chain = Chain((3, 8, 8)).conv(draw(st.integers(1, 9)), (1, 1)).relu()
    for _ in range(draw(st.integers(1, 4))):
        start, size = chain.x, chain.x.shape[1]
        step, channels = draw(st.sampled_from([(1, start.shape[0]), (2 if size > 1 else 1, draw(st.integers(1, 20)))]))
        chain.conv(draw(st.integers(1, 20)), (3, 3), (1, 1, 1, 1)).relu()
        chain.conv(channels, (3, 3), window=Window((3, 3), (step, step), (1, 1, 1, 1)))
        if chain.x.shape == start.shape:
            chain.add(start)
        else:
            inner, chain.x = chain.x, start
            chain.conv(channels, (1, 1), window=Window((1, 1), (step, step))).add(inner)
        chain.relu()
    return chain.average().linear(3).layers()


@settings(deadline=None, derandomize=True, max_examples=60)
@given(layers=branched(), rows=st.sampled_from(ROWS))
def test_gradients_lie_apart_from_their_first_step_to_their_last(layers, rows):
    """Written out: what each step reads and writes keeps its place until nothing reads it any more."""
    memory, plan = place(layers, rows), backward(layers)
    sizes = {layer.out: bank_vectors(layer.out_shape, rows) for layer in layers}
    touched = [(-1, layers[-1].out)]
    for number, step in enumerate(plan.steps):
        layer = layers[step.layer]
        values = [layer.out, step.add, layer.x if step.opcode == Opcode.BACKWARD else None]
        touched += [(number, plan.owner(value)) for value in values if value is not None]
    for number in range(-1, len(plan.steps)):
        alive = {value for _, value in touched if min(n for n, v in touched if v == value) <= number
                 <= max(n for n, v in touched if v == value)}
        spans = [(memory.gradients[value], memory.gradients[value] + sizes[value]) for value in alive]
        assert disjoint(spans) and all(start >= 0 and end <= memory.gradient_depth for start, end in spans)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(layers=branched(), rows=st.sampled_from(ROWS))
def test_what_is_added_in_the_forward_pass_lies_apart(layers, rows):
    """Each sum and what it is made of, from the layer that makes it to the last that adds it."""
    memory = place(layers, rows)
    made = {layer.out: k for k, layer in enumerate(layers)}
    sums = [layer for layer in layers if layer.addend]
    assert set(memory.copies) == {name for layer in sums for name in (layer.out, layer.addend)}
    for k, layer in enumerate(layers):
        alive = {name for name in memory.copies if made[name] <= k
                 <= max([made[name], *(made[other.out] for other in sums if other.addend == name)])}
        spans = [(memory.copies[name], memory.copies[name] + bank_vectors(layers[made[name]].out_shape, rows))
                 for name in alive]
        assert disjoint(spans) and all(start >= 0 and end <= memory.gradient_depth for start, end in spans)
        assert not layer.addend or layer.addend in alive


def test_gradient_depth_is_what_the_largest_neighbours_need():
    layers = Chain((1, 8, 8)).conv(3, (1, 1)).conv(5, (1, 1)).conv(2, (1, 1)).linear(7).layers()
    memory = place(layers, 2)
    assert [bank_vectors(layer.out_shape, 2) for layer in layers] == [2 * 64, 3 * 64, 64, 4]
    assert (memory.gradient_depth, tuple(memory.gradients.values())) == (5 * 64, (192, 0, 256, 0))
    assert tuple(memory.activations.values()) == (0, 128, 128 + 192, 128 + 512, 128 + 640)
