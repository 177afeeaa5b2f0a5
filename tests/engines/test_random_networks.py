"""RTL equals interpreter, word for word, on random networks: a network is only a program for a machine."""

import numpy as np
import pytest
from bench.machines import GROUPED, MACHINES, MANY_ROWS, TWO_BY_FOUR
from bench.random_networks import examples
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from espalier.engines.interpreter import InterpreterEngine
from espalier.engines.rtl import RtlEngine
from espalier.engines.verify import verify_step

# No shrinking: an example takes a simulation.
EXAMPLES = settings(deadline=None, max_examples=40, derandomize=True, phases=[Phase.explicit, Phase.generate],
                    suppress_health_check=list(HealthCheck))


def named(machine):
    return f"{machine.rows}x{machine.lanes}x{machine.word_bits}" + ("groups" if machine.groups else "") + (
        "pairs" if machine.pairs else "") + ("clips" if machine.clips else "")


@pytest.mark.parametrize("machine", MACHINES, ids=named)
@EXAMPLES
@given(data=st.data())
def test_two_steps(machine, data):
    example = data.draw(examples(machine))
    rtl, reference = RtlEngine(example.network), InterpreterEngine(example.network)
    state = example.state
    for _ in range(2):
        verify_step(example.network, state, *example.images(machine.lanes), reference=reference, candidate=rtl).check()
        state = reference.state()
    rtl.close()


@settings(EXAMPLES, max_examples=3)
@given(data=st.data())
def test_a_step_on_many_rows(data):
    example = data.draw(examples(MANY_ROWS))
    rtl, reference = RtlEngine(example.network), InterpreterEngine(example.network)
    verify_step(example.network, example.state, *example.images(MANY_ROWS.lanes), reference=reference,
                candidate=rtl).check()
    rtl.close()


@pytest.mark.parametrize(("machine", "groups"), [(GROUPED, 3), (TWO_BY_FOUR, 1)], ids=["groups", "single"])
@settings(EXAMPLES, max_examples=20)
@given(data=st.data())
def test_batches_then_inference(machine, groups, data):
    """Whole batches, with the next group's images written while one is in work; then inference only."""
    example = data.draw(examples(machine))
    rtl, reference = RtlEngine(example.network), InterpreterEngine(example.network)
    batch, batches = groups * machine.lanes, data.draw(st.integers(1, 3))
    images, labels = example.images(batch * batches)
    for engine in (rtl, reference):
        engine.load(example.state)
    assert rtl.train(images, labels, batch) == reference.train(images, labels, batch)
    ours, theirs = reference.state(), rtl.state()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not np.array_equal(ours[name], theirs[name])] == []
    images, labels = example.images(5 * machine.lanes)
    assert rtl.infer(images, labels) == reference.infer(images, labels)
    rtl.close()
