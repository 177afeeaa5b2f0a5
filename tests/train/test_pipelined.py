"""Training through a pipeline: the recipes of every training, broken off and taken up, and cut by measured times."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bench.normed import normed
from bench.training import digits, few, same, tiny

from espalier.compress.cgap import Growth, Structure, Times
from espalier.compress.magnitude import Magnitude
from espalier.compress.rigl import ExchangeSchedule
from espalier.compress.schedule import CubicSchedule
from espalier.errors import DataError, EspalierError, GraphError, UnsupportedError
from espalier.ir.cut import split
from espalier.train import loop
from espalier.train.calibrate import Widths
from espalier.train.checkpoint import Checkpoint
from espalier.train.config import Prune, Quantise, TrainConfig
from espalier.train.crew import WorkerError
from espalier.train.fit import check_fit
from espalier.train.loop import TrainingInterrupted, train
from espalier.train.optimise import Sgd, Update
from espalier.train.pipelined import PipelinedSteps
from espalier.train.pipelining import Pipeline, Scheme, candidates, points

PRUNE = Prune(Magnitude(density=0.3, rows=2), CubicSchedule(0.5, 1.5, 4), ExchangeSchedule(0.5, 1.8, 0.5, 3))
SHORT = TrainConfig(epochs=2, batch=30, sgd=Sgd(0.05, 0.9, 1e-4), quantise=Quantise(Widths(8, 8, 16), probe_steps=5),
                    prune=PRUNE, augment=True)
CUT = Pipeline(2, ("pool",), stretch=4)


def plain(config: TrainConfig, checkpoint: Checkpoint) -> Checkpoint:
    """``checkpoint`` as if trained by ``config``."""
    return replace(checkpoint, config=config)


@pytest.mark.parametrize(("quantise", "micro_batches"), [
    (SHORT.quantise, 1), (SHORT.quantise, 4), (Quantise(Widths(8, 8, 16), probe_steps=2, start=1), 1), (None, 1)])
@pytest.mark.parametrize("cuts", [("pool",), ("relu", ), ()])
def test_synchronous_is_training_as_ever(quantise: Quantise | None, micro_batches: int, cuts: tuple[str, ...]) -> None:
    """Pruned, with exchanges, on moved images; to the bit."""
    config = replace(SHORT, quantise=quantise)
    pipeline = Pipeline(len(cuts) + 1, cuts, Scheme.SYNCHRONOUS, micro_batches=micro_batches, stretch=3)
    found = train(replace(config, pipeline=pipeline), few(), *tiny())
    assert same(plain(config, found), train(config, few(), *tiny()))


@pytest.mark.parametrize("scheme", [Scheme.STALE, Scheme.COMPENSATED])
@pytest.mark.parametrize("quantise", [None, Quantise()])
def test_learns_digits_on_stale_weights(quantise: Quantise | None, scheme: Scheme) -> None:
    config = TrainConfig(epochs=3, batch=32, sgd=Sgd(0.02), quantise=quantise, pipeline=replace(CUT, scheme=scheme))
    found = train(config, digits(), *tiny())
    assert found.log[-1].test_accuracy > 0.9
    assert found.log[-1].loss < found.log[0].loss


def test_a_hybrid_is_stale_first() -> None:
    def trained(scheme: Scheme, switch: int | None, epochs: int) -> Checkpoint:
        pipeline = replace(CUT, scheme=scheme, switch=switch)
        return train(replace(SHORT, prune=None, epochs=epochs, pipeline=pipeline), few(), *tiny())
    hybrid = trained(Scheme.HYBRID, 1, 2)
    assert hybrid.log[0] == trained(Scheme.STALE, None, 1).log[0]
    assert hybrid.log[1] != trained(Scheme.STALE, None, 2).log[1]
    synchronous = trained(Scheme.SYNCHRONOUS, None, 2)
    assert synchronous.log == trained(Scheme.HYBRID, 0, 2).log
    assert synchronous.log[0] != hybrid.log[0]


def interrupted(patch: pytest.MonkeyPatch, stretch: int) -> None:
    """Press Control-C in the middle of a stretch."""
    call, count = PipelinedSteps.__call__, iter(range(1, 1000))

    def pressed(self: PipelinedSteps, index: Sequence, moves: Sequence | None, sgd: Sgd, *, stale: bool) -> None:
        if next(count) == stretch:
            signal.raise_signal(signal.SIGINT)
        call(self, index, moves, sgd, stale=stale)
    patch.setattr(PipelinedSteps, "__call__", pressed)


@pytest.mark.parametrize("scheme", [Scheme.STALE, Scheme.COMPENSATED])
@pytest.mark.parametrize("stretch", [1, 3])
def test_interrupted_pipeline_goes_on_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: Scheme,
                                                 stretch: int) -> None:
    config = replace(SHORT, pipeline=replace(CUT, scheme=scheme))
    whole = train(config, few(), *tiny())
    with monkeypatch.context() as patch:
        interrupted(patch, stretch)
        with pytest.raises(TrainingInterrupted, match=r"^Training was interrupted in epoch [12] and is saved in "):
            train(config, few(), *tiny(), tmp_path)
    assert Checkpoint.load(tmp_path / loop.CHECKPOINT).position.step > 0
    assert same(train(config, few(), *tiny(), tmp_path), whole)


def test_what_was_there_before_a_part_was_gone_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(SHORT, pipeline=CUT)
    whole = train(config, few(), *tiny())
    call, count = PipelinedSteps.__call__, iter(range(1, 1000))

    def gone(self: PipelinedSteps, index: Sequence, moves: Sequence | None, sgd: Sgd, *, stale: bool) -> None:
        call(self, index, moves, sgd, stale=stale)
        if next(count) == 2:
            raise WorkerError("Part 1 of the pipeline is gone or does not answer")
    with monkeypatch.context() as patch:
        patch.setattr(PipelinedSteps, "__call__", gone)
        with pytest.raises(WorkerError, match=rf"^Part 1 of the pipeline is gone or does not answer; what was trained "
                                              rf"before is saved in {re.escape(str(tmp_path))}: run the same command "
                                              rf"again to go on$"):
            train(config, few(), *tiny(), tmp_path)
    assert Checkpoint.load(tmp_path / loop.CHECKPOINT).position.step == 4
    assert same(train(config, few(), *tiny(), tmp_path), whole)


@pytest.fixture(autouse=True)
def _control_c_interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_residual_networks_with_batch_norm() -> None:
    """Float first, folded then; stale."""
    graph, parameters = normed()
    classes, shape = graph.outputs[0].shape[0], graph.inputs[0].shape
    random = np.random.RandomState(0)
    part = replace(few().train, images=random.randint(0, 256, (60, *shape)).astype(np.uint8),
                   labels=random.randint(0, classes, 60), classes=tuple(map(str, range(classes))))
    split_ = replace(few(), train=part, test=part)
    quantise = Quantise(Widths(16, 16, 16), probe_steps=2, start=1)
    for name in points(graph, folds=True):
        config = TrainConfig(epochs=2, batch=20, quantise=quantise, sgd=Sgd(0.01, 0.9), pipeline=Pipeline(2, (name,)))
        found = train(config, split_, graph, parameters)
        assert found.update is Update.BUFFERED
        assert len(split(found.graph, (name,))) == 2


def test_widths_change_between_stretches() -> None:
    config = replace(SHORT, prune=None, augment=False, structure=Structure(
        0.5, Growth(Times(0.3, 0.8, 2), 0.5, 2.0), None, 1))
    pipeline = Pipeline(2, ("relu",), Scheme.SYNCHRONOUS, micro_batches=1)
    found = train(replace(config, pipeline=pipeline), few(), *tiny())
    assert same(plain(config, found), train(config, few(), *tiny()))


def test_cuts_follow_from_measured_times(tmp_path: Path) -> None:
    """They are taken down, and a run that is taken up again keeps them."""
    config = replace(SHORT, pipeline=Pipeline(2))
    found = train(config, few(), *tiny(), tmp_path)
    assert found.config.pipeline is not None
    assert found.config.pipeline.cuts == ("flat",), "the only one that is small, between the two layers"
    assert TrainConfig.load(tmp_path / loop.CONFIG) == found.config
    assert same(train(config, few(), *tiny(), tmp_path), found)
    assert same(train(found.config, few(), *tiny(), tmp_path), found)


def test_candidates_are_the_smallest_between_layers() -> None:
    graph, _ = tiny()
    assert [value.name for value in candidates(graph, folds=False)] == ["flat"]
    graph, _ = normed()
    split(graph, [value.name for value in candidates(graph, folds=False)])


@pytest.mark.parametrize(("told", "sentence"), [
    ({"parts": 0}, r"^A pipeline of 0 parts has at least 1 part and one cut fewer than parts, not 0 cuts$"),
    ({"parts": 2, "cuts": ("a", "b")}, r"^A pipeline of 2 parts has at least 1 part and one cut fewer than parts, not "
                                       r"2 cuts$"),
    ({"scheme": Scheme.HYBRID}, r"^A hybrid pipeline, and no other, is told by 'switch' the epoch from which on it is "
                                r"synchronous$"),
    ({"switch": 1}, r"^A hybrid pipeline, and no other, "),
    ({"scheme": Scheme.HYBRID, "switch": -1}, r"^A hybrid pipeline turns synchronous in an epoch counted from 0, not "
                                              r"in -1$"),
    ({"micro_batches": 0}, r"^Micro-batches and the batches of a stretch are at least 1, not 0 and 100$")])
def test_pipelines_wrong(told: dict, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        Pipeline(**told)


def test_recipes_wrong() -> None:
    hybrid = Pipeline(scheme=Scheme.HYBRID, switch=2)
    with pytest.raises(DataError, match=r"^A hybrid pipeline turns synchronous in one of the 2 epochs, counted from 0, "
                                        r"not in 2$"):
        replace(SHORT, pipeline=hybrid)
    with pytest.raises(DataError, match=r"^Late gradients are made up for in the buffered update and in float32, not "
                                        r"in the narrow one: choose another scheme$"):
        replace(SHORT, pipeline=Pipeline(scheme=Scheme.COMPENSATED), quantise=Quantise(update=Update.NARROW))


@pytest.mark.parametrize(("pipeline", "kind", "sentence"), [
    (Pipeline(9), UnsupportedError, r"^Network 'tiny' is cut in 1\.\.2 parts, not 9$"),
    (Pipeline(2, ("fc",)), GraphError, r"^Network 'tiny' cannot be cut at 'fc': values that cross alone from some "
                                       r"layers to the next are conv, relu, pool, flat$"),
    (Pipeline(3, ("conv", "relu")), GraphError, r"^Each part of a network has weights, and the one of 'tiny' that ends "
                                                r"in 'relu' has none: leave that cut out$")])
def test_cuts_wrong(pipeline: Pipeline, kind: type[EspalierError], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        check_fit(replace(SHORT, pipeline=pipeline), few(), tiny()[0])


def test_a_cut_beside_a_batch_norm_that_is_folded_wrong() -> None:
    graph, _ = normed()
    beside = next(value for value in points(graph, folds=False) if value not in points(graph, folds=True))
    Pipeline(2, (beside,)).check(graph, folds=False)
    with pytest.raises(UnsupportedError, match=rf"^Network '{graph.name}' cannot be cut at '{beside}', beside a batch "
                                               rf"norm that will be folded: it can at "):
        Pipeline(2, (beside,)).check(graph, folds=True)
