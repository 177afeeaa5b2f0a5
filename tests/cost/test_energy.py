"""Energy of a step: its activity, counted by hand on small networks, and what follows from it."""

from dataclasses import replace

import numpy as np
import pytest
from bench.networks import Chain, all_live, compiled, random_live

from espalier.arch.machine import Machine
from espalier.cost.cycles import predict
from espalier.cost.energy import (
    ADD_PJ,
    DRAM_WORD_PJ,
    MULTIPLY_PJ,
    UPDATE_WORDS,
    WORD_BITS,
    WORD_PJ,
    Activity,
    step_activity,
)
from espalier.program.words import Opcode, entry_fields

MACHINE = Machine(rows=2, lanes=3, acc_bits=48, activation_depth=2048, gradient_depth=512, weight_depth=512,
                  index_depth=2048, table_depth=1024)


def linear():
    return Chain((4, 1, 1)).linear(6, bias=False)


def test_a_fully_connected_layer_by_hand():
    """Four inputs, six outputs, two rows: 3 × 2 blocks of 2 × 2, no BP."""
    found = step_activity(compiled(linear(), MACHINE, live=all_live(linear())).program)
    steps = 3 * 2 * 2  # blocks and their columns: of FP, and of WU
    assert found.macs == 2 * steps * 2 * 3
    assert found.operands == steps * (3 + 2) + steps * (3 + 2 * 3)
    assert found.index == 2 * 6 * sum(entry_fields(MACHINE).values()) / WORD_BITS
    assert found.others == 6 * 3 + UPDATE_WORDS * 24
    assert found.dram == 4 * 3 / 2


def deep():
    return (Chain((2, 6, 6)).conv(4, (3, 3), (1, 1, 1, 1)).relu().pool().conv(4, (3, 3), (1, 1, 1, 1)).relu()
            .conv(4, (3, 3), (1, 1, 1, 1)).linear(3))


def test_steps_are_those_that_the_machine_issues():
    chain = deep()
    program = compiled(chain, MACHINE, live=random_live(np.random.default_rng(0), chain, 2, 0.5)).program
    issued = sum(phase.issued for phase in predict(program)[: program.entries_at["infer"]])
    assert step_activity(program).macs == issued * MACHINE.multipliers


def test_groups_share_an_update():
    program = compiled(deep(), MACHINE, live=all_live(deep())).program
    one, three = step_activity(program), step_activity(program, 3)
    weights = sum(places.size for places in program.addresses.values())
    assert three.macs == 3 * one.macs and three.dram == 3 * one.dram
    assert 3 * one.others - three.others >= 2 * UPDATE_WORDS * weights


def test_what_is_spilled_costs_dram():
    chip = compiled(deep(), MACHINE, live=all_live(deep())).program
    spilling = compiled(deep(), replace(MACHINE, activation_depth=200, port_bits=64), live=all_live(deep())).program
    beats = sum(command.beats for command in spilling.commands[: spilling.entries_at["infer"]])
    images = step_activity(chip).dram
    assert beats and step_activity(spilling).dram == beats * 64 / WORD_BITS + (0 if spilling.image_pages else images)
    assert step_activity(spilling).macs == step_activity(chip).macs


def test_fewer_weights_cost_less():
    chain = deep()
    spent = [sum(step_activity(compiled(chain, MACHINE, live=random_live(
        np.random.default_rng(0), chain, 2, density)).program).microjoules().values()) for density in (1.0, 0.5, 0.1)]
    assert spent == sorted(spent, reverse=True)


def test_energies():
    spent = Activity(macs=1e6, operands=2e6, index=3e6, others=4e6, dram=5e6).microjoules()
    assert spent == pytest.approx({
        "multiply-adds": MULTIPLY_PJ + ADD_PJ, "operands": 2 * WORD_PJ, "index": 3 * WORD_PJ,
        "results and updates": 4 * WORD_PJ, "off chip": 5 * DRAM_WORD_PJ})
    assert not any(Activity().microjoules().values())


def test_every_phase_is_counted():
    program = compiled(deep(), MACHINE, live=all_live(deep())).program
    for opcode in (Opcode.FORWARD, Opcode.BACKWARD, Opcode.UPDATE):
        phases = [replace(phase, steps=(phase.issued * (phase.opcode == opcode),)) for phase in predict(program)]
        assert step_activity(program, phases=phases).macs > 0
