"""Processing elements that share the work of a layer: RTL equals interpreter, and takes the cycles predicted."""

from dataclasses import replace

import numpy as np
import pytest
from bench.external import FORMATS, check_predicted_waits, check_steps, images
from bench.machines import DEEP
from bench.networks import Chain, compiled, random_live, random_state
from bench.random_networks import FEW, check_engine, examples
from hypothesis import given
from hypothesis import strategies as st

from espalier.arch.machine import Machine
from espalier.compiler.fit import required_depths
from espalier.compiler.lists import blocks_of
from espalier.compiler.place import place
from espalier.engines.interpreter import InterpreterEngine
from espalier.engines.rtl import RtlEngine
from espalier.engines.verify import verify_step
from espalier.numerics.window import Window

MACHINES = (Machine(elements=2, rows=2, lanes=3, acc_bits=48, clips=True, trees=2, **DEEP),
            Machine(elements=4, rows=1, lanes=2, acc_bits=48, groups=True, **DEEP),
            Machine(elements=2, rows=4, lanes=1, word_bits=8, acc_bits=40, pairs=True, **DEEP),
            Machine(elements=2, rows=2, lanes=4, grid_y=2, grid_x=2, acc_bits=48, clips=True, **DEEP))


def named(machine):
    return f"{machine.elements}x{machine.rows}x{machine.lanes}"


@pytest.mark.parametrize("machine", MACHINES, ids=named)
@FEW
@given(data=st.data())
def test_random_networks(machine, data):
    check_engine(data.draw(examples(machine)))


@pytest.mark.parametrize("machine", [
    Machine(elements=2, rows=2, lanes=3, acc_bits=48, port_bits=64, **DEEP),
    Machine(elements=4, rows=1, lanes=2, acc_bits=48, port_bits=32, groups=True, **DEEP)], ids=named)
def test_external_memory(machine):
    """Images go to all of them, what a depthwise layer makes to its owners; random stalls; the waits predicted."""
    rng = np.random.default_rng(machine.elements)
    chain = Chain((3, 8, 8), FORMATS[16].result).conv(8, (3, 3), (1, 1, 1, 1), formats=FORMATS[16]).relu()
    chain.conv(8, (3, 3), (1, 1, 1, 1), formats=FORMATS[16], groups=8).relu()
    chain.conv(7, (1, 1), formats=FORMATS[16]).relu().conv(6, (3, 3), (1, 1, 1, 1), formats=FORMATS[16]).relu()
    start = chain.conv(6, (3, 3), (1, 1, 1, 1), formats=FORMATS[16]).relu().pool().x
    chain.conv(6, (3, 3), (1, 1, 1, 1), formats=FORMATS[16]).add(start).linear(5, formats=FORMATS[16])
    live = random_live(rng, chain, machine.rows, 0.9)
    least = place(chain.layers(), machine.rows, spill=True, elements=machine.elements).activation_depth
    network = compiled(chain, replace(machine, activation_depth=least), live=live)
    program = network.program
    assert program.image_pages and {command.own for command in program.commands if command.spill} == {0, 1}
    check_steps(rng, network, random_state(rng, chain, live))
    check_predicted_waits(rng, network)


@pytest.mark.parametrize("elements", [2, 4])
def test_memories_no_deeper_than_needed(elements):
    """Lists of layers whose channels do not mix are there a second time, for FP; of training and inference, once."""
    rng = np.random.default_rng(elements)
    chain = Chain((3, 8, 8), FORMATS[16].result).conv(8, (3, 3), (1, 1, 1, 1), formats=FORMATS[16]).relu()
    chain.conv(8, (3, 3), (1, 1, 1, 1), formats=FORMATS[16], groups=8).relu()
    chain.conv(6, (3, 3), window=Window((3, 3), (2, 2), (1, 1, 1, 1)), formats=FORMATS[16]).relu()
    chain.average(None, FORMATS[16]).linear(5, formats=FORMATS[16])
    layers, live = chain.layers(), random_live(rng, chain, 2, 0.7)
    blocks = blocks_of(layers, live, 2, elements=elements)
    depths = required_depths(layers, blocks, place(layers, 2, elements=elements), 2)
    machine = Machine(elements=elements, rows=2, lanes=2, acc_bits=48, **depths)
    network = compiled(chain, machine, live=live)
    lists = network.program.lists
    assert max(len(part.entries) for part in lists) == machine.index_depth
    assert {len(part.table) for part in lists} == {machine.table_depth}
    state, rtl = random_state(rng, chain, live), RtlEngine(network)
    verify_step(network, state, *images(rng, network, 2), reference=InterpreterEngine(network), candidate=rtl).check()
    rtl.close()
