"""Networks grow and shed units in training, frozen parameters stay, and all of it resumes to the bit."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bench.training import digits, few, interrupt_at, same, tiny

from espalier.compress.cgap import Growth, Shedding, Structure, Times
from espalier.compress.growth import Birth
from espalier.compress.magnitude import Magnitude
from espalier.compress.rigl import ExchangeSchedule
from espalier.compress.schedule import CubicSchedule
from espalier.errors import DataError
from espalier.ir.interpret import interpret
from espalier.ir.types import Fixed
from espalier.numerics.update import master_format
from espalier.train.calibrate import Widths
from espalier.train.checkpoint import Checkpoint
from espalier.train.config import Prune, Quantise, RateKind, RateSchedule, TrainConfig
from espalier.train.fit import check_fit
from espalier.train.loop import TrainingInterrupted, prepare, train
from espalier.train.optimise import Sgd, Update
from espalier.train.structure import changed, named_size

STRUCTURE = Structure(0.5, Growth(Times(0.5, 1, 0.5), 0.5), Shedding(Times(1.5, 1.8, 0.2), 0.5), looks=2)
SHORT = TrainConfig(epochs=3, batch=50, sgd=Sgd(0.1, 0.9, 1e-4), quantise=Quantise(Widths(8, 8, 16), probe_steps=5),
                    rate=RateSchedule(RateKind.COSINE), augment=True, structure=STRUCTURE,
                    prune=Prune(Magnitude(density=0.5), CubicSchedule(2, 2.5)))


@pytest.fixture(autouse=True)
def _control_c_interrupts() -> Iterator[None]:
    """As in a terminal, also where the tests run as a background job, which ignores Control-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def units(checkpoint: Checkpoint) -> int:
    return checkpoint.graph.value("conv.w").shape[0]


@pytest.mark.parametrize("quantise", [None, Quantise()])
def test_cgap_learns_digits(quantise: Quantise | None) -> None:
    """It starts smaller than the network that is named, peaks, and ends smaller than at its peak."""
    structure = Structure(0.5, Growth(Times(0.5, 1, 0.5)), Shedding(Times(1.5, 2, 0.5), 0.6))
    config = TrainConfig(epochs=4, batch=32, quantise=quantise, structure=structure)
    found = train(config, digits(), *tiny())
    assert found.log[-1].test_accuracy > 0.9
    weights = [sum(entry.live.values()) for entry in found.log]
    assert weights[-1] <= 0.6 * (54 + 960) < max(weights) <= 54 + 960
    assert units(found) == 3 and all(found.state[name].shape == value.shape for value in found.graph.parameters
                                     for name in (value.name, f"{value.name}.momentum", f"{value.name}.live"))


@pytest.mark.parametrize(("quantise", "stop_at"), [
    (SHORT.quantise, 2), (SHORT.quantise, 3), (SHORT.quantise, 7), (SHORT.quantise, 10), (SHORT.quantise, 14),
    (None, 6), (None, 9), (Quantise(update=Update.UNBUFFERED, probe_steps=2), 8),
    (Quantise(Widths(8, 8, 16), probe_steps=2, start=1), 4), (Quantise(Widths(8, 8, 16), probe_steps=2, start=1), 6)])
def test_a_changing_network_goes_on_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                               quantise: Quantise | None, stop_at: int) -> None:
    """6 steps an epoch: widths change before steps 3, 6, 9 and 10."""
    config = replace(SHORT, quantise=quantise, frozen=("fc.b",))
    whole = train(config, few(), *tiny())
    with monkeypatch.context() as patch:
        interrupt_at(patch, stop_at + (0 if quantise is None or quantise.start else quantise.probe_steps + 1))
        with pytest.raises(TrainingInterrupted):
            train(config, few(), *tiny(), tmp_path)
    assert Checkpoint.load(tmp_path / "checkpoint.safetensors").position.epoch < 3
    assert same(train(config, few(), *tiny(), tmp_path), whole)
    assert same(Checkpoint.load(tmp_path / "checkpoint.safetensors"), whole)


def at_start(quantise: Quantise | None, **changes: object) -> Checkpoint:
    """A tiny network with momenta before its first step."""
    config = replace(SHORT, quantise=quantise, **changes)
    start = prepare(replace(config, structure=replace(STRUCTURE, seed=1)), few(), *tiny())
    random = np.random.RandomState(3)
    momenta = {f"{value.name}.momentum": random.randint(-999, 999, value.shape).astype(
        np.int64 if isinstance(value.format, Fixed) else np.float32) for value in start.graph.parameters}
    return replace(start, config=config, state={**start.state, **momenta})


def real_weights(start: Checkpoint) -> dict[str, np.ndarray]:
    found = {}
    for value in start.graph.parameters:
        format_ = value.format
        if isinstance(format_, Fixed):
            found[value.name] = start.state[f"{value.name}.master"] * master_format(format_).resolution
        else:
            found[value.name] = start.state[value.name].astype(np.float64)
    return found


@pytest.mark.parametrize("quantise", [None, SHORT.quantise])
def test_a_growth_keeps_function_formats_and_movement(quantise: Quantise | None) -> None:
    graph, _ = tiny()
    structure = Structure(1.0, Growth(Times(1, 1), 0.5, 2.0, Birth(noise=0.0)))
    start = replace(at_start(quantise), config=replace(SHORT, quantise=quantise, structure=structure))
    scores = [np.array([1.0, 6, 2, 5, 3, 4])]
    after = changed(start, real_weights(start), scores, named_size(graph, ()), 1)
    assert units(after) == 9 and start.gradient_formats == after.gradient_formats
    assert [value.format for value in after.graph.values()] == [value.format for value in start.graph.values()]
    assert np.array_equal(after.state["conv.w"][6:], start.state["conv.w"][[1, 3, 5]])
    assert np.array_equal(after.state["conv.w.momentum"][:6], start.state["conv.w.momentum"])
    assert np.array_equal(after.state["fc.b.momentum"], start.state["fc.b.momentum"])
    both = after.state["fc.w.momentum"].reshape(10, 9, 16)
    whole = start.state["fc.w.momentum"].reshape(10, 6, 16)
    assert np.abs(both[:, [1, 3, 5]] + both[:, 6:] - whole[:, [1, 3, 5]]).max() <= (1 if quantise else 1e-3)
    images = few().test.images / 255
    image = start.graph.inputs[0]
    if isinstance(image.format, Fixed):
        return
    before, now = (interpret(item.graph, {**item.weights, image.name: images})["fc"] for item in (start, after))
    assert np.allclose(before, now, rtol=0, atol=1e-5)  # float32


def test_masters_of_other_layers_are_kept_to_the_bit() -> None:
    start = at_start(SHORT.quantise)
    kept = changed(start, real_weights(start), [np.arange(6.0)], named_size(tiny()[0], ()), STRUCTURE.times[-1])
    assert units(kept) == 3
    for role in ("", ".master", ".momentum", ".live"):
        assert np.array_equal(kept.state[f"conv.w{role}"], start.state[f"conv.w{role}"][3:])
        assert np.array_equal(kept.state[f"fc.b{role}"], start.state[f"fc.b{role}"])
        assert np.array_equal(kept.state[f"fc.w{role}"].reshape(10, 3, 16),
                              start.state[f"fc.w{role}"].reshape(10, 6, 16)[:, 3:])


def test_a_seed_alone() -> None:
    found = train(replace(SHORT, epochs=1, structure=Structure(0.34), prune=None), few(), *tiny())
    assert units(found) == 2 and found.log[0].live == {"conv.w": 18, "fc.w": 320}


@pytest.mark.parametrize("quantise", [None, SHORT.quantise, Quantise(update=Update.UNBUFFERED, probe_steps=2),
                                      Quantise(Widths(8, 8, 16), probe_steps=2, start=1)])
def test_frozen_parameters_stay(quantise: Quantise | None) -> None:
    prune = Prune(Magnitude(density=0.3), CubicSchedule(0.5, 1.5), ExchangeSchedule(0.5, 1.8))
    config = replace(SHORT, epochs=2, quantise=quantise, structure=None, prune=prune, frozen=("conv.*",))
    graph, parameters = tiny()
    found = train(config, few(), graph, parameters, fixed={"fc.b"})
    assert found.frozen == {"conv.w", "conv.b", "fc.b"}
    for value in found.graph.parameters:
        name, format_ = value.name, value.format
        given, fixed = parameters[name].astype(np.float32), isinstance(format_, Fixed)
        if isinstance(format_, Fixed):
            given = format_.quantise(parameters[name])
        assert (np.abs(found.state[name] - given).max() <= fixed) == (name != "fc.w")  # a master rounds twice
        assert found.state[f"{name}.momentum"].any() == (name == "fc.w")
    assert found.live["conv.w"].all() and not found.live["fc.w"].all()


def test_frozen_masters_keep_their_bits() -> None:
    config = replace(SHORT, epochs=1, structure=None, prune=None, frozen=("conv.w",))
    start, found = prepare(config, few(), *tiny()), train(config, few(), *tiny())
    assert np.array_equal(start.state["conv.w.master"], found.state["conv.w.master"])
    assert not np.array_equal(start.state["conv.b.master"], found.state["conv.b.master"])


def test_what_is_frozen_is_in_the_file(tmp_path: Path) -> None:
    start = prepare(replace(SHORT, frozen=("conv.?",)), few(), *tiny(), fixed={"fc.b", "other"})
    start.save(tmp_path / "a.safetensors")
    assert Checkpoint.load(tmp_path / "a.safetensors").frozen == {"conv.w", "conv.b", "fc.b"}


def test_frozen_wrong() -> None:
    with pytest.raises(DataError, match=r"^No parameter to freeze is called 'x\*': the network has conv.w, conv.b, "
                                        r"fc.w, fc.b$"):
        check_fit(replace(SHORT, frozen=("x*",)), few(), tiny()[0])
    with pytest.raises(DataError, match=r"^All 4 parameters of network 'tiny' are frozen, and nothing would be trained:"
                                        r" freeze fewer$"):
        check_fit(replace(SHORT, frozen=("conv.*",)), few(), tiny()[0], {"fc.w", "fc.b"})


def test_no_widths_to_change_wrong() -> None:
    with pytest.raises(DataError, match=r"^Network 'tiny' has no layer whose width may change: leave 'structure' out$"):
        check_fit(replace(SHORT, frozen=("conv.*",)), few(), tiny()[0])


def test_times_of_a_structure_wrong() -> None:
    with pytest.raises(DataError, match=r"^Units must be born and leave before the last epoch ends, and epoch 3 of 3 "
                                        r"leaves no time to train what stays: end it earlier$"):
        replace(SHORT, structure=Structure(1, Growth(Times(1, 3))))
    with pytest.raises(DataError, match=r"^Weights die once the network has its widths, at epoch 1.7, not from epoch 1 "
                                        r"on: prune later$"):
        replace(SHORT, prune=Prune(Magnitude(density=0.5), CubicSchedule(1, 2)))
