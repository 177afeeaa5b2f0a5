"""Weights, masters and momenta in external memory: RTL equals interpreter, whatever the memory does."""

from dataclasses import replace

import numpy as np
import pytest
from bench.networks import Chain, Formats, compiled, random_live, random_state, random_words

from espalier.arch.machine import Machine
from espalier.arch.memory import MemoryTiming
from espalier.cost.cycles import predict
from espalier.cost.memory import with_memory
from espalier.cost.traffic import traffic
from espalier.engines.interpreter import InterpreterEngine
from espalier.engines.rtl import RtlEngine
from espalier.engines.verify import verify_step
from espalier.errors import FitError, ToolError
from espalier.numerics.fixed import Fixed
from espalier.numerics.window import Window
from espalier.program.words import Opcode

DEPTHS = {"gradient_depth": 1024, "index_depth": 4096, "table_depth": 2048, "program_depth": 512, "run_depth": 1024}
MACHINES = (Machine(rows=2, lanes=3, acc_bits=48, port_bits=32, activation_depth=900, weight_depth=60, panel_depth=150,
                    state_depth=21, **DEPTHS),
            Machine(rows=4, lanes=2, word_bits=8, acc_bits=32, trees=2, port_bits=128, activation_depth=700,
                    weight_depth=80, panel_depth=320, state_depth=44, **DEPTHS),
            Machine(rows=4, lanes=1, word_bits=8, acc_bits=32, trees=4, pairs=True, port_bits=32, activation_depth=700,
                    weight_depth=2, panel_depth=260, state_depth=260, **DEPTHS))
FORMATS = {16: Formats(gradient=Fixed.of(16, 12)),
           8: Formats(weight=Fixed.of(8, 6), result=Fixed.of(8, 4), gradient=Fixed.of(8, 4),
                      weight_gradient=Fixed.of(32, 6))}


def named(machine):
    return f"{machine.rows}x{machine.lanes}x{machine.port_bits}"


def random_timing(rng):
    return MemoryTiming(
        latency=int(rng.integers(0, 200)), beat_cycles=int(rng.integers(1, 5)),
        refresh_every=int(rng.integers(60, 600)), refresh_cycles=int(rng.integers(0, 50)),
        stalls=tuple(map(int, rng.integers(0, 80, 5))), seed=int(rng.integers(1 << 31)))


def random_chain(rng, word_bits):
    """Convolutions, some strided, among them sums and pools, and two linear layers."""
    formats = FORMATS[word_bits]
    chain = Chain((int(rng.integers(1, 4)), *(2 * int(size) for size in rng.integers(2, 5, 2))), formats.result)
    for _ in range(rng.integers(2, 4)):
        stride = int(rng.choice([1, 1, 2]))
        chain.conv(int(rng.integers(1, 13)), (3, 3), bias=bool(rng.integers(2)), formats=formats,
                   window=Window((3, 3), (stride, stride), (1, 1, 1, 1)))
        if rng.integers(2):
            chain.relu()
        if not rng.integers(3):
            start = chain.x
            chain.conv(start.shape[0], (3, 3), (1, 1, 1, 1), formats=formats).add(start)
        elif not any(size % 2 for size in chain.x.shape[1:]) and rng.integers(2):
            chain.pool()
    return chain.linear(int(rng.integers(4, 12)), formats=formats).relu().linear(5, formats=formats)


def streamed_network(rng, machine):
    """A random network some of whose weights the machine keeps in external memory."""
    while True:
        chain = random_chain(rng, machine.word_bits)
        live = random_live(rng, chain, machine.rows, float(rng.choice([1.0, 0.5, 0.2])))
        try:
            network = compiled(chain, machine, live=live)
        except FitError:
            continue
        if network.program.external_columns:
            return network, random_state(rng, chain, live)


def images(rng, network, count):
    program = network.program
    return random_words(rng, program.image_format, (count, *program.image), 0.4), rng.integers(0, 5, count)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("machine", MACHINES, ids=named)
def test_steps_with_stalls_on_every_channel(machine, seed):
    rng = np.random.default_rng([seed, machine.rows, machine.lanes])
    network, state = streamed_network(rng, machine)
    rtl, reference = RtlEngine(network, timing=random_timing(rng)), InterpreterEngine(network)
    for _ in range(2):
        verify_step(network, state, *images(rng, network, machine.lanes), reference=reference, candidate=rtl).check()
        state = reference.state()
    rtl.load(state)
    assert_equal_states(state, rtl.state())
    batches = images(rng, network, 3 * machine.lanes)
    assert rtl.train(*batches, machine.lanes) == reference.train(*batches, machine.lanes)
    assert_equal_states(reference.state(), rtl.state())
    found, expected, steps = rtl.simulation.memory_traffic(), traffic(network.program), 2 + 3
    assert found.broken_rules == 0
    assert found.beats_read * machine.port_bits // 8 == steps * expected.read
    assert found.beats_written * machine.port_bits // 8 == steps * expected.written
    batches = images(rng, network, 2 * machine.lanes)
    assert rtl.infer(*batches) == reference.infer(*batches)
    rtl.close()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("machine", MACHINES, ids=named)
def test_waits_are_predicted(machine, seed):
    """To the cycle, for any steady memory."""
    rng = np.random.default_rng([seed, machine.lanes, machine.rows])
    network, _ = streamed_network(rng, machine)
    timing = MemoryTiming(latency=int(rng.integers(150)), beat_cycles=int(rng.choice([1, 1, 2, 3, 9, 60])),
                          queue=int(rng.integers(1, 12)))
    program = network.program
    rtl, step = RtlEngine(network, timing=timing), program.entries_at["infer"]
    rtl.train(*images(rng, network, machine.lanes), machine.lanes)
    assert tuple(rtl.phase_cycles())[:step] == with_memory(program, predict(program), timing)[:step]
    rtl.clear_cycles()
    rtl.infer(*images(rng, network, machine.lanes))
    assert tuple(rtl.phase_cycles())[step:] == with_memory(program, predict(program), timing)[step:]
    rtl.close()


def assert_equal_states(ours, theirs):
    assert [name for name in ours if not np.array_equal(ours[name], theirs[name])] == []


def test_weights_that_fit_stay_on_chip():
    chain = Chain((1, 4, 4)).conv(3, (3, 3), (1, 1, 1, 1), formats=FORMATS[16]).relu().linear(4, formats=FORMATS[16])
    program = compiled(chain, replace(MACHINES[0], weight_depth=200)).program
    assert not program.external_columns and not program.runs
    assert not any(command.opcode in (Opcode.FETCH, Opcode.STORE) or command.fence for command in program.commands)


def test_an_error_of_the_memory_is_told():
    rng = np.random.default_rng(2)
    network, state = streamed_network(rng, MACHINES[0])
    rtl = RtlEngine(network, timing=MemoryTiming(errors=100))
    rtl.load(state)
    with pytest.raises(ToolError, match="External memory answered with an error to reads and writes"):
        rtl.train(*images(rng, network, MACHINES[0].lanes), MACHINES[0].lanes)
    rtl.close()


@pytest.mark.parametrize("cycles", [300, 900, 2500])
def test_reset_in_the_middle_of_a_step(monkeypatch, cycles):
    """The port forgets what was under way; weights are those that were loaded again."""
    rng = np.random.default_rng(3)
    network, state = streamed_network(rng, MACHINES[0])
    rtl, reference = RtlEngine(network), InterpreterEngine(network)
    batch = images(rng, network, MACHINES[0].lanes)
    with monkeypatch.context() as patch, pytest.raises(ToolError, match="did not finish"):
        patch.setattr(RtlEngine, "_cycles_limit", cycles)
        rtl.train(*batch, MACHINES[0].lanes)
    rtl.reset()
    verify_step(network, state, *batch, reference=reference, candidate=rtl).check()
    rtl.close()


def test_a_panel_takes_a_block_at_least():
    chain = Chain((1, 4, 4)).conv(3, (3, 3), (1, 1, 1, 1), formats=FORMATS[16]).linear(40, formats=FORMATS[16])
    machine = replace(MACHINES[0], panel_depth=20, state_depth=20)
    with pytest.raises(FitError, match=r"^FP of 'linear\d' needs panel_depth = \d+ and the machine has 20: enlarge it"):
        compiled(chain, machine)


@pytest.mark.parametrize(("change", "message"), [
    ({"port_bits": 0}, "Panels hold weights of external memory, and the machine has no port to it"),
    ({"groups": True}, "Weights in external memory are updated after each group"),
    ({"run_depth": 0}, "run_depth of a machine must be at least 2, not 0"),
    ({"panel_depth": 1, "state_depth": 1}, "panel_depth of a machine must be at least 2, not 1"),
    ({"state_depth": 200}, "Masters and momenta come for at most the 150 columns of a panel of weights, not 200")])
def test_machines_that_cannot_be(change, message):
    with pytest.raises(FitError, match=message):
        replace(MACHINES[0], **change)
