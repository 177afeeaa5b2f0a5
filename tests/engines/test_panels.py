"""Weights, masters and momenta in external memory: RTL equals interpreter, whatever the memory does."""

from dataclasses import replace

import numpy as np
import pytest
from bench.external import FORMATS, check_predicted_waits, check_reset, check_steps, check_told_errors, named
from bench.networks import Chain, compiled, random_live, random_state

from espalier.arch.machine import Machine
from espalier.errors import FitError
from espalier.numerics.window import Window
from espalier.program.words import Opcode

DEPTHS = {"gradient_depth": 1024, "index_depth": 4096, "table_depth": 2048, "program_depth": 512, "run_depth": 1024}
MACHINES = (Machine(rows=2, lanes=3, acc_bits=48, port_bits=32, activation_depth=900, weight_depth=60, panel_depth=150,
                    state_depth=21, **DEPTHS),
            Machine(rows=4, lanes=2, word_bits=8, acc_bits=32, trees=2, port_bits=128, activation_depth=700,
                    weight_depth=80, panel_depth=320, state_depth=44, **DEPTHS),
            Machine(rows=4, lanes=1, word_bits=8, acc_bits=32, trees=4, pairs=True, port_bits=32, activation_depth=700,
                    weight_depth=2, panel_depth=260, state_depth=260, **DEPTHS))


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


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("machine", MACHINES, ids=named)
def test_steps_with_stalls_on_every_channel(machine, seed):
    rng = np.random.default_rng([seed, machine.rows, machine.lanes])
    check_steps(rng, *streamed_network(rng, machine))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("machine", MACHINES, ids=named)
def test_waits_are_predicted(machine, seed):
    """To the cycle, for any steady memory."""
    rng = np.random.default_rng([seed, machine.lanes, machine.rows])
    check_predicted_waits(rng, streamed_network(rng, machine)[0])


def test_weights_that_fit_stay_on_chip():
    chain = Chain((1, 4, 4)).conv(3, (3, 3), (1, 1, 1, 1), formats=FORMATS[16]).relu().linear(4, formats=FORMATS[16])
    program = compiled(chain, replace(MACHINES[0], weight_depth=200)).program
    assert not program.external_columns and not program.runs
    assert not any(command.opcode in (Opcode.FETCH, Opcode.STORE) or command.fence for command in program.commands)


def test_an_error_of_the_memory_is_told():
    check_told_errors(*streamed_network(np.random.default_rng(2), MACHINES[0]))


@pytest.mark.parametrize("cycles", [300, 900, 2500])
def test_reset_in_the_middle_of_a_step(monkeypatch, cycles):
    rng = np.random.default_rng(3)
    check_reset(monkeypatch, rng, *streamed_network(rng, MACHINES[0]), cycles)


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
