import re

import numpy as np
import pytest
from bench.networks import Chain, all_live, random_live
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.arch.machine import ROWS
from espalier.compiler.lists import layer_blocks
from espalier.errors import FitError
from espalier.numerics.live import live_blocks


@st.composite
def blocks(draw):
    """The blocks of a random convolution with a random live set, from a random column on."""
    rows, bias = draw(st.sampled_from(ROWS)), draw(st.booleans())
    chain = Chain((draw(st.integers(1, 20)), 5, 5)).conv(draw(st.integers(1, 20)), (3, 2), bias=bias).linear(2)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    live = random_live(rng, chain, rows, draw(st.sampled_from([0.0, 0.2, 0.8, 1.0])))
    layer = chain.layers()[0]
    column, elements = draw(st.integers(0, 100)), draw(st.sampled_from([1, 1, 2, 4]))
    item = layer_blocks(layer, live, rows, column, elements=elements, everywhere=draw(st.booleans()))
    return item, live[layer.weight], column


@settings(deadline=None, derandomize=True, max_examples=60)
@given(found=blocks())
def test_lists_hold_the_live_blocks(found):
    item, live, column = found
    forward = [(b.out, b.ky, b.kx, b.source) for b in item.blocks]
    backward = [(b.source, -b.ky, -b.kx, b.out) for b in item.backward()]
    assert forward == sorted(forward) and backward == sorted(backward)
    assert set(item.backward()) == set(item.blocks) and len(item.backward()) == len(item.blocks)
    alive = {(int(o), int(i), int(ky), int(kx)) for o, i, ky, kx in np.argwhere(live_blocks(live, item.rows))}
    assert {(b.out, b.source, b.ky, b.kx) for b in item.blocks} == alive
    ends = []
    for element in range(item.elements):
        end = column
        for start, columns in sorted([(b.column, b.columns) for b in item.blocks if b.element == element]
                                     + [(c, 1) for c in item.bias_columns[element:: item.elements]]):
            assert start == end  # contiguous from the first column to the last
            end += columns
        ends.append(end)
    assert max(ends) == item.columns


@settings(deadline=None, derandomize=True, max_examples=60)
@given(found=blocks(), elements=st.sampled_from([2, 4]))
def test_processing_elements_have_the_blocks_whose_source_they_have(found, elements):
    """Where all have the source, each has as many of an output block as the others, or one less."""
    item, live, column = found
    chosen, spread = (layer_blocks(item.layer, {item.layer.weight: live}, item.rows, column, elements=elements,
                                   everywhere=everywhere) for everywhere in (False, True))
    assert all(block.element == block.source % elements for block in chosen.blocks)
    for out in range(item.out_blocks if not item.layer.depthwise else 0):
        counts = np.bincount([block.element for block in spread.blocks if block.out == out], minlength=elements)
        assert counts.max() - counts.min() <= 1


@settings(deadline=None, derandomize=True, max_examples=60)
@given(found=blocks())
def test_addresses_are_unique_and_skewed(found):
    item, live, _ = found
    addresses = item.addresses(item.columns * item.rows)
    places = addresses[item.layer.weight].reshape(live.shape)
    assert np.array_equal(places >= 0, live)
    every = np.concatenate([a[a >= 0] for a in addresses.values()])
    assert len(np.unique(every)) == len(every)
    i, j = np.indices(live.shape)[:2]
    assert np.array_equal((places % item.rows)[live], ((i + j) % item.rows)[live])
    if item.layer.bias is not None:
        assert np.array_equal(addresses[item.layer.bias] % item.rows, np.arange(live.shape[0]) % item.rows)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(found=blocks())
def test_columns_and_rows_are_read_in_one_cycle(found):
    """A block's column is one address in all banks, its row one address in each bank."""
    item, _, _ = found
    rows, each = item.rows, item.columns * item.rows
    places = item.addresses(each)[item.layer.weight].reshape(item.layer.weight_shape)
    for b in item.blocks:
        block = places[b.out * rows: (b.out + 1) * rows, b.source * rows: (b.source + 1) * rows, b.ky, b.kx]
        assert set(block.ravel() // each) == {b.element}
        block = block - b.element * each
        for j in range(block.shape[1]):
            assert set(block[:, j] // rows) == {b.column + j}
        for i in range(block.shape[0]):
            assert len(set(block[i] % rows)) == block.shape[1]


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_depthwise_blocks_have_their_diagonal(rows):
    """Places of weights that are there, and no others, in blocks of a channel group and itself."""
    chain = Chain((6, 3, 3)).conv(6, (2, 1), groups=6).linear(2)
    item = layer_blocks(chain.layers()[0], all_live(chain), rows, 0)
    assert {(b.out, b.source) for b in item.blocks} == {(k, k) for k in range(-(-6 // rows))}
    places = item.addresses()["conv0.weight"].reshape(6, 2)
    columns = {(b.out, b.ky): b.column for b in item.blocks}
    expected = [[(columns[c // rows, tap] + c % rows) * rows + 2 * (c % rows) % rows for tap in range(2)]
                for c in range(6)]
    assert places.tolist() == expected


def test_groups_that_share_a_block_wrong():
    chain = Chain((6, 3, 3)).conv(4, (1, 1), groups=2).linear(2)
    sentence = ("The 2 groups of 'conv0' do not consist of whole blocks of 2 channels: compile for a machine with "
                "fewer rows")
    with pytest.raises(FitError, match=f"^{re.escape(sentence)}$"):
        layer_blocks(chain.layers()[0], all_live(chain), 2, 0)
    assert len(layer_blocks(chain.layers()[0], all_live(chain), 1, 0).blocks) == 12


def test_part_of_a_block_wrong():
    chain = Chain((4, 3, 3)).conv(4, (1, 1)).linear(2)
    live = all_live(chain)
    live["conv0.weight"][1, 2] = False
    sentence = ("The live weights of 'conv0.weight' are not whole 2×2 blocks: prune in blocks of 2, or compile for a "
                "machine with rows = 1")
    with pytest.raises(FitError, match=f"^{re.escape(sentence)}$"):
        layer_blocks(chain.layers()[0], live, 2, 0)
    assert len(layer_blocks(chain.layers()[0], live, 1, 0).blocks) == 15
