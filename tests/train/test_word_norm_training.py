"""Batch norms trained in fixed point: formats, steps against the interpreter and float, runs, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bench.draws import scalars, words
from bench.normed import normed, residual, shaken
from bench.training import digits, few, interrupt_at, same

from espalier.compress.cgap import Growth, Shedding, Structure, Times
from espalier.compress.growth import Birth
from espalier.compress.magnitude import Magnitude
from espalier.compress.schedule import CubicSchedule
from espalier.data import normalise
from espalier.errors import UnsupportedError
from espalier.ir.differentiate import differentiate, gradient_name, next_name, slope_name
from espalier.ir.fold import has_batch_norm
from espalier.ir.graph import Graph
from espalier.ir.interpret import evaluate, fixed, interpret
from espalier.ir.ops import BatchNorm, BatchNormOp
from espalier.ir.types import FLOAT, Fixed, Format, TensorType
from espalier.ir.verify import verify
from espalier.train import native_code
from espalier.train.calibrate import Quantised, Widths, calibrate
from espalier.train.checkpoint import Checkpoint
from espalier.train.config import Norms, Prune, Quantise, RateKind, RateSchedule, TrainConfig
from espalier.train.evaluate import run, to_array, to_tensor
from espalier.train.fit import check_fit
from espalier.train.fold import folded
from espalier.train.loop import TrainingInterrupted, train
from espalier.train.native_norms import compiled_whole
from espalier.train.native_step import NativeStep, compiled
from espalier.train.optimise import Sgd, Update
from espalier.train.pipelining import Pipeline, Scheme

TRAINED = Quantise(Widths(8, 8, 16), probe_steps=3, batch_norm=Norms.TRAINED)
SHORT = TrainConfig(epochs=2, batch=50, sgd=Sgd(0.05, 0.9, 1e-3), quantise=TRAINED, augment=True,
                    rate=RateSchedule(RateKind.COSINE))
PRUNED = Prune(Magnitude(density=0.5, rows=2), CubicSchedule(0.5, 1.5, 4))
SCALARS = {f"bn{number}.{role}" for number in range(1, 5) for role in ("weight", "bias", "running_mean", "running_var")}
IN_16_BITS = 3e-3  #: relative to the largest number of a tensor: factors, slopes and results have 9 bits or more


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def calibrated(widths: Widths, state: dict[str, np.ndarray] | None = None) -> tuple[Quantised, dict[str, np.ndarray]]:
    graph, parameters = normed(shaken(residual()))
    images, labels = batch_of(64)
    return calibrate(graph, {**parameters, **(state or {})}, images, labels, widths), parameters


def batch_of(count: int) -> tuple[np.ndarray, np.ndarray]:
    data = few().train
    return normalise(data.images[:count]), data.labels[:count]


def step_of(found: Quantised, frozen: tuple[str, ...] = ()) -> Graph:
    return verify(differentiate(found.graph, formats=found.gradient_formats, frozen=frozen))


def values_of(step: Graph, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    images, labels = batch_of(20)
    image = step.inputs[0]
    words = image.format.quantise(images) if isinstance(image.format, Fixed) else images
    parameters = {value.name: state[value.name] for value in step.parameters}
    return interpret(step, {**parameters, image.name: words, "labels": labels})


def extreme_state(step: Graph) -> dict[str, np.ndarray]:
    """Words at the ends of their ranges, and scalars of many magnitudes, their ends among them."""
    random = np.random.RandomState(0)
    return {value.name: scalars(random, "variance" if value.name.endswith("var") else value.name, value.shape)
            if value.format == FLOAT else words(random, value.format, value.shape, extreme=True)
            for value in step.parameters}


def real(array: np.ndarray, format_: Format) -> np.ndarray:
    return format_.values(array) if isinstance(format_, Fixed) else array


def test_scalars_stay_float_and_all_else_is_words() -> None:
    found, _ = calibrated(Widths(8, 8, 16))
    assert {value.name for value in found.graph.values() if value.format == FLOAT} == SCALARS
    norms = [op for op in found.graph.ops if isinstance(op, BatchNorm)]
    assert all(fixed(op.factor).width == 8 for op in norms)
    assert all(fixed(found.gradient_formats[slope_name(op.out.name)]).width == 16 for op in norms)
    step = step_of(found)
    assert all(step.value(gradient_name(name)).format == FLOAT for name in SCALARS if "running" not in name)


def test_scales_of_zero_have_the_room_of_others() -> None:
    """Such as those at the end of a residual block that starts as its shortcut."""
    zero = {"bn2.weight": np.zeros(6), "bn2.bias": np.zeros(6)}
    found, _ = calibrated(Widths(8, 8, 16), zero)
    fracs = {op.out.name: fixed(op.factor).frac for op in found.graph.ops if isinstance(op, BatchNorm)}
    assert fracs["bn2"] == min(fracs.values())


@pytest.mark.parametrize("widths", [Widths(4, 8, 12), Widths(16, 16, 16)])
@pytest.mark.parametrize("frozen", [(), ("bn1.weight", "bn1.bias", "bn4.weight", "bn4.bias")])
def test_a_training_step_is_that_of_the_interpreter(widths: Widths, frozen: tuple[str, ...]) -> None:
    found, _ = calibrated(widths)
    step = step_of(found, frozen)
    for state in (found.state, extreme_state(step)):
        assert_run_as_interpreted(step, values_of(step, state))


def assert_run_as_interpreted(step: Graph, expected: dict[str, np.ndarray]) -> None:
    tensors = {value.name: to_tensor(expected[value.name], value.format) for value in (*step.inputs, *step.parameters)}
    got = run(step, tensors)
    for value in step.values():
        array = to_array(got[value.name], value.format)
        assert array.dtype == expected[value.name].dtype and np.array_equal(array, expected[value.name]), value


@pytest.mark.parametrize("widths", [Widths(4, 8, 12), Widths(16, 16, 16)])
@pytest.mark.parametrize("frozen", [(), ("bn1.weight", "bn1.bias", "bn4.weight", "bn4.bias")])
@pytest.mark.parametrize(("room", "threads"), [(0, 1), (44, 2)])
def test_a_native_step_is_that_of_the_interpreter(widths: Widths, frozen: tuple[str, ...], room: int, threads: int
                                                  ) -> None:
    """Also of a batch that does not fill its last chunk, of which biases would count in the sums."""
    found, _ = calibrated(widths)
    step = step_of(found, frozen)
    native = compiled_whole(step, 20 + room)
    assert native is not None and compiled(step, 20) is None
    torch.set_num_threads(threads)
    for state in (found.state, extreme_state(step), found.state):
        assert_trained_as_interpreted(native, step, values_of(step, state))
    torch.set_num_threads(1)


def assert_trained_as_interpreted(native: NativeStep, step: Graph, expected: dict[str, np.ndarray]) -> None:
    weights = {value.name: to_tensor(expected[value.name], value.format) for value in step.parameters}
    images, labels = (torch.tensor(expected[value.name]) for value in step.inputs)
    flat = native.flat(weights)
    loss, logits, sums = native.train(images.to(torch.int16), labels, flat, torch.ones_like(flat), weights)
    assert np.array_equal(loss.numpy(), expected["loss"]) and np.array_equal(logits.numpy(), expected["fc2"])
    learned = [value for value in step.parameters if isinstance(value.format, Fixed)]
    for value, part, rounding in zip(learned, sums.split([weights[value.name].numel() for value in learned]),
                                     native.roundings, strict=True):
        assert np.array_equal(rounding(part).reshape(value.shape), expected[gradient_name(value.name)]), value
    scalars = [value.name for value in step.outputs if value.format == FLOAT]
    assert all(np.array_equal(native.scalars[name], expected[name]) for name in scalars)


def test_native_inference_is_that_of_the_interpreter() -> None:
    found, _ = calibrated(Widths(8, 8, 16))
    native, image = compiled_whole(found.graph, 70), found.graph.inputs[0]
    assert native is not None and len(native.own.arena) == 0
    words = fixed(image.format).quantise(batch_of(70)[0])
    parameters = {value.name: found.state[value.name] for value in found.graph.parameters}
    expected = interpret(found.graph, {**parameters, image.name: words})[found.graph.outputs[0].name]
    got = native.infer(torch.tensor(words, dtype=torch.int16), {
        value.name: to_tensor(found.state[value.name], value.format) for value in found.graph.parameters})
    assert np.array_equal(got.flatten(1).numpy(), expected)


@pytest.mark.usefixtures("native_code_anew")
def test_a_run_without_a_compiler_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    native = train(SHORT, few(), *normed())
    monkeypatch.setenv("ESPALIER_NATIVE", "0")
    native_code.library.cache_clear()
    assert same(train(SHORT, few(), *normed()), native)


@pytest.mark.parametrize("frozen", [(), ("bn1.weight", "bn1.bias", "bn4.weight", "bn4.bias")])
def test_each_operation_of_16_bits_is_near_that_in_float_on_the_same_numbers(frozen: tuple[str, ...]) -> None:
    found, _ = calibrated(Widths(16, 16, 16))
    step = step_of(found, frozen)
    values = values_of(step, found.state)
    norms = [op for op in step.ops if isinstance(op, BatchNormOp)]
    assert len(norms) == (2 * 7 + 2 * 3 if frozen else 4 * 7)
    for op in norms:
        plain = op.map_values(lambda value: replace(value, type=TensorType(value.shape, FLOAT)))
        without = {field: None for field in ("factor", "slope") if hasattr(op, field)}
        expected = evaluate(replace(plain, **without), *(real(values[value.name], value.format) for value in op.inputs))
        there = real(values[op.out.name], op.out.format)
        assert np.abs(there - expected).max() <= IN_16_BITS * np.abs(expected).max(), op


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("update", [Update.BUFFERED, Update.UNBUFFERED])
def test_learns_digits(start: int, update: Update) -> None:
    """As in float32, where networks whose batch norms are folded need lower rates."""
    quantise = replace(TRAINED, probe_steps=10, start=start, update=update)
    config = TrainConfig(epochs=3, batch=64, sgd=Sgd(0.1), quantise=quantise, rate=RateSchedule(RateKind.COSINE))
    found = train(config, digits(), *normed())
    assert has_batch_norm(found.graph) and found.log[-1].test_accuracy > 0.95


@pytest.mark.parametrize(("start", "stop_at"), [(0, 4), (1, 4), (1, 12)])
def test_a_run_goes_on_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int, stop_at: int) -> None:
    config = replace(SHORT, quantise=replace(TRAINED, start=start), prune=PRUNED)
    whole = train(config, few(), *normed())
    with monkeypatch.context() as patch:
        interrupt_at(patch, stop_at)
        with pytest.raises(TrainingInterrupted):
            train(config, few(), *normed(), tmp_path)
    assert same(train(config, few(), *normed(), tmp_path), whole)
    assert same(Checkpoint.load(tmp_path / "checkpoint.safetensors"), whole)
    assert set(whole.state) > SCALARS and not {f"{name}.master" for name in SCALARS} & set(whole.state)


def test_inference_is_by_the_running_statistics() -> None:
    found, data = train(SHORT, few(), *normed()), few().test
    image = found.graph.inputs[0]
    words = fixed(image.format).quantise(normalise(data.images))
    logits = interpret(found.graph, {**found.weights, image.name: words})[found.graph.outputs[0].name]
    assert found.log[-1].test_accuracy == np.mean(logits.argmax(axis=1) == data.labels)


def test_a_frozen_batch_norm_keeps_its_statistics() -> None:
    graph, state = normed(shaken(residual()))
    found = train(replace(SHORT, frozen=("bn1.*", "bn2.weight")), few(), graph, state)
    stays = {name for name in SCALARS if np.array_equal(found.state[name], state[name].astype(np.float32))}
    assert stays == {"bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var", "bn2.weight"}
    assert slope_name("bn1") not in found.gradient_formats and slope_name("bn2") in found.gradient_formats


def test_momenta_of_scalars_are_taken_over() -> None:
    config = replace(SHORT, quantise=replace(TRAINED, start=1), epochs=2)
    found, plain = train(config, few(), *normed()), train(replace(config, quantise=None), few(), *normed())
    for name in ("bn1.weight", "bn4.bias"):
        there = plain.state[f"{name}.momentum"]
        assert np.abs(found.state[f"{name}.momentum"] - there).max() < 0.5 * np.abs(there).max()


def test_widths_change_with_their_batch_norms() -> None:
    structure = Structure(0.5, Growth(Times(0.5, 0.5), 0.5, birth=Birth(noise=0.0)), Shedding(Times(1.2, 1.2), 0.5),
                          looks=2)
    found = train(replace(SHORT, structure=structure), few(), *normed())
    assert all(found.state[value.name].shape == value.shape for value in found.graph.parameters)
    assert found.graph.value("conv1.weight").shape[0] < 6 or found.graph.value("fc1.weight").shape[0] < 12


@pytest.mark.parametrize(("pipeline", "like"), [
    (Pipeline(2, ("bn1",)), None), (Pipeline(2, ("conv3",), Scheme.COMPENSATED), None),
    (Pipeline(2, ("conv3",), Scheme.SYNCHRONOUS, micro_batches=1), SHORT)])
def test_trained_as_a_pipeline(pipeline: Pipeline, like: TrainConfig | None) -> None:
    """Cut beside a batch norm, too; synchronously on whole batches the weights are those without a pipeline."""
    found = train(replace(SHORT, pipeline=pipeline), few(), *normed())
    assert has_batch_norm(found.graph)
    if like is not None:
        expected = train(like, few(), *normed())
        assert all(np.array_equal(found.state[name], array) for name, array in expected.state.items())


def test_micro_batches_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"^Batch norms are trained in fixed point on whole batches, not on 4 "
                                               r"micro-batches: take 1, choose the scheme 'stale', or fold them$"):
        check_fit(replace(SHORT, pipeline=Pipeline(2, scheme=Scheme.SYNCHRONOUS)), few(), normed()[0])


def test_folded_wrong() -> None:
    found = train(replace(SHORT, epochs=1), few(), *normed())
    with pytest.raises(UnsupportedError, match=r"^Batch norms that were trained in fixed point are not folded into the "
                                               r"layers before them, and 'normed' has such: train with "
                                               r"quantise\.batch_norm 'folded'$"):
        folded(found)


def test_running_statistics_follow_in_scalars() -> None:
    found, _ = calibrated(Widths(8, 8, 16))
    step = step_of(found)
    values = values_of(step, found.state)
    for value in found.graph.statistics():
        assert values[next_name(value.name)].dtype == np.float32
