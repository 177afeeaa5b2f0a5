"""What tests of machines with external memory share: formats, memories, images, what must hold for any use of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from bench.networks import Formats, random_words
from numpy.typing import NDArray

from espalier.arch.machine import Machine
from espalier.arch.memory import MemoryTiming
from espalier.cost.cycles import predict
from espalier.cost.memory import with_memory
from espalier.cost.traffic import traffic
from espalier.engines.base import Network, State
from espalier.engines.interpreter import InterpreterEngine
from espalier.engines.rtl import RtlEngine
from espalier.engines.verify import verify_step
from espalier.errors import ToolError
from espalier.numerics.fixed import Fixed

FORMATS = {16: Formats(gradient=Fixed.of(16, 12)),
           8: Formats(weight=Fixed.of(8, 6), result=Fixed.of(8, 4), gradient=Fixed.of(8, 4),
                      weight_gradient=Fixed.of(32, 6))}


def named(machine: Machine) -> str:
    return f"{machine.rows}x{machine.lanes}x{machine.port_bits}"


def random_timing(rng: np.random.Generator) -> MemoryTiming:
    """With refresh, and stalls on every channel."""
    return MemoryTiming(
        latency=int(rng.integers(0, 200)), beat_cycles=int(rng.integers(1, 5)),
        refresh_every=int(rng.integers(60, 600)), refresh_cycles=int(rng.integers(0, 50)),
        stalls=tuple(map(int, rng.integers(0, 80, 5))), seed=int(rng.integers(1 << 31)))


def steady_timing(rng: np.random.Generator) -> MemoryTiming:
    """Without either."""
    return MemoryTiming(latency=int(rng.integers(150)), beat_cycles=int(rng.choice([1, 1, 2, 3, 9, 60])),
                        queue=int(rng.integers(1, 12)))


def images(rng: np.random.Generator, network: Network, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Random ones of five classes."""
    shape, format_ = network.graph.inputs[0].shape, network.program.image_format
    return random_words(rng, format_, (count, *shape), 0.4), rng.integers(0, 5, count)


def check_steps(rng: np.random.Generator, network: Network, state: State) -> None:
    """Steps, batches and inference equal the interpreter; the port keeps its rules and moves what is predicted."""
    program, machine = network.program, network.program.machine
    rtl, reference = RtlEngine(network, timing=random_timing(rng)), InterpreterEngine(network)
    for _ in range(2):
        verify_step(network, state, *images(rng, network, machine.images), reference=reference, candidate=rtl).check()
        state = reference.state()
    rtl.load(state)
    assert_equal_states(state, rtl.state())
    groups = 1 + machine.groups
    batch = groups * machine.images
    batches = images(rng, network, 2 * batch)
    assert rtl.train(*batches, batch) == reference.train(*batches, batch)
    assert_equal_states(reference.state(), rtl.state())
    found, expected, steps = rtl.simulation.memory_traffic(), traffic(program), 2 + 2 * groups
    assert found.broken_rules == 0
    assert found.beats_read * machine.port_bits // 8 == steps * expected.read
    assert found.beats_written * machine.port_bits // 8 == steps * expected.written
    batches = images(rng, network, 2 * machine.images)
    assert rtl.infer(*batches) == reference.infer(*batches)
    rtl.close()


def assert_equal_states(ours: Mapping[str, NDArray], theirs: Mapping[str, NDArray]) -> None:
    assert [name for name in ours if not np.array_equal(ours[name], theirs[name])] == []


def check_predicted_waits(rng: np.random.Generator, network: Network, timing: MemoryTiming | None = None) -> None:
    """A training step and inference take the cycles that the model says, command by command."""
    timing, program = timing or steady_timing(rng), network.program
    count, step = program.machine.images, program.entries_at["infer"]
    expected = with_memory(program, predict(program), timing)
    rtl = RtlEngine(network, timing=timing)
    rtl.train(*images(rng, network, count), count)
    assert tuple(rtl.phase_cycles())[:step] == expected[:step]
    rtl.clear_cycles()
    rtl.infer(*images(rng, network, count))
    assert tuple(rtl.phase_cycles())[step:] == expected[step:]
    rtl.close()


def check_told_errors(network: Network, state: State) -> None:
    """A memory that answers with nothing but errors."""
    lanes = network.program.machine.lanes
    rtl = RtlEngine(network, timing=MemoryTiming(errors=100))
    rtl.load(state)
    with pytest.raises(ToolError, match="External memory answered with an error to reads and writes"):
        rtl.train(*images(np.random.default_rng(0), network, lanes), lanes)
    rtl.close()


def check_reset(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, network: Network, state: State, cycles: int
                ) -> None:
    """After so many cycles of a step: the port forgets what was under way, and so does the memory here."""
    lanes = network.program.machine.lanes
    rtl, reference, batch = RtlEngine(network), InterpreterEngine(network), images(rng, network, lanes)
    with monkeypatch.context() as patch, pytest.raises(ToolError, match="did not finish"):
        patch.setattr(RtlEngine, "_cycles_limit", cycles)
        rtl.train(*batch, lanes)
    rtl.reset()
    verify_step(network, state, *batch, reference=reference, candidate=rtl).check()
    rtl.close()
