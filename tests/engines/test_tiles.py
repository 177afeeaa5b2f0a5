"""Maps cut into tiles that neighbouring lanes hold: RTL equals interpreter, and takes the cycles predicted."""

import numpy as np
import pytest
from bench.external import FORMATS, check_predicted_waits, check_steps
from bench.machines import DEEP
from bench.networks import Chain, compiled, random_live, random_state
from bench.random_networks import FEW, Example, check_engine, examples
from hypothesis import given
from hypothesis import strategies as st

from espalier.arch.machine import Machine
from espalier.numerics.window import Window

MACHINES = (Machine(rows=2, lanes=8, grid_y=2, grid_x=2, acc_bits=48, clips=True, trees=2, **DEEP),
            Machine(rows=1, lanes=4, grid_y=1, grid_x=4, acc_bits=48, groups=True, **DEEP),
            Machine(rows=4, lanes=12, grid_y=4, grid_x=1, acc_bits=48, norm_depth=64, **DEEP),
            Machine(rows=2, lanes=6, grid_y=3, grid_x=2, word_bits=8, acc_bits=40, pairs=True, **DEEP))


def named(machine):
    return f"{machine.rows}x{machine.lanes}-{machine.grid_y}x{machine.grid_x}"


@pytest.mark.parametrize("machine", MACHINES, ids=named)
@FEW
@given(data=st.data())
def test_random_networks(machine, data):
    check_engine(data.draw(examples(machine)))


@pytest.mark.parametrize("machine", [
    Machine(rows=2, lanes=8, grid_y=2, grid_x=2, acc_bits=48, port_bits=64, **{
        **DEEP, "activation_depth": 130, "weight_depth": 128, "panel_depth": 256, "state_depth": 64,
        "run_depth": 256}),
    Machine(rows=1, lanes=4, grid_y=2, grid_x=2, acc_bits=48, port_bits=32, groups=True, **{
        **DEEP, "activation_depth": 130})], ids=named)
def test_external_memory(machine):
    """Images, activations and weights there, with random stalls; and the waits that are predicted."""
    rng = np.random.default_rng(machine.rows)
    chain = Chain((2, 8, 8), FORMATS[16].result).conv(4, (3, 3), (1, 1, 1, 1), formats=FORMATS[16]).relu()
    start = chain.conv(4, (3, 3), (1, 1, 1, 1), formats=FORMATS[16]).relu().pool().x
    chain.conv(4, (3, 3), (1, 1, 1, 1), formats=FORMATS[16]).add(start).linear(12, formats=FORMATS[16]).relu()
    chain.linear(5, formats=FORMATS[16])
    live = random_live(rng, chain, machine.rows, 0.9)
    network = compiled(chain, machine, live=live)
    assert network.program.image_pages and (network.program.external_columns > 0) == (machine.panel_depth > 0)
    check_steps(rng, network, random_state(rng, chain, live))
    check_predicted_waits(rng, network)


def small_maps(rng, image):
    """From maps of several pixels a tile down to less than one: pools, strides and means over lanes, and a sum."""
    formats = FORMATS[16]
    chain = Chain((2, *image), formats.result).conv(5, (3, 3), (1, 1, 1, 1), formats=formats).relu().pool()
    chain.conv(6, (3, 3), (1, 1, 1, 1), formats=formats).relu().pool()
    start = chain.x
    chain.conv(6, (3, 3), (1, 1, 1, 1), formats=formats).add(start).relu()
    chain.conv(7, (3, 3), window=Window((3, 3), (2, 2), (1, 1, 1, 1)), formats=formats).relu()
    if rng.integers(2):
        chain.conv(5, (3, 3), (1, 1, 1, 1), formats=formats).relu().pool()
    else:
        chain.average(Window((2, 2), (2, 2)), formats=formats)
    return chain.conv(6, (3, 3), (1, 1, 1, 1), formats=formats).linear(5, formats=formats)


@pytest.mark.parametrize(("rows", "grid", "image"), [
    (2, (4, 4), (16, 16)), (4, (8, 4), (16, 16)), (1, (8, 8), (16, 16)), (2, (4, 8), (16, 32)), (2, (2, 4), (16, 16)),
    (1, (16, 1), (16, 16))])
@pytest.mark.parametrize("seed", range(2))
def test_maps_smaller_than_the_grid(rows, grid, image, seed):
    rng = np.random.default_rng([rows, *grid, seed])
    tiles = grid[0] * grid[1]
    machine = Machine(rows=rows, lanes=2 * tiles if tiles < 32 else tiles, grid_y=grid[0], grid_x=grid[1], acc_bits=48,
                      trees=rows, **DEEP)
    chain = small_maps(rng, image)
    live = random_live(rng, chain, rows, 0.8)
    check_engine(Example(network=compiled(chain, machine, live=live), state=random_state(rng, chain, live),
                         image_scale=0.3, rng=rng))
