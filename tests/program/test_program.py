import numpy as np
import pytest
from bench.networks import Chain, compiled, random_live, random_state

from espalier.arch.machine import ROWS, Machine
from espalier.program.words import entry_fields


def network(rows, density=0.6):
    chain = Chain((3, 6, 6)).conv(5, (3, 3), (1, 1, 1, 1)).relu().pool().linear(7).linear(4)
    rng = np.random.default_rng(rows)
    live = random_live(rng, chain, rows, density)
    machine = Machine(rows=rows, lanes=3, activation_depth=1024, gradient_depth=512, weight_depth=2048,
                      index_depth=4096, table_depth=1024)
    return compiled(chain, machine, live=live), random_state(rng, chain, live)


@pytest.mark.parametrize("rows", ROWS)
def test_memory_images_and_state_are_inverse(rows):
    found, state = network(rows)
    images = found.program.memory_images(state)
    assert {name: image.shape for name, image in images.items()} == dict.fromkeys(
        ("weights", "masters", "momenta"), (found.program.machine.master_depth,))
    back = found.program.state_of(images)
    assert back.keys() == state.keys()
    assert all(np.array_equal(back[name], state[name]) for name in state)
    again = found.program.memory_images(back)
    assert all(np.array_equal(again[name], images[name]) for name in images)


def test_dead_weights_own_nothing():
    found, state = network(2, density=0.0)
    images = found.program.memory_images(state)
    biases = sum(found.program.addresses[name].size for name in ("conv0.bias", "linear4.bias", "linear5.bias"))
    assert np.count_nonzero(images["masters"]) <= biases
    garbage = {name: np.arange(1, image.size + 1) for name, image in images.items()}
    assert not found.program.state_of(garbage)["conv0.weight"].any()


def test_index_bytes():
    program = network(4)[0].program
    bits = len(program.entries) * sum(entry_fields(program.machine).values())
    assert program.index_bytes == (bits + 7) // 8 + 2 * len(program.table)


def test_image_size():
    assert network(1)[0].program.image_size == 3 * 6 * 6
