"""Blocks that shrink before they die, and weights that live because they have moved: in training, to the bit."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bench.training import digits, few, interrupt_at, same, tiny

from espalier.compress.group_lasso import GroupLasso, shrink
from espalier.compress.magnitude import Magnitude
from espalier.compress.procrustes import Procrustes, Tracking
from espalier.compress.schedule import CubicSchedule
from espalier.errors import DataError, UnsupportedError
from espalier.ir.types import Fixed
from espalier.numerics.live import block_sums
from espalier.train.calibrate import Widths
from espalier.train.config import Prune, Quantise, TrainConfig
from espalier.train.loop import TrainingInterrupted, prepare, train
from espalier.train.optimise import Optimiser, Sgd, Update
from espalier.train.sparsity import Sparsity
from espalier.train.step import TrainingStep

LASSO = Prune(Magnitude(density=0.5, rows=2), CubicSchedule(1.5, 1.5), None, GroupLasso(0.05, 0, 1.5, 3))
TRACKED = Tracking(Procrustes(density=0.3, rows=2, decay=0.05), 3)
NO_STEP, NO_BATCH = TrainingStep.__new__(TrainingStep), (torch.zeros(0), None)  #: where no gradient is asked for
SHORT = TrainConfig(epochs=2, batch=50, sgd=Sgd(0.1, 0.9, 1e-4), quantise=Quantise(Widths(8, 8, 16), probe_steps=5))


@pytest.fixture(autouse=True)
def _control_c_interrupts() -> Iterator[None]:
    """As in a terminal, also where the tests run as a background job, which ignores Control-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("changes", [{"prune": LASSO}, {"tracking": TRACKED}], ids=["lasso", "procrustes"])
@pytest.mark.parametrize(("quantise", "stop_at"), [
    (SHORT.quantise, 3), (SHORT.quantise, 8), (None, 5), (Quantise(update=Update.UNBUFFERED, probe_steps=2), 10),
    (Quantise(Widths(8, 8, 16), probe_steps=2, start=1), 4)])
def test_it_goes_on_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Prune | Tracking],
                               quantise: Quantise | None, stop_at: int) -> None:
    config = replace(SHORT, quantise=quantise, **changes)
    whole = train(config, few(), *tiny())
    with monkeypatch.context() as patch:
        interrupt_at(patch, stop_at + (0 if quantise is None or quantise.start else quantise.probe_steps + 1))
        with pytest.raises(TrainingInterrupted):
            train(config, few(), *tiny(), tmp_path)
    assert same(train(config, few(), *tiny(), tmp_path), whole)


@pytest.mark.parametrize("changes", [
    {"prune": Prune(Magnitude(density=0.4, rows=2), CubicSchedule(2, 2), None, GroupLasso(0.01, 0, 2))},
    {"tracking": Tracking(Procrustes(density=0.4))}], ids=["lasso", "procrustes"])
def test_digits_are_learnt(changes: dict[str, Prune | Tracking]) -> None:
    found = train(TrainConfig(epochs=5, batch=32, **changes), digits(), *tiny())
    assert found.log[-1].test_accuracy > 0.9
    assert sum(found.log[-1].live.values()) == pytest.approx(0.4 * (54 + 960), abs=6)


def begun(config: TrainConfig) -> tuple[Optimiser, Sparsity, dict[str, tuple[int, ...]]]:
    """A tiny network, as it is before the first step."""
    start, shapes = prepare(config, few(), *tiny()), {"conv.w": (6, 1, 3, 3), "fc.w": (10, 6, 4, 4)}
    optimiser = Optimiser(start.graph.parameters, start.gradient_formats, start.update, config.batch)
    optimiser.load(start.state)
    return optimiser, Sparsity(config, 6, shapes, tiny()[1]), shapes


@pytest.mark.parametrize("quantise", [None, SHORT.quantise])
def test_a_lasso_is_its_proximal_operator(quantise: Quantise | None) -> None:
    """6 steps an epoch and 3 times: 2 steps are made up for at once."""
    optimiser, sparsity, shapes = begun(replace(SHORT, quantise=quantise, prune=LASSO))
    assert sparsity.shrinks == dict.fromkeys((2, 4, 6, 8), 0.1)
    before = optimiser.real_weights()
    sparsity.before(2, optimiser, NO_STEP, NO_BATCH, 0.5)
    after = optimiser.real_weights()
    for name, shape in shapes.items():
        expected = shrink(before[name].reshape(shape), 0.05, 2)
        assert np.abs(after[name].reshape(shape) - expected).max() <= (1e-6 if quantise is None else 2.0 ** -20)
    assert np.array_equal(before["fc.b"], after["fc.b"])
    for value in optimiser.parameters:
        format_ = value.format
        if isinstance(format_, Fixed):
            real = optimiser.state()[value.name] * format_.resolution
            assert np.abs(real - after[value.name]).max() <= format_.resolution / 2


def test_a_lasso_draws_whole_blocks_to_zero() -> None:
    """Of the dense networks before the pruning, that with the lasso has blocks that are smaller by far."""
    rules = replace(LASSO, lasso=GroupLasso(0.2, 0, 1.5, 3)), replace(LASSO, lasso=None)
    shares = []
    for rule in rules:
        found = train(replace(SHORT, prune=replace(rule, schedule=CubicSchedule(1.99, 1.99), method=Magnitude(
            density=1.0, rows=2))), few(), *tiny())
        size = block_sums(found.weights["fc.w"].reshape(10, 6, 4, 4).astype(np.float64) ** 2, 2)
        shares.append((size < 0.01 * size.max()).mean())
    assert shares[0] > shares[1] + 0.1


def test_untracked_weights_fade_and_die() -> None:
    optimiser, sparsity, shapes = begun(replace(SHORT, tracking=TRACKED, quantise=None))
    initial = {name: array.copy() for name, array in optimiser.real_weights().items()}
    optimiser.weights["fc.w"][:3] += 1.0
    optimiser.weights["conv.w"] += 1.0
    sparsity.after(1, optimiser)
    now = optimiser.real_weights()
    assert np.allclose(now["fc.w"][4:], 0.05 * initial["fc.w"][4:], atol=1e-6)
    assert np.allclose(now["fc.w"][:2], initial["fc.w"][:2] + 1.0, atol=1e-6)
    assert all(mask.all() for name, mask in optimiser.state().items() if name.endswith(".live"))
    last = max(step for step in range(12) if TRACKED.rule.remaining(step))
    sparsity.after(last + 1, optimiser)
    state = optimiser.state()
    assert not state["fc.w.live"][4:].any() and state["fc.w.live"][:2].all() and not state["fc.w"][4:].any()
    sparsity.before(6, optimiser, NO_STEP, NO_BATCH, 0.1)
    assert optimiser.state()["fc.w.live"].all()


def test_when_weights_are_tracked() -> None:
    assert Tracking(Procrustes(density=0.5, decay=0.05), 2).due_steps(10, 2) == {0, 1, 2, 3, 4, 5, 10, 15}
    assert Tracking(Procrustes(density=0.5, decay=1.0), 2).due_steps(10, 2) == frozenset(range(20))
    assert Tracking(Procrustes(density=0.5, decay=0.0), 2).due_steps(10, 1) == {0, 1, 5}


def test_lasso_and_tracking_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^The weight of a group lasso is above 0, not 0$"):
        GroupLasso(0, 0, 1)
    with pytest.raises(UnsupportedError, match=r"^A group lasso starts at 0 or later, ends after it starts and acts "
                                               r"once or more an epoch, not 10 times in 1\.\.1 epochs$"):
        GroupLasso(0.1, 1, 1)
    with pytest.raises(DataError, match=r"^A group lasso prepares blocks to die, and it ends with the pruning at epoch "
                                        r"1.5 or before, not at 1.6$"):
        replace(LASSO, lasso=GroupLasso(0.1, 0, 1.6))
    with pytest.raises(UnsupportedError, match=r"^What is tracked is chosen at least once per epoch, not 0 times$"):
        replace(TRACKED, frequency=0)
    with pytest.raises(DataError, match=r"^Tracking decides by itself which weights live: leave out 'prune' and "
                                        r"'structure', or 'tracking'$"):
        replace(SHORT, prune=LASSO, tracking=TRACKED)
