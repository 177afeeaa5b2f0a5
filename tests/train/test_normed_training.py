"""Batch norms are trained in float32 as torch trains them, and folded where fixed point begins."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bench.normed import normed, residual, shaken
from bench.training import digits, few, interrupt_at, same
from rich.progress import Progress
from torch.nn import functional

from espalier.compress.cgap import Growth, Shedding, Structure, Times
from espalier.compress.growth import Birth
from espalier.compress.magnitude import Magnitude
from espalier.compress.procrustes import Procrustes, Tracking
from espalier.compress.schedule import CubicSchedule
from espalier.data import Dataset, Split, batches, normalise
from espalier.errors import DataError
from espalier.flow.network import import_network
from espalier.frontend.torch_export import from_torch
from espalier.ir.differentiate import differentiate
from espalier.ir.fold import fold_batch_norm, has_batch_norm
from espalier.ir.interpret import interpret
from espalier.ir.types import Fixed
from espalier.train import loop
from espalier.train.calibrate import Widths
from espalier.train.checkpoint import Checkpoint
from espalier.train.config import Prune, Quantise, RateKind, RateSchedule, TrainConfig
from espalier.train.evaluate import run
from espalier.train.fit import check_fit
from espalier.train.fold import folded
from espalier.train.loop import TrainingInterrupted, prepare, train
from espalier.train.optimise import Sgd

FLOAT32_TOLERANCE = 1e-4  #: relative to the largest number of a tensor, after some steps that amplify differences
FLOAT64_TOLERANCE = 1e-9
LATER = Quantise(Widths(8, 8, 16), probe_steps=3, start=1)
SHORT = TrainConfig(epochs=2, batch=50, sgd=Sgd(0.05, 0.9, 1e-3), quantise=None, augment=True,
                    rate=RateSchedule(RateKind.COSINE), prune=Prune(Magnitude(density=0.5, rows=2),
                                                                    CubicSchedule(0.5, 1.5, 4)))
STATISTICS = {f"bn{number}.running_{kind}" for number in range(1, 5) for kind in ("mean", "var")}
CONTROL = "checkpoint.safetensors"


@pytest.fixture(autouse=True)
def _control_c_interrupts() -> Iterator[None]:
    """As in a terminal, also where the tests run as a background job, which ignores Control-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def near(found: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    return bool(np.abs(found - expected).max() <= tolerance * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("frozen", [(), ("bn1.weight", "bn1.bias", "bn4.weight", "bn4.bias")])
def test_a_training_step_is_that_of_the_interpreter(frozen: tuple[str, ...]) -> None:
    graph, state = normed(shaken(residual()))
    step = differentiate(graph, frozen=frozen)
    random = np.random.RandomState(0)
    tensors = {**state, step.inputs[0].name: random.randn(5, 1, 8, 8), "labels": random.randint(0, 10, 5)}
    found = run(step, {name: torch.from_numpy(array) for name, array in tensors.items()})
    for name, expected in interpret(step, tensors).items():
        assert near(found[name].numpy(), expected, FLOAT64_TOLERANCE), name


def test_a_run_is_that_of_torch() -> None:
    """Weights and running statistics after five steps with momentum and weight decay."""
    config = replace(SHORT, epochs=1, augment=False, prune=None, rate=RateSchedule())
    split = Split(replace(few().train, images=few().train.images[:250], labels=few().train.labels[:250]), few().test)
    module = residual().train()
    found = train(config, split, *normed(module))
    optimiser = torch.optim.SGD(module.parameters(), 0.05, 0.9, weight_decay=1e-3)
    for index in batches(split.train, 50, config.seed, 0, drop_last=True):
        optimiser.zero_grad()
        images = torch.from_numpy(normalise(split.train.images[index])).float()
        functional.cross_entropy(module(images), torch.from_numpy(split.train.labels[index])).backward()
        optimiser.step()
    for name, tensor in module.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert near(found.state[name], tensor.numpy(), FLOAT32_TOLERANCE), name
    assert found.log[0].test_accuracy == np.mean(
        module.eval()(torch.from_numpy(normalise(split.test.images)).float()).argmax(1).numpy() == split.test.labels)


@pytest.mark.parametrize("quantise", [None, LATER])
def test_learns_digits(quantise: Quantise | None) -> None:
    config = TrainConfig(epochs=3, batch=64, sgd=Sgd(0.1), quantise=quantise, rate=RateSchedule(RateKind.COSINE))
    found = train(config, digits(), *normed())
    assert found.log[-1].test_accuracy > 0.92
    assert has_batch_norm(found.graph) == (quantise is None)


@pytest.mark.parametrize(("quantise", "stop_at"), [(None, 3), (None, 8), (LATER, 4), (LATER, 12)])
def test_a_run_goes_on_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantise: Quantise | None,
                                  stop_at: int) -> None:
    config = replace(SHORT, quantise=quantise)
    whole = train(config, few(), *normed())
    with monkeypatch.context() as patch:
        interrupt_at(patch, stop_at)
        with pytest.raises(TrainingInterrupted):
            train(config, few(), *normed(), tmp_path)
    broken_off = Checkpoint.load(tmp_path / CONTROL)
    assert broken_off.position.epoch < 2 and has_batch_norm(broken_off.graph) == (stop_at < 12)
    assert same(train(config, few(), *normed(), tmp_path), whole)
    assert same(Checkpoint.load(tmp_path / CONTROL), whole)


def test_statistics_have_values_only() -> None:
    """No momentum, no mask; they neither die nor decay, whatever the weights do."""
    found = train(SHORT, few(), *normed())
    assert {value.name for value in found.graph.statistics()} == STATISTICS < set(found.state)
    assert not {f"{name}.{role}" for name in STATISTICS for role in ("momentum", "live", "master")} & set(found.state)
    assert set(found.live) == set(found.weights) - STATISTICS
    assert all(found.live[f"bn{number}.{role}"].all() for number in range(1, 5) for role in ("weight", "bias"))
    assert not found.live["conv2.weight"].all() and found.state["bn2.running_var"].min() > 0


def test_a_frozen_batch_norm_keeps_its_statistics() -> None:
    graph, state = normed(shaken(residual()))
    found = train(replace(SHORT, epochs=1, prune=None, frozen=("bn1.*", "bn2.weight")), few(), graph, state)
    assert found.frozen == {"bn1.weight", "bn1.bias", "bn2.weight"}
    stays = {name for name in state if np.array_equal(found.state[name], state[name].astype(np.float32))}
    assert stays == {"bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var", "bn2.weight"}


def test_statistics_are_no_parameters_to_freeze_wrong() -> None:
    with pytest.raises(DataError, match=r"^No parameter to freeze is called 'bn1\.running_mean': the network has "
                                        r"conv1\.weight, bn1\.weight, bn1\.bias, conv2\.weight"):
        check_fit(replace(SHORT, frozen=("bn1.running_mean",)), few(), normed()[0])


def before_fixed_point(**changes: object) -> Checkpoint:
    """After an epoch in float32."""
    config = replace(SHORT, epochs=2, quantise=LATER, prune=Prune(Magnitude(density=0.5, rows=2), CubicSchedule(0, 0)),
                     **changes)
    graph, state = normed(shaken(residual()))
    start = prepare(config, few(), graph, state)
    return loop._Run(config, few(), start, None, Progress(disable=True), (graph, state)).train(1)


def test_folding_keeps_function_masks_and_position() -> None:
    before = before_fixed_point()
    after = folded(before)
    assert not has_batch_norm(after.graph) and folded(after) is after
    graph, parameters = fold_batch_norm(before.graph, before.weights)
    assert after.graph == graph and after.position == before.position and after.log == before.log
    assert all(np.array_equal(after.state[name], array.astype(np.float32)) for name, array in parameters.items())
    images = normalise(few().test.images)
    logits, again = (interpret(item.graph, {**item.weights, item.graph.inputs[0].name: images})["fc2"]
                     for item in (before, after))
    assert near(again, logits, FLOAT32_TOLERANCE)
    for name in before.live.keys() & after.live.keys():
        assert np.array_equal(after.live[name], before.live[name])
    assert not (after.state["conv2.weight"] * ~after.live["conv2.weight"]).any()
    assert after.live["conv1.bias"].all() and not after.live["conv2.weight"].all()


def test_folding_starts_the_momenta_of_what_it_changed_anew() -> None:
    before = before_fixed_point()
    after = folded(before)
    moving = {value.name for value in after.graph.parameters if after.state[f"{value.name}.momentum"].any()}
    assert moving == {"fc2.weight", "fc2.bias"}
    assert all(np.array_equal(after.state[f"{name}.momentum"], before.state[f"{name}.momentum"]) for name in moving)


def test_a_folded_layer_is_frozen_as_its_weight_was() -> None:
    after = folded(before_fixed_point(frozen=("conv1.weight", "bn2.*", "conv2.bias", "fc2.bias")))
    assert after.frozen == {"conv1.weight", "conv1.bias", "fc2.bias"}


def test_formats_are_those_of_the_folded_network() -> None:
    before = before_fixed_point()
    directly, at_once = loop._quantised(before, few()), loop._quantised(folded(before), few())
    assert directly.graph == at_once.graph and directly.gradient_formats == at_once.gradient_formats
    assert all(isinstance(value.format, Fixed) for value in directly.graph.parameters)
    assert all(np.array_equal(directly.state[name], at_once.state[name]) for name in at_once.state)


def test_a_run_in_fixed_point_from_the_start_folds_first() -> None:
    config = replace(SHORT, quantise=replace(LATER, start=0))
    kept, imported = normed(), from_torch(residual(), (1, 8, 8), "normed")
    assert same(train(config, few(), *kept), train(config, few(), *imported))


def test_resnet_20_in_float_then_fixed() -> None:
    images = np.random.RandomState(0).randint(0, 256, (10, 3, 32, 32)).astype(np.uint8)
    data = Dataset("noise", images, np.arange(10), 10)
    config = TrainConfig("resnet20", epochs=2, batch=5, quantise=Quantise(probe_steps=1, start=1))
    split = Split(data, data)
    network = import_network("resnet20", split, keep_batch_norm=config.trains_batch_norm)
    found = train(config, split, network.graph, network.parameters, fixed=network.fixed)
    expected, _ = fold_batch_norm(network.graph, network.parameters)
    assert [op.out.name for op in found.graph.ops] == [op.out.name for op in expected.ops]
    assert found.frozen == network.fixed and np.isfinite([entry.loss for entry in found.log]).all()
    assert isinstance(found.graph.parameters[0].format, Fixed)


STRUCTURE = Structure(0.5, Growth(Times(0.5, 0.5), 0.5, birth=Birth(noise=0.0)), Shedding(Times(1.2, 1.2), 0.5),
                      looks=2)


@pytest.mark.parametrize("quantise", [None, LATER])
def test_widths_change_with_their_batch_norms(quantise: Quantise | None) -> None:
    config = replace(SHORT, quantise=quantise, structure=STRUCTURE, prune=None)
    found = train(config, few(), *normed())
    assert all(found.state[value.name].shape == value.shape for value in found.graph.parameters)
    assert found.graph.value("conv1.weight").shape[0] < 6 or found.graph.value("fc1.weight").shape[0] < 12
    if quantise is None:
        assert found.state["bn1.running_mean"].shape == found.graph.value("conv1.weight").shape[:1]


def test_saved_and_loaded(tmp_path: Path) -> None:
    found = train(replace(SHORT, epochs=1, prune=None), few(), *normed())
    found.save(tmp_path / "a.safetensors")
    assert same(Checkpoint.load(tmp_path / "a.safetensors"), found)


@pytest.mark.parametrize(("change", "reason"), [
    (lambda state: state.pop("bn1.running_mean"), r"tensor 'bn1\.running_mean' is missing"),
    (lambda state: state.update({"bn1.running_var": np.full(6, -1, np.float32)}),
     r"tensor 'bn1\.running_var': variance and epsilon must be positive together, and their least sum is -0\.99999; "
     r"train again or repair the file"),
    (lambda state: state.update({"bn1.running_var": np.ones(5, np.float32)}),
     r"tensor 'bn1\.running_var' has shape \(5,\) instead of \(6,\)"),
    (lambda state: state.update({"bn1.running_mean": np.full(6, np.nan, np.float32)}),
     r"tensor 'bn1\.running_mean' holds NaN or infinite numbers"),
    (lambda state: state.update({"bn1.running_mean.live": np.ones(6, np.bool_)}),
     r"tensor 'bn1\.running_mean\.live' belongs to no parameter")])
def test_damaged_statistics_wrong(tmp_path: Path, change, reason: str) -> None:
    start = prepare(SHORT, few(), *normed())
    change(start.state)
    start.save(tmp_path / "a.safetensors")
    with pytest.raises(DataError, match=rf"^Checkpoint .* contradicts itself \({reason}\): train again or use a copy$"):
        Checkpoint.load(tmp_path / "a.safetensors")


def test_batch_of_one_vector_wrong() -> None:
    with pytest.raises(DataError, match=r"^A batch norm needs at least 2 values a channel, and a batch of one image "
                                        r"gives %bn4: float\[12\] 1: take larger batches$"):
        check_fit(replace(SHORT, batch=1), few(), normed()[0])


def test_initial_values_that_remain_wrong() -> None:
    config = replace(SHORT, prune=None, quantise=LATER, tracking=Tracking(Procrustes(density=0.5, decay=0.9)))
    with pytest.raises(DataError, match=r"^Nothing may remain of the initial values of untracked weights when batch "
                                        r"norms are folded, and 0\.53 of them would after 6 steps: let fixed point "
                                        r"start later, or lower the decay$"):
        check_fit(config, few(), normed()[0])
    check_fit(replace(config, tracking=Tracking(Procrustes(density=0.5, decay=0.05))), few(), normed()[0])
