"""Predicted cycles are those of the RTL, for every command, on random networks and machines."""

from __future__ import annotations

import pytest
from bench.machines import GROUPED, MACHINES
from bench.networks import Chain, compiled
from bench.random_networks import examples
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from espalier.arch.machine import Machine
from espalier.cost.cycles import predict
from espalier.engines.rtl import RtlEngine
from espalier.program.words import Opcode

# No shrinking: an example takes a simulation.
EXAMPLES = settings(deadline=None, max_examples=30, derandomize=True, phases=[Phase.explicit, Phase.generate],
                    suppress_health_check=list(HealthCheck))


def named(machine: Machine) -> str:
    return f"{machine.rows}x{machine.lanes}x{machine.word_bits}" + ("groups" if machine.groups else "") + (
        "pairs" if machine.pairs else "")


@pytest.mark.parametrize("machine", MACHINES, ids=named)
@EXAMPLES
@given(data=st.data())
def test_equal_to_simulation(machine: Machine, data: st.DataObject) -> None:
    example = data.draw(examples(machine))
    engine = RtlEngine(example.network)
    images, labels = example.images(machine.lanes)
    engine.train(images, labels, machine.lanes)
    engine.infer(images, labels)
    assert engine.phase_cycles() == predict(example.network.program)
    engine.close()


@EXAMPLES
@given(data=st.data(), groups=st.integers(2, 4))
def test_groups_take_as_long_each(data: st.DataObject, groups: int) -> None:
    """Whether a group is the first or the last of its batch."""
    example = data.draw(examples(GROUPED))
    engine = RtlEngine(example.network)
    engine.train(*example.images(groups * GROUPED.lanes), groups * GROUPED.lanes)
    step = example.network.program.entries_at["infer"]
    assert [(phase.cycles, phase.issued) for phase in engine.phase_cycles()[:step]] == [
        (groups * phase.cycles, groups * phase.issued) for phase in predict(example.network.program)[:step]]
    engine.close()


def test_a_network_by_hand() -> None:
    """A 3×3 convolution with padding 1 on 4×4 has 10² of 12² taps inside, and a bias; then 16 inputs to 2 classes.

    FP meets the bias at one pixel. One row, one lane: 41 cycles around the steps of FP and BP, 52 around those of WU.
    The linear layer's WU has as many columns as weights, of one pixel each. Losses of two classes by a unit that waits
    4 cycles a class.
    """
    machine = Machine(rows=1, lanes=1, activation_depth=64, gradient_depth=32, weight_depth=64, index_depth=128,
                      table_depth=128)
    program = compiled(Chain((1, 4, 4)).conv(1, (3, 3), (1, 1, 1, 1)).relu().linear(2, bias=False), machine).program
    walk = 1 + 2 * 4 + (10 - 3)
    expected = {("conv0", Opcode.FORWARD): (101 + 41, 101), ("linear3", Opcode.FORWARD): (32 + 41, 32),
                ("loss", Opcode.LOSS): (1 + 3 + 3 * walk + 16 + 5, 0), ("linear3", Opcode.BACKWARD): (32 + 41, 32),
                ("linear3", Opcode.UPDATE): (32 + 52, 32), ("conv0", Opcode.UPDATE): (116 + 52, 116),
                ("end", Opcode.END): (5, 0)}
    assert {(phase.layer, phase.opcode): (phase.cycles, phase.issued) for phase in predict(program)} == expected


def test_short_columns_and_tiles_wait_for_rows() -> None:
    """Four rows: a tile of one channel still takes four cycles after the one before, and so does a column of WU."""
    machine = Machine(rows=4, lanes=1, activation_depth=64, gradient_depth=32, weight_depth=64, index_depth=64,
                      table_depth=64)
    program = compiled(Chain((1, 1, 3)).conv(6, (1, 1), bias=False).linear(6, bias=False), machine).program
    found = {(phase.layer, phase.opcode): phase.cycles for phase in predict(program)}
    assert found["conv0", Opcode.FORWARD] == 44 + 1 + 2 * 4 + 4 + 2 * 2  # the end of a tile of four rows, then of two
    assert found["conv0", Opcode.UPDATE] == 55 + 3 + 4
    assert found["linear2", Opcode.UPDATE] == 55 + 1 + 17 * 4 + 4 + 17 * 2
