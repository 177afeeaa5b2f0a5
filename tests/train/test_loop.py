"""Training learns, equals the definitions step for step, and resumes to the bit."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bench.training import digits, few, interrupt_at, same, tiny
from rich.progress import Progress

from espalier.compress.lamp import Lamp
from espalier.compress.magnitude import Magnitude
from espalier.compress.rigl import ExchangeSchedule
from espalier.compress.schedule import CubicSchedule
from espalier.data import Dataset, Split, augment, batches, normalise
from espalier.errors import DataError
from espalier.ir.differentiate import differentiate
from espalier.ir.interpret import interpret
from espalier.ir.types import FLOAT, Fixed
from espalier.numerics.update import EXTRA_BITS
from espalier.train import convolve, loop, step
from espalier.train.calibrate import Headroom, Widths
from espalier.train.checkpoint import Checkpoint
from espalier.train.config import Prune, Quantise, RateKind, RateSchedule, TrainConfig
from espalier.train.device_data import DeviceData, draw_moves
from espalier.train.loop import TrainingInterrupted, prepare, train
from espalier.train.optimise import Optimiser, Sgd, Update, buffered_rule
from espalier.train.step import TrainingStep

PRUNE = Prune(Magnitude(density=0.3, rows=2), CubicSchedule(0.5, 1.5, 4), ExchangeSchedule(0.5, 1.8, 0.5, 3))
SHORT = TrainConfig(epochs=2, batch=50, sgd=Sgd(0.1, 0.9, 1e-4), quantise=Quantise(Widths(8, 8, 16), probe_steps=5),
                    prune=PRUNE, rate=RateSchedule(RateKind.COSINE), augment=True)


@pytest.mark.parametrize("quantise", [None, Quantise(), Quantise(Widths(8, 8, 16))])
def test_learns_digits_pruned(quantise: Quantise | None) -> None:
    config = TrainConfig(epochs=3, batch=32, quantise=quantise, prune=Prune(Magnitude(density=0.5),
                                                                            CubicSchedule(0.5, 1.5)))
    found = train(config, digits(), *tiny())
    assert found.log[-1].test_accuracy > 0.9
    assert found.log[-1].loss < found.log[0].loss
    assert found.log[-1].live == {"conv.w": 27, "fc.w": 480}
    assert all(found.live[name].all() for name in ("conv.b", "fc.b"))


@pytest.mark.parametrize(("method", "schedule"), [
    (Magnitude(density=0.2), CubicSchedule(0, 0)), (Magnitude(density=0.2, rows=2), CubicSchedule(0.2, 1)),
    (Lamp(density=0.2, rows=2), CubicSchedule(0.2, 1))])
def test_an_exchange_moves_weights_and_keeps_their_number(method: Magnitude | Lamp, schedule: CubicSchedule) -> None:
    fixed, moving = (train(replace(SHORT, prune=Prune(method, schedule, exchange)), few(), *tiny())
                     for exchange in (None, ExchangeSchedule(schedule.start, 1.5, 0.5)))
    for name in ("conv.w", "fc.w"):
        assert (fixed.live[name] != moving.live[name]).any()
        if schedule.end == 0:
            assert fixed.live[name].sum() == moving.live[name].sum() == [*fixed.log][0].live[name]
    assert sum(moving.log[-1].live.values()) == pytest.approx(0.2 * (54 + 960), abs=8)


def test_exchanges_need_the_gradients_of_dead_weights() -> None:
    """Those that are born have larger gradients, on the batch to come, than those that stay dead."""
    config = replace(SHORT, epochs=1, prune=Prune(Magnitude(density=0.2), CubicSchedule(0, 0)))
    start = prepare(config, few(), *tiny())
    run = loop._Run(config, few(), start, None, Progress(disable=True), tiny())
    order, moves = run._order(0)
    assert moves is not None
    run.sparsity.before(0, run.optimiser, run.step, (order[0], moves[0]), 0.1)
    before = run.optimiser.state()
    found = run.sparsity.gradients(run.step, (order[0], moves[0]))
    assert all((words[~before[f"{name}.live"].reshape(words.shape)] != 0).any() for name, words in found.items())
    after = run.optimiser.state()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_first_steps_equal_interpreter_and_numerics() -> None:
    config = replace(SHORT, augment=False)
    start = prepare(config, few(), *tiny())
    graph = differentiate(start.graph, config.loss, start.gradient_formats)
    state = dict(start.state)
    image = start.graph.inputs[0].format
    assert isinstance(image, Fixed)
    words = image.quantise(normalise(few().train).images)
    run = _steps(config, start, 3)
    for index in list(batches(few().train, config.batch, config.seed, 0, drop_last=True))[:3]:
        values = interpret(graph, {**{value.name: state[value.name] for value in graph.parameters},
                                   "image": words[index], "labels": few().train.labels[index]})
        for value in graph.parameters:
            gradient = start.gradient_formats[f"{value.name}.grad"]
            assert isinstance(value.format, Fixed) and isinstance(gradient, Fixed)
            rule = buffered_rule(config.sgd, config.batch, value.format, gradient)
            master, momentum, weight = rule(state[f"{value.name}.master"], state[f"{value.name}.momentum"],
                                            values[f"{value.name}.grad"])
            state |= {f"{value.name}.master": master, f"{value.name}.momentum": momentum, value.name: weight}
    for name, array in state.items():
        assert np.array_equal(run[name], array), name


def _steps(config: TrainConfig, start: Checkpoint, count: int) -> dict[str, np.ndarray]:
    """The state after some steps of the training path."""
    from_start = train_step(config, start)
    for index in list(batches(few().train, config.batch, config.seed, 0, drop_last=True))[:count]:
        from_start(torch.from_numpy(index))
    return from_start.optimiser.state()


def train_step(config: TrainConfig, start: Checkpoint) -> TrainingStep:
    optimiser = Optimiser(start.graph.parameters, start.gradient_formats, config.update, config.batch)
    optimiser.load(start.state)
    optimiser.set(config.sgd)
    data = DeviceData(few().train, start.graph.inputs[0].format, "cpu")
    return TrainingStep(differentiate(start.graph, config.loss, start.gradient_formats), optimiser, data)


@pytest.mark.parametrize(("quantise", "stop_at"), [
    (SHORT.quantise, 1), (SHORT.quantise, 4), (SHORT.quantise, 9), (Quantise(update=Update.NARROW, probe_steps=2), 5),
    (Quantise(update=Update.UNBUFFERED, probe_steps=2), 6), (None, 2), (None, 7),
    (Quantise(Widths(8, 8, 16), probe_steps=2, start=1), 3), (Quantise(Widths(8, 8, 16), probe_steps=2, start=1), 12)])
def test_interrupted_run_goes_on_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                            quantise: Quantise | None, stop_at: int) -> None:
    decay = 0.0 if quantise is not None and quantise.update is Update.NARROW else 1e-4
    config = replace(SHORT, quantise=quantise, sgd=Sgd(0.05, 0.9, decay))
    whole = train(config, few(), *tiny())
    with monkeypatch.context() as patch:
        interrupt_at(patch, stop_at + (0 if quantise is None or quantise.start else quantise.probe_steps + 1))
        with pytest.raises(TrainingInterrupted, match=rf"^Training was interrupted in epoch [12] and is saved in "
                                                      rf"{re.escape(str(tmp_path))}: run the same command again to go "
                                                      rf"on$"):
            train(config, few(), *tiny(), tmp_path)
    assert Checkpoint.load(tmp_path / "checkpoint.safetensors").position.epoch < 2
    assert same(train(config, few(), *tiny(), tmp_path), whole)
    assert same(train(config, few(), *tiny(), tmp_path), whole)  # finished: read back


@pytest.mark.parametrize("update", [Update.BUFFERED, Update.UNBUFFERED, Update.NARROW])
def test_fixed_point_from_a_later_epoch_on(tmp_path: Path, update: Update) -> None:
    """Weights, momenta and masks of the epochs in float32 are taken over, to the nearest word."""
    prune = Prune(Magnitude(density=0.3, rows=2), CubicSchedule(0.2, 0.8, 4))
    rule = Quantise(update=update, probe_steps=2, start=1)
    config = replace(SHORT, quantise=rule, prune=prune, sgd=Sgd(0.1, 0.9))
    early = train(replace(config, quantise=None), few(), *tiny(), tmp_path / "float")
    shown = {}
    with pytest.MonkeyPatch.context() as patch:
        quantised = loop._quantised
        patch.setattr(loop, "_quantised", lambda start, split: shown.setdefault("after", quantised(
            shown.setdefault("before", start), split)))
        found = train(config, few(), *tiny(), tmp_path / "later")
    before, after = shown["before"], shown["after"]
    assert before.log == early.log[:1] == found.log[:1] and before.position.epoch == 1
    for value in after.graph.parameters:
        name, format_ = value.name, value.format
        assert isinstance(format_, Fixed)
        assert np.array_equal(before.live[name], after.live[name])
        assert np.array_equal(after.weights[name], format_.quantise(before.weights[name])) or update is Update.BUFFERED
        assert np.abs(after.weights[name] * format_.resolution - before.weights[name]).max() <= format_.resolution
        kept, moved = before.state[f"{name}.momentum"], after.state[f"{name}.momentum"]
        if update is Update.NARROW:
            assert not moved.any()
        else:
            assert np.abs(moved * format_.resolution * 2.0 ** -EXTRA_BITS - kept).max() <= 2.0 ** -EXTRA_BITS
    assert found.log[-1].live == before.log[-1].live and found.log[-1].loss < before.log[-1].loss
    assert same(Checkpoint.load(tmp_path / "later" / "checkpoint.safetensors"), found)


def test_float_weights_after_fixed_point_began_wrong(tmp_path: Path) -> None:
    config = replace(SHORT, quantise=Quantise(start=1))
    found = train(replace(config, quantise=None), few(), *tiny())
    replace(found, config=config).save(tmp_path / "a.safetensors")
    with pytest.raises(DataError, match=r"contradicts itself \(the update is buffered, but .* is not of that kind\)"):
        Checkpoint.load(tmp_path / "a.safetensors")


@pytest.fixture(autouse=True)
def _control_c_interrupts() -> Iterator[None]:
    """As in a terminal, also where the tests run as a background job, which ignores Control-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("device", ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def test_result_does_not_depend_on_the_device(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """On a GPU, and in a GPU's way of convolving on the CPU."""
    reference = train(SHORT, few(), *tiny())
    with monkeypatch.context() as patch:
        patch.setattr(convolve, "_way", lambda x: convolve.Way.MATMUL)
        patch.setattr(step, "compiled_whole", lambda graph, batch: None)
        start = replace(prepare(SHORT, few(), *tiny()), config=replace(SHORT, device=device))
        patch.setattr(loop, "prepare", lambda *arguments: start)
        found = train(start.config, few(), *tiny())
    assert same(found, reference)


def test_what_is_written(tmp_path: Path) -> None:
    found = train(SHORT, few(), *tiny(), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2] and lines[-1]["live"] == found.log[-1].live
    assert set(lines[0]) == {"epoch", "learning_rate", "loss", "train_accuracy", "test_accuracy", "live", "saturated"}
    assert TrainConfig.load(tmp_path / "config.yaml") == SHORT
    assert same(Checkpoint.load(tmp_path / "checkpoint.safetensors"), found)


def test_saturation_is_counted() -> None:
    config = replace(SHORT, epochs=2, quantise=Quantise(Widths(8, 8, 8), Headroom(0, -4, 0), probe_steps=2))
    assert sum(train(config, few(), *tiny()).log[-1].saturated.values()) > 0


@pytest.mark.parametrize("as_float", [False, True])
def test_moved_images_are_the_augmented_ones(as_float: bool) -> None:
    random = np.random.RandomState(2)
    dataset = Dataset("d", random.randint(0, 256, (20, 3, 9, 7)).astype(np.uint8), np.zeros(20, np.int64), 1)
    format_ = FLOAT if as_float else Fixed.of(8, 7)
    data = DeviceData(dataset, format_, "cpu", augmented=True)
    index = np.arange(19, -1, -1)
    got = data.moved(torch.from_numpy(index), torch.from_numpy(draw_moves(20, 3, 4, 5))).numpy()
    expected = normalise(augment(dataset.images[index], 3, 4, 5))
    assert np.array_equal(got if as_float else got / 128, expected)


def test_learning_rate_schedules() -> None:
    step = RateSchedule(RateKind.STEP, (2, 4), 0.5)
    assert [step.factor(epoch, 6) for epoch in range(6)] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert RateSchedule().factor(3, 4) == 1
    cosine = RateSchedule(RateKind.COSINE, floor=0.2)
    fixed = TrainConfig(epochs=6, sgd=Sgd(0.5), rate=step, quantise=Quantise(start=3, rate=0.1))
    assert [fixed.sgd_of(epoch).learning_rate for epoch in (1, 2, 3, 4)] == pytest.approx([0.5, 0.25, 0.025, 0.0125])
    with pytest.raises(DataError, match=r"^What multiplies the learning rate in fixed point is above 0 and at most 1"):
        Quantise(rate=0)
    warm = RateSchedule(RateKind.STEP, (3,), 0.5, warm_up=3)
    assert [warm.factor(epoch, 5) for epoch in range(5)] == [0.25, 0.5, 0.75, 0.5, 0.5]
    assert RateSchedule(warm_up=1).factor(0, 9) == 0.5 and RateSchedule(warm_up=1).factor(1, 9) == 1
    assert cosine.factor(0, 10) == 1 and cosine.factor(5, 10) == pytest.approx(0.6)


def test_other_run_wrong(tmp_path: Path) -> None:
    train(SHORT, few(), *tiny(), tmp_path)
    with pytest.raises(DataError, match=r"^Checkpoint .*checkpoint.safetensors is of a run with seed = 0, not 1: "
                                        r"choose another folder, or do not resume$"):
        train(replace(SHORT, seed=1), few(), *tiny(), tmp_path)


def test_image_shape_wrong() -> None:
    graph, parameters = tiny()
    other = Dataset("other", np.zeros((50, 1, 8, 9), np.uint8), np.zeros(50, np.int64), 10)
    with pytest.raises(DataError, match=r"^Network 'tiny' takes images of shape \(1, 8, 8\), and those of 'other' have "
                                        r"\(1, 8, 9\): choose another network or data set$"):
        train(SHORT, Split(other, other), graph, parameters)


def test_classes_wrong() -> None:
    graph, parameters = tiny()
    other = Dataset("other", np.zeros((50, 1, 8, 8), np.uint8), np.zeros(50, np.int64), 11)
    with pytest.raises(DataError, match=r"^Network 'tiny' has logits of shape \(10,\), and 'other' has 11 classes: "
                                        r"build it for as many$"):
        train(SHORT, Split(other, other), graph, parameters)


def test_batch_wrong() -> None:
    with pytest.raises(DataError, match=r"^A batch is at most the training set of 300 images, not 301$"):
        train(replace(SHORT, batch=301), few(), *tiny())


def test_nan_weights_wrong() -> None:
    graph, parameters = tiny()
    parameters["fc.w"][0, 0] = np.nan
    with pytest.raises(DataError, match=r"^Weights must be finite numbers, and 1 of the 960 in 'fc.w' are not: train "
                                        r"the network again, or with a lower learning rate$"):
        train(SHORT, few(), graph, parameters)


def test_diverging_wrong() -> None:
    with pytest.raises(DataError, match=r"^Training diverged in epoch 1: lower the learning rate$"):
        train(replace(SHORT, quantise=None, sgd=Sgd(1e30)), few(), *tiny())


def test_no_cuda_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DataError, match=r"^This machine's torch sees no CUDA device: train on the cpu$"):
        train(replace(SHORT, device="cuda"), few(), *tiny())


def test_interrupt_without_folder_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(monkeypatch, 8)
    with pytest.raises(TrainingInterrupted, match=r"^Training was interrupted in epoch 1 and is not saved, as no "
                                                  r"folder was given$"):
        train(SHORT, few(), *tiny())


def test_interrupt_in_calibration_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(monkeypatch, 2)
    with pytest.raises(TrainingInterrupted, match=r"^Training was interrupted before its first step, and nothing was "
                                                  r"written: run the same command again$"):
        train(SHORT, few(), *tiny(), tmp_path)
    assert not list(tmp_path.iterdir())
