"""A recipe from a file and flags: flags win, and another length keeps the place of the file's times."""

from __future__ import annotations

from pathlib import Path

import pytest

from espalier.compress.balanced import Balanced
from espalier.compress.cgap import Shedding, Structure, Times
from espalier.compress.group_lasso import GroupLasso
from espalier.compress.magnitude import Magnitude
from espalier.compress.rigl import ExchangeSchedule
from espalier.compress.schedule import CubicSchedule
from espalier.errors import DataError
from espalier.flow import TrainFlags, recipe
from espalier.train.config import Norms, Prune, Quantise, RateKind, RateSchedule, TrainConfig
from espalier.train.optimise import Sgd
from espalier.train.pipelining import Pipeline, Scheme

ALL_TIMES = TrainConfig(
    epochs=10, rate=RateSchedule(RateKind.STEP, (5, 8, 12)), quantise=Quantise(start=4),
    prune=Prune(Magnitude(density=0.5), CubicSchedule(5, 8, 7), ExchangeSchedule(6, 9, 0.5, 3), GroupLasso(0.1, 2, 8)),
    structure=Structure(shedding=Shedding(Times(1, 4, 1.5), 0.5)), pipeline=Pipeline(scheme=Scheme.HYBRID, switch=3))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    ALL_TIMES.save(tmp_path / "recipe.yaml")
    return tmp_path / "recipe.yaml"


def test_a_longer_run(file: Path) -> None:
    found = recipe(file, TrainFlags(epochs=25))
    assert found == TrainConfig(
        epochs=25, rate=RateSchedule(RateKind.STEP, (12, 20, 30)), quantise=Quantise(start=10),
        prune=Prune(Magnitude(density=0.5), CubicSchedule(12.5, 20, 7), ExchangeSchedule(15, 22.5, 0.5, 3),
                    GroupLasso(0.1, 5, 20)),
        structure=Structure(shedding=Shedding(Times(2.5, 10, 3.75), 0.5)),
        pipeline=Pipeline(scheme=Scheme.HYBRID, switch=8))


@pytest.mark.parametrize(("epochs", "milestones", "whole"), [
    (5, (2, 4, 6), (2, 2)), (4, (2, 3, 5), (2, 1)), (3, (1, 2, 4), (1, 1)), (10, (5, 8, 12), (4, 3))])
def test_whole_epochs_are_rounded_in_order_and_within_the_run(
        file: Path, epochs: int, milestones: tuple[int, ...], whole: tuple[int, int]) -> None:
    found = recipe(file, TrainFlags(epochs=epochs))
    assert found.quantise is not None and found.pipeline is not None
    assert (found.rate.milestones, (found.quantise.start, found.pipeline.switch)) == (milestones, whole)


def test_times_in_flags_are_as_given(file: Path) -> None:
    found = recipe(file, TrainFlags(epochs=20, quantise_start=1, prune_start=9, prune_end=18, switch=2))
    assert found.prune is not None and found.quantise is not None and found.pipeline is not None
    assert (found.prune.schedule.start, found.prune.schedule.end, found.quantise.start) == (9, 18, 1)
    assert found.pipeline.switch == 2


def test_batch_norms_trained_by_flag(file: Path) -> None:
    for given in (file, None):
        found = recipe(given, TrainFlags(batch_norm="trained"))
        assert found.quantise is not None and found.quantise.batch_norm is Norms.TRAINED
        assert not found.folds and found.trains_batch_norm
    assert ALL_TIMES.folds and not TrainConfig().trains_batch_norm


def test_the_same_length_changes_nothing(file: Path) -> None:
    assert recipe(file, TrainFlags(epochs=10)) == recipe(file, TrainFlags()) == ALL_TIMES


@pytest.mark.parametrize(("flags", "sentence"), [
    ({"epochs": 2}, r"^The learning rate falls at 2 milestones, which takes more than 2 epochs: give more, or choose a "
                    r"rate that falls along a cosine$"),
    ({"epochs": 1, "rate": "cosine"}, r"^Recipe .*\.yaml and the command line: Fixed point starts in one "
                                     r"of the 1 epochs, counted from 0, not in 1: "),
    ({"epochs": 1, "rate": "cosine", "quantise_start": 0}, r": A hybrid pipeline turns synchronous in one of the 1 "),
    ({"epochs": 0}, r": Epochs and batch are at least 1, not 0 and 64$"),
    ({"epochs": -3}, r": Epochs and batch are at least 1, not -3 and 64$"),
])
def test_too_short_wrong(file: Path, flags: dict, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        recipe(file, TrainFlags(**flags))


RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("epochs", [1, 7, 90])
def test_every_recipe_can_be_stretched(path: Path, epochs: int) -> None:
    assert recipe(path, TrainFlags(epochs=epochs)).epochs == epochs


def test_blocks_spread_over_processing_elements() -> None:
    told = recipe(None, TrainFlags(density=0.1, method="balanced", block=4, elements=2))
    assert told.prune is not None and told.prune.method == Balanced(density=0.1, rows=4, elements=2)
    with pytest.raises(DataError, match=r"prune.*elements"):
        recipe(None, TrainFlags(density=0.1, elements=2))


@pytest.mark.parametrize(("flags", "bits"), [
    ({}, 1), ({"parts": 1, "scheme": "synchronous"}, 1), ({"parts": 2}, 4), ({"parts": 2, "scheme": "compensated"}, 4),
    ({"parts": 2, "scheme": "synchronous"}, 1), ({"parts": 2, "activation_bits": 8}, 1)])
def test_stale_weights_give_wide_activations_headroom(flags, bits):
    found = recipe(None, TrainFlags(gradient_bits=16, **flags))
    assert found.quantise.headroom.activation == bits


def test_a_recipe_keeps_its_headroom(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("quantise: {headroom: {activation: 2}}")
    assert recipe(file, TrainFlags(parts=2)).quantise.headroom.activation == 2


def test_rate_and_momentum_of_another_batch():
    found = recipe(None, TrainFlags(batch=32, tuned_batch=128, learning_rate=0.1, momentum=0.9))
    assert found.sgd == Sgd(0.1, 0.9).for_batch(32, 128) and found.batch == 32
