"""Batch norms trained on the engine: RTL equals interpreter word for word and scalar for scalar."""

import numpy as np
import pytest
from bench.external import check_predicted_waits, check_reset, check_steps
from bench.networks import (
    ACTIVATION,
    Chain,
    Formats,
    compiled,
    random_live,
    random_state,
    random_words,
    rules_of,
)
from bench.random_networks import check_engine, examples
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from espalier.arch.machine import Machine
from espalier.arch.memory import MemoryTiming
from espalier.engines.bundle import read_bundle, write_bundle
from espalier.engines.interpreter import InterpreterEngine
from espalier.engines.rtl import RtlEngine
from espalier.engines.verify import verify_step
from espalier.errors import FitError, UnsupportedError
from espalier.numerics.fixed import Fixed
from espalier.numerics.window import Window

EXAMPLES = settings(deadline=None, max_examples=12, derandomize=True, phases=[Phase.explicit, Phase.generate],
                    suppress_health_check=list(HealthCheck))
DEPTHS = {"activation_depth": 2048, "gradient_depth": 1024, "weight_depth": 1024, "index_depth": 4096,
          "table_depth": 2048, "program_depth": 128, "norm_depth": 64}
FOUR_ROWS = Machine(rows=4, lanes=2, trees=2, clips=True, acc_bits=42, **DEPTHS)
MACHINES = (FOUR_ROWS, Machine(rows=1, lanes=3, acc_bits=42, **{**DEPTHS, "weight_depth": 4096}),
            Machine(rows=8, lanes=2, word_bits=8, trees=8, pairs=True, acc_bits=26, **DEPTHS))
OUTSIDE = Machine(rows=2, lanes=3, acc_bits=48, port_bits=64, **{
    **DEPTHS, "activation_depth": 700, "weight_depth": 128, "panel_depth": 128, "state_depth": 64, "run_depth": 256,
    "program_depth": 256})
FORMATS = Formats(gradient=Fixed.of(16, 12))


def named(machine):
    return f"{machine.rows}x{machine.lanes}x{machine.word_bits}"


@pytest.mark.parametrize("machine", MACHINES, ids=named)
@EXAMPLES
@given(data=st.data())
def test_random_networks(machine, data):
    check_engine(data.draw(examples(machine)))


def residual(rng, formats=FORMATS):
    """Two blocks as of a ResNet, the second with a projection, a pool and linear layers, all with batch norms."""
    def conv(out, **window):
        chain.conv(out, (3, 3), (1, 1, 1, 1), bias=False, formats=formats).norm(formats, **window)

    chain = Chain((int(rng.integers(1, 4)), 8, 8), formats.result)
    conv(int(rng.integers(3, 7)))
    chain.relu().pool()
    start = chain.x
    conv(start.shape[0])
    chain.relu()
    conv(start.shape[0])
    chain.add(start).relu()
    start, channels = chain.x, int(rng.integers(5, 9))
    conv(channels)
    inner = chain.x
    chain.x = start
    chain.conv(channels, (1, 1), bias=False, formats=formats).norm(formats).add(inner).relu()
    return chain.linear(6, formats=formats).norm(formats).relu().linear(5, formats=formats)


@pytest.mark.parametrize("seed", range(3))
def test_with_activations_and_weights_in_external_memory(seed):
    rng = np.random.default_rng(seed)
    chain = residual(rng)
    live = random_live(rng, chain, OUTSIDE.rows, 0.7)
    network = compiled(chain, OUTSIDE, live=live)
    assert network.program.external_columns and network.program.image_pages
    assert "norm1" in {command.layer for command in network.program.commands if command.spill}
    check_steps(rng, network, random_state(rng, chain, live, 0.02))
    check_predicted_waits(rng, network)


@pytest.mark.parametrize("cycles", [3000, 9000])
def test_reset_in_the_middle_of_a_step(monkeypatch, cycles):
    rng = np.random.default_rng(2)
    chain = residual(rng)
    live = random_live(rng, chain, OUTSIDE.rows, 0.7)
    check_reset(monkeypatch, rng, compiled(chain, OUTSIDE, live=live), random_state(rng, chain, live, 0.02), cycles)


def test_a_bundle_compiles_and_runs_again(tmp_path):
    rng = np.random.default_rng(1)
    chain = residual(rng)
    live = random_live(rng, chain, OUTSIDE.rows, 0.7)
    network, state = compiled(chain, OUTSIDE, live=live), random_state(rng, chain, live, 0.02)
    images = random_words(rng, ACTIVATION, (OUTSIDE.lanes, *network.program.image), 0.1)
    labels = rng.integers(0, 5, OUTSIDE.lanes)
    write_bundle(tmp_path, network, state, images, labels)
    bundle = read_bundle(tmp_path)
    assert bundle.network.program.commands == network.program.commands
    verify_step(bundle.network, bundle.state, bundle.images, bundle.labels, reference=InterpreterEngine(network),
                candidate=RtlEngine(bundle.network, timing=MemoryTiming())).check()


def chain_of(*steps):
    chain = Chain((2, 4, 4))
    for step in steps:
        step(chain)
    return chain.linear(3)


def after_a_sum(chain):
    start = chain.conv(2, (1, 1)).x
    chain.conv(2, (1, 1)).add(start).norm()


def beside_another_reader(chain):
    start = chain.conv(2, (1, 1)).x
    chain.norm()
    inner = chain.x
    chain.x = start
    chain.conv(2, (1, 1)).add(inner)


@pytest.mark.parametrize("step", [Chain.norm, after_a_sum, beside_another_reader], ids=["image", "sum", "two readers"])
def test_what_a_batch_norm_must_follow(step):
    with pytest.raises(UnsupportedError, match=r"^Batch norm 'norm\d' must be all that reads the result of one layer"):
        compiled(chain_of(step), FOUR_ROWS)


def test_a_flattened_map():
    chain = Chain((2, 4, 4)).conv(2, (1, 1)).flatten().norm()
    with pytest.raises(UnsupportedError, match=r"^Batch norm 'norm2' reads a flattened map: put it before that$"):
        compiled(chain.linear(3), FOUR_ROWS)


def test_a_frozen_batch_norm():
    chain = chain_of(lambda chain: chain.conv(2, (1, 1)).norm())
    rules = {name: rule for name, rule in rules_of(chain).items() if not name.startswith("norm1")}
    with pytest.raises(UnsupportedError, match="^Scale and shift of the batch norm 'norm1' are frozen: fold it"):
        compiled(chain, FOUR_ROWS, rules=rules)


def test_machines_without_room():
    chain = chain_of(lambda chain: chain.conv(5, (1, 1)).norm())
    without = Machine(rows=1, lanes=1, acc_bits=42, **{**DEPTHS, "norm_depth": 0})
    with pytest.raises(FitError, match=r"^The network needs norm_depth = 5 and the machine has 0"):
        compiled(chain, without)
    with pytest.raises(FitError, match="^A batch norm takes the statistics of a batch at once"):
        Machine(rows=1, lanes=1, groups=True, **DEPTHS)


def test_statistics_wider_than_scalars_are_made_of():
    """255² pixels of 130 images: S(x*x) is up to 130 * 255**2 * 2**30, and that is above 2**53."""
    eighth = Window((1, 1), (8, 8))
    chain = Chain((1, 255, 255)).conv(1, (1, 1)).norm()
    chain.conv(1, (1, 1), window=eighth).conv(1, (1, 1), window=eighth).linear(3)
    depths = {**DEPTHS, "activation_depth": 1 << 18, "gradient_depth": 1 << 18, "program_depth": 256}
    compiled(chain, Machine(rows=1, lanes=129, acc_bits=62, **depths))
    with pytest.raises(FitError, match="^The statistics of batch norm 'norm1' are sums of 54 bits over 130 images, and "
                                       "scalars are made of 53: take fewer lanes or narrower words$"):
        compiled(chain, Machine(rows=1, lanes=130, acc_bits=62, **depths))
