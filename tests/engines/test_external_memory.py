"""Activations spilled to external memory and brought back: RTL equals interpreter, whatever the memory does."""

from dataclasses import replace

import numpy as np
import pytest
from bench.external import FORMATS, check_predicted_waits, check_reset, check_steps, check_told_errors, images, named
from bench.networks import Chain, all_live, compiled, random_live, random_state

from espalier.arch.machine import Machine
from espalier.arch.memory import MemoryTiming
from espalier.cost.cycles import predict
from espalier.cost.traffic import traffic
from espalier.engines.interpreter import InterpreterEngine
from espalier.engines.rtl import RtlEngine
from espalier.engines.verify import verify_step
from espalier.errors import FitError
from espalier.program.words import PAGE_SHIFT, Opcode

DEPTHS = {"gradient_depth": 1024, "weight_depth": 1024, "index_depth": 4096, "table_depth": 2048, "program_depth": 128}
MACHINES = (Machine(rows=2, lanes=3, acc_bits=48, port_bits=32, activation_depth=500, **DEPTHS),
            Machine(rows=4, lanes=2, word_bits=8, acc_bits=32, groups=True, trees=2, port_bits=128,
                    activation_depth=420, **DEPTHS))
FAST = MemoryTiming(latency=0)


def random_chain(rng, word_bits):
    """Three to six convolutions, among them sums and pools, and a linear layer."""
    formats = FORMATS[word_bits]
    chain = Chain((int(rng.integers(1, 4)), *(2 * int(size) for size in rng.integers(2, 6, 2))), formats.result)
    for _ in range(rng.integers(3, 6)):
        start = chain.x
        chain.conv(int(rng.integers(1, 11)), (3, 3), (1, 1, 1, 1), bias=bool(rng.integers(2)), formats=formats)
        if rng.integers(2):
            chain.relu()
        if not rng.integers(3):
            start = chain.x
            chain.conv(start.shape[0], (3, 3), (1, 1, 1, 1), formats=formats).add(start)
        elif not any(size % 2 for size in chain.x.shape[1:]) and rng.integers(2):
            chain.pool()
    return chain.linear(5, formats=formats)


def spilling_network(rng, machine, image=True):
    """A random network that the machine can only hold with what it spills: with the ``image`` or without."""
    while True:
        chain = random_chain(rng, machine.word_bits)
        live = random_live(rng, chain, machine.rows, float(rng.choice([1.0, 0.5, 0.2])))
        try:
            network = compiled(chain, machine, live=live)
        except FitError:
            continue
        if traffic(network.program).written and bool(network.program.image_pages) == image:
            return network, random_state(rng, chain, live)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("machine", MACHINES, ids=named)
def test_steps_with_stalls_on_every_channel(machine, seed):
    rng = np.random.default_rng([seed, machine.rows])
    check_steps(rng, *spilling_network(rng, machine, image=seed % 2 == 0))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("machine", MACHINES, ids=named)
def test_memory_costs_cycles_only_where_something_waits_for_it(machine, seed):
    """At fences, and in FP that spills faster than the port writes; all else takes what is predicted."""
    rng = np.random.default_rng([seed, machine.lanes])
    network, _ = spilling_network(rng, machine, image=seed % 2 == 0)
    rtl, program = RtlEngine(network, timing=FAST), network.program
    rtl.train(*images(rng, network, machine.lanes), machine.lanes)
    step = program.commands[:program.entries_at["infer"]]
    assert any(command.fence for command in step)
    for command, phase, expected in zip(step, rtl.phase_cycles(), predict(program), strict=False):
        assert phase.issued == expected.issued
        if command.fence or command.spill:
            assert phase.cycles >= expected.cycles
        else:
            assert phase.cycles == expected.cycles
    rtl.close()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("machine", MACHINES, ids=named)
def test_waits_are_predicted(machine, seed):
    """To the cycle: at fences, and in FP that spills faster than the port writes."""
    rng = np.random.default_rng([seed, machine.lanes])
    check_predicted_waits(rng, spilling_network(rng, machine, image=seed % 2 == 0)[0])


def test_waits_where_the_memory_takes_more_bursts_than_are_under_way():
    """And is so late that the port waits to ask for the ninth."""
    machine = replace(MACHINES[0], activation_depth=4200, gradient_depth=4096, weight_depth=4096)
    chain = Chain((3, 14, 14), FORMATS[16].result)
    for _ in range(4):
        chain.conv(8, (3, 3), (1, 1, 1, 1), formats=FORMATS[16]).relu()
    network = compiled(chain.pool().linear(5, formats=FORMATS[16]), machine)
    assert any(command.beats > 8 * machine.burst_beats for command in network.program.commands)
    check_predicted_waits(np.random.default_rng(0), network, MemoryTiming(latency=1500, queue=12))


def test_what_is_spilled_is_in_external_memory():
    """In the order in which it is made: block by block, pixel by pixel, channel by channel."""
    machine = MACHINES[0]
    rng = np.random.default_rng(1)
    network, state = spilling_network(rng, machine)
    rtl = RtlEngine(network)
    rtl.load(state)
    found = rtl.traced_step(*images(rng, network, machine.lanes))
    program = network.program
    for command in program.commands:
        if not command.spill:
            continue
        placement = next(p for p in program.placements if program.commands[p.command] == command)
        channels, height, width = placement.shape
        raw = rtl.simulation.read_memory(command.external << PAGE_SHIFT, command.beats * machine.port_bits // 8)
        vectors = np.frombuffer(raw, dtype=np.uint8).reshape(channels * height * width, -1)
        bits = np.unpackbits(vectors, axis=1, bitorder="little")[:, :machine.vector_bits].reshape(-1, machine.lanes, 18)
        words = (bits[:, :, :16] << np.arange(16, dtype=np.int64)).sum(2)
        words = np.where(words >> 15, words - (1 << 16), words)
        order = [(c, p) for block in range(0, channels, machine.rows) for p in range(height * width)
                 for c in range(block, min(block + machine.rows, channels))]
        expected = found[placement.value].reshape(machine.lanes, channels, -1)
        assert np.array_equal(words, [expected[:, c, p] for c, p in order])
    rtl.close()


def test_an_error_of_the_memory_is_told():
    check_told_errors(*spilling_network(np.random.default_rng(2), MACHINES[0]))


def test_a_very_slow_memory_is_waited_for():
    network, state = spilling_network(np.random.default_rng(4), MACHINES[0])
    rtl = RtlEngine(network, timing=MemoryTiming(latency=2000, beat_cycles=500))
    verify_step(network, state, *images(np.random.default_rng(0), network, MACHINES[0].lanes),
                reference=InterpreterEngine(network), candidate=rtl).check()
    rtl.close()


@pytest.mark.parametrize("cycles", [200, 700, 1500])
def test_reset_in_the_middle_of_a_step(monkeypatch, cycles):
    rng = np.random.default_rng(3)
    check_reset(monkeypatch, rng, *spilling_network(rng, MACHINES[0]), cycles)


def test_a_network_that_fits_spills_nothing():
    chain = Chain((1, 4, 4)).conv(3, (3, 3), (1, 1, 1, 1), formats=FORMATS[16]).relu().linear(4, formats=FORMATS[16])
    program = compiled(chain, MACHINES[0], live=all_live(chain)).program
    assert not any(command.spill or command.fence or command.opcode == Opcode.REFETCH for command in program.commands)
