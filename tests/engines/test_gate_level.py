"""The netlist of a whole machine equals the interpreter, word for word, on random networks (minutes: slow)."""

import re

import numpy as np
import pytest
from bench.networks import Chain, Formats, compiled, random_live, random_state, random_words
from bench.random_networks import examples
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from espalier.arch.machine import Machine
from espalier.engines.interpreter import InterpreterEngine
from espalier.engines.rtl import RtlEngine
from espalier.engines.verify import verify_step
from espalier.gateware.verilog import TOP, verilog
from espalier.numerics.fixed import Fixed
from espalier.synth.gate_level import gate_level
from espalier.synth.yosys import synthesise

MACHINE = Machine(rows=2, lanes=2, word_bits=8, acc_bits=26, activation_depth=512, gradient_depth=256, weight_depth=256,
                  index_depth=512, table_depth=512, program_depth=32)
BYTE = Formats(weight=Fixed.of(8, 6), result=Fixed.of(8, 4), gradient=Fixed.of(8, 6), weight_gradient=Fixed.of(32, 10))
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def netlist(tmp_path_factory):
    """The machine's cells, with their models."""
    folder = tmp_path_factory.mktemp("netlist")
    (folder / f"{TOP}.v").write_text(verilog(MACHINE))
    synthesis = synthesise(folder / f"{TOP}.v", TOP, folder)
    assert synthesis.count("MULT18X18D") >= MACHINE.multipliers and synthesis.count("DP16KD") > 0
    return gate_level((folder / "netlist.v").read_text(), synthesis)


@settings(deadline=None, max_examples=30, derandomize=True, phases=[Phase.explicit, Phase.generate],
          suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_two_steps(netlist, data):
    example = data.draw(examples(MACHINE))
    gates, reference = RtlEngine(example.network, netlist), InterpreterEngine(example.network)
    state = example.state
    for _ in range(2):
        batch = example.images(MACHINE.lanes)
        verify_step(example.network, state, *batch, reference=reference, candidate=gates).check()
        state = reference.state()
    gates.close()


def test_a_wrong_cell_is_seen(netlist):
    """One table of the lattice's sums inverted."""
    chain, rng = Chain((1, 4, 4), Fixed.of(8, 4)), np.random.default_rng(0)
    chain.conv(3, (3, 3), (1, 1, 1, 1), formats=BYTE).relu().pool().linear(3, formats=BYTE)
    live = random_live(rng, chain, MACHINE.rows, 0.7)
    network = compiled(chain, MACHINE, live=live)
    wrong, count = re.subn(r"(CCU2C #\(\s*\.INIT0\()16'h(\w+)(\)[^;]*?\\lattice\.acc_0_0)",
                           lambda found: f"{found[1]}~16'h{found[2]}{found[3]}", netlist, count=1)
    assert count == 1
    gates, state = RtlEngine(network, wrong), random_state(rng, chain, live)
    found = verify_step(network, state, random_words(rng, network.program.image_format, (2, 1, 4, 4), 0.4),
                        rng.integers(0, 3, 2), reference=InterpreterEngine(network), candidate=gates)
    assert found.first is not None and found.first.tensor == "conv0.relu.pool"
    gates.close()
