import numpy as np
import pytest
from bench.machines import MACHINES, TWO_BY_FOUR
from bench.networks import Chain, compiled

from espalier.arch.machine import Machine
from espalier.engines import host
from espalier.numerics.activation import max_pool, max_pool_grad
from espalier.numerics.window import Window
from espalier.program.words import SPACE_SHIFT, Space, start_fields


def test_address():
    found = host.address(Space.MASTERS, np.array([0, 7]))
    assert found.dtype == np.uint32
    assert found.tolist() == [Space.MASTERS << SPACE_SHIFT, (Space.MASTERS << SPACE_SHIFT) + 7]
    assert host.address(Space.LABELS, 3).shape == (1,)


@pytest.mark.parametrize(("word", "bits", "value"), [(0x7fff, 16, 32767), (0x8000, 16, -32768), (0xff, 8, -1),
                                                     (0x1ff, 8, -1), (0x80000000, 32, -(1 << 31))])
def test_signed(word, bits, value):
    assert host.signed(np.array([word]), bits).tolist() == [value]


def test_unpooled_is_the_gradient_of_pooling():
    rng = np.random.default_rng(0)
    window = Window((2, 2), (2, 2))
    x, g = rng.integers(0, 3, (2, 3, 4, 6)), rng.integers(-9, 9, (2, 3, 2, 3))
    codes = max_pool(x, window)[1]
    assert np.array_equal(host.unpooled(g, codes), max_pool_grad(g, codes, window, (4, 6)))


def test_start_word():
    _, data = host.start_write(5, parity=1, first=False, last=True, single=True)
    word, found = int(data[0]), {}
    for name, width in start_fields().items():
        found[name], word = word & (1 << width) - 1, word >> width
    assert found == {"entry": 5, "parity": 1, "first": 0, "last": 1, "single": 1, "clear": 0}


def program(machine):
    return compiled(Chain((2, 3, 5)).conv(5, (2, 2)).linear(3), machine).program


@pytest.mark.parametrize("machine", [*MACHINES[:4], Machine(**{**TWO_BY_FOUR.to_json(), "elements": 2})],
                         ids=lambda machine: f"{machine.elements}x{machine.rows}x{machine.lanes}")
def test_every_word_of_a_tensor_has_its_own_address(machine):
    for placement in program(machine).placements:
        found, elements = host.tensor_addresses(program(machine), placement)
        assert found.shape == (machine.lanes, *placement.shape) and set(elements) <= set(range(machine.elements))
        assert all(len(np.unique(found[:, elements == element])) == found[:, elements == element].size
                   for element in range(machine.elements))
        space = Space.ACTIVATIONS if placement.memory == "activations" else Space.GRADIENTS
        assert set((found >> SPACE_SHIFT).ravel()) == {space}


@pytest.mark.parametrize("parity", [0, 1])
def test_images_and_labels(parity):
    """Two lanes a word, lane 0 lowest; the second buffer lies behind the first."""
    found = program(TWO_BY_FOUR)
    images = np.random.default_rng(0).integers(-1 << 15, 1 << 15, (4, 2, 3, 5))
    addresses, data = host.image_writes(found, images, np.arange(4), parity)
    offsets, spaces = addresses & (1 << SPACE_SHIFT) - 1, addresses >> SPACE_SHIFT
    words = {int(o): int(d) for o, d, s in zip(offsets, data, spaces, strict=True) if s == Space.ACTIVATIONS}
    vector = 30 * parity + 1 * 15 + 2 * 5 + 3  # channel 1, row 2, column 3
    first, second = words[2 * vector], words[2 * vector + 1]
    lanes = [first & 0xffff, first >> 16, second & 0xffff, second >> 16]
    assert host.signed(np.array(lanes), 16).tolist() == images[:, 1, 2, 3].tolist()
    labels = {int(o): int(d) for o, d, s in zip(offsets, data, spaces, strict=True) if s == Space.LABELS}
    assert labels == {4 * parity + lane: lane for lane in range(4)}
