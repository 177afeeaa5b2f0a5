"""Maps cut into tiles that neighbouring lanes hold: RTL equals interpreter, and takes the cycles predicted."""

import numpy as np
import pytest
from bench.external import FORMATS, check_predicted_waits, check_steps
from bench.machines import DEEP
from bench.networks import Chain, compiled, random_live, random_state
from bench.random_networks import FEW, check_engine, examples
from hypothesis import given
from hypothesis import strategies as st

from espalier.arch.machine import Machine

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
