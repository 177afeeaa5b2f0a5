import re

import numpy as np
import pytest
from bench.machines import GROUPED, TWO_BY_FOUR
from bench.networks import Chain, Formats, all_live, compiled, random_state, random_words, rules_of

from espalier.engines.interpreter import InterpreterEngine
from espalier.engines.rtl import RtlEngine
from espalier.errors import DataError, ToolError
from espalier.numerics.fixed import Fixed
from espalier.numerics.update import Factor
from espalier.program.words import Opcode

BYTE = Formats(weight=Fixed.of(8, 6), result=Fixed.of(8, 4), gradient=Fixed.of(8, 6), weight_gradient=Fixed.of(32, 10))


def engine(machine=TWO_BY_FOUR, rates=None):
    formats = BYTE if machine.word_bits == 8 else Formats()
    chain = Chain((1, 4, 4), Fixed.of(8, 4) if machine.word_bits == 8 else Fixed.of(16, 12))
    chain.conv(3, (3, 3), formats=formats).relu().pool().linear(3, formats=formats)
    rng = np.random.default_rng(1)
    network = compiled(chain, machine, rules=rules_of(chain, rates))
    return RtlEngine(network), random_state(rng, chain, all_live(chain)), network


def images(network, count, seed=0):
    rng = np.random.default_rng(seed)
    return random_words(rng, network.program.image_format, (count, 1, 4, 4), 0.4), rng.integers(0, 3, count)


def test_state_comes_back_as_it_was_loaded():
    for machine in (TWO_BY_FOUR, GROUPED):
        rtl, state, _ = engine(machine)
        rtl.load(state)
        found = rtl.state()
        assert found.keys() == state.keys()
        assert all(np.array_equal(found[name], state[name]) for name in state)
        rtl.close()


def test_inference_changes_nothing():
    rtl, state, network = engine()
    rtl.load(state)
    rtl.infer(*images(network, 12))
    assert all(np.array_equal(words, state[name]) for name, words in rtl.state().items())


def test_totals_start_anew_with_each_call():
    rtl, state, network = engine()
    rtl.load(state)
    first = rtl.infer(*images(network, 8))
    assert rtl.infer(*images(network, 8)) == first
    assert rtl.infer(*images(network, 8, seed=1)) != first


def test_reprogram_changes_the_rule():
    """Another learning rate is another command, and nothing else."""
    still = {name: {"momentum": Factor(0, 0), "rate": Factor(0, 0), "decay": Factor(0, 0)}
             for name in ("conv0", "linear4")}
    rtl, state, network = engine()
    slow = engine(rates=still)[2].program
    rtl.load({name: np.zeros_like(words) if name.endswith("momentum") else words for name, words in state.items()})
    rtl.reprogram(slow)
    rtl.train(*images(network, 4), 4)
    assert all(np.array_equal(words, state[name]) for name, words in rtl.state().items() if "momentum" not in name)
    rtl.reprogram(network.program)
    rtl.train(*images(network, 4), 4)
    assert any((words != state[name]).any() for name, words in rtl.state().items() if "momentum" not in name)


@pytest.mark.parametrize("cycles", [*range(60, 500, 23)])
def test_reset_stops_a_step_anywhere(monkeypatch, cycles):
    """Whatever was in flight, the step after it is as if nothing had been."""
    rtl, state, network = engine()
    batch, labels = images(network, 4)
    sent, writes = [], rtl.simulation.write
    monkeypatch.setattr(rtl.simulation, "write", lambda *given: sent.append(given))
    rtl.load(state)
    rtl.train(batch, labels, 4)
    for addresses, words, _ in sent[:-1]:
        writes(addresses, words, 10_000)
    with pytest.raises(ToolError, match="did not finish"):
        writes(*sent[-1][:2], cycles)
    monkeypatch.undo()
    rtl.reset()
    reference = InterpreterEngine(network)
    for one in (rtl, reference):
        one.load(state)
    expected = reference.traced_step(batch, labels)
    found = rtl.traced_step(batch, labels)
    assert all(np.array_equal(found[name], expected[name]) for name in found)
    rtl.close()


def test_stored_tensor_is_read_by_name():
    rtl, state, network = engine()
    reference = InterpreterEngine(network)
    batch, labels = images(network, 4)
    for one in (rtl, reference):
        one.load(state)
    found = reference.traced_step(batch, labels)
    rtl.train(batch, labels, 4)
    assert np.array_equal(rtl.read_tensor("linear4")[:, :, 0, 0], found["linear4"])
    assert np.array_equal(rtl.read_tensor("conv0.relu.pool"), found["conv0.relu.pool"])


def test_cycles_are_counted_by_phase():
    rtl, state, network = engine()
    rtl.load(state)
    rtl.train(*images(network, 4), 4)
    phases = rtl.phase_cycles()
    assert [(phase.layer, phase.opcode) for phase in phases] == [(c.layer, c.opcode) for c in network.program.commands]
    infer = network.program.entries_at["infer"]
    assert all(phase.cycles > phase.issued > 0 for phase in phases[:infer]
               if phase.opcode not in (Opcode.LOSS, Opcode.END))
    assert not any(phase.cycles for phase in phases[infer:])
    rtl.clear_cycles()
    assert not any(phase.cycles for phase in rtl.phase_cycles())


@pytest.mark.parametrize(("count", "batch", "remark"), [(8, 8, ", one group a batch"), (6, 4, ", one group a batch"),
                                                       (6, 3, ", one group a batch")])
def test_batch_wrong(count, batch, remark):
    rtl, _, network = engine()
    sentence = f"{count} images do not make whole batches of {batch} in groups of 4{remark}"
    with pytest.raises(DataError, match=f"^{re.escape(sentence)}$"):
        rtl.train(*images(network, count), batch)


def test_batch_of_groups_wrong():
    rtl, _, network = engine(GROUPED)
    with pytest.raises(DataError, match="^10 images do not make whole batches of 4 in groups of 2$"):
        rtl.train(*images(network, 10), 4)


def test_traced_step_wrong():
    rtl, _, network = engine()
    with pytest.raises(DataError, match="^A traced step takes one group of 4 images, not 8$"):
        rtl.traced_step(*images(network, 8))


def test_no_compiler_wrong(monkeypatch, tmp_path):
    _, _, network = engine()
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("ESPALIER_CACHE", str(tmp_path))
    with pytest.raises(ToolError, match=r"^RTL simulation needs a C\+\+ compiler: install g\+\+$"):
        RtlEngine(network)
