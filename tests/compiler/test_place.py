import itertools

from bench.networks import Chain
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.arch.machine import ROWS
from espalier.compiler.place import bank_vectors, place, vectors


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
@given(layers=layers(), rows=st.sampled_from(ROWS))
def test_live_tensors_do_not_overlap(layers, rows):
    memory = place(layers, rows)
    activations = [(0, 2 * vectors(layers[0].in_shape))]  # two groups of images
    activations += [(memory.activations[layer.out], memory.activations[layer.out] + vectors(layer.out_shape))
                    for layer in layers]
    assert memory.activations["image"] == 0
    assert disjoint(activations)  # all live from FP to BP
    assert max(end for _, end in activations) == memory.activation_depth
    gradients = [(memory.gradients[layer.out], memory.gradients[layer.out] + bank_vectors(layer.out_shape, rows))
                 for layer in layers]
    assert all(disjoint(pair) for pair in itertools.pairwise(gradients))  # source and result of one BP
    assert all(start >= 0 and end <= memory.gradient_depth for start, end in gradients)


def test_gradient_depth_is_what_the_largest_neighbours_need():
    layers = Chain((1, 8, 8)).conv(3, (1, 1)).conv(5, (1, 1)).conv(2, (1, 1)).linear(7).layers()
    memory = place(layers, 2)
    assert [bank_vectors(layer.out_shape, 2) for layer in layers] == [2 * 64, 3 * 64, 64, 4]
    assert (memory.gradient_depth, tuple(memory.gradients.values())) == (5 * 64, (192, 0, 256, 0))
    assert tuple(memory.activations.values()) == (0, 128, 128 + 192, 128 + 512, 128 + 640)
